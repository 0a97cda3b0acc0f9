package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
)

var _ guest.Service = (*Fleet)(nil)

func newToken() string { return rand.Text() }

// Authenticate gives the VM that an agent's token speaks for.
func (f *Fleet) Authenticate(ctx context.Context, token string) (id gpuserver.VMID, err error) {
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		v, err := tx.VMByToken(tokenHash(token))
		if gpuserver.KindOf(err) == gpuserver.KindNotFound || err == nil && !v.State.Alive() {
			return gpuserver.Errorf(gpuserver.KindRefused, "this token speaks for no VM")
		}
		id = v.ID
		return err
	})
	return id, err
}

// persistBeats is how often a heartbeat that says nothing new is written.
const persistBeats = time.Minute

// Heartbeat takes a report. Only what is new is written: a phase, the end of
// the runner, a verdict; peaks and the time of the last report once a minute.
func (f *Fleet) Heartbeat(ctx context.Context, id gpuserver.VMID, h guest.Heartbeat) (guest.Orders, error) {
	var v gpuserver.VM
	err := f.DB.View(ctx, func(tx *store.Tx) (err error) { v, err = tx.VM(id); return err })
	if err != nil {
		return guest.Orders{}, err
	}
	f.mu.Lock()
	last := f.beats[id]
	news := h.Phase != v.Guest.Phase || h.RunnerExit != nil || h.OOMKills > v.Guest.OOMKills || h.DiskFull != v.Guest.DiskFull || time.Since(last) > persistBeats
	if news {
		f.beats[id] = time.Now()
	}
	f.mu.Unlock()
	if news {
		if err := f.report(ctx, id, h); err != nil {
			return guest.Orders{}, err
		}
	}
	if !v.InterruptedAt.IsZero() {
		return guest.Orders{Interrupt: true, Reason: v.Reason}, nil
	}
	return guest.Orders{}, nil
}

// report commits what a heartbeat tells.
func (f *Fleet) report(ctx context.Context, id gpuserver.VMID, h guest.Heartbeat) error {
	var after failure
	var v gpuserver.VM
	step := "boot" // the one that the report ends
	if h.Phase == phaseRunner {
		step = "ready"
	}
	crashpoint.At(step + ".before")
	err := f.DB.Update(ctx, func(tx *store.Tx) (err error) {
		defer crashpoint.At(step + ".effect")
		after = failure{}
		if v, err = tx.VM(id); err != nil || !v.State.Alive() {
			return err
		}
		before := v.Guest
		note(&v, h, tx.Now)
		if err := f.phases(tx, v, before, h); err != nil {
			return err
		}
		if h.Gate != nil && h.Phase == phaseGate && awaitsGate(v) {
			return f.gateBefore(tx, &v, *h.Gate)
		}
		if h.Gate != nil && h.Phase == phaseExited && len(v.Claims) > 0 && v.Guest.Gate != gateFailed && v.Guest.GateAfter == "" {
			if err := f.gateAfter(tx, &v, *h.Gate); err != nil {
				return err
			}
		}
		switch {
		case h.Phase == phaseRunner && awaitsGate(v):
			after = failure{why: "the VM's agent started the runner and reported no check of its GPUs; is the image older than this server?", counts: true, image: true}
			return tx.SaveVM(&v)
		case h.RunnerExit != nil && before.RunnerExit == nil:
			after, err = f.runnerEnded(tx, &v, h)
			return err
		case h.Phase == phaseRunner && (v.State == gpuserver.VMBooting || v.State == gpuserver.VMCreating): // it may be quicker than the create call's answer
			if v.Forge == LocalForge {
				return f.localStarted(tx, &v)
			}
			return tx.MoveVM(&v, gpuserver.VMReady, "its runner is up")
		}
		return tx.SaveVM(&v)
	})
	crashpoint.At(step + ".commit")
	if err == nil && after.why != "" {
		f.endedIdle(ctx, v, after)
	}
	return err
}

// The phases that an agent reports.
const (
	phaseAgent   = "agent"
	phaseGate    = "gate"
	phaseRunner  = "runner"
	phaseStarted = "job_started"
	phaseExited  = "exited"
)

// note takes over what a report says; it is bounded by the handler.
func note(v *gpuserver.VM, h guest.Heartbeat, now time.Time) {
	g := &v.Guest
	g.Phase = h.Phase
	if h.Phase == phaseStarted { // the agent may have decided that alone, while we were away
		g.JobStarted = true
	}
	if g.BootAt.IsZero() && h.UptimeSeconds > 0 {
		g.BootAt = now.Add(-time.Duration(h.UptimeSeconds * float64(time.Second)))
	}
	g.MemPeakMiB, g.DiskPeakMiB = max(g.MemPeakMiB, h.MemPeakMiB), max(g.DiskPeakMiB, h.DiskPeakMiB)
	g.OOMKills, g.DiskFull = max(g.OOMKills, h.OOMKills), g.DiskFull || h.DiskFull
	if h.RunnerVersion != "" {
		g.RunnerVersion = h.RunnerVersion
	}
	if h.AgentVersion != "" {
		g.AgentVersion = h.AgentVersion
	}
	if h.Kernel != "" {
		g.Kernel = h.Kernel
	}
	if h.RunnerExit != nil {
		g.RunnerExit = h.RunnerExit
	}
	v.HeartbeatAt = now
}

// phases records when the guest's kernel, agent and runner started. A phase
// that was skipped (its report was lost) takes the time of the next one.
func (f *Fleet) phases(tx *store.Tx, v gpuserver.VM, before gpuserver.GuestReport, h guest.Heartbeat) error {
	if before.Phase == h.Phase {
		return nil
	}
	kernel := v.Guest.BootAt
	if kernel.IsZero() || kernel.Before(v.CreatedAt) {
		kernel = tx.Now
	}
	reached := tx.Now.Add(-time.Duration(h.AgoSeconds * float64(time.Second)))
	if reached.Before(kernel) {
		reached = kernel
	}
	add := func(phase string, at time.Time) error { return tx.AddPhase(v.MadeFor, v.ID, phase, at) }
	if err := add(gpuserver.PhaseKernel, kernel); err != nil {
		return err
	}
	if err := add(gpuserver.PhaseAgent, reached); err != nil {
		return err
	}
	switch h.Phase {
	case phaseRunner, phaseStarted, phaseExited:
		return add(gpuserver.PhaseRunner, reached)
	}
	return nil
}

// localStarted moves a `gpuserver run` job to running with its command.
func (f *Fleet) localStarted(tx *store.Tx, v *gpuserver.VM) error {
	j, err := tx.Job(v.MadeFor)
	if err != nil {
		return err
	}
	j.StartedAt, j.ForgeState, j.Reason = tx.Now, gpuserver.ForgeInProgress, gpuserver.Reason{}
	if err := tx.MoveJob(&j, gpuserver.JobRunning, ""); err != nil {
		return err
	}
	limit := f.timeLimit(v.Flavor)
	if j.Command != nil && j.Command.Timeout > 0 {
		limit = j.Command.Timeout
	}
	v.Assigned, v.JobDeadline = j.ID, tx.Now.Add(limit)
	if err := tx.AddPhase(j.ID, v.ID, gpuserver.PhaseJobStarted, tx.Now); err != nil {
		return err
	}
	return tx.MoveVM(v, gpuserver.VMBusy, "its command runs")
}

// runnerEnded follows the end of a VM's runner or command. The returned
// failure, if it says why, is to be carried out after the commit.
func (f *Fleet) runnerEnded(tx *store.Tx, v *gpuserver.VM, h guest.Heartbeat) (failure, error) {
	why := fmt.Sprintf("the runner ended with status %d", *h.RunnerExit)
	switch h.Verdict {
	case "memory":
		why = fmt.Sprintf("out of memory: the job needed more than its flavor %s gives (peak %d MiB)", v.Flavor, v.Guest.MemPeakMiB)
	case "disk":
		why = fmt.Sprintf("disk full: the job needed more than its flavor %s gives", v.Flavor)
	case "timeout":
		why = "time limit reached"
	}
	if h.Verdict != "" {
		if err := tx.AddEvent(gpuserver.Event{Job: jobOfVM(*v), VM: v.ID, Kind: "verdict", Text: why}); err != nil {
			return failure{}, err
		}
	}
	if v.Forge == LocalForge {
		return failure{}, f.localEnded(tx, v, *h.RunnerExit, h.Verdict, why)
	}
	if v.Assigned == 0 && !v.Guest.JobStarted && slices.Contains([]gpuserver.VMState{gpuserver.VMCreating, gpuserver.VMBooting, gpuserver.VMReady}, v.State) {
		if err := tx.SaveVM(v); err != nil {
			return failure{}, err
		}
		return failure{why: why + " and had no job", counts: true, image: true}, nil
	}
	// It had a job: the forge will say how it ended, and that takes the VM down.
	// If its events are lost the reconciler asks, and the cloud tells of the end.
	return failure{}, tx.SaveVM(v)
}

func jobOfVM(v gpuserver.VM) gpuserver.JobID {
	if v.Assigned != 0 {
		return v.Assigned
	}
	return v.MadeFor
}

// localEnded ends a `gpuserver run` job with its command's status.
func (f *Fleet) localEnded(tx *store.Tx, v *gpuserver.VM, status int, verdict, why string) error {
	conclusion := "failure"
	switch {
	case verdict == "timeout":
		conclusion = "timed_out"
	case !v.InterruptedAt.IsZero():
		conclusion, why = "timed_out", v.Reason
	case status == 0:
		conclusion = "success"
	}
	if v.State == gpuserver.VMBooting || v.State == gpuserver.VMCreating { // the report of its start was lost
		if err := f.localStarted(tx, v); err != nil {
			return err
		}
	}
	v.Runner.State = gpuserver.RunnerDeleted
	v.Reason = why
	if err := f.endLocal(tx, *v, conclusion, why); err != nil {
		return err
	}
	if err := tx.MoveVM(v, gpuserver.VMDeleting, why); err != nil {
		return err
	}
	return f.deleteCalled(tx, *v)
}

// endLocal ends the job of a `gpuserver run` VM, if v is one.
func (f *Fleet) endLocal(tx *store.Tx, v gpuserver.VM, conclusion, why string) error {
	if v.Forge != LocalForge {
		return nil
	}
	j, err := tx.Job(v.MadeFor)
	if err != nil || j.State.Over() {
		return err
	}
	j.Conclusion, j.EndedAt, j.ForgeState = conclusion, tx.Now, gpuserver.ForgeCompleted
	j.Reason = gpuserver.Reason{Text: why}
	if err := tx.MoveJob(&j, gpuserver.JobDone, why); err != nil {
		return err
	}
	return tx.AddPhase(j.ID, v.ID, gpuserver.PhaseJobEnded, tx.Now)
}

// JobStarted answers the runner's job-started hook: may this run use this VM?
// A JIT registration binds no job, so this is where access is enforced a
// second time.
func (f *Fleet) JobStarted(ctx context.Context, id gpuserver.VMID, js guest.JobStarted) (guest.Verdict, error) {
	verdict, known, err := f.knownVerdict(ctx, id, js)
	if err != nil {
		return verdict, err
	}
	if !known {
		var v gpuserver.VM
		if err := f.DB.View(ctx, func(tx *store.Tx) (err error) { v, err = tx.VM(id); return err }); err != nil {
			return verdict, err
		}
		verdict = guest.Verdict{Text: fmt.Sprintf("%s run %d is not known to this server", js.Repo, js.RunID)}
		if f.Admit != nil {
			if verdict, err = f.Admit(ctx, v, js); err != nil {
				return verdict, err
			}
		}
	}
	f.Log.Info("job-started hook", "vm", id, "repo", js.Repo, "run", js.RunID, "attempt", js.RunAttempt, "allowed", verdict.Allowed, "text", verdict.Text)
	return verdict, f.DB.Update(ctx, func(tx *store.Tx) error {
		v, err := tx.VM(id)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%s run %d attempt %d: allowed", js.Repo, js.RunID, js.RunAttempt)
		if !verdict.Allowed {
			text = fmt.Sprintf("%s run %d attempt %d: refused: %s", js.Repo, js.RunID, js.RunAttempt, verdict.Text)
		}
		v.Guest.JobStarted = true
		if err := tx.SaveVM(&v); err != nil {
			return err
		}
		if !verdict.Allowed {
			if err := noteRefusal(tx, v, js, verdict.Text); err != nil {
				return err
			}
		}
		return tx.AddEvent(gpuserver.Event{Job: jobOfVM(v), VM: v.ID, Kind: "hook", Text: text})
	})
}

// noteRefusal tells a job that took our runner before anything was decided why
// it was failed.
func noteRefusal(tx *store.Tx, v gpuserver.VM, js guest.JobStarted, why string) error {
	jobs, err := tx.JobsOfRun(v.Forge, js.Repo, js.RunID, js.RunAttempt)
	for _, j := range jobs {
		has := j.RunnerName == v.Runner.Name || j.State == gpuserver.JobReceived && sameLabels(j.Labels, v.Runner.Labels)
		if !has || j.Reason.Class != "" || len(j.Entries) > 0 {
			continue
		}
		j.Reason = gpuserver.Reason{Class: gpuserver.ReasonNoAccess, Text: why}
		if err := tx.SaveJob(&j); err != nil {
			return err
		}
	}
	return err
}

// knownVerdict answers from what was decided about the run's jobs.
func (f *Fleet) knownVerdict(ctx context.Context, id gpuserver.VMID, js guest.JobStarted) (verdict guest.Verdict, known bool, err error) {
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		v, err := tx.VM(id)
		if err != nil {
			return err
		}
		jobs, err := tx.JobsOfRun(v.Forge, js.Repo, js.RunID, js.RunAttempt)
		for _, j := range jobs {
			if len(j.Entries) > 0 && j.Resource == v.Resource {
				verdict, known = guest.Verdict{Allowed: true}, true
				return err
			}
			if j.Reason.Class == gpuserver.ReasonNoAccess && sameLabels(j.Labels, v.Runner.Labels) {
				verdict, known = guest.Verdict{Text: j.Reason.Text}, true
			}
		}
		return err
	})
	return verdict, known, err
}

// Output takes a piece of what a command writes.
func (f *Fleet) Output(ctx context.Context, id gpuserver.VMID, stream string, offset int64, data []byte) error {
	var v gpuserver.VM
	if err := f.DB.View(ctx, func(tx *store.Tx) (err error) { v, err = tx.VM(id); return err }); err != nil {
		return err
	}
	if v.Forge != LocalForge || !v.State.Alive() {
		return gpuserver.Errorf(gpuserver.KindRefused, "VM %s runs no command", v.Name)
	}
	return f.out.write(v.MadeFor, stream, offset, data)
}
