package hostprep

import (
	"slices"
	"strings"
)

// Parameters of the kernel whose values are lists.
const (
	vfioIDs   = "vfio-pci.ids"       // the last one on the line counts
	stubIDs   = "pci-stub.ids"       // the same
	blacklist = "modprobe.blacklist" // all of them count
)

// missing gives what has to be added to the parameters in have so that each of
// want holds. What is there is never written again; lists of which only the last
// counts are written with what the last one has.
func missing(have, want []string) (add []string) {
	for _, p := range want {
		name, value, _ := strings.Cut(p, "=")
		var all, last []string
		for _, h := range have {
			if n, v, _ := strings.Cut(h, "="); normal(n) == normal(name) {
				last = strings.Split(v, ",")
				all = append(all, last...)
			}
		}
		switch name {
		case blacklist:
			if lack := without(strings.Split(value, ","), all); len(lack) > 0 {
				add = append(add, name+"="+strings.Join(lack, ","))
			}
		case vfioIDs, stubIDs:
			if lack := without(strings.Split(value, ","), last); len(lack) > 0 {
				add = append(add, name+"="+strings.Join(append(slices.Clone(last), lack...), ","))
			}
		default:
			if !slices.Contains(all, value) {
				add = append(add, p)
			}
		}
	}
	return add
}

// without gives what of list is not in other.
func without(list, other []string) (rest []string) {
	for _, s := range list {
		if !slices.Contains(other, s) {
			rest = append(rest, s)
		}
	}
	return rest
}
