package gate

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bound brings a report, which a hostile guest may have made, into the ranges
// that people, the store and a heartbeat can bear. It is idempotent.
func (r *Report) Bound() {
	r.When = Clip(r.When, 8)
	r.Tool = Clip(r.Tool, 64)
	r.Seconds = min(max(r.Seconds, 0), 24*3600)
	r.Cards = r.Cards[:min(len(r.Cards), MaxCards)]
	for i := range r.Cards {
		c := &r.Cards[i]
		c.Address, c.Host = Clip(c.Address, 16), Clip(c.Host, 16)
		c.VendorID, c.DeviceID = Clip(c.VendorID, 4), Clip(c.DeviceID, 4)
		c.UUID, c.Serial, c.Product = Clip(c.UUID, 48), Clip(c.Serial, 32), Clip(c.Product, 64)
		c.Temperature = min(max(c.Temperature, -100), 1000)
		c.LinkWidth = min(max(c.LinkWidth, 0), 64)
	}
	r.Findings = r.Findings[:min(len(r.Findings), MaxFindings)]
	for i := range r.Findings {
		f := &r.Findings[i]
		f.Host, f.Kind, f.Text = Clip(f.Host, 16), Kind(Clip(string(f.Kind), 16)), Clip(f.Text, 256)
	}
	r.Passed = r.Passed && len(r.Findings) == 0
	r.shrink()
}

// shrink drops what can be missed best until the report fits MaxReport: later
// findings, then what cards are called.
func (r *Report) shrink() {
	for len(r.Findings) > 1 && len(r.json()) > MaxReport {
		r.Findings = r.Findings[:len(r.Findings)-1]
	}
	for i := len(r.Cards) - 1; i >= 0 && len(r.json()) > MaxReport; i-- {
		r.Cards[i].Product = ""
	}
	for len(r.Cards) > 0 && len(r.json()) > MaxReport { // texts of quotes only
		r.Cards = r.Cards[:len(r.Cards)-1]
	}
}

func (r *Report) json() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // there is nothing in it that JSON has not
	}
	return b
}

// Line gives the report as the line for the console, without an end.
func (r *Report) Line() string { return ConsolePrefix + string(r.json()) }

// FromConsole finds the report of a moment on a console: the first one of Before,
// which nothing of the job can have written, and the last one of After. Only
// lines that begin with the prefix count: what others write to a console through
// a log does not begin its line.
func FromConsole(console []byte, when string) (Report, bool) {
	var last Report
	found := false
	for line := range bytes.Lines(console) {
		text, ok := bytes.CutPrefix(bytes.Trim(line, "\r\n"), []byte(ConsolePrefix))
		var r Report
		if !ok || len(text) > MaxReport || json.Unmarshal(text, &r) != nil || r.When != when {
			continue
		}
		r.Bound()
		if when == Before {
			return r, true
		}
		last, found = r, true
	}
	return last, found
}

// Clip gives text that a guest may have made up without control characters, as
// valid UTF-8 of at most n bytes. It is idempotent.
func Clip(s string, n int) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
	for len(clean) > n {
		_, size := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-size]
	}
	return clean
}
