package hostprep

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// remapState says whether the interrupts of devices are remapped, without which
// a VM with a device can make the host believe in any interrupt.
type remapState string

const (
	remapYes     remapState = "yes"
	remapNo      remapState = "no"  // the kernel says that it cannot
	remapOff     remapState = "off" // switched off by a parameter
	remapUnknown remapState = "unknown"
)

// remapping is the state with what it was seen by.
type remapping struct {
	state remapState
	by    string
}

// What the kernel says in its log.
// Source: Linux drivers/iommu/intel/irq_remapping.c, drivers/iommu/amd/init.c,
// drivers/vfio/vfio_iommu_type1.c.
var (
	saysRemapped = []string{
		"AMD-Vi: Interrupt remapping enabled",
		"DMAR-IR: Enabled IRQ remapping in",
	}
	saysNotRemapped = []string{
		"AMD-Vi: Disabling interrupt remapping",
		"DMAR-IR: Failed to enable irq remapping",
		"interrupt remapping is being disabled",
		"No interrupt remapping support",
		"No interrupt remapping for device",
	}
	switchedOff = []string{"intremap=off", "nointremap"}
)

// remapping looks at the kernel's command line, its log, and the names of the
// interrupt controllers, which begin with IR- where interrupts are remapped.
// The last tells nothing while the IOMMU is off: with it, remapping may come.
// Source: Linux kernel/irq/proc.c and arch/x86/kernel/apic.
func (k *checker) remapping() remapping {
	for _, p := range commandLine(k.Proc) {
		if slices.Contains(switchedOff, p) {
			return remapping{remapOff, p}
		}
	}
	state := remapping{state: remapUnknown}
	for _, line := range k.log { // the last word counts
		for _, says := range saysRemapped {
			if strings.Contains(line, says) {
				state = remapping{remapYes, fmt.Sprintf("the kernel's log: %q", strings.TrimSpace(line))}
			}
		}
		for _, says := range saysNotRemapped {
			if strings.Contains(line, says) {
				state = remapping{remapNo, fmt.Sprintf("the kernel's log: %q", strings.TrimSpace(line))}
			}
		}
	}
	if state.state != remapUnknown {
		return state
	}
	interrupts := procText(k.Proc, "interrupts")
	switch {
	case strings.Contains(interrupts, " IR-"):
		return remapping{remapYes, "/proc/interrupts names controllers that begin with IR-"}
	case k.host.IOMMU.Enabled && (strings.Contains(interrupts, " IO-APIC") || strings.Contains(interrupts, " PCI-MSI")):
		return remapping{remapNo, "the IOMMU is on, and no controller in /proc/interrupts begins with IR-"}
	}
	return state
}

// interrupts looks whether they are remapped.
func (k *checker) interrupts(context.Context) Finding {
	r := k.remapping()
	switch r.state {
	case remapYes:
		return pass("remapped (%s)", r.by)
	case remapOff:
		return fail("take "+r.by+" off the kernel's command line, and start the host anew", "not remapped, because the kernel was started with %s", r.by)
	case remapNo:
		if slices.ContainsFunc(commandLine(k.Proc), isUnsafe) {
			return warn("look for interrupt remapping (x2APIC) in the firmware", "cannot be remapped (%s); allowed all the same by allow_unsafe_interrupts=1, which lets a VM inject interrupts into the host", r.by)
		}
		return fail("look for interrupt remapping (x2APIC) in the firmware; without it, gpuserver host prepare allows unsafe interrupts, which lets a VM inject interrupts into the host",
			"cannot be remapped (%s): VFIO refuses to give devices to VMs", r.by)
	}
	return skip("neither the kernel's log nor /proc/interrupts tells whether they are remapped")
}

// unsafeInterrupts lets VFIO work where interrupts cannot be remapped.
const unsafeInterrupts = "vfio_iommu_type1.allow_unsafe_interrupts"

// isUnsafe reports whether a parameter is unsafeInterrupts, switched on.
func isUnsafe(p string) bool {
	name, value, _ := strings.Cut(p, "=")
	return normal(name) == unsafeInterrupts && (value == "1" || strings.EqualFold(value, "y"))
}

// normal gives a parameter's name as the kernel compares it: it makes no
// difference between - and _.
func normal(name string) string { return strings.ReplaceAll(name, "-", "_") }
