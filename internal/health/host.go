package health

import (
	"fmt"
	"time"

	"gpuserver/internal/gate"
	"gpuserver/internal/pci"
)

// Before is what was known of a card at an earlier moment.
type Before struct {
	At      time.Time    // lines of the kernel's log from then on count; zero: none do
	Reading *pci.Reading // nil: not known, and so is what changed since
	Width   int          // the widest link that was ever seen; 0: not known
}

// Host gives what a host's reading of a card says against it. An attribute that
// is absent, now or before, says nothing.
func Host(now pci.Reading, before Before) (seen []Evidence) {
	add := func(kind gate.Kind, format string, args ...any) {
		seen = append(seen, Evidence{Kind: kind, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case !now.Present:
		add(gate.KindMissing, "its host finds no card at %s any more", now.Address)
		return append(seen, logged(now.Log, before.At)...)
	case now.Dead:
		add(gate.KindDead, "its host reads all ones from its configuration space at %s", now.Address)
		return append(seen, logged(now.Log, before.At)...) // the rest of what is read means nothing
	}
	if w := now.Link.Width; w > 0 && w < before.Width {
		add(KindWidth, "its link has %d lanes on the host; it had %d", w, before.Width)
	}
	if fatal, nonFatal := newErrors(now, before.Reading); fatal > 0 {
		add(KindAERFatal, "it reported %d fatal PCI Express errors", fatal)
	} else if nonFatal > 0 {
		add(KindAERNonFatal, "it reported %d PCI Express errors that were not corrected", nonFatal)
	}
	return append(seen, logged(now.Log, before.At)...)
}

// newErrors gives the errors between two readings. Totals that became smaller
// are of another boot of the host: nothing is known then.
func newErrors(now pci.Reading, before *pci.Reading) (fatal, nonFatal int64) {
	if before == nil || now.AER == nil || before.AER == nil {
		return 0, 0
	}
	a, b := now.AER, before.AER
	if a.Fatal < b.Fatal || a.NonFatal < b.NonFatal || a.Correctable < b.Correctable {
		return 0, 0
	}
	return a.Fatal - b.Fatal, a.NonFatal - b.NonFatal
}

var troubles = map[pci.Trouble]gate.Kind{
	pci.TroubleInaccessible: KindInaccessible,
	pci.TroubleReset:        KindReset,
	pci.TroubleSlowReset:    KindSlowReset,
	pci.TroubleFatal:        KindAERFatal,
	pci.TroubleLink:         KindLinkDown,
}

// logged gives what the kernel's log says since a time, each kind once, in the
// words of its last line.
func logged(lines []pci.LogLine, since time.Time) (seen []Evidence) {
	if since.IsZero() {
		return nil
	}
	for i := len(lines) - 1; i >= 0; i-- {
		kind, known := troubles[lines[i].Trouble]
		if !known || lines[i].At.Before(since) || has(seen, kind) {
			continue
		}
		seen = append(seen, Evidence{Kind: kind, Text: fmt.Sprintf("its host's kernel says %q", lines[i].Text)})
	}
	return seen
}

func has(seen []Evidence, kind gate.Kind) bool {
	for _, e := range seen {
		if e.Kind == kind {
			return true
		}
	}
	return false
}

// Width gives the widest link of a card: what was known, or the reading's.
func Width(known int, now pci.Reading) int {
	if !now.Present || now.Dead {
		return known
	}
	return max(known, now.Link.Width)
}
