package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"gpuserver"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// tellRegistering tells the job that waits for v why its runner is not
// registered yet; nil: it is.
func tellRegistering(tx *store.Tx, v gpuserver.VM, cause error) error {
	j, err := tx.Job(v.MadeFor)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound || err == nil && !awaits(j, v) {
		return nil
	}
	if err != nil {
		return err
	}
	r := startingReason(v)
	if cause != nil {
		r = gpuserver.Reason{Class: gpuserver.ReasonUnreachable, Text: "its runner cannot be registered yet: " + gpuserver.PublicText(cause), Help: "it is tried again by itself"}
		if gpuserver.KindOf(cause) == gpuserver.KindLimited {
			r.Class = gpuserver.ReasonForgeBudget
		}
	}
	if j.Reason == r {
		return nil
	}
	j.Reason = r
	return tx.SaveJob(&j)
}

// register makes the runner's registration under the name that is committed.
func (f *Fleet) register(ctx context.Context, v gpuserver.VM, job gpuserver.Job) time.Duration {
	if !awaits(job, v) {
		f.dropUnneeded(ctx, v)
		return 0
	}
	if v.Forge == LocalForge {
		return f.registered(ctx, v, forge.Registration{})
	}
	fg, ok := f.Forges[v.Forge]
	if !ok {
		f.fail(ctx, v, failure{why: fmt.Sprintf("the forge %q is not in the configuration", v.Forge)})
		return 0
	}
	scope := f.scope(fg, job)
	var reg forge.Registration
	crashpoint.At("register.before")
	err := f.call(ctx, "forge "+v.Forge, func() (err error) {
		reg, err = fg.RegisterRunner(ctx, forge.RunnerSpec{Scope: scope, Name: v.Runner.Name, Labels: v.Runner.Labels})
		return err
	})
	crashpoint.At("register.effect")
	switch gpuserver.KindOf(err) {
	case "":
		return f.registered(ctx, v, reg)
	case gpuserver.KindConflict, gpuserver.KindUnavailable, gpuserver.KindInternal:
		if ctx.Err() != nil {
			return 0 // interrupted: the row still names the registration, the next step finds it
		}
		return f.reregister(ctx, v, fg, scope, err)
	case gpuserver.KindLimited:
		return f.later(ctx, v, err)
	}
	f.fail(ctx, v, failure{why: "the runner cannot be registered: " + gpuserver.PublicText(err), counts: true})
	return 0
}

// awaits reports whether j still waits for v.
func awaits(j gpuserver.Job, v gpuserver.VM) bool {
	return j.State == gpuserver.JobStarting && j.VM == v.ID
}

// dropUnneeded takes a VM down whose job does not wait for it, unless it was
// given to another job meanwhile.
func (f *Fleet) dropUnneeded(ctx context.Context, v gpuserver.VM) {
	err := f.change(ctx, &v, func(tx *store.Tx) error {
		job, err := tx.Job(v.MadeFor)
		if err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound || err == nil && awaits(job, v) {
			return err
		}
		v.Reason = "its job no longer needs it"
		return tx.MoveVM(&v, gpuserver.VMDraining, v.Reason)
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindConflict {
		f.Log.Error("VM state cannot be committed", "vm", v.Name, "err", err)
	}
}

func (f *Fleet) scope(fg Forge, job gpuserver.Job) forge.Scope {
	if fg.Scope == nil {
		return forge.Scope{Repo: repoOf(job)}
	}
	return fg.Scope(repoOf(job))
}

func repoOf(job gpuserver.Job) forge.Repo {
	return forge.Repo{Name: job.Repo, ID: job.RepoID, InstallationID: job.InstallationID}
}

// registered commits that the create call comes next.
func (f *Fleet) registered(ctx context.Context, v gpuserver.VM, reg forge.Registration) time.Duration {
	s, ok := f.secret(v.ID)
	if !ok {
		s.token = rand.Text()
	}
	s.jit = reg.JITConfig
	f.keepSecret(v.ID, s)
	_ = f.move(ctx, &v, gpuserver.VMCreating, "", func(v *gpuserver.VM) {
		v.TokenHash = tokenHash(s.token)
		if reg.RunnerID != 0 {
			v.Runner.ID, v.Runner.State = reg.RunnerID, gpuserver.RunnerRegistered
		}
	}, func(tx *store.Tx) error {
		if err := tellRegistering(tx, v, nil); err != nil {
			return err
		}
		return tx.AddPhase(v.MadeFor, v.ID, gpuserver.PhaseCreateCalled, tx.Now)
	})
	crashpoint.At("register.commit")
	return 0
}

// reregister follows a name that is taken or a call whose outcome is unknown:
// find by name, delete, and go on as the next attempt.
func (f *Fleet) reregister(ctx context.Context, v gpuserver.VM, fg Forge, scope forge.Scope, cause error) time.Duration {
	if f.giveUpRegistering(v, cause) {
		f.fail(ctx, v, failure{why: "the runner cannot be registered: " + gpuserver.PublicText(cause), counts: true})
		return 0
	}
	if err := f.dropRunner(ctx, fg, scope, v.Runner); err != nil {
		return f.later(ctx, v, err)
	}
	f.repaired("runner_reregistered")
	if gpuserver.KindOf(cause) == gpuserver.KindConflict && v.Tries == 0 {
		_ = f.change(ctx, &v, func(tx *store.Tx) error {
			nextAttempt(&v)
			v.Tries++
			return tx.SaveVM(&v)
		})
		return time.Millisecond
	}
	return f.laterWith(ctx, v, cause, nextAttempt)
}

// registerFor is how long a forge may be away before a VM that waits for its
// registration is given up: an outage is not its job's fault.
const registerFor = 2 * time.Hour

// giveUpRegistering reports whether a registration that failed because of
// cause is not tried again.
func (f *Fleet) giveUpRegistering(v gpuserver.VM, cause error) bool {
	switch gpuserver.KindOf(cause) {
	case gpuserver.KindUnavailable:
		return time.Since(v.StateAt) > registerFor
	case gpuserver.KindConflict: // each attempt has a name of its own
		return v.Runner.Attempt > f.maxTries()
	}
	return v.Tries >= f.maxTries()
}

// nextAttempt gives a VM's runner the name of its next registration.
func nextAttempt(v *gpuserver.VM) {
	v.Runner.Attempt++
	v.Runner.Name, v.Runner.ID, v.Runner.State = runnerName(v.Name, v.Runner.Attempt), 0, gpuserver.RunnerNamed
}

// maxTries is after how many repeats of one step we give the VM up.
func (f *Fleet) maxTries() int { return 6 }

// dropRunner deletes a registration by its id, or by its name where the id
// never reached us. None there is success.
func (f *Fleet) dropRunner(ctx context.Context, fg Forge, scope forge.Scope, r gpuserver.Runner) error {
	id := r.ID
	if id == 0 {
		found, err := fg.FindRunner(ctx, scope, r.Name)
		if gpuserver.KindOf(err) == gpuserver.KindNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		id = found.ID
	}
	err := fg.DeleteRunner(ctx, scope, id)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		return nil
	}
	return err
}
