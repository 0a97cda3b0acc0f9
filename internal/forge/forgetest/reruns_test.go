package forgetest

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// rerunnable is a server whose App may write to Actions, with a completed run of
// two jobs that failed, each on a runner of its own.
func rerunnable(t *testing.T, k *sink) (*bench, Run) {
	t.Helper()
	b := start(t, Config{WebhookURL: k.URL, AppSlug: "cards"})
	granted := defaultPermissions()
	granted["actions"] = "write"
	b.Configure(Settings{Permissions: &granted})
	run := b.dispatch(JobSpec{Labels: []string{"x"}}, JobSpec{Labels: []string{"x"}})
	for _, name := range []string{"r1", "r2"} {
		b.takeJob(b.online(name, "x"))
	}
	return b, run
}

func (b *bench) rerunJob(id int64) reply {
	b.t.Helper()
	return b.call("POST", "/repos/octo-org/hello/actions/jobs/"+raw64(id)+"/rerun", nil)
}

// Only the job is run again, by the App's own account; the other one is carried
// into the new attempt as it was, under another number.
func TestRerunOfAJob(t *testing.T) {
	k := newSink(t)
	b, run := rerunnable(t, k)
	for _, j := range run.Jobs {
		a := b.rerunJob(j.ID)
		if a.status != http.StatusForbidden || a.str("message") != "The workflow run containing this job is already running" {
			t.Errorf("while the run goes on: %d %s", a.status, a.body)
		}
		b.check(b.FinishJob(j.ID, "failure"))
	}
	k.next(t, 6)
	b.rerunJob(run.Jobs[0].ID).want(t, http.StatusCreated)
	if got := actions(k.next(t, 2)[6:]); got != "completed queued" && got != "queued completed" { // sent at once
		t.Errorf("events: %s", got)
	}
	type job struct {
		Attempt            int
		Name, Status, Runs string
	}
	var got []job
	for _, j := range b.Jobs(JobFilter{Run: run.ID}) {
		got = append(got, job{j.RunAttempt, j.Name, j.Status + j.Conclusion, j.RunnerName})
	}
	before := b.job(run.Jobs[1].ID)
	want := []job{
		{1, "job-1", "completedfailure", b.job(run.Jobs[0].ID).RunnerName},
		{1, "job-2", "completedfailure", before.RunnerName},
		{2, "job-1", "queued", ""},
		{2, "job-2", "completedfailure", before.RunnerName},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	after := b.Jobs(JobFilter{Run: run.ID})[3]
	if after.ID == before.ID || !after.StartedAt.Equal(before.StartedAt) {
		t.Errorf("carried: %+v, was %+v", after, before)
	}
	var last struct {
		Attempt int                          `json:"run_attempt"`
		By      struct{ Login, Type string } `json:"triggering_actor"`
		Actor   struct{ Login string }
		Status  string
	}
	b.call("GET", "/repos/octo-org/hello/actions/runs/"+raw64(run.ID), nil).into(t, &last)
	if last.Attempt != 2 || last.By.Login != "cards[bot]" || last.By.Type != "Bot" || last.Actor.Login != "octo-org" || last.Status != "in_progress" {
		t.Errorf("run: %+v", last)
	}
	b.takeJob(b.online("r3", "x"))
	b.check(b.FinishJob(b.Jobs(JobFilter{Run: run.ID})[2].ID, "success"))
	if runs := b.Jobs(JobFilter{Run: run.ID, Status: "completed"}); len(runs) != 4 {
		t.Errorf("%d jobs are completed, want 4", len(runs))
	}
	b.rerunJob(after.ID).want(t, http.StatusCreated) // a carried one is the latest of its name
}

// A run that was cancelled is so whatever its jobs came to.
func TestConclusionOfACancelledRun(t *testing.T) {
	k := newSink(t)
	b, run := rerunnable(t, k)
	conclusion := func() any {
		var o obj
		b.call("GET", "/repos/octo-org/hello/actions/runs/"+raw64(run.ID), nil).into(t, &o)
		return o["conclusion"]
	}
	b.check(b.FinishJob(run.Jobs[0].ID, "failure"))
	b.check(b.CancelRun(run.ID))
	if got := conclusion(); got != nil {
		t.Errorf("while a job goes on: %v", got)
	}
	b.check(b.FinishJob(run.Jobs[1].ID, "cancelled"))
	if got := conclusion(); got != "cancelled" {
		t.Errorf("conclusion: %v", got)
	}
	b.rerunJob(run.Jobs[0].ID).want(t, http.StatusCreated)
	b.takeJob(b.online("r3", "x"))
	b.check(b.FinishJob(b.Jobs(JobFilter{Run: run.ID})[2].ID, "success"))
	b.rerunJob(b.Jobs(JobFilter{Run: run.ID})[3].ID).want(t, http.StatusCreated)
	b.takeJob(b.online("r4", "x"))
	b.check(b.FinishJob(b.Jobs(JobFilter{Run: run.ID})[5].ID, "success"))
	if got := conclusion(); got != "success" {
		t.Errorf("of a later attempt: %v", got)
	}
}

func TestRerunOfAJobIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b *bench, r *run)
		want   int
		say    string
	}{
		"without Actions write": {func(b *bench, _ *run) {
			p := defaultPermissions()
			b.Server.set.permissions = p
		}, 403, "Resource not accessible by integration"},
		"after a month": {func(_ *bench, r *run) { r.createdAt = time.Now().Add(-31 * 24 * time.Hour) }, 403, "Unable to retry this workflow run because it was created over a month ago"},
		"after 50 re-runs": {func(_ *bench, r *run) {
			for range 50 {
				r.attempts = append(r.attempts, r.attempts[0])
			}
		}, 403, "This workflow run cannot be retried"},
		"of an earlier attempt": {func(b *bench, r *run) {
			b.Server.rerunJob(r.attempts[0].jobs[1])
			b.Server.finish(r.last().jobs[1], "success", "")
		}, 403, "This workflow run cannot be retried"},
		"that is not there": {func(b *bench, r *run) { delete(b.world.jobs, r.attempts[0].jobs[0].id) }, 404, "Not Found"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newSink(t)
			b, run := rerunnable(t, k)
			for _, j := range run.Jobs {
				b.check(b.FinishJob(j.ID, "failure"))
			}
			b.Server.mu.Lock()
			c.change(b, b.world.runs[run.ID])
			b.Server.mu.Unlock()
			a := b.rerunJob(run.Jobs[0].ID)
			if a.status != c.want || a.str("message") != c.say {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}
