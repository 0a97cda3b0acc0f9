package forgetest

import (
	"net/http"
	"time"

	"gpuserver"
)

// Rerun starts the next attempt of a completed run: new jobs with new numbers.
// actor ("": the first one) becomes the triggering actor.
func (s *Server) Rerun(id int64, actor string) (Run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.world.runs[id]
	if r == nil {
		return Run{}, gpuserver.Errorf(gpuserver.KindNotFound, "run %d does not exist", id)
	}
	if r.last().open > 0 {
		return Run{}, gpuserver.Errorf(gpuserver.KindConflict, "run %d has jobs that are not completed", id)
	}
	by := r.actor
	if actor != "" {
		by = s.account(actor, false)
	}
	s.rerun(r, by)
	return s.runOf(r.last()), nil
}

// rerun starts the next attempt of a run that is completed; s.mu is held.
func (s *Server) rerun(r *run, by *account) {
	var specs []JobSpec
	for _, j := range r.attempts[0].jobs {
		specs = append(specs, j.spec)
	}
	s.world.done--
	s.startAttempt(r, by, specs)
}

// What GitHub documents of re-runs: up to 30 days after the first attempt, and
// so many in all.
// Source: docs.github.com, "Re-running workflows and jobs".
const (
	rerunWithin = 30 * 24 * time.Hour
	rerunMost   = 50
)

// mayRerun refuses what GitHub would not run again; running is what it says of a
// run that is not completed.
func (r *run) mayRerun(running string) *apiError {
	refuse := func(message string) *apiError { return &apiError{status: http.StatusForbidden, message: message} }
	switch {
	case r.last().open > 0:
		return refuse(running)
	case time.Since(r.createdAt) > rerunWithin:
		return refuse("Unable to retry this workflow run because it was created over a month ago")
	case len(r.attempts) > rerunMost:
		return refuse("This workflow run cannot be retried")
	}
	return nil
}

func (s *Server) rerunCall(c *call) (int, any, *apiError) {
	r, e := s.runOfPath(c)
	if e == nil {
		e = r.mayRerun("This workflow is already running")
	}
	if e != nil {
		return 0, nil, e
	}
	s.rerun(r, s.bot())
	return http.StatusCreated, obj{}, nil
}

func (s *Server) rerunJobCall(c *call) (int, any, *apiError) {
	j, e := s.jobOfPath(c)
	if e == nil {
		e = j.attempt.run.mayRerun("The workflow run containing this job is already running")
	}
	if e == nil && j.attempt != j.attempt.run.last() {
		// GitHub does not document what it does then. Nobody may rely on it.
		e = &apiError{status: http.StatusForbidden, message: "This workflow run cannot be retried"}
	}
	if e != nil {
		return 0, nil, e
	}
	s.rerunJob(j)
	return http.StatusCreated, obj{}, nil
}

// rerunJob starts the next attempt of a completed run with one job of it (no job
// depends on another here). The others are in the new attempt as well, as new
// jobs with the old runners, times and conclusions, which is told by event
// again; s.mu is held.
func (s *Server) rerunJob(j *job) {
	s.world.done--
	a := j.attempt.run.newAttempt(s.bot())
	for _, o := range j.attempt.jobs {
		if o == j {
			s.addJob(a, j.spec)
			continue
		}
		kept := *o
		kept.id, kept.attempt = s.world.id(), a
		a.jobs = append(a.jobs, &kept)
		s.world.jobs[kept.id] = &kept
		s.emitJob(&kept, "completed")
	}
	for _, n := range a.jobs {
		if n.status == "" {
			s.queue(n)
		}
	}
	s.jobsChanged()
}

// bot is the App's own account: who an attempt is triggered by that the App
// asked for.
func (s *Server) bot() *account {
	a := s.account(s.cfg.AppSlug+"[bot]", false)
	if !a.bot {
		a.bot = true
		a.json = s.accountJSON(a)
	}
	return a
}
