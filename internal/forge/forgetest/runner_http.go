package forgetest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gpuserver/internal/forge/forgetest/runnerclient"
)

// maxPoll is the longest that a runner's call waits.
const maxPoll = 60 * time.Second

func (s *Server) runnerRoutes() {
	s.runner.HandleFunc("POST /_runner/session", s.asRunner(s.openSession))
	s.runner.HandleFunc("DELETE /_runner/session", s.asRunner(s.closeSession))
	s.runner.HandleFunc("GET /_runner/message", s.asRunner(s.nextMessage))
	s.runner.HandleFunc("POST /_runner/jobs/{id}/renew", s.withRunnerJob(s.renewJob))
	s.runner.HandleFunc("POST /_runner/jobs/{id}/log", s.withRunnerJob(s.appendLog))
	s.runner.HandleFunc("POST /_runner/jobs/{id}/steps", s.withRunnerJob(s.reportSteps))
	s.runner.HandleFunc("POST /_runner/jobs/{id}/complete", s.withRunnerJob(s.completeJob))
}

// asRunner finds the registration that a token speaks for.
func (s *Server) asRunner(do func(http.ResponseWriter, *http.Request, *runner)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cred, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		s.mu.Lock()
		one := s.runners.byToken[cred]
		if one != nil {
			one.lastSeen = now()
		}
		s.mu.Unlock()
		if one == nil {
			writeJSON(w, http.StatusUnauthorized, obj{"message": "the registration does not exist"})
			return
		}
		do(w, r, one)
	}
}

// withRunnerJob reads the body and checks that the runner has the job that the
// path names.
func (s *Server) withRunnerJob(do func(http.ResponseWriter, *http.Request, *job, []byte)) http.HandlerFunc {
	return s.asRunner(func(w http.ResponseWriter, r *http.Request, one *runner) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4*runnerclient.MaxLogPiece))
		if err != nil {
			writeJSON(w, http.StatusRequestEntityTooLarge, obj{"message": "the body is too long"})
			return
		}
		s.mu.Lock()
		j := one.job
		s.mu.Unlock()
		if j == nil || strconv.FormatInt(j.id, 10) != r.PathValue("id") {
			writeJSON(w, http.StatusNotFound, obj{"message": "the runner does not have this job"})
			return
		}
		do(w, r, j, body)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(raw(v))
}

func (s *Server) openSession(w http.ResponseWriter, _ *http.Request, r *runner) {
	s.mu.Lock()
	s.goOnline(r)
	lease := s.set.runnerLease
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, runnerclient.Welcome{RunnerID: r.id, Name: r.name, Lease: runnerclient.Seconds(lease.Seconds())})
}

func (s *Server) closeSession(w http.ResponseWriter, _ *http.Request, r *runner) {
	s.mu.Lock()
	s.goOffline(r)
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func pollTime(r *http.Request) time.Duration {
	sec, err := strconv.ParseFloat(r.URL.Query().Get("wait"), 64)
	if err != nil || !(sec > 0) {
		return 0
	}
	return min(time.Duration(sec*float64(time.Second)), maxPoll)
}

// nextMessage hands out the runner's job: the same one again until it is
// completed, because an answer may get lost.
func (s *Server) nextMessage(w http.ResponseWriter, r *http.Request, one *runner) {
	timer := time.NewTimer(pollTime(r))
	defer timer.Stop()
	for {
		s.mu.Lock()
		if !one.gone && !one.online {
			s.goOnline(one) // its session had run out
		}
		gone, msg := one.gone, s.message(one)
		s.mu.Unlock()
		switch {
		case gone:
			writeJSON(w, http.StatusUnauthorized, obj{"message": "the registration does not exist"})
			return
		case msg != nil:
			writeJSON(w, http.StatusOK, msg)
			return
		}
		select {
		case <-one.wake:
		case <-timer.C:
			w.WriteHeader(http.StatusNoContent)
			return
		case <-r.Context().Done():
			return
		case <-s.ctx.Done():
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
}

func (s *Server) message(r *runner) *runnerclient.Job {
	j := r.job
	if j == nil || j.status != "in_progress" {
		return nil
	}
	a, run := j.attempt, j.attempt.run
	owner, _, _ := strings.Cut(run.repo.name, "/")
	env := map[string]string{
		"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": run.repo.name, "GITHUB_REPOSITORY_OWNER": owner,
		"GITHUB_REPOSITORY_ID": strconv.FormatInt(run.repo.id, 10), "GITHUB_RUN_ID": strconv.FormatInt(run.id, 10),
		"GITHUB_RUN_NUMBER": strconv.FormatInt(run.number, 10), "GITHUB_RUN_ATTEMPT": strconv.Itoa(a.n),
		"GITHUB_JOB": j.spec.Key, "GITHUB_WORKFLOW": run.workflow, "GITHUB_EVENT_NAME": run.event, "GITHUB_SHA": run.headID,
		"GITHUB_REF": "refs/heads/" + run.headBranch, "GITHUB_REF_NAME": run.headBranch, "GITHUB_ACTOR": run.actor.login,
		"GITHUB_TRIGGERING_ACTOR": a.actor.login, "GITHUB_SERVER_URL": s.cfg.BaseURL, "GITHUB_API_URL": s.cfg.BaseURL,
		"RUNNER_NAME": r.name, "RUNNER_OS": "Linux", "RUNNER_ARCH": "X64", "RUNNER_ENVIRONMENT": "self-hosted",
	}
	maps.Copy(env, j.spec.Env)
	return &runnerclient.Job{
		ID: j.id, Name: j.spec.Name, Key: j.spec.Key, Repository: run.repo.name, RunID: run.id, RunAttempt: a.n, Env: env,
		Steps: j.spec.Steps, Timeout: j.spec.Timeout,
	}
}

func (s *Server) renewJob(w http.ResponseWriter, r *http.Request, j *job, _ []byte) {
	timer := time.NewTimer(pollTime(r))
	defer timer.Stop()
	select {
	case <-j.cancelled:
		writeJSON(w, http.StatusOK, runnerclient.Orders{Cancelled: true})
		return
	case <-timer.C:
	case <-r.Context().Done():
	case <-s.ctx.Done():
	}
	writeJSON(w, http.StatusOK, runnerclient.Orders{})
}

// appendLog takes a piece of a log. What is over the bound is counted as taken
// and dropped.
func (s *Server) appendLog(w http.ResponseWriter, r *http.Request, j *job, body []byte) {
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil || offset < 0 {
		writeJSON(w, http.StatusBadRequest, obj{"message": "offset: want a number of bytes"})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := j.logSeen
	if offset > have {
		writeJSON(w, http.StatusConflict, obj{"message": fmt.Sprintf("a gap: the log has %d bytes", have), "offset": have})
		return
	}
	if end := offset + int64(len(body)); end > have {
		fresh := body[have-offset:]
		j.logSeen = end
		if room := s.cfg.Retention.LogBytes - int64(len(j.log)); room > 0 {
			j.log = append(j.log, fresh[:min(int64(len(fresh)), room)]...)
		}
	}
	writeJSON(w, http.StatusOK, runnerclient.LogPosition{Offset: j.logSeen})
}

func (s *Server) reportSteps(w http.ResponseWriter, _ *http.Request, j *job, body []byte) {
	var steps []runnerclient.StepState
	if err := json.Unmarshal(body, &steps); err != nil || len(steps) > 1000 {
		writeJSON(w, http.StatusBadRequest, obj{"message": "want a list of at most 1000 steps"})
		return
	}
	s.mu.Lock()
	j.steps = steps
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) completeJob(w http.ResponseWriter, _ *http.Request, j *job, body []byte) {
	var res runnerclient.Result
	if err := json.Unmarshal(body, &res); err != nil {
		writeJSON(w, http.StatusBadRequest, obj{"message": "want a result"})
		return
	}
	switch res.Conclusion {
	case "success", "failure", "cancelled":
	default:
		writeJSON(w, http.StatusBadRequest, obj{"message": "conclusion: want success, failure or cancelled"})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !j.cancelAt.IsZero() {
		res.Conclusion = "cancelled"
	}
	s.finish(j, res.Conclusion, res.Message)
	s.runners.remove(j.runner)
	w.WriteHeader(http.StatusNoContent)
}
