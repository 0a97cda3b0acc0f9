package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"gpuserver/internal/api"
)

func newStatusCommand() *cobra.Command {
	var server serverFlags
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the server at a glance",
		Long: `Shows whether the server can take jobs, its queue, VMs, hosts with their room,
clouds, forges with what is left of their limits, images that are held, flavors that
are suspended on a cloud, and GPUs that no VM gets, with what to do about each.

Exit status: 0 the server is ready, 1 it is not or cannot be reached.
` + serverHelp,
		Example: `  gpuserver status
  gpuserver status --output json | jq .queue`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				s, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if output == outputJSON {
					err = printJSON(cmd.OutOrStdout(), s)
				} else {
					err = printStatus(cmd.OutOrStdout(), s)
				}
				if err == nil && !s.Ready {
					err = &exitError{code: exitFailed}
				}
				return err
			})
		},
	}
	server.add(cmd)
	addOutputFlag(cmd, &output)
	return cmd
}

func printStatus(w io.Writer, s api.Status) error {
	ready := "yes"
	if !s.Ready {
		ready = "no: " + strings.Join(s.NotReady, " ")
	}
	queue := "empty"
	if s.Queue.Length > 0 {
		queue = fmt.Sprintf("%d waiting, the first for %s", s.Queue.Length, duration(time.Duration(s.Queue.AgeSeconds*float64(time.Second))))
	}
	var jobs, vms []string
	for _, state := range slices.Sorted(maps.Keys(s.Jobs)) {
		jobs = append(jobs, fmt.Sprintf("%d %s", s.Jobs[state], state))
	}
	for _, v := range s.VMs {
		vms = append(vms, fmt.Sprintf("%d %s on %s", v.Count, v.State, v.Cloud))
	}
	if err := fields(w, "server", s.Version, "ready", ready, "queue", queue, "jobs", strings.Join(jobs, ", "), "vms", strings.Join(vms, ", "),
		"gpus", gpuCounts(s), "slots", slotTotals(s.Slots)); err != nil {
		return err
	}
	for _, warning := range s.Warnings {
		if _, err := fmt.Fprintf(w, "\nWarning: %s.\n", printable(warning)); err != nil {
			return err
		}
	}
	for _, section := range []struct {
		head []string
		rows [][]string
	}{
		{[]string{"HOST", "VMS", "VCPUS", "MEMORY", "DISK"}, hostRows(s.Hosts)},
		{[]string{"CLOUD", "TYPE", "UP", "ABOUT"}, cloudRows(s.Clouds)},
		{[]string{"FORGE", "TYPE", "UP", "CALLS LEFT", "ABOUT"}, forgeRows(s.Forges)},
		{[]string{"IMAGE", "FAILURES", "HELD", "WHY"}, imageRows(s.Images)},
		{[]string{"CLOUD", "FLAVOR", "FAILURES", "SUSPENDED", "TRIED AFTER", "WHY"}, suspendedRows(s.Suspended)},
		{[]string{"GPU", "HOST", "ADDRESS", "STATE", "SINCE", "WHY"}, outRows(s.GPUs.Out)},
	} {
		if len(section.rows) == 0 {
			continue
		}
		_, _ = fmt.Fprintln(w)
		if err := printTable(w, section.head, section.rows); err != nil {
			return err
		}
	}
	for _, f := range s.Suspended {
		if _, err := fmt.Fprintf(w, "\nFlavor %s is suspended on %s: see the usual causes with gpuserver cloud check %s, end it with gpuserver cloud resume %s %s.\n",
			printable(f.Flavor), printable(f.Cloud), printable(f.Cloud), printable(f.Cloud), printable(f.Flavor)); err != nil {
			return err
		}
	}
	return printGPUHelp(w, s.GPUs.Out)
}

func suspendedRows(flavors []api.SuspendedFlavor) (rows [][]string) {
	for _, f := range flavors {
		rows = append(rows, []string{f.Cloud, f.Flavor, fmt.Sprint(f.Failures), ago(f.Since), f.Until.Local().Format(time.DateTime), f.Reason})
	}
	return rows
}

func hostRows(hosts []api.HostStatus) (rows [][]string) {
	mib := func(n int64) string { return humanize.IBytes(uint64(max(0, n)) << 20) }
	for _, h := range hosts {
		rows = append(rows, []string{
			h.Cloud + "/" + h.Name, fmt.Sprint(h.Used.VMs), fmt.Sprintf("%d of %d", h.Used.VCPUs, h.VCPUs),
			mib(h.Used.MemoryMiB) + " of " + mib(h.MemoryMiB), fmt.Sprintf("%d of %d GiB", h.Used.DiskGiB, h.DiskGiB),
		})
	}
	return rows
}

func cloudRows(clouds []api.CloudStatus) (rows [][]string) {
	for _, c := range clouds {
		about := c.Note
		if !c.Up {
			about = c.Reason
		}
		rows = append(rows, []string{c.Name, c.Type, yes(c.Up), about})
	}
	return rows
}

func forgeRows(forges []api.ForgeStatus) (rows [][]string) {
	for _, f := range forges {
		left, about := "", f.Reason
		if f.Limit > 0 {
			left = fmt.Sprintf("%d of %d", f.Remaining, f.Limit)
		}
		if time.Now().Before(f.LimitedUntil) {
			about = "limited until " + f.LimitedUntil.Local().Format(time.TimeOnly) + " " + about
		}
		rows = append(rows, []string{f.Name, f.Type, yes(f.Up), left, about})
	}
	return rows
}

func imageRows(images []api.HeldImage) (rows [][]string) {
	for _, i := range images {
		held := "no"
		if i.Held {
			held = ago(i.HeldAt)
		}
		rows = append(rows, []string{i.Name, fmt.Sprint(i.Failures), held, i.Reason})
	}
	return rows
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
