package libvirt

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuserver"
	"gpuserver/internal/pci"
)

// Words by which libvirt and QEMU say that a card, or another member of its
// group, is somebody else's. Neither has an error number for it.
// Source: libvirt src/hypervisor/virhostdev.c; QEMU hw/vfio/container.c.
var (
	usedByDomain = regexp.MustCompile(`PCI device (\S+) is in use by driver \S+, domain (\S+)`)
	usedByOther  = regexp.MustCompile(`PCI device (\S+) is in use|failed to open /dev/vfio/(\d+): Device or resource busy`)
	notViable    = regexp.MustCompile(`group (\d+) is not viable`)
	// vfio-pci did not take the device: libvirt could not bind it, or did and QEMU
	// finds it unbound.
	notBound = regexp.MustCompile(`(?:Failed to (?:unbind|trigger a probe for|add driver).*|[Ff]ailed to reset )PCI device '?[0-9a-f:.]+|Verify all devices in group \d+ are bound|PCI device \S+ is not assignable`)
)

// occupied makes the failed start of a VM with cards an error that says who has
// them; nil if err is about something else. What is held now may come free, so it
// is KindCapacity.
func (d *Driver) occupied(err error, inv *pci.Inventory, cards []string) error {
	text := err.Error()
	where := strings.Join(cards, " and ")
	var why string
	switch {
	case usedByDomain.MatchString(text):
		m := usedByDomain.FindStringSubmatch(text)
		why = fmt.Sprintf("the VM %s has %s, which is in the same IOMMU group", m[2], m[1])
		if strings.Contains(where, m[1]) {
			why = "the VM " + m[2] + " has it"
		}
	case usedByOther.MatchString(text):
		why = "another process has its IOMMU group"
		for _, g := range groupsOf(inv, cards) {
			if who, held := holders(d.cfg.Proc)[g]; held {
				why = fmt.Sprintf("IOMMU group %d is held by %s", g, who)
			}
		}
	case notViable.MatchString(text):
		why = "a driver of this host took another device of IOMMU group " + notViable.FindStringSubmatch(text)[1]
	case notBound.MatchString(text):
		why = "vfio-pci does not take it (" + strings.TrimSpace(notBound.FindString(text)) + "); the kernel's log (dmesg) says why"
	default:
		return nil
	}
	return &gpuserver.Error{
		Kind: gpuserver.KindCapacity, Op: "libvirt: start a VM with cards", Err: err,
		Public: "the GPU at " + where + " cannot be given to a VM now: " + why + "; gpuserver host inspect shows the groups",
	}
}

func groupsOf(inv *pci.Inventory, cards []string) (groups []int) {
	for _, g := range inv.GPUs {
		if slices.Contains(cards, g.Address) && g.IOMMUGroup != nil {
			groups = append(groups, *g.IOMMUGroup)
		}
	}
	return groups
}

// holder is a process that has a VFIO group open; a group can be opened once.
// Source: Linux Documentation/driver-api/vfio.rst.
type holder struct {
	pid   string
	name  string // of the program, as the kernel shows it
	guest string // the VM that it is, if it is a QEMU that libvirt started
}

func (h holder) String() string {
	if h.guest != "" {
		return "the VM " + h.guest + " (process " + h.pid + ")"
	}
	return "process " + h.pid + " (" + h.name + ")"
}

var guestName = regexp.MustCompile(`\x00-name\x00guest=([^,\x00]+)`)

// holders gives who has each VFIO group open, as far as we may see.
func holders(proc string) map[int]holder {
	found := map[int]holder{}
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*")) // only a bad pattern is an error
	for _, f := range files {
		to, err := os.Readlink(f) // it may have ended, or not be ours to see
		group, isGroup := strings.CutPrefix(to, "/dev/vfio/")
		n, notNumber := strconv.Atoi(group)
		if err != nil || !isGroup || notNumber != nil {
			continue
		}
		dir := filepath.Dir(filepath.Dir(f))
		h := holder{pid: filepath.Base(dir)}
		name, _ := os.ReadFile(filepath.Join(dir, "comm")) // without it the number is enough
		h.name = strings.TrimSpace(string(name))
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if m := guestName.FindSubmatch(cmdline); m != nil {
			h.guest = string(m[1])
		}
		found[n] = h
	}
	return found
}

// occupiedSlots marks the slots that somebody has who is no VM of ours: those of
// our VMs are in the ledger.
func (d *Driver) occupiedSlots(slots []gpuserver.Slot) {
	by := holders(d.cfg.Proc)
	for i := range slots {
		h, held := by[slots[i].Group]
		if !held || slots[i].Out != "" {
			continue
		}
		if h.guest != "" {
			if _, ours, err := d.cfg.readRecord(h.guest); ours && err == nil {
				continue
			}
		}
		slots[i].Out = "it is held by " + h.String() + ", which is no VM of ours"
	}
}
