package pci

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Drivers that may hold a member of a group that a VM gets: they leave the
// device alone.
// Source: Linux drivers/vfio/pci and drivers/pci/pci-stub.c (driver_managed_dma).
const (
	driverVFIO = "vfio-pci"
	driverStub = "pci-stub"
)

// verdict is what can be done with a group or a card: the empty texts say that
// nothing stands against it.
type verdict struct {
	never string // why no VM can have it, whatever the host is prepared for
	now   string // why no VM can have it yet
}

func (v verdict) usable() bool { return v.never == "" }
func (v verdict) ready() bool  { return v.never == "" && v.now == "" }
func (v verdict) why() string  { return cmp.Or(v.never, v.now) }

// judge finds the GPUs among the devices, makes their groups slots, and says
// what stands against each.
func judge(inv *Inventory, devices map[string]Device, vfio bool) {
	inv.GPUs, inv.Slots = []GPU{}, []Slot{}
	verdicts := map[int]verdict{}
	for _, g := range inv.Groups {
		if !slices.ContainsFunc(g.Devices, func(d Device) bool { return d.IsGPU() }) {
			continue
		}
		v := judgeGroup(g, vfio)
		verdicts[g.Number] = v
		inv.Slots = append(inv.Slots, slot(g, v))
	}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		d := devices[name]
		if !d.IsGPU() {
			continue
		}
		var v verdict
		switch {
		case d.Integrated():
			v = verdict{never: integratedWhy}
		case d.IOMMUGroup == nil:
			v = ungrouped(inv.IOMMU)
		default:
			v = verdicts[*d.IOMMUGroup]
		}
		inv.GPUs = append(inv.GPUs, GPU{
			Device: d, Companions: companions(d, devices),
			Usable: v.usable(), Ready: v.ready(), Why: v.why(),
		})
	}
}

// ungrouped is what stands against a card in no group.
func ungrouped(m IOMMU) verdict {
	if m.Enabled {
		return verdict{never: "is in no IOMMU group, though others are: the firmware's tables leave its bus out"}
	}
	return verdict{never: "the kernel shows no IOMMU groups: switch the IOMMU on in the firmware (AMD-Vi, VT-d), run gpuserver host prepare, and start the host anew"}
}

// integratedWhy is what stands against a processor's own graphics.
const integratedWhy = "it is the processor's own graphics and no card: it works with memory of the host that a VM cannot be given"

// companions are the other functions of a card's slot.
func companions(gpu Device, devices map[string]Device) (names []string) {
	for name, d := range devices {
		if name != gpu.Address && slotOf(name) == slotOf(gpu.Address) && !d.IsGPU() && !d.exempt() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func slot(g Group, v verdict) Slot {
	s := Slot{Group: g.Number, GPUs: []string{}, Others: []string{}, NUMANode: -1, Usable: v.usable(), Ready: v.ready(), Why: v.why()}
	for i := range g.Devices {
		d := &g.Devices[i]
		if d.IsGPU() {
			s.GPUs = append(s.GPUs, d.Address)
			s.NUMANode = max(s.NUMANode, d.NUMANode)
		} else {
			s.Others = append(s.Others, d.Address)
		}
	}
	return s
}

// judgeGroup says what stands against giving a group's cards to a VM.
func judgeGroup(g Group, vfio bool) verdict {
	if g.NoIOMMU {
		return verdict{never: fmt.Sprintf("group %d is of VFIO's no-IOMMU mode: nothing would keep the VM from the host's memory; switch the IOMMU on in the firmware and take enable_unsafe_noiommu_mode away", g.Number)}
	}
	cards := map[string]bool{} // slots with a card
	for i := range g.Devices {
		if g.Devices[i].IsGPU() {
			cards[slotOf(g.Devices[i].Address)] = true
		}
	}
	var never, held, bare []string
	for i := range g.Devices {
		d := &g.Devices[i]
		ours := cards[slotOf(d.Address)]
		if why := against(d, ours); why != "" {
			never = append(never, why)
		}
		switch {
		case !ours || d.exempt() || d.Driver == driverVFIO:
		case d.Driver == "" || d.Driver == driverStub:
			bare = append(bare, d.Address)
		default:
			held = append(held, fmt.Sprintf("%s by %s", d.Address, d.Driver))
		}
	}
	v := verdict{never: strings.Join(never, "; ")}
	switch {
	case len(held) > 0:
		v.now = "held by another driver than vfio-pci: " + strings.Join(held, ", ") + "; gpuserver host prepare sees to it that vfio-pci gets them at the next start"
	case len(bare) > 0 && !vfio:
		v.now = "the driver vfio-pci is not loaded, which is to hold " + strings.Join(bare, ", ") + "; modprobe vfio-pci loads it, and gpuserver host prepare sees to it at each start"
	}
	return v
}

// against says why no VM can have a group because of one member, "" if nothing
// does. ours says that it is a card or another function of one, which host
// prepare binds.
func against(d *Device, ours bool) string {
	switch {
	case !ours && d.exempt():
	case d.Integrated():
		return d.Address + ": " + integratedWhy
	case d.Dead && ours:
		return fmt.Sprintf("%s answers all ones: it has fallen off the bus; a cold start of the host may bring it back", d.Address)
	case d.IsGPU() && d.VirtualOf != "":
		return fmt.Sprintf("%s is a virtual function of %s: only whole cards are given away", d.Address, d.VirtualOf)
	case ours, d.Driver == "", d.Driver == driverVFIO, d.Driver == driverStub:
	default:
		return fmt.Sprintf("%s (%s) is in the same group and held by the driver %s: a VM would take it from the host; plug one of them in elsewhere, or give that device up by binding it to vfio-pci or pci-stub", d.Address, d.Model, d.Driver)
	}
	return ""
}
