package github

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/testdeps"
)

// example is one of GitHub's own payloads.
type example struct {
	event string
	body  []byte
}

// examples reads GitHub's example payloads of every event.
func examples(t testing.TB) []example {
	t.Helper()
	path := testdeps.NPM(t, "@octokit/webhooks-examples", "7.6.1", "package/api.github.com/index.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var index []struct {
		Name     string
		Examples []json.RawMessage
	}
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	var all []example
	for _, e := range index {
		for _, body := range e.Examples {
			all = append(all, example{e.Name, body})
		}
	}
	if len(all) < 200 {
		t.Fatalf("%d examples, want more than 200", len(all))
	}
	return all
}

// TestParseExamples compares what Parse makes of each of GitHub's payloads with
// what a plain reading of the JSON says.
func TestParseExamples(t *testing.T) {
	kinds := make(map[forge.EventKind]int)
	for _, e := range examples(t) {
		ev, err := Parse(e.event, e.body)
		if err != nil {
			t.Errorf("%s: %v", e.event, err)
			continue
		}
		var m map[string]any
		if err := json.Unmarshal(e.body, &m); err != nil {
			t.Fatal(err)
		}
		kinds[ev.Kind]++
		if repo, ok := at(m, "repository", "full_name").(string); ok && ev.Kind != forge.EventRepoGone && ev.Repo.Name != repo {
			t.Errorf("%s: repository %q, want %q", ev.Name, ev.Repo.Name, repo)
		}
		if ev.Kind == forge.EventJob {
			checkJob(t, ev, m)
		}
	}
	want := map[forge.EventKind]int{forge.EventJob: 8, forge.EventRecheck: 2, forge.EventRepoGone: 4} // "Re-run all checks"
	delete(kinds, forge.EventOther)
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Error(diff)
	}
}

func checkJob(t *testing.T, ev forge.Event, m map[string]any) {
	t.Helper()
	job := m["workflow_job"].(map[string]any)
	str := func(v any) string { s, _ := v.(string); return s }
	num := func(v any) int64 { n, _ := v.(float64); return int64(n) }
	var labels []string
	for _, l := range job["labels"].([]any) {
		labels = append(labels, l.(string))
	}
	when := func(v any) time.Time {
		if v == nil {
			return time.Time{}
		}
		at, err := time.Parse(time.RFC3339, v.(string))
		if err != nil {
			t.Fatal(err)
		}
		return at.UTC()
	}
	want := forge.Job{
		ID: num(job["id"]), RunID: num(job["run_id"]), RunAttempt: int(num(job["run_attempt"])),
		Name: str(job["name"]), Workflow: str(job["workflow_name"]), Labels: labels,
		State: gpuserver.ForgeState(str(m["action"])), Conclusion: str(job["conclusion"]),
		HeadSHA: str(job["head_sha"]), HeadBranch: str(job["head_branch"]), URL: str(job["html_url"]),
		RunnerID: num(job["runner_id"]), RunnerName: str(job["runner_name"]),
		CreatedAt: when(job["created_at"]), StartedAt: when(job["started_at"]), CompletedAt: when(job["completed_at"]),
		Repo: forge.Repo{
			Name: str(at(m, "repository", "full_name")), ID: num(at(m, "repository", "id")),
			InstallationID: num(at(m, "installation", "id")), DefaultBranch: str(at(m, "repository", "default_branch")),
		},
		RepoPrivate:  at(m, "repository", "private") == true,
		Organisation: str(at(m, "organization", "login")),
	}
	if diff := cmp.Diff(want, ev.Job); diff != "" {
		t.Errorf("%s: %s", ev.Name, diff)
	}
}

// at follows keys into nested objects; nil if one is missing.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

func TestParse(t *testing.T) {
	const repo = `"repository":{"id":7,"full_name":"octo/hello","default_branch":"main"},"installation":{"id":3}`
	octo := forge.Repo{Name: "octo/hello", ID: 7, InstallationID: 3, DefaultBranch: "main"}
	job := forge.Job{ID: 1, RunID: 2, Labels: []string{"gpu"}, State: gpuserver.ForgeQueued, Repo: octo}
	for _, c := range []struct {
		name, event, body string
		want              forge.Event
	}{
		{
			"an old job without attempt and branch", "workflow_job",
			`{"action":"queued","workflow_job":{"id":1,"run_id":2,"labels":["gpu"],"new_field":{}},` + repo + `}`,
			forge.Event{Kind: forge.EventJob, Name: "workflow_job.queued", Repo: octo, Job: job},
		}, {
			"let go by a deployment rule: the action counts, not the status", "workflow_job",
			`{"action":"queued","workflow_job":{"id":1,"run_id":2,"labels":["gpu"],"status":"waiting"},` + repo + `}`,
			forge.Event{Kind: forge.EventJob, Name: "workflow_job.queued", Repo: octo, Job: job},
		}, {
			"a date that is none", "workflow_job",
			`{"action":"queued","workflow_job":{"id":1,"run_id":2,"labels":["gpu"],"created_at":"soon","started_at":5},` + repo + `}`,
			forge.Event{Kind: forge.EventJob, Name: "workflow_job.queued", Repo: octo, Job: job},
		}, {
			"an action that we do not know", "workflow_job",
			`{"action":"levitated","workflow_job":{"id":1,"run_id":2},` + repo + `}`,
			forge.Event{Kind: forge.EventOther, Name: "workflow_job.levitated", Repo: octo},
		}, {
			"an event that we do not know", "weather", `{"zen":"."}`,
			forge.Event{Kind: forge.EventOther, Name: "weather"},
		}, {
			"a check run that is not ours", "check_run", `{"action":"rerequested","check_run":{"external_id":""},` + repo + `}`,
			forge.Event{Kind: forge.EventOther, Name: "check_run.rerequested", Repo: octo},
		}, {
			"our check run", "check_run", `{"action":"rerequested","check_run":{"external_id":"42"},` + repo + `}`,
			forge.Event{Kind: forge.EventRecheck, Name: "check_run.rerequested", Repo: octo, CheckExternalID: "42"},
		}, {
			"all our check runs on a commit", "check_suite", `{"action":"rerequested","check_suite":{"head_sha":"abc"},` + repo + `}`,
			forge.Event{Kind: forge.EventRecheck, Name: "check_suite.rerequested", Repo: octo, CheckHeadSHA: "abc"},
		}, {
			"a new commit", "check_suite", `{"action":"requested","check_suite":{"head_sha":"abc"},` + repo + `}`,
			forge.Event{Kind: forge.EventOther, Name: "check_suite.requested", Repo: octo},
		}, {
			"a repository deleted", "repository", `{"action":"deleted",` + repo + `}`,
			forge.Event{Kind: forge.EventRepoGone, Name: "repository.deleted", Repo: octo, Gone: []forge.Repo{octo}},
		}, {
			"the App removed", "installation", `{"action":"deleted","installation":{"id":3}}`,
			forge.Event{Kind: forge.EventRepoGone, Name: "installation.deleted", Repo: forge.Repo{InstallationID: 3}},
		}, {
			"the App taken from two repositories", "installation_repositories",
			`{"action":"removed","installation":{"id":3},"repositories_removed":[{"id":1,"full_name":"a/b"},{"id":2,"full_name":"a/c"}]}`,
			forge.Event{
				Kind: forge.EventRepoGone, Name: "installation_repositories.removed",
				Repo: forge.Repo{Name: "a/b", ID: 1, InstallationID: 3},
				Gone: []forge.Repo{{Name: "a/b", ID: 1, InstallationID: 3}, {Name: "a/c", ID: 2, InstallationID: 3}},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.event, []byte(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	whole := `{"action":"queued","workflow_job":{"id":1,"run_id":2},"repository":{"full_name":"a/b"}}`
	if _, err := Parse("workflow_job", []byte(whole)); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"nothing":         "",
		"no JSON":         "action=queued",
		"truncated":       whole[:len(whole)-1],
		"more after it":   whole + whole,
		"a list":          "[]",
		"no job id":       strings.Replace(whole, `"id":1`, `"id":0`, 1),
		"no run":          strings.Replace(whole, `"run_id":2`, `"run_id":null`, 1),
		"no repository":   strings.Replace(whole, "a/b", "", 1),
		"an odd name":     strings.Replace(whole, "a/b", "a/b/c", 1),
		"an id in quotes": strings.Replace(whole, `"id":1`, `"id":"1"`, 1),
	} {
		_, err := Parse("workflow_job", []byte(body))
		if gpuserver.KindOf(err) != gpuserver.KindInvalid {
			t.Errorf("%s: got %v, want an invalid delivery", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	events := []string{"workflow_job", "check_run", "installation", "installation_repositories", "repository", "ping"}
	for _, e := range examples(f) {
		if slices.Contains(events, e.event) {
			f.Add(e.event, e.body)
		}
	}
	f.Fuzz(func(t *testing.T, event string, body []byte) {
		ev, err := Parse(event, body)
		if err != nil {
			if gpuserver.KindOf(err) != gpuserver.KindInvalid {
				t.Fatalf("kind %s", gpuserver.KindOf(err))
			}
			return
		}
		if !json.Valid(body) {
			t.Fatal("read what is not JSON")
		}
		if ev.Kind == forge.EventJob && (ev.Job.ID <= 0 || ev.Job.RunID <= 0 || ev.Job.State.Rank() == 0 || ev.Repo.Name == "") {
			t.Fatalf("a job that is none: %+v", ev)
		}
	})
}

func BenchmarkDelivery(b *testing.B) {
	var jobs []example
	for _, e := range examples(b) {
		if e.event == "workflow_job" {
			jobs = append(jobs, e)
		}
	}
	secrets := []string{"It's a Secret to Everybody"}
	sum := Sign(secrets[0], jobs[6].body)
	b.SetBytes(int64(len(jobs[6].body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := VerifySignature(secrets, jobs[6].body, sum); err != nil {
			b.Fatal(err)
		}
		if _, err := Parse("workflow_job", jobs[6].body); err != nil {
			b.Fatal(err)
		}
	}
}
