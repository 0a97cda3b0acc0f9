package e2e

import (
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/guest"
)

// TestSiblingsSwapRunners gives each of two jobs the runner that was made for
// the other: both run, and no third VM is made.
func TestSiblingsSwapRunners(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "jobtime=200ms")
	w.configure(forgetest.Settings{PauseDispatch: ptr(true)})
	w.serve()
	run := w.dispatch("alice", 2)
	w.online(2)
	first, second := run.Jobs[0].ID, run.Jobs[1].ID
	w.ok(w.forge.Assign(w.ctx, first, w.madeFor(second).Runner.Name))
	w.jobIs(first, gpuserver.JobDone)
	if got := w.jobIs(second, gpuserver.JobStarting); got.VM == 0 {
		t.Errorf("the sibling has no VM: %+v", got)
	}
	if texts := w.events(second, "repair"); len(texts) != 1 {
		t.Errorf("the sibling's history says nothing of the swap: %q", texts)
	}
	w.configure(forgetest.Settings{PauseDispatch: ptr(false)})
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
	if n := w.creates(); n != 2 {
		t.Errorf("%d VMs for 2 jobs", n)
	}
}

// TestSiblingTakesTheOnlyRunner lets a job take the runner of another while
// there is room for one VM only: the other gets one of its own afterwards.
func TestSiblingTakesTheOnlyRunner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.configure(forgetest.Settings{PauseDispatch: ptr(true)})
	w.ok(w.cloud.SetHosts(w.ctx, []gpuserver.Host{{Name: "small", VCPUs: 4, MemoryMiB: 1 << 20, DiskGiB: 1000}}))
	w.serve()
	run := w.dispatch("alice", 2)
	taken := w.online(1)[0]
	waits, starts := w.job(run.Jobs[0].ID), w.job(run.Jobs[1].ID)
	if waits.State == gpuserver.JobStarting {
		waits, starts = starts, waits
	}
	w.jobIs(waits.ForgeID, gpuserver.JobQueued)
	w.ok(w.forge.Assign(w.ctx, waits.ForgeID, taken.Name))
	w.jobIs(waits.ForgeID, gpuserver.JobDone)
	w.jobIs(starts.ForgeID, gpuserver.JobStarting)
	w.configure(forgetest.Settings{PauseDispatch: ptr(false)})
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
}

// TestRefusedJobStealsARunner lets a job of somebody without rights take the
// runner that was made for another: the hook fails it before its first step,
// and the other gets a runner at once.
func TestRefusedJobStealsARunner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	good := w.dispatch("alice", 1, held)
	taken := w.online(1)[0]
	bad := w.dispatch("mallory", 1)
	stolen := w.wait(bad, "completed")[0]
	if stolen.Conclusion != "failure" || stolen.RunnerName != taken.Name {
		t.Errorf("the refused job ended with %s on %s, want a failure on %s", stolen.Conclusion, stolen.RunnerName, taken.Name)
	}
	log, err := w.forge.Log(w.ctx, stolen.ID)
	w.ok(err)
	if !strings.Contains(log, "mallory") || strings.Contains(log, "played by") {
		t.Errorf("its log does not say who was refused, or it ran a step:\n%s", log)
	}
	if again := w.online(1)[0]; again.Name == taken.Name {
		t.Errorf("runner %s is still there", taken.Name)
	}
	w.release(good)
	w.ranOnce(w.succeeded(good))
	w.nothingLeft()
	if got := w.job(stolen.ID); got.Reason.Class != gpuserver.ReasonNoAccess {
		t.Errorf("the refused job's reason is %+v", got.Reason)
	}
}

func TestCancelledOnTheForge(t *testing.T) {
	t.Parallel()
	t.Run("while it waits", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "")
		w.ok(w.cloud.SetHosts(w.ctx, []gpuserver.Host{{Name: "full", VCPUs: 4, MemoryMiB: 1 << 20, DiskGiB: 1000}}))
		w.serve()
		before := w.dispatch("alice", 1, held)
		w.jobIs(before.Jobs[0].ID, gpuserver.JobStarting)
		run := w.dispatch("alice", 1, held)
		w.eventually("it waits for room", func() string {
			if j := w.job(run.Jobs[0].ID); j.State != gpuserver.JobQueued || j.Reason.Class != gpuserver.ReasonCapacity {
				return string(j.State) + " " + j.Reason.Text
			}
			return ""
		})
		w.ok(w.forge.CancelRun(w.ctx, run.ID))
		w.jobIs(run.Jobs[0].ID, gpuserver.JobDone)
		w.release(before)
		w.succeeded(before)
		w.nothingLeft()
		if n := w.creates(); n != 1 {
			t.Errorf("%d VMs were made, want 1", n)
		}
	})
	t.Run("while its runner is registered", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "")
		w.extra = "reconcile: {runners: 1s}\n"
		w.serve()
		w.ok(w.forge.SetFaults(w.ctx, []forgetest.Fault{{Kind: forgetest.FaultDelay, Path: "*generate-jitconfig", Delay: time.Minute}}))
		run := w.dispatch("alice", 1)
		w.jobIs(run.Jobs[0].ID, gpuserver.JobStarting)
		w.ok(w.forge.CancelRun(w.ctx, run.ID))
		w.jobIs(run.Jobs[0].ID, gpuserver.JobDone)
		w.nothingLeft()
		if n := w.creates(); n != 0 {
			t.Errorf("%d VMs were made for a job that was cancelled before", n)
		}
	})
	t.Run("while its VM is created", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "")
		w.ok(w.cloud.SetFaults(w.ctx, []fake.Fault{{At: "create.before", Stall: true}}))
		w.serve()
		run := w.dispatch("alice", 1)
		w.eventually("the cloud is asked", func() string {
			if w.creates() == 0 {
				return "not yet"
			}
			return ""
		})
		w.ok(w.forge.CancelRun(w.ctx, run.ID))
		w.jobIs(run.Jobs[0].ID, gpuserver.JobDone)
		w.ok(w.cloud.SetFaults(w.ctx, nil))
		w.nothingLeft()
	})
	t.Run("while it runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "jobtime=1h")
		w.serve()
		run := w.dispatch("alice", 1)
		w.jobIs(run.Jobs[0].ID, gpuserver.JobRunning)
		w.ok(w.forge.CancelRun(w.ctx, run.ID))
		w.nothingLeft()
		if got := w.jobIs(run.Jobs[0].ID, gpuserver.JobDone); got.Conclusion != "cancelled" {
			t.Errorf("it is %s", got.Conclusion)
		}
	})
}

// TestIdleRunnerIsRetired holds a job back at the forge: its runner goes after
// the idle time-out, and the job gets another.
func TestIdleRunnerIsRetired(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.extra += "jobs: {idle_timeout: 1s}\n"
	w.serve()
	run := w.dispatch("alice", 1, held)
	first := w.online(1)[0].Name
	w.eventually("another runner", func() string {
		rs, err := w.forge.Runners(w.ctx)
		if err != nil || len(rs) != 1 || rs[0].Name == first || !rs[0].Online {
			return "not yet"
		}
		return ""
	})
	w.release(run)
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
	if j := w.job(run.Jobs[0].ID); j.Tries != 0 {
		t.Errorf("an idle runner counted as %d failures of the job", j.Tries)
	}
}

// TestTimeLimit lets a job run over its limit in a guest that does not obey.
func TestTimeLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "jobtime=1h")
	w.configure(forgetest.Settings{RunnerLease: ptr(2 * time.Second)})
	w.ofFlavor = ", time_limit: 1s"
	w.extra += "jobs: {grace: 1s}\n"
	w.serve()
	run := w.dispatch("alice", 1)
	id := run.Jobs[0].ID
	w.jobIs(id, gpuserver.JobRunning)
	vm := w.madeFor(id)
	w.eventually("the runner is interrupted", func() string {
		if o := w.beat(vm.Name, guest.Heartbeat{Phase: "job_started", UptimeSeconds: 1}); !o.Interrupt || !strings.Contains(o.Reason, "1s") {
			return "the agent is told " + o.Reason
		}
		return ""
	})
	if j := w.wait(run, "completed")[0]; j.Conclusion != "failure" {
		t.Errorf("the job ended with %s", j.Conclusion)
	}
	w.jobIs(id, gpuserver.JobDone)
	if texts := w.events(id, "time_limit"); len(texts) != 1 {
		t.Errorf("its history says %q", texts)
	}
	w.eventually("the VM is gone", func() string {
		vms, err := w.cloud.VMs(w.ctx)
		if err != nil || len(vms) > 0 {
			return "still there"
		}
		return ""
	})
}

// TestSilentGuests never hears from a guest: the forge's events are enough.
func TestSilentGuests(t *testing.T) {
	t.Parallel()
	for name, guests := range map[string]string{"quick": "silent", "slow": "silent,jobtime=300ms"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, guests)
			w.serve()
			run := w.dispatch("alice", 5)
			w.ranOnce(w.succeeded(run))
			w.nothingLeft()
			if n := w.creates(); n != 5 {
				t.Errorf("%d VMs for 5 jobs", n)
			}
			for _, j := range run.Jobs {
				w.jobIs(j.ID, gpuserver.JobDone)
			}
		})
	}
}
