package hostprep

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"gpuserver/internal/pci"
)

// cards counts the GPUs.
func (k *checker) cards(context.Context) Finding {
	n := len(k.host.GPUs)
	if n == 0 {
		return warn("", "there is no GPU: no display controller of NVIDIA, AMD or Intel on the PCI bus that is a card")
	}
	var dead []string
	for _, g := range k.host.GPUs {
		if g.Dead {
			dead = append(dead, g.Address)
		}
	}
	if len(dead) > 0 {
		return k.some(len(dead), n, "power the host off and on again (a warm start is not enough); if it stays so, the card or its seat is broken",
			"%s answers all ones: fallen off the bus", strings.Join(dead, ", "))
	}
	return pass("%d, in %d slots", n, len(k.host.Slots))
}

// some is a failure if all cards are concerned, and else a warning: the others
// can be used.
func (k *checker) some(concerned, of int, mend, format string, args ...any) Finding {
	if concerned < of {
		return warn(mend, format, args...)
	}
	return fail(mend, format, args...)
}

// vfioModules are what VFIO needs.
var vfioModules = []string{"vfio_pci", "vfio_iommu_type1"}

// vfio looks whether VFIO is there; built into the kernel is as good as loaded.
func (k *checker) vfio(context.Context) Finding {
	if text, err := fs.ReadFile(k.Sys, "module/vfio/parameters/enable_unsafe_noiommu_mode"); err == nil && strings.TrimSpace(string(text)) == "Y" {
		return warn("take vfio.enable_unsafe_noiommu_mode=1 away from the command line and from /etc/modprobe.d", "VFIO's no-IOMMU mode is allowed, in which nothing keeps a VM from the host's memory")
	}
	kernel := readModules(k.Root, k.Proc)
	_, err := fs.Stat(k.Sys, "bus/pci/drivers/vfio-pci")
	loaded := err == nil
	var absent, unloaded []string
	for _, name := range vfioModules {
		_, err := fs.Stat(k.Sys, "module/"+name)
		switch {
		case err == nil, kernel.builtIn[name], name == "vfio_pci" && loaded:
		case kernel.known && !kernel.there[name]:
			absent = append(absent, name)
		case name == "vfio_pci" || kernel.known: // vfio_iommu_type1 comes with the first use
			unloaded = append(unloaded, name)
		}
	}
	switch {
	case len(absent) > 0:
		return fail("install the package with the rest of the kernel's modules (linux-modules-extra, kernel-modules-extra), or a kernel with VFIO", "this kernel has no %s", strings.Join(absent, " and no "))
	case len(unloaded) > 0:
		return fail("modprobe "+strings.Join(unloaded, " ")+"; for each start: gpuserver host prepare", "not loaded: %s", strings.Join(unloaded, ", "))
	}
	return pass("vfio-pci is there")
}

// conflicting are drivers of the host that take cards.
var conflicting = []string{"nouveau", "nvidia", "nvidiafb", "amdgpu", "radeon", "xe", "i915"}

// drivers looks for cards that a driver of the host holds.
func (k *checker) drivers(context.Context) Finding {
	if len(k.host.GPUs) == 0 {
		return skip("there is no GPU")
	}
	var held, consoles []string
	others := 0
	for i := range k.host.GPUs {
		g := &k.host.GPUs[i]
		switch {
		case g.Driver == "" || stays(g.Driver):
			others++
		case g.BootVGA:
			consoles = append(consoles, fmt.Sprintf("%s by %s", g.Address, g.Driver))
		default:
			held = append(held, fmt.Sprintf("%s by %s", g.Address, g.Driver))
		}
	}
	switch {
	case len(held) > 0:
		return k.some(len(held), len(held)+others, prepareMend, "held by a driver of the host: %s", strings.Join(held, ", "))
	case others == 0:
		return fail("gpuserver host prepare --card ADDRESS gives it away all the same; the host's console is then dark", "the only cards show the host's console: %s", strings.Join(consoles, ", "))
	case len(consoles) > 0:
		return pass("no driver of the host holds a card, but for the one with the console: %s", strings.Join(consoles, ", "))
	}
	var loaded []string
	for _, name := range conflicting {
		if _, err := fs.Stat(k.Sys, "bus/pci/drivers/"+name); err == nil {
			loaded = append(loaded, name)
		}
	}
	if len(loaded) > 0 {
		return pass("no driver of the host holds a card; %s loaded, holding none", strings.Join(loaded, ", "))
	}
	return pass("no driver of the host holds a card")
}

// stays reports whether a driver leaves a device to VMs.
func stays(driver string) bool { return driver == "vfio-pci" || driver == "pci-stub" }

// companions looks at the cards' other functions, which go with them.
func (k *checker) companions(context.Context) Finding {
	devices := byAddress(k.host.Devices)
	var held []string
	all, cards := 0, 0
	for _, g := range k.host.GPUs {
		if g.BootVGA && !stays(g.Driver) {
			continue
		}
		cards++
		for _, address := range g.Companions {
			all++
			if d := devices[address]; d.Driver != "" && !stays(d.Driver) {
				held = append(held, fmt.Sprintf("%s by %s", address, d.Driver))
			}
		}
	}
	switch {
	case cards == 0:
		return skip("there is no GPU that could be given to a VM")
	case len(held) > 0:
		return fail(prepareMend, "other functions of cards (sound, USB) are held by a driver of the host: %s", strings.Join(held, ", "))
	case all == 0:
		return pass("the cards have no other functions")
	}
	return pass("%d other functions of cards are free for VMs", all)
}

func byAddress(list []pci.Device) map[string]pci.Device {
	devices := map[string]pci.Device{}
	for _, d := range list {
		devices[d.Address] = d
	}
	return devices
}

// groups looks whether each slot can be given to a VM: whatever driver holds the
// cards (see drivers), nothing else in the group must stand against it.
func (k *checker) groups(context.Context) Finding {
	if len(k.host.GPUs) == 0 {
		return skip("there is no GPU")
	}
	if len(k.host.Slots) == 0 {
		return fail("see iommu", "no card is in an IOMMU group")
	}
	var never, now []string
	for _, s := range k.host.Slots {
		switch {
		case !s.Usable:
			never = append(never, fmt.Sprintf("group %d: %s", s.Group, s.Why))
		case !s.Ready:
			now = append(now, fmt.Sprintf("%d", s.Group))
		}
	}
	all := len(k.host.Slots)
	switch {
	case len(never) > 0:
		return k.some(len(never), all, "see the reasons; gpuserver host inspect shows all members of a group", "%d of %d groups with cards cannot be used: %s", len(never), all, strings.Join(never, "; "))
	case len(now) > 0:
		return warn("see drivers, companions and vfio", "%d of %d groups with cards can be used, once prepared: %s", len(now), all, strings.Join(now, ", "))
	}
	return pass("all %d groups with cards can be used", all)
}

// reset looks whether a card is made as new between two VMs.
func (k *checker) reset(context.Context) Finding {
	var none, weak []string
	known := 0
	for _, g := range k.host.GPUs {
		switch r := g.Reset; {
		case r.Possible == nil:
			continue
		case !*r.Possible:
			none = append(none, g.Address)
		case slices.Equal(r.Methods, []string{"pm"}):
			weak = append(weak, g.Address)
		}
		known++
	}
	switch {
	case known == 0:
		return skip("nothing says how cards are reset")
	case len(none) > 0:
		return k.some(len(none), known, "a newer kernel or firmware of the card may know a way; else do not give it to VMs", "%s cannot be reset: what a job left in it is there for the next", strings.Join(none, ", "))
	case len(weak) > 0:
		return warn("look for a newer kernel, which may know another way (flr, bus)", "%s can be reset by power management only, which many cards take for nothing", strings.Join(weak, ", "))
	}
	return pass("the kernel can reset all %d cards that it tells of", known)
}
