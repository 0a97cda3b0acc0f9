package forgetest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"gpuserver"
)

// Jobs lists jobs, oldest first.
func (s *Server) Jobs(f JobFilter) []Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobsMatching(f)
}

func (s *Server) jobsMatching(f JobFilter) []Job {
	out := []Job{}
	if f.Job != 0 {
		if j := s.world.jobs[f.Job]; j != nil && f.has(j) {
			out = append(out, s.jobOf(j))
		}
		return out
	}
	for _, r := range s.world.runOrder {
		for _, a := range r.attempts {
			for _, j := range a.jobs {
				if f.has(j) {
					out = append(out, s.jobOf(j))
				}
			}
		}
	}
	return out
}

func (f JobFilter) has(j *job) bool {
	return (f.Run == 0 || j.attempt.run.id == f.Run) && (f.Repo == "" || strings.EqualFold(f.Repo, j.attempt.run.repo.name)) &&
		(f.Status == "" || f.Status == j.status)
}

// Wait waits until no job that f selects is left in another state than
// status ("": completed), then gives all of them.
func (s *Server) Wait(ctx context.Context, f JobFilter, status string) ([]Job, error) {
	f.Status = ""
	if status == "" {
		status = "completed"
	}
	for {
		s.mu.Lock()
		changed, left := s.changed, s.lacking(f, status)
		var jobs []Job
		if left == 0 {
			jobs = s.jobsMatching(f)
		}
		s.mu.Unlock()
		if left == 0 {
			return jobs, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%d jobs are not %s: %w", left, status, ctx.Err())
		case <-s.ctx.Done():
			return nil, gpuserver.Errorf(gpuserver.KindUnavailable, "the stand-in for GitHub was closed")
		}
	}
}

// lacking counts the jobs of f that are not yet in status.
func (s *Server) lacking(f JobFilter, status string) int {
	n, rank := 0, gpuserver.ForgeState(status).Rank()
	for _, r := range s.world.runOrder {
		if (f.Run != 0 && r.id != f.Run) || (f.Job == 0 && status == "completed" && r.last().open == 0) {
			continue
		}
		for _, j := range r.last().jobs {
			if f.has(j) && (f.Job == 0 || f.Job == j.id) && gpuserver.ForgeState(j.status).Rank() < rank {
				n++
			}
		}
	}
	return n
}

// Log gives the log of a job so far.
func (s *Server) Log(id int64) (string, error) {
	var text string
	err := s.withJob(id, func(j *job) error {
		text = string(j.log)
		return nil
	})
	return text, err
}

func (s *Server) jobOf(j *job) Job {
	a := j.attempt
	out := Job{
		ID: j.id, RunID: a.run.id, RunAttempt: a.n, Repo: a.run.repo.name, Name: j.spec.Name, Labels: j.spec.Labels,
		Status: j.status, Conclusion: j.conclusion, Message: j.message, CreatedAt: j.createdAt, QueuedAt: j.queuedAt,
		StartedAt: j.startedAt, CompletedAt: j.endedAt, LogBytes: int64(len(j.log)), Dispatched: j.dispatched,
		Steps: slices.Clone(j.steps),
	}
	if j.runner != nil {
		out.RunnerID, out.RunnerName = j.runner.id, j.runner.name
	}
	return out
}

func (s *Server) runOf(a *attempt) Run {
	r := a.run
	out := Run{
		ID: r.id, Attempt: a.n, Repo: r.repo.name, Event: r.event, Actor: r.actor.login, TriggeringActor: a.actor.login,
		HeadSHA: r.headID, Status: a.status(), Conclusion: a.conclusion(),
	}
	for _, j := range a.jobs {
		out.Jobs = append(out.Jobs, s.jobOf(j))
	}
	return out
}
