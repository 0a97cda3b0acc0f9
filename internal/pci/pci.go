// Package pci reads a machine's PCI devices, its IOMMU groups and its GPUs from
// a sysfs tree that it is given, and says which cards a VM can have and, for the
// others, why not.
//
// Nothing is written and nothing is asked but the tree, so that a machine can be
// captured (see Recorder) and looked at elsewhere.
//
// Sources: Linux Documentation/ABI/testing/sysfs-bus-pci,
// sysfs-kernel-iommu_groups and sysfs-class-iommu, and
// Documentation/driver-api/vfio.rst.
package pci

import "fmt"

// Inventory is what a tree says of a machine.
type Inventory struct {
	IOMMU    IOMMU     `json:"iommu"`
	GPUs     []GPU     `json:"gpus"`     // by address
	Slots    []Slot    `json:"slots"`    // the groups that have a GPU, by number
	Groups   []Group   `json:"groups"`   // all groups, by number
	Devices  []Device  `json:"-"`        // all devices, by address, also those in no group
	Problems []Problem `json:"problems"` // what could not be read or made no sense
}

// IOMMU says whether devices can be given to VMs at all.
type IOMMU struct {
	// Enabled says that the kernel puts devices into groups that hardware keeps
	// apart. The groups of VFIO's no-IOMMU mode do not count.
	Enabled bool     `json:"enabled"`
	Kind    Kind     `json:"kind"`
	Units   []string `json:"units"`   // the kernel's names: dmar0, ivhd0, …
	NoIOMMU bool     `json:"noiommu"` // there are groups of VFIO's no-IOMMU mode
}

// Kind is whose IOMMU it is.
type Kind string

// The kinds of IOMMU.
const (
	KindAMD     Kind = "amd"     // AMD-Vi
	KindIntel   Kind = "intel"   // VT-d
	KindSMMU    Kind = "smmu"    // Arm's SMMU
	KindUnknown Kind = "unknown" // there are groups, and nothing says whose
	KindNone    Kind = "none"
)

// Group is one IOMMU group: the smallest set of devices that can be given to a
// VM.
type Group struct {
	Number  int      `json:"group"`
	NoIOMMU bool     `json:"noiommu,omitempty"` // of VFIO's no-IOMMU mode: nothing keeps it apart
	Devices []Device `json:"devices"`           // all members, bridges too, by address
}

// Device is one member of a group, or one PCI device in no group. What the tree
// does not say is "unknown": an empty text, a nil pointer, a zero number.
type Device struct {
	// Address is the kernel's name: domain, bus, device and function in
	// hexadecimal, as in 0000:27:00.0. A member of a group that is no PCI device
	// has another name.
	Address  string `json:"address"`
	VendorID string `json:"vendor_id"` // four hexadecimal digits, as DeviceID
	DeviceID string `json:"device_id"`
	Class    string `json:"class"` // six hexadecimal digits: class, subclass, interface
	Revision string `json:"revision,omitempty"`
	// Model is the device's name in the PCI ID list, or its numbers.
	Model      string `json:"model"`
	Header     Header `json:"header"`
	IOMMUGroup *int   `json:"iommu_group"` // nil: in no group
	NUMANode   int    `json:"numa_node"`   // -1: the machine has no nodes, or does not say
	Driver     string `json:"driver"`      // "": none
	Link       Link   `json:"link"`
	BARs       []BAR  `json:"bars,omitempty"`
	Reset      Reset  `json:"reset"`
	// Dead says that the configuration space reads all ones, which is what a
	// device answers that has fallen off the bus.
	Dead      bool   `json:"dead,omitempty"`
	BootVGA   bool   `json:"boot_vga,omitempty"`   // the firmware shows the console on it
	TotalVFs  int    `json:"sriov_totalvfs"`       // virtual functions that it could have
	VirtualOf string `json:"virtual_of,omitempty"` // it is a virtual function of that device
}

// Header is the layout of a configuration space (PCI Express Base Specification,
// "Header Type Register").
type Header string

// The header types.
const (
	HeaderUnknown  Header = ""
	HeaderEndpoint Header = "endpoint" // type 0
	HeaderBridge   Header = "bridge"   // type 1: PCI-to-PCI, also ports of PCI Express
	HeaderCardBus  Header = "cardbus"  // type 2
)

// Link is a PCI Express link. Speeds are in GT/s, widths in lanes; 0 is unknown.
// A card at rest lowers its speed, never its width.
type Link struct {
	Speed    float64 `json:"speed"`
	Width    int     `json:"width"`
	MaxSpeed float64 `json:"max_speed"`
	MaxWidth int     `json:"max_width"`
}

// BAR is a region of a device's memory or ports.
type BAR struct {
	Index        int    `json:"index"` // 0 to 5; 6 is the expansion ROM
	Start        uint64 `json:"start"` // its address on the host's bus
	Size         uint64 `json:"size"`  // in bytes
	IO           bool   `json:"io,omitempty"`
	Prefetchable bool   `json:"prefetchable,omitempty"`
	Wide         bool   `json:"wide,omitempty"` // may lie above 4 GiB
}

// Reset says how a device can be made as new between two VMs.
type Reset struct {
	// Possible is nil where the tree does not say.
	Possible *bool `json:"possible"`
	// Methods are the kernel's words in the order in which it tries them (flr,
	// pm, bus, …). Kernels before 5.15 do not say.
	Methods []string `json:"methods,omitempty"`
}

// GPU is a card, and what can be done with it.
type GPU struct {
	Device
	// Companions are the card's other functions (same slot): sound, USB, …,
	// which go to a VM with it.
	Companions []string `json:"companions,omitempty"`
	// Usable says that a VM can have it once the host is prepared.
	Usable bool `json:"usable"`
	// Ready says that a VM can have it now.
	Ready bool `json:"ready"`
	// Why says what stands against Usable or, if nothing does, against Ready.
	Why string `json:"why"`
}

// Slot is a group with at least one GPU: what one VM gets, or none.
type Slot struct {
	Group    int      `json:"group"`
	GPUs     []string `json:"gpus"`
	Others   []string `json:"others"` // every other member, bridges too
	NUMANode int      `json:"numa_node"`
	Usable   bool     `json:"usable"` // as of a GPU
	Ready    bool     `json:"ready"`
	Why      string   `json:"why"`
}

// Problem is a file of the tree that could not be read, or made no sense. What
// it should have said is unknown.
type Problem struct {
	Path string `json:"path"` // below the root
	Text string `json:"text"`
}

// String gives a problem as one line.
func (p Problem) String() string { return fmt.Sprintf("%s: %s", p.Path, p.Text) }

// vendors of GPUs.
const (
	vendorNVIDIA = "10de"
	vendorAMD    = "1002"
	vendorIntel  = "8086"
)

// IsGPU reports whether d is a GPU: a display controller of NVIDIA, AMD or
// Intel, or a processing accelerator of NVIDIA or AMD (AMD's later Instinct
// cards show themselves as one). The display of a server's management
// controller is of another vendor.
func (d *Device) IsGPU() bool {
	switch d.base() {
	case "03":
		return d.VendorID == vendorNVIDIA || d.VendorID == vendorAMD || d.VendorID == vendorIntel
	case "12":
		return d.VendorID == vendorNVIDIA || d.VendorID == vendorAMD
	}
	return false
}

// integrated is where the graphics of an Intel processor are, on every machine.
const integrated = "0000:00:02.0"

// Integrated reports whether d is the graphics of an Intel processor. A VM cannot
// have it as it has a card: it works with memory of the host that is in none of
// its BARs, and its driver looks for parts of the chipset that a VM has not. The
// graphics within an AMD processor look like a card, and are taken for one.
//
// Source: QEMU docs/igd-assign.txt; Linux drivers/vfio/pci/vfio_pci_igd.c.
func (d *Device) Integrated() bool {
	return d.VendorID == vendorIntel && d.base() == "03" && d.Address == integrated
}

// base is the base class: two hexadecimal digits, "" if unknown.
func (d *Device) base() string {
	if len(d.Class) < 2 {
		return ""
	}
	return d.Class[:2]
}

// exempt reports whether d is a PCI-to-PCI bridge, which VFIO allows in a group
// whatever its driver. Host bridges and "other bridges" (class 0680) have the
// header of an endpoint and are none.
func (d *Device) exempt() bool {
	if d.Header == HeaderUnknown {
		return len(d.Class) >= 4 && d.Class[:4] == "0604"
	}
	return d.Header == HeaderBridge
}

// slotOf is a function's slot: its address without the function.
func slotOf(address string) string {
	if n := len(address) - 2; n > 0 && address[n] == '.' {
		return address[:n]
	}
	return address
}
