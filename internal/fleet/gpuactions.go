package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/store"
)

// CordonGPU takes a card out of service, and its group with it; the VM that has
// it runs to its end. The card's reason and history say who asked (by), after the
// reason that was given, if any. KindConflict: it is out already.
func (f *Fleet) CordonGPU(ctx context.Context, id gpuserver.GPUID, reason, by string) error {
	if reason == "" {
		reason = "by " + by
	} else {
		reason += " (by " + by + ")"
	}
	return f.DB.Update(ctx, func(tx *store.Tx) error {
		g, err := tx.GPU(id)
		if err != nil {
			return err
		}
		if g.State != gpuserver.GPUInService {
			return gpuserver.Errorf(gpuserver.KindConflict, "GPU %d is %s already: %s", id, g.State, g.Reason)
		}
		g.State, g.StateAt, g.Reason = gpuserver.GPUCordoned, tx.Now, reason
		if err := tx.SaveGPU(&g); err != nil {
			return err
		}
		f.Log.Info("GPU cordoned", "gpu", id, "address", g.Address, "why", reason, "by", by)
		return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: id, Kind: gpuCordoned, Text: reason})
	})
}

// UncordonGPU puts a card back into service, whatever took it out, and forgets
// its strikes; its history stays, and says who asked (by) and what the card was
// before. A VM that was kept for it, and for no other card, is deleted.
// KindConflict: it is in service, and neither rests nor has strikes.
func (f *Fleet) UncordonGPU(ctx context.Context, id gpuserver.GPUID, by string) error {
	return f.DB.Update(ctx, func(tx *store.Tx) error {
		g, err := tx.GPU(id)
		if err != nil {
			return err
		}
		if g.State == gpuserver.GPUInService && g.Strikes == 0 && !g.RestUntil.After(tx.Now) {
			return gpuserver.Errorf(gpuserver.KindConflict, "GPU %d is in service already", id)
		}
		text := fmt.Sprintf("by %s; it %s", by, was(g, tx.Now))
		g.State, g.StateAt, g.Reason = gpuserver.GPUInService, tx.Now, ""
		g.Strikes, g.StruckAt, g.RestUntil = 0, time.Time{}, time.Time{}
		if err := tx.SaveGPU(&g); err != nil {
			return err
		}
		f.Log.Info("GPU back in service", "gpu", id, "address", g.Address, "by", by)
		if err := tx.AddGPUEvent(gpuserver.GPUEvent{GPU: id, Kind: gpuUncordoned, Text: text}); err != nil {
			return err
		}
		vms, err := tx.VMsOfGPU(id, 100)
		for _, v := range vms {
			if v.State != gpuserver.VMKept && v.State != gpuserver.VMKeeping {
				continue
			}
			if _, err := f.giveBack(tx, &v); err != nil {
				return err
			}
		}
		return err
	})
}

// was says, as a part of a sentence, how a card stood before it was put back.
func was(g gpuserver.GPU, now time.Time) string {
	switch {
	case g.State != gpuserver.GPUInService:
		return fmt.Sprintf("was %s: %s", g.State, g.Reason)
	case g.RestUntil.After(now):
		return "rested: " + g.Reason
	}
	return "had strikes: " + g.Reason
}

// TestGPU makes a local job that runs `true` on a card, also one that is out of
// service: the checks before and after it say how the card is. It gives the job.
// The job's actor is who asked (by), and the card's history names both.
// KindInvalid: the card's cloud chooses the cards, or no flavor and image have
// one card of its model there.
func (f *Fleet) TestGPU(ctx context.Context, id gpuserver.GPUID, by string) (job gpuserver.JobID, err error) {
	var g gpuserver.GPU
	if err := f.DB.View(ctx, func(tx *store.Tx) (err error) { g, err = tx.GPU(id); return err }); err != nil {
		return 0, err
	}
	drv, ok := f.clouds[g.Cloud]
	switch {
	case !ok:
		return 0, gpuserver.Errorf(gpuserver.KindInvalid, "GPU %d cannot be tested: its cloud %q is not in the configuration", id, g.Cloud)
	case !drv.Capabilities().Cards:
		return 0, gpuserver.Errorf(gpuserver.KindInvalid, "GPU %d cannot be tested: the cloud %s chooses the cards itself", id, g.Cloud)
	case g.Address == "":
		return 0, gpuserver.Errorf(gpuserver.KindInvalid, "GPU %d cannot be tested: it is not known where it is; another card is in its place", id)
	}
	places := slices.DeleteFunc(slices.Clone(f.Places), func(e gpuserver.Entry) bool {
		return e.Cloud != g.Cloud || f.Flavors[e.Flavor].GPUs != gpuserver.GPUs{Model: g.Model, Count: 1}
	})
	if len(places) == 0 {
		return 0, gpuserver.Errorf(gpuserver.KindInvalid, "GPU %d cannot be tested: cloud %s has no flavor with one card of model %s, or no image", id, g.Cloud, g.Model)
	}
	for i := range places {
		places[i].Pin = gpuserver.Place{Host: g.Host, Address: g.Address}
	}
	run := Run{Command: gpuserver.Command{Args: []string{"true"}}, Name: fmt.Sprintf("test of GPU %d", id)}
	job, err = f.StartRun(ctx, run, places, by)
	if err != nil {
		return 0, err
	}
	return job, f.DB.Update(ctx, func(tx *store.Tx) error {
		return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: id, Job: job, Kind: gpuTested, Text: fmt.Sprintf("job %d tests it, asked for by %s", job, by)})
	})
}
