package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/sched"
	"gpuserver/internal/store"
)

// planAtMost is how many waiting jobs are read at once. A plan looks at those
// behind them only if there is room left: they wait behind the others otherwise.
//
// At a full cloud none can go, and a plan looks at headAtMost. So that each of
// planAtMost behind them knows what it waits for nevertheless, it looks at as many
// of those, in turns, and begins anew after a while.
const (
	planAtMost = 2000
	headAtMost = 200
	tellEvery  = 5 * time.Second        // from the end of a round to the next
	tellPause  = 200 * time.Millisecond // between the plans of a round
)

type avoidKey struct {
	job                  gpuserver.JobID
	cloud, flavor, image string
}

// avoided is an entry that a job passes over for a while.
type avoided struct {
	until time.Time
	why   string
}

// avoidFor is how long an entry that the cloud refused is passed over.
const avoidFor = 30 * time.Second

func (f *Fleet) avoidEntry(v gpuserver.VM, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, a := range f.avoid {
		if time.Now().After(a.until) {
			delete(f.avoid, k)
		}
	}
	f.avoid[avoidKey{v.MadeFor, v.Cloud, v.Flavor, v.Image}] = avoided{time.Now().Add(avoidFor), why}
}

// StopPlanning makes no more VMs; what is under way goes on.
func (f *Fleet) StopPlanning() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = true
}

// planLoop plans whenever a commit made work, and when a job's time comes. Room
// that came free is given away at once. Jobs that come while others have to wait
// are planned together after a pause: each plan reads the queue, and thousands
// of jobs that arrive at a full cloud would have it read for each one.
func (f *Fleet) planLoop(ctx context.Context) {
	f.wakePlanner()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var pause <-chan time.Time
	for {
		jobs := f.jobs
		if pause != nil {
			jobs = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-pause:
			pause = nil
			continue
		case <-f.replan:
		case <-jobs:
		case <-timer.C:
		}
		start := time.Now()
		next, long, err := f.plan(ctx)
		pause = nil
		if took := time.Since(start); long && took > longPlan {
			pause = time.After(min(planShare*took, longestPause))
		}
		if err != nil && ctx.Err() == nil {
			f.Log.Error("plan failed", "err", err)
			next = time.Now().Add(time.Second)
		}
		timer.Reset(max(10*time.Millisecond, time.Until(next)))
	}
}

const (
	longPlan     = 5 * time.Millisecond   // what takes longer is followed by a pause
	planShare    = 20                     // the pause, in times of the plan
	longestPause = 400 * time.Millisecond // of any plan
)

// planAtOnce is how many decisions share a transaction: all other writers wait
// for it, deliveries too.
const planAtOnce = 32

// plan reads a snapshot, decides, and commits: for each job that goes its VM,
// the lease and the names together, planAtOnce jobs in a transaction. It gives
// the time at which to plan again if nothing wakes it before, and whether jobs
// still wait.
func (f *Fleet) plan(ctx context.Context) (next time.Time, waits bool, err error) {
	next = time.Now().Add(time.Minute)
	f.mu.Lock()
	stopped := f.draining
	f.mu.Unlock()
	if stopped {
		return next, false, nil
	}
	p, err := f.decide(ctx)
	if err != nil {
		return next, false, err
	}
	if !p.again.IsZero() && p.again.Before(next) {
		next = p.again
	}
	if len(p.todo) == 0 {
		return next, p.waits, nil
	}
	crashpoint.At("lease.before")
	for some := range slices.Chunk(p.todo, planAtOnce) {
		err = f.DB.UpdateLater(ctx, func(tx *store.Tx) error {
			for _, d := range some {
				if err := f.carryOut(tx, d, p.jobs[d.Job]); err != nil {
					return err
				}
			}
			crashpoint.At("lease.effect")
			return nil
		})
		crashpoint.At("lease.commit")
		if err != nil {
			break
		}
	}
	return next, p.waits, err
}

// rewriteReason is how old a job's reason gets before changed numbers in it are
// written: in a burst every plan changes them for every job that waits.
const rewriteReason = 10 * time.Second

// planned is what a plan found out.
type planned struct {
	todo  []sched.Decision                  // to be carried out
	jobs  map[gpuserver.JobID]gpuserver.Job // those of todo, with the entries that it numbers
	again time.Time                         // when a job's time comes that waits for that; zero: none does
	waits bool                              // a job has to wait
}

// at has the next plan made at t, if nothing else has it made before.
func (p *planned) at(t time.Time) {
	if !t.IsZero() && (p.again.IsZero() || t.Before(p.again)) {
		p.again = t
	}
}

// decide finds out which jobs can go and what the others wait for.
func (f *Fleet) decide(ctx context.Context) (p planned, err error) {
	waiting, err := f.waiting(ctx, nil, headAtMost)
	if err != nil || len(waiting) == 0 {
		return p, err
	}
	now := time.Now().UTC()
	s, back, err := f.snapshot(ctx, now)
	if err != nil {
		return p, err
	}
	p.at(back)
	p.jobs = map[gpuserver.JobID]gpuserver.Job{}
	planner := sched.NewPlanner(s, now)
	if len(waiting) == headAtMost {
		if planner.Full() {
			f.look(&p, planner.Plan(waiting), waiting, now)
			return p, f.tell(ctx, &p, planner, waiting[headAtMost-1], now)
		}
		if waiting, err = f.waiting(ctx, nil, planAtMost); err != nil { // who fits what depends on all of them
			return p, err
		}
	}
	for {
		f.look(&p, planner.Plan(waiting), waiting, now)
		if len(waiting) < planAtMost || planner.Full() {
			f.told = round{ended: now}
			return p, nil
		}
		if waiting, err = f.waiting(ctx, &waiting[len(waiting)-1], planAtMost); err != nil {
			return p, err
		}
	}
}

// round is a tour of the queue behind those that each plan looks at.
type round struct {
	last  *gpuserver.Job // whom it has come to; nil: it is over
	jobs  int            // how many it has looked at
	ended time.Time      // when the one before was over
}

// tell has the next of those who wait behind last told what they wait for. No room
// is left: nothing else comes of it.
func (f *Fleet) tell(ctx context.Context, p *planned, planner *sched.Planner, last gpuserver.Job, now time.Time) error {
	r := &f.told
	if next := r.ended.Add(tellEvery); r.last == nil && now.Before(next) {
		p.at(next)
		return nil
	}
	from := &last
	if r.last != nil && cmp.Or(r.last.QueuedAt.Compare(last.QueuedAt), cmp.Compare(r.last.ID, last.ID)) > 0 {
		from = r.last
	}
	waiting, err := f.waiting(ctx, from, headAtMost)
	if err != nil {
		return err
	}
	f.look(p, planner.Plan(waiting), waiting, now)
	if r.jobs += len(waiting); len(waiting) < headAtMost || r.jobs >= planAtMost {
		*r = round{ended: now}
		return nil
	}
	r.last = &waiting[len(waiting)-1]
	p.at(now.Add(tellPause))
	return nil
}

// look adds to p what is to be done about the jobs that waited.
func (f *Fleet) look(p *planned, decisions []sched.Decision, waiting []gpuserver.Job, now time.Time) {
	jobs := make(map[gpuserver.JobID]*gpuserver.Job, len(waiting))
	for i := range waiting {
		jobs[waiting[i].ID] = &waiting[i]
	}
	for _, d := range decisions {
		p.at(d.RetryAt)
		p.waits = p.waits || d.Place == nil
		if j := jobs[d.Job]; d.Place != nil || d.Reason != j.Reason && (d.Reason.Class != j.Reason.Class || now.Sub(j.UpdatedAt) >= rewriteReason) {
			p.todo = append(p.todo, d)
			p.jobs[d.Job] = *j
		}
	}
}

// carryOut commits one decision. The job is read again: it may have changed
// since.
func (f *Fleet) carryOut(tx *store.Tx, d sched.Decision, as gpuserver.Job) error {
	j, err := tx.Job(d.Job)
	if err != nil || j.State != gpuserver.JobQueued {
		return err
	}
	if d.Place == nil {
		j.Reason = d.Reason
		return tx.SaveJob(&j)
	}
	entry := as.Entries[d.Place.Entry]
	v := gpuserver.VM{
		Forge: j.Forge, Cloud: d.Place.Cloud, Host: d.Place.Host, Flavor: entry.Flavor, Image: entry.Image,
		MadeFor: j.ID, Resource: j.Resource, Entry: entry,
	}
	if fg, ok := f.Forges[j.Forge]; ok {
		v.Runner = gpuserver.Runner{Attempt: 1, State: gpuserver.RunnerNamed, Labels: j.Labels, Scope: f.scope(fg, j).Owner()}
	}
	if held, err := f.heldBack(tx, v); held || err != nil {
		return err
	}
	token := newToken()
	v.TokenHash = tokenHash(token)
	name := func(id gpuserver.VMID) string {
		if v.Runner.Attempt > 0 {
			v.Runner.Name = runnerName(f.vmName(id), v.Runner.Attempt)
		}
		return f.vmName(id)
	}
	fl := d.Place.Flavor
	if err := tx.InsertVM(&v, name, gpuserver.Lease{
		Cloud: v.Cloud, Host: v.Host, VCPUs: fl.VCPUs, MemoryMiB: fl.MemoryMiB, DiskGiB: fl.DiskGiB, Claims: d.Place.Claims,
	}); err != nil {
		return err
	}
	f.keepSecret(v.ID, secret{token: token})
	if err := noteProbe(tx, v); err != nil {
		return err
	}
	cards, err := f.cardsOf(tx, v)
	if err != nil {
		return err
	}
	for _, g := range cards {
		if err := tx.AddVMGPU(v.ID, g.ID); err != nil {
			return err
		}
	}
	j.VM, j.Reason, j.NextTryAt = v.ID, startingReason(v), time.Time{}
	return tx.MoveJob(&j, gpuserver.JobStarting, "on "+v.Cloud+"/"+v.Host+" as "+v.Name)
}

func startingReason(v gpuserver.VM) gpuserver.Reason {
	return gpuserver.Reason{Class: gpuserver.ReasonStarting, Text: fmt.Sprintf("Its VM %s is being made on %s.", v.Name, v.Cloud)}
}

// waiting gives the jobs of the queue after last, at most so many, each with the
// entries that it may try now.
func (f *Fleet) waiting(ctx context.Context, last *gpuserver.Job, most int) (jobs []gpuserver.Job, err error) {
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		jobs, err = tx.QueuedAfter(last, most)
		return err
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range jobs {
		f.passOver(&jobs[i])
	}
	return jobs, err
}

// snapshot gives what a plan depends on beside the jobs, and when the first card
// that rests or flavor that is suspended may be had again; zero: there is none.
func (f *Fleet) snapshot(ctx context.Context, now time.Time) (s sched.Snapshot, back time.Time, err error) {
	var cards []gpuserver.GPU
	var ends time.Time
	s = sched.Snapshot{Flavors: f.Flavors, HeldImages: map[string]gpuserver.Reason{}, CloudDown: map[string]gpuserver.Reason{}, Suspended: map[sched.FlavorOn]sched.Suspension{}, Patience: f.BackfillFor}
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		us, err := tx.Usages()
		if err != nil {
			return err
		}
		for _, u := range us {
			use := sched.Use{Cloud: u.Cloud, Host: u.Host, VCPUs: u.VCPUs, MemoryMiB: u.MemoryMiB, DiskGiB: u.DiskGiB, VMs: u.VMs}
			for _, h := range u.Slots {
				use.Slots = append(use.Slots, sched.TakenSlot(h))
			}
			s.Used = append(s.Used, use)
		}
		images, err := tx.Images()
		for _, h := range images {
			if !h.HeldAt.IsZero() {
				s.HeldImages[h.Name] = gpuserver.Reason{Class: gpuserver.ReasonImageHeld, Text: h.Reason, Help: "the operator releases it (gpuserver image release " + h.Name + ")"}
			}
		}
		if err == nil {
			cards, err = tx.GPUs()
		}
		if err == nil {
			ends, err = suspensions(tx, &s)
		}
		return err
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.clouds {
		if r, down := f.down[name]; down {
			s.CloudDown[name] = r
		}
		if _, known := f.hosts[name]; !known && s.CloudDown[name].Class == "" {
			s.CloudDown[name] = gpuserver.Reason{Class: gpuserver.ReasonUnreachable, Text: "the room on " + name + " is not known yet"}
		}
		s.Hosts = append(s.Hosts, f.hosts[name]...)
	}
	s.Hosts, back = takeOut(s.Hosts, cards, now)
	return s, earliest(back, ends), err
}

// passOver drops the entries of j that a cloud refused a moment ago; if none is
// left the job waits for the first to come back. The caller holds f.mu.
func (f *Fleet) passOver(j *gpuserver.Job) {
	if len(f.avoid) == 0 {
		return
	}
	now := time.Now()
	var left []gpuserver.Entry
	var first avoided
	for _, e := range j.Entries {
		k := avoidKey{j.ID, e.Cloud, e.Flavor, e.Image}
		a, ok := f.avoid[k]
		if ok && !now.Before(a.until) {
			delete(f.avoid, k)
			ok = false
		}
		if !ok {
			left = append(left, e)
		} else if first.until.IsZero() || a.until.Before(first.until) {
			first = a
		}
	}
	if len(left) > 0 {
		j.Entries = left
	} else if first.until.After(j.NextTryAt) {
		j.NextTryAt = first.until
		j.Reason = gpuserver.Reason{Class: gpuserver.ReasonRetry, Text: first.why} // the row says so already
	}
}

// refreshCapacity reads a cloud's room; a cloud that cannot be asked is down
// until it can.
func (f *Fleet) refreshCapacity(ctx context.Context, c cloud.Driver) {
	cctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	hosts, err := c.Capacity(cctx)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		f.refreshCards(ctx, c, hosts) // first: a card that is dead is given to nobody
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	was, wasDown := f.down[c.Name()]
	if err != nil {
		r := gpuserver.Reason{
			Class: gpuserver.ReasonUnreachable, Text: "the cloud " + c.Name() + " cannot be reached: " + gpuserver.PublicText(err),
			Help: "it is tried again by itself; the operator sees why with gpuserver status",
		}
		f.down[c.Name()] = r
		if !wasDown || was != r {
			f.Log.Error("cloud down", "cloud", c.Name(), "err", err)
			f.since[c.Name()] = time.Now()
		}
		return
	}
	for i := range hosts {
		hosts[i].Cloud = c.Name()
	}
	f.hosts[c.Name()] = hosts
	delete(f.down, c.Name())
	if wasDown || f.since[c.Name()].IsZero() {
		f.Log.Info("cloud up", "cloud", c.Name(), "hosts", len(hosts))
		f.since[c.Name()] = time.Now()
	}
	f.wakePlanner()
}
