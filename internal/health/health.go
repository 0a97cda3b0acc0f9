// Package health decides what follows for a card from what was seen of it:
// strikes that fade, a rest, quarantine. It does no I/O.
//
// What is seen at one moment (before a VM, at its gate, after it) is one strike
// at most, of the heaviest thing seen. Hard evidence takes a card out at once.
// The rest weighs a point or two: the card gets a rest, so that the next try has
// another one, and is taken out if it goes on. What is unknown weighs nothing.
//
// A guest may lie. What it says is held against the cards of its own VM only,
// and after its job, when it belongs to whoever wrote that, its word alone never
// takes a card out.
package health

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/gate"
)

// Kinds of evidence that a host sees, beside those of the guest's gate.
const (
	KindReset        gate.Kind = "reset"        // a reset failed or hung
	KindInaccessible gate.Kind = "inaccessible" // its configuration space did not answer: it fell off the bus
	KindSlowReset    gate.Kind = "slow_reset"   // it took more than a second to come back from a reset
	KindAERFatal     gate.Kind = "aer_fatal"    // fatal errors by Advanced Error Reporting
	KindAERNonFatal  gate.Kind = "aer_nonfatal" // errors that lost a transaction, not the link
	KindLinkDown     gate.Kind = "link_down"    // the port above it lost the link
	KindWidth        gate.Kind = "width"        // fewer lanes than it once had
)

// hard is evidence that leaves no doubt: the card is out at once.
var hard = []gate.Kind{gate.KindDead, gate.KindMissing, gate.KindRemap, gate.KindECC, KindReset, KindInaccessible}

// soft are the points of evidence that may have another cause: a cable, a
// temperature, a driver, an image.
var soft = map[gate.Kind]float64{
	gate.KindDriver:      2,
	gate.KindXid:         2,
	gate.KindDiagnosis:   2,
	gate.KindRecovery:    2,
	KindAERFatal:         2,
	KindLinkDown:         2,
	gate.KindTemperature: 1,
	gate.KindThrottle:    1,
	gate.KindLink:        1,
	gate.KindTool:        1,
	gate.KindTimeout:     1,
	gate.KindNoReport:    1,
	gate.KindLie:         1,
	KindSlowReset:        1,
	KindAERNonFatal:      1,
	KindWidth:            1,
}

// doubt is the most that evidence weighs which may be of another card, or which
// a job may have made up.
const doubt = 2

// Policy is what strikes lead to. The zero value is the default.
type Policy struct {
	Threshold float64       // points at which a card is taken out; 0: 3
	Fade      time.Duration // without a strike, in which one point fades; 0: 24 h
	Rest      time.Duration // after the first point; doubles with each one more; 0: 10 minutes
}

// The defaults.
const (
	DefaultThreshold = 3
	DefaultFade      = 24 * time.Hour
	DefaultRest      = 10 * time.Minute
)

// longestRest bounds a rest, whatever the policy.
const longestRest = 24 * time.Hour

func (p Policy) withDefaults() Policy {
	if p.Threshold <= 0 {
		p.Threshold = DefaultThreshold
	}
	if p.Fade <= 0 {
		p.Fade = DefaultFade
	}
	if p.Rest <= 0 {
		p.Rest = DefaultRest
	}
	return p
}

// Evidence is one thing that was seen of a card.
type Evidence struct {
	Kind gate.Kind
	Text string // for people: what was seen and where
	// Doubtful says that it may be another card's, or made up: it weighs 2 points
	// at most.
	Doubtful bool
}

// Weight gives the points of evidence. A kind that is not known weighs one.
func (p Policy) Weight(e Evidence) float64 {
	p = p.withDefaults()
	points := 1.0
	switch w, known := soft[e.Kind]; {
	case slices.Contains(hard, e.Kind):
		points = p.Threshold
	case known:
		points = w
	}
	if e.Doubtful {
		points = min(points, doubt)
	}
	return points
}

// Left gives the points that a card has left at a time: one fades in each whole
// Fade without a strike. It is never negative.
func (p Policy) Left(g gpuserver.GPU, now time.Time) float64 {
	p = p.withDefaults()
	faded := float64(max(0, now.Sub(g.StruckAt)/p.Fade))
	return max(0, g.Strikes-faded)
}

// Outcome is what evidence led to.
type Outcome struct {
	Points      float64 // of this strike
	Quarantined bool    // it took the card out
	Text        string  // what was seen, as one sentence for people
}

// Strike gives the card as it is after evidence of one moment, with what that led
// to. Without evidence nothing changes and Points is 0. A card that is out
// already stays so.
func (p Policy) Strike(g gpuserver.GPU, seen []Evidence, now time.Time) (gpuserver.GPU, Outcome) {
	if len(seen) == 0 {
		return g, Outcome{}
	}
	p = p.withDefaults()
	var o Outcome
	var texts []string
	for _, e := range seen {
		o.Points = max(o.Points, p.Weight(e))
		if !slices.Contains(texts, e.Text) {
			texts = append(texts, e.Text)
		}
	}
	o.Text = strings.Join(texts, "; ")
	g.Strikes, g.StruckAt = p.Left(g, now)+o.Points, now
	switch {
	case g.State == gpuserver.GPUQuarantined:
	case g.Strikes >= p.Threshold:
		o.Quarantined = true
		g.State, g.StateAt, g.RestUntil, g.Reason = gpuserver.GPUQuarantined, now, time.Time{}, o.Text
	default:
		g.RestUntil = now.Add(p.restAfter(g.Strikes))
		if g.State == gpuserver.GPUInService { // else it says why an operator took it out
			g.Reason = o.Text
		}
	}
	return g, o
}

// restAfter is Rest for one point, doubled for each one more.
func (p Policy) restAfter(points float64) time.Duration {
	rest := p.Rest
	for ; points >= 2 && rest < longestRest; points-- {
		rest *= 2
	}
	return min(rest, longestRest)
}

// Out says why no VM may have a card now, as a part of a sentence, and until when
// if that ends by itself; "": it may.
func Out(g gpuserver.GPU, now time.Time) (why string, until time.Time) {
	since := g.StateAt.Format(time.DateTime) + " UTC"
	back := fmt.Sprintf("an operator puts it back with gpuserver gpu uncordon %d", g.ID)
	switch {
	case g.State == gpuserver.GPUQuarantined:
		return fmt.Sprintf("%s is quarantined since %s: %s; %s", name(g), since, g.Reason, back), until
	case g.State == gpuserver.GPUCordoned:
		return fmt.Sprintf("%s is cordoned since %s: %s; %s", name(g), since, g.Reason, back), until
	case g.RestUntil.After(now):
		return fmt.Sprintf("%s rests until %s UTC after a strike: %s", name(g), g.RestUntil.Format(time.DateTime), g.Reason), g.RestUntil
	}
	return "", until
}

// name is how people are told of a card.
func name(g gpuserver.GPU) string {
	if g.Address == "" {
		return fmt.Sprintf("card %d", g.ID)
	}
	return fmt.Sprintf("card %d at %s", g.ID, g.Address)
}
