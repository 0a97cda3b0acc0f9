package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/guest"
	"gpuserver/internal/pci"
	"gpuserver/internal/store"
)

func (b *bench) gateWith(vm gpuserver.VMID, r *gate.Report) {
	b.t.Helper()
	b.beat(vm, guest.Heartbeat{Phase: "gate", Gate: r})
}

func TestCordon(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		vm := b.starting(id)
		b.gate(vm)
		g := b.card("0000:44:00.0")
		if err := b.fleet.CordonGPU(b.ctx, g.ID, "to be cleaned", "alice"); err != nil {
			t.Fatal(err)
		}
		b.wantVM(vm, gpuserver.VMBooting) // it runs to its end
		b.finish(id, "success")
		var taken []string
		for range 4 {
			next := b.job("gpu1")
			if b.read(next).State == gpuserver.JobStarting {
				taken = append(taken, b.devices(b.starting(next))...)
			}
		}
		if len(taken) != 3 || slices.Contains(taken, "0000:44:00.0") {
			t.Errorf("with the card cordoned, VMs have %v", taken)
		}
		if err := b.fleet.CordonGPU(b.ctx, g.ID, "again", "bob"); gpuserver.KindOf(err) != gpuserver.KindConflict || !strings.Contains(gpuserver.PublicText(err), "to be cleaned") {
			t.Errorf("a second cordon: %v", err)
		}
		if err := b.fleet.UncordonGPU(b.ctx, g.ID, "bob"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		if j := b.read(id + 4); j.State != gpuserver.JobStarting {
			t.Errorf("once it is back, the job that waited is %s: %+v", j.State, j.Reason)
		}
		if err := b.fleet.UncordonGPU(b.ctx, g.ID, "bob"); gpuserver.KindOf(err) != gpuserver.KindConflict {
			t.Errorf("a second uncordon: %v", err)
		}
		if got := b.history(g.ID); got != "seen seen gate_passed cordoned uncordoned" {
			t.Errorf("its history: %s", got)
		}
		for _, err := range []error{b.fleet.CordonGPU(b.ctx, 99, "", "bob"), b.fleet.UncordonGPU(b.ctx, 99, "bob")} {
			if gpuserver.KindOf(err) != gpuserver.KindNotFound {
				t.Errorf("of a card that is not there: %v", err)
			}
		}
	})
}

// Whoever looks at a card's history at night sees who did what to it.
func TestHistoryNamesTheOperator(t *testing.T) {
	testBench(t, func(b *bench) {
		b.gate(b.starting(b.job("gpu1")), gate.Finding{Host: "0000:44:00.0", Kind: gate.KindXid, Text: "Xid 79"})
		id := b.card("0000:44:00.0").ID
		uncordon := func() error { return b.fleet.UncordonGPU(b.ctx, id, "bob") }
		var job gpuserver.JobID
		for _, act := range []func() error{
			uncordon,
			func() error { return b.fleet.CordonGPU(b.ctx, id, "its fan is loud", "alice") },
			uncordon,
			func() error { return b.fleet.CordonGPU(b.ctx, id, "", "alice") },
			func() (err error) { job, err = b.fleet.TestGPU(b.ctx, id, "carol"); return err },
		} {
			if err := act(); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		var es []gpuserver.GPUEvent
		b.update(func(tx *store.Tx) (err error) { es, err = tx.GPUEvents(id, 5); return err })
		for _, e := range es {
			got = append(got, e.Kind+": "+e.Text)
		}
		want := []string{
			fmt.Sprintf("tested: job %d tests it, asked for by carol", job),
			"cordoned: by alice",
			"uncordoned: by bob; it was cordoned: its fan is loud (by alice)",
			"cordoned: its fan is loud (by alice)",
			"uncordoned: by bob; it rested: in the VM: Xid 79",
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if j := b.read(job); j.Actor != "carol" || j.Name != fmt.Sprintf("test of GPU %d", id) {
			t.Errorf("the test is %q by %q", j.Name, j.Actor)
		}
	})
}

// A card that has served its rest keeps its strikes until they fade.
func TestHistoryOfForgottenStrikes(t *testing.T) {
	gpuBench(t, func(b *bench) {
		job := b.job("gpu1")
		b.gate(b.starting(job), gate.Finding{Host: "0000:44:00.0", Kind: gate.KindThrottle, Text: "it is hot"})
		if err := b.fleet.CancelJob(b.ctx, job, "bob"); err != nil { // else its next VM comes to this card
			t.Fatal(err)
		}
		b.pass(time.Hour)
		id := b.card("0000:44:00.0").ID
		if err := b.fleet.UncordonGPU(b.ctx, id, "bob"); err != nil {
			t.Fatal(err)
		}
		b.update(func(tx *store.Tx) error {
			es, err := tx.GPUEvents(id, 1)
			if es[0].Text != "by bob; it had strikes: in the VM: it is hot" {
				t.Errorf("%q", es[0].Text)
			}
			return err
		})
	})
}

// Uncordon forgets strikes and rests, too.
func TestUncordonOfACardThatRests(t *testing.T) {
	gpuBench(t, func(b *bench) {
		b.gate(b.starting(b.job("gpu1")), gate.Finding{Host: "0000:44:00.0", Kind: gate.KindXid, Text: "Xid 79"})
		g := b.wantCard("0000:44:00.0", gpuserver.GPUInService, 2)
		if err := b.fleet.UncordonGPU(b.ctx, g.ID, "bob"); err != nil {
			t.Fatal(err)
		}
		if g := b.wantCard("0000:44:00.0", gpuserver.GPUInService, 0); !g.RestUntil.IsZero() || g.Reason != "" {
			t.Errorf("%+v", g)
		}
	})
}

// testFleet may run commands on any of its flavors.
func testFleet(o *Options) {
	gpuFleet(o)
	for _, f := range []string{"small", "gpu2", "gpu1"} {
		o.Places = append(o.Places, gpuserver.Entry{Cloud: "local", Flavor: f, Image: "img"}, gpuserver.Entry{Cloud: "far", Flavor: f, Image: "img"})
	}
}

func testBench(t *testing.T, fn func(*bench)) {
	t.Helper()
	inBubble(t, testFleet, func(b *bench) {
		b.cloud.SetHosts([]gpuserver.Host{seedHost()})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		b.settle()
		fn(b)
	})
}

// A card is tested although it is out, on its own slot and no other, and stays
// out whatever the test says: that is for the operator to decide.
func TestTestOfAQuarantinedCard(t *testing.T) {
	for name, well := range map[string]bool{"it is well": true, "it is not": false} {
		t.Run(name, func(t *testing.T) {
			testBench(t, func(b *bench) {
				b.gate(b.starting(b.job("gpu1")), gate.Finding{Host: "0000:44:00.0", Kind: gate.KindDead, Text: "all ones"})
				g := b.wantCard("0000:44:00.0", gpuserver.GPUQuarantined, 3)
				id, err := b.fleet.TestGPU(b.ctx, g.ID, "carol")
				if err != nil {
					t.Fatal(err)
				}
				b.settle()
				vm := b.starting(id)
				if got := b.devices(vm); !slices.Equal(got, []string{"0000:44:00.0"}) {
					t.Fatalf("the test has %v", got)
				}
				if well {
					b.gate(vm)
					b.beat(vm, guest.Heartbeat{Phase: "runner"})
					status := 0
					b.beat(vm, guest.Heartbeat{Phase: "exited", RunnerExit: &status, Gate: report(gate.After, b.devices(vm))})
				} else {
					b.gate(vm, gate.Finding{Host: "0000:44:00.0", Kind: gate.KindDead, Text: "all ones"})
				}
				b.wantVM(vm, gpuserver.VMGone)
				j := b.wantJob(id, gpuserver.JobDone)
				want := map[bool]string{true: "success", false: "failure"}[well]
				if j.Conclusion != want || b.card("0000:44:00.0").State != gpuserver.GPUQuarantined {
					t.Errorf("the test ended with %s (%+v), and the card is %s", j.Conclusion, j.Reason, b.card("0000:44:00.0").State)
				}
				b.pass(time.Minute)
				if got := b.history(g.ID); !strings.Contains(got, "quarantined tested") {
					t.Errorf("its history: %s", got)
				}
			})
		})
	}
}

// A test waits for a slot that a VM has, and is not given one that its host says
// is out.
func TestTestWaitsForItsCard(t *testing.T) {
	testBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		b.gate(vm)
		g := b.card("0000:44:00.0")
		if err := b.fleet.CordonGPU(b.ctx, g.ID, "x", "alice"); err != nil {
			t.Fatal(err)
		}
		id, err := b.fleet.TestGPU(b.ctx, g.ID, "carol")
		if err != nil {
			t.Fatal(err)
		}
		b.settle()
		if j := b.wantJob(id, gpuserver.JobQueued); !strings.Contains(j.Reason.Text, "group 32 is held by VM "+b.vm(vm).Name) {
			t.Errorf("it waits because it %s", j.Reason.Text)
		}
		if err := b.fleet.DeleteVM(b.ctx, vm, "test"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		if got := b.devices(b.starting(id)); !slices.Equal(got, []string{"0000:44:00.0"}) {
			t.Errorf("the test has %v", got)
		}

		h := seedHost()
		for i := range h.Slots {
			h.Slots[i].Out = "the driver nouveau holds it"
		}
		b.cloud.SetHosts([]gpuserver.Host{h})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		other := b.card("0000:c3:00.0")
		if id, err = b.fleet.TestGPU(b.ctx, other.ID, "carol"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		if j := b.wantJob(id, gpuserver.JobQueued); !strings.Contains(j.Reason.Text, "the driver nouveau holds it") {
			t.Errorf("it waits because it %s", j.Reason.Text)
		}
	})
}

// A card that turns up in a place that is out is out as well, whatever it was
// before: a test of the place does not put it back.
func TestKnownCardInAPlaceThatIsOut(t *testing.T) {
	testBench(t, func(b *bench) {
		id := b.job("gpu1")
		b.gate(b.starting(id))
		known := b.card("0000:44:00.0")
		b.finish(id, "success")
		b.cloud.SetCard(pci.Reading{Address: "0000:a3:00.0", Present: true, Dead: true})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		b.cloud.SetCard(sick(func(r *pci.Reading) { r.Address = "0000:a3:00.0" }))
		place := b.wantCard("0000:a3:00.0", gpuserver.GPUQuarantined, 3)
		test, err := b.fleet.TestGPU(b.ctx, place.ID, "carol")
		if err != nil {
			t.Fatal(err)
		}
		b.settle()
		r := report(gate.Before, b.devices(b.starting(test)))
		r.Cards[0].UUID = known.UUID
		b.gateWith(b.starting(test), r)
		if g := b.wantCard("0000:a3:00.0", gpuserver.GPUQuarantined, 3); g.ID != known.ID || g.Reason != place.Reason {
			t.Errorf("in the place: %+v", g)
		}
	})
}

func TestCardsThatCannotBeTested(t *testing.T) {
	testBench(t, func(b *bench) {
		add := func(g gpuserver.GPU) gpuserver.GPUID {
			b.update(func(tx *store.Tx) error { return tx.SaveGPU(&g) })
			return g.ID
		}
		for say, id := range map[string]gpuserver.GPUID{
			`its cloud "gone" is not in the configuration`: add(gpuserver.GPU{Cloud: "gone", Host: "h", Address: "a", Model: "v100"}),
			"it is not known where it is":                  add(gpuserver.GPU{Cloud: "local", Host: "fake", Model: "v100"}),
			"no flavor with one card of model a100":        add(gpuserver.GPU{Cloud: "local", Host: "fake", Address: "b", Model: "a100"}),
		} {
			if _, err := b.fleet.TestGPU(b.ctx, id, "carol"); gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(gpuserver.PublicText(err), say) {
				t.Errorf("%v, want %q", err, say)
			}
		}
		if _, err := b.fleet.TestGPU(b.ctx, 99, "carol"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
			t.Errorf("a card that is not there: %v", err)
		}
	})
	choosingBench(t, func(b *bench) {
		b.gate(b.starting(b.job("gpu1")))
		if _, err := b.fleet.TestGPU(b.ctx, b.only().ID, "carol"); gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(gpuserver.PublicText(err), "chooses the cards itself") {
			t.Errorf("where the cloud chooses: %v", err)
		}
	})
}
