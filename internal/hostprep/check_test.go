package hostprep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"gpuserver"
	"gpuserver/internal/pci/pcitest"
)

const (
	gib         = int64(1) << 30
	remapped    = "           CPU0\n  0:  40  IR-IO-APIC    2-edge      timer\n 24:   0  IR-PCI-MSI-0000:00:01.0  0-edge  PCIe PME\n"
	notRemapped = "           CPU0\n  0:  40  IO-APIC    2-edge      timer\n 24:   0  PCI-MSI-0000:00:01.0  0-edge  PCIe PME\n"
)

// well is the seed's machine, prepared, with all in order.
type well struct {
	t     *testing.T
	sys   fstest.MapFS
	proc  fstest.MapFS
	root  fstest.MapFS
	live  *Live
	needs Needs
}

func newWell(t *testing.T, m pcitest.Machine) *well {
	w := &well{
		t: t, sys: maps.Clone(tree(t, m)),
		proc: fstest.MapFS{
			"cpuinfo":              {Data: []byte(epyc)},
			"cmdline":              {Data: []byte("root=/dev/sda1 iommu=pt vfio-pci.ids=10de:1db4\n")},
			"interrupts":           {Data: []byte(remapped)},
			"meminfo":              {Data: []byte("MemTotal:       527000000 kB\nHugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n")},
			"sys/kernel/osrelease": {Data: []byte("6.1.0-31-amd64\n")},
			"12/comm":              {Data: []byte("sshd\n")},
			"345/comm":             {Data: []byte("libvirtd\n")},
			"345/status":           {Data: []byte("Name:\tlibvirtd\nCapEff:\t000001ffffffffff\n")},
			"345/limits":           {Data: []byte("Limit                     Soft Limit           Hard Limit           Units\nMax locked memory         65536                65536                bytes\n")},
			"net/route":            {Data: []byte("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\neno1\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\neno1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")},
		},
		root: fstest.MapFS{"lib/modules/6.1.0-31-amd64/modules.dep": {Data: []byte("kernel/drivers/vfio/pci/vfio-pci.ko.xz:\nkernel/drivers/vfio/vfio_iommu_type1.ko.xz:\n")}},
		live: &Live{
			Log:     func(context.Context) ([]string, error) { return []string{"AMD-Vi: Interrupt remapping enabled"}, nil },
			Libvirt: func(context.Context) (string, error) { return "libvirt 9.0.0", nil },
			KVM:     func(context.Context) (string, error) { return "", nil },
			Free:    func(string) (int64, error) { return 900 * gib, nil },
			PathMTU: func(context.Context) (string, int, error) { return "api.example.org", 1500, nil },
			Clock:   func() (bool, time.Duration, error) { return true, 12 * time.Millisecond, nil },
		},
		needs: Needs{Memory: 64 * gib, CardMemory: 64 * gib, MTU: 1500, Disks: []DiskNeed{{"/var/lib/gpuserver/libvirt", 20 * gib, 60 * gib, 10 * gib}}},
	}
	w.write("devices/virtual/misc/kvm/dev", "10:232\n")
	w.write("class/net/eno1/mtu", "1500\n")
	w.write("module/vfio_pci/initstate", "live\n")
	w.write("module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n")
	return w
}

// trees are the trees of machines, by what they are made of.
var trees = map[string]fstest.MapFS{}

// tree lays a machine out once, and gives its tree in memory.
func tree(t *testing.T, m pcitest.Machine) fstest.MapFS {
	t.Helper()
	key := fmt.Sprintf("%+v", m)
	if trees[key] != nil {
		return trees[key]
	}
	sys := os.DirFS(pcitest.Write(t, m))
	files := fstest.MapFS{}
	err := fs.WalkDir(sys, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		file := &fstest.MapFile{Mode: e.Type() | 0o755}
		switch e.Type() {
		case fs.ModeSymlink:
			target, err := fs.ReadLink(sys, name)
			file.Data = []byte(target)
			files[name] = file
			return err
		case 0:
			file.Data, err = fs.ReadFile(sys, name)
		}
		files[name] = file
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	trees[key] = files
	return files
}

func (w *well) write(name, text string) { w.sys[name] = &fstest.MapFile{Data: []byte(text)} }

// remove takes a file or folder of sysfs away.
func (w *well) remove(name string) {
	for file := range w.sys {
		if file == name || strings.HasPrefix(file, name+"/") {
			delete(w.sys, file)
		}
	}
}

// device is the folder of a PCI device.
func (w *well) device(address string) string {
	target, err := fs.ReadLink(w.sys, "bus/pci/devices/"+address)
	if err != nil {
		w.t.Fatal(err)
	}
	return path.Join("bus/pci/devices", target)
}

func (w *well) check() map[string]Finding {
	w.t.Helper()
	m := Machine{Sys: w.sys, Live: w.live}
	if w.proc != nil {
		m.Proc = w.proc
	}
	if w.root != nil {
		m.Root = w.root
	}
	r, err := Check(w.t.Context(), m, w.needs)
	if err != nil {
		w.t.Fatal(err)
	}
	all := map[string]Finding{}
	failed := false
	for _, f := range r.Findings {
		all[f.Name] = f
		failed = failed || f.Level == LevelFail
		if f.Seen == "" || f.Level == LevelFail && f.Mend == "" && f.Name != "kvm" {
			w.t.Errorf("%s says too little: %+v", f.Name, f)
		}
	}
	if len(all) != len(checks) || r.Failed() != failed {
		w.t.Errorf("%d findings, failed %v", len(all), r.Failed())
	}
	return all
}

func (w *well) line(text string) { w.proc["cmdline"].Data = []byte(text) }

func TestCheckAllWell(t *testing.T) {
	for name, f := range newWell(t, pcitest.Seed("vfio-pci")).check() {
		if f.Level != LevelPass && name != "huge-pages" {
			t.Errorf("%+v", f)
		}
	}
}

// Each thing that may be wrong, alone: what is found, and what mends it.
func TestCheck(t *testing.T) {
	prepared := pcitest.Seed("vfio-pci")
	change := func(m pcitest.Machine, address string, f func(*pcitest.Device)) pcitest.Machine {
		m.Devices = slices.Clone(m.Devices)
		for i := range m.Devices {
			if address == "" && m.Devices[i].ID == "10de:1db4" || m.Devices[i].Address == address {
				f(&m.Devices[i])
			}
		}
		return m
	}
	without := change(prepared, "", func(d *pcitest.Device) { d.ID, d.Class = "8086:1563", "020000" })
	console := pcitest.Desktop()
	console.Devices[2].BootVGA, console.Devices[3].BootVGA = false, true
	for _, tt := range []struct {
		name  string
		m     pcitest.Machine
		make  func(*well)
		check string
		level Level
		say   string // in what was seen or what mends it
	}{
		{"svm off", prepared, func(w *well) { w.proc["cpuinfo"].Data = []byte("flags : fpu\n") }, "processor", LevelFail, "SVM Mode"},
		{"svm off, in a VM", prepared, func(w *well) { w.proc["cpuinfo"].Data = []byte("flags : fpu hypervisor\n") }, "processor", LevelFail, "nested"},
		{"svm off, emulated", prepared, func(w *well) { w.proc["cpuinfo"].Data, w.needs.Emulated = []byte("flags : fpu\n"), true }, "processor", LevelWarn, "accel: tcg"},
		{"nested", prepared, func(w *well) { w.proc["cpuinfo"].Data = []byte("flags : svm hypervisor\n") }, "processor", LevelWarn, "itself a VM"},
		{"no /proc", prepared, func(w *well) { w.proc = nil }, "processor", LevelSkip, "no processor's flags"},
		{"KVM not loaded", prepared, func(w *well) { w.remove("devices/virtual/misc") }, "kvm", LevelFail, "modprobe kvm_amd"},
		{"KVM cannot be", prepared, func(w *well) {
			w.remove("devices/virtual/misc")
			w.proc["cpuinfo"].Data = []byte("flags : fpu\n")
		}, "kvm", LevelFail, "cannot be"},
		{"KVM broken", prepared, func(w *well) { w.live.KVM = func(context.Context) (string, error) { return "the kernel hangs", nil } }, "kvm", LevelFail, "the kernel hangs"},
		{"KVM broken, emulated", prepared, func(w *well) {
			w.needs.Emulated = true
			w.live.KVM = func(context.Context) (string, error) { return "the kernel hangs", nil }
		}, "kvm", LevelWarn, "accel: tcg"},
		{"KVM not tried", prepared, func(w *well) {
			w.live.KVM = func(context.Context) (string, error) { return "", errors.New("no image") }
		}, "kvm", LevelSkip, "no image"},
		{"KVM of files", prepared, func(w *well) { w.live = nil }, "kvm", LevelSkip, "not its files"},
		{"IOMMU off", pcitest.Off(), nil, "iommu", LevelFail, "AMD-Vi"},
		{"IOMMU off by parameter", pcitest.Off(), func(w *well) { w.line("amd_iommu=off") }, "iommu", LevelFail, "take amd_iommu=off off"},
		{"IOMMU off on Intel", pcitest.Off(), func(w *well) { w.proc["cpuinfo"].Data = []byte("vendor_id : GenuineIntel\n") }, "iommu", LevelFail, "gpuserver host prepare"},
		{"no-IOMMU mode", pcitest.NoIOMMUMode(), nil, "iommu", LevelFail, "no-IOMMU"},
		{"log says no", prepared, func(w *well) {
			w.live.Log = func(context.Context) ([]string, error) {
				return []string{"x", "DMAR-IR: Failed to enable irq remapping. You are vulnerable to irq-injection attacks."}, nil
			}
		}, "interrupts", LevelFail, "irq-injection"},
		{"unsafe allowed", prepared, func(w *well) {
			w.live.Log = nil
			w.proc["interrupts"].Data = []byte(notRemapped)
			w.line("vfio_iommu_type1.allow_unsafe_interrupts=Y")
		}, "interrupts", LevelWarn, "inject interrupts"},
		{"no log, remapped", prepared, func(w *well) {
			w.live.Log = func(context.Context) ([]string, error) { return nil, errors.New("denied") }
		}, "interrupts", LevelPass, "IR-"},
		{"remapping off by parameter", prepared, func(w *well) { w.line("intremap=off") }, "interrupts", LevelFail, "take intremap=off off"},
		{"IOMMU off, nothing known of interrupts", pcitest.Off(), func(w *well) {
			w.live.Log = nil
			w.proc["interrupts"].Data = []byte(notRemapped)
		}, "interrupts", LevelSkip, "neither"},
		{"ACS override", prepared, func(w *well) { w.line("pcie_acs_override=downstream") }, "parameters", LevelWarn, "pcie_acs_override=downstream"},
		{"unsafe for nothing", prepared, func(w *well) { w.line("vfio_iommu_type1.allow_unsafe_interrupts=1") }, "parameters", LevelWarn, "not needed"},
		{"amd_iommu=on", prepared, func(w *well) { w.line("amd_iommu=on") }, "parameters", LevelPass, "ignores it"},
		{"parameters without /proc", prepared, func(w *well) { w.proc = nil }, "parameters", LevelSkip, "/proc"},
		{"no card", without, nil, "cards", LevelWarn, "there is no GPU"},
		{"a dead card", prepared, func(w *well) {
			w.write(w.device("0000:44:00.0")+"/config", strings.Repeat("\xff", 64))
		}, "cards", LevelWarn, "0000:44:00.0"},
		{"vfio not loaded", pcitest.Seed(""), func(w *well) { w.remove("module"); w.remove("bus/pci/drivers/vfio-pci") }, "vfio", LevelFail, "modprobe vfio_pci"},
		{"vfio built in", pcitest.Seed(""), func(w *well) {
			w.remove("module")
			w.remove("bus/pci/drivers/vfio-pci")
			w.root["lib/modules/6.1.0-31-amd64/modules.builtin"] = &fstest.MapFile{Data: []byte("kernel/drivers/vfio/pci/vfio-pci.ko\nkernel/drivers/vfio/vfio_iommu_type1.ko\n")}
		}, "vfio", LevelPass, ""},
		{"no vfio in the kernel", pcitest.Seed(""), func(w *well) {
			w.remove("module")
			w.remove("bus/pci/drivers/vfio-pci")
			w.root["lib/modules/6.1.0-31-amd64/modules.dep"].Data = []byte("kernel/x.ko:\n")
		}, "vfio", LevelFail, "linux-modules-extra"},
		{"no-IOMMU mode allowed", prepared, func(w *well) { w.write("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n") }, "vfio", LevelWarn, "no-IOMMU mode"},
		{"nouveau", pcitest.Seed("nouveau"), nil, "drivers", LevelFail, "gpuserver host prepare"},
		{"nvidia on one", change(prepared, "0000:44:00.0", func(d *pcitest.Device) { d.Driver = "nvidia" }), nil, "drivers", LevelWarn, "0000:44:00.0 by nvidia"},
		{"loaded, holding none", prepared, func(w *well) { w.write("bus/pci/drivers/nouveau/bind", "") }, "drivers", LevelPass, "nouveau loaded"},
		{"console alone", console, nil, "drivers", LevelFail, "the only cards show the host's console: 0000:01:00.0 by nouveau"},
		{"graphics of the processor alone", pcitest.Machine{Devices: pcitest.Desktop().Devices[:3]}, nil, "cards", LevelWarn, "there is no GPU"},
		{"graphics of the processor beside a card", pcitest.Desktop(), nil, "cards", LevelPass, "1, in 1 slots"},
		{"groups beside the graphics of the processor", pcitest.Desktop(), nil, "groups", LevelWarn, "1 of 1 groups with cards can be used, once prepared: 1"},
		{"companions", pcitest.Desktop(), nil, "companions", LevelFail, "0000:01:00.2 by xhci_hcd"},
		{"companions of none", without, nil, "companions", LevelSkip, ""},
		{"a foreign NVMe in a group", pcitest.Machine{Units: prepared.Units, Devices: append(slices.Clone(prepared.Devices), pcitest.Device{Address: "0000:c5:00.0", Under: "0000:c2:10.0", ID: "144d:a808", Class: "010802", Group: 87, Driver: "nvme"})}, nil, "groups", LevelWarn, "1 of 4 groups with cards cannot be used: group 87: 0000:c5:00.0"},
		{"no groups", pcitest.Off(), nil, "groups", LevelFail, "no card is in an IOMMU group"},
		{"groups to be prepared", pcitest.Seed("nouveau"), nil, "groups", LevelWarn, "once prepared"},
		{"no reset", change(prepared, "0000:44:00.0", func(d *pcitest.Device) { d.Reset = "" }), nil, "reset", LevelWarn, "0000:44:00.0 cannot be reset"},
		{"no reset at all", change(prepared, "", func(d *pcitest.Device) { d.Reset = "" }), nil, "reset", LevelFail, "cannot be reset"},
		{"reset by power", change(prepared, "", func(d *pcitest.Device) { d.Reset = "pm" }), nil, "reset", LevelWarn, "power management"},
		{"reset of none", without, nil, "reset", LevelSkip, ""},
		{"narrow addresses", prepared, func(w *well) {
			w.proc["cpuinfo"].Data = []byte("flags : svm\naddress sizes : 36 bits physical, 48 bits virtual\n")
		}, "addresses", LevelFail, "needs addresses of 37 bits, and the processor has 36"},
		{"narrow IOMMU", prepared, func(w *well) {
			w.write("class/iommu/dmar0/intel-iommu/cap", "230000\n") // 36 bits
			w.remove("class/iommu/ivhd0")
		}, "addresses", LevelFail, "the IOMMU dmar0 has 36"},
		{"all of the host's memory", prepared, func(w *well) {
			w.needs.CardMemory = 0
			w.proc["cpuinfo"].Data = []byte("flags : svm\naddress sizes : 39 bits physical\n")
		}, "addresses", LevelFail, "needs addresses of 40 bits"},
		{"addresses without groups", pcitest.Off(), nil, "addresses", LevelSkip, "no card is in an IOMMU group"},
		{"address width unknown", prepared, func(w *well) { w.proc["cpuinfo"].Data = nil }, "addresses", LevelSkip, "not known"},
		{"a BAR without an address", prepared, func(w *well) {
			w.write(w.device("0000:44:00.0")+"/resource", "0x0000000000000000 0x00000003ffffffff 0x000000000014220c\n")
		}, "addresses", LevelFail, "Above 4G Decoding"},
		{"more memory than there is", prepared, func(w *well) { w.needs.CardMemory = 600 * gib }, "locked-memory", LevelFail, "600 GiB"},
		{"libvirtd without rights", prepared, func(w *well) { w.proc["345/status"].Data = []byte("CapEff:\t0000000000000000\n") }, "locked-memory", LevelFail, "65536"},
		{"libvirtd without rights or limit", prepared, func(w *well) {
			w.proc["345/status"].Data = []byte("CapEff:\t0000000000000000\n")
			w.proc["345/limits"].Data = []byte("Max locked memory         unlimited            unlimited            bytes\n")
		}, "locked-memory", LevelPass, "without limit"},
		{"no libvirtd", prepared, func(w *well) { delete(w.proc, "345/comm") }, "locked-memory", LevelSkip, "does not run"},
		{"huge pages set aside for nothing", prepared, func(w *well) { w.huge(512) }, "huge-pages", LevelWarn, "1.0 GiB"},
		{"no huge pages", prepared, func(w *well) { w.needs.HugePages = true }, "huge-pages", LevelFail, "at least 32768"},
		{"few huge pages", prepared, func(w *well) { w.huge(512); w.needs.HugePages = true }, "huge-pages", LevelFail, "64 GiB"},
		{"huge pages", prepared, func(w *well) { w.huge(40000); w.needs.HugePages = true }, "huge-pages", LevelPass, "40000"},
		{"libvirt is away", prepared, func(w *well) {
			w.live.Libvirt = func(context.Context) (string, error) { return "", errors.New("refused") }
		}, "libvirt", LevelFail, "systemctl start libvirtd"},
		{"no room", prepared, func(w *well) { w.live.Free = func(string) (int64, error) { return 25 * gib, nil } }, "disk", LevelFail, "15 GiB"},
		{"little room", prepared, func(w *well) { w.live.Free = func(string) (int64, error) { return 40 * gib, nil } }, "disk", LevelWarn, "60 GiB"},
		{"the worst of two disks", prepared, func(w *well) {
			w.needs.Disks = append(w.needs.Disks, DiskNeed{Dir: "/other", Smallest: 2000 * gib}, w.needs.Disks[0])
		}, "disk", LevelFail, "/other"},
		{"room unknown", prepared, func(w *well) { w.live.Free = func(string) (int64, error) { return 0, fs.ErrPermission } }, "disk", LevelSkip, "permission"},
		{"no disks", prepared, func(w *well) { w.needs.Disks = nil }, "disk", LevelSkip, "configuration"},
		{"narrow uplink", prepared, func(w *well) { w.write("class/net/eno1/mtu", "1400\n") }, "mtu", LevelFail, "network.mtu: 1400"},
		{"narrow path", prepared, func(w *well) { w.live.PathMTU = func(context.Context) (string, int, error) { return "api", 1420, nil } }, "mtu", LevelWarn, "network.mtu: 1420"},
		{"path unknown", prepared, func(w *well) {
			w.live.PathMTU = func(context.Context) (string, int, error) { return "api", 0, errors.New("no route") }
		}, "mtu", LevelWarn, "no route"},
		{"path of files", prepared, func(w *well) { w.live = nil }, "mtu", LevelPass, "not measured"},
		{"no uplink", prepared, func(w *well) { w.live = nil; delete(w.proc, "net/route") }, "mtu", LevelSkip, "no default route"},
		{"clock not kept", prepared, func(w *well) { w.live.Clock = func() (bool, time.Duration, error) { return false, 0, nil } }, "clock", LevelWarn, "timedatectl"},
		{"clock unknown", prepared, func(w *well) {
			w.live.Clock = func() (bool, time.Duration, error) { return false, 0, fs.ErrPermission }
		}, "clock", LevelSkip, "permission"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWell(t, tt.m)
			if tt.make != nil {
				tt.make(w)
			}
			f := w.check()[tt.check]
			if f.Level != tt.level || !strings.Contains(f.Seen+"; "+f.Mend, tt.say) {
				t.Errorf("%+v, want %s with %q", f, tt.level, tt.say)
			}
		})
	}
}

// huge sets huge pages of 2 MiB aside.
func (w *well) huge(n int) {
	text := string(w.proc["meminfo"].Data)
	w.proc["meminfo"].Data = []byte(strings.Replace(text, "HugePages_Total:       0", "HugePages_Total:  "+strconv.Itoa(n), 1))
}

func TestCheckUnreadable(t *testing.T) {
	if _, err := Check(t.Context(), Machine{Sys: os.DirFS(t.TempDir())}, Needs{}); gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Errorf("no sysfs: %v, want KindInvalid", err)
	}
}
