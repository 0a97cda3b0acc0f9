package bench

import (
	"cmp"
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// A week of jobs with GPUs on the machine that this project began with: six V100
// in four IOMMU groups. The same jobs go three ways; see week_ways.go. Time is
// simulated, so the figures do not depend on the machine that they are taken on.

// Week is what came of one simulated week.
type Week struct {
	Seed       uint64  `json:"seed"`
	TwoGPUJobs int     `json:"two_gpu_jobs"` // of all jobs
	CardHours  float64 `json:"card_hours"`   // that all jobs ask for, without boot and teardown
	OneAddress WeekWay `json:"one_address_per_group"`
	Counting   WeekWay `json:"counting_devices"`
	Retrying   WeekWay `json:"counting_devices_retrying"` // … that tries a VM again for as long as its job waits
	Ours       WeekWay `json:"ours"`
}

// WeekWay is what came of the week's jobs in one way of giving cards to them.
type WeekWay struct {
	Jobs int `json:"jobs"` // done + lost
	Done int `json:"done"`
	Lost int `json:"lost"`
	// MeanWait and P95Wait are from a job's arrival to its first step, boot
	// included, of the jobs that were done; in seconds.
	MeanWait float64 `json:"mean_wait_s"`
	P95Wait  float64 `json:"p95_wait_s"`

	LostToCard   int `json:"lost_to_card"`   // failed in the job, by the flaky card
	LostToStarts int `json:"lost_to_starts"` // given up: its VMs could not be started
	LostInQueue  int `json:"lost_in_queue"`  // waited for longer than the forge keeps a job
	FailedStarts int `json:"failed_starts"`  // VMs that could not be started because their group was held
	SparedByGate int `json:"spared_by_gate"` // VMs whose card failed before the job, which went to another
}

// What is assumed of jobs, machine and card. All ways share it.
const (
	weekLength = 7 * 24 * time.Hour
	dayRate    = 3.5 // jobs an hour from 9 to 18 on a working day
	pairShare  = 0.3 // of the jobs want two cards

	medianJob, shortestJob, longestJob = 30 * time.Minute, 3 * time.Minute, 10 * time.Hour
	jobSpread                          = 1.0 // σ of the logarithm of a job's length

	bootTime     = time.Minute      // from the start of a VM to the job's first step
	downTime     = 20 * time.Second // from the job's end to the group being free
	startFails   = 30 * time.Second // until a VM that cannot be started is given up
	startTries   = 5                // VMs that are tried for a job; the pauses are 1, 2, 4 and then 8 minutes
	forgeWaits   = 24 * time.Hour   // GitHub cancels a job that has been queued for so long
	failsEarly   = 2 * time.Minute  // a job whose card does not work from the beginning
	flakyFrom    = 58 * time.Hour   // Wednesday, 10 o'clock
	flakyFor     = 24 * time.Hour   // then it is repaired
	flakyFailure = 0.6              // of the VMs that get the card meanwhile
	flakyAtBoot  = 0.7              // of these failures show before the job
)

// flakyCard is one of a pair, so that to take its group out costs two cards.
const flakyCard = "0000:27:00.0"

// weekJob is one job and what has become of it.
type weekJob struct {
	id     int
	queued time.Duration // since the week began
	length time.Duration // of the job itself
	cards  int

	tries    int // VMs that could not be started
	attempts int // VMs in all
	over     bool
}

// weekJobs gives the jobs of a week, by their arrival. They depend on the seed
// alone.
func weekJobs(seed uint64) (jobs []*weekJob) {
	r := rand.New(rand.NewPCG(seed, 1))
	for at := time.Duration(0); ; {
		at += time.Duration(r.ExpFloat64() / dayRate * float64(time.Hour))
		if at >= weekLength {
			return jobs
		}
		if r.Float64() >= busy(at) { // thinned to the hour's rate
			continue
		}
		length := time.Duration(float64(medianJob) * math.Exp(jobSpread*r.NormFloat64())).Round(time.Second)
		cards := 1
		if r.Float64() < pairShare {
			cards = 2
		}
		jobs = append(jobs, &weekJob{id: len(jobs) + 1, queued: at.Round(time.Second), length: min(max(length, shortestJob), longestJob), cards: cards})
	}
}

// busy is the part of the day's rate at which jobs arrive.
func busy(at time.Duration) float64 {
	day, hour := int(at.Hours())/24, int(at.Hours())%24
	switch {
	case hour < 7 || hour >= 22:
		return 0.1
	case day >= 5: // the week begins on a Monday
		return 0.2
	case hour < 9 || hour >= 18:
		return 0.5
	}
	return 1
}

// SimulateWeek runs the week of a seed in all three ways.
func SimulateWeek(seed uint64) Week {
	w := Week{Seed: seed}
	for _, j := range weekJobs(seed) {
		w.CardHours += float64(j.cards) * j.length.Hours()
		if j.cards == 2 {
			w.TwoGPUJobs++
		}
	}
	w.CardHours = round(w.CardHours, 1)
	w.OneAddress = newWeekRun(seed, newOneAddress(seed)).run()
	w.Counting = newWeekRun(seed, newCounting(seed, startTries)).run()
	w.Retrying = newWeekRun(seed, newCounting(seed, math.MaxInt)).run()
	w.Ours = newWeekRun(seed, newPlanned()).run()
	return w
}

// week is the part of the benchmark.
func (b *bench) week() error {
	b.report.Week = SimulateWeek(1)
	return nil
}

// weekWay is one way of giving cards to jobs.
type weekWay interface {
	// place gives the jobs that get a VM now, of those that wait, the oldest
	// first, and when to ask again though nothing happened; 0: never.
	place(now time.Duration, waiting []*weekJob, m *weekMachine) (starts []*weekVM, again time.Duration)
	// tries is how many VMs that cannot be started are tried for a job.
	tries() int
	// gate reports whether cards are looked at before a job.
	gate() bool
	// failed says that a card failed, in a job or at the gate before it.
	failed(card string, inJob bool, now time.Duration)
	// repaired says that somebody repaired a card.
	repaired(card string)
}

// weekVM is a VM that is to be started, or was.
type weekVM struct {
	job   *weekJob
	cards []string
}

// weekMachine is what the hardware does: a group is held by one VM at most, and
// a VM that gets a card of a group that another holds cannot be started.
type weekMachine struct {
	held  map[int]*weekVM    // by group
	given map[string]*weekVM // cards that a way has given away, also to VMs that could not be started
}

// hold takes the groups of a VM's cards for it; false if another has one.
func (m *weekMachine) hold(v *weekVM) bool {
	for _, c := range v.cards {
		if m.held[groupOf(c)] != nil && m.held[groupOf(c)] != v {
			return false
		}
	}
	for _, c := range v.cards {
		m.held[groupOf(c)] = v
	}
	return true
}

// release frees all that a VM has.
func (m *weekMachine) release(v *weekVM) {
	for _, c := range v.cards {
		if m.held[groupOf(c)] == v {
			delete(m.held, groupOf(c))
		}
		delete(m.given, c)
	}
}

// weekRun is one way through the week.
type weekRun struct {
	seed    uint64
	way     weekWay
	machine weekMachine
	jobs    []*weekJob
	waiting []*weekJob // by arrival
	now     time.Duration
	events  weekEvents
	queued  int           // events so far
	asked   time.Duration // the time at which the way wants to be asked again
	waits   []time.Duration
	out     WeekWay
}

func newWeekRun(seed uint64, way weekWay) *weekRun {
	r := &weekRun{seed: seed, way: way, jobs: weekJobs(seed), machine: weekMachine{held: map[int]*weekVM{}, given: map[string]*weekVM{}}}
	r.out.Jobs = len(r.jobs)
	for _, j := range r.jobs {
		r.at(j.queued, func() { r.wait(j) })
		r.at(j.queued+forgeWaits, func() {
			if n := slices.Index(r.waiting, j); n >= 0 {
				r.waiting = slices.Delete(r.waiting, n, n+1)
				r.lose(j, &r.out.LostInQueue)
			}
		})
	}
	r.at(flakyFrom+flakyFor, func() { way.repaired(flakyCard) })
	return r
}

// run gives what came of the jobs, once all are over.
func (r *weekRun) run() WeekWay {
	for r.events.Len() > 0 {
		r.now = r.events[0].at
		for r.events.Len() > 0 && r.events[0].at == r.now {
			heap.Pop(&r.events).(weekEvent).do()
		}
		r.place()
	}
	r.out.Lost = r.out.LostToCard + r.out.LostToStarts + r.out.LostInQueue
	slices.Sort(r.waits)
	if n := len(r.waits); n > 0 {
		sum := time.Duration(0)
		for _, w := range r.waits {
			sum += w
		}
		r.out.MeanWait = round(sum.Seconds()/float64(n), 1)
		r.out.P95Wait = nearestRank(r.waits, 0.95).Seconds()
	}
	return r.out
}

// place starts what the way gives a VM.
func (r *weekRun) place() {
	if len(r.waiting) == 0 {
		return
	}
	starts, again := r.way.place(r.now, slices.Clone(r.waiting), &r.machine)
	for _, v := range starts {
		r.waiting = slices.DeleteFunc(r.waiting, func(j *weekJob) bool { return j == v.job })
		for _, c := range v.cards {
			r.machine.given[c] = v
		}
		v.job.attempts++
		if r.machine.hold(v) {
			r.boot(v)
		} else {
			r.out.FailedStarts++
			r.at(r.now+startFails, func() { r.cannotStart(v) })
		}
	}
	if again > r.now && (r.asked <= r.now || again < r.asked) {
		r.asked = again
		r.at(again, func() {})
	}
}

// cannotStart gives up a VM whose group another has, and tries its job later.
func (r *weekRun) cannotStart(v *weekVM) {
	r.machine.release(v)
	j := v.job
	j.tries++
	if j.tries >= r.way.tries() {
		r.lose(j, &r.out.LostToStarts)
		return
	}
	r.at(r.now+time.Minute<<min(j.tries-1, 3), func() { r.wait(j) })
}

// boot lets a VM start its job, or not get so far.
func (r *weekRun) boot(v *weekVM) {
	j, begin := v.job, r.now+bootTime
	bad, atBoot, part := r.luck(v)
	switch {
	case bad && atBoot && r.way.gate():
		r.at(begin, func() {
			r.out.SparedByGate++
			r.way.failed(flakyCard, false, r.now)
			r.down(v)
			r.wait(j)
		})
	case bad:
		fails := begin + min(failsEarly, j.length)
		if !atBoot {
			fails = begin + time.Duration(part*float64(j.length)).Round(time.Second)
		}
		r.at(fails, func() {
			r.way.failed(flakyCard, true, r.now)
			r.lose(j, &r.out.LostToCard)
			r.down(v)
		})
	default:
		r.at(begin+j.length, func() {
			r.out.Done++
			j.over = true
			r.waits = append(r.waits, begin-j.queued)
			r.down(v)
		})
	}
}

// luck says whether the flaky card fails a VM, whether that shows before the
// job, and else after which part of it. It depends on job and attempt, not on
// the way.
func (r *weekRun) luck(v *weekVM) (bad, atBoot bool, part float64) {
	if !slices.Contains(v.cards, flakyCard) || r.now < flakyFrom || r.now >= flakyFrom+flakyFor {
		return false, false, 0
	}
	draw := rand.New(rand.NewPCG(r.seed, uint64(v.job.id)<<16|uint64(v.job.attempts)))
	return draw.Float64() < flakyFailure, draw.Float64() < flakyAtBoot, draw.Float64()
}

// down takes a VM down.
func (r *weekRun) down(v *weekVM) { r.at(r.now+downTime, func() { r.machine.release(v) }) }

func (r *weekRun) lose(j *weekJob, why *int) {
	j.over = true
	*why++
}

// wait puts a job into the queue, at its own age; not one that the forge has
// cancelled meanwhile.
func (r *weekRun) wait(j *weekJob) {
	if r.now >= j.queued+forgeWaits {
		r.lose(j, &r.out.LostInQueue)
		return
	}
	n, _ := slices.BinarySearchFunc(r.waiting, j, func(a, b *weekJob) int { return a.id - b.id })
	r.waiting = slices.Insert(r.waiting, n, j)
}

func (r *weekRun) at(t time.Duration, do func()) {
	r.queued++
	heap.Push(&r.events, weekEvent{t, r.queued, do})
}

// weekEvent is something that happens at a time; those of one time happen in
// the order in which they were planned.
type weekEvent struct {
	at    time.Duration
	order int
	do    func()
}

// weekEvents is a heap, the next one first.
type weekEvents []weekEvent

func (e weekEvents) Len() int { return len(e) }
func (e weekEvents) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(e[i].at, e[j].at), cmp.Compare(e[i].order, e[j].order)) < 0
}
func (e weekEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *weekEvents) Push(x any)   { *e = append(*e, x.(weekEvent)) }
func (e *weekEvents) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	*e = (*e)[:last]
	return x
}
