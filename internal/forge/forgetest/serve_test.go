package forgetest

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest/runnerclient"
)

// served runs the stand-in as a process of its own does.
func served(t *testing.T, o Options) (c *Client, runners string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan [2]string, 1)
	o.Listen, o.Ready = "127.0.0.1:0", func(a, b string) { ready <- [2]string{a, b} }
	go func() { ended <- Serve(ctx, o) }()
	tr := &http.Transport{}
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		tr.CloseIdleConnections()
	})
	select {
	case at := <-ready:
		return &Client{URL: "http://" + at[0], HTTP: &http.Client{Transport: tr}}, at[1]
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return nil, ""
}

func TestControlFromAnotherProcess(t *testing.T) {
	k := newSink(t)
	c, _ := served(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), generous)
	defer cancel()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.AddOrg(ctx, Org{Login: "octo-org"}))(t)
	must(c.AddUser(ctx, User{Login: "alice", ID: 7}))(t)
	repo := must(c.AddRepo(ctx, Repository{Name: "octo-org/hello", Files: map[string]string{"a": "b"}}))(t)
	must(c.SetFile(ctx, FileChange{Repo: repo.Name, Path: "c", Content: []byte{0, 255}}))(t)
	check(c.SetPrivate(ctx, repo.Name, true))
	check(c.SetTeam(ctx, Team{Org: "octo-org", Slug: "t", Members: []string{"alice"}}))
	check(c.SetRole(ctx, Role{Repo: repo.Name, Login: "alice", Role: "write"}))
	must(c.SetGroup(ctx, Group{Org: "octo-org", Name: "g"}))(t)
	check(c.Configure(ctx, Settings{WebhookURL: &k.URL}))
	if app := must(c.App(ctx))(t); app.WebhookURL != k.URL || app.InstallationID != repo.InstallationID || app.PrivateKeyPEM == "" {
		t.Errorf("app: %+v", app)
	}
	check(c.Ping(ctx))
	check(c.SetFaults(ctx, []Fault{{Kind: Fault500, Path: "/none"}}))
	check(c.SetHookFaults(ctx, nil))
	check(c.LoseNextWebhook(ctx, "workflow_job", "waiting"))
	run := must(c.Dispatch(ctx, RunSpec{Repo: repo.Name, Actor: "alice", Jobs: []JobSpec{{Labels: []string{"x"}}, {Waiting: true}, {Hold: true}}}))(t)
	check(c.Approve(ctx, run.Jobs[1].ID))
	check(c.Release(ctx, run.Jobs[2].ID))
	check(c.SetPriority(ctx, run.Jobs[0].ID, 3))
	check(c.CancelJob(ctx, run.Jobs[1].ID))
	check(c.FinishJob(ctx, run.Jobs[2].ID, "success"))
	if jobs := must(c.Jobs(ctx, JobFilter{Status: "queued"}))(t); len(jobs) != 1 {
		t.Errorf("%d jobs are queued, want 1", len(jobs))
	}
	go func() { _ = c.CancelRun(ctx, run.ID) }()
	if jobs := must(c.Wait(ctx, JobFilter{Run: run.ID}, ""))(t); len(jobs) != 3 || jobs[0].Conclusion != "cancelled" {
		t.Errorf("jobs: %+v", jobs)
	}
	must(c.Rerun(ctx, run.ID, "alice"))(t)
	check(c.EmitJob(ctx, run.Jobs[0].ID, "queued"))
	check(c.Emit(ctx, Emission{Event: "star", Payload: []byte("{}")}))
	must(c.Log(ctx, run.Jobs[0].ID))(t)
	must(c.Trace(ctx, run.Jobs[0].ID))(t)
	for _, n := range []int{len(must(c.Runners(ctx))(t)), len(must(c.Checks(ctx, ""))(t)), len(must(c.Calls(ctx, 0))(t))} {
		if n != 0 {
			t.Errorf("%d runners, check runs or calls of nobody", n)
		}
	}
	k.next(t, 8)
	check(c.Uninstall(ctx, Org{Login: "octo-org"}))
}

func TestControlErrorsKeepTheirKind(t *testing.T) {
	c, _ := served(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), generous)
	defer cancel()
	must(c.AddRepo(ctx, Repository{Name: "octo-org/hello"}))(t)
	run := must(c.Dispatch(ctx, RunSpec{Repo: "octo-org/hello", Jobs: []JobSpec{{}}}))(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(c.ResetStats(ctx))
	d := must(c.Deliveries(ctx))(t)
	check(c.Redeliver(ctx, d[0].ID))
	for err, kind := range map[error]gpuserver.Kind{
		c.Rerequest(ctx, 1, ""): gpuserver.KindNotFound, c.Assign(ctx, run.Jobs[0].ID, "none"): gpuserver.KindConflict,
		c.Redeliver(ctx, 1): gpuserver.KindNotFound, tell(ctx, c, "configure", 3): gpuserver.KindInvalid,
		tell(ctx, c, "no-such-call", none{}): gpuserver.KindUnavailable,
	} {
		if gpuserver.KindOf(err) != kind {
			t.Errorf("%v is of kind %s, want %s", err, gpuserver.KindOf(err), kind)
		}
	}
	short, end := context.WithTimeout(ctx, 50*time.Millisecond)
	defer end()
	if _, err := c.Wait(short, JobFilter{}, ""); err == nil {
		t.Error("Wait gave a job up that is still queued")
	}
}

func TestGuestsReachTheirProtocolOnly(t *testing.T) {
	c, guests := served(t, Options{RunnerListen: "127.0.0.1:0"})
	ctx := t.Context()
	// The guests' address serves their protocol and nothing else.
	for path, want := range map[string]int{"/_control/stats": 404, "/app": 404, "/_runner/session": 401} {
		req := must(http.NewRequestWithContext(ctx, "POST", "http://"+guests+path, nil))(t)
		resp := must(c.HTTP.Do(req))(t)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s at the guests' address: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestServeSaysWhyItCannotListen(t *testing.T) {
	err := Serve(t.Context(), Options{Listen: "256.0.0.1:x"})
	if gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("error: %v", err)
	}
}

// TestBurst runs a thousand jobs through runners that share a few connections;
// none is lost, none runs twice.
func TestBurst(t *testing.T) {
	const jobs = 1000
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	specs := make([]JobSpec, jobs)
	for i := range specs {
		specs[i] = JobSpec{Labels: []string{"x"}}
	}
	run := b.dispatch(specs...)
	b.token(b.repo.InstallationID)
	todo := make(chan int, jobs)
	for i := range jobs {
		todo <- i
	}
	close(todo)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range todo {
				if err := runOne(t.Context(), b, fmt.Sprintf("r%d", i)); err != nil {
					t.Errorf("runner %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	names := map[string]bool{}
	for _, j := range b.wait(JobFilter{Run: run.ID}, "") {
		if j.Conclusion != "success" || j.Dispatched != 1 {
			t.Errorf("job: %+v", j)
		}
		names[j.RunnerName] = true
	}
	if len(names) != jobs || len(b.Runners()) != 0 {
		t.Errorf("%d runners had jobs, want %d; %d are left", len(names), jobs, len(b.Runners()))
	}
	k.next(t, 3*jobs)
}

func runOne(ctx context.Context, b *bench, name string) error {
	_, jit := b.register(name, "x")
	c, err := runnerclient.Parse(jit)
	if err != nil {
		return err
	}
	c.UseTransport(b.http.Transport)
	if err := c.Online(ctx); err != nil {
		return err
	}
	j, err := c.NextJob(ctx)
	if err != nil {
		return err
	}
	return c.Complete(ctx, j.ID, runnerclient.Result{Conclusion: "success"})
}

func TestRetentionIsBounded(t *testing.T) {
	b := start(t, Config{Retention: Retention{Runs: 10, Deliveries: 20, Calls: 8, Checks: 3, LogBytes: 5}})
	for range 50 {
		run := b.dispatch(JobSpec{Labels: []string{"x"}})
		b.check(b.FinishJob(run.Jobs[0].ID, "success"))
		b.call("POST", "/repos/octo-org/hello/check-runs", obj{"name": "n", "head_sha": b.repo.HeadSHA})
	}
	open := b.dispatch(JobSpec{Labels: []string{"x"}})
	c := b.online("r", "x")
	b.takeJob(c)
	if n := must(c.Log(t.Context(), open.Jobs[0].ID, 0, []byte("0123456789")))(t); n != 10 {
		t.Errorf("of a log over the bound %d bytes were acknowledged, want 10", n)
	}
	must(c.Log(t.Context(), open.Jobs[0].ID, 10, []byte("more")))(t)
	if text := must(b.Log(open.Jobs[0].ID))(t); text != "01234" {
		t.Errorf("log: %q", text)
	}
	if n := len(b.Jobs(JobFilter{})); n > 13 {
		t.Errorf("%d jobs are kept", n)
	}
	if b.job(open.Jobs[0].ID).Status != "in_progress" {
		t.Error("an unfinished job was dropped")
	}
	if n := len(b.Deliveries()); n != 20 {
		t.Errorf("%d deliveries are kept, want 20", n)
	}
	if n := len(b.Calls(0)); n > 8 {
		t.Errorf("%d calls are kept", n)
	}
	if n := len(b.Checks("")); n != 3 {
		t.Errorf("%d check runs are kept, want 3", n)
	}
}

// TestCloseEndsWhatWaits closes the server under a waiting runner and caller;
// the leak check of TestMain sees what stays behind.
func TestCloseEndsWhatWaits(t *testing.T) {
	b := start(t, Config{})
	run := b.dispatch(JobSpec{Labels: []string{"never"}})
	c := b.online("r", "x")
	b.SetHookFaults([]HookFault{{Kind: HookDelay, Delay: time.Hour}})
	b.dispatch(JobSpec{Labels: []string{"never"}})
	waited, polled := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := b.Wait(context.Background(), JobFilter{Run: run.ID}, "")
		waited <- err
	}()
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		_, err := c.NextJob(ctx)
		polled <- err
	}()
	b.check(b.Close())
	if err := <-waited; gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("Wait on a closed server: %v", err)
	}
	stop()
	if err := <-polled; err == nil {
		t.Error("a poll on a closed server gave a job")
	}
}
