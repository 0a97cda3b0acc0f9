package pci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxAttribute bounds what is read of one file: an attribute is at most a page.
const maxAttribute = 4096

// configHeader is how much of a configuration space is read: the header that
// all devices have, and that everybody may read.
const configHeader = 64

// device reads one device's attributes below dir.
func (r *reader) device(dir, name string) Device {
	a := attributes{r, dir}
	d := Device{
		Address:  name,
		VendorID: a.hex("vendor", 4),
		DeviceID: a.hex("device", 4),
		Class:    a.hex("class", 6),
		Revision: a.hex("revision", 2),
		Driver:   a.link("driver"),
		NUMANode: -1,
		Link: Link{
			Speed: a.speed("current_link_speed"), Width: a.width("current_link_width"),
			MaxSpeed: a.speed("max_link_speed"), MaxWidth: a.width("max_link_width"),
		},
		BARs:      a.bars(),
		Reset:     a.reset(),
		BootVGA:   a.text("boot_vga") == "1",
		VirtualOf: a.link("physfn"),
	}
	if n, ok := a.number("numa_node"); ok {
		d.NUMANode = n
	}
	d.TotalVFs, _ = a.number("sriov_totalvfs")
	if group := a.link("iommu_group"); group != "" {
		if n, err := strconv.Atoi(group); err == nil && n >= 0 {
			d.IOMMUGroup = &n
		} else {
			a.problem("iommu_group", fmt.Sprintf("leads to %q, which is no group's number", group))
		}
	}
	d.Header, d.Dead = a.config()
	d.Model = modelName(r.names, d.VendorID, d.DeviceID)
	return d
}

// attributes are the files of one device.
type attributes struct {
	*reader
	dir string
}

func (a attributes) problem(name, text string) { a.reader.problem(path.Join(a.dir, name), text) }

// text gives an attribute without its line end; "" if it is absent, and with a
// problem if it cannot be read.
func (a attributes) text(name string) string { return a.reader.text(path.Join(a.dir, name)) }

func (r *reader) text(name string) string {
	return strings.TrimSpace(string(r.bytes(name, maxAttribute)))
}

// bytes gives at most limit bytes of a file, nil if it is absent.
func (r *reader) bytes(name string, limit int64) []byte {
	f, err := r.fsys.Open(name)
	if err == nil {
		defer f.Close()
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, limit)); err == nil {
			return b
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		r.problem(name, said(err))
	}
	return nil
}

// link gives the last part of what a symbolic link leads to, "" if it is absent.
func (a attributes) link(name string) string {
	target, err := fs.ReadLink(a.fsys, path.Join(a.dir, name))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.problem(name, said(err))
		}
		return ""
	}
	return path.Base(target)
}

// hex gives a number as the kernel writes it, 0x10de, without the 0x.
func (a attributes) hex(name string, digits int) string {
	s := a.text(name)
	if s == "" {
		return ""
	}
	v, ok := strings.CutPrefix(strings.ToLower(s), "0x")
	if _, err := strconv.ParseUint(v, 16, 32); !ok || err != nil || len(v) != digits {
		a.problem(name, fmt.Sprintf("says %q, which is no number of %d hexadecimal digits after 0x", s, digits))
		return ""
	}
	return v
}

// number gives a decimal number, and whether there is one.
func (a attributes) number(name string) (int, bool) {
	s := a.text(name)
	if s == "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		a.problem(name, fmt.Sprintf("says %q, which is no number", s))
	}
	return n, err == nil
}

// linkSpeed is how the kernel writes a speed: "8.0 GT/s PCIe", in older kernels
// "8 GT/s".
var linkSpeed = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) GT/s`)

func (a attributes) speed(name string) float64 {
	s := a.text(name)
	if s == "" || strings.HasPrefix(s, "Unknown") {
		return 0
	}
	m := linkSpeed.FindStringSubmatch(s)
	if m == nil {
		a.problem(name, fmt.Sprintf("says %q, which is no speed in GT/s", s))
		return 0
	}
	v, _ := strconv.ParseFloat(m[1], 64) // the pattern lets numbers only through
	return v
}

// width gives the lanes of a link. The kernel says 255, or 63 in its register's
// own width, for a link of which nothing is known.
func (a attributes) width(name string) int {
	n, ok := a.number(name)
	if !ok || n < 0 || n > 32 {
		return 0
	}
	return n
}

// Flags of a region.
// Source: Linux include/linux/ioport.h.
const (
	resourceIO       = 0x00000100
	resourceMem      = 0x00000200
	resourcePrefetch = 0x00002000
	resourceMem64    = 0x00100000
)

// bars reads the lines "START END FLAGS" of resource: six regions and the ROM.
// What follows belongs to bridges and virtual functions.
func (a attributes) bars() (bars []BAR) {
	for i, line := range strings.Split(a.text("resource"), "\n") {
		if i > 6 || line == "" {
			break
		}
		var start, end, flags uint64
		if _, err := fmt.Sscanf(line, "0x%x 0x%x 0x%x", &start, &end, &flags); err != nil || end < start {
			a.problem("resource", fmt.Sprintf("line %d says %q, which is no region", i+1, line))
			break
		}
		if flags&(resourceIO|resourceMem) == 0 {
			continue // not used
		}
		bars = append(bars, BAR{
			Index: i, Start: start, Size: end - start + 1,
			IO: flags&resourceIO != 0, Prefetchable: flags&resourcePrefetch != 0, Wide: flags&resourceMem64 != 0,
		})
	}
	return bars
}

// reset reads how a device is reset. The file reset_method came with Linux 5.15;
// before, only the presence of reset told that there is a way.
func (a attributes) reset() Reset {
	yes, no := true, false
	if s := a.text("reset_method"); s != "" {
		return Reset{Possible: &yes, Methods: strings.Fields(s)}
	}
	if _, err := fs.Lstat(a.fsys, path.Join(a.dir, "reset")); err == nil {
		return Reset{Possible: &yes}
	}
	if _, err := fs.Lstat(a.fsys, path.Join(a.dir, "reset_method")); err == nil {
		return Reset{Possible: &no} // it is there and empty: every method was switched off
	}
	if a.knows("config") && a.knows("vendor") {
		return Reset{Possible: &no} // a whole device without either: the kernel has no way
	}
	return Reset{}
}

func (a attributes) knows(name string) bool {
	_, err := fs.Lstat(a.fsys, path.Join(a.dir, name))
	return err == nil
}

// config looks at the configuration space: at offset 0x0e is the header's type,
// with its highest bit for a device of several functions.
func (a attributes) config() (h Header, dead bool) {
	b := a.bytes(path.Join(a.dir, "config"), configHeader)
	if len(b) == 0 {
		return HeaderUnknown, false
	}
	if !slices.ContainsFunc(b, func(c byte) bool { return c != 0xff }) {
		return HeaderUnknown, true
	}
	if len(b) < 0x10 {
		a.problem("config", fmt.Sprintf("has %d bytes; a header has %d", len(b), configHeader))
		return HeaderUnknown, false
	}
	switch b[0x0e] & 0x7f {
	case 0:
		return HeaderEndpoint, false
	case 1:
		return HeaderBridge, false
	case 2:
		return HeaderCardBus, false
	}
	a.problem("config", fmt.Sprintf("has the header type %#x, which there is not", b[0x0e]&0x7f))
	return HeaderUnknown, false
}
