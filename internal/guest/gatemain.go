package guest

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"gpuserver/internal/gate"
)

// gateMain checks the VM's cards by hand and prints the report; nothing is told
// to anybody. The status is 0 if the check passed.
func gateMain(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var root, form string
	var e gate.Expectation
	flags := flag.NewFlagSet("gate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&root, "root", "", "prefix of /sys, /dev and the tools' folders")
	flags.StringVar(&form, "output", "table", "table or json")
	flags.BoolVar(&e.DCGM, "dcgm", false, "dcgmi's short diagnosis as well")
	flags.DurationVar(&e.Timeout, "timeout", 0, "of the whole check (default 2m)")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if form != "table" && form != "json" {
		fmt.Fprintf(stderr, "--output is %q, expected table or json\n", form)
		return 2
	}
	for _, model := range flags.Args() {
		vendor, device, ok := strings.Cut(strings.ToLower(model), ":")
		if !ok {
			fmt.Fprintf(stderr, "the card %q is not written VENDOR:DEVICE, as 10de:1db4\n", model)
			return 2
		}
		e.Cards = append(e.Cards, gate.ExpectedCard{VendorID: vendor, DeviceID: device})
	}
	if flags.NArg() == 0 {
		if e.Cards = gate.Present(root); len(e.Cards) == 0 {
			fmt.Fprintln(stderr, "there is no GPU of NVIDIA or AMD on the PCI bus; name those that should be, as 10de:1db4")
			return 1
		}
	}
	r := gate.Check(ctx, gate.Options{Root: root}, e, gate.Before)
	if form == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		_ = enc.Encode(r) // nobody reads it
	} else {
		printReport(stdout, r)
	}
	if !r.Passed {
		return 1
	}
	return 0
}

func printReport(w io.Writer, r gate.Report) {
	verdict := "passed"
	if !r.Passed {
		verdict = "failed"
	}
	fmt.Fprintf(w, "%s in %.1f s; asked: %s\n", verdict, r.Seconds, orDefault(r.Tool, "the PCI bus only, the image has no tool of the vendor"))
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ADDRESS\tMODEL\tPRODUCT\tUUID\tSERIAL\t°C\tLANES")
	for _, c := range r.Cards {
		fmt.Fprintf(table, "%s\t%s:%s\t%s\t%s\t%s\t%s\t%s\n", c.Address, c.VendorID, c.DeviceID,
			orDefault(c.Product, "-"), orDefault(c.UUID, "-"), orDefault(c.Serial, "-"), orDash(c.Temperature), orDash(c.LinkWidth))
	}
	_ = table.Flush() // nobody reads it
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s: %s\n", f.Kind, f.Text)
	}
}

func orDash(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}
