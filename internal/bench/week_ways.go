package bench

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/health"
	"gpuserver/internal/sched"
)

// weekSlots are the groups of the machine: 2 + 1 + 1 + 2 cards.
var weekSlots = []gpuserver.Slot{
	weekSlot(19, 0, "0000:27:00.0", "0000:28:00.0"),
	weekSlot(32, 0, "0000:44:00.0"),
	weekSlot(75, 1, "0000:a3:00.0"),
	weekSlot(87, 1, "0000:c3:00.0", "0000:c4:00.0"),
}

const weekModel = "tesla-v100"

func weekSlot(group, node int, addresses ...string) gpuserver.Slot {
	s := gpuserver.Slot{Group: group, NUMANode: node}
	for _, a := range addresses {
		s.Cards = append(s.Cards, gpuserver.Card{Address: a, Model: weekModel})
	}
	return s
}

// groupOf gives the group of a card.
func groupOf(card string) int {
	for _, s := range weekSlots {
		if slices.ContainsFunc(s.Cards, func(c gpuserver.Card) bool { return c.Address == card }) {
			return s.Group
		}
	}
	panic("bench: no group has the card " + card)
}

// blind gives each job free cards of a list, whichever they are: as a cloud does
// that is told addresses. Jobs go oldest first, and a smaller one overtakes one
// that does not fit. It keeps no room and looks at no card.
type blind struct {
	cards  []string
	starts int // VMs that are tried for a job
	pick   *rand.Rand
}

// newOneAddress is what the seed did: the cloud is told one address of each
// group, so that it can go wrong with none, and two cards lie idle. A job for two
// cards gets two groups.
func newOneAddress(seed uint64) *blind {
	b := &blind{starts: startTries, pick: rand.New(rand.NewPCG(seed, 2))}
	for _, s := range weekSlots {
		b.cards = append(b.cards, s.Cards[0].Address)
	}
	return b
}

// newCounting is a cloud that is told all six addresses and counts them.
func newCounting(seed uint64, starts int) *blind {
	b := &blind{starts: starts, pick: rand.New(rand.NewPCG(seed, 3))}
	for _, s := range weekSlots {
		for _, c := range s.Cards {
			b.cards = append(b.cards, c.Address)
		}
	}
	return b
}

func (b *blind) place(_ time.Duration, waiting []*weekJob, m *weekMachine) (starts []*weekVM, _ time.Duration) {
	free := slices.DeleteFunc(slices.Clone(b.cards), func(c string) bool { return m.given[c] != nil })
	b.pick.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	for _, j := range waiting {
		if j.cards <= len(free) {
			starts = append(starts, &weekVM{j, free[:j.cards:j.cards]})
			free = free[j.cards:]
		}
	}
	return starts, 0
}

func (b *blind) tries() int                       { return b.starts }
func (*blind) gate() bool                         { return false }
func (*blind) failed(string, bool, time.Duration) {}
func (*blind) repaired(string)                    {}

// planned is our own scheduler and health's policy, with a gate before each job.
type planned struct {
	flavors map[string]gpuserver.Flavor
	cards   map[string]gpuserver.GPU // those that failed, by address
}

func newPlanned() *planned {
	p := &planned{flavors: map[string]gpuserver.Flavor{}, cards: map[string]gpuserver.GPU{}}
	for n := 1; n <= 2; n++ { // the catalogue's gpu_large and gpu_2x_large
		f := weekFlavor(n)
		p.flavors[f.Name] = f
	}
	return p
}

func weekFlavor(cards int) gpuserver.Flavor {
	f := gpuserver.Flavor{Name: "gpu_large", VCPUs: 4, MemoryMiB: 12 << 10, DiskGiB: 60, GPUs: gpuserver.GPUs{Model: weekModel, Count: 1}}
	if cards == 2 {
		f.Name, f.VCPUs, f.MemoryMiB, f.DiskGiB, f.GPUs.Count = "gpu_2x_large", 8, 24<<10, 100, 2
	}
	return f
}

// weekBegan is a Monday.
var weekBegan = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

func (p *planned) place(now time.Duration, waiting []*weekJob, m *weekMachine) (starts []*weekVM, again time.Duration) {
	jobs := map[gpuserver.JobID]*weekJob{}
	s := sched.Snapshot{Flavors: p.flavors, Used: p.used(m)}
	for _, j := range waiting {
		id := gpuserver.JobID(j.id)
		jobs[id] = j
		s.Waiting = append(s.Waiting, gpuserver.Job{
			ID: id, QueuedAt: weekBegan.Add(j.queued),
			Entries: []gpuserver.Entry{{Cloud: "local", Flavor: weekFlavor(j.cards).Name, Image: "ubuntu"}},
		})
	}
	host := gpuserver.Host{Cloud: "local", Name: "gpu1", VCPUs: 48, MemoryMiB: 500 << 10, DiskGiB: 4000}
	host.Slots, again = p.slots(now)
	s.Hosts = []gpuserver.Host{host}
	for _, d := range sched.Plan(s, weekBegan.Add(now)) {
		if at := d.RetryAt.Sub(weekBegan); !d.RetryAt.IsZero() && (again == 0 || at < again) {
			again = at
		}
		if d.Place == nil {
			continue
		}
		v := &weekVM{job: jobs[d.Job]}
		for _, c := range d.Place.Claims {
			v.cards = append(v.cards, c.Cards...)
		}
		starts = append(starts, v)
	}
	return starts, again
}

// used is what the VMs of the machine have.
func (p *planned) used(m *weekMachine) []sched.Use {
	use := sched.Use{Cloud: "local", Host: "gpu1"}
	seen := map[*weekVM]bool{}
	for group, v := range m.held {
		f := weekFlavor(v.job.cards)
		use.Slots = append(use.Slots, sched.TakenSlot{Group: group, VM: fmt.Sprint("vm-", v.job.id), VCPUs: f.VCPUs})
		if !seen[v] {
			seen[v] = true
			use.VMs, use.VCPUs, use.MemoryMiB, use.DiskGiB = use.VMs+1, use.VCPUs+f.VCPUs, use.MemoryMiB+f.MemoryMiB, use.DiskGiB+f.DiskGiB
		}
	}
	return []sched.Use{use}
}

// slots gives the machine's slots, with those that are out of service, and when
// the first of these is back by itself.
func (p *planned) slots(now time.Duration) (slots []gpuserver.Slot, back time.Duration) {
	slots = slices.Clone(weekSlots)
	for i, s := range slots {
		for _, c := range s.Cards {
			why, until := health.Out(p.cards[c.Address], weekBegan.Add(now))
			if why == "" {
				continue
			}
			slots[i].Out = why
			if at := until.Sub(weekBegan); !until.IsZero() && (back == 0 || at < back) {
				back = at
			}
		}
	}
	return slots, back
}

func (*planned) tries() int { return startTries }
func (*planned) gate() bool { return true }

// failed is a strike by the service's own policy: before the job the driver does
// not see the card, in it the driver's log names an error of the hardware.
func (p *planned) failed(card string, inJob bool, now time.Duration) {
	seen := health.Evidence{Kind: gate.KindDriver, Text: "the driver does not see it"}
	if inJob {
		seen = health.Evidence{Kind: gate.KindXid, Text: "the driver's log names an error", Doubtful: true}
	}
	g := p.cards[card]
	g.Address = card
	p.cards[card], _ = health.Policy{}.Strike(g, []health.Evidence{seen}, weekBegan.Add(now))
}

func (p *planned) repaired(card string) { delete(p.cards, card) }
