package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// badCard is the card that the cloud of choosing gives first.
const badCard = "0000:27:00.0"

// choosing is a world whose cloud chooses the cards itself, always the free one
// with the lowest address; that one is dead.
func choosing(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, "chooses,dead="+badCard)
	host := gpuserver.Host{Name: "one", VCPUs: 64, MemoryMiB: 1 << 20, DiskGiB: 4000}
	for i, address := range []string{badCard, "0000:44:00.0", "0000:a3:00.0"} {
		host.Slots = append(host.Slots, gpuserver.Slot{Group: i, NUMANode: -1, Cards: []gpuserver.Card{{Address: address, Model: "v100"}}})
	}
	w.ok(w.cloud.SetHosts(w.ctx, []gpuserver.Host{host}))
	w.ofFlavor = ", gpus: {model: v100}"
	w.extra += "gpu_models: [{name: v100, ids: [\"10de:1db4\"]}]\n"
	return w
}

// TestKilledWhileKeeping kills the service at each named step of keeping a VM that
// has a bad card: the card stays held by that one VM, its job is run once, with
// another card, no later job meets the bad one, and the history tells of it once.
func TestKilledWhileKeeping(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"drain.before", "drain.effect", "drain.commit", "keep.before", "keep.effect", "keep.commit"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := choosing(t)
			w.serve("GPUSERVER_CRASH=" + at)
			first := w.dispatch("alice", 1)
			w.killedAt(at)
			w.serve()
			w.ranOnce(w.succeeded(first))
			w.ranOnce(w.succeeded(w.dispatch("alice", 2)))
			card := w.keptAlone()
			if n := w.creates(); n != 4 {
				t.Errorf("%d create calls for 3 jobs and the VM that is kept", n)
			}

			w.must(w.client().UncordonGPU(w.ctx, fmt.Sprint(card.ID)))
			w.nothingLeft()
			es, err := w.client().GPUHistory(w.ctx, fmt.Sprint(card.ID), 100)
			w.ok(err)
			var kinds []string
			for _, e := range slices.Backward(es) {
				kinds = append(kinds, e.Kind)
			}
			if d := cmp.Diff("seen strike quarantined kept uncordoned", strings.Join(kinds, " ")); d != "" {
				t.Errorf("the card's history (-want +got):\n%s", d)
			}
		})
	}
}

// keptAlone waits until the VM with the bad card is all that is left, off and
// kept, on the cloud and in the store, and gives the card.
func (w *world) keptAlone() gpuserver.GPU {
	w.t.Helper()
	w.eventually("only the kept VM is left", func() string {
		vms, err := w.cloud.VMs(w.ctx)
		if err != nil || len(vms) != 1 || !vms[0].Kept {
			return fmt.Sprintf("VMs on the cloud: %+v (%v)", vms, err)
		}
		rows, err := w.client().VMs(w.ctx, false, 100)
		if err != nil || len(rows) != 1 || rows[0].State != gpuserver.VMKept || rows[0].Name != vms[0].Name {
			return fmt.Sprintf("VMs in the store: %+v (%v)", rows, err)
		}
		spec, err := w.cloud.Spec(w.ctx, vms[0].Name)
		if err != nil || !slices.Equal(spec.Devices, []string{badCard}) {
			return fmt.Sprintf("it has %v (%v)", spec.Devices, err)
		}
		return ""
	})
	gs, err := w.client().GPUs(w.ctx, []string{string(gpuserver.GPUQuarantined)}, "", "")
	w.ok(err)
	if len(gs) != 1 || gs[0].UUID != "GPU-"+badCard || gs[0].HeldBy == nil || !gs[0].HeldBy.Kept() {
		w.t.Fatalf("cards in quarantine: %+v", gs)
	}
	return gs[0].GPU
}
