package libvirt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/pci"
	"gpuserver/internal/pci/pcitest"
)

func inventory(t *testing.T, m pcitest.Machine) *pci.Inventory {
	t.Helper()
	inv, err := readPCI(pcitest.Write(t, m))
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

func TestSlotsOfTheSeed(t *testing.T) {
	inv := inventory(t, pcitest.Seed("vfio-pci"))
	card := func(a string) gpuserver.Card { return gpuserver.Card{Address: a, Model: "tesla-v100"} }
	want := []gpuserver.Slot{
		{Group: 19, Cards: []gpuserver.Card{card("0000:27:00.0"), card("0000:28:00.0")}},
		{Group: 32, Cards: []gpuserver.Card{card("0000:44:00.0")}},
		{Group: 75, NUMANode: 1, Cards: []gpuserver.Card{card("0000:a3:00.0")}},
		{Group: 87, NUMANode: 1, Cards: []gpuserver.Card{card("0000:c3:00.0"), card("0000:c4:00.0")}},
	}
	if d := cmp.Diff(want, slotsOf(inv, map[string]string{"10de:1db4": "tesla-v100"})); d != "" {
		t.Errorf("slots (-want +got):\n%s", d)
	}
	if s := slotsOf(inv, map[string]string{"10de:2330": "h100"}); s != nil {
		t.Errorf("slots of a model that is not there: %v", s)
	}
}

// A slot that cannot be given away now is known, with the reason.
func TestSlotsThatAreOut(t *testing.T) {
	for _, s := range slotsOf(inventory(t, pcitest.Seed("nouveau")), map[string]string{"10de:1db4": "tesla-v100"}) {
		if !strings.Contains(s.Out, "nouveau") {
			t.Errorf("slot %d: %q, want the driver's name", s.Group, s.Out)
		}
	}
}

func TestPassedThrough(t *testing.T) {
	desktop := pcitest.Desktop()
	override := pcitest.ACSOverride()
	for _, m := range []pcitest.Machine{desktop, override} {
		for i := range m.Devices {
			if m.Devices[i].Under != "" {
				m.Devices[i].Driver = "vfio-pci"
			}
		}
	}
	for _, tt := range []struct {
		name  string
		m     pcitest.Machine
		cards []string
		want  []string
		say   string
	}{
		{"a card with its other functions", desktop, []string{"0000:01:00.0"}, []string{"0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:01:00.3"}, ""},
		{"functions in another group stay", override, []string{"0000:01:00.0"}, []string{"0000:01:00.0"}, ""},
		{"a pair", pcitest.Seed("vfio-pci"), []string{"0000:27:00.0", "0000:28:00.0"}, []string{"0000:27:00.0", "0000:28:00.0"}, ""},
		{"a card with another driver", pcitest.Seed("nouveau"), []string{"0000:27:00.0"}, nil, "nouveau"},
		{"no such card", pcitest.Seed("vfio-pci"), []string{"0000:99:00.0"}, nil, "any more"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := passedThrough(inventory(t, tt.m), tt.cards)
			if tt.want != nil && (err != nil || !slices.Equal(got, tt.want)) {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
			if tt.want == nil && (gpuserver.KindOf(err) != gpuserver.KindCapacity || !strings.Contains(gpuserver.PublicText(err), tt.say)) {
				t.Errorf("%v, want KindCapacity that says %q", err, tt.say)
			}
		})
	}
}

func TestROMsOfCards(t *testing.T) {
	inv := inventory(t, pcitest.Seed("vfio-pci"))
	got := romsOf(inv, []string{"0000:27:00.0", "0000:44:00.0"}, map[string]string{"10de:1db4": "v100.rom", "10de:2330": "h100.rom"})
	if d := cmp.Diff(map[string]string{"0000:27:00.0": "v100.rom", "0000:44:00.0": "v100.rom"}, got); d != "" {
		t.Errorf("firmware files (-want +got):\n%s", d)
	}
}

func TestNodeOf(t *testing.T) {
	root := pcitest.Write(t, pcitest.Seed("vfio-pci"))
	inv, err := readPCI(root)
	if err != nil {
		t.Fatal(err)
	}
	if n := nodeOf(root, inv, []string{"0000:44:00.0"}); n != (numaNode{}) {
		t.Errorf("a host that lists no nodes: %+v", n)
	}
	for node, cpus := range map[string]string{"node0": "0-23\n", "node1": "24-47,72-95\n"} {
		dir := filepath.Join(root, "devices/system/node", node)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cpulist"), []byte(cpus), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		devices []string
		want    numaNode
	}{
		{[]string{"0000:c3:00.0", "0000:c4:00.0"}, numaNode{1, "24-47,72-95"}},
		{[]string{"0000:44:00.0"}, numaNode{0, "0-23"}},
		{[]string{"0000:44:00.0", "0000:a3:00.0"}, numaNode{}},
		{nil, numaNode{}},
	} {
		if n := nodeOf(root, inv, tt.devices); n != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.devices, n, tt.want)
		}
	}
}
