package metrics

import (
	"context"
	"slices"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/store"
)

// ends are the jobs that ended and the VMs that are gone and have not been
// observed yet. A row may be written again after its end; each end counts once.
type ends struct {
	mu      sync.Mutex
	waiting []store.Change
	seen    *lru.Cache[store.Change, struct{}]
	wake    chan struct{}
}

const (
	maxWaiting = 10_000 // ends not observed yet; beyond it some are left out rather than let memory grow
	maxSeen    = 10_000 // ends remembered, so that they count once
)

func newEnds() *ends {
	seen, err := lru.New[store.Change, struct{}](maxSeen)
	if err != nil {
		panic(err) // the size is a constant above zero
	}
	return &ends{seen: seen, wake: make(chan struct{}, 1)}
}

// changed is called by the store's writer: it only notes.
func (e *ends) changed(cs []store.Change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range cs {
		if c.Job != 0 && !c.JobState.Over() { // tried again: its next end is another one
			for _, over := range []gpuserver.JobState{gpuserver.JobRefused, gpuserver.JobDone, gpuserver.JobFailed} {
				e.seen.Remove(store.Change{Job: c.Job, JobState: over, Forge: c.Forge})
			}
			continue
		}
		if c.Job == 0 && c.VMState != gpuserver.VMGone {
			continue
		}
		if again, _ := e.seen.ContainsOrAdd(c, struct{}{}); !again && len(e.waiting) < maxWaiting {
			e.waiting = append(e.waiting, c)
		}
	}
	if len(e.waiting) > 0 {
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
}

func (e *ends) take() []store.Change {
	e.mu.Lock()
	defer e.mu.Unlock()
	cs := e.waiting
	e.waiting = nil
	return cs
}

// atVMsEnd are the phases that come after a job's end; they are observed when
// its VM is gone, the others when the job ends.
var atVMsEnd = []string{gpuserver.PhaseDeleteCalled, gpuserver.PhaseGone}

func (m *Metrics) count(ctx context.Context) {
	for {
		select {
		case <-m.ends.wake:
		case <-ctx.Done():
			return
		}
		for _, c := range m.ends.take() {
			if c.Job != 0 {
				m.jobEnded(ctx, c.Job)
			} else {
				m.vmGone(ctx, c.VM)
			}
		}
	}
}

func (m *Metrics) jobEnded(ctx context.Context, id gpuserver.JobID) {
	d, err := api.ReadJob(ctx, m.db, id)
	if err != nil {
		return // pruned already, or we are closing
	}
	m.jobs.WithLabelValues(string(d.Job.State), conclusion(d.Job.Conclusion)).Inc()
	if !d.Job.StartedAt.IsZero() && !d.Job.QueuedAt.IsZero() {
		m.waits.Observe(max(0, d.Job.StartedAt.Sub(d.Job.QueuedAt).Seconds()))
	}
	m.phasesOf(d, func(name string) bool { return !slices.Contains(atVMsEnd, name) })
}

func (m *Metrics) vmGone(ctx context.Context, id gpuserver.VMID) {
	var v gpuserver.VM
	err := m.db.View(ctx, func(tx *store.Tx) (err error) {
		v, err = tx.VM(id)
		return err
	})
	if err != nil || v.Assigned == 0 {
		return
	}
	if d, err := api.ReadJob(ctx, m.db, v.Assigned); err == nil {
		m.phasesOf(d, func(name string) bool { return slices.Contains(atVMsEnd, name) })
	}
}

func (m *Metrics) phasesOf(d api.JobDetail, which func(string) bool) {
	for i, p := range d.Phases {
		if i > 0 && which(p.Name) {
			m.phases.WithLabelValues(p.Name).Observe(max(0, p.Seconds))
		}
	}
}

// conclusions are GitHub's words; anything else a forge says is "other", as a
// label must not grow with what others send.
var conclusions = []string{"success", "failure", "cancelled", "skipped", "timed_out", "neutral", "action_required", "stale", "startup_failure"}

func conclusion(s string) string {
	if s == "" {
		return "none"
	}
	if slices.Contains(conclusions, s) {
		return s
	}
	return "other"
}
