package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"gpuserver"
)

// stackSection is the section of what is measured on a real cloud; its parts begin
// with the same word.
const stackSection = "openstack"

// OpenStack is what `make bench-openstack` measures; its first four keys stand at
// the top of the report and are promised to scripts.
type OpenStack struct {
	// CallsPerVM are the calls of single VMs' lives, without the lists that all VMs
	// share; logging in and finding ids is in it, divided by the VMs.
	CallsPerVM CallsByService `json:"calls_per_vm"`
	// Overhead1 is webhook → ACTIVE ÷ the bare client's POST → ACTIVE, the median of
	// pairs of single VMs.
	Overhead1 float64 `json:"overhead_1"`
	// Overhead100 is the same for many at once, from the first webhook or POST to
	// the last ACTIVE.
	Overhead100 float64 `json:"overhead_100"`
	// IdleCalls are calls to all services a minute while nothing happens.
	IdleCalls float64 `json:"idle_calls_per_min_500"`

	Detail StackDetail `json:"openstack"`
}

// StackDetail is what stands behind these.
type StackDetail struct {
	WebhookToActive Quantiles          `json:"webhook_to_active_ms"`
	BareToActive    Quantiles          `json:"bare_to_active_ms"`
	OwnCalls        map[string]float64 `json:"own_calls_per_vm"`         // what CallsPerVM is made of
	AllCalls1       CallsByService     `json:"all_calls_per_vm_single"`  // shared lists divided by the VMs, too: one at a time
	AllCalls100     CallsByService     `json:"all_calls_per_vm_at_once"` // the same, many at once
	Burst           StackBurst         `json:"burst"`
	Idle            []StackIdle        `json:"idle"`
}

// StackBurst are many VMs at once.
type StackBurst struct {
	N       int       `json:"n"`
	Workers int       `json:"workers"` // creates under way at once
	Ours    []float64 `json:"ours_s"`  // first webhook → last ACTIVE, each time
	Bare    []float64 `json:"bare_s"`  // first POST → last ACTIVE
	Failed  int       `json:"failed"`  // servers of ours that Nova could not build; they were made anew
}

// StackIdle are calls while nothing happens.
type StackIdle struct {
	VMs       int     `json:"vms"`
	Ours      int     `json:"ours"` // of these; the others are a stranger's in the project
	PerMinute float64 `json:"calls_per_min"`
}

// WriteStack writes the figures of the driver for OpenStack as a Markdown table.
func WriteStack(w io.Writer, r Report) error {
	o := r.OpenStack
	if o == nil {
		return gpuserver.Errorf(gpuserver.KindInvalid, "bench: the report has no figures of OpenStack")
	}
	d := o.Detail
	var b strings.Builder
	b.WriteString("| Figure | Measured | Target |\n| --- | --- | --- |\n")
	line := func(what, target, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", what, fmt.Sprintf(format, args...), target)
	}
	measured := func(what string) bool {
		return slices.ContainsFunc(r.Parts, func(p Part) bool { return p.Name == stackSection+"-"+what })
	}
	if measured("single") {
		line("webhook → ACTIVE ÷ bare client, one VM", "< 1.10", "%.3f (p50 %.2f s and %.2f s, %d pairs)", o.Overhead1, d.WebhookToActive.P50/1000, d.BareToActive.P50/1000, d.WebhookToActive.N)
	}
	if measured("burst") {
		line(fmt.Sprintf("the same, %d VMs, %d creates at once", d.Burst.N, d.Burst.Workers), "≤ 1", "%.3f (%s s and %s s)", o.Overhead100, list(d.Burst.Ours), list(d.Burst.Bare))
	}
	for _, i := range d.Idle {
		line(fmt.Sprintf("calls a minute, %d VMs alive, %d of them ours", i.VMs, i.Ours), "not per VM", "%.1f", i.PerMinute)
	}
	if measured("single") {
		line("calls of one VM's life", "≤ 3 and 2", "%s", o.CallsPerVM)
		line("… with the shared lists, one VM at a time", "", "%s", d.AllCalls1)
	}
	if measured("burst") {
		line(fmt.Sprintf("… with the shared lists, %d at once", d.Burst.N), "", "%s", d.AllCalls100)
	}
	b.WriteString("\nThe calls of one VM's life: ")
	for i, what := range slices.Sorted(maps.Keys(d.OwnCalls)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "`%s` %g", what, d.OwnCalls[what])
	}
	m := r.Machine
	fmt.Fprintf(&b, ".\n\nMachine: %s, %d cores, %d MiB, %s; load average before the cloud's start %.1f. Taken %s.\n", m.CPU, m.Cores, m.MemoryMiB, m.Kernel, m.Load, r.TakenAt.Format("2006-01-02"))
	_, err := io.WriteString(w, b.String())
	return err
}

func list(numbers []float64) string {
	var s []string
	for _, n := range numbers {
		s = append(s, fmt.Sprintf("%.1f", n))
	}
	return strings.Join(s, ", ")
}

// String implements fmt.Stringer.
func (c CallsByService) String() string {
	return fmt.Sprintf("Nova %g, Keystone %g, Glance %g, Neutron %g, Placement %g", c.Nova, c.Keystone, c.Glance, c.Neutron, c.Placement)
}

// median of an even number is the mean of the two in the middle.
func median(numbers []float64) float64 {
	if len(numbers) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(numbers))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// getJSON reads a document from a process of the benchmark.
func getJSON(ctx context.Context, url string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		defer resp.Body.Close()
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	return gpuserver.Wrap(gpuserver.KindUnavailable, "bench: read "+url, err)
}
