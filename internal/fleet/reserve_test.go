package fleet

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/gate"
)

// reservingBench is a choosingBench on a cloud that can hold cards back.
func reservingBench(t *testing.T, fn func(*bench)) {
	t.Helper()
	inBubble(t, choosing, func(b *bench) {
		b.stop()
		b.cloud.Close()
		b.cloud = fake.NewCloud(fake.Config{
			Name: "local", Hosts: []gpuserver.Host{seedHost()}, Reserves: true,
			Capabilities: &cloud.Capabilities{Keep: true, Console: true, Events: true, Leavable: true, Accelerated: true},
		})
		defer func() { b.stop(); b.cloud.Close() }()
		b.start(choosing)
		fn(b)
	})
}

func (b *bench) reserved(want ...string) {
	b.t.Helper()
	if got := b.cloud.Reserved(); !slices.Equal(got, want) {
		b.t.Errorf("held back are %q, want %q", got, want)
	}
}

// TestCardIsHeldBack: where the cloud can, a bad card is held back and its VM deleted;
// it is given back after its rest, or by an operator.
func TestCardIsHeldBack(t *testing.T) {
	reservingBench(t, func(b *bench) {
		id := b.job("gpu1")
		first := b.starting(id)
		b.fails(first, gate.KindThrottle)
		b.wantVM(first, gpuserver.VMKept)
		b.reserved("0000:27:00.0")
		name := b.vm(first).Name
		if _, err := b.drv.Get(b.ctx, name); gpuserver.KindOf(err) != gpuserver.KindNotFound {
			t.Errorf("the VM is still there: %v", err)
		}
		if got := b.devices(b.starting(id)); !slices.Equal(got, []string{"0000:28:00.0"}) {
			t.Errorf("the second VM has %v", got)
		}
		// Neither the sweep nor a restart takes it for lost.
		b.fleet.compareCloud(b.ctx, b.drv)
		b.stop()
		b.start(choosing)
		b.wantVM(first, gpuserver.VMKept)
		b.reserved("0000:27:00.0")
		if got := b.cloud.Remembered(); !slices.Equal(got, []string{"0000:27:00.0"}) {
			t.Errorf("after the restart the driver is told of %q", got)
		}
		b.pass(11 * time.Minute)
		b.wantVM(first, gpuserver.VMGone)
		b.reserved()
	})
}

// TestHeldBackCardIsLetGoByAnOperator ends it at once.
func TestHeldBackCardIsLetGoByAnOperator(t *testing.T) {
	reservingBench(t, func(b *bench) {
		first := b.starting(b.job("gpu1"))
		b.fails(first, gate.KindDead)
		b.wantVM(first, gpuserver.VMKept)
		b.reserved("0000:27:00.0")
		g := b.cards()[0]
		if h := b.history(g.ID); !strings.Contains(h, "kept") {
			t.Errorf("its history: %s", h)
		}
		if err := b.fleet.UncordonGPU(b.ctx, g.ID, "alice"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(first, gpuserver.VMGone)
		b.reserved()
	})
}

// TestHoldingBackIsRepeated: each step may fail, or be cut by the service's end.
func TestHoldingBackIsRepeated(t *testing.T) {
	for name, fault := range map[string]fake.Fault{
		"nothing has happened":        {At: "reserve.before", Kind: gpuserver.KindUnavailable, Times: 3},
		"it has happened":             {At: "reserve.after", Kind: gpuserver.KindUnavailable, Times: 1},
		"the VM is not deleted":       {At: "delete.before", Kind: gpuserver.KindUnavailable, Times: 2},
		"it was deleted":              {At: "delete.after", Kind: gpuserver.KindUnavailable, Times: 1},
		"the service ends after it":   {At: "reserve.after", Stall: true, Times: 1},
		"the service ends deleting":   {At: "delete.after", Stall: true, Times: 1},
		"it cannot be let go at once": {At: "release.before", Kind: gpuserver.KindUnavailable, Times: 3},
	} {
		t.Run(name, func(t *testing.T) {
			reservingBench(t, func(b *bench) {
				first := b.starting(b.job("gpu1"))
				b.cloud.SetFaults([]fake.Fault{fault})
				b.fails(first, gate.KindThrottle)
				if fault.Stall {
					b.wantVM(first, gpuserver.VMKeeping)
					b.stop()
					b.cloud.SetFaults(nil)
					b.start(choosing)
				}
				b.pass(time.Minute)
				b.wantVM(first, gpuserver.VMKept)
				b.reserved("0000:27:00.0")
				if _, err := b.drv.Get(b.ctx, b.vm(first).Name); gpuserver.KindOf(err) != gpuserver.KindNotFound {
					t.Errorf("the VM is still there: %v", err)
				}
				b.pass(15 * time.Minute)
				b.wantVM(first, gpuserver.VMGone)
				b.reserved()
			})
		})
	}
}

// TestCardThatCannotBeHeldBack: the VM is kept, as without.
func TestCardThatCannotBeHeldBack(t *testing.T) {
	reservingBench(t, func(b *bench) {
		b.cloud.SetFaults([]fake.Fault{{At: "reserve.before", Kind: gpuserver.KindRefused, Text: "Placement refuses"}})
		first := b.starting(b.job("gpu1"))
		b.fails(first, gate.KindDead)
		b.wantVM(first, gpuserver.VMKept)
		b.reserved()
		if vm, err := b.drv.Get(b.ctx, b.vm(first).Name); err != nil || !vm.Kept {
			t.Errorf("the VM: %+v, %v", vm, err)
		}
	})
}
