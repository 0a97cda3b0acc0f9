package github

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/forgetest"
)

// site is a Forge and the stand-in for GitHub that it speaks to.
type site struct {
	*Forge
	hub  *forgetest.Server
	repo forge.Repo
}

// newSite starts both. wrap may put something between them, change may alter
// the Forge's configuration.
func newSite(t *testing.T, cfg forgetest.Config, wrap func(http.RoundTripper) http.RoundTripper, change func(*Config)) *site {
	t.Helper()
	hub := forgetest.New(cfg)
	web := httptest.NewServer(hub)
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		web.Close()
		if err := hub.Close(); err != nil {
			t.Error(err)
		}
	})
	repo, err := hub.AddRepo(forgetest.Repository{
		Name: "octo-org/hello", Private: true, Files: map[string]string{".cirun.yml": "runners: []\n", "doc/a b.txt": "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	app := hub.App()
	var rt http.RoundTripper = tr
	if wrap != nil {
		rt = wrap(tr)
	}
	c := Config{
		Name: "hub", BaseURL: web.URL, AppID: strconv.FormatInt(app.ID, 10), PrivateKey: []byte(app.PrivateKeyPEM),
		WebhookSecrets: []string{app.WebhookSecret}, HTTPClient: &http.Client{Transport: rt},
	}
	if change != nil {
		change(&c)
	}
	f, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return &site{f, hub, forge.Repo{
		Name: repo.Name, ID: repo.ID, InstallationID: repo.InstallationID, DefaultBranch: "main",
	}}
}

func (s *site) dispatch(t *testing.T, spec forgetest.RunSpec) forgetest.Run {
	t.Helper()
	spec.Repo = s.repo.Name
	run, err := s.hub.Dispatch(spec)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// TestOperations makes every call that the client can make, against the
// stand-in, and holds calls and answers against GitHub's description.
func TestOperations(t *testing.T) {
	var d *described
	s := newSite(t, forgetest.Config{}, func(next http.RoundTripper) http.RoundTripper {
		d = newDescribed(t, next)
		return d
	}, nil)
	s.hub.Configure(forgetest.Settings{Permissions: &map[string]string{
		"actions": "write", "administration": "write", "checks": "write", "contents": "read", "members": "read", "metadata": "read",
		"organization_self_hosted_runners": "write",
	}})
	ctx := t.Context()
	t.Run("runs", func(t *testing.T) { testRuns(ctx, t, s) })
	t.Run("re-runs", func(t *testing.T) { testReruns(ctx, t, s) })
	t.Run("repository runners", func(t *testing.T) { testRunners(ctx, t, s, s.Scope(s.repo)) })
	t.Run("organisation runners", func(t *testing.T) {
		testRunners(ctx, t, s, forge.Scope{Repo: s.repo, Organisation: true})
	})
	t.Run("checks", func(t *testing.T) { testChecks(ctx, t, s) })
	t.Run("files", func(t *testing.T) { testFiles(ctx, t, s) })
	t.Run("members", func(t *testing.T) { testMembers(ctx, t, s) })
	t.Run("deliveries", func(t *testing.T) { testDeliveries(ctx, t, s) })
	t.Run("diagnosis", func(t *testing.T) {
		s.cfg.RunnerScope = ScopeOrganisation
		checkLevels(t, s.Diagnose(ctx, DiagnoseOptions{Teams: true, Checks: true, Rerun: true}))
	})
	d.allCalled()
}

func testRuns(ctx context.Context, t *testing.T, s *site) {
	want := s.dispatch(t, forgetest.RunSpec{Event: "pull_request", Actor: "mallory", Jobs: []forgetest.JobSpec{
		{Name: "build", Labels: []string{"gpu", "x--1"}}, {Labels: []string{"y"}, Waiting: true},
	}})
	run, err := s.Run(ctx, s.repo, want.ID, 1)
	if err != nil {
		t.Fatal(err)
	}
	if run.TriggeringActor.ID == 0 || run.Actor != run.TriggeringActor {
		t.Errorf("actors %+v, %+v", run.TriggeringActor, run.Actor)
	}
	run.TriggeringActor.ID, run.Actor.ID = 0, 0
	wantRun := forge.Run{
		ID: want.ID, Attempt: 1, Event: "pull_request", TriggeringActor: forge.Actor{Login: "mallory"},
		Actor: forge.Actor{Login: "mallory"}, HeadRepo: s.repo.Name, HeadSHA: want.HeadSHA, HeadBranch: "main",
		DefaultBranch: "main", Private: true, Status: want.Status,
	}
	if diff := cmp.Diff(wantRun, run); diff != "" {
		t.Error(diff)
	}
	if latest, err := s.Run(ctx, s.repo, want.ID, 0); err != nil || latest.Attempt != 1 {
		t.Errorf("the latest attempt: %+v, %v", latest, err)
	}
	job, err := s.Job(ctx, s.repo, want.Jobs[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if job.Name != "build" || job.State != gpuserver.ForgeQueued || job.RunID != want.ID || job.RunAttempt != 1 ||
		!cmp.Equal(job.Labels, []string{"gpu", "x--1"}) || job.Repo != s.repo || job.CreatedAt.IsZero() {
		t.Errorf("got job %+v", job)
	}
	jobs, err := s.QueuedJobs(ctx, s.repo)
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) != 2 || jobs[0].State != gpuserver.ForgeQueued || jobs[1].State != gpuserver.ForgeWaiting {
		t.Errorf("got jobs %+v", jobs)
	}
	if err := s.hub.CancelRun(want.ID); err != nil {
		t.Fatal(err)
	}
	if jobs, err := s.QueuedJobs(ctx, s.repo); err != nil || len(jobs) != 0 {
		t.Errorf("after the cancel: %+v, %v", jobs, err)
	}
	if _, err := s.Job(ctx, s.repo, 99); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("a job that is not there: %v", err)
	}
}

func testRunners(ctx context.Context, t *testing.T, s *site, scope forge.Scope) {
	spec := forge.RunnerSpec{Scope: scope, Name: "gs-1-1", Labels: []string{"gpu", "x--1"}}
	reg, err := s.RegisterRunner(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if reg.RunnerID == 0 || reg.JITConfig == "" {
		t.Errorf("got %+v", reg)
	}
	if _, err := s.RegisterRunner(ctx, spec); gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("the same name again: %v", err)
	}
	other := spec
	other.Name = "gs-1-10"
	if _, err := s.RegisterRunner(ctx, other); err != nil {
		t.Fatal(err)
	}
	r, err := s.FindRunner(ctx, scope, "gs-1-1")
	want := forge.Runner{ID: reg.RunnerID, Name: "gs-1-1", Labels: []string{"gpu", "x--1"}}
	if diff := cmp.Diff(want, r); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if _, err := s.FindRunner(ctx, scope, "gs-1"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("a part of a name: %v", err)
	}
	for prefix, n := range map[string]int{"gs-": 2, "gs-1-10": 1, "none": 0} {
		if list, err := s.Runners(ctx, scope, prefix); err != nil || len(list) != n {
			t.Errorf("prefix %s: %+v, %v", prefix, list, err)
		}
	}
	for range 2 { // the second finds nothing, which is success
		if err := s.DeleteRunner(ctx, scope, reg.RunnerID); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.FindRunner(ctx, scope, "gs-1-1"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("after the delete: %v", err)
	}
}

func testChecks(ctx context.Context, t *testing.T, s *site) {
	run := s.dispatch(t, forgetest.RunSpec{Jobs: []forgetest.JobSpec{{Labels: []string{"gpu"}}}})
	k := forge.Check{
		Repo: s.repo, HeadSHA: run.HeadSHA, ExternalID: "42", Title: "Waits", Summary: strings.Repeat("ü", 70000),
		DetailsURL: "https://ci.example.org/jobs/42", Status: "in_progress",
	}
	id, err := s.SetCheck(ctx, k)
	if err != nil {
		t.Fatal(err)
	}
	k.ID, k.Title, k.Summary, k.Status, k.Conclusion = id, "Starts", "now", "completed", "neutral"
	if again, err := s.SetCheck(ctx, k); err != nil || again != id {
		t.Errorf("got %d, %v; want %d", again, err, id)
	}
	checks := s.hub.Checks(s.repo.Name)
	if len(checks) != 1 {
		t.Fatalf("got %d checks", len(checks))
	}
	c := checks[0]
	got := []string{c.Name, c.HeadSHA, c.ExternalID, c.Title, c.Summary, c.DetailsURL, c.Status, c.Conclusion}
	want := []string{"gpuserver", run.HeadSHA, "42", "Starts", "now", k.DetailsURL, "completed", "neutral"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func testFiles(ctx context.Context, t *testing.T, s *site) {
	for range 2 {
		f, err := s.File(ctx, s.repo, ".cirun.yml", "")
		if err != nil || string(f.Content) != "runners: []\n" || f.SHA == "" {
			t.Errorf("got %+v, %v", f, err)
		}
	}
	if n := s.hub.Stats().NotModified; n != 1 {
		t.Errorf("%d answers were not modified, want 1", n)
	}
	sha, err := s.hub.SetFile(forgetest.FileChange{Repo: s.repo.Name, Path: ".cirun.yml", Content: []byte("# new\n")})
	if err != nil {
		t.Fatal(err)
	}
	if f, err := s.File(ctx, s.repo, ".cirun.yml", ""); err != nil || string(f.Content) != "# new\n" {
		t.Errorf("after a change: %+v, %v", f, err)
	}
	if f, err := s.File(ctx, s.repo, ".cirun.yml", sha); err != nil || f.Ref != sha {
		t.Errorf("at a commit: %+v, %v", f, err)
	}
	if f, err := s.File(ctx, s.repo, "doc/a b.txt", "main"); err != nil || string(f.Content) != "x" {
		t.Errorf("a name with a space: %+v, %v", f, err)
	}
	if good, ok := s.LastGood(ctx, s.repo, ".cirun.yml", ""); !ok || string(good.File.Content) != "# new\n" || good.CheckedAt.IsZero() {
		t.Errorf("the last good copy: %+v, %v", good, ok)
	}
	for path, want := range map[string]gpuserver.Kind{
		"none": gpuserver.KindNotFound, "doc": gpuserver.KindInvalid, "../x": gpuserver.KindInvalid, "": gpuserver.KindInvalid,
	} {
		if _, err := s.File(ctx, s.repo, path, ""); gpuserver.KindOf(err) != want {
			t.Errorf("%q: got %v, want %s", path, err, want)
		}
	}
}

func testMembers(ctx context.Context, t *testing.T, s *site) {
	team := forgetest.Team{Org: "octo-org", Slug: "core-team", Members: []string{"alice"}, Pending: []string{"bob"}}
	if err := s.hub.SetTeam(team); err != nil {
		t.Fatal(err)
	}
	elsewhere := forge.Repo{Name: "someone/else"}
	for _, c := range []struct {
		repo        forge.Repo
		team, login string
		want        bool
	}{
		{s.repo, "core-team", "alice", true},
		{s.repo, "Core Team", "alice", true},
		{elsewhere, "core-team", "alice", true}, // found through the organisation
		{s.repo, "core-team", "bob", false},     // invited only
		{s.repo, "core-team", "carol", false},
		{s.repo, "no-team", "alice", false},
	} {
		if got, err := s.TeamMember(ctx, c.repo, "octo-org", c.team, c.login); err != nil || got != c.want {
			t.Errorf("%s in %s: %v, %v", c.login, c.team, got, err)
		}
	}
	for login, role := range map[string]string{"alice": "maintain", "bob": "gpu-user", "carol": ""} {
		if err := s.hub.SetRole(forgetest.Role{Repo: s.repo.Name, Login: login, Role: role}); err != nil {
			t.Fatal(err)
		}
		// The repository's installation is looked up, too.
		if got, err := s.Role(ctx, forge.Repo{Name: s.repo.Name}, login); err != nil || got != role {
			t.Errorf("%s: role %q, %v; want %q", login, got, err, role)
		}
	}
	if _, err := s.Role(ctx, forge.Repo{Name: "not/installed"}, "alice"); gpuserver.KindOf(err) != gpuserver.KindRefused {
		t.Errorf("where the App is not installed: %v", err)
	}
}

func testDeliveries(ctx context.Context, t *testing.T, s *site) {
	run := s.dispatch(t, forgetest.RunSpec{Jobs: []forgetest.JobSpec{{Labels: []string{"z"}}}})
	for range 120 { // more than a page
		s.hub.Ping()
	}
	all := awaitDeliveries(ctx, t, s, 121)
	var job Delivery
	for _, d := range all {
		if d.Event == "workflow_job" && d.Action == "queued" {
			job = d // the oldest are last
			break
		}
	}
	if job.ID == 0 || job.OK() || job.GUID == "" || job.DeliveredAt.IsZero() || job.InstallationID != s.repo.InstallationID {
		t.Fatalf("got %+v", job)
	}
	detail, err := s.Delivery(ctx, job.ID)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := detail.Parsed()
	if err != nil || ev.Kind != forge.EventJob || ev.Job.RunID != run.ID || ev.Job.State != gpuserver.ForgeQueued ||
		ev.Repo.Name != s.repo.Name || ev.Repo.InstallationID != s.repo.InstallationID {
		t.Errorf("got %+v, %v", ev, err)
	}
	if err := s.Redeliver(ctx, job.ID); err != nil {
		t.Error(err)
	}
	if list, next, err := s.Deliveries(ctx, time.Now().Add(time.Hour), ""); err != nil || len(list) != 0 || next != "" {
		t.Errorf("since later: %d, %q, %v", len(list), next, err)
	}
}

// awaitDeliveries reads all pages, until there are so many.
func awaitDeliveries(ctx context.Context, t *testing.T, s *site, n int) []Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		var all []Delivery
		for cursor := ""; ; {
			list, next, err := s.Deliveries(ctx, time.Time{}, cursor)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, list...)
			if cursor = next; cursor == "" {
				break
			}
		}
		if len(all) >= n {
			return all
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			t.Fatalf("%d deliveries, want %d", len(all), n)
		}
	}
}

// checkLevels reports findings that should not be there on a site where all is
// well but for its webhook, which has no address.
func checkLevels(t *testing.T, found []Finding) {
	t.Helper()
	for _, f := range found {
		if (f.Level != Pass) != (f.Check == "webhook" || strings.HasPrefix(f.Check, "runner group") && strings.Contains(f.Text, "public")) {
			t.Errorf("%+v", f)
		}
		if f.Level != Pass && f.Mend == "" {
			t.Errorf("nothing mends %+v", f)
		}
	}
	if len(found) < 15 {
		t.Errorf("only %d findings", len(found))
	}
}
