package sched

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gpuserver"
)

// sim runs plans over simulated time, a minute at a step: VMs end, jobs come, a
// plan is made and carried out.
type sim struct {
	s       Snapshot
	now     int // minutes since noon
	nextID  gpuserver.JobID
	running []run
	length  func(gpuserver.JobID) int // of a job, in minutes, 1 or more

	queued, started map[gpuserver.JobID]int // minute
	older           map[gpuserver.JobID]int // how many jobs waited when it came
}

type run struct {
	place Place
	ends  int
}

func newSim(patience time.Duration, hosts ...gpuserver.Host) *sim {
	return &sim{
		s:      Snapshot{Hosts: hosts, Flavors: map[string]gpuserver.Flavor{}, Patience: patience},
		queued: map[gpuserver.JobID]int{}, started: map[gpuserver.JobID]int{}, older: map[gpuserver.JobID]int{},
	}
}

// arrive queues a job that needs so many vCPU on one of the clouds.
func (m *sim) arrive(cpus int, clouds ...string) gpuserver.JobID {
	m.nextID++
	name := fmt.Sprint(cpus)
	m.s.Flavors[name] = gpuserver.Flavor{Name: name, VCPUs: cpus, MemoryMiB: 1, DiskGiB: 1}
	j := gpuserver.Job{ID: m.nextID, QueuedAt: noon.Add(time.Duration(m.now) * time.Minute)}
	for _, c := range clouds {
		j.Entries = append(j.Entries, gpuserver.Entry{Cloud: c, Flavor: name, Image: "debian"})
	}
	m.queued[j.ID], m.older[j.ID] = m.now, len(m.s.Waiting)
	m.s.Waiting = append(m.s.Waiting, j)
	return j.ID
}

// arriveFlavor queues a job for a flavor of the one cloud of the simulation.
func (m *sim) arriveFlavor(flavor string) {
	m.nextID++
	j := gpuserver.Job{ID: m.nextID, QueuedAt: noon.Add(time.Duration(m.now) * time.Minute)}
	j.Entries = []gpuserver.Entry{{Cloud: m.s.Hosts[0].Cloud, Flavor: flavor, Image: "debian"}}
	m.queued[j.ID], m.older[j.ID] = m.now, len(m.s.Waiting)
	m.s.Waiting = append(m.s.Waiting, j)
}

// step lets a minute pass and plans.
func (m *sim) step() {
	m.now++
	var on []run
	m.s.Used = nil
	for _, r := range m.running {
		if r.ends > m.now {
			on = append(on, r)
			m.use(r.place)
		}
	}
	m.running = on
	jobs := map[gpuserver.JobID]gpuserver.Job{}
	for _, j := range m.s.Waiting {
		jobs[j.ID] = j
	}
	var waiting []gpuserver.Job
	for _, d := range Plan(m.s, noon.Add(time.Duration(m.now)*time.Minute)) {
		if d.Place == nil {
			waiting = append(waiting, jobs[d.Job])
			continue
		}
		m.started[d.Job] = m.now
		m.running = append(m.running, run{*d.Place, m.now + m.length(d.Job)})
	}
	m.s.Waiting = waiting
}

func (m *sim) use(p Place) {
	m.s.Used = append(m.s.Used, useOf(p))
}

// useOf is what a lease of a place takes.
func useOf(p Place) Use {
	u := Use{Cloud: p.Cloud, Host: p.Host, VCPUs: p.Flavor.VCPUs, MemoryMiB: p.Flavor.MemoryMiB, DiskGiB: p.Flavor.DiskGiB, VMs: 1}
	for _, c := range p.Claims {
		u.Slots = append(u.Slots, TakenSlot{Group: c.Group, VM: "some", VCPUs: p.Flavor.VCPUs})
	}
	return u
}

// flood lets a large job wait on hosts that small jobs never leave a whole one
// of, and gives the minute in which it started; -1: not in six hours.
func flood(patience time.Duration, hosts ...gpuserver.Host) int {
	m := newSim(patience, hosts...)
	m.length = func(id gpuserver.JobID) int { return 5 + int(id)%11 } // so that they end at different times
	var large gpuserver.JobID
	for m.now < 6*60 {
		for len(m.s.Waiting) < 2*len(hosts) {
			m.arrive(2, "c")
		}
		if m.now == 30 {
			large = m.arrive(8, "c")
		}
		m.step()
		if at, ok := m.started[large]; ok && large != 0 {
			return at
		}
	}
	return -1
}

func TestSmallJobsDoNotStarveALargeOne(t *testing.T) {
	for _, hosts := range [][]gpuserver.Host{
		{hostOf("c", "a", 8)},
		{hostOf("c", "a", 8), hostOf("c", "b", 12), hostOf("c", "c", 8)},
	} {
		if at := flood(0, hosts...); at < 0 {
			t.Errorf("on %d hosts the large job starved", len(hosts))
		}
		if at := flood(1000*time.Hour, hosts...); at >= 0 {
			t.Errorf("on %d hosts the large job started at minute %d although no room was kept: this test shows nothing", len(hosts), at)
		}
	}
}

// No job waits longer than its elders let it: while one is first on its cloud,
// the host where room is kept for it empties within the longest job's time, or
// the choice goes to a host that lacks less, of which there are no more steps
// than the vCPU that it needs.
func TestNoJobWaitsForEver(t *testing.T) {
	const patience, longest, largest = 5, 12, 6
	rapid.Check(t, func(t *rapid.T) {
		m := newSim(patience*time.Minute, hostOf("c", "a", 8), hostOf("c", "b", 6), hostOf("d", "a", 6))
		lengths := rapid.SliceOfN(rapid.IntRange(1, longest), 1, 8).Draw(t, "lengths")
		m.length = func(id gpuserver.JobID) int { return lengths[int(id)%len(lengths)] }
		pattern := rapid.SliceOfN(rapid.SliceOfN(rapid.IntRange(1, largest), 0, 3), 1, 6).Draw(t, "arrivals")
		places := rapid.SliceOfN(rapid.SampledFrom([][]string{{"c"}, {"d"}, {"c", "d"}, {"d", "c"}}), 1, 4).Draw(t, "places")
		for m.now < 200 {
			for _, cpus := range pattern[m.now%len(pattern)] {
				if len(m.s.Waiting) == 20 {
					break
				}
				m.arrive(cpus, places[int(m.nextID)%len(places)]...)
			}
			m.step()
		}
		for id, queued := range m.queued {
			until, ok := m.started[id]
			if !ok {
				until = m.now
			}
			if bound := patience + 1 + (m.older[id]+1)*(largest+1)*(longest+1); until-queued > bound {
				t.Errorf("job %d, before which %d waited, waited %d minutes; the bound is %d", id, m.older[id], until-queued, bound)
			}
		}
	})
}

// While the first job waits, what it lacks on the best host never grows: no
// younger job takes it back.
func TestKeptRoomOnlyGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSim(time.Minute, hostOf("c", "a", 8), hostOf("c", "b", 9), hostOf("c", "c", 12))
		lengths := rapid.SliceOfN(rapid.IntRange(1, 30), 3, 9).Draw(t, "lengths")
		m.length = func(id gpuserver.JobID) int { return lengths[int(id)%len(lengths)] }
		for range 30 {
			m.arrive(rapid.IntRange(1, 3).Draw(t, "cpus"), "c")
		}
		m.step()
		m.s.Waiting = nil
		large := m.arrive(8, "c")
		wanted := need{amount: needs(m.s.Flavors["8"])}
		last := -1.0
		for {
			for range rapid.IntRange(0, 3).Draw(t, "more") {
				m.arrive(rapid.IntRange(1, 3).Draw(t, "cpus"), "c")
			}
			m.step()
			if _, ok := m.started[large]; ok {
				return
			}
			var used []Use
			for _, r := range m.running {
				used = append(used, useOf(r.place))
			}
			c := clouds(Snapshot{Hosts: m.s.Hosts, Used: used})["c"]
			lack := c.nearest(wanted).free.lack(wanted.amount)
			if last >= 0 && lack > last+1e-9 {
				t.Fatalf("at minute %d the large job lacks %.3f, before it lacked %.3f", m.now, lack, last)
			}
			last = lack
			if m.now > 1000 {
				t.Fatal("the large job starved")
			}
		}
	})
}
