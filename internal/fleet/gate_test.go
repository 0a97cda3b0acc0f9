package fleet

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
)

// gpuBench is a bench on the seed's machine.
func gpuBench(t *testing.T, fn func(*bench)) {
	t.Helper()
	inBubble(t, gpuFleet, func(b *bench) {
		b.cloud.SetHosts([]gpuserver.Host{seedHost()})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		b.settle()
		fn(b)
	})
}

// cardUUID is what the driver tells of the card at an address of the seed's host.
func cardUUID(address string) string { return "GPU-" + address }

// report is what a guest with these cards, given by their addresses, finds.
func report(when string, cards []string, findings ...gate.Finding) *gate.Report {
	r := &gate.Report{When: when, Passed: len(findings) == 0, Findings: findings, Tool: "nvidia-smi 550"}
	for _, a := range cards {
		r.Cards = append(r.Cards, gate.Card{VendorID: "10de", DeviceID: "1db4", Host: a, UUID: cardUUID(a), Serial: "s" + a})
	}
	return r
}

// devices gives the addresses of a VM's cards.
func (b *bench) devices(vm gpuserver.VMID) []string {
	b.t.Helper()
	spec, err := b.cloud.Spec(b.vm(vm).Name)
	if err != nil {
		b.t.Fatal(err)
	}
	return spec.Devices
}

// gate has a VM's guest report its cards, with what is wrong with them.
func (b *bench) gate(vm gpuserver.VMID, findings ...gate.Finding) {
	b.t.Helper()
	r := report(gate.Before, b.devices(vm), findings...)
	for i, e := range b.expected(vm).Cards {
		r.Cards[i].Host = e.Host
	}
	b.beat(vm, guest.Heartbeat{Phase: "gate", Gate: r})
}

// expected is what a VM's guest was told to find.
func (b *bench) expected(vm gpuserver.VMID) *gate.Expectation {
	b.t.Helper()
	spec, err := b.cloud.Spec(b.vm(vm).Name)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := guest.ParseUserData(spec.UserData)
	if err != nil {
		b.t.Fatal(err)
	}
	return p.Gate
}

func (b *bench) starting(id gpuserver.JobID) gpuserver.VMID {
	b.t.Helper()
	return b.wantJob(id, gpuserver.JobStarting).VM
}

// card gives the card at an address of the seed's host.
func (b *bench) card(address string) (g gpuserver.GPU) {
	b.t.Helper()
	if err := b.db.View(b.ctx, func(tx *store.Tx) (err error) { g, err = tx.GPUAt("local", "fake", address); return err }); err != nil {
		b.t.Fatal(address, err)
	}
	return g
}

// wantCard checks a card's state and points.
func (b *bench) wantCard(address string, s gpuserver.GPUState, strikes float64) gpuserver.GPU {
	b.t.Helper()
	g := b.card(address)
	if g.State != s || g.Strikes != strikes {
		b.t.Errorf("the card at %s is %s with %v points (%s), want %s with %v", address, g.State, g.Strikes, g.Reason, s, strikes)
	}
	return g
}

// history gives the kinds of what happened to a card, oldest first.
func (b *bench) history(id gpuserver.GPUID) string {
	b.t.Helper()
	var kinds []string
	_ = b.db.View(b.ctx, func(tx *store.Tx) error {
		es, err := tx.GPUEvents(id, 100)
		for _, e := range slices.Backward(es) {
			kinds = append(kinds, e.Kind)
		}
		return err
	})
	return strings.Join(kinds, " ")
}

// finish runs a job to its end in its VM.
func (b *bench) finish(id gpuserver.JobID, conclusion string) gpuserver.VMID {
	b.t.Helper()
	vm := b.starting(id)
	b.beat(vm, guest.Heartbeat{Phase: "runner"})
	b.running(id, b.vm(vm).Runner.Name)
	b.done(id, conclusion)
	b.pass(afterLimit + time.Second)
	b.wantVM(vm, gpuserver.VMGone)
	return vm
}

func TestGatePasses(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu2")
		vm := b.starting(id)
		want := &gate.Expectation{Timeout: 2 * time.Minute, Cards: []gate.ExpectedCard{
			{VendorID: "10de", DeviceID: "1db4", Host: "0000:27:00.0"}, {VendorID: "10de", DeviceID: "1db4", Host: "0000:28:00.0"},
		}}
		if d := cmp.Diff(want, b.expected(vm)); d != "" {
			t.Errorf("the guest expects (-want +got):\n%s", d)
		}
		b.gate(vm)
		b.wantVM(vm, gpuserver.VMBooting)
		for _, a := range []string{"0000:27:00.0", "0000:28:00.0"} {
			g := b.wantCard(a, gpuserver.GPUInService, 0)
			if g.UUID != cardUUID(a) || g.Serial != "s"+a || g.VendorID != "10de" || g.DeviceID != "1db4" || g.LinkWidth != 16 {
				t.Errorf("what is known of the card: %+v", g)
			}
			if got := b.history(g.ID); got != "seen seen gate_passed" {
				t.Errorf("its history: %s", got)
			}
		}
		b.finish(id, "success")
		var cards []gpuserver.GPU
		_ = b.db.View(b.ctx, func(tx *store.Tx) (err error) { cards, err = tx.GPUsOfJob(id); return err })
		if len(cards) != 2 || cards[1].Address != "0000:28:00.0" {
			t.Errorf("the job's record names %+v", cards)
		}
		b.isEmpty()
	})
}

// A card that fails before the job costs it nothing: its registration is made
// anew, and it runs on another card. Only the card's group is out.
func TestGateFails(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		first := b.starting(id)
		b.gate(first, gate.Finding{Host: "0000:44:00.0", Kind: gate.KindECC, Text: "2 uncorrectable errors"})
		b.wantVM(first, gpuserver.VMGone)
		g := b.wantCard("0000:44:00.0", gpuserver.GPUQuarantined, 3)
		if got := b.history(g.ID); got != "seen seen strike quarantined" {
			t.Errorf("its history: %s", got)
		}
		j := b.wantJob(id, gpuserver.JobStarting)
		if j.Tries != 0 || j.VM == first || len(b.forge.runners) != 1 {
			t.Errorf("the job was charged %d tries, has VM %d, and the forge has %d runners", j.Tries, j.VM, len(b.forge.runners))
		}
		if v := b.vm(first); !strings.Contains(v.Reason, "GPU at 0000:44:00.0 of local/fake") || !strings.Contains(v.Reason, "2 uncorrectable errors") {
			t.Errorf("the VM failed because %q", v.Reason)
		}
		if got := b.devices(j.VM); !slices.Equal(got, []string{"0000:a3:00.0"}) {
			t.Errorf("the second VM has %v", got)
		}
		two := b.job("gpu2", "gpu2")
		if got := b.devices(b.starting(two)); !slices.Equal(got, []string{"0000:27:00.0", "0000:28:00.0"}) {
			t.Errorf("the other groups serve: a pair is %v", got)
		}
	})
}

// What a guest says of itself counts less than what was attached.
func TestGuestThatLies(t *testing.T) {
	for name, tt := range map[string]struct {
		report  gate.Report
		strikes float64
		state   gpuserver.GPUState
	}{
		"passed, without its card": {gate.Report{Passed: true}, 3, gpuserver.GPUQuarantined},
		"passed, with another card": {
			gate.Report{Passed: true, Cards: []gate.Card{{VendorID: "10de", DeviceID: "2330"}}}, 3, gpuserver.GPUQuarantined,
		},
		"passed, with one too many": {*report("", []string{"0000:44:00.0", "0000:a3:00.0"}), 1, gpuserver.GPUInService},
		"blames a card that it has not": {
			*report("", []string{"0000:44:00.0"}, gate.Finding{Host: "0000:27:00.0", Kind: gate.KindDead}), 1, gpuserver.GPUInService,
		},
	} {
		t.Run(name, func(t *testing.T) {
			gpuBench(t, func(b *bench) {
				vm := b.starting(b.job("gpu1"))
				r := tt.report
				b.beat(vm, guest.Heartbeat{Phase: "gate", Gate: &r})
				b.wantVM(vm, gpuserver.VMGone)
				b.wantCard("0000:44:00.0", tt.state, tt.strikes)
				for _, other := range []string{"0000:27:00.0", "0000:28:00.0", "0000:a3:00.0", "0000:c3:00.0"} {
					b.wantCard(other, gpuserver.GPUInService, 0)
				}
			})
		})
	}
}

// A report counts once, however often it is sent.
func TestGateReportCountsOnce(t *testing.T) {
	gpuBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		finding := gate.Finding{Host: "0000:44:00.0", Kind: gate.KindThrottle, Text: "power brake"}
		r := report(gate.Before, []string{"0000:44:00.0"}, finding)
		b.gate(vm, finding)
		for _, phase := range []string{"gate", "agent", "gate", "exited"} {
			b.beat(vm, guest.Heartbeat{Phase: phase, Gate: r})
		}
		g := b.wantCard("0000:44:00.0", gpuserver.GPUInService, 1)
		if rest := time.Until(g.RestUntil); rest != 10*time.Minute {
			t.Errorf("it rests for %s", rest)
		}
	})
}

// The first word counts: once its cards passed, a guest cannot take it back, as
// by then its job may have written it.
func TestGateIsNotTakenBack(t *testing.T) {
	gpuBench(t, func(b *bench) {
		vm := b.starting(b.job("gpu1"))
		b.gate(vm)
		for _, phase := range []string{"runner", "gate"} {
			b.beat(vm, guest.Heartbeat{Phase: phase, Gate: report(gate.Before, nil)})
			b.wantCard("0000:44:00.0", gpuserver.GPUInService, 0)
		}
		b.wantVM(vm, gpuserver.VMReady)
	})
}

func TestRunnerWithoutACheck(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		vm := b.starting(id)
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.wantVM(vm, gpuserver.VMGone)
		if v := b.vm(vm); !strings.Contains(v.Reason, "no check of its GPUs") {
			t.Errorf("it failed because %q", v.Reason)
		}
		if j := b.wantJob(id, gpuserver.JobQueued); j.Tries != 1 {
			t.Errorf("the job is charged %d tries; an image that is too old would go on for ever", j.Tries)
		}
		b.wantCard("0000:44:00.0", gpuserver.GPUInService, 0)
	})
}

// A VM that reports nothing in time may have written it to its console.
func TestReportOnTheConsole(t *testing.T) {
	for name, tt := range map[string]struct {
		line    string
		strikes float64
		tries   int
		image   int
	}{
		"failed": {report(gate.Before, []string{"0000:44:00.0"}, gate.Finding{Host: "0000:44:00.0", Kind: gate.KindXid, Text: "Xid 48"}).Line(), 2, 0, 0},
		"passed": {report(gate.Before, []string{"0000:44:00.0"}).Line(), 0, 1, 1},
		"none":   {"Kernel panic - not syncing", 1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			gpuBench(t, func(b *bench) {
				id := b.job("gpu1")
				v := b.vm(b.starting(id))
				if err := b.cloud.Write(v.Name, []byte("[ 1.0] boot\r\n"+tt.line+"\r\n")); err != nil {
					t.Fatal(err)
				}
				b.pass(time.Until(v.BootDeadline))
				b.wantVM(v.ID, gpuserver.VMGone)
				b.wantCard("0000:44:00.0", gpuserver.GPUInService, tt.strikes)
				if j := b.read(id); j.Tries != tt.tries {
					t.Errorf("the job is charged %d tries, want %d", j.Tries, tt.tries)
				}
				_ = b.db.View(b.ctx, func(tx *store.Tx) error {
					failures := 0
					images, err := tx.Images()
					for _, h := range images {
						failures += h.Failures
					}
					if failures != tt.image {
						t.Errorf("%d failures of the image, want %d", failures, tt.image)
					}
					return err
				})
			})
		})
	}
}

// A VM that stops by itself before it reported is asked on its console, too.
func TestStoppedBeforeItsReport(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		v := b.vm(b.starting(id))
		r := report(gate.Before, []string{"0000:44:00.0"}, gate.Finding{Kind: gate.KindMissing, Text: "no card"})
		if err := b.cloud.Write(v.Name, []byte(r.Line()+"\n")); err != nil {
			t.Fatal(err)
		}
		if err := b.cloud.Stop(v.Name, "shutdown"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantCard("0000:44:00.0", gpuserver.GPUQuarantined, 3)
		if j := b.wantJob(id, gpuserver.JobStarting); j.Tries != 0 || j.VM == v.ID {
			t.Errorf("%+v", j)
		}
		second := b.vm(b.starting(id))
		if err := b.cloud.Stop(second.Name, "crashed"); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.wantCard("0000:a3:00.0", gpuserver.GPUInService, 1)
		if j := b.read(id); j.Tries != 1 {
			t.Errorf("the job is charged %d tries", j.Tries)
		}
	})
}

// A VM that is lost with its host, before it could report, says nothing of its card.
func TestLostBeforeItsReport(t *testing.T) {
	gpuBench(t, func(b *bench) {
		v := b.vm(b.starting(b.job("gpu1")))
		b.cloud.Vanish(v.Name)
		b.fleet.compareCloud(b.ctx, b.drv)
		b.settle()
		b.wantVM(v.ID, gpuserver.VMGone)
		b.wantCard("0000:44:00.0", gpuserver.GPUInService, 0)
	})
}

// What may be the image's fault is held against the image as well.
func TestImageWhoseToolFails(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		for i := range 3 {
			vm := b.starting(id)
			b.gate(vm, gate.Finding{Host: b.devices(vm)[0], Kind: gate.KindTool, Text: "nvidia-smi: not found"})
			b.wantVM(vm, gpuserver.VMGone)
			_ = i
		}
		if j := b.wantJob(id, gpuserver.JobQueued); j.Tries != 0 || j.Reason.Class != gpuserver.ReasonImageHeld {
			t.Errorf("after three failures the job waits with %+v after %d tries", j.Reason, j.Tries)
		}
	})
}

// What is found after a job is named on it, if it failed. Alone, the guest's word
// takes no card out.
func TestFailureDuringTheJob(t *testing.T) {
	for conclusion, named := range map[string]bool{"failure": true, "timed_out": true, "success": false, "cancelled": false} {
		t.Run(conclusion, func(t *testing.T) {
			gpuBench(t, func(b *bench) {
				id := b.job("gpu1")
				vm := b.starting(id)
				b.gate(vm)
				b.beat(vm, guest.Heartbeat{Phase: "runner"})
				b.running(id, b.vm(vm).Runner.Name)
				b.done(id, conclusion)
				b.wantVM(vm, gpuserver.VMDeleting) // it is looking at its cards
				exit := 1
				r := report(gate.After, []string{"0000:44:00.0"}, gate.Finding{Host: "0000:44:00.0", Kind: gate.KindECC, Text: "5 uncorrectable errors"})
				b.beat(vm, guest.Heartbeat{Phase: "exited", RunnerExit: &exit, Gate: r})
				b.wantVM(vm, gpuserver.VMGone)
				b.wantCard("0000:44:00.0", gpuserver.GPUInService, 2)
				j := b.read(id)
				if got := j.Reason.Class == gpuserver.ReasonGPU && strings.Contains(j.Reason.Text, "GPU at 0000:44:00.0") && strings.Contains(j.Reason.Text, "during the job"); got != named {
					t.Errorf("a job that ended with %s has the reason %+v", conclusion, j.Reason)
				}
			})
		})
	}
}

// The guest may report before the forge does, and then the VM goes at once.
func TestReportBeforeTheForgesWord(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		vm := b.starting(id)
		b.gate(vm)
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.running(id, b.vm(vm).Runner.Name)
		exit := 1
		r := report(gate.After, []string{"0000:44:00.0"}, gate.Finding{Host: "0000:44:00.0", Kind: gate.KindXid, Text: "Xid 79"})
		b.beat(vm, guest.Heartbeat{Phase: "exited", RunnerExit: &exit, Gate: r})
		for _, phase := range []string{"runner", "exited"} { // what is sent twice counts once
			b.beat(vm, guest.Heartbeat{Phase: phase, RunnerExit: &exit, Gate: r})
		}
		b.wantCard("0000:44:00.0", gpuserver.GPUInService, 2)
		b.done(id, "failure")
		b.wantVM(vm, gpuserver.VMGone)
		if j := b.read(id); j.Reason.Class != gpuserver.ReasonGPU {
			t.Errorf("the job's reason is %+v", j.Reason)
		}
	})
}

// A VM whose guest does not answer after its job is not waited for for long, and
// its console is read.
func TestGuestSilentAfterTheJob(t *testing.T) {
	gpuBench(t, func(b *bench) {
		id := b.job("gpu1")
		vm := b.starting(id)
		b.gate(vm)
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.running(id, b.vm(vm).Runner.Name)
		r := report(gate.After, []string{"0000:44:00.0"}, gate.Finding{Host: "0000:44:00.0", Kind: gate.KindXid, Text: "Xid 79"})
		if err := b.cloud.Write(b.vm(vm).Name, []byte(r.Line()+"\n")); err != nil {
			t.Fatal(err)
		}
		b.done(id, "failure")
		interrupted, cancel := context.WithCancel(b.ctx)
		cancel()
		if d := b.fleet.delete(interrupted, b.vm(vm)); d <= 0 {
			t.Error("a step that was interrupted is not repeated")
		}
		b.pass(afterLimit - time.Second)
		b.wantVM(vm, gpuserver.VMDeleting)
		b.pass(time.Second)
		b.wantVM(vm, gpuserver.VMGone)
		b.wantCard("0000:44:00.0", gpuserver.GPUInService, 2)
	})
}

// One bad card, ten jobs, one after the other: none meets it twice, none is
// charged, and all run.
func TestOneBadCardTenJobs(t *testing.T) {
	gpuBench(t, func(b *bench) { tenJobs(b, "0000:44:00.0") })
}

// tenJobs runs ten jobs on a cloud with a bad card.
func tenJobs(b *bench, bad string) {
	b.t.Helper()
	met := 0
	for n := range 10 {
		id := b.job("gpu1")
		mine := 0
		for range 5 {
			vm := b.starting(id)
			if cards := b.devices(vm); cards[0] == bad {
				mine++
				b.gate(vm, gate.Finding{Host: b.told(vm), Kind: gate.KindXid, Text: "Xid 79"})
				continue
			}
			b.gate(vm)
			break
		}
		if met += mine; mine > 1 {
			b.t.Errorf("job %d met the bad card %d times", n, mine)
		}
		if j := b.read(id); j.Tries != 0 {
			b.t.Errorf("job %d was charged %d tries", n, j.Tries)
		}
		b.finish(id, "success")
	}
	if met == 0 {
		b.t.Error("no job met the bad card: the test shows nothing")
	}
}

// told is how a VM's guest was told to call its first card.
func (b *bench) told(vm gpuserver.VMID) string {
	b.t.Helper()
	return b.expected(vm).Cards[0].Host
}
