package pci

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Reading is the state of one card as its host sees it, at one moment. What an
// attribute that is absent would say is unknown, which is never held against
// the card.
type Reading struct {
	Address  string `json:"address"`
	Present  bool   `json:"present"`
	Dead     bool   `json:"dead"`                // its configuration space reads all ones
	VendorID string `json:"vendor_id,omitempty"` // four hexadecimal digits, as DeviceID
	DeviceID string `json:"device_id,omitempty"`
	Driver   string `json:"driver"`
	Group    int    `json:"group"` // IOMMU group; -1: none
	Link     Link   `json:"link"`  // the speed drops when a card is idle: only the width counts here
	// AER are the totals since the host booted; nil: the kernel does not tell.
	// Source: Linux Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats.
	AER *AER `json:"aer,omitempty"`
	// Log are the kernel's lines that speak of trouble with this card, or with a
	// port above it, oldest first, as far back as its buffer goes.
	Log []LogLine `json:"log,omitempty"`
}

// AER counts the errors that a device reported by PCI Express Advanced Error
// Reporting.
type AER struct {
	Correctable int64 `json:"correctable"`
	NonFatal    int64 `json:"nonfatal"`
	Fatal       int64 `json:"fatal"`
}

// LogLine is one line of the kernel's log.
type LogLine struct {
	At      time.Time `json:"at"`
	Trouble Trouble   `json:"trouble"`
	Text    string    `json:"text"`
}

// ReadCards reads the state of cards from a sysfs tree and the kernel's log; log
// may be nil: then nothing is known of it. A card that is being reset, or is
// broken, may hold up the kernel and with it the call for minutes.
func ReadCards(sysfs fs.FS, log *Kmsg, addresses []string) ([]Reading, error) {
	inv, err := Read(sysfs, nil)
	if err != nil {
		return nil, err
	}
	r := &reader{fsys: sysfs}
	readings := make([]Reading, len(addresses))
	watched := map[string][]int{} // by address: its own card, or those below it
	for i, a := range addresses {
		readings[i] = r.reading(inv, a)
		for _, above := range append(r.above(a), a) {
			watched[above] = append(watched[above], i)
		}
	}
	for _, l := range log.lines(watched) {
		for _, i := range l.cards {
			readings[i].Log = append(readings[i].Log, l.LogLine)
		}
	}
	for i := range readings {
		if n := len(readings[i].Log); n > maxLines {
			readings[i].Log = slices.Clone(readings[i].Log[n-maxLines:])
		}
	}
	return readings, nil
}

func (r *reader) reading(inv *Inventory, address string) Reading {
	out := Reading{Address: address, Group: -1}
	i := slices.IndexFunc(inv.GPUs, func(g GPU) bool { return g.Address == address })
	if i < 0 {
		return out
	}
	g := inv.GPUs[i]
	out.Present, out.Dead, out.Driver, out.Link, out.VendorID, out.DeviceID = true, g.Dead, g.Driver, g.Link, g.VendorID, g.DeviceID
	if g.IOMMUGroup != nil {
		out.Group = *g.IOMMUGroup
	}
	out.AER = r.aer(path.Join(devicesDir, address))
	return out
}

// aer reads a device's totals; nil if the kernel does not tell all of them.
func (r *reader) aer(dir string) *AER {
	var a AER
	for _, f := range []struct {
		file, total string
		into        *int64
	}{
		{"aer_dev_correctable", "TOTAL_ERR_COR", &a.Correctable},
		{"aer_dev_nonfatal", "TOTAL_ERR_NONFATAL", &a.NonFatal},
		{"aer_dev_fatal", "TOTAL_ERR_FATAL", &a.Fatal},
	} {
		n, ok := total(r.text(path.Join(dir, f.file)), f.total)
		if !ok {
			return nil
		}
		*f.into = n
	}
	return &a
}

// total finds the line "NAME NUMBER".
func total(text, name string) (int64, bool) {
	for line := range strings.Lines(text) {
		if number, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			return n, err == nil && n >= 0
		}
	}
	return 0, false
}

// above gives the bridges and ports that a device hangs from, by the folders
// that its link in bus/pci/devices leads through.
func (r *reader) above(device string) (ports []string) {
	target, err := fs.ReadLink(r.fsys, path.Join(devicesDir, device))
	if err != nil {
		return nil
	}
	for part := range strings.SplitSeq(path.Dir(target), "/") {
		if address.MatchString(part) {
			ports = append(ports, part)
		}
	}
	return ports
}
