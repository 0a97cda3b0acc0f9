package fleet

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
)

// slowForge takes a minute to say that a runner was deleted.
type slowForge struct{ forge.Forge }

func (s slowForge) DeleteRunner(ctx context.Context, sc forge.Scope, id int64) error {
	err := s.Forge.DeleteRunner(ctx, sc, id)
	time.Sleep(time.Minute)
	return err
}

// TestRetiringChecksTheAssignmentAgain decides to retire an idle VM, and before
// that is carried out the forge names its job.
func TestRetiringChecksTheAssignmentAgain(t *testing.T) {
	t.Run("before the runner is deleted", func(t *testing.T) {
		inBubble(t, nil, func(b *bench) {
			id := b.job("small")
			vm := b.wantJob(id, gpuserver.JobStarting).VM
			b.beat(vm, guest.Heartbeat{Phase: "runner"})
			idle := b.vm(vm)
			b.running(id, idle.Runner.Name)
			b.forge.setBusy(idle.Runner.Name, false) // it does not say so yet
			b.fleet.retire(b.ctx, idle, "its runner got no job")
			b.settle()
			if v := b.vm(vm); v.State != gpuserver.VMBusy || v.Assigned != id {
				t.Errorf("the VM with a job is %s for job %d", v.State, v.Assigned)
			}
			if n := b.forge.count("delete"); n != 0 {
				t.Errorf("its runner was deleted")
			}
		})
	})
	t.Run("while the runner is deleted", func(t *testing.T) {
		slow := func(o *Options) { o.Forges["gh"] = Forge{Forge: slowForge{o.Forges["gh"].Forge}} }
		inBubble(t, slow, func(b *bench) {
			id := b.job("small")
			vm := b.wantJob(id, gpuserver.JobStarting).VM
			b.beat(vm, guest.Heartbeat{Phase: "runner"})
			name := b.vm(vm).Runner.Name
			time.Sleep(5*time.Minute + 30*time.Second)
			_ = b.db.Update(b.ctx, func(tx *store.Tx) error {
				j, err := tx.Job(id)
				if err != nil {
					return err
				}
				j.ForgeState, j.RunnerName, j.StartedAt = gpuserver.ForgeInProgress, name, tx.Now
				return tx.MoveJob(&j, gpuserver.JobRunning, "")
			})
			b.pass(2 * time.Minute)
			if v := b.vm(vm); v.State != gpuserver.VMBusy || v.Assigned != id {
				t.Errorf("the VM with a job is %s for job %d", v.State, v.Assigned)
			}
		})
	})
}

// TestTimeLimitOfANamelessJob keeps the time limit of a job that only the
// forge's "busy" tells of.
func TestTimeLimitOfANamelessJob(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.forge.setBusy(b.vm(vm).Runner.Name, true)
		b.pass(5*time.Minute + time.Second)
		b.wantVM(vm, gpuserver.VMBusy)
		b.pass(50 * time.Minute)
		if o := b.beat(vm, guest.Heartbeat{Phase: "job_started"}); o.Interrupt {
			t.Error("interrupted before its time")
		}
		b.pass(10*time.Minute + 5*time.Second)
		if o := b.beat(vm, guest.Heartbeat{Phase: "job_started"}); !o.Interrupt {
			t.Error("at the limit the agent is told nothing")
		}
		b.pass(time.Minute)
		b.wantVM(vm, gpuserver.VMGone)
	})
}

// TestTakenRunnerOfAJobThatHasAnother lets a sibling take a runner that was
// being retired, whose job has another VM by then: that one stays its own.
func TestTakenRunnerOfAJobThatHasAnother(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		first := b.wantJob(id, gpuserver.JobStarting).VM
		name := b.vm(first).Runner.Name
		b.beat(first, guest.Heartbeat{Phase: "runner"})
		b.forge.setBusy(name, true)
		b.pass(5*time.Minute + time.Second) // retired, found busy; its job gets another
		second := b.wantJob(id, gpuserver.JobStarting).VM
		if second == first {
			t.Fatal("the job got no other VM")
		}
		sibling := b.job("small")
		third := b.wantJob(sibling, gpuserver.JobStarting).VM
		b.running(sibling, name)
		if j := b.wantJob(id, gpuserver.JobStarting); j.VM != second {
			t.Errorf("the job has VM %d, want its own %d", j.VM, second)
		}
		b.wantVM(third, gpuserver.VMGone) // nobody needs it
		if n := len(b.cloud.VMs()); n != 2 {
			t.Errorf("%d VMs for 2 jobs", n)
		}
	})
}

// TestForgeAwayWhileRegistering is no failure of the job, however long it
// lasts within reason: it waits, with the room that it has.
func TestForgeAwayWhileRegistering(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.forge.fail = func(string) error { return gpuserver.Errorf(gpuserver.KindUnavailable, "GitHub is away") }
		id := b.job("small")
		b.pass(20 * time.Minute)
		j := b.wantJob(id, gpuserver.JobStarting)
		if j.Tries != 0 || j.VM != 1 {
			t.Errorf("the forge's outage counted as %d failures; the job has VM %d", j.Tries, j.VM)
		}
		if j.Reason.Class != gpuserver.ReasonUnreachable || !strings.Contains(j.Reason.Text, "GitHub is away") {
			t.Errorf("its reason is %+v", j.Reason)
		}
		b.forge.mu.Lock()
		b.forge.fail = nil
		b.forge.mu.Unlock()
		b.pass(time.Minute)
		b.wantVM(j.VM, gpuserver.VMBooting)
		if r := b.read(id).Reason; r.Class != gpuserver.ReasonStarting {
			t.Errorf("its reason is still %+v", r)
		}
		if n := len(b.forge.runners); n != 1 {
			t.Errorf("%d registrations", n)
		}
	})
}

// TestQuickJobEndsARowOfFailures counts only failures in a row: a job of which
// nothing but the end was heard ends the row too.
func TestQuickJobEndsARowOfFailures(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		fail := func() {
			b.t.Helper()
			id := b.job("small")
			vm := b.wantJob(id, gpuserver.JobStarting).VM
			status := 1
			b.beat(vm, guest.Heartbeat{Phase: "exited", RunnerExit: &status})
			b.done(id, "cancelled")
		}
		fail()
		fail()
		quick := b.job("small")
		name := b.vm(b.wantJob(quick, gpuserver.JobStarting).VM).Runner.Name
		b.update(func(tx *store.Tx) error {
			j, err := tx.Job(quick)
			if err != nil {
				return err
			}
			j.ForgeState, j.RunnerName, j.Conclusion, j.EndedAt = gpuserver.ForgeCompleted, name, "success", tx.Now
			return tx.MoveJob(&j, gpuserver.JobDone, "")
		})
		fail()
		_ = b.db.View(b.ctx, func(tx *store.Tx) error {
			images, err := tx.Images()
			if err != nil || len(images) != 1 || images[0].Failures != 1 || !images[0].HeldAt.IsZero() {
				t.Errorf("images: %+v (%v)", images, err)
			}
			return nil
		})
	})
}

// TestWaitingJobIsReadAgain reads a queued job from the forge although its
// reason is rewritten all the time: what we write is not what the forge said.
func TestWaitingJobIsReadAgain(t *testing.T) {
	inBubble(t, func(o *Options) {
		o.Every.Jobs = 5 * time.Minute
		o.Reread = func(context.Context, string, forge.Job) error { return nil }
	}, func(b *bench) {
		b.cloud.SetHosts([]gpuserver.Host{{Name: "fake", VCPUs: 1, MemoryMiB: 1024, DiskGiB: 10}})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		b.job("small")
		waits := b.job("small")
		for range 12 {
			b.pass(time.Minute)
			b.update(func(tx *store.Tx) error {
				j, err := tx.Job(waits)
				if err != nil {
					return err
				}
				j.Reason.Text += "."
				return tx.SaveJob(&j)
			})
		}
		b.wantJob(waits, gpuserver.JobQueued)
		if n := b.forge.count("job"); n < 2 {
			t.Errorf("the forge was asked %d times in 12 minutes", n)
		}
	})
}

// TestHeldImageStaysHeld gives a VM that was made before the hold its job: the
// alarm was raised, and only the operator ends the hold.
func TestHeldImageStaysHeld(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		early := b.job("small")
		name := b.vm(b.wantJob(early, gpuserver.JobStarting).VM).Runner.Name
		for range 3 {
			id := b.job("small")
			status := 1
			b.beat(b.wantJob(id, gpuserver.JobStarting).VM, guest.Heartbeat{Phase: "exited", RunnerExit: &status})
			b.done(id, "cancelled")
		}
		b.running(early, name)
		b.wantJob(b.job("small"), gpuserver.JobQueued)
	})
}

// TestBootTimeoutAsksTheForge never hears from a guest whose job's event was
// lost, too: the forge knows that it runs.
func TestBootTimeoutAsksTheForge(t *testing.T) {
	var b *bench
	reread := func(_ context.Context, _ string, j forge.Job) error {
		return b.db.Update(b.ctx, func(tx *store.Tx) error {
			ours, err := tx.Job(gpuserver.JobID(j.ID))
			if err != nil || j.State != gpuserver.ForgeInProgress || ours.State == gpuserver.JobRunning {
				return err
			}
			ours.ForgeState, ours.RunnerName = j.State, j.RunnerName
			return tx.MoveJob(&ours, gpuserver.JobRunning, "")
		})
	}
	inBubble(t, func(o *Options) { o.Reread = reread }, func(bb *bench) {
		b = bb
		id := b.job("small")
		vm := b.vm(b.wantJob(id, gpuserver.JobStarting).VM)
		b.forge.setBusy(vm.Runner.Name, true)
		b.forge.mu.Lock()
		b.forge.jobs[int64(id)] = forge.Job{ID: int64(id), State: gpuserver.ForgeInProgress, RunnerName: vm.Runner.Name}
		b.forge.mu.Unlock()
		b.pass(6 * time.Minute)
		b.wantVM(vm.ID, gpuserver.VMBusy)
		if j := b.wantJob(id, gpuserver.JobRunning); j.Tries != 0 || len(b.cloud.VMs()) != 1 {
			t.Errorf("a job that runs counted %d failures and has %d VMs", j.Tries, len(b.cloud.VMs()))
		}
	})
}

// TestSiblingOfNoEventRanHere is told of nothing but the end of a VM in which
// a job began: the forge is asked which, and the two jobs make do with two VMs.
func TestSiblingOfNoEventRanHere(t *testing.T) {
	var b *bench
	reread := func(_ context.Context, _ string, j forge.Job) error {
		return b.db.Update(b.ctx, func(tx *store.Tx) error {
			ours, err := tx.Job(gpuserver.JobID(j.ID))
			if err != nil || j.State != gpuserver.ForgeCompleted {
				return err
			}
			ours.ForgeState, ours.RunnerName, ours.StartedAt, ours.EndedAt = j.State, j.RunnerName, tx.Now, tx.Now
			return tx.MoveJob(&ours, gpuserver.JobDone, "")
		})
	}
	inBubble(t, func(o *Options) { o.Reread = reread }, func(bb *bench) {
		b = bb
		first, second := b.job("small"), b.job("small")
		vm, other := b.vm(b.wantJob(first, gpuserver.JobStarting).VM), b.wantJob(second, gpuserver.JobStarting).VM
		b.update(func(tx *store.Tx) error {
			v, err := tx.VM(vm.ID)
			v.Guest.JobStarted = true
			return errors.Join(err, tx.SaveVM(&v))
		})
		b.forge.mu.Lock()
		b.forge.jobs[int64(second)] = forge.Job{ID: int64(second), State: gpuserver.ForgeCompleted, RunnerName: vm.Runner.Name}
		b.forge.mu.Unlock()
		if err := b.cloud.Stop(vm.Name, "shutdown"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(vm.ID, gpuserver.VMGone)
		b.wantJob(second, gpuserver.JobDone)
		if j := b.wantJob(first, gpuserver.JobStarting); j.VM != other || j.Tries != 0 {
			t.Errorf("the job has VM %d after %d failures, want its sibling's VM %d", j.VM, j.Tries, other)
		}
		if n := len(b.cloud.VMs()); n != 1 {
			t.Errorf("%d VMs are left, want the one for the first job", n)
		}
	})
}

// TestTimeLimitCountsFromTheStart hears late that a job began.
func TestTimeLimitCountsFromTheStart(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		name := b.vm(vm).Runner.Name
		start := time.Now()
		b.pass(4 * time.Minute)
		b.update(func(tx *store.Tx) error {
			j, err := tx.Job(id)
			if err != nil {
				return err
			}
			j.ForgeState, j.RunnerName, j.StartedAt = gpuserver.ForgeInProgress, name, start
			return tx.MoveJob(&j, gpuserver.JobRunning, "")
		})
		if d := b.vm(vm).JobDeadline.Sub(start); d != time.Hour {
			t.Errorf("the limit is over %s after the start, want 1h", d)
		}
	})
}

// TestJobThatBeganWhileWeWereAway hears from the guest alone that a job began in
// it: the agent let it, as we could not be asked. No image is held for that.
func TestJobThatBeganWhileWeWereAway(t *testing.T) {
	inBubble(t, func(o *Options) { o.Limits.HoldImageAfter = 1 }, func(b *bench) {
		id := b.job("small")
		vm := b.wantJob(id, gpuserver.JobStarting).VM
		status := 0
		for _, h := range []guest.Heartbeat{{Phase: "runner"}, {Phase: "job_started"}, {Phase: "exited", RunnerExit: &status}} {
			b.beat(vm, h)
		}
		b.settle()
		if j := b.wantJob(id, gpuserver.JobStarting); j.Tries != 0 || j.VM != vm {
			t.Errorf("the job has VM %d after %d failures, want its own until the forge tells how it ended", j.VM, j.Tries)
		}
		b.update(func(tx *store.Tx) error {
			images, err := tx.Images()
			for _, h := range images {
				if !h.HeldAt.IsZero() {
					t.Errorf("image %s is held: %s", h.Name, h.Reason)
				}
			}
			return err
		})
	})
}
