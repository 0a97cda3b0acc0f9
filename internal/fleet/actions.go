package fleet

import (
	"cmp"
	"context"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/store"
)

// CancelJob ends a job on our side and takes its VM down. The forge is not
// told: a job that is queued there stays queued until somebody cancels it.
func (f *Fleet) CancelJob(ctx context.Context, id gpuserver.JobID, by string) error {
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		if j.State.Over() {
			return gpuserver.Errorf(gpuserver.KindConflict, "job %d is over already (%s)", id, j.State)
		}
		j.Conclusion, j.EndedAt = "cancelled", tx.Now
		j.Reason = gpuserver.Reason{Text: "cancelled by " + by, Help: "gpuserver job retry, or re-run it on the forge"}
		if j.Forge != LocalForge && j.State != gpuserver.JobRunning {
			// The forge may still queue it: failed, so that it is not planned again.
			return tx.MoveJob(&j, gpuserver.JobFailed, "cancelled by "+by)
		}
		return tx.MoveJob(&j, gpuserver.JobDone, "cancelled by "+by)
	})
	if err == nil {
		f.out.wake(id)
	}
	return err
}

// RetryJob decides a job anew.
func (f *Fleet) RetryJob(ctx context.Context, id gpuserver.JobID, by string) error {
	return f.DB.Update(ctx, func(tx *store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		if j.Forge == LocalForge || j.ForgeState == gpuserver.ForgeCompleted || j.State == gpuserver.JobDone || j.State == gpuserver.JobRunning {
			return gpuserver.Errorf(gpuserver.KindConflict, "job %d cannot be tried again: it is %s; re-run it on the forge", id, j.State)
		}
		if j.State == gpuserver.JobWaiting {
			return gpuserver.Errorf(gpuserver.KindConflict, "job %d cannot be tried: the forge holds it back, by a deployment rule, say", id)
		}
		return Redecide(tx, &j, "decided again for "+by)
	})
}

// Redecide sends a job back to the decision, whatever was decided before.
func Redecide(tx *store.Tx, j *gpuserver.Job, why string) error {
	j.NextTryAt, j.Tries, j.EndedAt, j.Conclusion, j.Reason = time.Time{}, 0, time.Time{}, "", gpuserver.Reason{}
	if j.State == gpuserver.JobReceived || j.State == gpuserver.JobStarting {
		return tx.SaveJob(j)
	}
	return tx.MoveJob(j, gpuserver.JobReceived, why)
}

// DeleteVM takes a VM down whatever it does.
func (f *Fleet) DeleteVM(ctx context.Context, id gpuserver.VMID, by string) error {
	why := "deleted by " + by
	return f.DB.Update(ctx, func(tx *store.Tx) error {
		v, err := tx.VM(id)
		if err != nil {
			return err
		}
		v.Reason = why
		switch v.State {
		case gpuserver.VMGone:
			return gpuserver.Errorf(gpuserver.KindConflict, "VM %s is gone already", v.Name)
		case gpuserver.VMDeleting, gpuserver.VMDraining:
			return nil
		case gpuserver.VMKeeping, gpuserver.VMKept:
			if err := tx.MoveVM(&v, gpuserver.VMDeleting, why); err != nil {
				return err
			}
			return f.deleteCalled(tx, v)
		case gpuserver.VMBusy:
			if err := f.endLocal(tx, v, "cancelled", why); err != nil {
				return err
			}
			if err := tx.MoveVM(&v, gpuserver.VMDeleting, why); err != nil {
				return err
			}
			return f.deleteCalled(tx, v)
		}
		if err := tx.MoveVM(&v, gpuserver.VMDraining, why); err != nil {
			return err
		}
		return f.requeue(tx, v, failure{why: why})
	})
}

// ReleaseImage ends the hold of an image.
func (f *Fleet) ReleaseImage(ctx context.Context, name, by string) error {
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		images, err := tx.Images()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(images, func(h store.HeldImage) bool { return h.Name == name && !h.HeldAt.IsZero() }) {
			return gpuserver.Errorf(gpuserver.KindNotFound, "image %s is not held", name)
		}
		if err := tx.ClearImage(name); err != nil {
			return err
		}
		return tx.AddEvent(gpuserver.Event{Kind: "image_released", Text: name + " released by " + by})
	})
	if err == nil {
		f.wakePlanner()
	}
	return err
}

// Console gives a VM's serial console.
func (f *Fleet) Console(ctx context.Context, id gpuserver.VMID, from, limit int64) (io.ReadCloser, error) {
	v, _, err := f.load(ctx, id)
	if err != nil {
		return nil, err
	}
	drv, ok := f.clouds[v.Cloud]
	if !ok {
		return nil, gpuserver.Errorf(gpuserver.KindNotFound, "the cloud %q is not in the configuration", v.Cloud)
	}
	return drv.Console(ctx, v.Name, from, limit)
}

// Run is a command to be run in a fresh VM.
type Run struct {
	Command gpuserver.Command
	Flavor  string // empty: the smallest without cards
	Image   string // empty: the first by name
	Name    string
}

// StartRun stores a local job; it then goes the way of every other.
func (f *Fleet) StartRun(ctx context.Context, r Run, places []gpuserver.Entry, by string) (id gpuserver.JobID, err error) {
	if len(r.Command.Args) == 0 {
		return 0, gpuserver.Errorf(gpuserver.KindInvalid, "there is no command to run")
	}
	all := places
	if places = r.choose(places, f.Flavors); len(places) == 0 {
		return 0, noPlace(r, all)
	}
	err = f.DB.Update(ctx, func(tx *store.Tx) error {
		now := tx.Now
		j := gpuserver.Job{
			Forge: LocalForge, ForgeID: mathrand.Int64(), Repo: "local", Name: cmp.Or(r.Name, r.Command.Args[0]), Actor: by,
			ForgeState: gpuserver.ForgeQueued, State: gpuserver.JobReceived, QueuedAt: now, DecidedAt: now, Labels: []string{},
			Entries: places, Command: &r.Command,
		}
		if err := tx.InsertJob(&j); err != nil {
			return err
		}
		id = j.ID
		for _, p := range []string{gpuserver.PhaseDelivered, gpuserver.PhaseStored, gpuserver.PhaseDecided} {
			if err := tx.AddPhase(id, 0, p, now); err != nil {
				return err
			}
		}
		return tx.MoveJob(&j, gpuserver.JobQueued, "asked for by "+by)
	})
	return id, err
}

// choose gives the places where a command may run, the smallest flavor first.
// Cards are scarce: whoever wants one names the flavor.
func (r Run) choose(places []gpuserver.Entry, flavors map[string]gpuserver.Flavor) []gpuserver.Entry {
	places = slices.DeleteFunc(slices.Clone(places), func(e gpuserver.Entry) bool {
		return r.Flavor != "" && e.Flavor != r.Flavor || r.Image != "" && e.Image != r.Image
	})
	without := slices.DeleteFunc(slices.Clone(places), func(e gpuserver.Entry) bool { return flavors[e.Flavor].GPUs.Count > 0 })
	if r.Flavor == "" && len(without) > 0 {
		places = without
	}
	slices.SortStableFunc(places, func(a, b gpuserver.Entry) int {
		x, y := flavors[a.Flavor], flavors[b.Flavor]
		return cmp.Or(cmp.Compare(x.MemoryMiB, y.MemoryMiB), cmp.Compare(x.VCPUs, y.VCPUs))
	})
	return places
}

// noPlace says what there is instead of a flavor or image that nothing has.
func noPlace(r Run, places []gpuserver.Entry) error {
	var flavors, images []string
	for _, e := range places {
		flavors, images = append(flavors, e.Flavor), append(images, e.Image)
	}
	names := func(all []string) string {
		slices.Sort(all)
		return strings.Join(slices.Compact(all), ", ")
	}
	switch {
	case len(places) == 0:
		return gpuserver.Errorf(gpuserver.KindInvalid, "no command can be run: no cloud has a flavor and an image")
	case r.Flavor != "" && !slices.Contains(flavors, r.Flavor):
		return gpuserver.Errorf(gpuserver.KindInvalid, "there is no flavor %q; there is %s", r.Flavor, names(flavors))
	case r.Image != "" && !slices.Contains(images, r.Image):
		return gpuserver.Errorf(gpuserver.KindInvalid, "there is no image %q; there is %s", r.Image, names(images))
	}
	return gpuserver.Errorf(gpuserver.KindInvalid, "no cloud has both flavor %q and image %q", r.Flavor, r.Image)
}

// ReadOutput gives what a local job wrote, waiting for some if there is none yet.
func (f *Fleet) ReadOutput(ctx context.Context, id gpuserver.JobID, stream string, from int64, wait time.Duration) (data []byte, done bool, err error) {
	return f.out.await(ctx, id, stream, from, wait, func() (over bool, err error) {
		err = f.DB.View(ctx, func(tx *store.Tx) error {
			j, err := tx.Job(id)
			over = j.State.Over()
			return err
		})
		return over, err
	})
}

// PruneOutputs deletes the output of jobs that ended longer ago than keep.
func (f *Fleet) PruneOutputs(keep time.Duration) { f.out.prune(keep) }

// Hosts gives the hosts of all clouds as last read.
func (f *Fleet) Hosts() (hosts []gpuserver.Host) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.Clouds {
		hosts = append(hosts, f.hosts[c.Name()]...)
	}
	return hosts
}

// CloudState says whether a cloud can be used: why it is down (the zero Reason
// if it is up), whether its room is known, and since when.
func (f *Fleet) CloudState(name string) (down gpuserver.Reason, known bool, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down[name], f.hosts[name] != nil, f.since[name]
}
