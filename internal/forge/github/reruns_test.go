package github

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/forgetest"
)

// testReruns has a job run again: only once its run has ended, and only with the
// permission. Whose attempts are ours is told.
func testReruns(ctx context.Context, t *testing.T, s *site) {
	run := s.dispatch(t, forgetest.RunSpec{Actor: "alice", Jobs: []forgetest.JobSpec{{Labels: []string{"gpu"}}, {Labels: []string{"cpu"}}}})
	end := func(id int64, conclusion string) {
		if err := s.hub.FinishJob(id, conclusion); err != nil {
			t.Fatal(err)
		}
	}
	job := run.Jobs[0].ID
	end(job, "failure")
	if err := s.RerunJob(ctx, s.repo, job); gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("while the run goes on: %v", err)
	}
	end(run.Jobs[1].ID, "success")
	before := s.Budget().Classes
	if err := s.RerunJob(ctx, s.repo, job); err != nil {
		t.Fatal(err)
	}
	for i, c := range s.Budget().Classes {
		if more := c.Points - before[i].Points; (more == 5) != (c.Class == ClassHousekeeping) {
			t.Errorf("it cost %d points of class %s", more, c.Class)
		}
	}
	end(s.hub.Jobs(forgetest.JobFilter{Run: run.ID})[2].ID, "success")
	if _, err := s.hub.Rerun(run.ID, "bob"); err != nil {
		t.Fatal(err)
	}
	for attempt, want := range map[int]forge.Run{
		1: {TriggeringActor: forge.Actor{Login: "alice"}, Conclusion: "failure"},
		2: {TriggeringActor: forge.Actor{Login: "gpuserver[bot]"}, Conclusion: "success", ByUs: true},
		3: {TriggeringActor: forge.Actor{Login: "bob"}},
	} {
		got, err := s.Run(ctx, s.repo, run.ID, attempt)
		if err != nil || got.Attempt != attempt || got.TriggeringActor.Login != want.TriggeringActor.Login || got.ByUs != want.ByUs || got.Conclusion != want.Conclusion {
			t.Errorf("attempt %d: %+v, %v", attempt, got, err)
		}
	}
	if err := s.RerunJob(ctx, s.repo, 99); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("a job that is not there: %v", err)
	}
}

// Without the permission GitHub refuses, and the sentence names it.
func TestRerunWithoutPermission(t *testing.T) {
	s := newSite(t, forgetest.Config{}, nil, nil)
	run := s.dispatch(t, forgetest.RunSpec{Jobs: []forgetest.JobSpec{{Labels: []string{"gpu"}}}})
	if err := s.hub.FinishJob(run.Jobs[0].ID, "failure"); err != nil {
		t.Fatal(err)
	}
	err := s.RerunJob(t.Context(), s.repo, run.Jobs[0].ID)
	if gpuserver.KindOf(err) != gpuserver.KindRefused || !strings.Contains(gpuserver.PublicText(err), "grant it actions=write") {
		t.Errorf("%s: %v", gpuserver.KindOf(err), err)
	}
}

// GitHub's answers to a re-run, which differ by their message only.
func TestAnswersToARerun(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		header []string
		want   gpuserver.Kind
		say    string
	}{
		{201, `{}`, nil, "", ""},
		{201, ``, nil, "", ""},
		{403, `{"message":"The workflow run containing this job is already running"}`, nil, gpuserver.KindConflict, "once its run has ended"},
		{403, `{"message":"Resource not accessible by integration"}`, []string{"X-Accepted-GitHub-Permissions", "actions=write"}, gpuserver.KindRefused, "actions=write"},
		{
			403, `{"message":"Unable to retry this workflow run because it was created over a month ago"}`,
			[]string{"X-Accepted-GitHub-Permissions", "actions=write"},
			gpuserver.KindInvalid, "created over a month ago",
		},
		{403, `{"message":"You have exceeded a secondary rate limit."}`, []string{"Retry-After", "30"}, gpuserver.KindLimited, ""},
		{401, `{"message":"Bad credentials"}`, nil, gpuserver.KindRefused, "key"},
		{404, `{"message":"Not Found"}`, nil, gpuserver.KindNotFound, ""},
		{502, `<html>`, nil, gpuserver.KindUnavailable, ""},
	} {
		f := newForge(t, answering(func(*http.Request) *http.Response { return reply(c.status, c.body, c.header...) }), nil)
		err := f.RerunJob(t.Context(), octo, 5)
		if gpuserver.KindOf(err) != c.want || err != nil && !strings.Contains(gpuserver.PublicText(err), c.say) {
			t.Errorf("%d %s: %s, %v", c.status, c.body, gpuserver.KindOf(err), err)
		}
	}
}

// answering answers each call but those for tokens.
type answering func(*http.Request) *http.Response

// RoundTrip implements http.RoundTripper.
func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasSuffix(req.URL.Path, "/access_tokens") {
		return reply(201, `{"token":"t","expires_at":"2099-01-01T00:00:00Z"}`), nil
	}
	return a(req), nil
}

// A bot's attempt is ours only if it has the App's own name, which is asked for
// once. One that cannot be told is no answer.
func TestWhoseAttempt(t *testing.T) {
	asked, slug := 0, ""
	f := newForge(t, answering(func(req *http.Request) *http.Response {
		if req.URL.Path == "/app" {
			asked++
			return reply(200, `{"slug":"`+slug+`"}`)
		}
		attempt := strings.TrimPrefix(req.URL.Path, "/repos/octo/hello/actions/runs/6/attempts/")
		who := map[string]string{
			"1": `"octo-gpus[bot]","type":"Bot"`, "2": `"alice","type":"User"`, "3": `"octo-gpus","type":"User"`,
			"4": `"github-actions[bot]","type":"Bot"`, "5": `"octo-gpus[bot]","type":"Bot"`, "6": `"Octo-GPUs[bot]","type":"Bot"`,
		}[attempt]
		return reply(200, `{"id":6,"run_attempt":`+attempt+`,"triggering_actor":{"login":`+who+`}}`)
	}), nil)
	for attempt := 1; attempt <= 3; attempt++ {
		if run, err := f.Run(t.Context(), octo, 6, attempt); err != nil || run.ByUs {
			t.Errorf("attempt %d: %+v, %v", attempt, run, err)
		}
	}
	if asked != 0 {
		t.Errorf("the App was asked for %d times, though no bot began another attempt", asked)
	}
	if _, err := f.Run(t.Context(), octo, 6, 5); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("without a slug: %v", err)
	}
	asked, slug = 0, "octo-gpus"
	for attempt, want := range map[int]bool{4: false, 5: true, 6: true} {
		if run, err := f.Run(t.Context(), octo, 6, attempt); err != nil || run.ByUs != want {
			t.Errorf("attempt %d: %+v, %v", attempt, run, err)
		}
	}
	if asked != 1 {
		t.Errorf("the App was asked for %d times, want once", asked)
	}
}
