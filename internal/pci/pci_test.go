package pci

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/pci/pcitest"
)

// open gives a tree as the program opens it: links may not lead out of it.
func open(t *testing.T, root string) fs.FS {
	t.Helper()
	r, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r.FS()
}

func read(t *testing.T, m pcitest.Machine, change func(root string)) *Inventory {
	t.Helper()
	root := pcitest.Write(t, m)
	if change != nil {
		change(root)
	}
	inv, err := Read(open(t, root), nil)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

func gpu(t *testing.T, inv *Inventory, address string) GPU {
	t.Helper()
	i := slices.IndexFunc(inv.GPUs, func(g GPU) bool { return g.Address == address })
	if i < 0 {
		t.Fatalf("no GPU at %s", address)
	}
	return inv.GPUs[i]
}

// summary is what a test says of a slot: "19: gpus others usable ready".
type summary struct {
	Group         int
	GPUs          string
	Others        string
	Usable, Ready bool
}

func summaries(inv *Inventory) (all []summary) {
	for _, s := range inv.Slots {
		all = append(all, summary{s.Group, strings.Join(s.GPUs, " "), strings.Join(s.Others, " "), s.Usable, s.Ready})
	}
	return all
}

func TestSeed(t *testing.T) {
	inv := read(t, pcitest.Seed("vfio-pci"), nil)
	want := []summary{
		{19, "0000:27:00.0 0000:28:00.0", "0000:25:00.0 0000:26:00.0 0000:26:10.0", true, true},
		{32, "0000:44:00.0", "", true, true},
		{75, "0000:a3:00.0", "", true, true},
		{87, "0000:c3:00.0 0000:c4:00.0", "0000:c1:00.0 0000:c2:00.0 0000:c2:10.0", true, true},
	}
	if d := cmp.Diff(want, summaries(inv)); d != "" {
		t.Errorf("slots (-want +got):\n%s", d)
	}
	if m := inv.IOMMU; !m.Enabled || m.Kind != KindAMD || len(m.Units) != 4 {
		t.Errorf("IOMMU %+v, want AMD's with four units", m)
	}
	if len(inv.GPUs) != 6 || len(inv.Problems) != 0 {
		t.Errorf("%d GPUs and problems %v, want 6 and none", len(inv.GPUs), inv.Problems)
	}
	g := gpu(t, inv, "0000:c4:00.0")
	if want := (Link{2.5, 16, 8, 16}); g.Link != want || g.NUMANode != 1 || g.Model != "GV100GL [Tesla V100 PCIe 16GB]" || g.Revision != "a1" {
		t.Errorf("link %+v, node %d, model %q, revision %q", g.Link, g.NUMANode, g.Model, g.Revision)
	}
	if b := g.BARs[1]; len(g.BARs) != 3 || b.Index != 1 || b.Size != 16<<30 || !b.Prefetchable || !b.Wide || b.IO {
		t.Errorf("BARs %+v", g.BARs)
	}
	if g.Reset.Possible == nil || !*g.Reset.Possible || !slices.Equal(g.Reset.Methods, []string{"flr", "bus"}) {
		t.Errorf("reset %+v", g.Reset)
	}
}

func TestSeedBeforeItIsPrepared(t *testing.T) {
	inv := read(t, pcitest.Seed("nouveau"), nil)
	for _, g := range inv.GPUs {
		if !g.Usable || g.Ready || !strings.Contains(g.Why, "by nouveau") {
			t.Errorf("%s: usable %v, ready %v: %s", g.Address, g.Usable, g.Ready, g.Why)
		}
	}
}

// A card that no driver holds is ready if vfio-pci is there to take it.
func TestNoDriver(t *testing.T) {
	m := pcitest.Seed("")
	if g := gpu(t, read(t, m, nil), "0000:44:00.0"); !g.Usable || !g.Ready {
		t.Errorf("with vfio-pci loaded: usable %v, ready %v: %s", g.Usable, g.Ready, g.Why)
	}
	m.Drivers = nil
	if g := gpu(t, read(t, m, nil), "0000:44:00.0"); !g.Usable || g.Ready || !strings.Contains(g.Why, "not loaded") {
		t.Errorf("without it: usable %v, ready %v: %s", g.Usable, g.Ready, g.Why)
	}
}

func TestDesktop(t *testing.T) {
	inv := read(t, pcitest.Desktop(), nil)
	want := []summary{
		{1, "0000:01:00.0", "0000:00:01.0 0000:01:00.1 0000:01:00.2 0000:01:00.3", true, false},
		{2, "0000:00:02.0", "", false, false},
	}
	if d := cmp.Diff(want, summaries(inv)); d != "" {
		t.Errorf("slots (-want +got):\n%s", d)
	}
	g := gpu(t, inv, "0000:01:00.0")
	if want := []string{"0000:01:00.1", "0000:01:00.2", "0000:01:00.3"}; !slices.Equal(g.Companions, want) {
		t.Errorf("companions %v, want %v", g.Companions, want)
	}
	for _, driver := range []string{"nouveau", "snd_hda_intel", "xhci_hcd"} {
		if !strings.Contains(g.Why, driver) {
			t.Errorf("why does not name %s: %s", driver, g.Why)
		}
	}
	if inv.IOMMU.Kind != KindIntel {
		t.Errorf("kind %q, want intel", inv.IOMMU.Kind)
	}
}

// The graphics of an Intel processor are shown, with the reason why no VM gets
// them; a card of Intel is a card like another.
func TestIntegratedGraphics(t *testing.T) {
	vfio := pcitest.Desktop()
	vfio.Devices[2].Driver, vfio.Devices[2].BootVGA = "vfio-pci", false
	off := pcitest.Desktop()
	off.Units = nil
	for i := range off.Devices {
		off.Devices[i].Group = -1
	}
	for name, m := range map[string]pcitest.Machine{"with the console": pcitest.Desktop(), "with nothing": vfio, "without an IOMMU": off} {
		if g := gpu(t, read(t, m, nil), "0000:00:02.0"); g.Usable || g.Ready || !strings.Contains(g.Why, "the processor's own graphics") {
			t.Errorf("%s: usable %v, ready %v: %s", name, g.Usable, g.Ready, g.Why)
		}
	}
	if g := gpu(t, read(t, vfio, nil), "0000:01:00.0"); !g.Usable {
		t.Errorf("the card beside it: %s", g.Why)
	}
	arc := vfio
	arc.Devices = append(slices.Clone(vfio.Devices[:2]), pcitest.Device{Address: "0000:03:00.0", Under: "0000:00:01.0", ID: "8086:56a0", Class: "030000", Group: 20, Driver: "vfio-pci", Link: "16.0 x16 16.0 x16"})
	if g := gpu(t, read(t, arc, nil), "0000:03:00.0"); !g.Usable || !g.Ready {
		t.Errorf("a card of Intel: usable %v, ready %v: %s", g.Usable, g.Ready, g.Why)
	}
}

func TestBoardWithNVSwitches(t *testing.T) {
	inv := read(t, pcitest.Board(), nil)
	if len(inv.GPUs) != 8 || len(inv.Slots) != 8 {
		t.Fatalf("%d GPUs in %d slots, want 8 in 8: a switch is no card", len(inv.GPUs), len(inv.Slots))
	}
	if g := inv.GPUs[0]; g.TotalVFs != 16 || g.VendorID != "10de" {
		t.Errorf("virtual functions %d, vendor %s", g.TotalVFs, g.VendorID)
	}
	// The same switch within a card's group is an endpoint like another.
	m := pcitest.Board()
	m.Devices[len(m.Devices)-1].Group = 60
	if g := gpu(t, read(t, m, nil), "0000:07:00.0"); g.Usable || !strings.Contains(g.Why, "nvidia-nvswitch") {
		t.Errorf("usable %v beside a switch with a driver: %s", g.Usable, g.Why)
	}
	m.Devices[len(m.Devices)-1].Driver = ""
	if g := gpu(t, read(t, m, nil), "0000:07:00.0"); !g.Usable {
		t.Errorf("not usable beside a switch without a driver: %s", g.Why)
	}
}

func TestWithoutIOMMU(t *testing.T) {
	for name, m := range map[string]pcitest.Machine{"off": pcitest.Off(), "no-IOMMU mode": pcitest.NoIOMMUMode()} {
		t.Run(name, func(t *testing.T) {
			inv := read(t, m, nil)
			if inv.IOMMU.Enabled || inv.IOMMU.Kind != KindNone {
				t.Errorf("IOMMU %+v, want none", inv.IOMMU)
			}
			if len(inv.GPUs) != 6 {
				t.Fatalf("%d GPUs, want 6", len(inv.GPUs))
			}
			for _, g := range inv.GPUs {
				if g.Usable || g.Ready || !strings.Contains(g.Why, "firmware") || name == "off" && !strings.Contains(g.Why, "gpuserver host prepare") {
					t.Errorf("%s: usable %v, ready %v: %s", g.Address, g.Usable, g.Ready, g.Why)
				}
			}
		})
	}
}

func TestACSOverride(t *testing.T) {
	inv := read(t, pcitest.ACSOverride(), nil)
	g := gpu(t, inv, "0000:01:00.0")
	if *g.IOMMUGroup != 14 || len(g.Companions) != 3 || !g.Usable {
		t.Errorf("group %d, companions %v, usable %v", *g.IOMMUGroup, g.Companions, g.Usable)
	}
}

// Members of a group that stand against its cards, and those that do not.
func TestOtherMembers(t *testing.T) {
	nic := pcitest.Device{Address: "0000:29:00.0", Under: "0000:26:10.0", ID: "8086:1563", Class: "020000", Group: 19}
	for _, tt := range []struct {
		name   string
		change func(*pcitest.Device)
		usable bool
		why    string
	}{
		{"a network card in use", func(d *pcitest.Device) { d.Driver = "ixgbe" }, false, "ixgbe"},
		{"a disk in use", func(d *pcitest.Device) { d.Class, d.Driver = "010802", "nvme" }, false, "nvme"},
		{"another bridge with a driver", func(d *pcitest.Device) { d.Class, d.Driver = "068000", "some" }, false, "some"},
		{"on vfio-pci", func(d *pcitest.Device) { d.Driver = "vfio-pci" }, true, ""},
		{"on pci-stub", func(d *pcitest.Device) { d.Driver = "pci-stub" }, true, ""},
		{"without a driver", func(*pcitest.Device) {}, true, ""},
		{"a PCI-to-PCI bridge with any driver", func(d *pcitest.Device) { d.Class, d.Bridge, d.Driver = "060400", true, "shpchp" }, true, ""},
		{"says bridge, but has an endpoint's header", func(d *pcitest.Device) { d.Class, d.Driver = "060400", "shpchp" }, false, "shpchp"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, d := pcitest.Seed("vfio-pci"), nic
			tt.change(&d)
			m.Devices = append(m.Devices, d)
			inv := read(t, m, nil)
			for _, address := range []string{"0000:27:00.0", "0000:28:00.0"} {
				if g := gpu(t, inv, address); g.Usable != tt.usable || !strings.Contains(g.Why, tt.why) {
					t.Errorf("%s: usable %v, want %v: %s", address, g.Usable, tt.usable, g.Why)
				}
			}
			if !gpu(t, inv, "0000:44:00.0").Usable {
				t.Error("a card of another group is not usable")
			}
		})
	}
}

func TestDeadCard(t *testing.T) {
	inv := read(t, pcitest.Seed("vfio-pci"), func(root string) {
		write(t, root, "bus/pci/devices/0000:c4:00.0/config", strings.Repeat("\xff", 64))
	})
	dead := gpu(t, inv, "0000:c4:00.0")
	if !dead.Dead || dead.Usable || !strings.Contains(dead.Why, "all ones") {
		t.Errorf("dead %v, usable %v: %s", dead.Dead, dead.Usable, dead.Why)
	}
	if gpu(t, inv, "0000:c3:00.0").Usable || !gpu(t, inv, "0000:a3:00.0").Usable {
		t.Error("its group should not be usable, and others should")
	}
}

// write changes a file of a tree.
func write(t *testing.T, root, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Any file may be absent: what it says is unknown, and no problem.
func TestAbsentFiles(t *testing.T) {
	whole := read(t, pcitest.Seed("vfio-pci"), nil)
	for _, name := range []string{
		"bus/pci/devices/0000:44:00.0/config", "bus/pci/devices/0000:44:00.0/numa_node", "bus/pci/devices/0000:44:00.0/resource",
		"bus/pci/devices/0000:44:00.0/current_link_width", "bus/pci/devices/0000:44:00.0/reset_method", "bus/pci/devices/0000:44:00.0/revision",
		"class/iommu", "kernel/iommu_groups",
	} {
		t.Run(name, func(t *testing.T) {
			inv := read(t, pcitest.Seed("vfio-pci"), func(root string) {
				if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
					t.Fatal(err)
				}
			})
			if d := cmp.Diff(summaries(whole), summaries(inv)); d != "" {
				t.Errorf("slots (-whole +without):\n%s", d)
			}
			if len(inv.Problems) > 0 || inv.IOMMU.Kind != KindAMD {
				t.Errorf("problems %v, kind %s", inv.Problems, inv.IOMMU.Kind)
			}
		})
	}
}

// A file that makes no sense is a problem that names it, and nothing else is lost.
func TestHalfWrittenFiles(t *testing.T) {
	whole := read(t, pcitest.Seed("vfio-pci"), nil)
	for _, tt := range []struct{ name, text string }{
		{"vendor", "0x10"},
		{"class", "0x03"},
		{"class", "display"},
		{"numa_node", "zero"},
		{"max_link_speed", "fast"},
		{"config", "\xde\x10\xb4"},
		{"resource", "0x0000000000000010 0x0000000000000000 0x0000000000040200"},
		{"resource", "0x00"},
	} {
		t.Run(tt.name+" "+tt.text, func(t *testing.T) {
			file := "bus/pci/devices/0000:44:00.0/" + tt.name
			inv := read(t, pcitest.Seed("vfio-pci"), func(root string) { write(t, root, file, tt.text) })
			if len(inv.Problems) != 1 || inv.Problems[0].Path != file {
				t.Errorf("problems %v, want one of %s", inv.Problems, file)
			}
			if len(inv.Groups) != len(whole.Groups) {
				t.Errorf("%d groups, want %d", len(inv.Groups), len(whole.Groups))
			}
		})
	}
}

func TestNoTree(t *testing.T) {
	_, err := Read(open(t, t.TempDir()), nil)
	if gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(gpuserver.PublicText(err), "stands for /sys") {
		t.Errorf("an empty folder: %v", err)
	}
}

// A group of which a member is no PCI device is told whole.
func TestMemberThatIsNoPCIDevice(t *testing.T) {
	inv := read(t, pcitest.Seed("vfio-pci"), func(root string) {
		if err := os.MkdirAll(filepath.Join(root, "kernel/iommu_groups/32/devices/AMDI0020:00"), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	if s := inv.Slots[1]; !slices.Equal(s.Others, []string{"AMDI0020:00"}) || !s.Usable {
		t.Errorf("slot %+v", s)
	}
}

// changing is a tree whose groups are other ones each time that they are listed,
// at most a number of times.
type changing struct {
	fstest.MapFS
	left  *int
	after func()
}

// ReadDir implements fs.ReadDirFS.
func (c changing) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := c.MapFS.ReadDir(name)
	if name == groupsDir && *c.left > 0 {
		*c.left--
		c.after()
	}
	return entries, err
}

func TestGroupsThatChange(t *testing.T) {
	tree := func(times int) changing {
		m := fstest.MapFS{
			"bus/pci/devices/0000:44:00.0/vendor":           {Data: []byte("0x10de\n")},
			"bus/pci/devices/0000:44:00.0/device":           {Data: []byte("0x1db4\n")},
			"bus/pci/devices/0000:44:00.0/class":            {Data: []byte("0x030200\n")},
			"kernel/iommu_groups/1/devices/0000:44:00.0/ok": {},
		}
		n := 1
		return changing{m, &times, func() {
			n++
			m[fmt.Sprintf("kernel/iommu_groups/%d/devices/0000:44:00.0/ok", n)] = m[fmt.Sprintf("kernel/iommu_groups/%d/devices/0000:44:00.0/ok", n-1)]
			delete(m, fmt.Sprintf("kernel/iommu_groups/%d/devices/0000:44:00.0/ok", n-1))
		}}
	}
	if inv, err := Read(tree(3), nil); err != nil || len(inv.Slots) != 1 {
		t.Errorf("a tree that came to rest: %v", err)
	}
	if _, err := Read(tree(1000), nil); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("a tree that never rests: %v, want KindUnavailable", err)
	}
}
