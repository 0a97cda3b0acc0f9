package fleet

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/gate"
	"gpuserver/internal/store"
)

// choosing is a fleet on a cloud that chooses the cards itself.
func choosing(o *Options) {
	gpuFleet(o)
	o.Models = map[string]string{"10de:1db4": "v100"}
}

// choosingBench is a bench on such a cloud, with the seed's six cards: it always
// gives the free one with the lowest address.
func choosingBench(t *testing.T, fn func(*bench)) {
	t.Helper()
	inBubble(t, choosing, func(b *bench) {
		b.stop()
		b.cloud.Close()
		b.cloud = fake.NewCloud(fake.Config{
			Name: "local", Hosts: []gpuserver.Host{seedHost()},
			Capabilities: &cloud.Capabilities{Keep: true, Console: true, Events: true, Accelerated: true},
		})
		defer func() { b.stop(); b.cloud.Close() }()
		b.start(choosing)
		fn(b)
	})
}

// cards gives all cards that are known.
func (b *bench) cards() (all []gpuserver.GPU) {
	b.t.Helper()
	if err := b.db.View(b.ctx, func(tx *store.Tx) (err error) { all, err = tx.GPUs(); return err }); err != nil {
		b.t.Fatal(err)
	}
	return all
}

// fails has the guest of a VM find its first card dead.
func (b *bench) fails(vm gpuserver.VMID, kind gate.Kind) {
	b.t.Helper()
	b.gate(vm, gate.Finding{Host: b.told(vm), Kind: kind, Text: "it is " + string(kind)})
}

func (b *bench) only() gpuserver.GPU {
	b.t.Helper()
	all := b.cards()
	if len(all) != 1 {
		b.t.Fatalf("cards: %+v", all)
	}
	return all[0]
}

// A VM whose card failed is kept, off: its registration goes, its lease stays,
// and its job gets another VM and with it another card.
func TestVMWithABadCardIsKept(t *testing.T) {
	choosingBench(t, func(b *bench) {
		id := b.job("gpu1")
		first := b.starting(id)
		if got := b.devices(first); !slices.Equal(got, []string{"0000:27:00.0"}) {
			t.Fatalf("the cloud chose %v", got)
		}
		b.fails(first, gate.KindDead)
		b.wantVM(first, gpuserver.VMKept)
		g := b.only()
		if g.State != gpuserver.GPUQuarantined || g.UUID != cardUUID("0000:27:00.0") || g.Address != "" || b.history(g.ID) != "seen strike quarantined kept" {
			t.Errorf("the card: %+v, %s", g, b.history(g.ID))
		}
		j := b.wantJob(id, gpuserver.JobStarting)
		if j.VM == first || j.Tries != 0 || !slices.Equal(b.devices(j.VM), []string{"0000:28:00.0"}) {
			t.Errorf("the job has VM %d with %v after %d tries", j.VM, b.devices(j.VM), j.Tries)
		}
		m, err := b.drv.Get(b.ctx, b.vm(first).Name)
		if err != nil || m.State != cloud.StateStopped || !m.Kept {
			t.Errorf("on its cloud the VM is %+v, %v", m, err)
		}
		if names := slices.Collect(maps.Values(b.forge.runners)); len(names) != 1 || names[0].Name != b.vm(j.VM).Runner.Name {
			t.Errorf("registrations: %v", names)
		}
		// No sweep and no restart takes it away.
		b.fleet.compareCloud(b.ctx, b.drv)
		b.stop()
		b.start(choosing)
		b.fleet.compareCloud(b.ctx, b.drv)
		b.pass(48 * time.Hour)
		b.wantVM(first, gpuserver.VMKept)
		if err := b.fleet.UncordonGPU(b.ctx, g.ID, "bob"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(first, gpuserver.VMGone)
		if _, err := b.drv.Get(b.ctx, b.vm(first).Name); gpuserver.KindOf(err) != gpuserver.KindNotFound {
			t.Errorf("after uncordon the cloud still has the VM: %v", err)
		}
		if got := b.history(g.ID); got != "seen strike quarantined kept uncordoned" {
			t.Errorf("its history: %s", got)
		}
	})
}

// All the VMs that the cloud could give are counted, kept ones too.
func TestKeptVMHoldsItsLease(t *testing.T) {
	choosingBench(t, func(b *bench) {
		b.fails(b.starting(b.job("gpu1")), gate.KindDead)
		var ids []gpuserver.JobID
		for range 5 { // with the first job's second VM, six
			ids = append(ids, b.job("gpu1"))
		}
		b.pass(time.Second)
		for _, id := range ids[:4] {
			b.starting(id)
		}
		if j := b.wantJob(ids[4], gpuserver.JobQueued); j.Reason.Class != gpuserver.ReasonCapacity {
			t.Errorf("the last job waits with %+v", j.Reason)
		}
	})
}

// A strike that fades gives the card a rest: the VM is kept for as long.
func TestVMIsKeptForARest(t *testing.T) {
	choosingBench(t, func(b *bench) {
		id := b.job("gpu1")
		first := b.starting(id)
		b.fails(first, gate.KindThrottle)
		b.wantVM(first, gpuserver.VMKept)
		if got := b.devices(b.starting(id)); !slices.Equal(got, []string{"0000:28:00.0"}) {
			t.Errorf("the second VM has %v", got)
		}
		b.pass(10*time.Minute - time.Second)
		b.wantVM(first, gpuserver.VMKept)
		b.pass(2 * time.Second)
		b.wantVM(first, gpuserver.VMGone)
	})
}

// One bad card, ten jobs, on a cloud that would give it again and again.
func TestOneBadCardTenJobsWhereTheCloudChooses(t *testing.T) {
	choosingBench(t, func(b *bench) {
		tenJobs(b, "0000:27:00.0")
		if kept := slices.DeleteFunc(b.cloud.VMs(), func(m cloud.VM) bool { return !m.Kept }); len(kept) != 1 {
			t.Errorf("VMs that are kept: %+v", kept)
		}
	})
}

// A card that an operator took out is held by the next VM that gets it, and the
// job goes on with another.
func TestCordonWhereTheCloudChooses(t *testing.T) {
	choosingBench(t, func(b *bench) {
		id := b.job("gpu1")
		b.gate(b.starting(id))
		b.finish(id, "success")
		g := b.only()
		if err := b.fleet.CordonGPU(b.ctx, g.ID, "its fan is loud", "alice"); err != nil {
			t.Fatal(err)
		}
		id = b.job("gpu1")
		vm := b.starting(id)
		b.gate(vm)
		b.wantVM(vm, gpuserver.VMKept)
		if v := b.vm(vm); !strings.Contains(v.Reason, "its fan is loud") {
			t.Errorf("it is kept because %q", v.Reason)
		}
		if g := b.cards()[0]; g.Strikes != 0 || g.State != gpuserver.GPUCordoned {
			t.Errorf("the card: %+v", g)
		}
		second := b.starting(id)
		b.gate(second)
		b.wantVM(second, gpuserver.VMBooting)
		if err := b.fleet.UncordonGPU(b.ctx, g.ID, "bob"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(vm, gpuserver.VMGone)
	})
}

// A guest that says to have the card of a VM that is kept, or one of another
// cloud, gets a row of its own.
func TestUUIDThatCannotBe(t *testing.T) {
	choosingBench(t, func(b *bench) {
		here := gpuserver.GPU{Cloud: "elsewhere", Host: "h", Model: "v100", UUID: cardUUID("0000:28:00.0")}
		b.update(func(tx *store.Tx) error { return tx.SaveGPU(&here) })
		id := b.job("gpu1")
		b.fails(b.starting(id), gate.KindDead)
		second := b.starting(id) // 0000:28:00.0, whose UUID is the other cloud's
		b.fails(second, gate.KindDead)
		b.wantVM(second, gpuserver.VMKept)
		_ = b.db.View(b.ctx, func(tx *store.Tx) error {
			g, err := tx.GPU(here.ID)
			if g.State != gpuserver.GPUInService || g.Strikes != 0 {
				t.Errorf("the other cloud's card: %+v", g)
			}
			return err
		})
		third := b.starting(id)
		r := report(gate.Before, b.devices(third))
		r.Cards[0].Host, r.Cards[0].UUID = b.told(third), cardUUID("0000:27:00.0") // that of the first, which is kept
		b.gateWith(third, r)
		b.wantVM(third, gpuserver.VMBooting)
		if all := b.cards(); len(all) != 4 {
			t.Errorf("cards: %+v", all)
		}
	})
}

// The step that keeps a VM may fail, and may run again after a crash.
func TestKeepIsRepeated(t *testing.T) {
	for name, fault := range map[string]fake.Fault{
		"nothing has happened": {At: "keep.before", Kind: gpuserver.KindUnavailable, Times: 3},
		"it has happened":      {At: "keep.after", Kind: gpuserver.KindUnavailable, Times: 1},
		"the service dies":     {At: "keep.after", Stall: true, Times: 1},
	} {
		t.Run(name, func(t *testing.T) {
			choosingBench(t, func(b *bench) {
				b.cloud.SetFaults([]fake.Fault{fault})
				id := b.job("gpu1")
				vm := b.starting(id)
				b.fails(vm, gate.KindDead)
				b.wantVM(vm, gpuserver.VMKeeping)
				if fault.Stall {
					b.cloud.SetFaults(nil)
					b.settle()
				}
				b.pass(time.Minute)
				b.wantVM(vm, gpuserver.VMKept)
				if got := b.history(b.cards()[0].ID); got != "seen strike quarantined kept" {
					t.Errorf("its history: %s", got)
				}
			})
		})
	}
}

// A VM that is gone or refused cannot be kept: its row goes on to its end.
func TestKeepOfNothing(t *testing.T) {
	choosingBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		b.cloud.SetFaults([]fake.Fault{{At: "keep.before", Kind: gpuserver.KindNotFound}})
		b.fails(vm, gate.KindDead)
		b.wantVM(vm, gpuserver.VMGone)
	})
}

// A kept VM that somebody deleted on the cloud holds nothing: its lease is
// released. One of which no row is left is spared by the sweep.
func TestKeptVMsAndTheSweep(t *testing.T) {
	choosingBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		b.fails(vm, gate.KindDead)
		b.wantVM(vm, gpuserver.VMKept)
		b.cloud.Vanish(b.vm(vm).Name)
		b.fleet.compareCloud(b.ctx, b.drv)
		b.settle()
		b.wantVM(vm, gpuserver.VMGone)

		left, orphan := b.fleet.vmName(98), b.fleet.vmName(99)
		spec := cloud.Spec{Name: left, Owner: b.fleet.ID(), Flavor: b.fleet.Flavors["gpu1"], Image: "img"}
		_, err := b.drv.Create(b.ctx, spec)
		if err := errors.Join(err, b.drv.Keep(b.ctx, left)); err != nil {
			t.Fatal(err)
		}
		spec.Name = orphan
		if _, err := b.drv.Create(b.ctx, spec); err != nil {
			t.Fatal(err)
		}
		b.fleet.compareCloud(b.ctx, b.drv)
		if _, err := b.drv.Get(b.ctx, left); err != nil {
			t.Errorf("the kept VM: %v", err)
		}
		if _, err := b.drv.Get(b.ctx, orphan); gpuserver.KindOf(err) != gpuserver.KindNotFound {
			t.Errorf("the orphan: %v", err)
		}
	})
}

// A VM whose cards are well is not kept, whatever else ends it.
func TestVMThatIsWellIsNotKept(t *testing.T) {
	choosingBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		b.gate(vm)
		if err := b.fleet.DeleteVM(b.ctx, vm, "alice"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(vm, gpuserver.VMGone)
		if got := b.history(b.only().ID); got != "seen gate_passed" {
			t.Errorf("its card's history: %s", got)
		}
	})
}

// An operator may delete a kept VM by hand.
func TestKeptVMDeletedByHand(t *testing.T) {
	choosingBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		b.fails(vm, gate.KindDead)
		if err := b.fleet.DeleteVM(b.ctx, vm, "alice"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(vm, gpuserver.VMGone)
	})
}
