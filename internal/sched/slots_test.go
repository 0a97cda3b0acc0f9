package sched

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuserver"
)

// seed is the host that this project began with: six V100 in four groups, two of
// them pairs, on two NUMA nodes.
func seed() gpuserver.Host {
	slot := func(group, node int, cards ...string) gpuserver.Slot {
		s := gpuserver.Slot{Group: group, NUMANode: node}
		for _, c := range cards {
			s.Cards = append(s.Cards, gpuserver.Card{Address: c, Model: "v100"})
		}
		return s
	}
	return gpuserver.Host{
		Cloud: "local", Name: "a", VCPUs: 96, MemoryMiB: 500 << 10, DiskGiB: 2000,
		Slots: []gpuserver.Slot{slot(19, 0, "27", "28"), slot(32, 0, "44"), slot(75, 1, "a3"), slot(87, 1, "c3", "c4")},
	}
}

var gpuFlavors = map[string]gpuserver.Flavor{
	"cpu": {Name: "cpu", VCPUs: 4, MemoryMiB: 8 << 10, DiskGiB: 60},
	"one": {Name: "one", VCPUs: 4, MemoryMiB: 8 << 10, DiskGiB: 60, GPUs: gpuserver.GPUs{Model: "v100", Count: 1}},
	"two": {Name: "two", VCPUs: 8, MemoryMiB: 16 << 10, DiskGiB: 60, GPUs: gpuserver.GPUs{Model: "v100", Count: 2}},
	"six": {Name: "six", VCPUs: 8, MemoryMiB: 16 << 10, DiskGiB: 60, GPUs: gpuserver.GPUs{Model: "v100", Count: 6}},
	"big": {Name: "big", VCPUs: 8, MemoryMiB: 16 << 10, DiskGiB: 60, GPUs: gpuserver.GPUs{Model: "v100", Count: 7}},
	"odd": {Name: "odd", VCPUs: 8, MemoryMiB: 16 << 10, DiskGiB: 60, GPUs: gpuserver.GPUs{Model: "h100", Count: 1}},
}

// claims puts decisions in a line each: "1 19:27,28" or "2 class: text".
func claims(ds []Decision) string {
	var b strings.Builder
	for _, d := range ds {
		if d.Place == nil {
			fmt.Fprintf(&b, "%d %s: %s\n", d.Job, d.Reason.Class, d.Reason.Text)
			continue
		}
		fmt.Fprint(&b, d.Job)
		for _, c := range d.Place.Claims {
			fmt.Fprintf(&b, " %d:%s", c.Group, strings.Join(c.Cards, ","))
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// held are uses of the seed's groups by VMs that end at a given minute after noon.
func held(until map[int]int) []Use {
	u := Use{Cloud: "local", Host: "a"}
	for group, minute := range until {
		u.Slots = append(u.Slots, TakenSlot{Group: group, VM: fmt.Sprint("gs-", group), Until: noon.Add(time.Duration(minute) * time.Minute), VCPUs: 4})
	}
	slices.SortFunc(u.Slots, func(a, b TakenSlot) int { return a.Group - b.Group })
	return []Use{u}
}

func TestSlots(t *testing.T) {
	out := seed()
	out.Slots[0].Out = "card 27 answers all ones"
	bare := seed()
	bare.Slots = nil
	for _, tt := range []struct {
		name string
		s    Snapshot
		want string
	}{
		{"six cards earn their keep", Snapshot{
			Waiting: []gpuserver.Job{job(1, 9, "local/one"), job(2, 8, "local/two"), job(3, 7, "local/one"), job(4, 6, "local/two")},
		}, `
			1 32:44
			2 87:c3,c4
			3 75:a3
			4 19:27,28`},
		{"as many one-card VMs as groups", Snapshot{
			Waiting: []gpuserver.Job{job(1, 5, "local/one"), job(2, 4, "local/one"), job(3, 3, "local/one"), job(4, 2, "local/one"), job(5, 1, "local/one")},
		}, `
			1 32:44
			2 75:a3
			3 19:27
			4 87:c3
			5 capacity: waits for 1 card of model v100 on cloud local: 0 of 6 cards are free; group 19 is held by a VM that is just being made; group 32 is held by a VM that is just being made; group 75 is held by a VM that is just being made; group 87 is held by a VM that is just being made; no job is ahead`},
		{"a pair is left to a younger job that needs it", Snapshot{
			Used:    held(map[int]int{32: 10, 75: 20, 19: 30}),
			Waiting: []gpuserver.Job{job(1, 9, "local/one"), job(2, 1, "local/two")},
		}, `
			1 behind: waits for 1 card of model v100 on cloud local: what is free (group 87) has more cards than it needs, and a job that needs them all waits; no job is ahead
			2 87:c3,c4`},
		{"but not by one that has waited long", Snapshot{
			Used:    held(map[int]int{32: 10, 75: 20, 19: 30}),
			Waiting: []gpuserver.Job{job(1, 30, "local/one"), job(2, 1, "local/two")},
		}, `
			1 87:c3
			2 capacity: waits for 2 cards of model v100 on cloud local: 0 of 6 cards are free; group 32 is held by VM gs-32 until 12:10:00 UTC at the latest; group 75 is held by VM gs-75 until 12:20:00 UTC at the latest; group 19 is held by VM gs-19 until 12:30:00 UTC at the latest; group 87 is held by a VM that is just being made; no job is ahead`},
		{"two pairs, one job for pairs: the second pair is left over", Snapshot{
			Used:    held(map[int]int{32: 10, 75: 20}),
			Waiting: []gpuserver.Job{job(1, 9, "local/one"), job(2, 1, "local/two")},
		}, `
			1 87:c3
			2 19:27,28`},
		{"two groups of one only after a while", Snapshot{
			Used:    held(map[int]int{19: 10, 87: 20}),
			Waiting: []gpuserver.Job{job(1, 4, "local/two")},
		}, `
			1 capacity: waits for 2 cards of model v100 on cloud local: they are free in different groups only (groups 32 and 75), and one group has as many; no job is ahead`},
		{"then they are taken", Snapshot{
			Used:    held(map[int]int{19: 10, 87: 20}),
			Waiting: []gpuserver.Job{job(1, 5, "local/two")},
		}, `
			1 32:44 75:a3`},
		{"all six", Snapshot{Waiting: []gpuserver.Job{job(1, 0, "local/six")}}, `
			1 19:27,28 87:c3,c4 32:44 75:a3`},
		{"the idler NUMA node", Snapshot{
			Used: held(map[int]int{19: 10}), Waiting: []gpuserver.Job{job(1, 0, "local/one")},
		}, `
			1 75:a3`},
		{"a group out of service", Snapshot{
			Hosts: []gpuserver.Host{out}, Used: held(map[int]int{87: 20}), Waiting: []gpuserver.Job{job(1, 0, "local/two")},
		}, `
			1 capacity: waits for 2 cards of model v100 on cloud local: they are free in different groups only (groups 32 and 75), and one group has as many; no job is ahead`},
		{"who holds what, and what is out", Snapshot{
			Hosts: []gpuserver.Host{out}, Used: held(map[int]int{32: 20, 75: 10, 87: 40}), Waiting: []gpuserver.Job{job(1, 0, "local/one")},
		}, `
			1 capacity: waits for 1 card of model v100 on cloud local: 0 of 6 cards are free; group 19 is out of service: card 27 answers all ones; group 75 is held by VM gs-75 until 12:10:00 UTC at the latest; group 32 is held by VM gs-32 until 12:20:00 UTC at the latest; group 87 is held by VM gs-87 until 12:40:00 UTC at the latest; no job is ahead`},
		{"slots are kept for a job that has waited long", Snapshot{
			Used:    held(map[int]int{19: 10, 87: 20, 75: 30}),
			Waiting: []gpuserver.Job{job(1, 31, "local/two"), job(2, 30, "local/one"), job(3, 1, "local/cpu")},
		}, `
			1 capacity: waits for 2 cards of model v100 on cloud local: 1 of 6 cards are free; group 19 is held by VM gs-19 until 12:10:00 UTC at the latest; group 87 is held by VM gs-87 until 12:20:00 UTC at the latest; group 75 is held by VM gs-75 until 12:30:00 UTC at the latest; no job is ahead
			2 behind: waits for 1 card of model v100 on cloud local: group 32 is kept for job 1, which has waited 31 min; 1 job is ahead
			3
`},
		{"more than there are, another model, a host without cards", Snapshot{
			Hosts: []gpuserver.Host{seed()}, Waiting: []gpuserver.Job{job(1, 2, "local/big"), job(2, 1, "local/odd"), job(3, 0, "local/cpu")},
		}, `
			1 no_place: cannot run on cloud local: flavor big needs 7 cards of model v100, and no host has more than 6
			2 no_place: cannot run on cloud local: flavor odd needs 1 card of model h100, and no host has a card of that model
			3`},
		{"amounts count, too", Snapshot{
			Hosts: []gpuserver.Host{seed()}, Used: []Use{{Cloud: "local", Host: "a", VCPUs: 94}}, Waiting: []gpuserver.Job{job(1, 2, "local/one")},
		}, `
			1 capacity: waits for 4 vCPU on cloud local: 2 of 96 vCPU are free; no job is ahead`},
		{"a job that is tried later takes no pair away", Snapshot{
			Used:    held(map[int]int{32: 10, 75: 20, 19: 30}),
			Waiting: []gpuserver.Job{job(1, 9, "local/one"), later(job(2, 1, "local/two"))},
		}, `
			1 87:c3
			2 retry: is tried again at 2026-03-01T12:01:00Z`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.Flavors = gpuFlavors
			if tt.s.Hosts == nil {
				tt.s.Hosts = []gpuserver.Host{seed()}
			}
			want := strings.ReplaceAll(strings.TrimSpace(tt.want), "\t", "")
			if d := cmp.Diff(want, strings.TrimSpace(claims(Plan(tt.s, noon)))); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
		})
	}
}

func later(j gpuserver.Job) gpuserver.Job {
	j.NextTryAt = noon.Add(time.Minute)
	return j
}

// A job that waits for cards is planned again when its age lets it have more.
func TestSlotsRetryAt(t *testing.T) {
	s := Snapshot{Hosts: []gpuserver.Host{seed()}, Flavors: gpuFlavors, Used: held(map[int]int{19: 10, 87: 20})}
	for age, want := range map[int]time.Duration{1: 4 * time.Minute, 4: time.Minute} {
		s.Waiting = []gpuserver.Job{job(1, age, "local/two")}
		if d := Plan(s, noon)[0]; d.Place != nil || !d.RetryAt.Equal(noon.Add(want)) {
			t.Errorf("age %d min: tried again at %v, want %v", age, d.RetryAt, noon.Add(want))
		}
	}
}

// gpuWorld draws a host with slots of several sizes and models, some taken, some
// out of service, and jobs that want some of them.
func gpuWorld(t *rapid.T) Snapshot {
	models := []string{"v100", "a100"}
	h := gpuserver.Host{Cloud: "c0", Name: "h0", VCPUs: rapid.IntRange(4, 64).Draw(t, "vcpus"), MemoryMiB: 1 << 20, DiskGiB: 4000}
	u := Use{Cloud: "c0", Host: "h0"}
	for g := range rapid.IntRange(0, 8).Draw(t, "groups") {
		s := gpuserver.Slot{Group: g * 3, NUMANode: rapid.IntRange(-1, 1).Draw(t, "node")}
		for c := range rapid.SampledFrom([]int{1, 1, 2, 2, 4}).Draw(t, "cards") {
			s.Cards = append(s.Cards, gpuserver.Card{Address: fmt.Sprintf("%d.%d", g, c), Model: rapid.SampledFrom(models).Draw(t, "model")})
		}
		if rapid.IntRange(0, 7).Draw(t, "out") == 0 {
			s.Out, s.Testable = "it is broken", rapid.Bool().Draw(t, "testable")
		} else if rapid.IntRange(0, 3).Draw(t, "taken") == 0 {
			u.Slots = append(u.Slots, TakenSlot{Group: s.Group, VM: "some", VCPUs: 1})
		}
		h.Slots = append(h.Slots, s)
	}
	s := Snapshot{Hosts: []gpuserver.Host{h}, Used: []Use{u}, Flavors: map[string]gpuserver.Flavor{"cpu": {Name: "cpu", VCPUs: 2}}}
	names := []string{"cpu"}
	for _, m := range models {
		for n := 1; n <= 4; n++ {
			name := fmt.Sprint(m, n)
			s.Flavors[name] = gpuserver.Flavor{Name: name, VCPUs: n, MemoryMiB: 1, DiskGiB: 1, GPUs: gpuserver.GPUs{Model: m, Count: n}}
			names = append(names, name)
		}
	}
	for i := range rapid.IntRange(0, 10).Draw(t, "jobs") {
		j := gpuserver.Job{ID: gpuserver.JobID(i + 1), QueuedAt: noon.Add(-time.Duration(rapid.IntRange(0, 60).Draw(t, "age")) * time.Minute)}
		for range rapid.IntRange(1, 2).Draw(t, "entries") {
			j.Entries = append(j.Entries, gpuserver.Entry{Cloud: "c0", Flavor: rapid.SampledFrom(names).Draw(t, "flavor"), Image: "x"})
		}
		if e := &j.Entries[0]; s.Flavors[e.Flavor].GPUs.Count == 1 && rapid.IntRange(0, 3).Draw(t, "pinned") == 0 {
			e.Pin = gpuserver.Place{Host: rapid.SampledFrom([]string{"h0", "h0", "h1"}).Draw(t, "host"), Address: fmt.Sprintf("%d.%d", rapid.IntRange(0, 8).Draw(t, "slot"), rapid.IntRange(0, 2).Draw(t, "card"))}
		}
		s.Waiting = append(s.Waiting, j)
	}
	return s
}

// Never two VMs on one group, never a card of another model or of a group that
// is out, and each VM gets as many cards as its flavor has.
func TestSlotsAreSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := gpuWorld(t)
		ds := Plan(s, noon)
		checkComplete(t, s, ds)
		checkCapacity(t, s, ds)
		has := map[int]string{}
		for _, u := range s.Used[0].Slots {
			has[u.Group] = "a lease"
		}
		for _, d := range ds {
			checkDecision(t, s, d)
			if d.Place == nil {
				continue
			}
			got := 0
			for _, c := range d.Place.Claims {
				if has[c.Group] != "" {
					t.Errorf("job %d gets group %d, which %s has", d.Job, c.Group, has[c.Group])
				}
				has[c.Group] = fmt.Sprint("job ", d.Job)
				i := slices.IndexFunc(s.Hosts[0].Slots, func(s gpuserver.Slot) bool { return s.Group == c.Group })
				pin := jobByID(s, d.Job).Entries[d.Place.Entry].Pin
				pinned := pin != gpuserver.Place{}
				if slot := s.Hosts[0].Slots[i]; slot.Out != "" && !(pinned && slot.Testable) || len(c.Cards) == 0 {
					t.Errorf("job %d claims %+v of %+v", d.Job, c, slot)
				}
				if pinned && (d.Place.Host != pin.Host || !slices.Equal(c.Cards, []string{pin.Address})) {
					t.Errorf("job %d, pinned to %+v, claims %+v", d.Job, pin, c)
				}
				for _, card := range c.Cards {
					if !slices.Contains(s.Hosts[0].Slots[i].Cards, gpuserver.Card{Address: card, Model: d.Place.Flavor.GPUs.Model}) {
						t.Errorf("job %d gets card %s, which group %d has not", d.Job, card, c.Group)
					}
				}
				got += len(c.Cards)
			}
			if got != d.Place.Flavor.GPUs.Count {
				t.Errorf("job %d gets %d cards of %d", d.Job, got, d.Place.Flavor.GPUs.Count)
			}
		}
		shuffled := s
		shuffled.Waiting = rapid.Permutation(s.Waiting).Draw(t, "waiting")
		shuffled.Hosts = slices.Clone(s.Hosts)
		shuffled.Hosts[0].Slots = rapid.Permutation(s.Hosts[0].Slots).Draw(t, "slots")
		if d := cmp.Diff(ds, Plan(shuffled, noon)); d != "" {
			t.Errorf("the order of what is given changes the plan (-first +shuffled):\n%s", d)
		}
	})
}

// What a plan leaves free, the next plan leaves free as well: nothing waits for
// a second look that nobody takes.
func TestNoSlotIsWasted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := gpuWorld(t)
		s.Patience = 1000 * time.Hour
		after := s
		after.Waiting = nil
		for _, d := range Plan(s, noon) {
			if d.Place != nil {
				after.Used = append(slices.Clone(after.Used), useOf(*d.Place))
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

// pin pins a job's entries to a card.
func pin(j gpuserver.Job, host, address string) gpuserver.Job {
	for i := range j.Entries {
		j.Entries[i].Pin = gpuserver.Place{Host: host, Address: address}
	}
	return j
}

// A job that is pinned to a card gets that one, also out of service, or waits for
// it and says for what.
func TestPinnedToACard(t *testing.T) {
	ours, hosts := seed(), seed()
	for i := range ours.Slots {
		ours.Slots[i].Out, ours.Slots[i].Testable = "card 5 is quarantined", true
		hosts.Slots[i].Out = "the driver nouveau holds it"
	}
	for _, tt := range []struct {
		name string
		host gpuserver.Host
		used []Use
		jobs []gpuserver.Job
		want string
	}{
		{"of a pair, while singles are free", seed(), nil, []gpuserver.Job{pin(job(1, 9, "local/one"), "a", "28")}, "1 19:28"},
		{"out of service, for its own sake only", ours, nil, []gpuserver.Job{pin(job(1, 9, "local/one"), "a", "a3"), job(2, 8, "local/one")}, `
1 75:a3
2 capacity: waits for 1 card of model v100 on cloud local: 0 of 6 cards are free; group 19 is out of service: card 5 is quarantined; group 32 is out of service: card 5 is quarantined; group 75 is out of service: card 5 is quarantined; group 87 is out of service: card 5 is quarantined; no job is ahead`},
		{
			"out of service by its host", hosts, nil,
			[]gpuserver.Job{pin(job(1, 9, "local/one"), "a", "44")},
			"1 capacity: waits for the card at 44 on cloud local: group 32 is out of service: the driver nouveau holds it; no job is ahead",
		},
		{
			"held", seed(), held(map[int]int{32: 20}),
			[]gpuserver.Job{pin(job(1, 40, "local/one"), "a", "44")},
			"1 capacity: waits for the card at 44 on cloud local: group 32 is held by VM gs-32 until 12:20:00 UTC at the latest; no job is ahead",
		},
		{"nowhere", seed(), nil, []gpuserver.Job{pin(job(1, 9, "local/one"), "a", "99")}, "1 no_place: cannot run on cloud local: host a has no card at 99 any more"},
		{"on a host that is not there", seed(), nil, []gpuserver.Job{pin(job(1, 9, "local/one"), "b", "44")}, "1 no_place: cannot run on cloud local: host b has no card at 44 any more"},
	} {
		got := claims(Plan(Snapshot{Hosts: []gpuserver.Host{tt.host}, Used: tt.used, Flavors: gpuFlavors, Waiting: tt.jobs}, noon))
		if diff := cmp.Diff(strings.TrimSpace(tt.want), strings.TrimSpace(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// No kind starves: however many of another kind come, each job starts within the
// time that the older ones need, one after another, and an hour.
func TestNoKindStarves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSim(DefaultPatience, seed())
		m.s.Flavors = gpuFlavors
		length := rapid.IntRange(5, 90).Draw(t, "length")
		m.length = func(id gpuserver.JobID) int { return 1 + int(id)*7%length }
		flood := rapid.SampledFrom([]string{"one", "two"}).Draw(t, "flood")
		other := rapid.SampledFrom([]string{"one", "two", "six"}).Draw(t, "other")
		every := rapid.IntRange(1, 6).Draw(t, "every")
		rare := rapid.IntRange(10, 120).Draw(t, "rare")
		for minute := range 600 {
			if minute%every == 0 && minute < 400 {
				m.arriveFlavor(flood)
			}
			if minute%rare == 0 && minute < 400 {
				m.arriveFlavor(other)
			}
			m.step()
		}
		for id, queued := range m.queued {
			started, ok := m.started[id]
			if !ok {
				started = m.now
			}
			if bound := 60 + (m.older[id]+1)*length; started-queued > bound {
				t.Errorf("job %d, behind %d others of at most %d min, waited %d min (started: %v)", id, m.older[id], length, started-queued, ok)
			}
		}
	})
}

func TestCardless(t *testing.T) {
	flavors := []gpuserver.Flavor{
		{Name: "cpu"},
		{Name: "tiny", GPUs: gpuserver.GPUs{Model: "v100", Count: 1}},
		{Name: "pair", GPUs: gpuserver.GPUs{Model: "v100", Count: 2}},
		{Name: "new", GPUs: gpuserver.GPUs{Model: "h100", Count: 1}},
	}
	got := Cardless(flavors, func(model string) bool { return model == "h100" })
	if len(got) != 1 || !strings.HasPrefix(got[0], "no host has a card of model v100 that VMs may have, so jobs for pair and tiny cannot run") {
		t.Errorf("without V100: %q", got)
	}
	if got := Cardless(flavors, func(string) bool { return true }); len(got) != 0 {
		t.Errorf("with all models: %q", got)
	}
}
