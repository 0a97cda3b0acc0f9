package forgetest

import (
	"slices"
	"strings"
	"time"
)

// runnerPool is all registrations. A registration has a scope: a repository
// ("owner/name") or an organisation ("org"), in lower case.
type runnerPool struct {
	byID    map[int64]*runner
	byName  map[string]*runner // scope + " " + name
	byToken map[string]*runner
	byScope map[string][]*runner
	idleIn  map[string][]*runner // by scope, longest idle first
}

type runner struct {
	id        int64
	name      string
	scope     string
	repo      *repo    // of a repository's runner
	org       *account // of an organisation's runner
	group     *Group
	labels    []string
	has       map[string]bool // labels in lower case
	token     string
	online    bool
	gone      bool
	job       *job // that it has or had
	lastSeen  time.Time
	createdAt time.Time
	wake      chan struct{} // holds one: something changed for it
}

func (p *runnerPool) init() {
	p.byID, p.byName, p.byToken = map[int64]*runner{}, map[string]*runner{}, map[string]*runner{}
	p.byScope, p.idleIn = map[string][]*runner{}, map[string][]*runner{}
}

func (r *runner) key() string { return r.scope + " " + strings.ToLower(r.name) }

// idle reports whether the runner can be given a job: JIT runners take one.
func (r *runner) idle() bool { return r.online && r.job == nil && !r.gone }

func (r *runner) isBusy() bool { return r.job != nil && r.job.status == "in_progress" }

// wakeUp tells its long poll to look again; s.mu is held.
func (r *runner) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (p *runnerPool) add(r *runner) {
	p.byID[r.id], p.byName[r.key()], p.byToken[r.token] = r, r, r
	p.byScope[r.scope] = append(p.byScope[r.scope], r)
}

func (p *runnerPool) remove(r *runner) {
	if r.gone {
		return
	}
	r.gone, r.online = true, false
	delete(p.byID, r.id)
	delete(p.byName, r.key())
	delete(p.byToken, r.token)
	p.byScope[r.scope] = without(p.byScope[r.scope], r)
	p.busy(r)
	r.wakeUp()
}

// busy takes a runner out of the idle ones.
func (p *runnerPool) busy(r *runner) { p.idleIn[r.scope] = without(p.idleIn[r.scope], r) }

func without(list []*runner, r *runner) []*runner {
	if i := slices.Index(list, r); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// named finds a runner by its name in any scope.
func (p *runnerPool) named(name string) *runner {
	for _, r := range p.byID {
		if strings.EqualFold(r.name, name) {
			return r
		}
	}
	return nil
}

// covers reports whether the runner may take jobs of a repository.
func (r *runner) covers(p *repo) bool {
	if r.repo != nil {
		return r.repo == p
	}
	return r.org == p.owner && r.group.covers(p)
}

// takes reports whether the runner may take a job: every label of the job is one
// of the runner's. Nothing else counts; a registration binds no job.
func (r *runner) takes(j *job) bool {
	if j.hold || !r.covers(j.attempt.run.repo) {
		return false
	}
	for _, l := range j.labels {
		if !r.has[l] {
			return false
		}
	}
	return true
}

// dispatchJob gives a job that was just queued to a runner that is idle already.
func (s *Server) dispatchJob(j *job) {
	if s.set.pauseDispatch || j.status != "queued" {
		return
	}
	p := j.attempt.run.repo
	for _, scope := range []string{strings.ToLower(p.name), strings.ToLower(p.owner.login)} {
		for _, r := range s.runners.idleIn[scope] {
			if r.takes(j) {
				s.begin(j, r)
				return
			}
		}
	}
}

// dispatchRunner gives a runner that became idle the best queued job.
func (s *Server) dispatchRunner(r *runner) {
	if s.set.pauseDispatch || !r.idle() {
		return
	}
	repos := []*repo{r.repo}
	if r.org != nil {
		repos = r.org.repos
	}
	var best *job
	for _, p := range repos {
		for _, j := range p.queued {
			if (best == nil || j.before(best)) && r.takes(j) {
				best = j
			}
		}
	}
	if best != nil {
		s.begin(best, r)
	}
}

func (j *job) before(o *job) bool {
	if j.spec.Priority != o.spec.Priority {
		return j.spec.Priority > o.spec.Priority
	}
	return j.queuedAt.Before(o.queuedAt)
}

func (s *Server) dispatchAll() {
	for _, idle := range s.runners.idleIn {
		for _, r := range slices.Clone(idle) {
			s.dispatchRunner(r)
		}
	}
}

// goOnline opens a runner's session; s.mu is held.
func (s *Server) goOnline(r *runner) {
	r.lastSeen = now()
	if !r.online {
		r.online = true
		if r.job == nil {
			s.runners.idleIn[r.scope] = append(s.runners.idleIn[r.scope], r)
			s.dispatchRunner(r)
		}
	}
	s.jobsChanged()
}

func (s *Server) goOffline(r *runner) {
	r.online = false
	s.runners.busy(r)
	s.jobsChanged()
}

// reap ends the jobs of runners that went silent, or that do not obey a
// cancellation, until the server is closed.
func (s *Server) reap() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		s.mu.Lock()
		s.reapAt(now())
		lease := min(s.set.runnerLease, s.cfg.CancelGrace)
		s.mu.Unlock()
		timer.Reset(min(max(lease/8, 20*time.Millisecond), time.Second))
	}
}

func (s *Server) reapAt(t time.Time) {
	for _, r := range s.runners.byID {
		if !r.online {
			continue
		}
		if r.isBusy() && !r.job.cancelAt.IsZero() && t.Sub(r.job.cancelAt) > s.cfg.CancelGrace {
			s.finish(r.job, "cancelled", "the runner did not obey the cancellation in time")
			s.goOffline(r)
			continue
		}
		if t.Sub(r.lastSeen) <= s.set.runnerLease {
			continue
		}
		s.goOffline(r)
		if r.isBusy() {
			s.finish(r.job, "failure", "The self-hosted runner lost communication with the server.")
		}
	}
}

// Runners lists all registrations, oldest first.
func (s *Server) Runners() []Runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Runner{}
	for _, r := range s.runners.byID {
		one := Runner{
			ID: r.id, Name: r.name, Scope: r.scope, Labels: slices.Clone(r.labels), Online: r.online, Busy: r.isBusy(),
			CreatedAt: r.createdAt,
		}
		if r.group != nil {
			one.Group = r.group.ID
		}
		if r.job != nil {
			one.Job = r.job.id
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Runner) int { return int(a.ID - b.ID) })
	return out
}
