package sched

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

// noSuchCards is why a flavor's cards are on no host of a cloud, not even on an
// empty one.
func noSuchCards(c *place, f gpuserver.Flavor) *gpuserver.Reason {
	most := 0
	for _, h := range c.hosts {
		most = max(most, h.count(f.GPUs.Model, func(*slot) bool { return true }))
	}
	has := fmt.Sprintf("no host has more than %d", most)
	if most == 0 {
		has = "no host has a card of that model"
	}
	return &gpuserver.Reason{
		Class: gpuserver.ReasonNoPlace,
		Text:  fmt.Sprintf("cannot run on cloud %s: flavor %s needs %s, and %s", c.name, f.Name, cards(f.GPUs), has),
		Help:  "Choose another flavor, or see with gpuserver host inspect why a host's cards cannot be used.",
	}
}

// noSuchCard is why the card that a job is pinned to is nowhere.
func noSuchCard(c *place, n need) *gpuserver.Reason {
	return &gpuserver.Reason{
		Class: gpuserver.ReasonNoPlace,
		Text:  fmt.Sprintf("cannot run on cloud %s: host %s has no card at %s any more", c.name, n.pin.Host, n.pin.Address),
		Help:  "See with gpuserver gpu list which cards there are.",
	}
}

// pinTaken is why a job waits for the card that it is pinned to.
func pinTaken(c *place, h *host, n need) gpuserver.Reason {
	r := gpuserver.Reason{
		Class: gpuserver.ReasonCapacity, Text: fmt.Sprintf("waits for the card at %s on cloud %s%s: ", n.pin.Address, c.name, onHost(c, h)),
		Help: "It starts when that card's group is free.",
	}
	for _, s := range h.slots {
		switch {
		case !n.pinned(s):
		case s.taken != nil:
			r.Text += fmt.Sprintf("group %d is held by %s", s.Group, holder(s.taken))
		case s.kept && c.head != nil:
			r.Text += fmt.Sprintf("group %d is kept for job %d", s.Group, c.head.ID)
		default:
			r.Text += fmt.Sprintf("group %d is out of service: %s", s.Group, s.Out)
		}
	}
	return r
}

// count counts a host's cards of a model in slots that may be had.
func (h *host) count(model string, may func(*slot) bool) (n int) {
	for _, s := range h.slots {
		if may(s) {
			n += len(s.cards(model))
		}
	}
	return n
}

// shortOfCards gives the host that has all of a need but its slots; nil if no
// host has.
func (c *place) shortOfCards(n need) *host {
	if n.gpus.Count == 0 {
		return nil
	}
	for _, h := range c.hosts {
		if h.couldHold(n) && h.room().holds(n.amount) {
			return h
		}
	}
	return nil
}

// unheld reports whether no VM has a slot, be it kept or not.
func (s *slot) unheld() bool { return s.taken == nil && s.Out == "" }

// noCards is why a job waits for slots on host h.
func (p *Planner) noCards(c *place, h *host, n need) gpuserver.Reason {
	if n.pin != (gpuserver.Place{}) {
		return pinTaken(c, h, n)
	}
	what := fmt.Sprintf("waits for %s on cloud %s%s: ", cards(n.gpus), c.name, onHost(c, h))
	if chosen, unused := h.choose(n.gpus, (*slot).free); chosen != nil {
		if unused > 0 && !n.waste {
			return gpuserver.Reason{
				Class: gpuserver.ReasonBehind,
				Text:  what + fmt.Sprintf("what is free (%s) has more cards than it needs, and a job that needs them all waits", groups(chosen)),
				Help:  fmt.Sprintf("It starts when a smaller group is free, and gets the next group of any size once it has waited %d minutes.", int(UnfairAfter.Minutes())),
			}
		}
		return gpuserver.Reason{
			Class: gpuserver.ReasonCapacity,
			Text:  what + fmt.Sprintf("they are free in different groups only (%s), and one group has as many", groups(chosen)),
			Help:  fmt.Sprintf("It starts when they are free together, and takes separate ones once it has waited %d minutes.", int(SplitAfter.Minutes())),
		}
	}
	if chosen, _ := h.choose(n.gpus, (*slot).unheld); chosen != nil && c.head != nil {
		return gpuserver.Reason{
			Class: gpuserver.ReasonBehind,
			Text:  what + fmt.Sprintf("%s is kept for job %d, which has waited %d min", groups(chosen), c.head.ID, int(p.now.Sub(queuedAt(c.head)).Minutes())),
			Help:  "Nothing needs to be done: that job starts when it has all that it needs.",
		}
	}
	return gpuserver.Reason{
		Class: gpuserver.ReasonCapacity,
		Text: what + fmt.Sprintf("%d of %d cards are free; %s", h.count(n.gpus.Model, (*slot).unheld),
			h.count(n.gpus.Model, func(*slot) bool { return true }), holders(h, n.gpus.Model)),
		Help: "It starts when enough of them are free.",
	}
}

// toldHolders is how many holders a sentence names.
const toldHolders = 4

// holders says who has the slots of a model, the first to end first, and which
// are out of service.
func holders(h *host, model string) string {
	var busy []*slot
	var told []string
	out := map[string]int{} // cards that only count, by why nobody gets them
	for _, s := range h.slots {
		switch {
		case len(s.cards(model)) == 0:
		case s.Out != "" && counted(s.Slot):
			out[s.Out]++
		case s.Out != "":
			told = append(told, fmt.Sprintf("group %d is out of service: %s", s.Group, s.Out))
		case s.taken != nil:
			busy = append(busy, s)
		}
	}
	for _, why := range slices.Sorted(maps.Keys(out)) {
		told = append(told, fmt.Sprintf("%d cannot be had: %s", out[why], why))
	}
	slices.SortStableFunc(busy, func(a, b *slot) int {
		if a.taken.Until.IsZero() != b.taken.Until.IsZero() {
			return cmp.Compare(len(b.taken.VM), len(a.taken.VM)) // one that is not known last
		}
		return a.taken.Until.Compare(b.taken.Until)
	})
	for i, s := range busy {
		if i == toldHolders {
			told = append(told, fmt.Sprintf("%d more are held", len(busy)-i))
			break
		}
		name := fmt.Sprintf("group %d", s.Group)
		if counted(s.Slot) {
			name = "one"
		}
		told = append(told, name+" is held by "+holder(s.taken))
	}
	return strings.Join(told, "; ")
}

func holder(t *TakenSlot) string {
	switch {
	case t.VM == "":
		return "a VM that is just being made"
	case t.Until.IsZero():
		return "VM " + t.VM
	}
	return fmt.Sprintf("VM %s until %s at the latest", t.VM, t.Until.UTC().Format(time.TimeOnly+" MST"))
}

func groups(slots []*slot) string {
	if len(slots) > 0 && counted(slots[0].Slot) { // their numbers mean nothing
		if len(slots) == 1 {
			return "1 card"
		}
		return fmt.Sprintf("%d cards", len(slots))
	}
	var names []string
	for _, s := range slots {
		names = append(names, fmt.Sprint(s.Group))
	}
	if len(names) == 1 {
		return "group " + names[0]
	}
	return "groups " + join(names)
}

// cards says a request: "2 cards of model tesla-v100".
func cards(g gpuserver.GPUs) string {
	if g.Count == 1 {
		return "1 card of model " + g.Model
	}
	return fmt.Sprintf("%d cards of model %s", g.Count, g.Model)
}
