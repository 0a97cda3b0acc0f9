// Package sched decides which waiting job gets a VM next, and where, and says
// why each of the others waits.
//
// Plan is a pure function of a snapshot and the time. Its rules:
//
//   - The oldest job goes first: by the time it was queued, then by number.
//   - A job takes the first of its entries that has room. An entry whose cloud
//     is down, whose image is held, whose flavor is suspended there or which fits
//     on no host is passed over, with the reason remembered.
//   - Of the hosts with room it takes the one that it fills best, so that large
//     jobs find large hosts free.
//   - A job that does not fit does not hold up the smaller ones behind it
//     (backfill), for as long as it has waited less than Snapshot.Patience.
//     From then on room is kept for it: on the host of its first possible
//     entry's cloud that lacks the least, no younger job gets anything of what
//     is short. One job at a time has room kept on a cloud: the oldest one.
//
// GPUs come in slots, the IOMMU groups of a host, each of which one VM has or
// none:
//
//   - A job takes the slots that waste the fewest cards, then the fewest slots;
//     among equals those on the NUMA node whose VMs with cards use the least.
//   - It wastes cards (one of a pair, say) only while no job waits that could use
//     more of them, or once it is older than UnfairAfter.
//   - While it is younger than SplitAfter it waits for as few slots as an empty
//     host would give it: two cards in one group rather than in two.
//   - Once the job that room is kept for is older than UnfairAfter, slots are kept
//     for it as well, so that it gets the next ones that fit.
//
// A job that is pinned to a card takes that card's slot or none. It alone may have
// a slot that is out of service for its cards' sake, as it is there to test them;
// what the host says is out, nobody has.
//
// So no job waits for ever: where room is kept no younger job starts, and those
// that run there end. The host is chosen anew for each plan, but while a job
// waits the choice changes only to one that lacks less, which it does at most
// as often as there are amounts to lack.
package sched

import (
	"cmp"
	"slices"
	"time"

	"gpuserver"
)

// DefaultPatience is how long smaller jobs may overtake a job that does not
// fit.
const DefaultPatience = 5 * time.Minute

// How old a job with GPUs is when it may have what others would use better.
const (
	SplitAfter  = 5 * time.Minute  // cards in more groups than they could be in
	UnfairAfter = 30 * time.Minute // the next slots that fit, whoever else could use them
)

// Snapshot is all that a plan depends on, beside the time.
type Snapshot struct {
	// Waiting are the jobs in state queued, in any order. Their QueuedAt (or
	// CreatedAt), Entries and NextTryAt count.
	Waiting []gpuserver.Job
	// Hosts are the hosts of all clouds with their room in total. A cloud that
	// has not told its hosts yet belongs in CloudDown.
	Hosts []gpuserver.Host
	// Used is what leases take of the hosts. Uses of one host add up; those of
	// a host that is not among Hosts are ignored.
	Used []Use
	// Flavors are the sizes that entries name.
	Flavors map[string]gpuserver.Flavor
	// HeldImages are the images that no VM is made of now, and why.
	HeldImages map[string]gpuserver.Reason
	// Suspended are the flavors of which a cloud finds no host although it has room
	// by our ledger.
	Suspended map[FlavorOn]Suspension
	// CloudDown are the clouds on which no VM is made now, and why.
	CloudDown map[string]gpuserver.Reason
	// Starts is how many more VMs may be started on a cloud in this plan; a
	// cloud that is not named has no limit.
	Starts map[string]int
	// Patience is how old a job is when room begins to be kept for it; 0 is
	// DefaultPatience.
	Patience time.Duration
}

// FlavorOn is a flavor on a cloud.
type FlavorOn struct{ Cloud, Flavor string }

// Suspension is that no VM of a flavor is made on a cloud.
type Suspension struct {
	Reason gpuserver.Reason
	Probe  bool // one VM is made all the same, to see whether it works again
}

// Use is what leases take of one host.
type Use struct {
	Cloud, Host string
	VCPUs       int
	MemoryMiB   int64
	DiskGiB     int64
	VMs         int
	Slots       []TakenSlot
}

// TakenSlot is a slot that a lease takes, and by whom.
type TakenSlot struct {
	Group int
	VM    string    // its name
	Until time.Time // when its VM's job ends at the latest; zero: not known
	VCPUs int       // of the VM
	// Flavor is the VM's; it tells the model where the cloud chooses the cards.
	Flavor string
}

// Sum gives the uses of the leases that are not released, one for each host.
func Sum(leases []gpuserver.Lease) []Use {
	type key struct{ cloud, host string }
	at := map[key]int{}
	var uses []Use
	for _, l := range leases {
		if !l.ReleasedAt.IsZero() {
			continue
		}
		k := key{l.Cloud, l.Host}
		i, ok := at[k]
		if !ok {
			i = len(uses)
			at[k], uses = i, append(uses, Use{Cloud: l.Cloud, Host: l.Host})
		}
		u := &uses[i]
		u.VCPUs, u.MemoryMiB, u.DiskGiB, u.VMs = u.VCPUs+l.VCPUs, u.MemoryMiB+l.MemoryMiB, u.DiskGiB+l.DiskGiB, u.VMs+1
		for _, c := range l.Claims {
			u.Slots = append(u.Slots, TakenSlot{Group: c.Group, VCPUs: l.VCPUs})
		}
	}
	return uses
}

// Decision is what becomes of one waiting job.
type Decision struct {
	Job gpuserver.JobID
	// Place is where a VM is to be made for it; nil: it waits.
	Place *Place
	// Reason says why it waits, with what is missing; zero if it does not.
	Reason gpuserver.Reason
	// RetryAt is when to plan again for its sake; zero: when something changes
	// (a lease ends, a cloud comes back).
	RetryAt time.Time
	// Ahead is how many older jobs wait for room on the cloud that it waits for.
	Ahead int
	// Passed are the entries that were passed over, in order: all of a job that
	// waits for room, those before Place.Entry of one that does not wait.
	Passed []Passed
}

// Place is where a VM is to be made.
type Place struct {
	Entry  int // index in the job's Entries
	Cloud  string
	Host   string
	Flavor gpuserver.Flavor  // what the lease takes
	Claims []gpuserver.Claim // and of the host's slots
}

// Passed is an entry that was passed over.
type Passed struct {
	Entry  int // index in the job's Entries
	Reason gpuserver.Reason
}

// Plan gives one decision for each waiting job, in the order of the queue. It
// changes nothing of s. What it places never exceeds a host's room together
// with what is used, and a job's decision depends on no younger job.
func Plan(s Snapshot, now time.Time) []Decision {
	return NewPlanner(s, now).Plan(s.Waiting)
}

// Planner makes one plan in parts, for a queue that is too long to be held in
// memory whole.
type Planner struct {
	s        Snapshot
	now      time.Time
	patience time.Duration
	clouds   map[string]*place
	wanted   map[wantedKey]int // jobs so far that wait for cards and could have them
	probed   map[FlavorOn]bool // suspended flavors of which this plan makes the one VM
}

// NewPlanner begins a plan. The jobs of the snapshot do not count.
func NewPlanner(s Snapshot, now time.Time) *Planner {
	return &Planner{s: s, now: now, patience: cmp.Or(s.Patience, DefaultPatience), clouds: clouds(s), wanted: map[wantedKey]int{}, probed: map[FlavorOn]bool{}}
}

// Plan goes on with the next jobs of the queue, all of them younger than those
// before. A slot is left to a job that needs all of its cards only if that is of
// the same part or of one before.
func (p *Planner) Plan(waiting []gpuserver.Job) []Decision {
	p.countCards(waiting)
	decisions := make([]Decision, 0, len(waiting))
	for _, j := range order(waiting) {
		decisions = append(decisions, p.decide(j))
	}
	p.secondLook(waiting, decisions)
	return decisions
}

// Full reports whether no job could be placed any more, whatever its flavor.
func (p *Planner) Full() bool {
	for name, c := range p.clouds {
		if _, down := p.s.CloudDown[name]; down || c.limited && c.starts <= 0 {
			continue
		}
		for _, f := range p.s.Flavors {
			if c.couldTake(need{amount: needs(f), gpus: f.GPUs, manners: manners{waste: true, split: true}}) {
				return false
			}
		}
	}
	return true
}

// order sorts jobs as they go: oldest first. Shares of owners belong here, as
// what is compared before the age.
func order(waiting []gpuserver.Job) []*gpuserver.Job {
	jobs := make([]*gpuserver.Job, len(waiting))
	for i := range waiting {
		jobs[i] = &waiting[i]
	}
	slices.SortStableFunc(jobs, func(a, b *gpuserver.Job) int {
		return cmp.Or(queuedAt(a).Compare(queuedAt(b)), cmp.Compare(a.ID, b.ID))
	})
	return jobs
}

func queuedAt(j *gpuserver.Job) time.Time {
	if j.QueuedAt.IsZero() {
		return j.CreatedAt
	}
	return j.QueuedAt
}

// option is an entry that a job may take, if there is room.
type option struct {
	cloud *place
	need  need
}

func (p *Planner) decide(j *gpuserver.Job) Decision {
	d := Decision{Job: j.ID}
	if j.NextTryAt.After(p.now) {
		d.Reason, d.RetryAt = retry(j), j.NextTryAt
		return d
	}
	var options []option
	for i, e := range j.Entries {
		flavor, o, closed := p.open(e)
		o.need.manners = p.manners(j, o)
		if closed != nil {
			d.Passed = append(d.Passed, Passed{i, *closed})
			continue
		}
		if h, claims := o.cloud.take(o.need); h != nil {
			d.Place = &Place{Entry: i, Cloud: o.cloud.name, Host: h.name, Flavor: flavor, Claims: claims}
			p.placed(j, e)
			return d
		}
		if len(options) == 0 {
			d.Ahead = o.cloud.queue
		}
		d.Passed = append(d.Passed, Passed{i, p.noRoom(o)})
		options = append(options, o)
	}
	p.enqueue(j, options)
	d.Reason, d.RetryAt = why(d.Passed), p.mellows(j, options)
	return d
}

// open gives what an entry needs and where, or the reason why no job can take
// it now, whatever the room. Caps of owners belong here.
func (p *Planner) open(e gpuserver.Entry) (gpuserver.Flavor, option, *gpuserver.Reason) {
	flavor, known := p.s.Flavors[e.Flavor]
	if !known {
		return flavor, option{}, unknownFlavor(e)
	}
	if down, ok := p.s.CloudDown[e.Cloud]; ok {
		return flavor, option{}, cloudDown(e, down)
	}
	c := p.clouds[e.Cloud]
	if c == nil {
		return flavor, option{}, unknownCloud(e)
	}
	n := need{amount: needs(flavor), gpus: flavor.GPUs, pin: e.Pin}
	if !c.couldHold(n) {
		return flavor, option{}, tooLarge(c, flavor, n)
	}
	if held, ok := p.s.HeldImages[e.Image]; ok {
		return flavor, option{}, imageHeld(e, held)
	}
	on := FlavorOn{e.Cloud, e.Flavor}
	if s, ok := p.s.Suspended[on]; ok && (!s.Probe || p.probed[on]) {
		return flavor, option{}, suspended(e, s.Reason)
	}
	return flavor, option{c, n}, nil
}

// placed notes that a job got its VM by an entry.
func (p *Planner) placed(j *gpuserver.Job, e gpuserver.Entry) {
	p.leave(j)
	on := FlavorOn{e.Cloud, e.Flavor}
	if _, ok := p.s.Suspended[on]; ok {
		p.probed[on] = true
	}
}

// enqueue counts a job that waits for room, and keeps room for it if it is old
// enough and nobody before it has room kept on that cloud.
func (p *Planner) enqueue(j *gpuserver.Job, options []option) {
	for i, o := range options {
		again := slices.ContainsFunc(options[:i], func(b option) bool { return b.cloud == o.cloud })
		if !again {
			o.cloud.queue++
		}
	}
	if len(options) == 0 || p.now.Sub(queuedAt(j)) < p.patience {
		return
	}
	if o := options[0]; o.cloud.head == nil {
		o.cloud.keep(j, o.need, p.now.Sub(queuedAt(j)) >= UnfairAfter)
	}
}
