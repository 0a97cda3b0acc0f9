package pci

import (
	"context"
	"io/fs"
	"time"
)

// Reading is the state of one card as its host sees it, at one moment. What an
// attribute that is absent would say is unknown, which is never held against
// the card.
type Reading struct {
	Address string `json:"address"`
	Present bool   `json:"present"`
	Dead    bool   `json:"dead"` // its configuration space reads all ones
	Driver  string `json:"driver"`
	Group   int    `json:"group"` // IOMMU group; -1: none
	Link    Link   `json:"link"`  // the speed drops when a card is idle: only the width counts here
	// AER are the totals since the host booted; nil: the kernel does not tell.
	// Source: Linux Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats.
	AER *AER `json:"aer,omitempty"`
	// Log are the kernel's lines that speak of trouble with this card, oldest
	// first, as far back as its buffer goes.
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
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// ReadCards reads the state of cards from a sysfs tree.
func ReadCards(ctx context.Context, sysfs fs.FS, addresses []string) ([]Reading, error) {
	inv, err := Read(sysfs, nil)
	if err != nil {
		return nil, err
	}
	var out []Reading
	for _, a := range addresses {
		r := Reading{Address: a, Group: -1}
		for _, g := range inv.GPUs {
			if g.Address == a {
				r.Present, r.Dead, r.Driver, r.Link = true, g.Dead, g.Driver, g.Link
				if g.IOMMUGroup != nil {
					r.Group = *g.IOMMUGroup
				}
			}
		}
		out = append(out, r)
	}
	return out, ctx.Err()
}
