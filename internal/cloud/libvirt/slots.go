package libvirt

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gpuserver"
	"gpuserver/internal/pci"
)

// slots gives the host's slots: the IOMMU groups with a card of a model that the
// configuration names. One that no VM can have now says why in Out. Without
// models no host has cards, and nothing is read.
func (d *Driver) slots() ([]gpuserver.Slot, error) {
	if len(d.cfg.Models) == 0 {
		return nil, nil
	}
	inv, err := readPCI(d.cfg.Sysfs)
	if err != nil {
		return nil, err
	}
	slots := slotsOf(inv, d.cfg.Models)
	d.occupiedSlots(slots)
	return slots, nil
}

func readPCI(sysfs string) (*pci.Inventory, error) {
	root, err := os.OpenRoot(sysfs)
	if err != nil {
		return nil, unavailable("look at the GPUs", err)
	}
	defer root.Close()
	return pci.Read(root.FS(), nil)
}

func slotsOf(inv *pci.Inventory, models map[string]string) (slots []gpuserver.Slot) {
	for _, s := range inv.Slots {
		slot := gpuserver.Slot{Group: s.Group, NUMANode: s.NUMANode}
		if !s.Ready {
			slot.Out = s.Why
		}
		for _, g := range inv.GPUs {
			if model := models[g.VendorID+":"+g.DeviceID]; model != "" && slices.Contains(s.GPUs, g.Address) {
				slot.Cards = append(slot.Cards, gpuserver.Card{Address: g.Address, Model: model})
			}
		}
		if len(slot.Cards) > 0 {
			slots = append(slots, slot)
		}
	}
	return slots
}

// passedThrough gives what goes to a VM with its cards: the cards and their other
// functions, which would be of no use to anybody else. A card whose group cannot
// be given away now is KindCapacity, with the reason.
func passedThrough(inv *pci.Inventory, cards []string) (devices []string, err error) {
	for _, address := range cards {
		i := slices.IndexFunc(inv.GPUs, func(g pci.GPU) bool { return g.Address == address })
		if i < 0 {
			return nil, gpuserver.Errorf(gpuserver.KindCapacity, "there is no GPU at %s any more; gpuserver host inspect shows which there are", address)
		}
		g := inv.GPUs[i]
		if !g.Ready {
			return nil, gpuserver.Errorf(gpuserver.KindCapacity, "the GPU at %s cannot be given to a VM now: %s", address, g.Why)
		}
		devices = append(devices, address)
		for _, c := range g.Companions {
			if sameGroup(inv, g, c) {
				devices = append(devices, c)
			}
		}
	}
	return devices, nil
}

// sameGroup reports whether a companion is in its card's group. With the
// pcie_acs_override patch it may be in another, which the host has the use of.
func sameGroup(inv *pci.Inventory, g pci.GPU, companion string) bool {
	return slices.ContainsFunc(inv.Groups, func(group pci.Group) bool {
		return group.Number == *g.IOMMUGroup && slices.ContainsFunc(group.Devices, func(d pci.Device) bool { return d.Address == companion })
	})
}

// romsOf gives the firmware files of cards, by address.
func romsOf(inv *pci.Inventory, cards []string, files map[string]string) map[string]string {
	roms := map[string]string{}
	if inv == nil {
		return roms
	}
	for _, g := range inv.GPUs {
		if file := files[g.VendorID+":"+g.DeviceID]; file != "" && slices.Contains(cards, g.Address) {
			roms[g.Address] = file
		}
	}
	return roms
}

// numaNode is where a VM's cards are: its memory is taken from there, as long as
// there is some, and its CPUs run there. cpus "" pins nothing.
type numaNode struct {
	number int
	cpus   string // as the kernel lists them: 0-23,48-71
}

// nodeOf gives the node of a VM's devices; none if they are on several, or if
// the host has one node only.
func nodeOf(sysfs string, inv *pci.Inventory, devices []string) numaNode {
	number := -1
	for _, g := range inv.GPUs {
		if !slices.Contains(devices, g.Address) {
			continue
		}
		if g.NUMANode < 0 || number >= 0 && number != g.NUMANode {
			return numaNode{}
		}
		number = g.NUMANode
	}
	if others, err := filepath.Glob(filepath.Join(sysfs, "devices/system/node/node[0-9]*")); number < 0 || err != nil || len(others) < 2 {
		return numaNode{}
	}
	cpus, err := os.ReadFile(filepath.Join(sysfs, "devices/system/node", "node"+strconv.Itoa(number), "cpulist"))
	if err != nil {
		return numaNode{} // pinning is for speed: without it the VM runs as well
	}
	return numaNode{number, strings.TrimSpace(string(cpus))}
}
