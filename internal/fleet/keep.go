package fleet

import (
	"context"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/health"
	"gpuserver/internal/store"
)

// Where the cloud chooses the cards, a bad one that is given back is the next
// one that it gives. So the VM that has it is kept, off, until the card may be
// used again: after its rest, or once an operator puts it back.

// keeps reports whether a VM whose runner is gone is kept and not deleted.
func (f *Fleet) keeps(v gpuserver.VM) bool {
	drv, ok := f.clouds[v.Cloud]
	return ok && v.Guest.Gate == gateFailed && !drv.Capabilities().Cards && drv.Capabilities().Keep
}

// ending reports whether a VM in a state is being taken down, or kept, or is gone.
func ending(s gpuserver.VMState) bool {
	switch s {
	case gpuserver.VMDraining, gpuserver.VMDeleting, gpuserver.VMKeeping, gpuserver.VMKept:
		return true
	}
	return !s.Alive()
}

// keep stops a VM and leaves it there.
func (f *Fleet) keep(ctx context.Context, v gpuserver.VM) time.Duration {
	drv, ok := f.clouds[v.Cloud]
	if !ok {
		return f.later(ctx, v, gpuserver.Errorf(gpuserver.KindInvalid, "the cloud %q is not in the configuration; put it back until its VMs are deleted", v.Cloud))
	}
	crashpoint.At("keep.before")
	kctx, done := f.leavable(ctx, drv)
	err := f.reserve(kctx, &v, drv)
	switch {
	case err != nil:
	case v.Reserved != "": // its cards are held without it
		err = drv.Delete(kctx, v.Name)
	default:
		err = drv.Keep(kctx, v.Name)
	}
	left := kctx.Err() != nil
	done()
	crashpoint.At("keep.effect")
	if err != nil && left {
		return 0 // the next start goes on with it
	}
	switch gpuserver.KindOf(err) {
	case "":
	case gpuserver.KindNotFound, gpuserver.KindRefused, gpuserver.KindInvalid:
		f.Log.Error("VM cannot be kept", "vm", v.Name, "err", err)
		_ = f.move(ctx, &v, gpuserver.VMDeleting, v.Reason, nil, func(tx *store.Tx) error { return f.deleteCalled(tx, v) })
		return 0
	default:
		return f.later(ctx, v, err)
	}
	text := v.Name + " is kept, so that " + v.Cloud + " gives the card to no other VM"
	if v.Reserved != "" {
		text = v.Cloud + " holds the card back, so that no other VM gets it; " + v.Name + " is deleted"
	}
	_ = f.move(ctx, &v, gpuserver.VMKept, v.Reason, nil, func(tx *store.Tx) error {
		cards, err := tx.GPUsOfVM(v.ID)
		for _, g := range cards {
			if err := tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, VM: v.ID, Job: v.MadeFor, Kind: gpuKept, Text: text}); err != nil {
				return err
			}
		}
		return err
	})
	crashpoint.At("keep.commit")
	return 0
}

// reserve has a cloud that can hold back the cards of a VM, and commits what it calls
// them before the VM is deleted. Where it cannot, the VM stays as it is.
func (f *Fleet) reserve(ctx context.Context, v *gpuserver.VM, drv cloud.Driver) error {
	r, ok := drv.(cloud.Reserver)
	if !ok || v.Reserved != "" {
		return nil
	}
	held, err := r.Reserve(ctx, v.Name)
	switch gpuserver.KindOf(err) {
	case "":
	case gpuserver.KindInvalid, gpuserver.KindRefused, gpuserver.KindNotFound:
		f.Log.Info("cards cannot be held back by their cloud; the VM is kept", "vm", v.Name, "err", err)
		return nil
	default:
		return err
	}
	return f.change(ctx, v, func(tx *store.Tx) error {
		v.Reserved = held
		return tx.SaveVM(v)
	})
}

// letGo lets the cards be given away again that a cloud held back for a VM which is
// deleted.
func (f *Fleet) letGo(ctx context.Context, v gpuserver.VM, drv cloud.Driver) error {
	if v.Reserved == "" {
		return nil
	}
	r, ok := drv.(cloud.Reserver)
	if !ok {
		f.Log.Error("cards stay held back: their cloud cannot let them go any more", "vm", v.Name, "cloud", v.Cloud, "held", v.Reserved)
		return nil
	}
	err := r.Release(ctx, v.Reserved)
	switch gpuserver.KindOf(err) {
	case gpuserver.KindInvalid, gpuserver.KindRefused:
		f.Log.Error("cards stay held back; an administrator has to let them go", "vm", v.Name, "cloud", v.Cloud, "held", v.Reserved, "err", err)
		return nil
	}
	return err
}

// awaitCards deletes a kept VM once all of its cards may be used again.
func (f *Fleet) awaitCards(ctx context.Context, v gpuserver.VM) (pause time.Duration) {
	err := f.change(ctx, &v, func(tx *store.Tx) (err error) {
		pause, err = f.giveBack(tx, &v)
		return err
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindConflict {
		f.Log.Error("kept VM cannot be looked at", "vm", v.Name, "err", err)
		return time.Second
	}
	return pause
}

// giveBack moves a kept VM on to its deletion, if its cards may be used again;
// else it gives the time after which to look again, 0 if somebody has to act.
func (f *Fleet) giveBack(tx *store.Tx, v *gpuserver.VM) (time.Duration, error) {
	cards, err := tx.GPUsOfVM(v.ID)
	if err != nil {
		return 0, err
	}
	var pause time.Duration
	for _, g := range cards {
		why, until := health.Out(g, tx.Now)
		if why != "" && until.IsZero() {
			return 0, nil
		}
		if why != "" {
			pause = max(pause, until.Sub(tx.Now))
		}
	}
	if pause > 0 {
		return pause, nil
	}
	v.Reason = "the " + cardNames(cards) + " may be used again"
	if err := tx.MoveVM(v, gpuserver.VMDeleting, v.Reason); err != nil {
		return 0, err
	}
	return 0, f.deleteCalled(tx, *v)
}
