package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/store"
)

// stepJob brings VMs in line with what the forge said of a job.
func (f *Fleet) stepJob(ctx context.Context, id gpuserver.JobID) time.Duration {
	var woken []gpuserver.VMID
	var lostAt time.Time
	step := "job" // a job that runs makes its VM busy; one that is over has it taken down
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		woken, lostAt = nil, time.Time{}
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		switch {
		case j.State == gpuserver.JobRunning:
			step = "busy"
		case j.State.Over():
			step = "end"
		}
		crashpoint.At(step + ".before")
		defer crashpoint.At(step + ".effect")
		switch {
		case j.State == gpuserver.JobRunning:
			if woken, err = f.assign(tx, j); err == nil {
				lostAt, err = vmEnded(tx, j)
			}
		case j.State.Over():
			woken, err = f.finish(tx, j)
		case j.State == gpuserver.JobStarting:
			err = f.checkStarting(tx, j)
		}
		return err
	})
	if err != nil && ctx.Err() == nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
		f.Log.Error("job's VMs cannot be brought in line", "job", id, "err", err)
		return time.Second
	}
	for _, v := range woken {
		// A registration under way may wait long for the forge's budget.
		f.queue.Interrupt(key{vm: v})
	}
	crashpoint.At(step + ".commit")
	if lostAt.IsZero() {
		return 0
	}
	if d := time.Until(lostAt.Add(endsWithin)); d > 0 {
		return d
	}
	f.rereadByID(ctx, id)
	return 0
}

// endsWithin is how soon the forge's word follows at most when a VM ends with
// its job; then the job is asked for.
const endsWithin = 10 * time.Second

// vmEnded gives when the VM of a running job ended; zero if it lives.
func vmEnded(tx *store.Tx, j gpuserver.Job) (time.Time, error) {
	if j.VM == 0 || j.Forge == LocalForge {
		return time.Time{}, nil
	}
	v, err := tx.VM(j.VM)
	switch {
	case gpuserver.KindOf(err) == gpuserver.KindNotFound:
		return time.Time{}, nil
	case err != nil || v.State != gpuserver.VMDeleting && v.State.Alive():
		return time.Time{}, err
	}
	return v.StateAt, nil
}

// checkStarting sends a job back to the queue whose VM is gone without a word,
// as after a crash between two commits.
func (f *Fleet) checkStarting(tx *store.Tx, j gpuserver.Job) error {
	v, err := tx.VM(j.VM)
	if err == nil && v.State.Alive() || err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
		return err
	}
	j.VM = 0
	return tx.MoveJob(&j, gpuserver.JobQueued, "its VM is gone; another is made")
}

// assign gives a running job the VM whose runner the forge named. A JIT
// registration binds no job, so that VM may have been made for a sibling: the
// sibling gets the VM that was made for this job, or another at once.
func (f *Fleet) assign(tx *store.Tx, j gpuserver.Job) ([]gpuserver.VMID, error) {
	v, err := tx.VMByRunner(j.Forge, j.RunnerName)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound || err == nil && !v.State.Alive() {
		// A runner that is not ours, or no longer: our VMs for the job are spare.
		return f.release(tx, j, "another runner took its job")
	}
	if err != nil || v.Assigned == j.ID {
		return nil, err
	}
	v.Assigned = j.ID
	at := j.StartedAt
	if at.IsZero() || at.After(tx.Now) || at.Before(v.CreatedAt) {
		at = tx.Now // another clock
	}
	if v.JobDeadline.IsZero() { // else it runs since the forge said "busy"
		v.JobDeadline = at.Add(f.timeLimit(v.Flavor))
	}
	switch v.State {
	case gpuserver.VMDeleting, gpuserver.VMKeeping, gpuserver.VMKept, gpuserver.VMBusy: // busy: deleting its runner told so before the event
		err = tx.SaveVM(&v)
	default:
		err = tx.MoveVM(&v, gpuserver.VMBusy, "the forge says that it runs "+j.Name)
	}
	if err != nil {
		return nil, err
	}
	j.VM = v.ID
	if err := tx.SaveJob(&j); err != nil {
		return nil, err
	}
	if err := tx.AddPhase(j.ID, v.ID, gpuserver.PhaseJobStarted, at); err != nil {
		return nil, err
	}
	if err := tx.ImageWorked(v.Image); err != nil {
		return nil, err
	}
	if err := f.adopt(tx, v, j.ID); err != nil {
		return nil, err
	}
	return f.release(tx, j, "another runner took its job")
}

// adopt gives the job that waits for v, which job taker took, the VM that was
// made for taker, or sends it back to the queue, where it is planned at once. A
// job that has another VM by now keeps that.
func (f *Fleet) adopt(tx *store.Tx, v gpuserver.VM, taker gpuserver.JobID) error {
	if v.MadeFor == taker {
		return nil
	}
	o, err := tx.Job(v.MadeFor)
	if err != nil || !awaits(o, v) {
		if gpuserver.KindOf(err) == gpuserver.KindNotFound {
			err = nil
		}
		return err
	}
	spares, err := tx.VMsFor(taker)
	if err != nil {
		return err
	}
	for _, s := range spares {
		if usable(s) && serves(s, o) {
			s.MadeFor, o.VM = o.ID, s.ID
			if err := tx.SaveVM(&s); err != nil {
				return err
			}
			if err := tx.SaveJob(&o); err != nil {
				return err
			}
			return tx.AddEvent(gpuserver.Event{Job: o.ID, VM: s.ID, Kind: "repair", Text: "a sibling took its runner; it gets the sibling's"})
		}
	}
	o.VM = 0
	return tx.MoveJob(&o, gpuserver.JobQueued, fmt.Sprintf("job %d took its runner; another is made", taker))
}

// usable reports whether a VM can still take a job that it was not made for.
func usable(v gpuserver.VM) bool {
	switch v.State {
	case gpuserver.VMLeased, gpuserver.VMCreating, gpuserver.VMBooting, gpuserver.VMReady:
		return v.Assigned == 0
	}
	return false
}

// serves reports whether v is just what j asks for: the same repository,
// labels, resource and a place among its entries.
func serves(v gpuserver.VM, j gpuserver.Job) bool {
	if v.Forge != j.Forge || v.Forge == LocalForge || v.Resource != j.Resource || !sameLabels(v.Runner.Labels, j.Labels) {
		return false
	}
	if v.Runner.Scope.Kind != gpuserver.OwnerRepository || v.Runner.Scope.Name != j.Repo {
		return false
	}
	return slices.ContainsFunc(j.Entries, func(e gpuserver.Entry) bool {
		return e.Cloud == v.Cloud && e.Flavor == v.Flavor && e.Image == v.Image && maps.Equal(e.Env, v.Entry.Env)
	})
}

func sameLabels(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// release finds other work for the VMs that were made for j and did not get
// it, or retires them.
func (f *Fleet) release(tx *store.Tx, j gpuserver.Job, why string) (woken []gpuserver.VMID, err error) {
	vms, err := tx.VMsFor(j.ID)
	if err != nil || len(vms) == 0 {
		return nil, err
	}
	queued, err := tx.JobsIn(gpuserver.JobQueued, 500)
	if err != nil {
		return nil, err
	}
	for _, v := range vms {
		if !usable(v) {
			continue
		}
		i := slices.IndexFunc(queued, func(q gpuserver.Job) bool { return serves(v, q) })
		if i >= 0 {
			next := queued[i]
			queued = slices.Delete(queued, i, i+1)
			v.MadeFor, next.VM, next.Reason = next.ID, v.ID, startingReason(v)
			if err := tx.SaveVM(&v); err != nil {
				return nil, err
			}
			if err := tx.MoveJob(&next, gpuserver.JobStarting, "takes over the VM of job "+fmt.Sprint(j.ID)); err != nil {
				return nil, err
			}
			continue
		}
		v.Reason = why
		if err := tx.MoveVM(&v, gpuserver.VMDraining, why); err != nil {
			return nil, err
		}
		woken = append(woken, v.ID)
	}
	return woken, nil
}

// finish takes down the VM of a job that is over, at once, and finds other
// work for those that were made for it and never got it.
func (f *Fleet) finish(tx *store.Tx, j gpuserver.Job) ([]gpuserver.VMID, error) {
	var woken []gpuserver.VMID
	if j.RunnerName != "" || j.Forge == LocalForge {
		v, err := f.vmOf(tx, j)
		switch {
		case err == nil && (v.Assigned == 0 || v.Assigned == j.ID):
			if err := f.takeDown(tx, j, v); err != nil {
				return nil, err
			}
			v.Assigned = j.ID
			if err := f.noteGPU(tx, j.ID, v); err != nil {
				return nil, err
			}
			woken = append(woken, v.ID)
		case err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound:
			return nil, err
		}
	}
	more, err := f.release(tx, j, "its job is over")
	return append(woken, more...), err
}

func (f *Fleet) vmOf(tx *store.Tx, j gpuserver.Job) (gpuserver.VM, error) {
	if j.Forge == LocalForge {
		return tx.VM(j.VM)
	}
	return tx.VMByRunner(j.Forge, j.RunnerName)
}

// takeDown ends the VM that ran j. An ephemeral runner's registration ends with
// its job, so nothing stands between the event and the delete call.
func (f *Fleet) takeDown(tx *store.Tx, j gpuserver.Job, v gpuserver.VM) error {
	if err := jobPhases(tx, j, v); err != nil || !v.State.Alive() {
		return err
	}
	first := v.Assigned == 0
	v.Assigned, v.Runner.State, v.Reason = j.ID, gpuserver.RunnerDeleted, "its job ended: "+j.Conclusion
	switch v.State {
	case gpuserver.VMDeleting, gpuserver.VMKeeping, gpuserver.VMKept:
		return nil
	case gpuserver.VMLeased, gpuserver.VMCreating:
		// A create may be under way; the draining step comes after its outcome.
		if err := tx.MoveVM(&v, gpuserver.VMDraining, v.Reason); err != nil {
			return err
		}
	default:
		if err := tx.MoveVM(&v, gpuserver.VMDeleting, v.Reason); err != nil {
			return err
		}
		if err := f.deleteCalled(tx, v); err != nil {
			return err
		}
	}
	if !first {
		return nil
	}
	if err := tx.ImageWorked(v.Image); err != nil {
		return err
	}
	return f.adopt(tx, v, j.ID)
}

// jobPhases records when the job began and ended in v, by the forge's clock
// where it agrees with ours.
func jobPhases(tx *store.Tx, j gpuserver.Job, v gpuserver.VM) error {
	start, end := j.StartedAt, j.EndedAt
	if start.IsZero() || start.Before(v.CreatedAt) || start.After(tx.Now) {
		start = tx.Now
	}
	if end.IsZero() || end.Before(start) || end.After(tx.Now) {
		end = tx.Now
	}
	if !v.State.Alive() || v.State == gpuserver.VMDeleting {
		// The VM ended before the forge's word came: the delete call was earlier.
		end = start
		if v.StateAt.After(start) && v.StateAt.Before(end) {
			end = v.StateAt
		}
	}
	if err := tx.AddPhase(j.ID, v.ID, gpuserver.PhaseJobStarted, start); err != nil {
		return err
	}
	return tx.AddPhase(j.ID, v.ID, gpuserver.PhaseJobEnded, end)
}

// failure says why a VM failed before its job began, and what follows.
type failure struct {
	why    string
	class  gpuserver.ReasonClass               // of the job's reason; ReasonRetry if empty
	counts bool                                // it counts against the job's retries
	avoid  bool                                // this entry is passed over for a while
	image  bool                                // it may be the image's fault
	noHost bool                                // the cloud found no host, though the ledger had room
	also   func(*store.Tx, gpuserver.VM) error // what else is committed with it; nil: nothing
}

// endedIdle follows the end of a runner or VM that had no job by all that we
// know. The forge is asked before it counts: the runner may have had a job that
// no event has named yet.
func (f *Fleet) endedIdle(ctx context.Context, v gpuserver.VM, x failure) {
	if v.Forge != LocalForge {
		if f.findItsJob(ctx, v) {
			return
		}
		_, job, err := f.load(ctx, v.ID)
		if err != nil {
			return
		}
		if job.State == gpuserver.JobStarting && v.Guest.JobStarted {
			f.retire(ctx, v, x.why) // a sibling had it; its event is on the way
			return
		}
	}
	f.fail(ctx, v, x)
}

// findItsJob asks the forge whether v's runner had a job: the one that v was
// made for or, if a job began in v, a sibling of it. Without that a sibling that
// ran here would get a VM of its own until its events came.
func (f *Fleet) findItsJob(ctx context.Context, v gpuserver.VM) bool {
	ctx, cancel := context.WithTimeout(ctx, endsWithin)
	defer cancel()
	asked := []gpuserver.JobID{v.MadeFor}
	if v.Guest.JobStarted {
		asked = append(asked, f.siblings(ctx, v)...)
	}
	for _, id := range asked {
		f.rereadJob(ctx, v.Forge, f.Forges[v.Forge], id)
		var j gpuserver.Job
		err := f.DB.View(ctx, func(tx *store.Tx) (err error) { j, err = tx.Job(id); return err })
		if err == nil && j.RunnerName == v.Runner.Name {
			return true
		}
	}
	return false
}

// askedSiblings is how many jobs the forge is asked about at most when a VM
// ended with a job that is not known: the oldest are the likeliest.
const askedSiblings = 10

// siblings gives the oldest jobs that v's runner may have had although v was
// made for another.
func (f *Fleet) siblings(ctx context.Context, v gpuserver.VM) (ids []gpuserver.JobID) {
	_ = f.DB.View(ctx, func(tx *store.Tx) error {
		jobs, err := tx.UnfinishedJobs(v.Forge)
		for _, j := range jobs {
			if j.ID != v.MadeFor && j.ForgeState == gpuserver.ForgeQueued && serves(v, j) {
				ids = append(ids, j.ID)
			}
		}
		return err
	})
	slices.Sort(ids)
	return ids[:min(len(ids), askedSiblings)]
}

// fail takes a VM down that will not get its job, and sends the job back to the
// queue for another, or gives it up.
func (f *Fleet) fail(ctx context.Context, v gpuserver.VM, x failure) {
	if x.avoid {
		f.avoidEntry(v, x.why)
	}
	err := f.DB.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		v, err := tx.VM(v.ID)
		if err != nil || v.Assigned != 0 || ending(v.State) {
			return err
		}
		v.Reason = x.why
		if err := tx.MoveVM(&v, gpuserver.VMDraining, x.why); err != nil {
			return err
		}
		if x.image {
			if err := f.countImage(tx, v, x.why); err != nil {
				return err
			}
		}
		if x.noHost {
			if err := f.countNoHost(tx, v, x.why); err != nil {
				return err
			}
		}
		if x.also != nil {
			if err := x.also(tx, v); err != nil {
				return err
			}
		}
		return f.requeue(tx, v, x)
	})
	f.Log.Warn("VM failed", "vm", v.Name, "job", v.MadeFor, "why", x.why, "err", err)
}

func (f *Fleet) countImage(tx *store.Tx, v gpuserver.VM, why string) error {
	h, err := tx.CountImageFailure(v.Image, f.Limits.HoldImageAfter,
		fmt.Sprintf("%d VMs in a row of image %s ended without a job; the last: %s", f.Limits.HoldImageAfter, v.Image, why))
	if err == nil && h.Failures == f.Limits.HoldImageAfter {
		f.Log.Error("image held", "image", v.Image, "why", h.Reason)
		return tx.AddEvent(gpuserver.Event{Job: v.MadeFor, VM: v.ID, Kind: "image_held", Text: h.Reason})
	}
	return err
}

func (f *Fleet) requeue(tx *store.Tx, v gpuserver.VM, x failure) error {
	j, err := tx.Job(v.MadeFor)
	if err != nil || j.State != gpuserver.JobStarting || j.VM != v.ID {
		if gpuserver.KindOf(err) == gpuserver.KindNotFound {
			err = nil
		}
		return err
	}
	j.VM = 0
	class := x.class
	if class == "" {
		class = gpuserver.ReasonRetry
	}
	if x.counts {
		j.Tries++
	}
	if j.Tries > f.Limits.Retries {
		j.EndedAt = tx.Now
		j.Reason = gpuserver.Reason{
			Class: gpuserver.ReasonGaveUp, Text: fmt.Sprintf("%d VMs were tried and none could run it; the last: %s", j.Tries, x.why),
			Help: "ask the operator to look (gpuserver job explain), then re-run the job",
		}
		return tx.MoveJob(&j, gpuserver.JobFailed, x.why)
	}
	if x.counts {
		j.NextTryAt = tx.Now.Add(f.Limits.RetryAfter << min(j.Tries-1, 8))
	}
	j.Reason = gpuserver.Reason{Class: class, Text: x.why, Help: "another VM is made for it by itself"}
	return tx.MoveJob(&j, gpuserver.JobQueued, x.why)
}

// retire takes down a VM that nobody needs; its job, if it still waits for it,
// goes back to the queue uncounted.
func (f *Fleet) retire(ctx context.Context, v gpuserver.VM, why string) {
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		v, err := tx.VM(v.ID)
		if err != nil || v.Assigned != 0 { // the forge named its job meanwhile
			return err
		}
		v.Reason = why
		if err := tx.MoveVM(&v, gpuserver.VMDraining, why); err != nil {
			return err
		}
		return f.requeue(tx, v, failure{why: why})
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindConflict {
		f.Log.Error("VM cannot be retired", "vm", v.Name, "err", err)
	}
}
