package sched

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"gpuserver"
)

// world draws a snapshot in which anything may be missing, down, held or full.
func world(t *rapid.T) Snapshot {
	s := Snapshot{
		Flavors:    map[string]gpuserver.Flavor{},
		CloudDown:  map[string]gpuserver.Reason{},
		HeldImages: map[string]gpuserver.Reason{},
		Starts:     map[string]int{},
		Patience:   rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "patience"),
	}
	clouds, names := []string{"c0", "c1", "c2"}, []string{"f0", "f1", "f2", "f3"}
	images := []string{"good", "bad"}
	for _, f := range names[:3] { // f3 is not known
		s.Flavors[f] = gpuserver.Flavor{
			Name:      f,
			VCPUs:     rapid.IntRange(1, 10).Draw(t, f+" vcpus"),
			MemoryMiB: int64(rapid.IntRange(1, 10).Draw(t, f+" memory")) * 512,
			DiskGiB:   int64(rapid.IntRange(0, 10).Draw(t, f+" disk")),
		}
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "hosts") {
		h := gpuserver.Host{
			Cloud:     rapid.SampledFrom(clouds).Draw(t, "cloud"),
			Name:      fmt.Sprint("h", i),
			VCPUs:     rapid.IntRange(0, 16).Draw(t, "vcpus"),
			MemoryMiB: int64(rapid.IntRange(0, 16).Draw(t, "memory")) * 512,
			DiskGiB:   int64(rapid.IntRange(0, 40).Draw(t, "disk")),
			MaxVMs:    rapid.IntRange(0, 4).Draw(t, "max"),
		}
		s.Hosts = append(s.Hosts, h)
		for range rapid.IntRange(0, 2).Draw(t, "uses") {
			s.Used = append(s.Used, Use{
				h.Cloud, h.Name,
				rapid.IntRange(0, 6).Draw(t, "used vcpus"), int64(rapid.IntRange(0, 6).Draw(t, "used memory")) * 512,
				int64(rapid.IntRange(0, 20).Draw(t, "used disk")), rapid.IntRange(0, 2).Draw(t, "used vms"), nil,
			})
		}
	}
	for _, c := range clouds {
		if rapid.IntRange(0, 4).Draw(t, c+" down") == 0 {
			s.CloudDown[c] = gpuserver.Reason{}
		}
		if rapid.IntRange(0, 4).Draw(t, c+" limited") == 0 {
			s.Starts[c] = rapid.IntRange(0, 2).Draw(t, "starts")
		}
	}
	if rapid.Bool().Draw(t, "held") {
		s.HeldImages["bad"] = gpuserver.Reason{}
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "jobs") {
		j := gpuserver.Job{ID: gpuserver.JobID(i + 1), QueuedAt: noon.Add(-time.Duration(rapid.IntRange(0, 20).Draw(t, "age")) * time.Minute)}
		if rapid.IntRange(0, 5).Draw(t, "later") == 0 {
			j.NextTryAt = noon.Add(time.Duration(rapid.IntRange(-2, 2).Draw(t, "next")) * time.Minute)
		}
		for range rapid.IntRange(0, 3).Draw(t, "entries") {
			j.Entries = append(j.Entries, gpuserver.Entry{
				Cloud: rapid.SampledFrom(clouds).Draw(t, "cloud"), Flavor: rapid.SampledFrom(names).Draw(t, "flavor"),
				Image: rapid.SampledFrom(images).Draw(t, "image"),
			})
		}
		s.Waiting = append(s.Waiting, j)
	}
	return s
}

func jobByID(s Snapshot, id gpuserver.JobID) gpuserver.Job {
	return s.Waiting[slices.IndexFunc(s.Waiting, func(j gpuserver.Job) bool { return j.ID == id })]
}

func TestPlanIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := world(t)
		ds := Plan(s, noon)
		checkComplete(t, s, ds)
		checkCapacity(t, s, ds)
		for _, d := range ds {
			checkDecision(t, s, d)
		}
		if diff := cmp.Diff(ds, Plan(s, noon)); diff != "" {
			t.Errorf("the same plan, made again (-first +second):\n%s", diff)
		}
		shuffled := s
		shuffled.Waiting = rapid.Permutation(s.Waiting).Draw(t, "waiting")
		shuffled.Hosts = rapid.Permutation(s.Hosts).Draw(t, "hosts")
		shuffled.Used = rapid.Permutation(s.Used).Draw(t, "used")
		if diff := cmp.Diff(ds, Plan(shuffled, noon)); diff != "" {
			t.Errorf("the order of what is given changes the plan (-first +shuffled):\n%s", diff)
		}
	})
}

// TestPlanInParts gives the queue in parts: the plan is the same, and once it
// says that all is full, nothing more is placed.
func TestPlanInParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := world(t)
		var queue []gpuserver.Job
		for _, j := range order(s.Waiting) {
			queue = append(queue, *j)
		}
		cut := rapid.IntRange(0, len(queue)).Draw(t, "cut")
		p := NewPlanner(s, noon)
		ds := p.Plan(queue[:cut])
		full := p.Full()
		rest := p.Plan(queue[cut:])
		if diff := cmp.Diff(Plan(s, noon), slices.Concat(ds, rest), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("the plan in parts (-whole +parts):\n%s", diff)
		}
		for _, d := range rest {
			if full && d.Place != nil {
				t.Errorf("job %d was placed where all was full", d.Job)
			}
		}
	})
}

// checkComplete: each waiting job has one decision, oldest first.
func checkComplete(t *rapid.T, s Snapshot, ds []Decision) {
	want := map[gpuserver.JobID]bool{}
	for _, j := range s.Waiting {
		want[j.ID] = true
	}
	for i, d := range ds {
		if !want[d.Job] {
			t.Errorf("job %d is decided twice, or does not wait", d.Job)
		}
		delete(want, d.Job)
		if i > 0 && jobByID(s, d.Job).QueuedAt.Before(jobByID(s, ds[i-1].Job).QueuedAt) {
			t.Errorf("job %d comes after %d, which is younger", d.Job, ds[i-1].Job)
		}
	}
	if len(want) > 0 {
		t.Errorf("jobs without a decision: %v", want)
	}
}

// checkCapacity: no host holds more than its room by what was placed (what was
// used before may exceed it), and no cloud starts more than it may.
func checkCapacity(t *rapid.T, s Snapshot, ds []Decision) {
	starts := map[string]int{}
	for _, h := range s.Hosts {
		var u Use
		for _, one := range s.Used {
			if one.Cloud == h.Cloud && one.Host == h.Name {
				u.VCPUs, u.MemoryMiB, u.DiskGiB, u.VMs = u.VCPUs+one.VCPUs, u.MemoryMiB+one.MemoryMiB, u.DiskGiB+one.DiskGiB, u.VMs+one.VMs
			}
		}
		placed := 0
		for _, d := range ds {
			if d.Place != nil && d.Place.Cloud == h.Cloud && d.Place.Host == h.Name {
				f := d.Place.Flavor
				u.VCPUs, u.MemoryMiB, u.DiskGiB, u.VMs = u.VCPUs+f.VCPUs, u.MemoryMiB+f.MemoryMiB, u.DiskGiB+f.DiskGiB, u.VMs+1
				placed++
			}
		}
		starts[h.Cloud] += placed
		if placed > 0 && (u.VCPUs > h.VCPUs || u.MemoryMiB > h.MemoryMiB || u.DiskGiB > h.DiskGiB || h.MaxVMs > 0 && u.VMs > h.MaxVMs) {
			t.Errorf("host %+v is overfull: %+v", h, u)
		}
	}
	for c, n := range s.Starts {
		if starts[c] > n {
			t.Errorf("cloud %s starts %d VMs, %d may be", c, starts[c], n)
		}
	}
}

// checkDecision: a place is one of the job's entries, on a cloud that is up,
// with an image that is not held; whoever waits is told why.
func checkDecision(t *rapid.T, s Snapshot, d Decision) {
	j := jobByID(s, d.Job)
	passed := len(j.Entries)
	if p := d.Place; p != nil {
		e := j.Entries[p.Entry]
		passed = p.Entry
		_, down := s.CloudDown[e.Cloud]
		_, held := s.HeldImages[e.Image]
		if p.Cloud != e.Cloud || p.Flavor.Name != e.Flavor || down || held || j.NextTryAt.After(noon) {
			t.Errorf("job %+v is placed at %+v", j, *p)
		}
		if !slices.ContainsFunc(s.Hosts, func(h gpuserver.Host) bool { return h.Cloud == p.Cloud && h.Name == p.Host }) {
			t.Errorf("there is no host %s on cloud %s", p.Host, p.Cloud)
		}
		if d.Reason != (gpuserver.Reason{}) || !d.RetryAt.IsZero() {
			t.Errorf("a job that does not wait has a reason: %+v", d)
		}
	} else if d.Reason.Class == "" || d.Reason.Text == "" || d.Reason.Help == "" {
		t.Errorf("job %d waits and is not told why: %+v", d.Job, d.Reason)
	}
	if j.NextTryAt.After(noon) {
		if !d.RetryAt.Equal(j.NextTryAt) {
			t.Errorf("job %d is tried again at %v, want %v", d.Job, d.RetryAt, j.NextTryAt)
		}
		return
	}
	if len(d.Passed) != passed {
		t.Errorf("job %d passed over %d entries, want %d", d.Job, len(d.Passed), passed)
	}
	for i, p := range d.Passed {
		if p.Entry != i || p.Reason.Class == "" || p.Reason.Text == "" || p.Reason.Help == "" {
			t.Errorf("job %d, passed entry %d: %+v", d.Job, i, p)
		}
	}
}

// Who comes later changes nothing for those who are there.
func TestYoungerJobsChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := world(t)
		all := Plan(s, noon)
		n := rapid.IntRange(0, len(all)).Draw(t, "n")
		oldest := s
		oldest.Waiting = nil
		for _, d := range all[:n] {
			oldest.Waiting = append(oldest.Waiting, jobByID(s, d.Job))
		}
		if diff := cmp.Diff(all[:n], Plan(oldest, noon)); diff != "" {
			t.Errorf("without the younger jobs (-with +without):\n%s", diff)
		}
	})
}

// With no job old enough to have room kept, nothing that is free is left to a
// job that could take it.
func TestNoRoomIsWasted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := world(t)
		s.Patience, s.Starts = 1000*time.Hour, nil
		ds := Plan(s, noon)
		after := s
		after.Waiting = nil
		for _, d := range ds {
			if p := d.Place; p != nil {
				after.Used = append(after.Used, Use{p.Cloud, p.Host, p.Flavor.VCPUs, p.Flavor.MemoryMiB, p.Flavor.DiskGiB, 1, nil})
			} else {
				after.Waiting = append(after.Waiting, jobByID(s, d.Job))
			}
		}
		for _, d := range Plan(after, noon) {
			if d.Place != nil {
				t.Errorf("job %d could have been placed at %+v at once", d.Job, *d.Place)
			}
		}
	})
}

// The job that is first of all is placed whenever there is room for it, however
// old anybody is, and more room or the passing of time never takes that away.
func TestFirstJobIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := world(t)
		for i := range s.Waiting {
			s.Waiting[i].NextTryAt = time.Time{}
		}
		ds := Plan(s, noon)
		if len(ds) == 0 || ds[0].Place == nil {
			return
		}
		if later := Plan(s, noon.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "later"))*time.Minute)); later[0].Place == nil || !cmp.Equal(later[0].Place, ds[0].Place) {
			t.Errorf("later the first job is decided otherwise: %+v, was %+v", later[0], ds[0])
		}
		if len(s.Used) > 0 {
			i := rapid.IntRange(0, len(s.Used)-1).Draw(t, "freed")
			s.Used = slices.Delete(slices.Clone(s.Used), i, i+1)
		}
		if freed := Plan(s, noon); freed[0].Place == nil || freed[0].Place.Entry > ds[0].Place.Entry {
			t.Errorf("with more room the first job is worse off: %+v, was %+v", freed[0], ds[0])
		}
	})
}
