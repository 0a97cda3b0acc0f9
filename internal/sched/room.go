package sched

import (
	"cmp"
	"math"
	"slices"

	"gpuserver"
)

// A VM needs so much of each dimension of a host. Slots are no amounts, since one
// is not as good as another: see need.
const (
	vcpus = iota
	memoryMiB
	diskGiB
	vms
	dimensions
)

// amount is how much of each dimension.
type amount [dimensions]int64

// unlimited is the room of a host without a limit: more than can be used.
const unlimited = math.MaxInt32

func needs(f gpuserver.Flavor) amount {
	return amount{vcpus: int64(f.VCPUs), memoryMiB: f.MemoryMiB, diskGiB: f.DiskGiB, vms: 1}
}

func (a amount) minus(b amount) amount {
	for i := range a {
		a[i] -= b[i]
	}
	return a
}

// holds reports whether need fits into a.
func (a amount) holds(need amount) bool {
	for i := range a {
		if need[i] > a[i] {
			return false
		}
	}
	return true
}

// lack is how far a is from holding need: the sum, over the dimensions, of the
// missing part of the need; 0 if it fits.
func (a amount) lack(need amount) float64 {
	var sum float64
	for i := range a {
		if missing := need[i] - max(a[i], 0); missing > 0 {
			sum += float64(missing) / float64(need[i])
		}
	}
	return sum
}

// rest is how empty a host is with room a of total: the sum of the free parts.
func (a amount) rest(total amount) float64 {
	var sum float64
	for i := range a {
		if total[i] > 0 {
			sum += float64(a[i]) / float64(total[i])
		}
	}
	return sum
}

// host is a host while a plan is made.
type host struct {
	name  string
	bound string // what bounds total; "": its size
	total amount
	start amount // free when the plan began
	free  amount // free with what the plan has placed so far
	kept  amount // of what is free or will be, for the cloud's head; zero elsewhere
	slots []*slot
}

// room is what a job that has no room kept may take.
func (h *host) room() amount { return h.free.minus(h.kept) }

// place is a cloud while a plan is made.
type place struct {
	name    string
	hosts   []*host // by name
	limited bool
	starts  int // VMs that may still be started, if limited

	// Room only shrinks while a plan is made, so a need that once found none is
	// not looked for again; the reason holds until something is taken or kept.
	full    map[need]fullness
	changes int

	queue  int            // jobs so far that wait for room here
	head   *gpuserver.Job // the one that room is kept for; nil: none
	keeper *host          // where
}

// fullness is that a need finds no room on a cloud, and why, since when.
type fullness struct {
	why     gpuserver.Reason
	changes int
}

// clouds arranges the hosts of a snapshot by cloud.
func clouds(s Snapshot) map[string]*place {
	type key struct{ cloud, host string }
	used := make(map[key]amount, len(s.Hosts))
	taken := map[key][]TakenSlot{}
	for _, u := range s.Used {
		k := key{u.Cloud, u.Host}
		taken[k] = append(taken[k], u.Slots...)
		used[k] = used[k].minus(amount{-int64(u.VCPUs), -u.MemoryMiB, -u.DiskGiB, -int64(u.VMs)})
	}
	all := map[string]*place{}
	for _, h := range s.Hosts {
		c := all[h.Cloud]
		if c == nil {
			starts, limited := s.Starts[h.Cloud]
			c = &place{name: h.Cloud, limited: limited, starts: starts, full: map[need]fullness{}}
			all[h.Cloud] = c
		}
		total := amount{int64(h.VCPUs), h.MemoryMiB, h.DiskGiB, int64(cmp.Or(h.MaxVMs, unlimited))}
		free := total.minus(used[key{h.Cloud, h.Name}])
		c.hosts = append(c.hosts, &host{name: h.Name, bound: h.Bound, total: total, start: free, free: free, slots: slotsOf(h, taken[key{h.Cloud, h.Name}], s.Flavors)})
	}
	for _, c := range all {
		slices.SortFunc(c.hosts, func(a, b *host) int { return cmp.Compare(a.name, b.name) })
	}
	return all
}

// couldHold reports whether an empty host of the cloud would hold a need. Slots
// that are out of service count: they may come back.
func (c *place) couldHold(n need) bool {
	return slices.ContainsFunc(c.hosts, func(h *host) bool { return h.couldHold(n) })
}

func (h *host) couldHold(n need) bool {
	if !h.total.holds(n.amount) {
		return false
	}
	if n.gpus.Count == 0 {
		return true
	}
	chosen, _ := h.choose(n.gpus, n.any)
	return chosen != nil && (n.pin == (gpuserver.Place{}) || n.pin.Host == h.name)
}

// fitted reports whether some host's room, as given, holds a need's amounts.
func (c *place) fitted(n need, room func(*host) amount) bool {
	return slices.ContainsFunc(c.hosts, func(h *host) bool { return room(h).holds(n.amount) })
}

// couldTake reports whether some host has room for a need.
func (c *place) couldTake(n need) bool {
	return slices.ContainsFunc(c.hosts, func(h *host) bool {
		_, ok := h.fitting(n, n.may)
		return ok && h.room().holds(n.amount)
	})
}

// take takes a need from the host that it fills best, and gives that host and
// its slots; nil if there is no room.
func (c *place) take(n need) (*host, []gpuserver.Claim) {
	if c.limited && c.starts <= 0 {
		return nil, nil
	}
	if _, full := c.full[n]; full {
		return nil, nil
	}
	var best *host
	var slots []*slot
	least := math.Inf(1)
	for _, h := range c.hosts {
		if !h.room().holds(n.amount) {
			continue
		}
		chosen, ok := h.fitting(n, n.may)
		if !ok {
			continue
		}
		if rest := h.free.minus(n.amount).rest(h.total); rest < least {
			best, slots, least = h, chosen, rest
		}
	}
	if best == nil {
		return nil, nil
	}
	best.free = best.free.minus(n.amount)
	c.starts--
	c.changes++
	return best, claim(slots, n)
}

// nearest gives the host, among those that could hold a need when empty, that
// lacks the least of it. There is one, as couldHold was asked before.
func (c *place) nearest(n need) *host {
	var best *host
	least := math.Inf(1)
	for _, h := range c.hosts {
		if !h.couldHold(n) {
			continue
		}
		lack := h.free.lack(n.amount)
		if _, ok := h.fitting(n, n.may); !ok {
			lack++
		}
		if lack < least {
			best, least = h, lack
		}
	}
	return best
}

// keep keeps room for a job from here on, and slots if it is old enough.
func (c *place) keep(j *gpuserver.Job, n need, slots bool) {
	c.head, c.keeper = j, c.nearest(n)
	c.keeper.kept = n.amount
	if slots {
		c.keeper.keepSlots(n)
	}
	c.changes++
}
