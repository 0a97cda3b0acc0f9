package health

import (
	"fmt"
	"slices"

	"gpuserver/internal/gate"
)

// Attached is one card that a VM was given.
type Attached struct {
	Host     string // its address on the host; "": the cloud chose the card and does not tell
	VendorID string // "": not known, as DeviceID
	DeviceID string
}

// Verdict is what a guest's report says of its VM's cards.
type Verdict struct {
	Passed bool
	Why    string       // what is wrong, for people; "" if Passed
	Seen   [][]Evidence // against each card, in the order in which they were attached
}

// Guest judges a report by what was attached, whatever it says of itself. What
// it says of cards that the VM was not given is held against the VM's own.
func Guest(r gate.Report, attached []Attached) Verdict {
	v := Verdict{Passed: r.Passed && len(r.Findings) == 0, Seen: make([][]Evidence, len(attached))}
	after := r.When == gate.After
	against := func(i int, e Evidence) {
		if v.Why == "" {
			v.Why = e.Text
		}
		if i >= 0 {
			e.Doubtful = e.Doubtful || after
			v.Seen[i] = append(v.Seen[i], e)
			return
		}
		e.Doubtful = e.Doubtful || after || len(attached) > 1 // it is not known which
		for i := range v.Seen {
			v.Seen[i] = append(v.Seen[i], e)
		}
	}
	for _, f := range r.Findings {
		e := Evidence{Kind: f.Kind, Text: text(f)}
		i := slices.IndexFunc(attached, func(a Attached) bool { return a.Host != "" && a.Host == f.Host })
		if i < 0 && f.Host != "" {
			e.Kind = gate.KindLie
		}
		against(i, e)
	}
	if e := counted(r.Cards, attached); e != nil {
		v.Passed = false
		if !r.Passed && len(r.Findings) > 0 && e.Kind == gate.KindMissing {
			e = nil // the guest found so itself, and may know which
		}
		if e != nil {
			against(-1, *e)
		}
	}
	if !v.Passed && v.Why == "" {
		against(-1, Evidence{Kind: gate.KindTool, Text: "the check in the VM failed and did not say why"})
	}
	return v
}

// text bounds what a guest says and names what it speaks of.
func text(f gate.Finding) string {
	t := []rune(f.Text)
	if len(t) == 0 {
		t = []rune(string(f.Kind))
	}
	const most = 300
	return "in the VM: " + string(t[:min(len(t), most)])
}

// counted compares the cards that a guest sees with those that it was given: by
// their numbers where these are known, else by how many they are. nil: they fit.
func counted(cards []gate.Card, attached []Attached) *Evidence {
	type id struct{ vendor, device string }
	want, got := map[id]int{}, map[id]int{}
	known := true
	for _, a := range attached {
		want[id{a.VendorID, a.DeviceID}]++
		known = known && a.VendorID != "" && a.DeviceID != ""
	}
	uuids := map[string]bool{}
	for _, c := range cards {
		if c.UUID != "" && uuids[c.UUID] {
			return &Evidence{Kind: gate.KindLie, Text: "in the VM: two cards are said to have the UUID " + short(c.UUID)}
		}
		uuids[c.UUID] = true
		got[id{c.VendorID, c.DeviceID}]++
	}
	if !known {
		want, got = map[id]int{{}: len(attached)}, map[id]int{{}: len(cards)}
	}
	for k, n := range want {
		if got[k] < n {
			return &Evidence{Kind: gate.KindMissing, Text: fmt.Sprintf("in the VM: %d of %d cards%s are there", got[k], n, called(k.vendor, k.device))}
		}
	}
	if len(cards) > len(attached) {
		return &Evidence{Kind: gate.KindLie, Text: fmt.Sprintf("in the VM: %d cards are said to be there; it was given %d", len(cards), len(attached))}
	}
	return nil
}

func called(vendor, device string) string {
	if vendor == "" || device == "" {
		return ""
	}
	return " " + vendor + ":" + device
}

func short(s string) string { return s[:min(len(s), 64)] }
