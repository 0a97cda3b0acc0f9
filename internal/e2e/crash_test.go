package e2e

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// TestKilledAtEachStep kills the service at each named step, before its effect,
// between effect and commit, and after the commit, while forge and cloud live on,
// and starts it again: no job is lost, none is run twice, no VM, runner or lease
// is left over. Where a step's only effect is its commit (a lease, a VM that is
// up, or busy, or released), it is killed inside the transaction.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, at := range []string{
		"delivery.before", "delivery.effect", "delivery.commit", "delivery.commit:3", "decide.before", "decide.commit",
		"lease.before", "lease.effect", "lease.commit", "register.before", "register.effect", "register.commit",
		"create.before", "create.effect", "create.commit", "boot.before", "boot.effect", "boot.commit",
		"ready.before", "ready.effect", "ready.commit", "busy.before", "busy.effect", "busy.commit",
		"end.before", "end.effect", "end.commit", "end.commit:2", "delete.before", "delete.effect",
		"release.before", "release.effect", "release.commit",
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.serve("GPUSERVER_CRASH=" + at)
			run := w.dispatch("alice", 2)
			w.killedAt(at)
			w.serve()
			w.ranOnce(w.succeeded(run))
			w.nothingLeft()
			if n := w.creates(); n != 2 {
				t.Errorf("%d create calls for 2 jobs", n)
			}
		})
	}
}

// TestKilledWhilePulling kills the service around a delivery that it fetched:
// there is nobody who would send it again.
func TestKilledWhilePulling(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"delivery.before", "delivery.before:2", "delivery.commit", "delivery.commit:3"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.withoutInbound()
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
	for _, at := range []string{"end.effect", "end.commit:2", "drain.before", "drain.effect", "drain.commit", "delete.before", "delete.effect", "release.effect", "release.commit"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.serve("GPUSERVER_CRASH=" + at)
			run := w.dispatch("alice", 2, held)
			w.vmsIn(gpuserver.VMReady, 2)
			w.ok(w.forge.CancelRun(w.ctx, run.ID))
			w.killedAt(at)
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

// TestKilledAtTheTimeLimit kills the service while it ends a job that takes too
// long: the grace that is left counts on.
func TestKilledAtTheTimeLimit(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"interrupt.before", "interrupt.effect", "interrupt.commit", "delete.before"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "jobtime=1h")
			w.configure(forgetest.Settings{RunnerLease: ptr(2 * time.Second)})
			w.ofFlavor = ", time_limit: 1s"
			w.extra = "reconcile: {deliveries: 1s, jobs: 10m, runners: 1s}\njobs: {grace: 1s}\n"
			w.serve("GPUSERVER_CRASH=" + at)
			run := w.dispatch("alice", 1)
			w.killedAt(at)
			w.serve()
			if j := w.wait(run, "completed")[0]; j.Conclusion != "failure" || j.Dispatched != 1 {
				t.Errorf("the job ended with %s after %d runners", j.Conclusion, j.Dispatched)
			}
			w.jobIs(run.Jobs[0].ID, gpuserver.JobDone)
			w.nothingLeft()
			if texts := w.events(run.Jobs[0].ID, "time_limit"); len(texts) != 1 {
				t.Errorf("its history says %q", texts)
			}
			if n := w.creates(); n != 1 {
				t.Errorf("%d create calls for 1 job", n)
			}
		})
	}
}

// killedAt waits for the service's end, and checks that it was the kill at a
// crash point.
func (w *world) killedAt(at string) {
	w.t.Helper()
	w.server.ended(w.t)
	if s, ok := w.server.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		w.t.Fatalf("the service ended with %v, not by the kill at %s", w.server.cmd.ProcessState, at)
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
