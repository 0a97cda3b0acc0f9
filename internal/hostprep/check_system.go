package hostprep

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// capSysResource lets a process raise its children's limits.
// Source: Linux include/uapi/linux/capability.h.
const capSysResource = 24

// lockedMemory looks whether VFIO can pin a VM's memory, all of it. libvirt
// raises the limit of each QEMU with a card itself, to the VM's memory and a
// bit; so what counts is that libvirtd may, and that the host has the memory.
// Source: libvirt, qemuDomainGetMemLockLimitBytes.
func (k *checker) lockedMemory(context.Context) Finding {
	if k.Proc == nil {
		return skip("there is no /proc to read")
	}
	total := memInfo(k.Proc)["MemTotal"]
	if need := k.needs.CardMemory; need > 0 && total > 0 && need > total {
		return fail("give the flavor less memory", "a VM with a card has all its memory pinned, and the largest such flavor has %s of the host's %s", size(need), size(total))
	}
	pid, name := k.daemon()
	if pid == "" {
		return skip("libvirt's daemon does not run, so that its rights cannot be seen")
	}
	caps, ok := capabilities(procText(k.Proc, pid+"/status"))
	if !ok {
		return skip("the rights of %s (%s) cannot be read", name, pid)
	}
	if caps&(1<<capSysResource) != 0 {
		return pass("%s raises the limit of each VM itself", name)
	}
	limit := lockLimit(procText(k.Proc, pid+"/limits"))
	if limit == "unlimited" {
		return pass("%s may lock memory without limit", name)
	}
	return fail("give "+name+" the right CAP_SYS_RESOURCE, or LimitMEMLOCK=infinity in its unit", "%s may not raise the limit of locked memory, which is %s", name, limit)
}

// daemon finds the process of libvirt that starts VMs.
func (k *checker) daemon() (pid, name string) {
	entries, err := fs.ReadDir(k.Proc, ".")
	if err != nil {
		return "", ""
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if name := strings.TrimSpace(procText(k.Proc, e.Name()+"/comm")); name == "libvirtd" || name == "virtqemud" {
			return e.Name(), name
		}
	}
	return "", ""
}

// capabilities gives a process's effective ones from its status.
func capabilities(status string) (uint64, bool) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// lockLimit gives the hard limit of locked memory as the kernel writes it.
func lockLimit(limits string) string {
	for line := range strings.Lines(limits) {
		if value, ok := strings.CutPrefix(line, "Max locked memory"); ok {
			if f := strings.Fields(value); len(f) >= 2 {
				return f[1]
			}
		}
	}
	return "unknown"
}

// hugePages looks whether there are enough, if VMs take theirs from them.
func (k *checker) hugePages(context.Context) Finding {
	if k.Proc == nil {
		return skip("there is no /proc to read")
	}
	info := memInfo(k.Proc)
	pages, each := info["HugePages_Total"], info["Hugepagesize"]
	if !k.needs.HugePages {
		if pages > 0 {
			return warn("set huge_pages in the configuration, or take hugepages= off the command line", "%s are set aside as huge pages, which VMs do not use as configured", size(pages*each))
		}
		return skip("not configured (huge_pages)")
	}
	if each == 0 {
		return fail("take huge_pages out of the configuration", "this kernel has no huge pages, and the configuration wants them")
	}
	need := (k.needs.Memory + each - 1) / each
	mend := fmt.Sprintf("hugepages=N on the kernel's command line, with pages of %s for all VMs at once: at least %d", size(each), max(need, 1))
	switch {
	case pages == 0:
		return fail(mend, "none are set aside, and the configuration wants them")
	case pages < need:
		return fail(mend, "%s are set aside, and the largest flavor has %s", size(pages*each), size(k.needs.Memory))
	}
	return pass("%d pages of %s, %d free", pages, size(each), info["HugePages_Free"])
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// libvirt asks it.
func (k *checker) libvirt(ctx context.Context) Finding {
	if k.Live == nil || k.Live.Libvirt == nil {
		return skip(filesOnly)
	}
	about, err := k.Live.Libvirt(ctx)
	if err != nil {
		return fail("systemctl start libvirtd (or virtqemud); install it if it is not there", "does not answer: %v", err)
	}
	return pass("%s answers", about)
}

// disk looks whether a VM's disk fits where it will be.
func (k *checker) disk(context.Context) Finding {
	switch {
	case k.Live == nil || k.Live.Free == nil:
		return skip(filesOnly)
	case len(k.needs.Disks) == 0:
		return skip("no configuration says where VMs have their disks")
	}
	worst := Finding{}
	for _, d := range k.needs.Disks {
		f := k.diskIn(d)
		if worst.Level == "" || rank(f.Level) > rank(worst.Level) {
			worst = f
		}
	}
	return worst
}

func rank(l Level) int {
	return slices.Index([]Level{LevelPass, LevelSkip, LevelWarn, LevelFail}, l)
}

func (k *checker) diskIn(d DiskNeed) Finding {
	free, err := k.Live.Free(d.Dir)
	if err != nil {
		return skip("the room at %s is not known: %v", d.Dir, err)
	}
	room := max(free-d.Reserve, 0)
	mend := "make room on its file system, or set libvirt.dir to another"
	switch {
	case room < d.Smallest:
		return fail(mend, "%s has %s for VMs, and the smallest flavor's disk has %s", d.Dir, size(room), size(d.Smallest))
	case room < d.Largest:
		return warn(mend, "%s has %s for VMs, and the largest flavor's disk has %s", d.Dir, size(room), size(d.Largest))
	}
	return pass("%s at %s for VMs", size(room), d.Dir)
}

// mtu compares the VMs' with that of the way out of the host.
func (k *checker) mtu(ctx context.Context) Finding {
	want := k.needs.MTU
	if want == 0 {
		want = 1500
	}
	links := k.uplinks()
	for _, link := range links {
		if have := k.linkMTU(link); have > 0 && have < want {
			return fail(fmt.Sprintf("network.mtu: %d in the cloud's block of the configuration", have), "VMs send packets of %d bytes, and %s takes %d", want, link, have)
		}
	}
	if k.Live != nil && k.Live.PathMTU != nil {
		to, have, err := k.Live.PathMTU(ctx)
		switch {
		case err != nil:
			return warn("", "the way to %s could not be measured: %v", to, err)
		case have < want:
			return warn(fmt.Sprintf("network.mtu: %d in the cloud's block of the configuration", have), "VMs send packets of %d bytes, and the way to %s takes %d: large transfers may hang", want, to, have)
		}
		return pass("%d, also on the way to %s", want, to)
	}
	if len(links) == 0 {
		return skip("there is no default route")
	}
	return pass("%d, as on %s; further on was not measured", want, strings.Join(links, ", "))
}

// uplinks are the interfaces of default routes.
// Source: Linux net/ipv4/fib_trie.c (fib_route_seq_show).
func (k *checker) uplinks() (links []string) {
	for line := range strings.Lines(procText(k.Proc, "net/route")) {
		f := strings.Fields(line)
		if len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" && fs.ValidPath(f[0]) && !slices.Contains(links, f[0]) {
			links = append(links, f[0])
		}
	}
	return links
}

// linkMTU is an interface's, 0 if not known.
func (k *checker) linkMTU(name string) int {
	text, err := fs.ReadFile(k.Sys, "class/net/"+name+"/mtu")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text))) // no number is 0
	return n
}

// clock asks whether a time service keeps it: GitHub refuses an App whose clock
// is off by more than a minute.
func (k *checker) clock(context.Context) Finding {
	if k.Live == nil || k.Live.Clock == nil {
		return skip(filesOnly)
	}
	synced, within, err := k.Live.Clock()
	switch {
	case err != nil:
		return skip("the kernel does not say: %v", err)
	case !synced:
		return warn("timedatectl set-ntp true, or install chrony", "no time service keeps it; GitHub refuses us once it is off by more than a minute")
	}
	return pass("kept by a time service, within %v", within.Round(time.Millisecond))
}
