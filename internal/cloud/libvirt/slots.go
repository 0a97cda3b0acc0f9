package libvirt

import (
	"os"
	"slices"

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
	return slotsOf(inv, d.cfg.Models), nil
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
