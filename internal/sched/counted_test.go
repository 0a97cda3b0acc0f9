package sched

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gpuserver"
)

// countedHost is a project of a cloud that chooses the cards itself: slots are "v100",
// or "h100!" for one that somebody else has.
func countedHost(slots ...string) gpuserver.Host {
	h := gpuserver.Host{Cloud: "stack", Name: "stack", VCPUs: 96, MemoryMiB: 500 << 10, DiskGiB: 2000}
	for i, s := range slots {
		model, others := strings.CutSuffix(s, "!")
		slot := gpuserver.Slot{Group: i, NUMANode: -1, Cards: []gpuserver.Card{{Model: model}}}
		if others {
			slot.Out = "a server of somebody else in the project has it"
		}
		h.Slots = append(h.Slots, slot)
	}
	return h
}

// Strangers' use lowers how many cards there are, whichever numbers leases have.
func TestCardsThatOnlyCount(t *testing.T) {
	vms := func(groups ...int) []Use {
		u := Use{Cloud: "stack", Host: "stack"}
		for _, g := range groups {
			u.Slots = append(u.Slots, TakenSlot{Group: g, VM: fmt.Sprint("gs-", g), VCPUs: 4, Flavor: "one"})
		}
		return []Use{u}
	}
	waiting := []gpuserver.Job{job(1, 4, "stack/one"), job(2, 3, "stack/one"), job(3, 2, "stack/one"), job(4, 1, "stack/one")}
	for _, tt := range []struct {
		name   string
		host   gpuserver.Host
		used   []Use
		placed int
		say    string // of the first job that waits
	}{
		{"all free", countedHost("v100", "v100", "v100", "v100"), nil, 4, ""},
		{"one is a stranger's", countedHost("v100", "v100", "v100", "v100!"), nil, 3, "1 cannot be had: a server of somebody else in the project has it"},
		{"a lease has the number that is out", countedHost("v100", "v100", "v100", "v100!"), vms(3), 2, "one is held by VM gs-3"},
		{"two leases have numbers that are out", countedHost("v100", "v100", "v100!", "v100!"), vms(2, 3), 0, "0 of 4 cards are free"},
		{"fewer cards than the lease's number", countedHost("v100", "v100"), vms(3), 1, "one is held by VM gs-3"},
		{"a lease's number is of another model now", countedHost("h100", "v100", "v100"), vms(0), 1, "one is held by VM gs-0"},
		{"more leases than cards", countedHost("v100"), vms(0, 1, 2), 0, "0 of 1 cards are free"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			placed, say := 0, ""
			groups := map[int]bool{}
			for _, u := range tt.used {
				for _, s := range u.Slots {
					groups[s.Group] = true
				}
			}
			for _, d := range Plan(Snapshot{Hosts: []gpuserver.Host{tt.host}, Used: tt.used, Flavors: gpuFlavors, Waiting: waiting}, noon) {
				if d.Place == nil {
					if say == "" {
						say = d.Reason.Text
					}
					continue
				}
				placed++
				for _, c := range d.Place.Claims {
					if groups[c.Group] {
						t.Errorf("job %d gets number %d, which a lease has", d.Job, c.Group)
					}
					groups[c.Group] = true
				}
			}
			if placed != tt.placed || !strings.Contains(say, tt.say) || strings.Contains(say, "group") {
				t.Errorf("%d jobs are placed, want %d; the next %s, want %q", placed, tt.placed, say, tt.say)
			}
		})
	}
}

// What is free of a model is what there is without what leases hold and others have,
// and no number is given twice.
func TestCardsThatOnlyCountAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := countedHost(rapid.SliceOfN(rapid.SampledFrom([]string{"v100", "v100!", "h100", "h100!"}), 0, 8).Draw(t, "slots")...)
		groups := rapid.SliceOfNDistinct(rapid.IntRange(0, 9), 0, 8, rapid.ID[int]).Draw(t, "groups")
		leased := map[string]int{}
		var used []TakenSlot
		for _, g := range groups {
			model := rapid.SampledFrom([]string{"v100", "h100"}).Draw(t, "model")
			leased[model]++
			used = append(used, TakenSlot{Group: g, Flavor: model})
		}
		slots, by := Hold(h.Slots, used, func(flavor string) string { return flavor })
		for _, model := range []string{"v100", "h100"} {
			total, out, free, stillOut := 0, 0, 0, 0
			foreign := 0 // cards of the model whose number a lease of the other model has
			for i, s := range h.Slots {
				if s.Cards[0].Model != model {
					continue
				}
				total++
				if s.Out != "" {
					out++
				}
				if slots[i].Out != "" {
					stillOut++
				}
				if by[i] == nil && slots[i].Out == "" {
					free++
					if slices.Contains(groups, s.Group) {
						t.Fatalf("card %d is free, and a lease has its number", s.Group)
					}
				}
				if by[i] != nil && by[i].Flavor != model {
					foreign++
				}
			}
			if stillOut != out {
				t.Fatalf("%s: %d are out, want %d", model, stillOut, out)
			}
			if want := max(0, total-out-leased[model]-foreign); free != want {
				t.Fatalf("%s: %d are free of %d, with %d out, %d leased and %d numbers lost; want %d", model, free, total, out, leased[model], foreign, want)
			}
		}
	})
}
