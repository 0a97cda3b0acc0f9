package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
)

// stepVM does the step that the VM's row names.
func (f *Fleet) stepVM(ctx context.Context, id gpuserver.VMID) time.Duration {
	v, job, err := f.load(ctx, id)
	if err != nil {
		if ctx.Err() == nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
			f.Log.Error("VM cannot be read", "vm", id, "err", err)
			return time.Second
		}
		return 0
	}
	if d := time.Until(v.NextTryAt); d > 0 {
		return d
	}
	switch v.State {
	case gpuserver.VMLeased:
		return f.register(ctx, v, job)
	case gpuserver.VMCreating:
		return f.create(ctx, v, job)
	case gpuserver.VMBooting:
		return f.awaitBoot(ctx, v)
	case gpuserver.VMReady:
		return f.awaitJob(ctx, v)
	case gpuserver.VMBusy:
		return f.awaitEnd(ctx, v)
	case gpuserver.VMDraining:
		return f.drain(ctx, v)
	case gpuserver.VMDeleting:
		return f.delete(ctx, v)
	case gpuserver.VMKeeping:
		return f.keep(ctx, v)
	case gpuserver.VMKept:
		return f.awaitCards(ctx, v)
	}
	return 0
}

// load reads a VM and the job that it was made for (zero if that is pruned).
func (f *Fleet) load(ctx context.Context, id gpuserver.VMID) (v gpuserver.VM, j gpuserver.Job, err error) {
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		if v, err = tx.VM(id); err != nil {
			return err
		}
		if j, err = tx.Job(v.MadeFor); gpuserver.KindOf(err) == gpuserver.KindNotFound {
			err = nil
		}
		return err
	})
	return v, j, err
}

// move commits the next state of a VM with what set changes of it. The row is
// read again: events and reports may have changed it since the step began. A
// conflict means that somebody else moved it first; the step is looked at anew.
func (f *Fleet) move(ctx context.Context, v *gpuserver.VM, to gpuserver.VMState, why string, set func(*gpuserver.VM), also func(*store.Tx) error) error {
	err := f.change(ctx, v, func(tx *store.Tx) error {
		if set != nil {
			set(v)
		}
		if err := tx.MoveVM(v, to, why); err != nil || also == nil {
			return err
		}
		return also(tx)
	})
	switch {
	case err == nil:
		f.Log.Info("VM "+string(to), "vm", v.Name, "runner", v.Runner.Name, "job", v.MadeFor, "why", why)
	case gpuserver.KindOf(err) != gpuserver.KindConflict:
		f.Log.Error("VM state cannot be committed", "vm", v.Name, "to", to, "err", err)
	}
	return err
}

// change reads a VM anew into v and calls fn in the same transaction; it is a
// conflict if the VM left the state that v has.
func (f *Fleet) change(ctx context.Context, v *gpuserver.VM, fn func(*store.Tx) error) error {
	state := v.State
	return f.DB.Update(context.WithoutCancel(ctx), func(tx *store.Tx) (err error) {
		if *v, err = tx.VM(v.ID); err != nil {
			return err
		}
		if v.State != state {
			return gpuserver.Errorf(gpuserver.KindConflict, "VM %s is no longer %s", v.Name, state)
		}
		return fn(tx)
	})
}

// later counts a failed try of the present step and gives the pause before the
// next one.
func (f *Fleet) later(ctx context.Context, v gpuserver.VM, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	return f.laterWith(ctx, v, err, nil)
}

// laterWith is later with what else set changes of the VM.
func (f *Fleet) laterWith(ctx context.Context, v gpuserver.VM, err error, set func(*gpuserver.VM)) time.Duration {
	pause := backoff(v.Tries + 1)
	f.Log.Warn("step failed; it will be repeated", "vm", v.Name, "state", v.State, "try", v.Tries+1, "pause", pause, "err", err)
	_ = f.change(ctx, &v, func(tx *store.Tx) error {
		if set != nil {
			set(&v)
		}
		v.Tries++
		v.NextTryAt = tx.Now.Add(pause)
		if v.State != gpuserver.VMDraining && v.State != gpuserver.VMDeleting && v.State != gpuserver.VMKeeping { // these keep why the VM ends
			v.Reason = gpuserver.PublicText(err)
		}
		if err := tx.SaveVM(&v); err != nil || v.State != gpuserver.VMLeased {
			return err
		}
		return tellRegistering(tx, v, err)
	})
	return pause
}

// create asks the cloud for the VM, or finds that it did so before.
func (f *Fleet) create(ctx context.Context, v gpuserver.VM, job gpuserver.Job) time.Duration {
	drv, ok := f.clouds[v.Cloud]
	if !ok {
		f.fail(ctx, v, failure{why: fmt.Sprintf("the cloud %q is not in the configuration", v.Cloud), avoid: true})
		return 0
	}
	s, ok := f.secret(v.ID)
	if !ok || v.Tries > 0 {
		// We were restarted, or an earlier call's outcome is unknown.
		found, err := drv.Get(ctx, v.Name)
		failed := found.Failure()
		switch {
		case err == nil && found.Owner == f.id && failed != nil && gpuserver.KindOf(failed) != gpuserver.KindUnavailable:
			return f.createFailed(ctx, v, failed)
		case err == nil && found.State != cloud.StateRemains && failed == nil && found.Owner == f.id:
			f.repaired("vm_adopted")
			return f.created(ctx, v, drv, found)
		case err == nil && found.Owner == f.id:
			if err := drv.Delete(ctx, v.Name); err != nil {
				return f.later(ctx, v, err)
			}
		case err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound:
			return f.later(ctx, v, err)
		}
		if !ok {
			return f.startOver(ctx, v, job)
		}
	}
	if pause, ok := f.cardsReady(ctx, v, drv); !ok {
		return pause
	}
	spec, err := f.spec(ctx, v, job, s)
	if err != nil {
		f.fail(ctx, v, failure{why: gpuserver.PublicText(err), counts: true})
		return 0
	}
	var made cloud.VM
	crashpoint.At("create.before")
	err = f.call(ctx, "cloud "+v.Cloud, func() (err error) {
		cctx, done := f.leavable(ctx, drv)
		defer done()
		made, err = drv.Create(cctx, spec)
		return err
	})
	crashpoint.At("create.effect")
	if err != nil {
		return f.createFailed(ctx, v, err)
	}
	return f.created(ctx, v, drv, made)
}

func (f *Fleet) createFailed(ctx context.Context, v gpuserver.VM, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	why := gpuserver.PublicText(err)
	switch gpuserver.KindOf(err) {
	case gpuserver.KindCapacity:
		f.fail(ctx, v, noRoom(v, err))
	case gpuserver.KindConflict:
		if v.Tries == 0 {
			// A part that was left, or a call of the process before that came late:
			// what that was handed is worth nothing any more.
			if derr := f.clouds[v.Cloud].Delete(ctx, v.Name); gpuserver.KindOf(derr) != gpuserver.KindRefused {
				return f.later(ctx, v, cmp.Or(derr, err))
			}
		}
		f.fail(ctx, v, failure{why: "the VM's name is taken on " + v.Cloud + ": " + why, counts: true})
	case gpuserver.KindInvalid, gpuserver.KindRefused, gpuserver.KindNotFound:
		f.fail(ctx, v, failure{why: v.Cloud + " refuses to make the VM: " + why, avoid: true, counts: true})
	default:
		if v.Tries >= f.maxTries() {
			// Not the job's fault: it waits, and does not lose a try.
			f.fail(ctx, v, failure{why: v.Cloud + " fails: " + why, avoid: true, class: gpuserver.ReasonUnreachable})
			return 0
		}
		return f.later(ctx, v, err)
	}
	return 0
}

// noRoom says what it means that a cloud has no room for a VM for which the ledger
// had: nothing that the job has to pay for.
func noRoom(v gpuserver.VM, err error) failure {
	return failure{
		why: v.Cloud + " has no room: " + gpuserver.PublicText(err), avoid: true, class: gpuserver.ReasonCapacity,
		noHost: errors.Is(err, cloud.ErrNoHost),
	}
}

// startOver goes back before the registration, because what the guest is to be
// handed was lost with the memory of the process before.
func (f *Fleet) startOver(ctx context.Context, v gpuserver.VM, job gpuserver.Job) time.Duration {
	if v.Forge != LocalForge {
		fg, ok := f.Forges[v.Forge]
		if !ok {
			f.fail(ctx, v, failure{why: fmt.Sprintf("the forge %q is not in the configuration", v.Forge)})
			return 0
		}
		if err := f.dropRunner(ctx, fg, f.scope(fg, job), v.Runner); err != nil {
			return f.later(ctx, v, err)
		}
	}
	f.repaired("vm_started_over")
	_ = f.move(ctx, &v, gpuserver.VMLeased, "taken up after a restart; the runner is registered anew", func(v *gpuserver.VM) {
		if v.Forge != LocalForge {
			nextAttempt(v)
		}
	}, nil)
	return 0
}

// spec is what the VM is made of.
func (f *Fleet) spec(ctx context.Context, v gpuserver.VM, job gpuserver.Job, s secret) (cloud.Spec, error) {
	flavor, ok := f.Flavors[v.Flavor]
	if !ok {
		return cloud.Spec{}, gpuserver.Errorf(gpuserver.KindInvalid, "the flavor %q is not in the configuration", v.Flavor)
	}
	p := guest.Payload{
		Protocol: guest.Protocol, VM: v.Name, Server: f.AgentURL(v.Cloud), Token: s.token,
		JITConfig: s.jit, Command: job.Command, Repo: job.Repo, RunID: job.RunID, RunAttempt: job.RunAttempt,
		Env: v.Entry.Env, SetupInfo: v.Entry.SetupInfo, MTU: f.Limits.MTU, ReserveMiB: f.Limits.MemoryReserve, Grace: f.Limits.Grace,
	}
	var err error
	if p.Gate, err = f.expectation(ctx, v); err != nil {
		return cloud.Spec{}, err
	}
	data, err := guest.UserData(p)
	if err != nil {
		return cloud.Spec{}, err
	}
	return cloud.Spec{
		Name: v.Name, Owner: f.id, Host: v.Host, Flavor: flavor, Image: v.Image, UserData: data, Devices: f.addressesOf(v),
		Metadata: map[string]string{"gpuserver-owner": f.id, "gpuserver-job": fmt.Sprint(v.MadeFor)},
	}, nil
}

func (f *Fleet) created(ctx context.Context, v gpuserver.VM, drv cloud.Driver, made cloud.VM) time.Duration {
	resumed := false
	found := func(tx *store.Tx) (err error) {
		resumed, err = f.foundHost(tx, v, made)
		return err
	}
	err := f.move(ctx, &v, gpuserver.VMBooting, "", func(v *gpuserver.VM) {
		v.CloudID = made.ID
		v.BootDeadline = time.Now().Add(f.bootTimeout(drv, *v)).UTC()
	}, found)
	if gpuserver.KindOf(err) == gpuserver.KindConflict && v.State.Alive() { // its guest or the forge was quicker
		_ = f.change(ctx, &v, func(tx *store.Tx) error {
			v.CloudID = made.ID
			if err := found(tx); err != nil {
				return err
			}
			return tx.SaveVM(&v)
		})
	}
	if resumed {
		f.wakePlanner()
	}
	crashpoint.At("create.commit")
	return 0
}

// pinTime is how much longer a VM with a card may take for each GiB of memory:
// VFIO pins all of it before the guest's first instruction, page by page, and a
// host whose memory is in pieces needs a second or two for a GiB.
const pinTime = 2 * time.Second

func (f *Fleet) bootTimeout(drv cloud.Driver, v gpuserver.VM) time.Duration {
	d := f.Limits.Boot
	if !drv.Capabilities().Accelerated {
		d *= time.Duration(max(1, f.Limits.EmulationFactor))
	}
	if len(v.Claims) > 0 {
		d += time.Duration(f.Flavors[v.Flavor].MemoryMiB>>10)*pinTime + f.gateTimeout(v)
	}
	return d
}

func (f *Fleet) awaitBoot(ctx context.Context, v gpuserver.VM) time.Duration {
	if d := time.Until(v.BootDeadline); d > 0 {
		return d
	}
	if f.readGate(ctx, v) {
		return 0
	}
	f.endedIdle(ctx, v, failure{why: fmt.Sprintf("the VM's runner did not start within %s", v.BootDeadline.Sub(v.StateAt).Round(time.Second)), counts: true, image: true, also: f.noReport})
	return endsWithin
}

func (f *Fleet) awaitJob(ctx context.Context, v gpuserver.VM) time.Duration {
	if v.Forge == LocalForge {
		return 0
	}
	if d := time.Until(v.StateAt.Add(f.Limits.Idle)); d > 0 {
		return d
	}
	f.retire(ctx, v, fmt.Sprintf("its runner got no job for %s", f.Limits.Idle))
	return 0
}

// awaitEnd keeps the job's time limit: interrupt, grace, destroy.
func (f *Fleet) awaitEnd(ctx context.Context, v gpuserver.VM) time.Duration {
	if v.JobDeadline.IsZero() {
		return 0
	}
	if d := time.Until(v.JobDeadline); d > 0 {
		if v.Assigned != 0 || v.Forge == LocalForge {
			return d
		}
		// The forge said "busy" when we wanted to delete the runner, but no event
		// has named its job yet. Ask again after a while.
		if again := time.Until(v.StateAt.Add(time.Minute)); again > 0 {
			return min(again, d)
		}
		f.retire(ctx, v, "its runner was busy, but no job was ever named")
		return 0
	}
	if v.InterruptedAt.IsZero() {
		crashpoint.At("interrupt.before")
		err := f.change(ctx, &v, func(tx *store.Tx) error {
			defer crashpoint.At("interrupt.effect")
			v.InterruptedAt = tx.Now
			v.Reason = fmt.Sprintf("the job's time limit of %s is over", f.timeLimit(v.Flavor))
			if err := tx.SaveVM(&v); err != nil {
				return err
			}
			return tx.AddEvent(gpuserver.Event{Job: v.Assigned, VM: v.ID, Kind: "time_limit", Text: v.Reason + "; the runner is interrupted"})
		})
		if err != nil {
			return time.Second
		}
		crashpoint.At("interrupt.commit")
	}
	// The agent learns of the interrupt with its next heartbeat.
	if d := time.Until(v.InterruptedAt.Add(f.Limits.Grace + heartbeatSlack)); d > 0 {
		return d
	}
	_ = f.move(ctx, &v, gpuserver.VMDeleting, v.Reason, nil, func(tx *store.Tx) error {
		if err := f.endLocal(tx, v, "timed_out", v.Reason); err != nil {
			return err
		}
		return f.deleteCalled(tx, v)
	})
	return 0
}

// heartbeatSlack is how long an order takes at most to reach a guest that lives.
const heartbeatSlack = 20 * time.Second

func (f *Fleet) timeLimit(flavor string) time.Duration {
	if l := f.Flavors[flavor].TimeLimit; l > 0 {
		return l
	}
	return f.Limits.Job
}

// drain deletes the runner, so that no job can start in the VM any more, before
// the VM is destroyed. A runner that is busy (422) keeps its VM.
func (f *Fleet) drain(ctx context.Context, v gpuserver.VM) time.Duration {
	fg, known := f.Forges[v.Forge]
	if v.Runner.Name != "" && v.Runner.State != gpuserver.RunnerDeleted && known {
		job, err := f.jobOf(ctx, v)
		crashpoint.At("drain.before")
		if err == nil {
			err = f.dropRunner(ctx, fg, f.scope(fg, job), v.Runner)
		}
		crashpoint.At("drain.effect")
		switch gpuserver.KindOf(err) {
		case "":
		case gpuserver.KindConflict:
			_ = f.move(ctx, &v, gpuserver.VMBusy, "the forge says that its runner has a job", func(v *gpuserver.VM) {
				if v.JobDeadline.IsZero() { // not asked before
					v.JobDeadline = time.Now().Add(f.timeLimit(v.Flavor)).UTC()
				}
			}, nil)
			return 0
		case gpuserver.KindRefused, gpuserver.KindNotFound:
			// The App was removed, or the job's row is: the forge's side is no longer
			// ours to tidy.
			f.Log.Warn("runner cannot be deleted", "vm", v.Name, "runner", v.Runner.Name, "err", err)
		default:
			if time.Since(v.StateAt) < 30*time.Minute {
				return f.later(ctx, v, err)
			}
		}
	}
	to, also := gpuserver.VMDeleting, func(tx *store.Tx) error { return f.deleteCalled(tx, v) }
	if f.keeps(v) {
		to, also = gpuserver.VMKeeping, nil
	}
	// Compare-and-set: had the forge named a job meanwhile, the VM were busy now.
	_ = f.move(ctx, &v, to, v.Reason, func(v *gpuserver.VM) { v.Runner.State = gpuserver.RunnerDeleted }, also)
	crashpoint.At("drain.commit")
	return 0
}

// jobOf gives the job that tells where v's runner is registered.
func (f *Fleet) jobOf(ctx context.Context, v gpuserver.VM) (j gpuserver.Job, err error) {
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		id := v.MadeFor
		if v.Assigned != 0 {
			id = v.Assigned
		}
		j, err = tx.Job(id)
		return err
	})
	return j, err
}

func (f *Fleet) deleteCalled(tx *store.Tx, v gpuserver.VM) error {
	return tx.AddPhase(jobOfVM(v), v.ID, gpuserver.PhaseDeleteCalled, tx.Now)
}

// delete removes the VM from its cloud and, once that is verified, releases
// its lease. It is repeated until it succeeds: a lease is never lost to an error.
// An interrupt changes nothing about it, and must not be taken for an answer.
func (f *Fleet) delete(ctx context.Context, v gpuserver.VM) time.Duration {
	ctx = context.WithoutCancel(ctx)
	drv, ok := f.clouds[v.Cloud]
	if !ok {
		return f.later(ctx, v, gpuserver.Errorf(gpuserver.KindInvalid, "the cloud %q is not in the configuration; put it back until its VMs are deleted", v.Cloud))
	}
	if d := f.awaitAfter(ctx, v); d > 0 {
		return d
	}
	f.readAfter(ctx, v)
	crashpoint.At("delete.before")
	watched := f.watchReset(ctx, v)
	dctx, done := f.leavable(ctx, drv)
	err := drv.Delete(dctx, v.Name)
	if err == nil {
		err = f.letGo(dctx, v, drv)
	}
	left := dctx.Err() != nil
	done()
	watched()
	crashpoint.At("delete.effect")
	if gpuserver.KindOf(err) == gpuserver.KindRefused {
		// A stranger has our name. It is not ours to delete, and ours is not there.
		f.Log.Error("a VM of this name is not ours", "vm", v.Name, "cloud", v.Cloud, "err", err)
		err = nil
	}
	if err != nil && left {
		return 0 // the next start goes on with it
	}
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
		return f.later(ctx, v, err)
	}
	// It is verified gone. The lease is released in the commit that says so, and
	// that takes out the cards which are not well after it.
	j := f.cardsAfter(ctx, v, drv)
	crashpoint.At("release.before")
	err = f.move(ctx, &v, gpuserver.VMGone, v.Reason, nil, func(tx *store.Tx) error {
		crashpoint.At("release.effect")
		if _, err := f.hold(tx, v, j); err != nil {
			return err
		}
		if err := f.noteGPU(tx, v.Assigned, v); err != nil {
			return err
		}
		return tx.AddPhase(jobOfVM(v), v.ID, gpuserver.PhaseGone, tx.Now)
	})
	crashpoint.At("release.commit")
	if err == nil { // else it is judged again
		f.remember(v, j)
	}
	f.forget(v.ID)
	return 0
}
