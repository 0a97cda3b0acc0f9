package gate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	defaultTimeout = 2 * time.Minute
	toolTimeout    = time.Minute // of one call of a vendor's tool
	dcgmTimeout    = 90 * time.Second
)

// Vendors whose tools are asked.
const (
	vendorNVIDIA = "10de"
	vendorAMD    = "1002"
)

// Options say where a check finds things. The zero value is the VM that it runs in.
type Options struct {
	// Root is a prefix of all paths: /sys, /dev/kmsg, and the folders in which the
	// vendors' tools are looked for.
	Root string

	run runner // nil carries programs out; for tests
}

// Check looks at the VM's cards and gives what it found. It returns within e's
// Timeout, even if a tool or a file hangs in the kernel, where nothing can end
// it: what hangs is left behind then, and ends with the VM. A check that ended
// early has not passed.
func Check(ctx context.Context, o Options, e Expectation, when string) Report {
	start := time.Now()
	timeout := cmp.Or(e.Timeout, defaultTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// What is known when time is up is to be told, too.
	early, stop := context.WithTimeout(ctx, timeout-min(timeout/10, 5*time.Second))
	defer stop()
	done := make(chan *check, 1)
	go func() {
		c := &check{Options: o, expect: e}
		c.look(early)
		done <- c
	}()
	var r Report
	select {
	case c := <-done:
		r = c.report
		if early.Err() != nil {
			r.Findings = append(r.Findings, timeUp(early, timeout))
		}
	case <-ctx.Done():
		r.Findings = []Finding{timeUp(ctx, timeout)}
	}
	r.When = when
	r.Passed = len(r.Findings) == 0
	r.Seconds = time.Since(start).Seconds()
	r.Bound()
	return r
}

func timeUp(ctx context.Context, timeout time.Duration) Finding {
	if errors.Is(ctx.Err(), context.Canceled) {
		return Finding{Kind: KindTimeout, Text: "the check was stopped before its end"}
	}
	return Finding{Kind: KindTimeout, Text: fmt.Sprintf("the check did not end within %s", timeout)}
}

// check is one look at the cards.
type check struct {
	Options
	expect Expectation
	report Report
}

// found adds a finding about the card at a host's address, "" for the VM.
func (c *check) found(host string, kind Kind, format string, args ...any) {
	c.report.Findings = append(c.report.Findings, Finding{Host: host, Kind: kind, Text: fmt.Sprintf(format, args...)})
}

// look does all steps. A step that fails is a finding, and the next ones follow:
// together they tell more.
func (c *check) look(ctx context.Context) {
	c.lookAtBus()
	if c.expects(vendorNVIDIA) {
		c.askNVIDIA(ctx)
	}
	if c.expects(vendorAMD) {
		c.askAMD(ctx)
	}
	if c.expect.DCGM && c.expects(vendorNVIDIA) {
		c.askDCGM(ctx)
	}
	c.readLog(ctx) // last: a tool that loads the driver may make it complain
}

func (c *check) expects(vendor string) bool {
	return slices.ContainsFunc(c.expect.Cards, func(e ExpectedCard) bool { return e.VendorID == vendor })
}

// alsoAsked notes a tool.
func (c *check) alsoAsked(tool string) {
	c.report.Tool = strings.TrimPrefix(c.report.Tool+", "+tool, ", ")
}

// card gives the card at a guest's address, nil if there is none. The function
// may be left out: the driver's log names slots.
func (c *check) card(address string) *Card {
	for i := range c.report.Cards {
		if own := c.report.Cards[i].Address; own == address || strings.TrimSuffix(own, ".0") == address {
			return &c.report.Cards[i]
		}
	}
	return nil
}

// of gives the cards of a vendor.
func (c *check) of(vendor string) []*Card {
	var all []*Card
	for i := range c.report.Cards {
		if c.report.Cards[i].VendorID == vendor {
			all = append(all, &c.report.Cards[i])
		}
	}
	return all
}
