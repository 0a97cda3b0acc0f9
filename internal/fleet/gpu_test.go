package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuserver"
)

// gpuFleet is a fleet on the host that this project began with: six V100 in four
// groups.
func gpuFleet(o *Options) {
	o.Flavors = maps.Clone(o.Flavors)
	for _, n := range []int{1, 2} {
		name := fmt.Sprint("gpu", n)
		o.Flavors[name] = gpuserver.Flavor{Name: name, VCPUs: 1, MemoryMiB: 1024, DiskGiB: 1, GPUs: gpuserver.GPUs{Model: "v100", Count: n}}
	}
}

func seedHost() gpuserver.Host {
	h := gpuserver.Host{Name: "fake", VCPUs: 48, MemoryMiB: 500 << 10, DiskGiB: 2000}
	for group, cards := range map[int][]string{19: {"27", "28"}, 32: {"44"}, 75: {"a3"}, 87: {"c3", "c4"}} {
		s := gpuserver.Slot{Group: group}
		for _, c := range cards {
			s.Cards = append(s.Cards, gpuserver.Card{Address: "0000:" + c + ":00.0", Model: "v100"})
		}
		h.Slots = append(h.Slots, s)
	}
	return h
}

// TestGPUsOfAJob follows cards from the plan over the ledger to the VM and back.
func TestGPUsOfAJob(t *testing.T) {
	inBubble(t, gpuFleet, func(b *bench) {
		b.cloud.SetHosts([]gpuserver.Host{seedHost()})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		var ids []gpuserver.JobID
		for _, flavor := range []string{"gpu2", "gpu1", "gpu2", "gpu1", "gpu1"} {
			ids = append(ids, b.job(flavor))
		}
		want := [][]string{
			{"0000:27:00.0", "0000:28:00.0"}, {"0000:44:00.0"}, {"0000:c3:00.0", "0000:c4:00.0"}, {"0000:a3:00.0"},
		}
		for i, cards := range want {
			v := b.vm(b.wantJob(ids[i], gpuserver.JobStarting).VM)
			spec, err := b.cloud.Spec(v.Name)
			if err != nil || !slices.Equal(spec.Devices, cards) {
				t.Errorf("the VM of job %d has devices %v (%v), want %v", i, spec.Devices, err, cards)
			}
		}
		v := b.vm(b.read(ids[0]).VM)
		if d := v.BootDeadline.Sub(v.StateAt); d != 5*time.Minute+2*time.Second+2*time.Minute { // it has 1 GiB, and checks its cards
			t.Errorf("a VM with cards may boot for %s", d)
		}
		b.pass(time.Minute)
		if j := b.wantJob(ids[4], gpuserver.JobQueued); j.Reason.Class != gpuserver.ReasonCapacity || j.Reason.Text == "" {
			t.Errorf("the fifth job waits with %+v", j.Reason)
		}
		first := b.read(ids[1])
		b.running(ids[1], b.vm(first.VM).Runner.Name)
		b.done(ids[1], "success")
		b.pass(time.Minute)
		v = b.vm(b.wantJob(ids[4], gpuserver.JobStarting).VM)
		if len(v.Claims) != 1 || v.Claims[0].Group != 32 {
			t.Errorf("the fifth job has %+v, want group 32, which the second one left", v.Claims)
		}
		for _, i := range []int{0, 2, 3, 4} {
			b.running(ids[i], b.vm(b.read(ids[i]).VM).Runner.Name)
			b.done(ids[i], "success")
		}
		b.pass(time.Minute)
		b.isEmpty()
	})
}

// TestSlotOutOfService gives no VM a group that its host says is out, and says so.
func TestSlotOutOfService(t *testing.T) {
	inBubble(t, gpuFleet, func(b *bench) {
		h := seedHost()
		for i := range h.Slots {
			h.Slots[i].Out = "the driver nouveau holds it"
		}
		b.cloud.SetHosts([]gpuserver.Host{h})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		id := b.job("gpu1")
		b.pass(time.Minute)
		j := b.wantJob(id, gpuserver.JobQueued)
		if want := "group 19 is out of service: the driver nouveau holds it"; !strings.Contains(j.Reason.Text, want) {
			t.Errorf("it waits because it %s, want %q", j.Reason.Text, want)
		}
		for i := range h.Slots {
			h.Slots[i].Out = ""
		}
		b.cloud.SetHosts([]gpuserver.Host{h})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		b.settle()
		b.wantJob(id, gpuserver.JobStarting)
	})
}
