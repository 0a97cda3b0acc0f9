package fleet

import (
	"fmt"
	"slices"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/health"
	"gpuserver/internal/store"
)

// A card is its UUID, which only its driver in a guest tells. A guest may lie, so
// whatever it says of a card's identity never puts a card back into service that
// was out, and never touches a card that another VM has.

// learned is what a report's cards turned out to be.
type learned struct {
	cards []gpuserver.GPU
	moved []bool // this row is not the one that was thought to be there
	lie   string // what cannot be true; ""
}

// learn gives the cards that a report speaks of, with their identity noted. cards
// are those attached; where the cloud chooses they are found by their UUID.
func (f *Fleet) learn(tx *store.Tx, v gpuserver.VM, cards []gpuserver.GPU, attached []health.Attached, r gate.Report) (l learned, err error) {
	chosen := f.choosesCards(v)
	for i, a := range attached {
		told := tellOf(r.Cards, a, i, len(attached))
		var g gpuserver.GPU
		was := gpuserver.GPUID(0)
		if chosen {
			g, err = f.chosenCard(tx, v, i, cards, told)
		} else {
			was = cards[i].ID
			// The row that is at the place now: the card before may have moved it.
			if g, err = f.cardAt(tx, place{v.Cloud, v.Host, a.Host}, cards[i].Model); err == nil {
				g, err = f.identify(tx, v, g, told, &l)
			}
		}
		if err == nil {
			err = tx.AddVMGPU(v.ID, g.ID)
		}
		if err != nil {
			return l, err
		}
		l.cards, l.moved = append(l.cards, g), append(l.moved, was != 0 && g.ID != was)
	}
	return l, nil
}

// tellOf gives what a report says of the card attached as number i of n.
func tellOf(cards []gate.Card, a health.Attached, i, n int) gate.Card {
	if j := slices.IndexFunc(cards, func(c gate.Card) bool { return c.Host == a.Host }); j >= 0 {
		return cards[j]
	}
	if len(cards) == n && cards[i].Host == "" {
		return cards[i]
	}
	return gate.Card{}
}

// identify notes a card's UUID and serial number. One that we know from another
// place has moved here, with its history.
func (f *Fleet) identify(tx *store.Tx, v gpuserver.VM, g gpuserver.GPU, told gate.Card, l *learned) (gpuserver.GPU, error) {
	if told.UUID == "" || told.UUID == g.UUID {
		return g, nil
	}
	known, err := tx.GPUByUUID(told.UUID)
	switch {
	case gpuserver.KindOf(err) == gpuserver.KindNotFound && g.UUID == "":
		g.UUID, g.Serial = told.UUID, told.Serial
		if err := tx.SaveGPU(&g); err != nil {
			return g, err
		}
		return g, tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, VM: v.ID, Job: v.MadeFor, Kind: gpuSeen, Text: "it is " + told.UUID + serialWords(told)})
	case gpuserver.KindOf(err) == gpuserver.KindNotFound:
		return f.replaced(tx, v, g, told)
	case err != nil:
		return g, err
	}
	elsewhere, err := hasAnother(tx, known, v)
	if err != nil {
		return g, err
	}
	if elsewhere != "" {
		l.lie = fmt.Sprintf("in the VM: it is said to be %s, which VM %s has", told.UUID, elsewhere)
		return g, nil
	}
	return f.movedHere(tx, v, g, known)
}

func serialWords(c gate.Card) string {
	if c.Serial == "" {
		return ""
	}
	return ", serial number " + c.Serial
}

// hasAnother names a VM alive, not v, that has a card.
func hasAnother(tx *store.Tx, g gpuserver.GPU, v gpuserver.VM) (string, error) {
	vms, err := tx.VMsOfGPU(g.ID, 10)
	for _, o := range vms {
		if o.ID != v.ID && o.State.Alive() {
			return o.Name, err
		}
	}
	return "", err
}

// replaced follows a card that we never met, at the place of one that we know.
// What the place is out for it stays out for, until an operator says otherwise.
func (f *Fleet) replaced(tx *store.Tx, v gpuserver.VM, old gpuserver.GPU, told gate.Card) (gpuserver.GPU, error) {
	g := old
	g.ID, g.UUID, g.Serial, g.FirstSeen, g.LastSeen = 0, told.UUID, told.Serial, tx.Now, tx.Now
	if err := f.unplace(tx, old, told.UUID); err != nil {
		return g, err
	}
	if err := tx.SaveGPU(&g); err != nil {
		return g, err
	}
	if err := tx.DropVMGPU(v.ID, old.ID); err != nil {
		return g, err
	}
	return g, tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, VM: v.ID, Job: v.MadeFor, Kind: gpuSeen, Text: "it is " + told.UUID + serialWords(told) + ", in the place of card " + fmt.Sprint(old.ID)})
}

// unplace notes that a card is no longer where it was.
func (f *Fleet) unplace(tx *store.Tx, g gpuserver.GPU, by string) error {
	at := g.Address
	g.Address = ""
	if err := tx.SaveGPU(&g); err != nil {
		return err
	}
	return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, Kind: gpuMoved, Text: "it is no longer at " + at + ": " + by + " is there"})
}

// movedHere follows a card that we know from another place. Its history comes
// with it. It is out for whatever either it or this place was out for, and so is
// whatever is now in the place that it left.
func (f *Fleet) movedHere(tx *store.Tx, v gpuserver.VM, here, known gpuserver.GPU) (gpuserver.GPU, error) {
	left := known
	known.Cloud, known.Host, known.Address = here.Cloud, here.Host, here.Address
	if worse(here, known) {
		known.State, known.Reason, known.StateAt = here.State, here.Reason, here.StateAt
	}
	if here.Strikes > known.Strikes {
		known.Strikes, known.StruckAt = here.Strikes, here.StruckAt
	}
	if here.RestUntil.After(known.RestUntil) {
		known.RestUntil = here.RestUntil
	}
	known.LastSeen = tx.Now
	var err error
	if here.UUID == "" { // only the place was known: it is the same card
		err = tx.MergeGPU(here.ID, known.ID)
	} else if err = f.unplace(tx, here, known.UUID); err == nil {
		err = tx.DropVMGPU(v.ID, here.ID)
	}
	if err == nil {
		err = tx.SaveGPU(&known)
	}
	if err == nil {
		err = stayOut(tx, left)
	}
	if err != nil {
		return known, err
	}
	from := "a place that is not known"
	if left.Address != "" {
		from = left.Address + " of " + left.Cloud + "/" + left.Host
	}
	f.Log.Info("GPU moved", "gpu", known.ID, "uuid", known.UUID, "from", from, "to", known.Address)
	return known, tx.AddGPUEvent(gpuserver.GPUEvent{GPU: known.ID, VM: v.ID, Job: v.MadeFor, Kind: gpuMoved, Text: "from " + from + " to " + known.Address})
}

// stayOut leaves, at the place that a card is said to have left, a row that is
// out for the same as the card was: who says so may lie.
func stayOut(tx *store.Tx, left gpuserver.GPU) error {
	if left.Address == "" || left.State == gpuserver.GPUInService && left.Strikes == 0 {
		return nil
	}
	id := left.ID
	left.ID, left.UUID, left.Serial, left.FirstSeen = 0, "", "", tx.Now
	if err := tx.SaveGPU(&left); err != nil {
		return err
	}
	return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: left.ID, Kind: gpuSeen, Text: fmt.Sprintf("whatever is in the place that card %d left; it is treated like that one", id)})
}

// worse reports whether a's state is the worse one.
func worse(a, b gpuserver.GPU) bool {
	rank := func(g gpuserver.GPU) int {
		return slices.Index([]gpuserver.GPUState{gpuserver.GPUInService, gpuserver.GPUCordoned, gpuserver.GPUQuarantined}, g.State)
	}
	return rank(a) > rank(b)
}

// chosenCard gives the row of a card that the cloud chose: by its UUID, or a row
// of its own where the guest could not tell one, or told one that cannot be: of a
// card of another cloud, or of one that another VM has.
func (f *Fleet) chosenCard(tx *store.Tx, v gpuserver.VM, i int, noted []gpuserver.GPU, told gate.Card) (g gpuserver.GPU, err error) {
	if told.UUID != "" {
		g, err = tx.GPUByUUID(told.UUID)
		switch {
		case gpuserver.KindOf(err) == gpuserver.KindNotFound:
		case err != nil:
			return g, err
		default:
			elsewhere, err := hasAnother(tx, g, v)
			if err != nil {
				return g, err
			}
			if g.Cloud == v.Cloud && g.Address == "" && elsewhere == "" {
				return g, nil
			}
			told.UUID, told.Serial = "", ""
		}
	}
	if told.UUID == "" && i < len(noted) { // a report before this one told of it
		return noted[i], nil
	}
	g = gpuserver.GPU{
		Cloud: v.Cloud, Host: v.Host, Model: f.Flavors[v.Flavor].GPUs.Model, VendorID: told.VendorID, DeviceID: told.DeviceID,
		UUID: told.UUID, Serial: told.Serial,
	}
	if err := tx.SaveGPU(&g); err != nil {
		return g, err
	}
	text := "a card of model " + g.Model + " that " + v.Cloud + " chose for " + v.Name + serialWords(told)
	return g, tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, VM: v.ID, Job: v.MadeFor, Kind: gpuSeen, Text: text})
}
