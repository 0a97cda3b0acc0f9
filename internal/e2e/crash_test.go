package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// TestKilledAtEachStep kills the service at each named step, while forge and
// cloud live on, and starts it again: no job is lost, none is run twice, no VM,
// runner or lease is left over.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, at := range []string{
		"delivery.before", "delivery.commit", "delivery.commit:3", "decide.before", "decide.commit", "plan.before", "plan.commit",
		"register.before", "register.effect", "register.commit", "create.before", "create.effect", "create.commit",
		"job.commit", "job.commit:3", "delete.before", "delete.effect", "delete.commit",
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.serve("GPUSERVER_CRASH=" + at)
			run := w.dispatch("alice", 2)
			w.server.ended(t)
			w.serve()
			w.ranOnce(w.succeeded(run))
			w.nothingLeft()
			if n := w.creates(); n != 2 {
				t.Errorf("%d create calls for 2 jobs", n)
			}
		})
	}
}

// ranOnce checks that each job was given to a runner once, to one of its own.
func (w *world) ranOnce(jobs []forgetest.Job) {
	w.t.Helper()
	by := map[string]string{}
	for _, j := range jobs {
		if j.Dispatched != 1 {
			w.t.Errorf("job %s was given to %d runners", j.Name, j.Dispatched)
		}
		if other, twice := by[j.RunnerName]; twice {
			w.t.Errorf("jobs %s and %s ran on the same runner %s", j.Name, other, j.RunnerName)
		}
		by[j.RunnerName] = j.Name
	}
}

// TestKilledWhileRetiring kills the service while it takes down a VM that is
// not needed any more.
func TestKilledWhileRetiring(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"job.commit:2", "drain.before", "drain.effect", "drain.commit", "delete.before", "delete.effect", "delete.commit"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.serve("GPUSERVER_CRASH=" + at)
			run := w.dispatch("alice", 2, held)
			w.vmsIn(gpuserver.VMReady, 2)
			w.ok(w.forge.CancelRun(w.ctx, run.ID))
			w.server.ended(t)
			w.serve()
			w.nothingLeft()
			for _, j := range run.Jobs {
				if got := w.jobIs(j.ID, gpuserver.JobDone); got.Conclusion != "cancelled" {
					t.Errorf("job %d is %s: %s", j.ID, got.State, got.Conclusion)
				}
			}
		})
	}
}

// TestKilledAtRandom kills the service again and again during a burst.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "jobtime=100ms")
			rnd := rand.New(rand.NewPCG(seed, seed))
			w.serve()
			run := w.dispatch("alice", 50)
			for range 6 {
				time.Sleep(time.Duration(rnd.IntN(1200)) * time.Millisecond) // the fault, not a wait
				w.kill()
				w.serve()
			}
			w.ranOnce(w.succeeded(run))
			w.nothingLeft()
		})
	}
}
