package guest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/guest"
)

// smi is a tool that says that two cards are well.
const smi = `#!/bin/sh
cat <<END
<nvidia_smi_log><driver_version>550.90.07</driver_version>
<gpu id="00000000:01:00.0"><uuid>GPU-1</uuid><temperature><gpu_temp>30 C</gpu_temp></temperature></gpu>
<gpu id="00000000:02:00.0"><uuid>GPU-2</uuid><temperature><gpu_temp>31 C</gpu_temp></temperature></gpu>
</nvidia_smi_log>
END
`

// cardHouse is a guest with two cards, of which it has that many.
func cardHouse(t *testing.T, cards int, script string) *house {
	t.Helper()
	h := newHouse(t, script)
	for i := range cards {
		dir := fmt.Sprintf("sys/bus/pci/devices/0000:%02x:00.0/", i+1)
		for name, content := range map[string]string{"vendor": "0x10de\n", "device": "0x1db4\n", "class": "0x030200\n", "config": "\xde\x10\xb4\x1d"} {
			h.write(t, dir+name, content)
		}
	}
	h.write(t, "dev/console", "")
	h.write(t, "usr/bin/nvidia-smi", smi)
	card := gate.ExpectedCard{VendorID: "10de", DeviceID: "1db4"}
	h.payload.Gate = &gate.Expectation{Cards: []gate.ExpectedCard{card, card}}
	h.payload.Gate.Cards[0].Host, h.payload.Gate.Cards[1].Host = "0000:27:00.0", "0000:28:00.0"
	return h
}

// reports gives what was told by heartbeat, and that the console has the same.
func (h *house) reports(t *testing.T) map[string]*gate.Report {
	t.Helper()
	told := map[string]*gate.Report{}
	for _, b := range h.service.beats {
		if b.Gate == nil {
			continue
		}
		if want := map[string]string{gate.Before: guest.PhaseGate, gate.After: guest.PhaseExited}[b.Gate.When]; b.Phase != want {
			t.Errorf("a report of the moment %q came with phase %s", b.Gate.When, b.Phase)
		}
		told[b.Gate.When] = b.Gate
	}
	console := []byte(h.read(t, "dev/console"))
	for _, when := range []string{gate.Before, gate.After} {
		r, ok := gate.FromConsole(console, when)
		if ok != (told[when] != nil) {
			t.Errorf("%s: on the console %v, told %v", when, ok, told[when] != nil)
		} else if ok {
			if diff := cmp.Diff(*told[when], r); diff != "" {
				t.Errorf("%s: the heartbeat and the console differ (-told +console):\n%s", when, diff)
			}
		}
	}
	return told
}

// ran reports whether the runner's process was started.
func (h *house) ran() bool {
	_, err := os.Stat(filepath.Join(h.root, "opt/runner/ran"))
	return err == nil
}

func TestGatePasses(t *testing.T) {
	h := cardHouse(t, 2, "touch ran; exit 7")
	h.start(t)
	h.wait(t)
	if diff := cmp.Diff([]string{"agent", "network", "gate", "runner", "exited"}, h.service.phases()); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	for when, r := range h.reports(t) {
		want := []gate.Card{
			{Address: "0000:01:00.0", VendorID: "10de", DeviceID: "1db4", Host: "0000:27:00.0", UUID: "GPU-1", Temperature: 30},
			{Address: "0000:02:00.0", VendorID: "10de", DeviceID: "1db4", Host: "0000:28:00.0", UUID: "GPU-2", Temperature: 31},
		}
		if diff := cmp.Diff(want, r.Cards); diff != "" || !r.Passed || r.Tool != "nvidia-smi 550.90.07" {
			t.Errorf("%s: %+v (-want +got cards):\n%s", when, r, diff)
		}
	}
	if n := len(h.reports(t)); n != 2 || !h.ran() {
		t.Errorf("%d reports, runner started %v", n, h.ran())
	}
	if last := h.service.last(t); *last.RunnerExit != 7 || last.Verdict != "" {
		t.Errorf("the last report is %+v, expected exit 7", last)
	}
}

// TestGateFails: the runner's process never starts, and the report is told both
// ways.
func TestGateFails(t *testing.T) {
	for name, c := range map[string]struct {
		cards   int
		tool    string
		timeout time.Duration
		kind    gate.Kind
	}{
		"missing":  {cards: 1, tool: smi, kind: gate.KindMissing},
		"none":     {tool: smi, kind: gate.KindMissing},
		"lost":     {cards: 2, tool: "#!/bin/sh\necho 'Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.'; exit 15", kind: gate.KindTool},
		"hung":     {cards: 2, tool: "#!/bin/sh\nexec sleep 100000", timeout: time.Second, kind: gate.KindTimeout},
		"no cards": {cards: 2, tool: "#!/bin/sh\necho No devices were found; exit 6", kind: gate.KindDriver},
	} {
		t.Run(name, func(t *testing.T) {
			h := cardHouse(t, c.cards, "touch ran")
			h.write(t, "usr/bin/nvidia-smi", c.tool)
			h.payload.Gate.Timeout = c.timeout
			h.start(t)
			h.wait(t)
			if h.ran() {
				t.Error("the runner was started")
			}
			if diff := cmp.Diff([]string{"agent", "network", "gate", "exited"}, h.service.phases()); diff != "" {
				t.Errorf("phases (-want +got):\n%s", diff)
			}
			last := h.service.last(t)
			if last.Verdict != guest.VerdictGate || last.RunnerExit == nil || *last.RunnerExit == 0 {
				t.Errorf("the last report is %+v, expected the verdict gate and an exit status", last)
			}
			reports := h.reports(t)
			before := reports[gate.Before]
			if before == nil || before.Passed || len(reports) != 1 {
				t.Fatalf("reports %+v", reports)
			}
			for _, f := range before.Findings {
				if f.Kind == c.kind {
					return
				}
			}
			t.Errorf("no finding of kind %s in %+v", c.kind, before.Findings)
		})
	}
}

// TestGateStopsCommands: a command is gated like a runner.
func TestGateStopsCommands(t *testing.T) {
	h := cardHouse(t, 1, "")
	h.payload.JITConfig, h.payload.Command = "", &gpuserver.Command{Args: []string{"touch", filepath.Join(h.root, "opt/runner/ran")}}
	h.start(t)
	h.wait(t)
	if last := h.service.last(t); h.ran() || last.Verdict != guest.VerdictGate {
		t.Errorf("the command was started (%v), or the verdict is %q", h.ran(), last.Verdict)
	}
}

// TestGateAfterTheJob: a card that the job broke is told with its end, and the
// job keeps its own exit status.
func TestGateAfterTheJob(t *testing.T) {
	h := cardHouse(t, 2, `echo '0,99,5,-;NVRM: Xid (PCI:0000:02:00): 79, GPU has fallen off the bus.' >>"$KMSG"; exit 0`)
	h.payload.Env["KMSG"] = filepath.Join(h.root, "dev/kmsg")
	h.write(t, "dev/kmsg", "6,1,1,-;Linux version 6\n")
	h.start(t)
	h.wait(t)
	after := h.reports(t)[gate.After]
	if after == nil || after.Passed || len(after.Findings) != 1 || after.Findings[0].Kind != gate.KindXid || after.Findings[0].Host != "0000:28:00.0" {
		t.Errorf("the report after the job is %+v", after)
	}
	if last := h.service.last(t); *last.RunnerExit != 0 || last.Verdict != "" {
		t.Errorf("the last report is %+v, expected the job's own status", last)
	}
}

// TestGateIsToldOnTheConsoleOnly: without a server the console has the report, and
// the runner starts all the same.
func TestGateIsToldOnTheConsoleOnly(t *testing.T) {
	h := cardHouse(t, 2, "touch ran; until [ -e go ]; do sleep 0.05; done")
	h.door.closed.Store(true)
	h.start(t)
	h.awaitFile(t, "opt/runner/ran")
	if r, ok := gate.FromConsole([]byte(h.read(t, "dev/console")), gate.Before); !ok || !r.Passed {
		t.Errorf("the console has %+v, %v", r, ok)
	}
	if n := len(h.service.beats); n != 0 {
		t.Errorf("%d reports through a closed door", n)
	}
	h.door.closed.Store(false)
	h.write(t, "opt/runner/go", "")
	h.wait(t)
	if len(h.reports(t)) != 2 {
		t.Error("the reports did not follow")
	}
}

// TestGateIsStopped: an agent that is asked to stop while it looks starts nothing,
// and says nothing of the cards.
func TestGateIsStopped(t *testing.T) {
	h := cardHouse(t, 2, "touch ran")
	h.write(t, "usr/bin/nvidia-smi", "#!/bin/sh\ntouch '"+h.root+"/asked'\nexec sleep 100000\n")
	h.start(t)
	h.awaitFile(t, "asked")
	h.stop()
	h.wait(t)
	if n := len(h.reports(t)); n != 0 || h.ran() {
		t.Errorf("%d reports, runner started %v", n, h.ran())
	}
	if last := h.service.last(t); last.RunnerExit == nil || *last.RunnerExit == 0 || last.Verdict != "" {
		t.Errorf("the last report is %+v, expected a failure without a verdict", last)
	}
}

// TestNoGate: a VM without cards looks at none.
func TestNoGate(t *testing.T) {
	h := cardHouse(t, 0, "touch ran")
	h.payload.Gate = nil
	h.start(t)
	h.wait(t)
	if n := len(h.reports(t)); n != 0 || !h.ran() || h.read(t, "dev/console") != "" {
		t.Errorf("%d reports, runner started %v, console %q", n, h.ran(), h.read(t, "dev/console"))
	}
}

// TestGateByHand is the sub-command.
func TestGateByHand(t *testing.T) {
	h := cardHouse(t, 2, "")
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"as it is":     {nil, 0, "passed"},
		"expected":     {[]string{"10de:1db4", "10de:1db4"}, 0, "GPU-2"},
		"one more":     {[]string{"10de:1db4", "10DE:1DB4", "10de:1db4"}, 1, "2 of 3 cards"},
		"another":      {[]string{"10de:20b5"}, 1, "missing"},
		"no such form": {[]string{"10de-1db4"}, 2, "VENDOR:DEVICE"},
		"flag":         {[]string{"--nonsense"}, 2, "nonsense"},
		"output":       {[]string{"--output", "xml"}, 2, "table or json"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			code := guest.Main(append([]string{"gate", "--root", h.root}, c.args...), nil, &out, &out)
			if code != c.code || !strings.Contains(out.String(), c.want) {
				t.Errorf("status %d, expected %d with %q: %s", code, c.code, c.want, out.String())
			}
		})
	}
	var out strings.Builder
	var r gate.Report
	if code := guest.Main([]string{"gate", "--root", h.root, "--output", "json"}, nil, &out, &out); code != 0 {
		t.Errorf("status %d: %s", code, out.String())
	}
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil || len(r.Cards) != 2 || !r.Passed {
		t.Errorf("%v: %s", err, out.String())
	}
	var none strings.Builder
	if code := guest.Main([]string{"gate", "--root", t.TempDir()}, nil, &none, &none); code != 1 || !strings.Contains(none.String(), "no GPU") {
		t.Errorf("status %d: %s", code, none.String())
	}
}
