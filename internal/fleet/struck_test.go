package fleet

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/pci"
	"gpuserver/internal/store"
)

// What is seen wrong of a card is told to the metrics, by card and kind, once.
func TestStrikesAreTold(t *testing.T) {
	var told []string
	change := func(o *Options) {
		gpuFleet(o)
		o.Struck = func(card gpuserver.GPUID, kind gate.Kind) { told = append(told, fmt.Sprint(card, " ", kind)) }
	}
	inBubble(t, change, func(b *bench) {
		b.cloud.SetHosts([]gpuserver.Host{seedHost()})
		b.cloud.SetCard(pci.Reading{Address: "0000:44:00.0", Present: true, Dead: true})
		for range 2 {
			b.fleet.refreshCapacity(b.ctx, b.drv)
			b.settle()
		}
		var g gpuserver.GPU
		if err := b.db.View(b.ctx, func(tx *store.Tx) (err error) { g, err = tx.GPUAt("local", "fake", "0000:44:00.0"); return err }); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{fmt.Sprint(g.ID, " dead")}, slices.Sorted(slices.Values(told))); diff != "" || g.State != gpuserver.GPUQuarantined {
			t.Errorf("%s: %s", g.State, diff)
		}
	})
}
