package forgetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest/runnerclient"
)

// run is a workflow run with all its attempts.
type run struct {
	id, number         int64
	repo               *repo
	workflow, event    string
	actor              *account
	headRepo           *repo // nil: gone
	headBranch, headID string
	createdAt          time.Time
	attempts           []*attempt
}

type attempt struct {
	run       *run
	n         int
	actor     *account // triggering
	startedAt time.Time
	updatedAt time.Time
	jobs      []*job
	open      int  // jobs that are not completed
	cancelled bool // the run was, not only jobs of it
}

type job struct {
	id                                      int64
	spec                                    JobSpec
	labels                                  []string // lower case
	attempt                                 *attempt
	status, conclusion                      string
	runner                                  *runner
	message                                 string
	log                                     []byte
	logSeen                                 int64 // bytes that were sent, whether kept or not
	steps                                   []runnerclient.StepState
	hold                                    bool
	createdAt, queuedAt, startedAt, endedAt time.Time
	dispatched                              int
	cancelled                               chan struct{} // closed when cancellation is asked for
	cancelAt                                time.Time     // when it was
}

func (r *run) last() *attempt { return r.attempts[len(r.attempts)-1] }

// Dispatch starts a run: its jobs are queued (or wait) and told by event.
func (s *Server) Dispatch(spec RunSpec) (Run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.repo(spec.Repo)
	if err != nil {
		return Run{}, err
	}
	if len(spec.Jobs) == 0 || len(spec.Jobs) > 2000 {
		return Run{}, gpuserver.Errorf(gpuserver.KindInvalid, "run: %d jobs; want 1 to 2000", len(spec.Jobs))
	}
	r, err := s.newRun(p, spec)
	if err != nil {
		return Run{}, err
	}
	s.world.runs[r.id] = r
	s.world.runOrder = append(s.world.runOrder, r)
	p.runs = append(p.runs, r)
	s.startAttempt(r, r.actor, spec.Jobs)
	return s.runOf(r.last()), nil
}

func (s *Server) newRun(p *repo, spec RunSpec) (*run, error) {
	r := &run{
		id: s.world.id(), number: int64(len(p.runs) + 1), repo: p, workflow: spec.Workflow, event: spec.Event,
		headRepo: p, headBranch: spec.HeadBranch, headID: spec.HeadSHA, createdAt: now(), actor: p.owner,
	}
	if r.workflow == "" {
		r.workflow = "CI"
	}
	if r.event == "" {
		r.event = "push"
	}
	if spec.Actor != "" {
		r.actor = s.account(spec.Actor, false)
	}
	if spec.HeadRepo == "-" {
		r.headRepo = nil
	} else if spec.HeadRepo != "" {
		head, err := s.repo(spec.HeadRepo)
		if err != nil {
			return nil, err
		}
		r.headRepo = head
	}
	from := r.headRepo
	if from == nil {
		from = p
	}
	if r.headBranch == "" {
		r.headBranch = from.branch
	}
	if r.headID == "" {
		r.headID = from.branches[r.headBranch]
	}
	if r.headID == "" {
		return nil, gpuserver.Errorf(gpuserver.KindNotFound, "run: %s has no branch %q", from.name, r.headBranch)
	}
	return r, nil
}

// now is GitHub's clock: whole seconds, UTC. Our own times are kept exact where
// a benchmark reads them.
func now() time.Time { return time.Now().UTC() }

func (s *Server) startAttempt(r *run, actor *account, specs []JobSpec) {
	a := r.newAttempt(actor)
	for i, spec := range specs {
		if spec.Name == "" {
			spec.Name = fmt.Sprintf("job-%d", i+1)
		}
		s.addJob(a, spec)
	}
	// Queued only now, so that the first event already sees the whole run.
	for _, j := range a.jobs {
		if j.status == "" {
			s.queue(j)
		}
	}
	s.jobsChanged()
}

func (r *run) newAttempt(actor *account) *attempt {
	a := &attempt{run: r, n: len(r.attempts) + 1, actor: actor, startedAt: now(), updatedAt: now()}
	r.attempts = append(r.attempts, a)
	return a
}

// addJob adds a job that waits for its approval, or is still to be queued.
func (s *Server) addJob(a *attempt, spec JobSpec) {
	if spec.Key == "" {
		spec.Key = spec.Name
	}
	j := &job{id: s.world.id(), spec: spec, attempt: a, hold: spec.Hold, createdAt: now(), cancelled: make(chan struct{})}
	for _, l := range spec.Labels {
		j.labels = append(j.labels, strings.ToLower(l))
	}
	a.jobs = append(a.jobs, j)
	a.open++
	s.world.jobs[j.id] = j
	if spec.Waiting {
		j.status = "waiting"
		s.emitJob(j, "waiting")
	}
}

// queue makes a job available to runners; s.mu is held.
func (s *Server) queue(j *job) {
	j.status, j.queuedAt = "queued", now()
	p := j.attempt.run.repo
	p.queued = append(p.queued, j)
	s.emitJob(j, "queued")
	s.dispatchJob(j)
}

// begin gives a queued job to a runner; s.mu is held.
func (s *Server) begin(j *job, r *runner) {
	p := j.attempt.run.repo
	p.queued = slices.DeleteFunc(p.queued, func(o *job) bool { return o == j })
	s.runners.busy(r)
	j.status, j.startedAt, j.runner = "in_progress", now(), r
	j.dispatched++
	j.attempt.updatedAt = now()
	r.job = j
	r.lastSeen = now()
	s.emitJob(j, "in_progress")
	s.jobsChanged()
	r.wakeUp()
}

// finish completes a job; its runner, which had its one job, goes. s.mu is held.
func (s *Server) finish(j *job, conclusion, message string) {
	if j.status == "completed" {
		return
	}
	if j.status == "queued" {
		p := j.attempt.run.repo
		p.queued = slices.DeleteFunc(p.queued, func(o *job) bool { return o == j })
	}
	j.status, j.conclusion, j.message, j.endedAt = "completed", conclusion, message, now()
	if j.startedAt.IsZero() {
		j.startedAt = j.endedAt
	}
	a := j.attempt
	a.updatedAt = now()
	a.open--
	s.emitJob(j, "completed")
	s.jobsChanged()
	if a.open == 0 && a == a.run.last() {
		s.world.done++
		s.forgetRuns()
	}
}

// forgetRuns drops the oldest completed runs; s.mu is held.
func (s *Server) forgetRuns() {
	over := s.world.done - s.cfg.Retention.Runs
	if over <= s.cfg.Retention.Runs/10 {
		return // not at each run: dropping walks over all
	}
	kept := s.world.runOrder[:0]
	for _, r := range s.world.runOrder {
		if over <= 0 || r.last().open > 0 {
			kept = append(kept, r)
			continue
		}
		over--
		s.world.done--
		delete(s.world.runs, r.id)
		for _, a := range r.attempts {
			for _, j := range a.jobs {
				delete(s.world.jobs, j.id)
			}
		}
		r.repo.runs = slices.DeleteFunc(r.repo.runs, func(o *run) bool { return o == r })
	}
	clear(s.world.runOrder[len(kept):])
	s.world.runOrder = kept
}

// job finds a job; s.mu is held.
func (s *Server) job(id int64) (*job, error) {
	if j := s.world.jobs[id]; j != nil {
		return j, nil
	}
	return nil, gpuserver.Errorf(gpuserver.KindNotFound, "job %d does not exist", id)
}

// Approve lets a waiting job be queued.
func (s *Server) Approve(id int64) error {
	return s.withJob(id, func(j *job) error {
		if j.status != "waiting" {
			return gpuserver.Errorf(gpuserver.KindConflict, "job %d is %s, not waiting", id, j.status)
		}
		s.queue(j)
		s.jobsChanged()
		return nil
	})
}

// Release lets runners have a job that was held.
func (s *Server) Release(id int64) error {
	return s.withJob(id, func(j *job) error {
		j.hold = false
		if j.status == "queued" {
			s.dispatchJob(j)
		}
		return nil
	})
}

// SetPriority changes the order in which runners take queued jobs.
func (s *Server) SetPriority(id int64, priority int) error {
	return s.withJob(id, func(j *job) error {
		j.spec.Priority = priority
		return nil
	})
}

// Assign gives a queued job to an online idle runner, whatever its labels: to
// force an order that GitHub might have chosen.
func (s *Server) Assign(id int64, runnerName string) error {
	return s.withJob(id, func(j *job) error {
		r := s.runners.named(runnerName)
		if r == nil || !r.idle() {
			return gpuserver.Errorf(gpuserver.KindConflict, "runner %q is not online and idle", runnerName)
		}
		if j.status != "queued" {
			return gpuserver.Errorf(gpuserver.KindConflict, "job %d is %s, not queued", id, j.status)
		}
		s.begin(j, r)
		return nil
	})
}

// CancelJob cancels one job: at once if no runner has it, else the runner is
// told.
func (s *Server) CancelJob(id int64) error {
	return s.withJob(id, func(j *job) error {
		s.cancelJob(j)
		return nil
	})
}

func (s *Server) withJob(id int64, do func(*job) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(id)
	if err != nil {
		return err
	}
	return do(j)
}

func (s *Server) cancelJob(j *job) {
	switch j.status {
	case "waiting", "queued":
		s.finish(j, "cancelled", "cancelled before a runner had it")
	case "in_progress":
		if j.cancelAt.IsZero() {
			j.cancelAt = now()
			close(j.cancelled)
		}
	}
}

// FinishJob ends a job as if its runner had said so, or GitHub by itself; a
// benchmark does without runners this way.
func (s *Server) FinishJob(id int64, conclusion string) error {
	return s.withJob(id, func(j *job) error {
		s.finish(j, conclusion, "")
		if j.runner != nil {
			s.runners.remove(j.runner)
		}
		return nil
	})
}

// CancelRun cancels all jobs of a run's last attempt.
func (s *Server) CancelRun(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.world.runs[id]
	if r == nil {
		return gpuserver.Errorf(gpuserver.KindNotFound, "run %d does not exist", id)
	}
	s.cancelRun(r)
	return nil
}

func (s *Server) cancelRun(r *run) {
	r.last().cancelled = true
	for _, j := range r.last().jobs {
		s.cancelJob(j)
	}
}

// status sums up the states of an attempt's jobs.
func (a *attempt) status() string {
	if a.open == 0 {
		return "completed"
	}
	waiting := 0
	for _, j := range a.jobs {
		switch j.status {
		case "in_progress", "completed":
			return "in_progress"
		case "waiting":
			waiting++
		}
	}
	if waiting == len(a.jobs) {
		return "waiting"
	}
	return "queued"
}

// conclusion is that the run was cancelled, or the worst one of an attempt's
// jobs; "" while some are open.
func (a *attempt) conclusion() string {
	switch {
	case a.open > 0:
		return ""
	case a.cancelled:
		return "cancelled"
	}
	worst := "success"
	for _, j := range a.jobs {
		switch j.conclusion {
		case "failure", "timed_out":
			return "failure"
		case "cancelled":
			worst = "cancelled"
		}
	}
	return worst
}
