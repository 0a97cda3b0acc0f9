package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/gate"
)

// stockCards makes a stock image's house with cards by address: vendor, device
// and class.
func stockCards(t *testing.T, cards map[string][3]string, expect ...string) (root string, p Payload) {
	t.Helper()
	p = samplePayload()
	p.Gate = &gate.Expectation{}
	for _, e := range expect {
		vendor, device, _ := strings.Cut(e, ":")
		p.Gate.Cards = append(p.Gate.Cards, gate.ExpectedCard{VendorID: vendor, DeviceID: device})
	}
	root = stockHouse(t, p)
	stockFile(t, root, "dev/console", "")
	for address, c := range cards {
		for i, name := range []string{"vendor", "device", "class"} {
			stockFile(t, root, filepath.Join("sys/bus/pci/devices", address, name), "0x"+c[i]+"\n")
		}
	}
	return root, p
}

// TestStockGate carries out the script of an image without our agent.
func TestStockGate(t *testing.T) {
	v100, a100, sound := [3]string{"10de", "1db4", "030200"}, [3]string{"10de", "20b5", "030200"}, [3]string{"10de", "1db4", "040300"}
	for name, c := range map[string]struct {
		cards  map[string][3]string
		expect []string
		want   gate.Report
	}{
		"both there": {
			cards: map[string][3]string{"0000:01:00.0": v100, "0000:02:00.0": v100, "0000:03:00.0": a100}, expect: []string{"10de:1db4", "10de:1db4"},
			want: gate.Report{Passed: true, Cards: []gate.Card{
				{Address: "0000:01:00.0", VendorID: "10de", DeviceID: "1db4"}, {Address: "0000:02:00.0", VendorID: "10de", DeviceID: "1db4"},
			}, Findings: []gate.Finding{}},
		},
		"one missing, and no display": {
			cards: map[string][3]string{"0000:01:00.0": v100, "0000:01:00.1": sound, "0000:03:00.0": a100}, expect: []string{"10de:1db4", "10de:20b5", "10de:1db4"},
			want: gate.Report{
				Cards: []gate.Card{
					{Address: "0000:01:00.0", VendorID: "10de", DeviceID: "1db4"}, {Address: "0000:03:00.0", VendorID: "10de", DeviceID: "20b5"},
				},
				Findings: []gate.Finding{{Kind: gate.KindMissing, Text: "1 of 2 cards 10de:1db4 are on the VM's PCI bus"}},
			},
		},
		"none": {
			expect: []string{"10de:1db4"},
			want: gate.Report{Cards: []gate.Card{}, Findings: []gate.Finding{
				{Kind: gate.KindMissing, Text: "0 of 1 cards 10de:1db4 are on the VM's PCI bus"},
			}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, p := stockCards(t, c.cards, c.expect...)
			runStock(t, root, p)
			console, err := os.ReadFile(filepath.Join(root, "dev/console"))
			if err != nil {
				t.Fatal(err)
			}
			got, ok := gate.FromConsole(console, gate.Before)
			c.want.When = gate.Before
			if diff := cmp.Diff(c.want, got); !ok || diff != "" {
				t.Errorf("the console has %q (-want +got):\n%s", console, diff)
			}
			if _, err := os.Stat(filepath.Join(root, "opt/runner/env")); (err == nil) != c.want.Passed {
				t.Errorf("the runner was started: %v", err == nil)
			}
			if _, err := os.Stat(filepath.Join(root, "off")); err != nil {
				t.Error("the machine was not powered off")
			}
		})
	}
}

func TestUserDataRefusesGates(t *testing.T) {
	good := gate.ExpectedCard{VendorID: "10de", DeviceID: "1db4"}
	for name, e := range map[string]gate.Expectation{
		"no cards":  {},
		"many":      {Cards: make([]gate.ExpectedCard, gate.MaxCards+1)},
		"shell":     {Cards: []gate.ExpectedCard{{VendorID: "10de", DeviceID: "$(x)"}}},
		"capitals":  {Cards: []gate.ExpectedCard{{VendorID: "10DE", DeviceID: "1db4"}}},
		"long":      {Cards: []gate.ExpectedCard{{VendorID: "10de", DeviceID: "1db40"}}},
		"none":      {Cards: []gate.ExpectedCard{{}}},
		"time":      {Cards: []gate.ExpectedCard{good}, Timeout: -1},
		"not first": {Cards: []gate.ExpectedCard{good, {VendorID: "10de"}}},
	} {
		p := samplePayload()
		p.Gate = &e
		if _, err := UserData(p); err == nil {
			t.Errorf("%s: the payload was taken", name)
		}
	}
}

// TestHeartbeatBoundsTheGate: what a hostile guest reports of cards is bounded.
func TestHeartbeatBoundsTheGate(t *testing.T) {
	h := Heartbeat{Gate: &gate.Report{Passed: true, Cards: make([]gate.Card, 1000), Findings: make([]gate.Finding, 1000)}}
	h.Gate.Findings[0].Text = strings.Repeat("x\x1b", 1000)
	h.bound()
	if g := h.Gate; len(g.Cards) > gate.MaxCards || len(g.Findings) > gate.MaxFindings || len(g.Findings[0].Text) > 256 || strings.Contains(g.Findings[0].Text, "\x1b") || g.Passed {
		t.Errorf("not bounded: %+v", g)
	}
}
