package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
)

func TestBootTimeout(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		first := b.wantJob(id, gpuserver.JobStarting).VM
		b.pass(5*time.Minute - time.Second)
		b.wantVM(first, gpuserver.VMBooting)
		b.pass(2 * time.Second)
		b.wantVM(first, gpuserver.VMGone)
		j := b.wantJob(id, gpuserver.JobQueued)
		if j.Tries != 1 || !strings.Contains(j.Reason.Text, "5m0s") {
			t.Errorf("after a boot time-out: %d tries, %+v", j.Tries, j.Reason)
		}
		b.pass(5 * time.Second)
		if j = b.wantJob(id, gpuserver.JobStarting); j.VM == first {
			t.Error("no new VM was made")
		}
	})
}

// TestGivesUp bounds the VMs that are made for a job, and says why.
func TestGivesUp(t *testing.T) {
	inBubble(t, func(o *Options) { o.Limits.HoldImageAfter = 100 }, func(b *bench) {
		id := b.job("small")
		b.pass(time.Hour)
		j := b.wantJob(id, gpuserver.JobFailed)
		if j.Reason.Class != gpuserver.ReasonGaveUp || j.Tries != 3 || !strings.HasPrefix(j.Reason.Text, "3 VMs") {
			t.Errorf("given up after %d with %+v", j.Tries, j.Reason)
		}
		b.isEmpty()
	})
}

func TestTimeLimitOfAJob(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		b.running(id, b.vm(vm).Runner.Name)
		b.pass(time.Hour - time.Second)
		if o := b.beat(vm, guest.Heartbeat{Phase: "job_started"}); o.Interrupt {
			t.Fatal("interrupted before its time")
		}
		b.pass(time.Second)
		if o := b.beat(vm, guest.Heartbeat{Phase: "job_started"}); !o.Interrupt || !strings.Contains(o.Reason, "1h0m0s") {
			t.Fatalf("at the limit the agent is told %+v", o)
		}
		b.pass(30*time.Second + heartbeatSlack - time.Second)
		b.wantVM(vm, gpuserver.VMBusy)
		b.pass(2 * time.Second)
		b.wantVM(vm, gpuserver.VMGone)
		b.wantJob(id, gpuserver.JobRunning) // how it ended is the forge's to say
		b.done(id, "failure")
	})
}

// TestBusyRunnerIsKept retires an idle runner that the forge says is busy: its
// VM stays, and gets its job when the event comes.
func TestBusyRunnerIsKept(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.forge.setBusy(b.vm(vm).Runner.Name, true)
		b.pass(5*time.Minute + time.Second)
		b.wantVM(vm, gpuserver.VMBusy)
		b.running(id, b.vm(vm).Runner.Name)
		if v := b.vm(vm); v.State != gpuserver.VMBusy || v.Assigned != id {
			t.Errorf("the VM is %s for job %d, want busy for %d", v.State, v.Assigned, id)
		}
		b.done(id, "success")
		b.isEmpty()
	})
}

// TestIdleRunnerGoes retires it runner first, then VM, and makes another.
func TestIdleRunnerGoes(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.pass(5*time.Minute + time.Second)
		b.wantVM(vm, gpuserver.VMGone)
		if j := b.wantJob(id, gpuserver.JobStarting); j.VM == vm || j.Tries != 0 {
			t.Errorf("its job has VM %d after %d failures", j.VM, j.Tries)
		}
		if n := b.forge.count("delete"); n != 1 {
			t.Errorf("%d runners were deleted, want 1", n)
		}
	})
}

func TestNameIsTaken(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.forge.fail = func(call string) error {
			if call == "register" && len(b.forge.calls) == 1 {
				name := b.fleet.ID() + "-1-1"
				b.forge.runners[99] = forge.Runner{ID: 99, Name: name}
			}
			return nil
		}
		id := b.job("small")
		b.pass(time.Second)
		if v := b.vm(b.wantJob(id, gpuserver.JobStarting).VM); v.State != gpuserver.VMBooting || v.Runner.Attempt != 2 {
			t.Errorf("the VM is %s with attempt %d, want booting with 2", v.State, v.Runner.Attempt)
		}
		if len(b.forge.runners) != 1 {
			t.Errorf("the old registration is still there: %v", b.forge.runners)
		}
	})
}

// TestNameIsAlwaysTaken must not become a loop without pauses or end.
func TestNameIsAlwaysTaken(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.forge.fail = func(call string) error {
			if call == "register" {
				return gpuserver.Errorf(gpuserver.KindConflict, "already exists")
			}
			return nil
		}
		id := b.job("small")
		b.pass(time.Hour)
		b.wantJob(id, gpuserver.JobFailed)
		if n := b.forge.count("register"); n > 3*8 {
			t.Errorf("%d registrations were tried", n)
		}
		b.isEmpty()
	})
}

// TestForgeAwayWhileRetiring repeats the deletion of the runner, then the VM's.
func TestForgeAwayWhileRetiring(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		b.forge.fail = func(call string) error {
			if call == "delete" {
				return gpuserver.Errorf(gpuserver.KindUnavailable, "away")
			}
			return nil
		}
		b.done(id, "cancelled")
		b.pass(time.Minute)
		b.wantVM(vm, gpuserver.VMDraining)
		b.forge.mu.Lock()
		b.forge.fail = nil
		b.forge.mu.Unlock()
		b.pass(2 * time.Minute)
		b.wantVM(vm, gpuserver.VMGone)
		b.isEmpty()
	})
}

// TestRestartFindsAJobThatEnded ends a job in the store alone, as a crash right
// after the commit leaves it.
func TestRestartFindsAJobThatEnded(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		ran, waited := b.job("small"), b.job("small")
		vm := b.wantJob(ran, gpuserver.JobStarting).VM
		b.running(ran, b.vm(vm).Runner.Name)
		b.stop()
		for _, id := range []gpuserver.JobID{ran, waited} {
			b.done(id, "cancelled")
		}
		b.start(nil)
		b.wantVM(vm, gpuserver.VMGone)
		b.isEmpty()
	})
}

// TestRestartBeforeCreate has lost what the guest is handed: the runner is
// registered anew under the next name.
func TestRestartBeforeCreate(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.cloud.SetFaults([]fake.Fault{{At: "create.before", Kind: gpuserver.KindUnavailable}})
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		b.wantVM(vm, gpuserver.VMCreating)
		b.stop()
		b.cloud.SetFaults(nil)
		b.start(nil)
		b.pass(time.Minute)
		if v := b.vm(vm); v.State != gpuserver.VMBooting || v.Runner.Attempt != 2 {
			t.Errorf("the VM is %s with attempt %d", v.State, v.Runner.Attempt)
		}
		if len(b.forge.runners) != 1 {
			t.Errorf("registrations: %v", b.forge.runners)
		}
	})
}

// TestPartIsInTheWay finds a leftover of our own under the VM's name, and one
// of somebody else's.
func TestPartIsInTheWay(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		inBubble(t, nil, func(b *bench) {
			b.cloud.LeavePart(b.fleet.ID()+"-1", b.fleet.ID())
			id := b.job("small")
			b.pass(time.Minute)
			b.wantVM(b.wantJob(id, gpuserver.JobStarting).VM, gpuserver.VMBooting)
			if j := b.read(id); j.VM != 1 || j.Tries != 0 {
				t.Errorf("the job has VM %d after %d failures", j.VM, j.Tries)
			}
		})
	})
	t.Run("a stranger's", func(t *testing.T) {
		inBubble(t, nil, func(b *bench) {
			b.cloud.AddForeign(b.fleet.ID() + "-1")
			id := b.job("small")
			b.pass(time.Minute)
			if j := b.wantJob(id, gpuserver.JobStarting); j.VM != 2 {
				t.Errorf("the job has VM %d, want another name", j.VM)
			}
			if vms := b.cloud.VMs(); len(vms) != 2 {
				t.Errorf("VMs: %v", vms)
			}
		})
	})
}

// TestCreateRefused passes a refused entry over for a while; with no other the
// job says why it waits, and is not lost.
func TestCreateRefused(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.cloud.SetFaults([]fake.Fault{{At: "create.before", Kind: gpuserver.KindCapacity, Text: "no room at all", Times: 5}})
		id := b.job("small")
		b.pass(time.Second)
		if j := b.wantJob(id, gpuserver.JobQueued); j.Reason.Class != gpuserver.ReasonCapacity || !strings.Contains(j.Reason.Text, "no room at all") {
			t.Errorf("it waits for %+v", j.Reason)
		}
		b.pass(4 * time.Minute)
		if j := b.wantJob(id, gpuserver.JobStarting); j.Tries != 0 {
			t.Errorf("a full cloud counted as %d failures of the job", j.Tries)
		}
	})
}

// TestLostVMsAreNobodysFault takes many VMs away at once, as a reboot does.
func TestLostVMsAreNobodysFault(t *testing.T) {
	inBubble(t, func(o *Options) { o.Every.Clouds = 30 * time.Second }, func(b *bench) {
		var ids []gpuserver.JobID
		for range 5 {
			ids = append(ids, b.job("small"))
		}
		for _, v := range b.cloud.VMs() {
			b.cloud.Vanish(v.Name)
		}
		b.pass(time.Minute)
		for _, id := range ids {
			b.wantVM(b.wantJob(id, gpuserver.JobStarting).VM, gpuserver.VMBooting)
		}
		_ = b.db.View(b.ctx, func(tx *store.Tx) error {
			if held, err := tx.Images(); err != nil || len(held) > 0 {
				t.Errorf("images: %v (%v)", held, err)
			}
			return nil
		})
		if n := len(b.cloud.VMs()); n != 5 {
			t.Errorf("%d VMs, want 5", n)
		}
	})
}

// TestEndOfARunningVM waits a while for the forge's word, then asks for it.
func TestEndOfARunningVM(t *testing.T) {
	var b *bench
	reread := func(_ context.Context, _ string, j forge.Job) error {
		if j.State == gpuserver.ForgeCompleted {
			go b.done(gpuserver.JobID(j.ID), j.Conclusion)
		}
		return nil
	}
	inBubble(t, func(o *Options) { o.Reread = reread }, func(bb *bench) {
		b = bb
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		b.running(id, b.vm(vm).Runner.Name)
		if err := b.cloud.Stop(b.vm(vm).Name, "shutdown"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(vm, gpuserver.VMGone)
		if n := b.forge.count("job"); n != 0 {
			t.Errorf("the forge was asked %d times at once; its event is on the way", n)
		}
		b.forge.mu.Lock()
		b.forge.jobs[int64(id)] = forge.Job{ID: int64(id), State: gpuserver.ForgeCompleted, Conclusion: "failure"}
		b.forge.mu.Unlock()
		b.pass(endsWithin + time.Second)
		if j := b.wantJob(id, gpuserver.JobDone); j.Conclusion != "failure" {
			t.Errorf("it is %s", j.Conclusion)
		}
		if n := b.forge.count("job"); n != 1 {
			t.Errorf("the forge was asked %d times, want 1", n)
		}
	})
}

// TestJobThatTheForgeDoesNotKnow believes the forge the second time: one such
// answer passes by, and a job that is gone for good is ended.
func TestJobThatTheForgeDoesNotKnow(t *testing.T) {
	var mu sync.Mutex
	var conclusions []string
	ended := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(conclusions)
	}
	reread := func(_ context.Context, _ string, j forge.Job) error {
		if j.State == gpuserver.ForgeCompleted {
			mu.Lock()
			defer mu.Unlock()
			conclusions = append(conclusions, j.Conclusion)
		}
		return nil
	}
	inBubble(t, func(o *Options) { o.Reread, o.Every.Jobs = reread, 5*time.Minute }, func(b *bench) {
		id := b.job("small")
		b.running(id, b.vm(b.wantJob(id, gpuserver.JobStarting).VM).Runner.Name)
		b.pass(6 * time.Minute) // read once, and not known
		if b.forge.count("job") == 0 || len(ended()) != 0 {
			t.Fatalf("asked %d times, ended %q after one answer", b.forge.count("job"), ended())
		}
		b.forge.mu.Lock()
		b.forge.jobs[int64(id)] = forge.Job{ID: int64(id), State: gpuserver.ForgeInProgress}
		b.forge.mu.Unlock()
		b.pass(5 * time.Minute) // known again
		b.forge.mu.Lock()
		delete(b.forge.jobs, int64(id))
		b.forge.mu.Unlock()
		b.pass(5 * time.Minute) // the first denial anew
		if len(ended()) != 0 {
			t.Fatalf("ended %q after a denial that was taken back and another", ended())
		}
		b.pass(5 * time.Minute)
		if all := ended(); len(all) == 0 || all[0] != "not_found" {
			t.Errorf("a job that is gone for good ended %q, want not_found", all)
		}
	})
}

// TestOrphanRunners deletes registrations of ours that no VM has, and no others.
func TestOrphanRunners(t *testing.T) {
	inBubble(t, func(o *Options) { o.Every.Runners = time.Minute }, func(b *bench) {
		id := b.job("small")
		b.update(func(tx *store.Tx) error { return tx.SeeRepo(store.SeenRepo{Forge: "gh", Name: "octo/hello"}) })
		b.forge.mu.Lock()
		for i, name := range []string{b.fleet.ID() + "-77-1", b.fleet.ID() + "-78-1", "somebody-1-1"} {
			b.forge.runners[int64(100+i)] = forge.Runner{ID: int64(100 + i), Name: name, Busy: i == 1}
		}
		b.forge.mu.Unlock()
		b.pass(time.Minute + time.Second)
		left := map[string]bool{}
		for _, r := range b.forge.runners {
			left[r.Name] = true
		}
		want := map[string]bool{b.vm(b.read(id).VM).Runner.Name: true, b.fleet.ID() + "-78-1": true, "somebody-1-1": true}
		if fmt.Sprint(left) != fmt.Sprint(want) {
			t.Errorf("left are %v, want %v", left, want)
		}
	})
}

// TestSiblingsAreAdopted gives jobs each other's runners, in several shapes.
func TestSiblingsAreAdopted(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		ids := []gpuserver.JobID{b.job("small"), b.job("small"), b.job("small")}
		var names []string
		for _, id := range ids {
			v := b.vm(b.wantJob(id, gpuserver.JobStarting).VM)
			names = append(names, v.Runner.Name)
			b.beat(v.ID, guest.Heartbeat{Phase: "runner"})
		}
		for i, id := range ids { // a ring
			b.running(id, names[(i+1)%3])
		}
		if n := len(b.cloud.VMs()); n != 3 {
			t.Errorf("%d VMs for 3 jobs", n)
		}
		for i, id := range ids {
			if v := b.vm(b.wantJob(id, gpuserver.JobRunning).VM); v.Runner.Name != names[(i+1)%3] || v.Assigned != id {
				t.Errorf("job %d is said to run on %s", id, v.Runner.Name)
			}
		}
		for _, id := range ids {
			b.done(id, "success")
		}
		b.isEmpty()
	})
}

// TestLargerVMIsNotForASmallerJob never hands a VM to a job that asked for
// something else.
func TestLargerVMIsNotForASmallerJob(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		large := b.job("large")
		b.cloud.SetHosts([]gpuserver.Host{{Name: "fake", VCPUs: 4, MemoryMiB: 4096, DiskGiB: 40}})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		small := b.job("small")
		b.wantJob(small, gpuserver.JobQueued)
		b.done(large, "cancelled")
		v := b.vm(b.wantJob(small, gpuserver.JobStarting).VM)
		if v.Flavor != "small" {
			t.Errorf("the small job got the VM of flavor %s", v.Flavor)
		}
	})
}

// TestRetryOfAJobThatIsHeldBack makes no VM: the forge would give it no job.
func TestRetryOfAJobThatIsHeldBack(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		j := gpuserver.Job{Forge: "gh", ForgeID: 1, Repo: "octo/hello", State: gpuserver.JobWaiting, ForgeState: gpuserver.ForgeWaiting}
		b.update(func(tx *store.Tx) error { return tx.InsertJob(&j) })
		if err := b.fleet.RetryJob(b.t.Context(), j.ID, "bob"); gpuserver.KindOf(err) != gpuserver.KindConflict {
			b.t.Errorf("got %v", err)
		}
		b.wantJob(j.ID, gpuserver.JobWaiting)
	})
}
