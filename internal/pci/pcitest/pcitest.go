// Package pcitest lays out sysfs trees of machines that tests need: the files
// that package pci reads, as Linux writes them.
package pcitest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"testing"
)

// Machine is what a tree is made of.
type Machine struct {
	Units   []string // of the IOMMU: dmar0, ivhd0, …; nil leaves class/iommu out
	Devices []Device
	// NoIOMMU makes all groups those of VFIO's no-IOMMU mode.
	NoIOMMU bool
	// Drivers are loaded without having a device.
	Drivers []string
}

// NoGroup as a Device's Group puts it in none.
const NoGroup = -1

// Device is one PCI device. Only what is not zero is written, but for numa_node
// and config, which every device has.
type Device struct {
	Address string
	Under   string // address of the bridge above it; "" is the root bus
	ID      string // vendor:device, as 10de:1db4
	Class   string // six digits
	Rev     string
	Group   int
	NUMA    int
	Driver  string
	Bridge  bool     // the header's type is 1
	Link    string   // "CURRENT-SPEED xWIDTH MAX-SPEED xWIDTH", as "2.5 x16 8.0 x16"
	BARs    []uint64 // sizes in bytes, 0 is an unused one; above 4 GiB where they fit
	Reset   string   // reset_method
	BootVGA bool
	VFs     int // sriov_totalvfs
}

// Write lays a machine out below a temporary folder and returns that, which
// stands for /sys.
func Write(t testing.TB, m Machine) string {
	t.Helper()
	root := t.TempDir()
	if err := Lay(root, m); err != nil {
		t.Fatal(err)
	}
	return root
}

// Lay lays a machine out below root.
func Lay(root string, m Machine) error {
	l := layer{root: root, dirs: map[string]string{}}
	for _, dir := range []string{"bus/pci/devices", "bus/pci/drivers", "devices", "kernel"} {
		l.mkdir(dir)
	}
	if m.Units != nil {
		l.mkdir("class/iommu")
	}
	for _, u := range m.Units {
		l.mkdir("devices/virtual/iommu/" + u)
		l.link("class/iommu/"+u, "devices/virtual/iommu/"+u)
	}
	for _, d := range m.Drivers {
		l.mkdir("bus/pci/drivers/" + d)
	}
	for _, d := range m.Devices {
		l.device(d, m.NoIOMMU)
	}
	return l.err
}

// layer writes files until the first error, which it keeps.
type layer struct {
	root string
	dirs map[string]string // of each device, by address
	err  error
}

func (l *layer) do(err error) {
	if l.err == nil {
		l.err = err
	}
}

func (l *layer) mkdir(name string) { l.do(os.MkdirAll(filepath.Join(l.root, name), 0o755)) }

func (l *layer) write(name, text string) {
	l.do(os.WriteFile(filepath.Join(l.root, name), []byte(text), 0o644))
}

// link makes name a link to target, relative as sysfs has them.
func (l *layer) link(name, target string) {
	l.mkdir(path.Dir(name))
	relative, err := filepath.Rel(path.Dir(name), target)
	l.do(err)
	l.do(os.Symlink(relative, filepath.Join(l.root, name)))
}

func (l *layer) device(d Device, noIOMMU bool) {
	above := l.dirs[d.Under]
	if d.Under == "" {
		above = "devices/pci" + d.Address[:len(d.Address)-5]
	}
	dir := path.Join(above, d.Address)
	l.dirs[d.Address] = dir
	l.mkdir(dir)
	l.link("bus/pci/devices/"+d.Address, dir)
	l.write(dir+"/vendor", "0x"+d.ID[:4]+"\n")
	l.write(dir+"/device", "0x"+d.ID[5:]+"\n")
	l.write(dir+"/class", "0x"+d.Class+"\n")
	l.write(dir+"/numa_node", strconv.Itoa(d.NUMA)+"\n")
	l.write(dir+"/config", string(header(d)))
	if d.Rev != "" {
		l.write(dir+"/revision", "0x"+d.Rev+"\n")
	}
	if d.Driver != "" {
		l.mkdir("bus/pci/drivers/" + d.Driver)
		l.link(dir+"/driver", "bus/pci/drivers/"+d.Driver)
	}
	if d.Group != NoGroup {
		l.group(d, dir, noIOMMU)
	}
	l.details(d, dir)
}

func (l *layer) group(d Device, dir string, noIOMMU bool) {
	group := "kernel/iommu_groups/" + strconv.Itoa(d.Group)
	l.mkdir(group)
	l.link(dir+"/iommu_group", group)
	l.link(group+"/devices/"+d.Address, dir)
	if noIOMMU {
		l.write(group+"/name", "vfio-noiommu\n")
	}
}

func (l *layer) details(d Device, dir string) {
	if d.Link != "" {
		var speed, most string
		var width, widest int
		if _, err := fmt.Sscanf(d.Link, "%s x%d %s x%d", &speed, &width, &most, &widest); err != nil {
			l.do(fmt.Errorf("link %q of %s: %w", d.Link, d.Address, err))
		}
		l.write(dir+"/current_link_speed", speed+" GT/s PCIe\n")
		l.write(dir+"/current_link_width", strconv.Itoa(width)+"\n")
		l.write(dir+"/max_link_speed", most+" GT/s PCIe\n")
		l.write(dir+"/max_link_width", strconv.Itoa(widest)+"\n")
	}
	if d.BARs != nil {
		l.write(dir+"/resource", resource(d.BARs))
	}
	if d.Reset != "" {
		l.write(dir+"/reset_method", d.Reset+"\n")
		l.write(dir+"/reset", "")
	}
	if d.BootVGA {
		l.write(dir+"/boot_vga", "1\n")
	}
	if d.VFs > 0 {
		l.write(dir+"/sriov_totalvfs", strconv.Itoa(d.VFs)+"\n")
	}
}

// header is the beginning of a configuration space.
func header(d Device) []byte {
	b := make([]byte, 64)
	number := func(hex string) uint64 {
		n, _ := strconv.ParseUint(hex, 16, 64)
		return n
	}
	binary.LittleEndian.PutUint16(b[0:], uint16(number(d.ID[:4])))
	binary.LittleEndian.PutUint16(b[2:], uint16(number(d.ID[5:])))
	class := number(d.Class)
	b[9], b[10], b[11] = byte(class), byte(class>>8), byte(class>>16)
	if d.Bridge {
		b[14] = 1
	}
	return b
}

// resource is the file of that name: seven lines, unused ones of zeros.
func resource(sizes []uint64) string {
	const (
		small = 0x40200  // memory, of 32 bits
		large = 0x14220c // memory, of 64 bits, prefetchable
	)
	text := ""
	next := uint64(0x38000000000)
	for i := range 7 {
		switch {
		case i >= len(sizes) || sizes[i] == 0:
			text += fmt.Sprintf("0x%016x 0x%016x 0x%016x\n", 0, 0, 0)
		case sizes[i] <= 16<<20:
			text += fmt.Sprintf("0x%016x 0x%016x 0x%016x\n", 0xec000000, 0xec000000+sizes[i]-1, small)
		default:
			next = (next + sizes[i] - 1) / sizes[i] * sizes[i]
			text += fmt.Sprintf("0x%016x 0x%016x 0x%016x\n", next, next+sizes[i]-1, large)
			next += sizes[i]
		}
	}
	return text
}
