package fleet

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// A command gets a card only if its flavor is named, or if there are no others.
func TestRunTakesNoCardUnasked(t *testing.T) {
	flavors := map[string]gpuserver.Flavor{
		"gpu_tiny": {MemoryMiB: 2048, GPUs: gpuserver.GPUs{Model: "v100", Count: 1}},
		"gpu":      {MemoryMiB: 4096, GPUs: gpuserver.GPUs{Model: "v100", Count: 1}},
		"small":    {MemoryMiB: 8192}, "large": {MemoryMiB: 16384},
	}
	for _, tt := range []struct{ flavor, places, want string }{
		{"", "gpu_tiny large small", "small large"},
		{"", "gpu gpu_tiny", "gpu_tiny gpu"},
		{"gpu", "gpu_tiny gpu small", "gpu"},
		{"none", "gpu_tiny small", ""},
	} {
		var places []gpuserver.Entry
		for _, name := range strings.Fields(tt.places) {
			places = append(places, gpuserver.Entry{Flavor: name})
		}
		var got []string
		for _, e := range (Run{Flavor: tt.flavor}).choose(places, flavors) {
			got = append(got, e.Flavor)
		}
		if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%q of %s (-want +got): %s", tt.flavor, tt.places, d)
		}
	}
}

// A job for a model that no host has is told so, and goes once a host has one.
func TestModelThatNoHostHas(t *testing.T) {
	inBubble(t, gpuFleet, func(b *bench) {
		without := seedHost()
		for i := range without.Slots {
			for j := range without.Slots[i].Cards {
				without.Slots[i].Cards[j].Model = "a100"
			}
		}
		b.cloud.SetHosts([]gpuserver.Host{without})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		id := b.job("gpu1")
		b.pass(time.Minute)
		j := b.wantJob(id, gpuserver.JobQueued)
		const words = "flavor gpu1 needs 1 card of model v100, and no host has a card of that model"
		if j.Reason.Class != gpuserver.ReasonNoPlace || !strings.Contains(j.Reason.Text, words) || j.Reason.Help == "" {
			t.Errorf("it waits with %+v", j.Reason)
		}
		b.cloud.SetHosts([]gpuserver.Host{seedHost()})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		b.pass(time.Minute)
		b.wantJob(id, gpuserver.JobStarting)
		b.running(id, b.vm(b.read(id).VM).Runner.Name)
		b.done(id, "success")
		b.pass(time.Minute)
		b.isEmpty()
	})
}
