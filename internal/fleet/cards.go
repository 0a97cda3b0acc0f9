package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/gate"
	"gpuserver/internal/health"
	"gpuserver/internal/pci"
	"gpuserver/internal/store"
)

// What happened to a card, as its history says.
const (
	gpuSeen        = "seen"
	gpuMoved       = "moved"
	gpuPassed      = "gate_passed"
	gpuStrike      = "strike"
	gpuRest        = "rest"
	gpuQuarantined = "quarantined"
	gpuCordoned    = "cordoned"
	gpuUncordoned  = "uncordoned"
	gpuTested      = "tested"
	gpuKept        = "kept"
)

// place is where a card is.
type place struct{ cloud, host, address string }

// looked is a card's state as its host saw it before a VM or after one.
type looked struct {
	at      time.Time
	reading pci.Reading
}

// readLimit is how long a host may take to read its cards: milliseconds, unless
// one of them hangs.
const readLimit = 20 * time.Second

// choosesCards reports whether a VM's cloud chooses its cards itself. One that is
// not in the configuration any more is not asked for anything.
func (f *Fleet) choosesCards(v gpuserver.VM) bool {
	drv, ok := f.clouds[v.Cloud]
	return ok && !drv.Capabilities().Cards
}

// addressesOf gives the addresses of a VM's cards, in the order in which they are
// attached; none where the cloud chooses.
func (f *Fleet) addressesOf(v gpuserver.VM) (addresses []string) {
	if f.choosesCards(v) {
		return nil
	}
	for _, c := range v.Claims {
		addresses = append(addresses, c.Cards...)
	}
	return slices.DeleteFunc(addresses, func(a string) bool { return a == "" }) // of a cloud that is not known any more
}

// cardsOf gives a VM's cards: in the order in which they are attached or, where
// the cloud chose them, those that its guest has told.
func (f *Fleet) cardsOf(tx *store.Tx, v gpuserver.VM) (cards []gpuserver.GPU, err error) {
	if f.choosesCards(v) {
		return tx.GPUsOfVM(v.ID)
	}
	for _, a := range f.addressesOf(v) {
		g, err := f.cardAt(tx, place{v.Cloud, v.Host, a}, f.Flavors[v.Flavor].GPUs.Model)
		if err != nil {
			return nil, err
		}
		cards = append(cards, g)
	}
	return cards, nil
}

// cardAt gives the card at a place, which gets its row when it is first seen.
func (f *Fleet) cardAt(tx *store.Tx, p place, model string) (gpuserver.GPU, error) {
	g, err := tx.GPUAt(p.cloud, p.host, p.address)
	if gpuserver.KindOf(err) != gpuserver.KindNotFound {
		return g, err
	}
	g = gpuserver.GPU{Cloud: p.cloud, Host: p.host, Address: p.address, Model: model}
	if err := tx.SaveGPU(&g); err != nil {
		return g, err
	}
	f.Log.Info("GPU seen for the first time", "gpu", g.ID, "cloud", p.cloud, "host", p.host, "address", p.address, "model", model)
	return g, tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, Kind: gpuSeen, Text: "a card of model " + model + " at " + p.address + " of " + p.cloud + "/" + p.host})
}

// refreshCards brings the cards' rows in line with what their hosts show, and
// takes those out that are dead. A card that a VM has is judged with the VM.
func (f *Fleet) refreshCards(ctx context.Context, c cloud.Driver, hosts []gpuserver.Host) {
	if !c.Capabilities().Cards {
		return
	}
	for _, h := range hosts {
		var addresses []string
		for _, s := range h.Slots {
			for _, card := range s.Cards {
				addresses = append(addresses, card.Address)
			}
		}
		if len(addresses) == 0 {
			continue
		}
		var held map[int]bool
		if err := f.DB.View(ctx, func(tx *store.Tx) (err error) { held, err = heldSlots(tx, c.Name(), h.Name); return err }); err != nil {
			return
		}
		readings, err := f.readCards(ctx, c, h.Name, addresses)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.Log.Warn("GPUs cannot be read", "cloud", c.Name(), "host", h.Name, "err", err)
		}
		err = f.DB.Update(ctx, func(tx *store.Tx) error { return f.noteCards(tx, c.Name(), h, readings, held) })
		if err != nil && ctx.Err() == nil {
			f.Log.Error("GPUs cannot be noted", "cloud", c.Name(), "host", h.Name, "err", err)
		}
	}
}

// readCards reads cards of a host, by address.
func (f *Fleet) readCards(ctx context.Context, c cloud.Driver, host string, addresses []string) (map[string]pci.Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	readings, err := c.Cards(ctx, host, addresses)
	if err != nil {
		return nil, err
	}
	by := map[string]pci.Reading{}
	for _, r := range readings {
		by[r.Address] = r
	}
	return by, nil
}

// heldSlots gives the groups of a host that VMs have.
func heldSlots(tx *store.Tx, cloudName, host string) (map[int]bool, error) {
	held := map[int]bool{}
	uses, err := tx.Usages()
	for _, u := range uses {
		for _, s := range u.Slots {
			if u.Cloud == cloudName && u.Host == host {
				held[s.Group] = true
			}
		}
	}
	return held, err
}

// noteCards commits what a look at a host told; held are the groups that VMs had
// before it: what is read of a card while it comes or goes with a VM means nothing.
func (f *Fleet) noteCards(tx *store.Tx, cloudName string, h gpuserver.Host, readings map[string]pci.Reading, held map[int]bool) error {
	now, err := heldSlots(tx, cloudName, h.Name)
	if err != nil {
		return err
	}
	for _, s := range h.Slots {
		for _, card := range s.Cards {
			g, err := f.cardAt(tx, place{cloudName, h.Name, card.Address}, card.Model)
			if err != nil {
				return err
			}
			r, known := readings[card.Address]
			if g, err = noteCard(tx, g, card.Model, r); err != nil {
				return err
			}
			if known && r.Present && r.Dead && g.State != gpuserver.GPUQuarantined && !held[s.Group] && !now[s.Group] {
				if _, err := f.strike(tx, g, gpuserver.VM{}, health.Host(pci.Reading{Address: r.Address, Present: true, Dead: true}, health.Before{})); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// noteSeen is how old the time at which a card was last seen gets before it is
// written anew.
const noteSeen = time.Hour

// noteCard writes what a reading tells of a card beside its health; the zero
// reading tells nothing.
func noteCard(tx *store.Tx, g gpuserver.GPU, model string, r pci.Reading) (gpuserver.GPU, error) {
	was := g
	g.Model, g.LinkWidth = model, health.Width(g.LinkWidth, r)
	if r.VendorID != "" && r.DeviceID != "" {
		g.VendorID, g.DeviceID = r.VendorID, r.DeviceID
	}
	if g == was && tx.Now.Sub(g.LastSeen) < noteSeen {
		return g, nil
	}
	g.LastSeen = tx.Now
	return g, tx.SaveGPU(&g)
}

// strike holds evidence of one moment against a card, with what follows, and
// gives the card as it is then. Without evidence nothing happens.
func (f *Fleet) strike(tx *store.Tx, g gpuserver.GPU, v gpuserver.VM, seen []health.Evidence) (gpuserver.GPU, error) {
	struck, o := f.Health.Strike(g, seen, tx.Now)
	if o.Points == 0 {
		return g, nil
	}
	if err := tx.SaveGPU(&struck); err != nil {
		return g, err
	}
	for _, e := range seen {
		if f.Struck != nil {
			f.Struck(g.ID, e.Kind)
		}
	}
	f.Log.Warn("GPU struck", "gpu", g.ID, "address", g.Address, "vm", v.Name, "points", o.Points, "strikes", struck.Strikes, "state", struck.State, "why", o.Text)
	e := gpuserver.GPUEvent{GPU: g.ID, VM: v.ID, Job: jobOfVM(v), Kind: gpuStrike, Text: o.Text, Points: o.Points}
	if err := tx.AddGPUEvent(e); err != nil {
		return struck, err
	}
	e.Points = 0
	switch {
	case o.Quarantined:
		e.Kind = gpuQuarantined
	case struck.State != gpuserver.GPUQuarantined:
		e.Kind, e.Text = gpuRest, "until "+struck.RestUntil.Format(time.DateTime)+" UTC"
	default:
		return struck, nil
	}
	return struck, tx.AddGPUEvent(e)
}

// cardName is how people are told of a card.
func cardName(g gpuserver.GPU) string {
	if g.Address == "" {
		return fmt.Sprintf("GPU of %s (card %d)", g.Cloud, g.ID)
	}
	return fmt.Sprintf("GPU at %s of %s/%s (card %d)", g.Address, g.Cloud, g.Host, g.ID)
}

func cardNames(cards []gpuserver.GPU) string {
	var names []string
	for _, g := range cards {
		names = append(names, cardName(g))
	}
	return strings.Join(names, " and the ")
}

// takeOut gives hosts with the slots out of service that have a card which no VM
// may have now, and the time at which the first of these comes back by itself.
func takeOut(hosts []gpuserver.Host, cards []gpuserver.GPU, now time.Time) (_ []gpuserver.Host, back time.Time) {
	why := map[place]string{}
	for _, g := range cards {
		text, until := health.Out(g, now)
		if text == "" || g.Address == "" {
			continue
		}
		why[place{g.Cloud, g.Host, g.Address}] = text
		if !until.IsZero() && (back.IsZero() || until.Before(back)) {
			back = until
		}
	}
	if len(why) == 0 {
		return hosts, back
	}
	hosts = slices.Clone(hosts)
	for i, h := range hosts {
		hosts[i].Slots = slices.Clone(h.Slots)
		for j := range hosts[i].Slots {
			s := &hosts[i].Slots[j]
			if s.Out != "" {
				continue
			}
			var texts []string
			for _, c := range s.Cards {
				if t := why[place{h.Cloud, h.Name, c.Address}]; t != "" {
					texts = append(texts, t)
				}
			}
			s.Out, s.Testable = strings.Join(texts, "; "), len(texts) > 0
		}
	}
	return hosts, back
}

// expectation is what a VM's guest checks its cards against; nil: it has none.
func (f *Fleet) expectation(ctx context.Context, v gpuserver.VM) (*gate.Expectation, error) {
	if len(v.Claims) == 0 {
		return nil, nil
	}
	var attached []health.Attached
	err := f.DB.View(ctx, func(tx *store.Tx) (err error) {
		attached, err = f.attached(tx, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	e := &gate.Expectation{Timeout: f.gateTimeout(v)}
	for _, a := range attached {
		if a.VendorID == "" || a.DeviceID == "" {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "the PCI numbers of model %s are not known, so its cards cannot be checked; name them under gpu_models", f.Flavors[v.Flavor].GPUs.Model)
		}
		e.Cards = append(e.Cards, gate.ExpectedCard{VendorID: a.VendorID, DeviceID: a.DeviceID, Host: a.Host})
	}
	return e, nil
}

// attached gives what a VM was given. Where the cloud chooses, cards are numbered
// in place of their addresses, so that the guest can tell them apart.
func (f *Fleet) attached(tx *store.Tx, v gpuserver.VM) (all []health.Attached, err error) {
	gpus := f.Flavors[v.Flavor].GPUs
	vendor, device := f.pciIDs(gpus.Model)
	if f.choosesCards(v) {
		for i := range gpus.Count {
			all = append(all, health.Attached{Host: fmt.Sprint(i + 1), VendorID: vendor, DeviceID: device})
		}
		return all, nil
	}
	for _, a := range f.addressesOf(v) {
		g, err := tx.GPUAt(v.Cloud, v.Host, a)
		if err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
			return nil, err
		}
		if g.VendorID == "" || g.DeviceID == "" {
			g.VendorID, g.DeviceID = vendor, device
		}
		all = append(all, health.Attached{Host: a, VendorID: g.VendorID, DeviceID: g.DeviceID})
	}
	return all, nil
}

// pciIDs gives the numbers of a model, as far as the configuration tells.
func (f *Fleet) pciIDs(model string) (vendor, device string) {
	var ids []string
	for id, name := range f.Models {
		if name == model {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return "", ""
	}
	vendor, device, _ = strings.Cut(slices.Min(ids), ":")
	return vendor, device
}
