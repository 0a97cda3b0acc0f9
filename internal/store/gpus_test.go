package store_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/store"
)

func sampleGPU(address string) gpuserver.GPU {
	return gpuserver.GPU{Cloud: "local", Host: "h", Address: address, Model: "v100"}
}

func saveGPU(t *testing.T, db *store.DB, g *gpuserver.GPU) {
	t.Helper()
	update(t, db, func(tx *store.Tx) error { return tx.SaveGPU(g) })
}

func TestGPURoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	db := reopen(t, path)
	at := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	g := gpuserver.GPU{
		Cloud: "local", Host: "h", Address: "0000:44:00.0", Model: "v100", VendorID: "10de", DeviceID: "1db4", UUID: "GPU-1", Serial: "0123",
		State: gpuserver.GPUQuarantined, Reason: "it died", Strikes: 2.5, StruckAt: at, RestUntil: at.Add(time.Hour), LinkWidth: 16,
		FirstSeen: at, LastSeen: at.Add(time.Minute), StateAt: at.Add(time.Second),
	}
	saveGPU(t, db, &g)
	g.Reason = "it died twice"
	saveGPU(t, db, &g)
	other := sampleGPU("0000:27:00.0")
	saveGPU(t, db, &other)
	if other.State != gpuserver.GPUInService || other.FirstSeen.IsZero() || other.StateAt.IsZero() || other.LastSeen.IsZero() {
		t.Errorf("a new card begins as %+v", other)
	}
	_ = db.Close()
	db = reopen(t, path)
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		all, _ := tx.GPUs()
		if d := cmp.Diff([]gpuserver.GPU{other, g}, all); d != "" {
			t.Errorf("by place (-want +got):\n%s", d)
		}
		for what, find := range map[string]func() (gpuserver.GPU, error){
			"its number": func() (gpuserver.GPU, error) { return tx.GPU(g.ID) },
			"its place":  func() (gpuserver.GPU, error) { return tx.GPUAt("local", "h", "0000:44:00.0") },
			"its UUID":   func() (gpuserver.GPU, error) { return tx.GPUByUUID("GPU-1") },
		} {
			got, err := find()
			if d := cmp.Diff(g, got); d != "" || err != nil {
				t.Errorf("by %s: %v (-want +got):\n%s", what, err, d)
			}
		}
		for what, find := range map[string]func() (gpuserver.GPU, error){
			"no place": func() (gpuserver.GPU, error) { return tx.GPUAt("local", "h", "") },
			"no UUID":  func() (gpuserver.GPU, error) { return tx.GPUByUUID("") },
		} {
			if got, err := find(); gpuserver.KindOf(err) != gpuserver.KindNotFound {
				t.Errorf("by %s: %+v, %v", what, got, err)
			}
		}
		return nil
	})
	gone := g
	gone.ID = 99
	if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.SaveGPU(&gone) }); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("a card that is not there was written: %v", err)
	}
}

// No two cards are at one place, and no two have one UUID; those of which
// neither is known may be many.
func TestOneCardAtAPlace(t *testing.T) {
	db := open(t)
	first := sampleGPU("0000:27:00.0")
	first.UUID = "GPU-1"
	saveGPU(t, db, &first)
	sameUUID := sampleGPU("0000:28:00.0")
	sameUUID.UUID = "GPU-1"
	for what, g := range map[string]gpuserver.GPU{"at its place": sampleGPU("0000:27:00.0"), "with its UUID": sameUUID} {
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.SaveGPU(&g) }); err == nil {
			t.Errorf("a second card %s was stored", what)
		}
	}
	for range 2 {
		g := sampleGPU("")
		saveGPU(t, db, &g)
	}
	there := sampleGPU("0000:27:00.0")
	there.Host = "another"
	saveGPU(t, db, &there)
}

func TestHistoryOfACard(t *testing.T) {
	db := open(t)
	g, other := sampleGPU("0000:27:00.0"), sampleGPU("0000:28:00.0")
	saveGPU(t, db, &g)
	saveGPU(t, db, &other)
	var changes []store.Change
	db.Watch(func(cs []store.Change) { changes = append(changes, cs...) })
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range 3 {
		update(t, db, func(tx *store.Tx) error {
			return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, At: at.Add(time.Duration(i) * time.Hour), VM: 4, Job: 5, Kind: "strike", Text: fmt.Sprint(i), Points: 1.5})
		})
	}
	update(t, db, func(tx *store.Tx) error {
		return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: other.ID, Kind: "seen"})
	})
	if d := cmp.Diff([]store.Change{{GPU: g.ID}, {GPU: g.ID}, {GPU: g.ID}, {GPU: other.ID}}, changes); d != "" {
		t.Errorf("told to watchers (-want +got):\n%s", d)
	}
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		es, err := tx.GPUEvents(g.ID, 2)
		want := []gpuserver.GPUEvent{
			{ID: 3, At: at.Add(2 * time.Hour), GPU: g.ID, VM: 4, Job: 5, Kind: "strike", Text: "2", Points: 1.5},
			{ID: 2, At: at.Add(time.Hour), GPU: g.ID, VM: 4, Job: 5, Kind: "strike", Text: "1", Points: 1.5},
		}
		if d := cmp.Diff(want, es); d != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
		if es, _ := tx.GPUEvents(other.ID, 9); len(es) != 1 || es[0].At.IsZero() {
			t.Errorf("the other card's history: %+v", es)
		}
		return nil
	})
}

// vmWith stores a VM that has cards.
func vmWith(t *testing.T, db *store.DB, job gpuserver.JobID, cards ...gpuserver.GPUID) gpuserver.VM {
	t.Helper()
	v := gpuserver.VM{Forge: "gh", Cloud: "local", Host: "h", MadeFor: job}
	update(t, db, func(tx *store.Tx) error {
		if err := tx.InsertVM(&v, func(id gpuserver.VMID) string { return fmt.Sprint("gs-", id) }, gpuserver.Lease{Cloud: "local", Host: "h"}); err != nil {
			return err
		}
		for _, c := range twice(cards) { // twice: a step may run again
			if err := tx.AddVMGPU(v.ID, c); err != nil {
				return err
			}
		}
		return nil
	})
	return v
}

func twice(ids []gpuserver.GPUID) []gpuserver.GPUID {
	return append(append([]gpuserver.GPUID{}, ids...), ids...)
}

func idsOf(gs []gpuserver.GPU, err error) string {
	s := ""
	for _, g := range gs {
		s += fmt.Sprint(g.ID, " ")
	}
	if err != nil {
		s += err.Error()
	}
	return s
}

// A job's record names the cards of each VM that was made for it or ran it.
func TestCardsOfAJob(t *testing.T) {
	db := open(t)
	var cards []gpuserver.GPU
	for _, a := range []string{"0000:27:00.0", "0000:28:00.0", "0000:44:00.0"} {
		g := sampleGPU(a)
		saveGPU(t, db, &g)
		cards = append(cards, g)
	}
	first := vmWith(t, db, 7, cards[0].ID, cards[1].ID)
	second := vmWith(t, db, 8, cards[2].ID)
	update(t, db, func(tx *store.Tx) error { // a sibling's runner took job 7
		second.Assigned = 7
		return tx.SaveVM(&second)
	})
	vmWith(t, db, 0, cards[1].ID)
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		for what, c := range map[string]struct{ got, want string }{
			"the first VM": {idsOf(tx.GPUsOfVM(first.ID)), "1 2 "},
			"job 7":        {idsOf(tx.GPUsOfJob(7)), "1 2 3 "},
			"job 8":        {idsOf(tx.GPUsOfJob(8)), "3 "},
			"no job":       {idsOf(tx.GPUsOfJob(0)), ""},
		} {
			if c.got != c.want {
				t.Errorf("%s has cards %q, want %q", what, c.got, c.want)
			}
		}
		if vs, err := tx.VMsOfGPU(cards[1].ID, 9); len(vs) != 2 || vs[1].ID != first.ID {
			t.Errorf("VMs of a card: %v (%v), want the first one last", vs, err)
		}
		return nil
	})
}

// Two rows that are one card become one, with the history and VMs of both.
func TestMergedCards(t *testing.T) {
	db := open(t)
	known, place := sampleGPU("0000:27:00.0"), sampleGPU("0000:28:00.0")
	known.UUID = "GPU-1"
	for _, g := range []*gpuserver.GPU{&known, &place} {
		saveGPU(t, db, g)
		update(t, db, func(tx *store.Tx) error {
			return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, Kind: "seen", Text: g.Address})
		})
	}
	both, one := vmWith(t, db, 1, known.ID, place.ID), vmWith(t, db, 2, place.ID)
	update(t, db, func(tx *store.Tx) error {
		if err := tx.MergeGPU(place.ID, known.ID); err != nil {
			return err
		}
		known.Address = place.Address
		return tx.SaveGPU(&known)
	})
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		if all, err := tx.GPUs(); len(all) != 1 || all[0].Address != "0000:28:00.0" {
			t.Errorf("cards: %+v (%v)", all, err)
		}
		if es, _ := tx.GPUEvents(known.ID, 9); len(es) != 2 {
			t.Errorf("history: %+v", es)
		}
		for _, v := range []gpuserver.VM{both, one} {
			if got := idsOf(tx.GPUsOfVM(v.ID)); got != "1 " {
				t.Errorf("%s has cards %q", v.Name, got)
			}
		}
		return nil
	})
}

// What happened to a card is forgotten after a while. The card is not, unless it is
// not known where it is, no VM had it for as long, and nobody would look for it.
func TestHistoryOfCardsIsTidiedUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db := reopen(t, path)
		defer db.Close()
		g := sampleGPU("0000:27:00.0")
		saveGPU(t, db, &g)
		v := vmWith(t, db, 1, g.ID)
		left := map[gpuserver.GPUID]bool{g.ID: true}
		for _, c := range []struct {
			uuid  string
			state gpuserver.GPUState
			stays bool
		}{
			{"", gpuserver.GPUInService, false},
			{"", gpuserver.GPUQuarantined, false},
			{"GPU-1", gpuserver.GPUInService, false},
			{"GPU-2", gpuserver.GPUQuarantined, true},
		} {
			n := sampleGPU("")
			n.UUID, n.State = c.uuid, c.state
			saveGPU(t, db, &n)
			if c.stays {
				left[n.ID] = true
			}
		}
		had := sampleGPU("")
		saveGPU(t, db, &had)
		vmWith(t, db, 1, had.ID) // alive
		left[had.ID] = true
		event := func() {
			update(t, db, func(tx *store.Tx) error { return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, Kind: "seen"}) })
		}
		event()
		for _, s := range []gpuserver.VMState{gpuserver.VMDraining, gpuserver.VMDeleting, gpuserver.VMGone} {
			update(t, db, func(tx *store.Tx) error { return tx.MoveVM(&v, s, "") })
		}
		time.Sleep(91 * 24 * time.Hour)
		event()
		for n := int64(1); n > 0; {
			var err error
			if n, err = db.Prune(t.Context(), store.Limits{Jobs: 90 * 24 * time.Hour}); err != nil {
				t.Fatal(err)
			}
		}
		_ = db.View(t.Context(), func(tx *store.Tx) error {
			es, _ := tx.GPUEvents(g.ID, 9)
			all, _ := tx.GPUs()
			if len(es) != 1 || es[0].ID != 2 {
				t.Errorf("left are the events %v", es)
			}
			got := map[gpuserver.GPUID]bool{}
			for _, c := range all {
				got[c.ID] = true
			}
			if d := cmp.Diff(left, got); d != "" {
				t.Errorf("cards (-want +left):\n%s", d)
			}
			if got := idsOf(tx.GPUsOfVM(v.ID)); got != "" {
				t.Errorf("a VM that is forgotten has cards %s", got)
			}
			return nil
		})
	})
}
