package forgetest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// actionsRoutes are workflow runs and jobs.
func (s *Server) actionsRoutes() []route {
	read, write := needs("actions=read"), needs("actions=write")
	return []route{
		{pattern: "GET /repos/{owner}/{repo}/actions/runs", needs: read, handle: s.listRuns},
		{pattern: "GET /repos/{owner}/{repo}/actions/runs/{run_id}", needs: read, handle: s.getRun},
		{pattern: "GET /repos/{owner}/{repo}/actions/runs/{run_id}/attempts/{attempt_number}", needs: read, handle: s.getAttempt},
		{pattern: "GET /repos/{owner}/{repo}/actions/runs/{run_id}/jobs", needs: read, handle: s.listRunJobs},
		{pattern: "GET /repos/{owner}/{repo}/actions/runs/{run_id}/attempts/{attempt_number}/jobs", needs: read, handle: s.listRunJobs},
		{pattern: "GET /repos/{owner}/{repo}/actions/jobs/{job_id}", needs: read, handle: s.getJob},
		{pattern: "GET /repos/{owner}/{repo}/actions/jobs/{job_id}/logs", needs: read, handle: s.getJobLogs},
		{pattern: "POST /repos/{owner}/{repo}/actions/runs/{run_id}/cancel", needs: write, handle: s.cancelRunCall},
		{pattern: "POST /repos/{owner}/{repo}/actions/runs/{run_id}/rerun", needs: write, handle: s.rerunCall},
		{pattern: "POST /repos/{owner}/{repo}/actions/jobs/{job_id}/rerun", needs: write, handle: s.rerunJobCall},
	}
}

// runOfPath finds the run that the path names, within the path's repository.
func (s *Server) runOfPath(c *call) (*run, *apiError) {
	p, e := c.repo()
	if e != nil {
		return nil, e
	}
	if r := s.world.runs[c.rec.Run]; r != nil && r.repo == p {
		return r, nil
	}
	return nil, notFound
}

func (s *Server) attemptOfPath(c *call) (*attempt, *apiError) {
	r, e := s.runOfPath(c)
	if e != nil {
		return nil, e
	}
	text := c.r.PathValue("attempt_number")
	if text == "" {
		return r.last(), nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > len(r.attempts) {
		return nil, notFound
	}
	return r.attempts[n-1], nil
}

func (s *Server) listRuns(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil {
		return 0, nil, e
	}
	q := c.r.URL.Query()
	var found []*attempt
	for i := len(p.runs) - 1; i >= 0; i-- { // newest first
		a := p.runs[i].last()
		if st := q.Get("status"); st != "" && st != a.status() && st != a.conclusion() {
			continue
		}
		if !matches(q.Get("event"), a.run.event) || !matches(q.Get("branch"), a.run.headBranch) ||
			!matches(q.Get("head_sha"), a.run.headID) || !matches(q.Get("actor"), a.run.actor.login) {
			continue
		}
		found = append(found, a)
	}
	from, to := c.page(len(found))
	out := []obj{}
	for _, a := range found[from:to] {
		out = append(out, s.runFields(a))
	}
	return http.StatusOK, obj{"total_count": len(found), "workflow_runs": out}, nil
}

func matches(want, have string) bool { return want == "" || strings.EqualFold(want, have) }

func (s *Server) getRun(c *call) (int, any, *apiError) { return s.getAttempt(c) }

func (s *Server) getAttempt(c *call) (int, any, *apiError) {
	a, e := s.attemptOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	return http.StatusOK, spliced(s.runFields(a)), nil
}

// spliced encodes an object whose larger fields are encoded already: the
// standard library would look at each of their bytes again, and runs are what a
// burst of jobs asks for most.
func spliced(o obj) rawAnswer {
	rest := parts{nil}
	for _, k := range slices.Sorted(maps.Keys(o)) { // the same bytes each time: their sum is the ETag
		if b, ok := o[k].(json.RawMessage); ok {
			rest = append(rest, fmt.Appendf(nil, ",%q:", k), b)
			delete(o, k)
		}
	}
	begin := raw(o)
	rest[0] = begin[:len(begin)-1]
	return rawAnswer{jsonType, append(rest, []byte("}")).join()}
}

func (s *Server) runFields(a *attempt) obj {
	r := a.run
	u := fmt.Sprintf("%s/actions/runs/%d", s.repoURL(r.repo), r.id)
	flow := int64(1000 + len(r.workflow))
	o := obj{
		"id": r.id, "name": r.workflow, "node_id": nodeID("WorkflowRun", r.id), "head_branch": r.headBranch, "head_sha": r.headID,
		"path": ".github/workflows/" + strings.ToLower(r.workflow) + ".yml", "display_title": "Change", "run_number": r.number,
		"event": r.event, "status": a.status(), "conclusion": orNull(a.conclusion()), "workflow_id": flow,
		"check_suite_id": r.id + 1, "check_suite_node_id": nodeID("CheckSuite", r.id+1), "url": u,
		"html_url":      fmt.Sprintf("%s/%s/actions/runs/%d", s.cfg.BaseURL, r.repo.name, r.id),
		"pull_requests": []any{}, "created_at": stamp(r.createdAt), "updated_at": stamp(a.updatedAt),
		"run_started_at": stamp(a.startedAt), "run_attempt": a.n, "referenced_workflows": []any{}, "jobs_url": u + "/jobs",
		"logs_url": u + "/logs", "check_suite_url": fmt.Sprintf("%s/check-suites/%d", s.repoURL(r.repo), r.id+1),
		"artifacts_url": u + "/artifacts", "cancel_url": u + "/cancel", "rerun_url": u + "/rerun", "previous_attempt_url": nil,
		"workflow_url": fmt.Sprintf("%s/actions/workflows/%d", s.repoURL(r.repo), flow), "head_commit": s.headCommit(r),
		"repository": rawJSON(r.repo.json), "head_repository": nil,
		"actor": rawJSON(r.actor.json), "triggering_actor": rawJSON(a.actor.json),
	}
	if a.n > 1 {
		o["previous_attempt_url"] = fmt.Sprintf("%s/attempts/%d", u, a.n-1)
	}
	if r.headRepo != nil {
		o["head_repository"] = rawJSON(r.headRepo.json)
	}
	return o
}

// headCommit is nil if the commit's repository is gone.
func (s *Server) headCommit(r *run) any {
	c := r.repo.commits[r.headID]
	if c == nil {
		return nil
	}
	who := obj{"name": r.actor.login, "email": r.actor.login + "@users.invalid"}
	return obj{"id": c.sha, "tree_id": treeID(c), "message": c.message, "timestamp": stamp(c.at), "author": who, "committer": who}
}

func (s *Server) listRunJobs(c *call) (int, any, *apiError) {
	a, e := s.attemptOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	var jobs []*job
	if c.r.URL.Query().Get("filter") == "all" {
		for _, each := range a.run.attempts {
			jobs = append(jobs, each.jobs...)
		}
	} else {
		jobs = a.jobs
	}
	from, to := c.page(len(jobs))
	out := []jobFields{}
	for _, j := range jobs[from:to] {
		out = append(out, s.jobFields(j))
	}
	return http.StatusOK, obj{"total_count": len(jobs), "jobs": out}, nil
}

func (s *Server) jobOfPath(c *call) (*job, *apiError) {
	p, e := c.repo()
	if e != nil {
		return nil, e
	}
	if j := s.world.jobs[c.rec.Job]; j != nil && j.attempt.run.repo == p {
		return j, nil
	}
	return nil, notFound
}

func (s *Server) getJob(c *call) (int, any, *apiError) {
	j, e := s.jobOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	return http.StatusOK, s.jobFields(j), nil
}

// getJobLogs redirects to where the log lies for a minute, as GitHub does.
func (s *Server) getJobLogs(c *call) (int, any, *apiError) {
	j, e := s.jobOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	if j.status != "completed" {
		return 0, nil, notFound // a log can be fetched once the job has ended
	}
	return http.StatusFound, redirect(fmt.Sprintf("%s/_blob/logs/%d?sig=%s", c.base(), j.id, s.logKey(j.id))), nil
}

func (s *Server) logKey(id int64) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", s.cfg.WebhookSecret, id))
	return hex.EncodeToString(sum[:16])
}

func (s *Server) serveLog(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("job_id"), 10, 64)
	if err != nil || r.URL.Query().Get("sig") != s.logKey(id) {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	text, err := s.Log(id)
	if err != nil {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text))
}

func (s *Server) cancelRunCall(c *call) (int, any, *apiError) {
	r, e := s.runOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	if r.last().open == 0 {
		return 0, nil, &apiError{status: http.StatusConflict, message: "Cannot cancel a workflow run that is completed."}
	}
	s.cancelRun(r)
	return http.StatusAccepted, obj{}, nil
}
