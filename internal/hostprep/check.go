package hostprep

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"gpuserver/internal/pci"
)

// Level says how a check ended.
type Level string

// The levels of a finding.
const (
	LevelPass Level = "pass"
	LevelWarn Level = "warn" // it works, but not as well or as safely as it could
	LevelFail Level = "fail" // jobs with GPUs will fail because of it
	LevelSkip Level = "skip" // it could not be looked at, or does not matter here; Seen says why
)

// Finding is the outcome of one check.
type Finding struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Seen  string `json:"seen"`           // what was found, in one sentence
	Mend  string `json:"mend,omitempty"` // the command or setting that mends it
}

// Report is the outcome of all checks, in a fixed order.
type Report struct {
	Findings []Finding `json:"findings"`
}

// Failed reports whether a check failed.
func (r *Report) Failed() bool {
	for _, f := range r.Findings {
		if f.Level == LevelFail {
			return true
		}
	}
	return false
}

// Machine is the machine that is looked at.
type Machine struct {
	Sys   fs.FS     // stands for /sys; as for pci.Read
	Proc  fs.FS     // stands for /proc; nil: not known
	Root  fs.FS     // stands for /, of which /lib/modules is read; nil: not known
	Names pci.Names // as for pci.Read
	Live  *Live     // how the machine is asked; nil: only its files are there
}

// Live asks a machine for what no file says. A nil function is not asked.
type Live struct {
	// Log gives the kernel's log since the start, one message an element.
	Log func(context.Context) ([]string, error)
	// Libvirt gives what answered, with its version.
	Libvirt func(context.Context) (string, error)
	// KVM runs a kernel under KVM and gives the reason if that did not work. An
	// error says that it could not be tried.
	KVM func(context.Context) (reason string, err error)
	// Free gives the free bytes of the file system on which dir is, or will be.
	Free func(dir string) (int64, error)
	// PathMTU gives the MTU of the path to a forge, and which.
	PathMTU func(context.Context) (to string, mtu int, err error)
	// Clock reports whether the clock is kept by a time service, and the error
	// that the kernel reckons with.
	Clock func() (synced bool, within time.Duration, err error)
}

// Needs is what the configuration wants of a machine. The zero value of a field
// is not known, or not wanted.
type Needs struct {
	Emulated   bool  // VMs are to run in software emulation: KVM does not matter
	HugePages  bool  // the memory of VMs is taken from huge pages
	Memory     int64 // of the largest flavor, in bytes
	CardMemory int64 // of the largest flavor with GPUs, in bytes
	Disks      []DiskNeed
	MTU        int // of the VMs' network; 0 is 1500
}

// DiskNeed is the room that VMs need in a folder, in bytes.
type DiskNeed struct {
	Dir               string
	Smallest, Largest int64 // disk of a flavor
	Reserve           int64 // what no VM gets
}

// checker is one run of the checks.
type checker struct {
	Machine
	needs Needs
	host  *Host
	log   []string // the kernel's
}

// checks are all checks by name, in the order in which trouble is best mended.
var checks = []struct {
	name string
	run  func(*checker, context.Context) Finding
}{
	{"processor", (*checker).processor},
	{"kvm", (*checker).kvm},
	{"iommu", (*checker).iommu},
	{"interrupts", (*checker).interrupts},
	{"parameters", (*checker).parameters},
	{"cards", (*checker).cards},
	{"vfio", (*checker).vfio},
	{"drivers", (*checker).drivers},
	{"companions", (*checker).companions},
	{"groups", (*checker).groups},
	{"reset", (*checker).reset},
	{"addresses", (*checker).addresses},
	{"locked-memory", (*checker).lockedMemory},
	{"huge-pages", (*checker).hugePages},
	{"libvirt", (*checker).libvirt},
	{"disk", (*checker).disk},
	{"mtu", (*checker).mtu},
	{"clock", (*checker).clock},
}

// Check looks at a machine and says of each thing that GPUs in VMs need whether
// it is there and, if not, what mends it. Nothing is changed, except that
// Live.KVM starts a VM. An error is one of Inspect: the machine cannot be read.
func Check(ctx context.Context, m Machine, needs Needs) (*Report, error) {
	host, err := Inspect(m.Sys, m.Proc, m.Names)
	if err != nil {
		return nil, err
	}
	k := &checker{Machine: m, needs: needs, host: cardsOnly(host), log: m.Live.log(ctx)}
	r := &Report{}
	for _, c := range checks {
		f := c.run(k, ctx)
		f.Name = c.name
		r.Findings = append(r.Findings, f)
	}
	return r, nil
}

// cardsOnly takes a processor's own graphics away, which no VM gets: whatever is
// wrong with it stands against no card.
func cardsOnly(h *Host) *Host {
	cards := map[string]bool{}
	h.GPUs = slices.DeleteFunc(h.GPUs, func(g pci.GPU) bool { return g.Integrated() })
	for _, g := range h.GPUs {
		cards[g.Address] = true
	}
	h.Slots = slices.DeleteFunc(h.Slots, func(s pci.Slot) bool {
		return !slices.ContainsFunc(s.GPUs, func(address string) bool { return cards[address] })
	})
	return h
}

// log gives the kernel's log, nil if nobody may read it: other signs are then
// judged alone.
func (l *Live) log(ctx context.Context) []string {
	if l == nil || l.Log == nil {
		return nil
	}
	lines, err := l.Log(ctx)
	if err != nil {
		return nil
	}
	return lines
}

func pass(format string, args ...any) Finding {
	return Finding{Level: LevelPass, Seen: fmt.Sprintf(format, args...)}
}

func skip(format string, args ...any) Finding {
	return Finding{Level: LevelSkip, Seen: fmt.Sprintf(format, args...)}
}

func warn(mend, format string, args ...any) Finding {
	return Finding{Level: LevelWarn, Seen: fmt.Sprintf(format, args...), Mend: mend}
}

func fail(mend, format string, args ...any) Finding {
	return Finding{Level: LevelFail, Seen: fmt.Sprintf(format, args...), Mend: mend}
}

// filesOnly is why something is skipped that only the machine itself tells.
const filesOnly = "only the machine itself can tell, not its files"

// prepareMend is what mends whatever host prepare sets.
const prepareMend = "gpuserver host prepare, then start the host anew"
