package forgetest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge/forgetest/runnerclient"
)

func TestOneJobFromQueueToEnd(t *testing.T) {
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	run := b.dispatch(JobSpec{
		Name: "build (3.12)", Key: "build", Labels: []string{"gpu_large"}, Env: map[string]string{"EXTRA": "1"},
		Steps: []runnerclient.Step{{Name: "say", Run: "echo hi"}},
	})
	k.next(t, 1)
	c := b.online("r1", "gpu_large", "extra")
	j := b.takeJob(c)
	if again := b.takeJob(c); again.ID != j.ID {
		t.Errorf("asked again, the runner got job %d, want %d", again.ID, j.ID)
	}
	want := map[string]string{
		"GITHUB_REPOSITORY": "octo-org/hello", "GITHUB_JOB": "build", "GITHUB_RUN_ATTEMPT": "1", "RUNNER_NAME": "r1", "EXTRA": "1",
	}
	for name, value := range want {
		if j.Env[name] != value {
			t.Errorf("env %s = %q, want %q", name, j.Env[name], value)
		}
	}
	ctx := t.Context()
	n, err := c.Log(ctx, j.ID, 0, []byte("hello "))
	b.check(err)
	_, err = c.Log(ctx, j.ID, n-3, []byte("lo world")) // overlapping: the known part is dropped
	b.check(err)
	if _, err := c.Log(ctx, j.ID, 100, []byte("x")); err == nil {
		t.Error("a log piece beyond the end was taken; want a conflict")
	}
	b.check(c.Steps(ctx, j.ID, []runnerclient.StepState{{Number: 1, Name: "say", Status: "completed", Conclusion: "success"}}))
	b.check(c.Complete(ctx, j.ID, runnerclient.Result{Conclusion: "success"}))
	got := b.wait(JobFilter{Run: run.ID}, "")[0]
	if got.Conclusion != "success" || got.RunnerName != "r1" || got.Dispatched != 1 {
		t.Errorf("job: %+v", got)
	}
	if diff := cmp.Diff("hello world", must(b.Log(j.ID))(t)); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("queued in_progress completed", actions(k.next(t, 2))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if left := b.Runners(); len(left) != 0 {
		t.Errorf("the runner is still registered after its job: %+v", left)
	}
	if _, err := c.NextJob(ctx); !errors.Is(err, runnerclient.ErrGone) {
		t.Errorf("a used registration: %v, want ErrGone", err)
	}
}

func TestARunnerTakesByLabelsNotByIntent(t *testing.T) {
	b := start(t, Config{})
	run := b.dispatch(JobSpec{Labels: []string{"A"}}, JobSpec{Labels: []string{"a", "b"}}, JobSpec{Labels: []string{"b"}})
	for _, c := range []struct {
		name   string
		labels []string
		want   int // of the run's jobs
	}{
		{"only-b", []string{"b"}, 2}, {"both", []string{"B", "a"}, 0}, {"both-2", []string{"b", "A", "c"}, 1},
	} {
		j := b.takeJob(b.online(c.name, c.labels...))
		if j.ID != run.Jobs[c.want].ID {
			t.Errorf("runner %s got job %d, want %d", c.name, j.ID, run.Jobs[c.want].ID)
		}
	}
	b.online("idle", "a", "b", "c")
	if r := b.Runners()[3]; r.Busy || !r.Online {
		t.Errorf("a runner without a job: %+v", r)
	}
	late := b.dispatch(JobSpec{Labels: []string{"c"}})
	if got := b.job(late.Jobs[0].ID); got.RunnerName != "idle" {
		t.Errorf("a job for an idle runner is %s by %q", got.Status, got.RunnerName)
	}
}

func TestOrderCanBeForced(t *testing.T) {
	b := start(t, Config{})
	run := b.dispatch(JobSpec{Labels: []string{"x"}}, JobSpec{Labels: []string{"x"}}, JobSpec{Labels: []string{"x"}, Hold: true})
	b.check(b.SetPriority(run.Jobs[1].ID, 1))
	if j := b.takeJob(b.online("made-for-0", "x")); j.ID != run.Jobs[1].ID {
		t.Errorf("the sibling with priority was not taken first")
	}
	b.takeJob(b.online("second", "x"))
	third := b.online("third", "x")
	if got := b.job(run.Jobs[2].ID); got.Status != "queued" {
		t.Errorf("a held job is %s", got.Status)
	}
	b.check(b.Release(run.Jobs[2].ID))
	b.takeJob(third)

	pause, goOn := true, false
	b.Configure(Settings{PauseDispatch: &pause})
	more := b.dispatch(JobSpec{Labels: []string{"x"}}, JobSpec{Labels: []string{"y"}})
	fourth := b.online("fourth", "x")
	b.check(b.Assign(more.Jobs[1].ID, "fourth"))
	if j := b.takeJob(fourth); j.ID != more.Jobs[1].ID {
		t.Error("the assigned job was not given")
	}
	if err := b.Assign(more.Jobs[0].ID, "fourth"); gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("a busy runner was assigned a second job: %v", err)
	}
	fifth := b.online("fifth", "x")
	b.Configure(Settings{PauseDispatch: &goOn})
	b.takeJob(fifth)
}

func TestScopesAndGroups(t *testing.T) {
	b := start(t, Config{})
	must(b.AddRepo(Repository{Name: "octo-org/public"}))(t)
	must(b.AddRepo(Repository{Name: "octo-org/other", Private: true}))(t)
	must(b.AddRepo(Repository{Name: "strangers/theirs", Private: true}))(t)
	g := must(b.SetGroup(Group{Org: "octo-org", Name: "gpus", PublicRepos: true, Repositories: []string{"octo-org/public"}}))(t)
	connect := func(name string, group int64) *runnerclient.Client {
		a := b.call("POST", "/orgs/octo-org/actions/runners/generate-jitconfig", obj{
			"name": name, "runner_group_id": group, "labels": []string{"x"},
		})
		a.want(t, http.StatusCreated)
		c := must(runnerclient.Connect(t.Context(), a.str("encoded_jit_config")))(t)
		t.Cleanup(c.Close)
		return c
	}
	b.online("repo-level", "x")
	connect("default-group", 1)
	connect("public-group", g.ID)
	dispatch := func(repo string) string {
		return must(b.Dispatch(RunSpec{Repo: repo, Jobs: []JobSpec{{Labels: []string{"x"}}}}))(t).Jobs[0].RunnerName
	}
	got := []string{dispatch("strangers/theirs"), dispatch("octo-org/public"), dispatch("octo-org/public"), dispatch("octo-org/other")}
	if diff := cmp.Diff([]string{"", "public-group", "", "default-group"}, got); diff != "" {
		t.Errorf("runners (-want +got):\n%s", diff)
	}
}

func TestRegistrationRules(t *testing.T) {
	b := start(t, Config{})
	const path = "/repos/octo-org/hello/actions/runners"
	id, _ := b.register("name", "x")
	b.call("POST", path+"/generate-jitconfig", obj{"name": "NAME", "runner_group_id": 1, "labels": []string{"x"}}).want(t, http.StatusConflict)
	b.call("POST", path+"/generate-jitconfig", obj{"name": "n2", "runner_group_id": 1}).want(t, http.StatusUnprocessableEntity)
	b.call("POST", path+"/generate-jitconfig", obj{
		"name": strings.Repeat("n", 65), "runner_group_id": 1, "labels": []string{"x"},
	}).want(t, http.StatusUnprocessableEntity)
	var list struct {
		Total   int `json:"total_count"`
		Runners []struct{ Name string }
	}
	b.register("name-2", "x")
	b.call("GET", path+"?name=name", nil).into(t, &list)
	if list.Total != 1 || list.Runners[0].Name != "name" {
		t.Errorf("find by name: %+v", list)
	}
	b.call("GET", path+"?per_page=1&page=2", nil).into(t, &list)
	if list.Total != 2 || list.Runners[0].Name != "name-2" {
		t.Errorf("second page: %+v", list)
	}
	one := path + "/" + raw64(id)
	b.dispatch(JobSpec{Labels: []string{"y"}})
	b.call("DELETE", one, nil).want(t, http.StatusNoContent)
	b.call("DELETE", one, nil).want(t, http.StatusNotFound)
	c := b.online("busy", "y")
	b.takeJob(c)
	busy := path + "/" + c.Settings.AgentID
	b.call("DELETE", busy, nil).want(t, http.StatusUnprocessableEntity)
}

func raw64(n int64) string { return string(raw(n)) }

func TestASilentRunnerLosesItsJob(t *testing.T) {
	b := start(t, Config{RunnerLease: 200 * time.Millisecond})
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	b.online("r", "x")
	got := b.wait(JobFilter{Run: run.ID}, "")[0]
	if got.Conclusion != "failure" || !strings.Contains(got.Message, "lost communication") {
		t.Errorf("job: %+v", got)
	}
	// GitHub keeps such a registration: somebody has to remove it.
	if r := b.Runners(); len(r) != 1 || r[0].Online || r[0].Busy {
		t.Errorf("runners: %+v", r)
	}
}

func TestWatchKeepsTheLeaseAndSeesACancellation(t *testing.T) {
	b := start(t, Config{RunnerLease: time.Hour}) // the client is made to think of a short one
	run := b.dispatch(JobSpec{Labels: []string{"x"}}, JobSpec{Labels: []string{"none"}})
	c := b.online("r", "x")
	c.Lease = 300 * time.Millisecond
	j := b.takeJob(c)
	ctx, stop := context.WithCancel(t.Context())
	cancelled, done := c.Watch(ctx, j.ID)
	taken := b.lastSeen("r")
	for end := time.Now().Add(generous); b.lastSeen("r").Sub(taken) < 2*c.Lease; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no renewal was seen in the time of two leases")
		}
	}
	b.check(b.CancelRun(run.ID))
	if got := b.job(run.Jobs[1].ID); got.Status != "completed" || got.Conclusion != "cancelled" || got.RunnerName != "" {
		t.Errorf("a queued job that was cancelled: %+v", got)
	}
	select {
	case <-cancelled:
	case <-time.After(generous):
		t.Fatal("the runner was not told of the cancellation")
	}
	b.check(c.Complete(ctx, j.ID, runnerclient.Result{Conclusion: "failure"}))
	stop()
	<-done
	if got := b.wait(JobFilter{Run: run.ID}, "")[0]; got.Conclusion != "cancelled" {
		t.Errorf("conclusion %s, want cancelled", got.Conclusion)
	}
}

func (b *bench) lastSeen(name string) time.Time {
	b.Server.mu.Lock()
	defer b.Server.mu.Unlock()
	return b.runners.named(name).lastSeen
}

func TestACancelledJobEndsWithoutItsRunner(t *testing.T) {
	b := start(t, Config{CancelGrace: 100 * time.Millisecond})
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	b.takeJob(b.online("deaf", "x"))
	b.check(b.CancelJob(run.Jobs[0].ID))
	if got := b.wait(JobFilter{Run: run.ID}, "")[0]; got.Conclusion != "cancelled" {
		t.Errorf("job: %+v", got)
	}
}

func TestRerunMakesNewJobsOfAnotherAttempt(t *testing.T) {
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	if _, err := b.Rerun(run.ID, ""); gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("a running run was rerun: %v", err)
	}
	b.check(b.FinishJob(run.Jobs[0].ID, "failure"))
	again := must(b.Rerun(run.ID, "mallory"))(t)
	if again.Attempt != 2 || again.ID != run.ID || again.Jobs[0].ID == run.Jobs[0].ID || again.TriggeringActor != "mallory" || again.Actor != "octo-org" {
		t.Errorf("rerun: %+v", again)
	}
	var first, last struct {
		Attempt int                    `json:"run_attempt"`
		By      struct{ Login string } `json:"triggering_actor"`
		Status  string
	}
	path := "/repos/octo-org/hello/actions/runs/" + raw64(run.ID)
	b.call("GET", path+"/attempts/1", nil).into(t, &first)
	b.call("GET", path, nil).into(t, &last)
	if first.By.Login != "octo-org" || last.By.Login != "mallory" || first.Status != "completed" || last.Status != "queued" {
		t.Errorf("attempts: %+v, %+v", first, last)
	}
}

func TestWaitingJobs(t *testing.T) {
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	run := b.dispatch(JobSpec{Labels: []string{"x"}, Waiting: true})
	c := b.online("r", "x")
	if got := b.job(run.Jobs[0].ID); got.Status != "waiting" {
		t.Fatalf("status %s, want waiting", got.Status)
	}
	b.check(b.Approve(run.Jobs[0].ID))
	b.takeJob(c)
	if got := actions(k.next(t, 3)); got != "waiting queued in_progress" {
		t.Errorf("events: %s", got)
	}
}
