package fleet

import (
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
)

// A guest that says to have a card that another VM has lies; a card that came
// from elsewhere brings its history, and what it was out for stays out.
func TestCardThatMoved(t *testing.T) {
	gpuBench(t, func(b *bench) {
		first := b.starting(b.job("gpu1"))
		b.gate(first) // 0000:44:00.0
		known := b.card("0000:44:00.0")
		id := b.job("gpu1")
		second := b.starting(id)
		b.beat(second, guest.Heartbeat{Phase: "gate", Gate: &gate.Report{Passed: true, Cards: []gate.Card{
			{VendorID: "10de", DeviceID: "1db4", Host: "0000:a3:00.0", UUID: known.UUID},
		}}})
		b.wantVM(second, gpuserver.VMGone)
		b.wantCard("0000:a3:00.0", gpuserver.GPUInService, 1) // a lie
		if g := b.wantCard("0000:44:00.0", gpuserver.GPUInService, 0); g.ID != known.ID {
			t.Errorf("the card of the other VM is now %+v", g)
		}
		if err := b.fleet.DeleteVM(b.ctx, first, "test"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.update(func(tx *store.Tx) error { // it has struck before
			g, err := tx.GPU(known.ID)
			g.Strikes, g.StruckAt = 1, tx.Now
			if err == nil {
				err = tx.SaveGPU(&g)
			}
			return err
		})
		third := b.starting(id) // wherever it is
		at := b.devices(third)[0]
		if at == "0000:44:00.0" {
			t.Fatalf("the third VM has %s", at)
		}
		b.beat(third, guest.Heartbeat{Phase: "gate", Gate: &gate.Report{Passed: true, Cards: []gate.Card{
			{VendorID: "10de", DeviceID: "1db4", Host: at, UUID: known.UUID},
		}}})
		b.wantVM(third, gpuserver.VMBooting)
		if g := b.wantCard(at, gpuserver.GPUInService, 1); g.ID != known.ID || !strings.HasSuffix(b.history(g.ID), "moved gate_passed") {
			t.Errorf("the card that moved: %+v, %s", g, b.history(g.ID))
		}
		if g := b.wantCard("0000:44:00.0", gpuserver.GPUInService, 1); g.ID == known.ID || g.UUID != "" {
			t.Errorf("in the place that it left: %+v", g)
		}
		_ = b.db.View(b.ctx, func(tx *store.Tx) error {
			cards, err := tx.GPUsOfVM(third)
			if len(cards) != 1 || cards[0].ID != known.ID {
				t.Errorf("the VM's record names %+v", cards)
			}
			return err
		})
	})
}

// A quarantined card that turns up elsewhere is out there, too, and costs the job
// nothing; nothing that a guest says puts a place back into service.
func TestQuarantinedCardThatMoved(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		b.gate(b.starting(id), gate.Finding{Host: "0000:44:00.0", Kind: gate.KindDead, Text: "all ones"})
		bad := b.wantCard("0000:44:00.0", gpuserver.GPUQuarantined, 3)
		second := b.starting(id)
		b.beat(second, guest.Heartbeat{Phase: "gate", Gate: &gate.Report{Passed: true, Cards: []gate.Card{
			{VendorID: "10de", DeviceID: "1db4", Host: "0000:a3:00.0", UUID: bad.UUID},
		}}})
		b.wantVM(second, gpuserver.VMGone)
		if g := b.wantCard("0000:a3:00.0", gpuserver.GPUQuarantined, 3); g.ID != bad.ID {
			t.Errorf("it is another card: %+v", g)
		}
		b.wantCard("0000:44:00.0", gpuserver.GPUQuarantined, 3)
		if j := b.wantJob(id, gpuserver.JobStarting); j.Tries != 0 {
			t.Errorf("the job was charged %d tries", j.Tries)
		}
	})
}

// Cards of a pair that a guest tells the other way round change places, and none
// is lost.
func TestPairToldTheOtherWayRound(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu2")
		b.gate(b.starting(id))
		b.finish(id, "success")
		second := b.starting(b.job("gpu2"))
		r := report(gate.Before, b.devices(second))
		r.Cards[0].UUID, r.Cards[1].UUID = r.Cards[1].UUID, r.Cards[0].UUID
		b.beat(second, guest.Heartbeat{Phase: "gate", Gate: r})
		b.wantVM(second, gpuserver.VMBooting)
		for at, uuid := range map[string]string{"0000:27:00.0": cardUUID("0000:28:00.0"), "0000:28:00.0": cardUUID("0000:27:00.0")} {
			if g := b.card(at); g.UUID != uuid {
				t.Errorf("at %s is %s, want %s", at, g.UUID, uuid)
			}
		}
		_ = b.db.View(b.ctx, func(tx *store.Tx) error {
			all, _ := tx.GPUs()
			cards, err := tx.GPUsOfVM(second)
			if len(all) != 6 || len(cards) != 2 {
				t.Errorf("%d cards are known, the VM has %d", len(all), len(cards))
			}
			return err
		})
	})
}

// A card that was replaced gets a row of its own; the other keeps its history.
func TestCardThatWasReplaced(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		b.gate(b.starting(id))
		old := b.card("0000:44:00.0")
		b.finish(id, "success")
		vm := b.starting(b.job("gpu1"))
		b.beat(vm, guest.Heartbeat{Phase: "gate", Gate: &gate.Report{Passed: true, Cards: []gate.Card{
			{VendorID: "10de", DeviceID: "1db4", Host: "0000:44:00.0", UUID: "GPU-new"},
		}}})
		if g := b.card("0000:44:00.0"); g.ID == old.ID || g.UUID != "GPU-new" {
			t.Errorf("in its place is %+v", g)
		}
		_ = b.db.View(b.ctx, func(tx *store.Tx) error {
			g, err := tx.GPU(old.ID)
			if g.Address != "" || g.UUID != old.UUID {
				t.Errorf("the old card: %+v", g)
			}
			if cards, _ := tx.GPUsOfVM(vm); len(cards) != 1 || cards[0].UUID != "GPU-new" {
				t.Errorf("the VM's record names %+v", cards)
			}
			return err
		})
	})
}
