package hostprep

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"gpuserver"
	"gpuserver/internal/pci"
)

// wanted is what vfio-pci is to hold, and how it gets it.
type wanted struct {
	cards     []string // addresses
	devices   []pci.Device
	ids       []string // vfio-pci takes every device of these
	stubs     []string // pci-stub does: their own driver is built into the kernel
	overrides []string // addresses that are taken singly: their ids are others' too
	modules   []string // of drivers that are to come after vfio-pci
	blacklist []string // of drivers that are not to come at all
	remarks   []string
}

// pick chooses the cards: those that were named, or all that a VM could have, but
// for the one that shows the host's console.
func (p *Preparer) pick(h *Host) (cards []pci.GPU, remarks []string, err error) {
	for _, name := range p.Cards {
		if !slices.ContainsFunc(h.GPUs, func(g pci.GPU) bool { return g.Address == name }) {
			return nil, nil, gpuserver.Errorf(gpuserver.KindInvalid, "there is no GPU at %q; gpuserver host inspect shows which there are", name)
		}
	}
	for _, g := range h.GPUs {
		named := slices.Contains(p.Cards, g.Address)
		switch {
		case len(p.Cards) > 0 && !named:
			continue
		case g.Dead || g.VirtualOf != "" || g.Integrated() || h.IOMMU.Enabled && !g.Usable:
			if named {
				return nil, nil, gpuserver.Errorf(gpuserver.KindInvalid, "the GPU at %s cannot be given to a VM: %s", g.Address, g.Why)
			}
			remarks = append(remarks, g.Address+" is left out: "+g.Why)
		case g.BootVGA && !stays(g.Driver) && !named:
			remarks = append(remarks, g.Address+" is left out: it shows the host's console; --card gives it away all the same")
		default:
			cards = append(cards, g)
		}
	}
	if len(cards) == 0 {
		return nil, nil, gpuserver.Errorf(gpuserver.KindInvalid, "there is no GPU that could be prepared for VMs%s", because(remarks))
	}
	return cards, remarks, nil
}

func because(remarks []string) string {
	if len(remarks) == 0 {
		return "; gpuserver host inspect shows what there is"
	}
	return ": " + strings.Join(remarks, "; ")
}

// want works out what vfio-pci is to hold: the cards, and their other functions
// in the same group. A vendor and device number names every device that has it,
// so one that a driver of the host uses elsewhere is not listed.
func (p *Preparer) want(h *Host) (*wanted, error) {
	cards, remarks, err := p.pick(h)
	if err != nil {
		return nil, err
	}
	w := &wanted{remarks: remarks}
	all := byAddress(h.Devices)
	ours := map[string]bool{}
	for _, g := range cards {
		w.cards = append(w.cards, g.Address)
		for _, name := range append([]string{g.Address}, g.Companions...) {
			if d := all[name]; !ours[name] && sameNumber(d.IOMMUGroup, g.IOMMUGroup) {
				ours[name] = true
				w.devices = append(w.devices, d)
			}
		}
	}
	kernel := readModules(p.Root, p.Proc)
	if w.modules, err = p.known(); err != nil {
		return nil, err
	}
	for _, d := range w.devices {
		id := d.VendorID + ":" + d.DeviceID
		drivers := p.rivals(d)
		w.modules = append(w.modules, drivers...)
		other := slices.IndexFunc(h.Devices, func(o pci.Device) bool {
			return !ours[o.Address] && o.VendorID+":"+o.DeviceID == id && o.Driver != "" && !stays(o.Driver)
		})
		builtIn := slices.IndexFunc(drivers, func(m string) bool { return kernel.builtIn[m] })
		switch {
		case other >= 0:
			o := h.Devices[other]
			w.overrides = append(w.overrides, d.Address)
			w.remarks = append(w.remarks, fmt.Sprintf("%s has the number %s, and so has %s, which %s uses: only the address is given to vfio-pci, by a rule of udev", d.Address, id, o.Address, o.Driver))
		case d.Driver == "pci-stub", builtIn >= 0 && kernel.builtIn["pci_stub"]:
			w.stubs = append(w.stubs, id)
		case builtIn >= 0:
			w.ids = append(w.ids, id)
			w.remarks = append(w.remarks, fmt.Sprintf("the driver %s of %s is built into this kernel and takes it before vfio-pci can; gpuserver host check says after the start whether it did", drivers[builtIn], d.Address))
		default:
			w.ids = append(w.ids, id)
		}
	}
	for _, list := range []*[]string{&w.ids, &w.stubs, &w.overrides, &w.modules} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	w.blacklist = p.banned(h, ours)
	return w, nil
}

// sameNumber also holds if one is not known: before the IOMMU is on, there are no
// groups.
func sameNumber(a, b *int) bool { return a == nil || b == nil || *a == *b }

// rivals are the modules of the drivers that would take a device: those that are
// known for its kind, and that of the driver that has it.
func (p *Preparer) rivals(d pci.Device) (names []string) {
	switch {
	case d.IsGPU():
		names = map[string][]string{
			"10de": {"nouveau", "nvidia", "nvidiafb"}, "1002": {"amdgpu", "radeon"}, "8086": {"i915", "xe"},
		}[d.VendorID]
	case strings.HasPrefix(d.Class, "0403"):
		names = []string{"snd_hda_intel"}
	case strings.HasPrefix(d.Class, "0c03"):
		names = []string{"xhci_pci"}
	case strings.HasPrefix(d.Class, "0c80") && d.VendorID == "10de":
		names = []string{"i2c_nvidia_gpu"}
	}
	if names = slices.Clone(names); len(names) == 0 && d.Driver != "" && !stays(d.Driver) {
		module := d.Driver
		if target, err := fs.ReadLink(p.Sys, "bus/pci/drivers/"+d.Driver+"/module"); err == nil {
			module = path.Base(target)
		}
		names = append(names, strings.ReplaceAll(module, "-", "_"))
	}
	return names
}

// known are the modules that an earlier run put behind vfio-pci: since then it has
// the devices, and nothing else shows any more whose they were.
func (p *Preparer) known() (names []string, err error) {
	c, err := p.read(modprobeFile)
	if err != nil || !strings.HasPrefix(string(c.bytes()), header) {
		return nil, err
	}
	for line := range strings.Lines(string(c.text)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "softdep" && f[2] == "pre:" && f[3] == "vfio-pci" {
			names = append(names, f[1])
		}
	}
	return names, nil
}

// banned are the drivers that are not to be loaded at all, as on the machine that
// this project began with; none if the host keeps a card of NVIDIA for itself.
func (p *Preparer) banned(h *Host, ours map[string]bool) []string {
	given := false
	for _, g := range h.GPUs {
		if g.VendorID != "10de" {
			continue
		}
		if !ours[g.Address] && g.Driver != "" && !stays(g.Driver) {
			return nil
		}
		given = given || ours[g.Address]
	}
	if !given {
		return nil
	}
	return []string{"nvidiafb", "nouveau"}
}
