package github

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
)

// TestExampleAnswers has GitHub's own example answers read, which is what the
// stand-in cannot show: that the fields have the names and types that GitHub
// gives them.
func TestExampleAnswers(t *testing.T) {
	d := newDescribed(t, nil)
	f := newForge(t, d, nil)
	ctx := t.Context()
	repo := forge.Repo{Name: "octo-org/octo-repo", InstallationID: 1, DefaultBranch: "main"}
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}

	run, err := f.Run(ctx, repo, 30433642, 1)
	octocat := forge.Actor{Login: "octocat", ID: 1}
	want := forge.Run{
		ID: 30433642, Attempt: 1, Event: "push", TriggeringActor: octocat, Actor: octocat, HeadRepo: "octo-org/octo-repo",
		HeadSHA: "acb5820ced9479c074f688cc328bf03f341a511d", HeadBranch: "main", DefaultBranch: "main", Status: "queued",
	}
	compare(t, "run", want, run, err)

	job, err := f.Job(ctx, repo, 399444496)
	compare(t, "job", forge.Job{
		ID: 399444496, RunID: 29679449, Name: "build", Workflow: "CI",
		Labels: []string{"self-hosted", "foo", "bar"}, State: gpuserver.ForgeCompleted, Conclusion: "success",
		HeadSHA: "f83a356604ae3c5d03e1b46ef4d1ca77d64a90b0", HeadBranch: "main",
		URL:      "https://github.com/octo-org/octo-repo/runs/29679449/jobs/399444496",
		RunnerID: 1, RunnerName: "my runner",
		StartedAt: at("2020-01-20T17:42:40Z"), CompletedAt: at("2020-01-20T17:44:39Z"), Repo: repo,
	}, job, err)

	if err := f.RerunJob(ctx, repo, 399444496); err != nil {
		t.Errorf("re-run: %v", err)
	}

	for _, scope := range []forge.Scope{{Repo: repo}, {Repo: repo, Organisation: true}} {
		reg, err := f.RegisterRunner(ctx, forge.RunnerSpec{Scope: scope, Name: "n", Labels: []string{"x"}})
		if err != nil || reg.RunnerID != 23 || reg.JITConfig == "" {
			t.Errorf("registration %+v, %v", reg, err)
		}
		list, err := f.Runners(ctx, scope, "linux")
		if err != nil || len(list) != 1 || !list[0].Online || !list[0].Busy || list[0].ID != 23 || list[0].Labels[0] != "self-hosted" {
			t.Errorf("runners %+v, %v", list, err)
		}
	}

	file, err := f.File(ctx, repo, "README.md", "")
	if err != nil || file.SHA != "3d21ec53a331a6f037a91c368710b99387d012c1" || len(file.Content) == 0 {
		t.Errorf("file %+v, %v", file, err)
	}
	if id, err := f.SetCheck(ctx, forge.Check{Repo: repo, HeadSHA: "ce587453ced02b1526dfb4cb910479d431683101"}); err != nil || id != 4 {
		t.Errorf("check %d, %v", id, err)
	}
	if role, err := f.Role(ctx, repo, "octocat"); err != nil || role != "admin" {
		t.Errorf("role %q, %v", role, err)
	}
	if in, err := f.TeamMember(ctx, repo, "octo-org", "core", "octocat"); err != nil || !in {
		t.Errorf("member %v, %v", in, err)
	}

	list, _, err := f.Deliveries(ctx, time.Time{}, "")
	if err != nil || len(list) != 2 {
		t.Fatalf("deliveries %+v, %v", list, err)
	}
	compare(t, "delivery", Delivery{
		ID: 12345678, GUID: "0b989ba4-242f-11e5-81e1-c7b6966d2516", DeliveredAt: at("2019-06-03T00:57:16Z"),
		StatusCode: 200, Status: "OK", Event: "issues", Action: "opened", InstallationID: 123, RepositoryID: 456,
	}, list[0], nil)
	detail, err := f.Delivery(ctx, 12345678)
	if err != nil || detail.GUID == "" || len(detail.Payload) == 0 {
		t.Errorf("delivery %+v, %v", detail, err)
	}
	installs, err := f.Installations(ctx)
	if err != nil || len(installs) != 1 || installs[0].ID != 1 || installs[0].Account != "octocat" || installs[0].Permissions["checks"] != "write" {
		t.Errorf("installations %+v, %v", installs, err)
	}
}

func compare(t *testing.T, what string, want, got any, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

// newForge makes a Forge whose calls rt answers.
func newForge(t *testing.T, rt http.RoundTripper, change func(*Config)) *Forge {
	t.Helper()
	c := Config{
		Name: "hub", BaseURL: "http://127.0.0.1:1", AppID: "1", PrivateKey: testKey(t),
		WebhookSecrets: []string{"s"}, HTTPClient: &http.Client{Transport: rt},
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
	return f
}
