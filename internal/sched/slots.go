package sched

import (
	"cmp"
	"slices"
	"time"

	"gpuserver"
)

// need is what a VM takes of a host: amounts, and whole slots.
type need struct {
	amount
	gpus gpuserver.GPUs
	pin  gpuserver.Place // the one card that will do; the zero value: any
	manners
}

// manners is what a job may do with slots, by its age and by who else waits.
type manners struct {
	waste bool // may leave cards of a slot unused
	split bool // may take more slots than an empty host would need
}

// slot is a slot while a plan is made.
type slot struct {
	gpuserver.Slot
	taken *TakenSlot // by a lease, or in this plan; nil: free
	kept  bool       // for the cloud's head
}

// free reports whether a job for which nothing is kept may have it.
func (s *slot) free() bool { return s.taken == nil && !s.kept && s.Out == "" }

// may reports whether a need may have a slot. One that is pinned to a card may
// have that card's, also if it is out for the card's sake, but not if its host
// says that it is out.
func (n need) may(s *slot) bool {
	if n.pin == (gpuserver.Place{}) {
		return s.free()
	}
	return n.pinned(s) && s.taken == nil && !s.kept && (s.Out == "" || s.Testable)
}

// pinned reports whether a need's card is in a slot, and of the model that the
// flavor has: in its place there may be another one by now.
func (n need) pinned(s *slot) bool {
	return slices.ContainsFunc(s.Cards, func(c gpuserver.Card) bool {
		return c.Address == n.pin.Address && c.Model == n.gpus.Model
	})
}

// any reports whether an empty host would give a need the slot.
func (n need) any(s *slot) bool { return n.pin == (gpuserver.Place{}) || n.pinned(s) }

// cards gives the slot's cards of a model.
func (s *slot) cards(model string) (addresses []string) {
	for _, c := range s.Cards {
		if c.Model == model {
			addresses = append(addresses, c.Address)
		}
	}
	return addresses
}

// slots gives a host's slots, with those that leases take.
func slotsOf(h gpuserver.Host, used []TakenSlot, flavors map[string]gpuserver.Flavor) []*slot {
	slots, by := Hold(h.Slots, used, func(flavor string) string { return flavors[flavor].GPUs.Model })
	all := make([]*slot, len(slots))
	for i, s := range slots {
		all[i] = &slot{Slot: s, taken: by[i]}
	}
	slices.SortFunc(all, func(a, b *slot) int { return cmp.Compare(a.Group, b.Group) })
	return all
}

// choose gives the slots, among those that may be had, that hold count cards of
// a model: with the fewest cards left unused, then the fewest slots. nil: there
// are not enough. The largest that is filled whole comes first; what is left
// over goes into the smallest that holds it.
func (h *host) choose(g gpuserver.GPUs, may func(*slot) bool) (chosen []*slot, unused int) {
	type candidate struct {
		*slot
		size int
	}
	var all []candidate
	for _, s := range h.slots {
		if n := len(s.cards(g.Model)); n > 0 && may(s) {
			all = append(all, candidate{s, n})
		}
	}
	load := h.nodeLoad()
	slices.SortStableFunc(all, func(a, b candidate) int { // larger first; then the idler node; then by number
		return cmp.Or(cmp.Compare(b.size, a.size), cmp.Compare(load[a.NUMANode], load[b.NUMANode]))
	})
	left := g.Count
	for _, c := range all {
		if left > 0 && c.size <= left {
			chosen, left = append(chosen, c.slot), left-c.size
		}
	}
	if left == 0 {
		return chosen, 0
	}
	var rest *candidate
	for i, c := range all {
		if c.size >= left && !slices.Contains(chosen, c.slot) && (rest == nil || c.size < rest.size) {
			rest = &all[i]
		}
	}
	if rest == nil {
		return nil, 0
	}
	return append(chosen, rest.slot), rest.size - left
}

// nodeLoad is how many vCPU the VMs with cards use on each NUMA node.
func (h *host) nodeLoad() map[int]int {
	load := map[int]int{}
	for _, s := range h.slots {
		if s.taken != nil {
			load[s.NUMANode] += s.taken.VCPUs
		}
	}
	return load
}

// fitting gives the slots that a need takes on a host, among those that may be
// had; ok is false if there are none that its manners allow. A need without
// cards takes none.
func (h *host) fitting(n need, may func(*slot) bool) (chosen []*slot, ok bool) {
	if n.gpus.Count == 0 {
		return nil, true
	}
	chosen, unused := h.choose(n.gpus, may)
	if n.pin != (gpuserver.Place{}) {
		return chosen, chosen != nil && h.name == n.pin.Host
	}
	if chosen == nil || unused > 0 && !n.waste && unused > h.leastUnused(n.gpus) {
		return nil, false
	}
	if ideal, _ := h.choose(n.gpus, func(*slot) bool { return true }); !n.split && len(chosen) > len(ideal) {
		return nil, false
	}
	return chosen, true
}

// leastUnused is how many cards an empty host would leave unused: a host that has
// pairs only cannot give one card otherwise.
func (h *host) leastUnused(g gpuserver.GPUs) int {
	_, unused := h.choose(g, func(*slot) bool { return true })
	return unused
}

// claim takes slots for a VM that needs so many cards.
func claim(chosen []*slot, n need) (claims []gpuserver.Claim) {
	left := n.gpus.Count
	for _, s := range chosen {
		cards := s.cards(n.gpus.Model)
		slices.SortStableFunc(cards, func(a, b string) int { // the one that it is pinned to first
			return cmp.Compare(boolInt(b == n.pin.Address), boolInt(a == n.pin.Address))
		})
		cards = cards[:min(left, len(cards))]
		left -= len(cards)
		s.taken = &TakenSlot{Group: s.Group, VCPUs: int(n.amount[vcpus])}
		claims = append(claims, gpuserver.Claim{Group: s.Group, Cards: cards})
	}
	return claims
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// keepSlots keeps, of the host's slots that are free, those that help the head.
func (h *host) keepSlots(n need) {
	left := n.gpus.Count
	for _, s := range h.slots {
		if cards := len(s.cards(n.gpus.Model)); left > 0 && cards > 0 && s.free() && n.any(s) {
			s.kept, left = true, left-cards
		}
	}
}

// wantedKey is a number of cards of a model on a cloud.
type wantedKey struct {
	cloud, model string
	count        int
}

// countCards counts the jobs that wait for cards and could have them now but for
// the room, by how many they want.
func (p *Planner) countCards(waiting []gpuserver.Job) {
	for i := range waiting {
		p.eachWanted(&waiting[i], 1)
	}
}

// leave takes a job that got its VM out of the count.
func (p *Planner) leave(j *gpuserver.Job) { p.eachWanted(j, -1) }

func (p *Planner) eachWanted(j *gpuserver.Job, by int) {
	if j.NextTryAt.After(p.now) {
		return
	}
	seen := map[wantedKey]bool{}
	for _, e := range j.Entries {
		flavor := p.s.Flavors[e.Flavor]
		k := wantedKey{e.Cloud, flavor.GPUs.Model, flavor.GPUs.Count}
		if k.count == 0 || seen[k] {
			continue
		}
		if _, _, closed := p.open(e); closed == nil {
			seen[k] = true
			p.wanted[k] += by
		}
	}
}

// manners says what a job may do with slots.
func (p *Planner) manners(j *gpuserver.Job, o option) manners {
	g := o.need.gpus
	if g.Count == 0 {
		return manners{}
	}
	age := p.now.Sub(queuedAt(j))
	m := manners{waste: age >= UnfairAfter, split: age >= SplitAfter}
	if !m.waste {
		m.waste = true
		for k, n := range p.wanted {
			if n > 0 && k.cloud == o.cloud.name && k.model == g.Model && k.count > g.Count {
				m.waste = false
			}
		}
	}
	return m
}

// mellows is when a waiting job's manners change by its age; zero: no more, or
// it needs no cards.
func (p *Planner) mellows(j *gpuserver.Job, options []option) time.Time {
	if slices.ContainsFunc(options, func(o option) bool { return o.need.gpus.Count > 0 }) {
		for _, age := range []time.Duration{SplitAfter, UnfairAfter} {
			if at := queuedAt(j).Add(age); at.After(p.now) {
				return at
			}
		}
	}
	return time.Time{}
}

// secondLook gives jobs that waited because others could have used more of a
// slot's cards what is left now that those have got their VMs.
func (p *Planner) secondLook(waiting []gpuserver.Job, decisions []Decision) {
	if !slices.ContainsFunc(decisions, func(d Decision) bool { return d.Place != nil && len(d.Place.Claims) > 0 }) {
		return
	}
	jobs := map[gpuserver.JobID]*gpuserver.Job{}
	for i := range waiting {
		jobs[waiting[i].ID] = &waiting[i]
	}
	for again := true; again; {
		again = false
		for i := range decisions {
			if d := &decisions[i]; d.Place == nil && p.retake(jobs[d.Job], d) {
				again = true
			}
		}
	}
}

// takeAsHead is take, but what is kept for the job itself is its own.
func (c *place) takeAsHead(j *gpuserver.Job, n need) (*host, []gpuserver.Claim) {
	if c.head != j {
		return c.take(n)
	}
	keeper, kept := c.keeper, c.keeper.kept
	keeper.kept = amount{}
	h, claims := c.take(n)
	if h != nil {
		c.head, c.keeper = nil, nil
	} else {
		keeper.kept = kept
	}
	return h, claims
}

// retake places a job that waits, if one of its entries with cards has room now.
func (p *Planner) retake(j *gpuserver.Job, d *Decision) bool {
	if j.NextTryAt.After(p.now) || p.now.Sub(queuedAt(j)) >= UnfairAfter { // nothing has changed for it
		return false
	}
	for i, e := range j.Entries {
		flavor, o, closed := p.open(e)
		if closed != nil || o.need.gpus.Count == 0 {
			continue
		}
		o.need.manners = p.manners(j, o)
		if h, claims := o.cloud.takeAsHead(j, o.need); h != nil {
			*d = Decision{Job: d.Job, Place: &Place{Entry: i, Cloud: o.cloud.name, Host: h.name, Flavor: flavor, Claims: claims}, Ahead: d.Ahead, Passed: d.Passed[:i]}
			p.placed(j, e)
			return true
		}
	}
	return false
}
