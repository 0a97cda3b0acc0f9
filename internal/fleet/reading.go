package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/gate"
	"gpuserver/internal/health"
	"gpuserver/internal/pci"
	"gpuserver/internal/store"
)

// judged is what a host's reading says of a VM's cards, by address.
type judged struct {
	readings map[string]pci.Reading
	seen     map[string][]health.Evidence
	at       time.Time
}

func (j judged) bad() bool { return len(j.seen) > 0 }

// judge reads a VM's cards from outside and compares with the last time. since
// is when lines of the kernel's log begin to count if there was none, as after a
// restart. Of a reading that did not end in time it is not known which card hung;
// any other failure tells nothing of them and is returned.
func (f *Fleet) judge(ctx context.Context, drv cloud.Driver, v gpuserver.VM, since time.Time) (j judged, err error) {
	addresses := f.addressesOf(v)
	j = judged{seen: map[string][]health.Evidence{}, at: time.Now().UTC()}
	j.readings, err = f.readCards(ctx, drv, v.Host, addresses)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		for _, a := range addresses {
			j.seen[a] = []health.Evidence{{Kind: gate.KindTimeout, Text: fmt.Sprintf("its host could not read it within %s", readLimit), Doubtful: len(addresses) > 1}}
		}
		return j, nil
	}
	if err != nil {
		return j, err
	}
	widths := map[string]int{}
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		cards, err := f.knownCards(tx, v)
		for _, g := range cards {
			widths[g.Address] = g.LinkWidth
		}
		return err
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for a, r := range j.readings {
		before := health.Before{At: since, Width: widths[a]}
		if last, ok := f.looked[place{v.Cloud, v.Host, a}]; ok {
			before.At, before.Reading = last.at, &last.reading
		}
		if es := health.Host(r, before); len(es) > 0 {
			j.seen[a] = es
		}
	}
	return j, err
}

// knownCards gives those of a VM's cards that have a row.
func (f *Fleet) knownCards(tx *store.Tx, v gpuserver.VM) (cards []gpuserver.GPU, err error) {
	for _, a := range f.addressesOf(v) {
		g, err := tx.GPUAt(v.Cloud, v.Host, a)
		switch gpuserver.KindOf(err) {
		case "":
			cards = append(cards, g)
		case gpuserver.KindNotFound:
		default:
			return nil, err
		}
	}
	return cards, nil
}

// remember keeps a reading for the next comparison. A line of the log that came
// while the card was read has been judged, and does not count again.
func (f *Fleet) remember(v gpuserver.VM, j judged) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a, r := range j.readings {
		at := j.at
		for _, l := range r.Log {
			if !l.At.Before(at) {
				at = l.At.Add(1)
			}
		}
		f.looked[place{v.Cloud, v.Host, a}] = looked{at, r}
	}
}

// hold commits what was judged: what the readings tell, and the strikes.
func (f *Fleet) hold(tx *store.Tx, v gpuserver.VM, j judged) (struck []gpuserver.GPU, err error) {
	cards, err := f.cardsOf(tx, v)
	if err != nil {
		return nil, err
	}
	for _, g := range cards {
		if g, err = noteCard(tx, g, g.Model, j.readings[g.Address]); err != nil {
			return nil, err
		}
		if es := j.seen[g.Address]; len(es) > 0 {
			if g, err = f.strike(tx, g, v, es); err != nil {
				return nil, err
			}
			struck = append(struck, g)
		}
	}
	return struck, nil
}

// cardsReady looks at a VM's cards before it is created; ok says that the create
// call may follow. A card that is not well costs its job nothing.
func (f *Fleet) cardsReady(ctx context.Context, v gpuserver.VM, drv cloud.Driver) (pause time.Duration, ok bool) {
	if len(f.addressesOf(v)) == 0 {
		return 0, true
	}
	j, err := f.judge(ctx, drv, v, time.Time{})
	if err != nil {
		if ctx.Err() == nil && v.Tries >= f.maxTries() {
			f.fail(ctx, v, failure{why: "the GPUs of " + v.Cloud + " cannot be read: " + gpuserver.PublicText(err), avoid: true, class: gpuserver.ReasonUnreachable})
			return 0, false
		}
		return f.later(ctx, v, err), false
	}
	err = f.change(ctx, &v, func(tx *store.Tx) error {
		struck, err := f.hold(tx, v, j)
		if err != nil || len(struck) == 0 {
			return err
		}
		first := j.seen[struck[0].Address]
		return f.failCards(tx, &v, struck, "is not well: "+first[0].Text, false)
	})
	if j.bad() {
		f.Log.Warn("GPUs are not well before a VM", "vm", v.Name, "why", v.Reason, "err", err)
	}
	if err != nil {
		if gpuserver.KindOf(err) == gpuserver.KindConflict {
			return 0, false // it was moved meanwhile
		}
		f.Log.Error("the state of GPUs cannot be committed", "vm", v.Name, "err", err)
		return time.Second, false
	}
	f.remember(v, j)
	return 0, !j.bad()
}

// cardsAfter looks at the cards of a VM that is gone, before its lease is
// released. Nothing is known where it was never created, or where they cannot be
// read now.
func (f *Fleet) cardsAfter(ctx context.Context, v gpuserver.VM, drv cloud.Driver) (j judged) {
	if len(f.addressesOf(v)) == 0 || v.CloudID == "" {
		return j
	}
	j, err := f.judge(ctx, drv, v, v.CreatedAt)
	if err != nil {
		f.Log.Warn("GPUs cannot be read after a VM", "vm", v.Name, "err", err)
		return judged{}
	}
	return j
}

// resetLimit is how long it may take to delete a VM with cards. libvirt resets
// them then; a reset that hangs is the card's end.
const resetLimit = 2 * time.Minute

// watchReset takes the cards of a VM out whose deletion takes too long; the
// deletion goes on. The returned function ends the watch.
func (f *Fleet) watchReset(ctx context.Context, v gpuserver.VM) (end func()) {
	if len(f.addressesOf(v)) == 0 {
		return func() {}
	}
	var running sync.WaitGroup
	running.Add(1)
	timer := time.AfterFunc(resetLimit, func() {
		defer running.Done()
		f.resetHangs(ctx, v)
	})
	return func() {
		if timer.Stop() {
			running.Done()
		}
		running.Wait()
	}
}

func (f *Fleet) resetHangs(ctx context.Context, v gpuserver.VM) {
	err := f.DB.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		cards, err := f.cardsOf(tx, v)
		if err != nil {
			return err
		}
		for _, g := range cards {
			if g.State == gpuserver.GPUQuarantined { // for the same, a try before
				continue
			}
			text := fmt.Sprintf("it could not be taken back from %s within %s; its reset hangs", v.Name, resetLimit)
			if _, err := f.strike(tx, g, v, []health.Evidence{{Kind: health.KindReset, Text: text}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		f.Log.Error("GPUs whose reset hangs cannot be taken out", "vm", v.Name, "err", err)
	}
}
