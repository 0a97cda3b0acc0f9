package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/guest"
	"gpuserver/internal/health"
	"gpuserver/internal/pci"
	"gpuserver/internal/store"
)

// sick is the reading of the seed's card at 0000:44:00.0 with something wrong.
func sick(change func(*pci.Reading)) pci.Reading {
	r := pci.Reading{
		Address: "0000:44:00.0", Present: true, VendorID: "10de", DeviceID: "1db4", Driver: "vfio-pci", Group: 32,
		Link: pci.Link{Width: 16, MaxWidth: 16}, AER: &pci.AER{},
	}
	if change != nil {
		change(&r)
	}
	return r
}

// A card that is not well before a VM is made is found before anybody is asked
// for the VM, and costs the job nothing.
func TestCardReadBeforeTheVM(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(*pci.Reading)
		state   gpuserver.GPUState
		strikes float64
	}{
		"dead":           {func(r *pci.Reading) { r.Dead = true }, gpuserver.GPUQuarantined, 3},
		"gone":           {func(r *pci.Reading) { *r = pci.Reading{Address: r.Address} }, gpuserver.GPUQuarantined, 3},
		"a narrow link":  {func(r *pci.Reading) { r.Link.Width = 8 }, gpuserver.GPUInService, 1},
		"nothing known":  {func(r *pci.Reading) { *r = pci.Reading{Address: r.Address, Present: true, Group: -1} }, gpuserver.GPUInService, 0},
		"slow, at rest":  {func(r *pci.Reading) { r.Link.Speed, r.Link.MaxSpeed = 2.5, 8 }, gpuserver.GPUInService, 0},
		"old log lines":  {func(r *pci.Reading) { r.Log = []pci.LogLine{{At: time.Now(), Trouble: pci.TroubleReset}} }, gpuserver.GPUInService, 0},
		"errors of old":  {func(r *pci.Reading) { r.AER.Fatal = 7 }, gpuserver.GPUInService, 0},
		"another driver": {func(r *pci.Reading) { r.Driver = "" }, gpuserver.GPUInService, 0},
	} {
		t.Run(name, func(t *testing.T) {
			gpuBench(t, func(b *bench) {
				b.cloud.SetCard(sick(tt.change))
				id := b.job("gpu1")
				j := b.wantJob(id, gpuserver.JobStarting)
				b.wantCard("0000:44:00.0", tt.state, tt.strikes)
				want := "0000:44:00.0"
				if tt.strikes > 0 {
					want = "0000:a3:00.0"
					if v := b.vm(1); v.CloudID != "" || !strings.Contains(v.Reason, "GPU at 0000:44:00.0") {
						t.Errorf("the first VM: %+v", v)
					}
				}
				if got := b.devices(j.VM); !slices.Equal(got, []string{want}) || j.Tries != 0 {
					t.Errorf("the job runs on %v after %d tries, want %s after none", got, j.Tries, want)
				}
			})
		})
	}
}

// A card that hangs the reading does not hang the job for long.
func TestCardThatHangsTheReading(t *testing.T) {
	gpuBench(t, func(b *bench) {
		b.cloud.SetFaults([]fake.Fault{{At: "cards.before", Stall: true, Times: 1}})
		id := b.job("gpu1")
		b.pass(readLimit - time.Second)
		b.wantVM(1, gpuserver.VMCreating)
		b.pass(2 * time.Second)
		b.wantVM(1, gpuserver.VMGone)
		b.wantCard("0000:44:00.0", gpuserver.GPUInService, 1)
		if j := b.wantJob(id, gpuserver.JobStarting); j.Tries != 0 || b.devices(j.VM)[0] != "0000:a3:00.0" {
			t.Errorf("%+v", j)
		}
	})
}

// If the cards cannot be read at all, that says nothing of them: it is tried again.
func TestCardsCannotBeRead(t *testing.T) {
	gpuBench(t, func(b *bench) {
		b.cloud.SetFaults([]fake.Fault{{At: "cards.before", Kind: gpuserver.KindUnavailable, Times: 2}})
		id := b.job("gpu1")
		b.pass(10 * time.Second)
		b.wantCard("0000:44:00.0", gpuserver.GPUInService, 0)
		if v := b.vm(b.starting(id)); v.ID != 1 || v.State != gpuserver.VMBooting {
			t.Errorf("VM %d is %s", v.ID, v.State)
		}
	})
}

// A card is looked at after its VM, before anybody gets its group: what changed
// since the VM was made counts.
func TestCardReadAfterTheVM(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(*pci.Reading)
		restart bool // the service, in between
		state   gpuserver.GPUState
		strikes float64
	}{
		"well":                      {func(*pci.Reading) {}, false, gpuserver.GPUInService, 0},
		"dead":                      {func(r *pci.Reading) { r.Dead = true }, false, gpuserver.GPUQuarantined, 3},
		"fatal errors":              {func(r *pci.Reading) { r.AER.Fatal = 1 }, false, gpuserver.GPUInService, 2},
		"fatal errors of who knows": {func(r *pci.Reading) { r.AER.Fatal = 1 }, true, gpuserver.GPUInService, 0},
		"a reset that failed": {func(r *pci.Reading) {
			r.Log = []pci.LogLine{{At: time.Now(), Trouble: pci.TroubleReset, Text: "not ready"}}
		}, false, gpuserver.GPUQuarantined, 3},
		"a reset that failed, after a restart": {func(r *pci.Reading) {
			r.Log = []pci.LogLine{{At: time.Now(), Trouble: pci.TroubleReset, Text: "not ready"}}
		}, true, gpuserver.GPUQuarantined, 3},
		"a reset that failed before the VM": {func(r *pci.Reading) {
			r.Log = []pci.LogLine{{At: time.Now().Add(-time.Hour), Trouble: pci.TroubleReset, Text: "not ready"}}
		}, true, gpuserver.GPUInService, 0},
	} {
		t.Run(name, func(t *testing.T) {
			gpuBench(t, func(b *bench) {
				b.cloud.SetCard(sick(nil))
				b.pass(time.Minute)
				id := b.job("gpu1")
				vm := b.starting(id)
				b.gate(vm)
				b.beat(vm, guest.Heartbeat{Phase: "runner"})
				b.running(id, b.vm(vm).Runner.Name)
				if tt.restart {
					b.stop()
					b.start(gpuFleet)
				}
				b.pass(time.Minute)
				b.cloud.SetCard(sick(tt.change))
				b.done(id, "failure")
				b.pass(afterLimit)
				b.wantVM(vm, gpuserver.VMGone)
				b.wantCard("0000:44:00.0", tt.state, tt.strikes)
				if j := b.read(id); (j.Reason.Class == gpuserver.ReasonGPU) != (tt.strikes > 0) {
					t.Errorf("the job's reason is %+v", j.Reason)
				}
			})
		})
	}
}

// If the card takes its VM with it, the forge's word comes last.
func TestCardThatTakesItsVMWithIt(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		vm := b.starting(id)
		b.gate(vm)
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.running(id, b.vm(vm).Runner.Name)
		b.cloud.SetCard(sick(func(r *pci.Reading) { r.Dead = true }))
		if err := b.cloud.Stop(b.vm(vm).Name, "crashed"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantVM(vm, gpuserver.VMGone)
		b.wantCard("0000:44:00.0", gpuserver.GPUQuarantined, 3)
		b.wantJob(id, gpuserver.JobRunning)
		b.done(id, "failure")
		if j := b.read(id); j.Reason.Class != gpuserver.ReasonGPU {
			t.Errorf("the job's reason is %+v", j.Reason)
		}
	})
}

// What was held against a card once is not held against it again by the next VM.
func TestErrorsCountOnce(t *testing.T) {
	gpuBench(t, func(b *bench) {
		b.cloud.SetCard(sick(nil))
		for i := range 2 {
			id := b.job("gpu1")
			vm := b.starting(id)
			b.gate(vm)
			if i == 0 {
				b.cloud.SetCard(sick(func(r *pci.Reading) {
					r.AER.NonFatal = 3
					r.Log = []pci.LogLine{{At: time.Now(), Trouble: pci.TroubleSlowReset, Text: "not ready"}}
				}))
			}
			b.finish(id, "success")
			b.wantCard("0000:44:00.0", gpuserver.GPUInService, 1)
			b.pass(10 * time.Minute) // its rest
		}
	})
}

// A line that the host's kernel writes while the card is read is judged with that
// reading, and not with the next one again.
func TestLineDuringTheReadingCountsOnce(t *testing.T) {
	f := &Fleet{looked: map[place]looked{}}
	at := time.Unix(1000, 0)
	r := sick(func(r *pci.Reading) {
		r.Log = []pci.LogLine{{At: at.Add(-time.Hour)}, {At: at.Add(time.Millisecond), Trouble: pci.TroubleSlowReset}}
	})
	f.remember(gpuserver.VM{Cloud: "local", Host: "h"}, judged{readings: map[string]pci.Reading{r.Address: r}, at: at})
	last := f.looked[place{"local", "h", r.Address}]
	if es := health.Host(r, health.Before{At: last.at, Reading: &last.reading}); len(es) != 0 {
		t.Errorf("counted again: %+v", es)
	}
	r.Log = append(r.Log, pci.LogLine{At: at.Add(2 * time.Millisecond), Trouble: pci.TroubleSlowReset})
	if es := health.Host(r, health.Before{At: last.at, Reading: &last.reading}); len(es) != 1 {
		t.Errorf("what came since: %+v", es)
	}
}

// Two VMs never share a group, and a strike is committed with the release: the
// planner never sees the group free before it sees the strike.
func TestStruckCardIsNotGivenAgain(t *testing.T) {
	gpuBench(t, func(b *bench) {
		var ids []gpuserver.JobID
		for range 5 { // four have a group, the fifth waits
			ids = append(ids, b.job("gpu1"))
		}
		vm := b.starting(ids[0])
		if b.devices(vm)[0] != "0000:44:00.0" {
			t.Fatalf("the first VM has %v", b.devices(vm))
		}
		b.cloud.SetCard(sick(func(r *pci.Reading) { r.Dead = true }))
		b.gate(vm)
		b.running(ids[0], b.vm(vm).Runner.Name)
		b.done(ids[0], "failure")
		b.pass(afterLimit)
		b.wantVM(vm, gpuserver.VMGone)
		b.pass(time.Minute)
		j := b.wantJob(ids[4], gpuserver.JobQueued)
		bad := b.card("0000:44:00.0").ID
		want := fmt.Sprintf("group 32 is out of service: card %d at 0000:44:00.0 is quarantined since", bad)
		if !strings.Contains(j.Reason.Text, want) || !strings.Contains(j.Reason.Text, fmt.Sprintf("gpuserver gpu uncordon %d", bad)) {
			t.Errorf("the fifth job waits because it %s, want %q", j.Reason.Text, want)
		}
		if err := b.fleet.UncordonGPU(b.ctx, bad, "bob"); err != nil {
			t.Fatal(err)
		}
		b.cloud.SetCard(sick(nil))
		b.settle()
		if got := b.devices(b.starting(ids[4])); got[0] != "0000:44:00.0" {
			t.Errorf("once it is back, the fifth job has %v", got)
		}
	})
}

// A card that rests is given away again when its rest is over, without a word.
func TestRestEnds(t *testing.T) {
	gpuBench(t, func(b *bench) {
		b.update(func(tx *store.Tx) error {
			all, err := tx.GPUs()
			for _, g := range all {
				g.RestUntil, g.Reason, g.Strikes, g.StruckAt = tx.Now.Add(10*time.Second), "power brake", 1, tx.Now
				if err := tx.SaveGPU(&g); err != nil {
					return err
				}
			}
			return err
		})
		id := b.job("gpu1")
		if j := b.wantJob(id, gpuserver.JobQueued); !strings.Contains(j.Reason.Text, "rests until") {
			t.Errorf("it waits because it %s", j.Reason.Text)
		}
		b.pass(9 * time.Second)
		b.wantJob(id, gpuserver.JobQueued)
		b.pass(2 * time.Second)
		b.wantJob(id, gpuserver.JobStarting)
	})
}

// An idle card that died is out with the next look at the host; one that a VM has
// is judged with the VM. What a look tells beside that is noted.
func TestRefreshFindsDeadCards(t *testing.T) {
	gpuBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		if b.devices(vm)[0] != "0000:44:00.0" {
			t.Fatal(b.devices(vm))
		}
		b.cloud.SetCard(sick(func(r *pci.Reading) { r.Dead = true }))
		idle := sick(func(r *pci.Reading) { r.Address, r.Dead = "0000:a3:00.0", true })
		b.cloud.SetCard(idle)
		b.cloud.SetCard(sick(func(r *pci.Reading) { r.Address, r.Link.Width = "0000:c3:00.0", 8 }))
		for range 3 {
			b.fleet.refreshCapacity(b.ctx, b.drv)
		}
		b.settle()
		b.wantCard("0000:a3:00.0", gpuserver.GPUQuarantined, 3)
		b.wantCard("0000:44:00.0", gpuserver.GPUInService, 0)
		if g := b.wantCard("0000:c3:00.0", gpuserver.GPUInService, 0); g.LinkWidth != 16 {
			t.Errorf("the widest link of a card whose link is narrow now: %d", g.LinkWidth)
		}
		if got := b.history(b.card("0000:a3:00.0").ID); got != "seen strike quarantined" {
			t.Errorf("its history: %s", got)
		}
	})
}

// A deletion that takes longer than a reset may takes the cards out once, and
// goes on.
func TestResetThatHangs(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu2")
		vm := b.starting(id)
		b.gate(vm)
		b.cloud.SetFaults([]fake.Fault{
			{At: "delete.before", Delay: resetLimit + time.Minute, Kind: gpuserver.KindUnavailable, Times: 2},
			{At: "delete.before", Delay: resetLimit - time.Second, Kind: gpuserver.KindUnavailable, Times: 1},
		})
		if err := b.fleet.DeleteVM(b.ctx, vm, "test"); err != nil {
			t.Fatal(err)
		}
		b.pass(resetLimit - time.Second)
		b.wantCard("0000:27:00.0", gpuserver.GPUInService, 0)
		b.pass(2 * time.Second)
		b.wantCard("0000:27:00.0", gpuserver.GPUQuarantined, 3)
		b.wantCard("0000:28:00.0", gpuserver.GPUQuarantined, 3)
		b.wantVM(vm, gpuserver.VMDeleting)
		b.pass(10 * time.Minute)
		b.wantVM(vm, gpuserver.VMGone)
		g := b.wantCard("0000:27:00.0", gpuserver.GPUQuarantined, 3)
		if got := b.history(g.ID); got != "seen seen gate_passed strike quarantined" {
			t.Errorf("its history: %s", got)
		}
	})
}
