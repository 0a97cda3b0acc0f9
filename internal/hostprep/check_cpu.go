package hostprep

import (
	"context"
	"io/fs"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"gpuserver/internal/pci"
)

// processor looks for the extension that KVM needs.
func (k *checker) processor(context.Context) Finding {
	c := k.host.CPU
	switch c.Virtualisation {
	case "unknown":
		return skip("no processor's flags could be read")
	case "none":
		mend := "switch it on in the firmware (SVM Mode with AMD, VT-x with Intel)"
		if c.Guest {
			mend = "switch nested virtualisation on in the hypervisor that this VM runs on"
		}
		return k.unlessEmulated(fail(mend, "the processor shows neither SVM nor VT-x"))
	}
	name := map[string]string{"svm": "AMD-V (SVM)", "vmx": "VT-x"}[c.Virtualisation]
	if c.Guest {
		return warn("", "%s, but this machine is itself a VM: VMs in it are slow, and GPUs reach them only if its hypervisor passes them on", name)
	}
	return pass("%s", name)
}

// unlessEmulated makes a failure a warning if VMs are meant to be emulated.
func (k *checker) unlessEmulated(f Finding) Finding {
	if k.needs.Emulated && f.Level == LevelFail {
		f.Level = LevelWarn
		f.Seen += "; VMs are emulated in software, as configured (accel: tcg), and slow"
	}
	return f
}

// kvm lets a kernel start: a device that opens proves nothing where KVM is
// nested.
func (k *checker) kvm(ctx context.Context) Finding {
	if k.host.CPU.State != "on" {
		module := map[string]string{"svm": "kvm_amd", "vmx": "kvm_intel"}[k.host.CPU.Virtualisation]
		if module == "" {
			return k.unlessEmulated(fail("", "KVM is not loaded, and cannot be on this processor as it is (see processor)"))
		}
		return k.unlessEmulated(fail("modprobe "+module, "KVM is not loaded"))
	}
	if k.Live == nil || k.Live.KVM == nil {
		return skip("KVM is loaded; whether it runs a VM, %s", filesOnly)
	}
	reason, err := k.Live.KVM(ctx)
	switch {
	case err != nil:
		return skip("KVM is loaded, but could not be tried: %v", err)
	case reason != "":
		return k.unlessEmulated(fail("see the log of libvirtd and dmesg; in a VM, ask for nested virtualisation", "KVM is loaded and does not work: %s", reason))
	}
	return pass("a kernel started under KVM")
}

// iommu looks whether the kernel keeps devices apart.
func (k *checker) iommu(context.Context) Finding {
	m := k.host.IOMMU
	switch {
	case m.Enabled:
		seen := "on, of kind " + string(m.Kind)
		if len(m.Units) > 0 {
			seen += " (" + strings.Join(m.Units, ", ") + ")"
		}
		return pass("%s", seen)
	case m.NoIOMMU:
		return fail("switch the IOMMU on in the firmware, and take enable_unsafe_noiommu_mode away", "off: VFIO's no-IOMMU mode keeps nothing apart")
	}
	for _, p := range commandLine(k.Proc) {
		if slices.Contains(iommuOff, p) {
			return fail("take "+p+" off the kernel's command line, and start the host anew", "off, because the kernel was started with %s", p)
		}
	}
	if cpuVendor(k.Proc) == "GenuineIntel" && !slices.Contains(commandLine(k.Proc), "intel_iommu=on") {
		return fail("switch VT-d on in the firmware; "+prepareMend, "off; on Intel the kernel has to be told intel_iommu=on")
	}
	return fail("switch it on in the firmware (AMD-Vi or IOMMU with AMD, VT-d with Intel), then start the host anew", "off, or none: the kernel shows no IOMMU groups")
}

// iommuOff are parameters that switch the IOMMU off.
// Source: Linux Documentation/admin-guide/kernel-parameters.txt.
var iommuOff = []string{"iommu=off", "intel_iommu=off", "amd_iommu=off"}

// parameters looks for what the kernel's command line makes less safe.
func (k *checker) parameters(context.Context) Finding {
	if k.Proc == nil {
		return skip("there is no /proc to read the command line from")
	}
	var seen, mend []string
	for _, p := range commandLine(k.Proc) {
		name, _, _ := strings.Cut(p, "=")
		switch {
		case name == "pcie_acs_override":
			seen = append(seen, p+" makes groups smaller than what the hardware keeps apart: a VM can reach the devices of another")
			mend = append(mend, "take "+p+" off the command line")
		case isUnsafe(p) && k.remapping().state == remapYes:
			seen = append(seen, p+" lets a VM inject interrupts into the host, and is not needed: this machine can remap them")
			mend = append(mend, "take "+p+" off the command line")
		case isUnsafe(p):
			seen = append(seen, p+" lets a VM inject interrupts into the host")
		}
	}
	if len(seen) > 0 {
		return warn(strings.Join(mend, "; "), "%s", strings.Join(seen, "; "))
	}
	if slices.Contains(commandLine(k.Proc), "amd_iommu=on") {
		return pass("nothing unsafe; Linux knows no amd_iommu=on and ignores it, the IOMMU is on by itself")
	}
	return pass("nothing unsafe on the kernel's command line")
}

// addresses compares what a guest has to address, its memory and its cards'
// regions above it, with the width of addresses.
func (k *checker) addresses(context.Context) Finding {
	if len(k.host.GPUs) == 0 {
		return skip("there is no GPU")
	}
	for _, g := range k.host.GPUs {
		for _, b := range g.BARs {
			if b.Start == 0 && !b.IO && b.Index < 6 {
				return fail("switch Above 4G Decoding (and Resizable BAR, if there is one) on in the firmware", "region %d of %s (%s) has no address: the firmware found no room for it", b.Index, g.Address, humanize.IBytes(b.Size))
			}
		}
	}
	width, of := k.width()
	if width == 0 {
		return skip("the width of physical addresses is not known")
	}
	memory := uint64(max(k.needs.CardMemory, 0))
	if memory == 0 {
		memory = uint64(memInfo(k.Proc)["MemTotal"]) // a VM has no more than the host
	}
	var most uint64
	for _, s := range k.host.Slots {
		most = max(most, k.reach(s, memory))
	}
	switch {
	case len(k.host.Slots) == 0:
		return skip("%d bits (%s), and no card is in an IOMMU group", width, of)
	case most == 0:
		return pass("%d bits (%s); no card has regions above 4 GiB", width, of)
	}
	need := bits.Len64(most - 1)
	if need > width {
		return fail("use a processor or an IOMMU with wider addresses, flavors with less memory, or fewer cards in one VM", "a VM with all cards of a group needs addresses of %d bits, and %s has %d", need, of, width)
	}
	return pass("%d bits (%s); a VM with all cards of a group needs %d", width, of, need)
}

// reach is the first address above all that a VM with a slot's cards has: each
// region is aligned to its size, which is a power of two.
func (k *checker) reach(s pci.Slot, memory uint64) uint64 {
	var sizes []uint64
	for _, g := range k.host.GPUs {
		if slices.Contains(s.GPUs, g.Address) {
			for _, b := range g.BARs {
				if b.Wide && b.Index < 6 {
					sizes = append(sizes, b.Size)
				}
			}
		}
	}
	if len(sizes) == 0 {
		return 0
	}
	slices.Sort(sizes)
	slices.Reverse(sizes)
	const below4G = 4 << 30 // what lies there of the memory is moved up
	at := memory + below4G
	for _, size := range sizes {
		at = (at+size-1)/size*size + size
	}
	return at
}

// width is the narrower of the processor's and the IOMMU's addresses, 0 if
// neither is known.
func (k *checker) width() (width int, of string) {
	width, of = k.host.CPU.AddressBits, "the processor"
	for _, u := range k.host.IOMMU.Units {
		text, err := fs.ReadFile(k.Sys, "class/iommu/"+u+"/intel-iommu/cap")
		if err != nil {
			continue
		}
		capability, err := strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
		if err != nil {
			continue
		}
		// Source: VT-d specification, Capability Register, MGAW (bits 21:16).
		if mgaw := int(capability>>16&0x3f) + 1; width == 0 || mgaw < width {
			width, of = mgaw, "the IOMMU "+u
		}
	}
	return width, of
}
