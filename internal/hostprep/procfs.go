package hostprep

import (
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// cpuVendor gives the processor's maker as it calls itself, such as
// GenuineIntel; "" if unknown.
func cpuVendor(proc fs.FS) string {
	for line := range strings.Lines(procText(proc, "cpuinfo")) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "vendor_id" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// procText gives a file of /proc, "" if it cannot be read.
func procText(proc fs.FS, name string) string {
	if proc == nil {
		return ""
	}
	text, err := fs.ReadFile(proc, name)
	if err != nil {
		return ""
	}
	return string(text)
}

// memInfo gives /proc/meminfo: sizes in bytes, numbers of pages as they are.
func memInfo(proc fs.FS) map[string]int64 {
	info := map[string]int64{}
	for line := range strings.Lines(procText(proc, "meminfo")) {
		name, value, _ := strings.Cut(line, ":")
		number, unit, _ := strings.Cut(strings.TrimSpace(value), " ")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			continue
		}
		if unit == "kB" {
			n <<= 10
		}
		info[name] = n
	}
	return info
}

// modules says which modules a kernel has.
type modules struct {
	known   bool // its lists could be read
	builtIn map[string]bool
	there   map[string]bool // to be loaded
}

// readModules reads the lists of the running kernel's modules. Names are given
// with underscores, as the kernel has them.
// Source: kmod, modules.builtin and modules.dep.
func readModules(root, proc fs.FS) modules {
	m := modules{builtIn: map[string]bool{}, there: map[string]bool{}}
	release := strings.TrimSpace(procText(proc, "sys/kernel/osrelease"))
	if root == nil || release == "" || !fs.ValidPath(release) {
		return m
	}
	for _, dir := range []string{"lib/modules", "usr/lib/modules"} {
		for list, names := range map[string]map[string]bool{"modules.builtin": m.builtIn, "modules.dep": m.there} {
			text, err := fs.ReadFile(root, path.Join(dir, release, list))
			if err != nil {
				continue
			}
			m.known = true
			for line := range strings.Lines(string(text)) {
				file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
				name, _, _ := strings.Cut(path.Base(file), ".")
				names[strings.ReplaceAll(name, "-", "_")] = true
			}
		}
	}
	return m
}
