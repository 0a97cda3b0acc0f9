package pci

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuserver"
)

// Below the root, which stands for /sys.
const (
	devicesDir = "bus/pci/devices"
	driversDir = "bus/pci/drivers"
	groupsDir  = "kernel/iommu_groups"
	unitsDir   = "class/iommu"
)

// readings is how often a tree is read before we give up on one that changes
// under our eyes.
const readings = 5

// Read reads a tree; sys is the root that stands for /sys. It follows the tree's
// own symbolic links, so sys has to implement fs.ReadLinkFS (os.Root.FS and
// os.DirFS do). names tells what devices are called; with nil, only the usual
// cards have a name.
//
// What is absent or makes no sense is unknown, and told in Inventory.Problems.
// An error is KindInvalid if the tree has no PCI devices at all, KindUnavailable
// if it changed at each of several readings.
func Read(sys fs.FS, names Names) (*Inventory, error) {
	for range readings {
		r := reader{fsys: sys, names: names}
		if inv, again := r.read(); !again {
			if inv == nil {
				return nil, r.fatal
			}
			return inv, nil
		}
	}
	return nil, gpuserver.Errorf(gpuserver.KindUnavailable,
		"the PCI devices or IOMMU groups changed each of the %d times that they were read; try again when no device is being added, removed or reset", readings)
}

// reader reads a tree once.
type reader struct {
	fsys     fs.FS
	names    Names
	problems []Problem
	fatal    error
}

// read reads everything; again says that the tree changed meanwhile.
func (r *reader) read() (inv *Inventory, again bool) {
	names, err := r.list(devicesDir)
	if err != nil {
		r.fatal = &gpuserver.Error{
			Kind: gpuserver.KindInvalid, Op: "pci: read " + devicesDir,
			Public: "this is not a sysfs tree with PCI devices; give the folder that stands for /sys", Err: err,
		}
		return nil, false
	}
	members, err := r.members()
	if err != nil {
		return nil, true
	}
	devices := map[string]Device{}
	for _, name := range names {
		d := r.device(path.Join(devicesDir, name), name)
		devices[name] = d
	}
	groups, again := r.groups(members, devices)
	if again {
		return nil, true
	}
	// The same names as before, or what was read is of two moments.
	if after, err := r.list(devicesDir); err != nil || !slices.Equal(after, names) {
		return nil, true
	}
	if after, err := r.members(); err != nil || !sameMembers(after, members) {
		return nil, true
	}
	inv = &Inventory{Groups: append([]Group{}, groups...), IOMMU: r.iommu(groups, devices)}
	judge(inv, devices, r.vfioLoaded())
	inv.Devices = slices.SortedFunc(maps.Values(devices), byAddress)
	inv.Problems = append([]Problem{}, r.problems...)
	slices.SortFunc(inv.Problems, func(a, b Problem) int { return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Text, b.Text)) })
	inv.Problems = slices.Compact(inv.Problems)
	return inv, false
}

// members gives the members of each group by the group's number. No folder of
// groups is no group.
func (r *reader) members() (map[int][]string, error) {
	numbers, err := r.list(groupsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[int][]string{}
	for _, name := range numbers {
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 {
			r.problem(path.Join(groupsDir, name), "is no group's number")
			continue
		}
		if all[n], err = r.list(path.Join(groupsDir, name, "devices")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return all, nil
}

func sameMembers(a, b map[int][]string) bool {
	if len(a) != len(b) {
		return false
	}
	for n := range a {
		if other, ok := b[n]; !ok || !slices.Equal(a[n], other) {
			return false
		}
	}
	return true
}

// groups joins the two places that name a group's members: the group's folder
// and each device's link. Either may be absent; if they contradict each other,
// the group is changing.
func (r *reader) groups(members map[int][]string, devices map[string]Device) (groups []Group, again bool) {
	home := map[string]int{}
	for n, names := range members {
		for _, name := range names {
			if other, twice := home[name]; twice && other != n {
				return nil, true
			}
			home[name] = n
			if _, known := devices[name]; !known {
				if address.MatchString(name) {
					return nil, true // a PCI device that came since the listing, or went
				}
				devices[name] = r.device(path.Join(groupsDir, strconv.Itoa(n), "devices", name), name)
			}
		}
	}
	byNumber := map[int]*Group{}
	for n := range members {
		byNumber[n] = &Group{Number: n, NoIOMMU: r.text(path.Join(groupsDir, strconv.Itoa(n), "name")) == "vfio-noiommu"}
	}
	for name, d := range devices {
		n, listed := home[name]
		switch {
		case listed && d.IOMMUGroup != nil && *d.IOMMUGroup != n:
			return nil, true
		case !listed && d.IOMMUGroup == nil:
			continue
		case !listed:
			n = *d.IOMMUGroup
			if _, there := members[n]; there {
				return nil, true // it has just left, or come
			}
		}
		d.IOMMUGroup = &n
		devices[name] = d
		g := byNumber[n]
		if g == nil {
			g = &Group{Number: n}
			byNumber[n] = g
		}
		g.Devices = append(g.Devices, d)
	}
	for _, g := range byNumber {
		slices.SortFunc(g.Devices, byAddress)
		groups = append(groups, *g)
	}
	slices.SortFunc(groups, func(a, b Group) int { return cmp.Compare(a.Number, b.Number) })
	return groups, false
}

func byAddress(a, b Device) int { return cmp.Compare(a.Address, b.Address) }

// address is a PCI device's name. Domains above ffff exist (Intel's VMD).
var address = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$`)

// iommu says whose IOMMU there is. The class folder is not always there; then
// what the devices are is taken.
func (r *reader) iommu(groups []Group, devices map[string]Device) IOMMU {
	m := IOMMU{Kind: KindNone, Units: []string{}}
	for _, g := range groups {
		if g.NoIOMMU {
			m.NoIOMMU = true
		} else {
			m.Enabled = true
		}
	}
	if !m.Enabled {
		return m
	}
	units, err := r.list(unitsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.problem(unitsDir, said(err))
	}
	m.Units = append(m.Units, units...)
	m.Kind = KindUnknown
	for _, u := range units {
		if k := unitKind(u); k != KindUnknown {
			m.Kind = k
			return m
		}
	}
	for _, d := range devices {
		if k := hostKind(d); k != KindUnknown {
			m.Kind = k
		}
	}
	return m
}

// unitKind tells by the name that the kernel's driver gives a unit.
func unitKind(unit string) Kind {
	switch {
	case strings.HasPrefix(unit, "ivhd"):
		return KindAMD
	case strings.HasPrefix(unit, "dmar"):
		return KindIntel
	case strings.HasPrefix(unit, "smmu"), strings.HasPrefix(unit, "arm-smmu"):
		return KindSMMU
	}
	return KindUnknown
}

// hostKind tells by a host bridge or an IOMMU's own device whose machine it is.
func hostKind(d Device) Kind {
	if !strings.HasPrefix(d.Class, "0600") && !strings.HasPrefix(d.Class, "0806") {
		return KindUnknown
	}
	switch d.VendorID {
	case "1022":
		return KindAMD
	case vendorIntel:
		return KindIntel
	}
	return KindUnknown
}

// vfioLoaded reports whether the driver vfio-pci is there, so that a device
// without a driver can be given to it.
func (r *reader) vfioLoaded() bool {
	_, err := fs.Stat(r.fsys, path.Join(driversDir, "vfio-pci"))
	return err == nil
}

// list gives the names in a folder, sorted.
func (r *reader) list(dir string) ([]string, error) {
	entries, err := fs.ReadDir(r.fsys, dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	slices.Sort(names)
	return names, nil
}

// problem notes that a file cannot be used.
func (r *reader) problem(name, text string) {
	r.problems = append(r.problems, Problem{name, text})
}

// said gives an error without the path, which a Problem has.
func said(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}
