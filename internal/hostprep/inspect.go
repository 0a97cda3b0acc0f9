// Package hostprep looks at a machine that is to give its GPUs to VMs, says what
// stands against it, and prepares the machine.
//
// Inspect reads, Check judges, Plan and Apply prepare. All work on folders and
// commands that they are given.
package hostprep

import (
	"bufio"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"gpuserver/internal/pci"
)

// Host is what a machine's files say of it.
type Host struct {
	CPU CPU `json:"cpu"`
	pci.Inventory
	// Warnings are sentences about what the kernel's command line makes unsafe
	// or unlike what it seems.
	Warnings []string `json:"warnings"`
}

// CPU is what the processor brings for virtual machines.
type CPU struct {
	Model string `json:"model"`
	// Virtualisation is svm (AMD), vmx (Intel), none, or unknown where no
	// processor's flags could be read.
	Virtualisation string `json:"virtualisation"`
	// State is on if the kernel offers KVM, off if the processor has no such
	// extension or hides it (most often because of the firmware), unknown if it
	// has it and KVM is not loaded. Whether KVM runs a kernel, only trying tells.
	State string `json:"state"`
	// AddressBits is the width of physical addresses; 0 is unknown.
	AddressBits int `json:"address_bits"`
	// Guest says that the machine is itself a VM.
	Guest bool `json:"guest"`
}

// Inspect reads a machine's files: sys stands for /sys, proc for /proc or is nil.
// names are as for pci.Read, and so are errors.
func Inspect(sys, proc fs.FS, names pci.Names) (*Host, error) {
	inv, err := pci.Read(sys, names)
	if err != nil {
		return nil, err
	}
	h := &Host{Inventory: *inv, CPU: CPU{Virtualisation: "unknown", State: "unknown"}, Warnings: []string{}}
	kvm := false
	for _, name := range []string{"devices/virtual/misc/kvm", "class/misc/kvm"} {
		if _, err := fs.Stat(sys, name); err == nil {
			kvm = true
		}
	}
	var flags []string
	if proc != nil {
		flags = h.CPU.read(proc)
		h.warn(commandLine(proc))
	}
	switch {
	case slices.Contains(flags, "svm"):
		h.CPU.Virtualisation = "svm"
	case slices.Contains(flags, "vmx"):
		h.CPU.Virtualisation = "vmx"
	case flags != nil:
		h.CPU.Virtualisation, h.CPU.State = "none", "off"
	}
	if kvm {
		h.CPU.State = "on"
	}
	h.CPU.Guest = slices.Contains(flags, "hypervisor")
	return h, nil
}

// read takes the first processor's lines of /proc/cpuinfo, and gives its flags.
func (c *CPU) read(proc fs.FS) (flags []string) {
	f, err := proc.Open("cpuinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "model name":
			c.Model = value
		case "flags":
			flags = strings.Fields(value)
		case "address sizes": // "43 bits physical, 48 bits virtual"
			bits, _, _ := strings.Cut(value, " ")
			c.AddressBits, _ = strconv.Atoi(bits) // 0 is unknown
		case "":
			return flags
		}
	}
	return flags
}

// commandLine gives the kernel's parameters.
func commandLine(proc fs.FS) []string {
	return strings.Fields(procText(proc, "cmdline"))
}

// warn tells what the kernel's parameters make of the groups.
func (h *Host) warn(parameters []string) {
	for _, p := range parameters {
		name, value, _ := strings.Cut(p, "=")
		switch {
		case name == "pcie_acs_override":
			h.Warnings = append(h.Warnings, "the kernel was started with "+p+": its groups are smaller than what the hardware keeps apart, and a VM can reach the devices of another through them")
		case name == "amd_iommu" && value == "on":
			h.Warnings = append(h.Warnings, "the kernel knows no amd_iommu=on and ignores it; AMD's IOMMU is on by itself when the firmware has it on")
		case name == "vfio_iommu_type1.allow_unsafe_interrupts" && (value == "1" || strings.EqualFold(value, "y")):
			h.Warnings = append(h.Warnings, "the kernel was started with "+p+": a VM with a device can inject interrupts into the host")
		}
	}
}
