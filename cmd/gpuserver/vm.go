package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/api"
)

func newVMCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Look at VMs and their consoles, delete them",
		Long: `Asks a running server about its VMs. A VM is named by its name or its number.
` + serverHelp,
		Example: `  gpuserver vm list
  gpuserver vm console gs-k3-12 --follow`,
	}
	cmd.AddCommand(newVMListCommand(), newVMConsoleCommand(), newVMDeleteCommand())
	return group(cmd)
}

func newVMListCommand() *cobra.Command {
	var server serverFlags
	var output outputFormat
	var all bool
	var limit int
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List VMs, newest first",
		Long: `Lists the VMs that are alive, newest first; with --all those that are gone too, as
long as they are kept.

States, in the order of a VM's life: leased, creating, booting, ready (its runner
waits for a job), busy, draining, deleting, gone. On a cloud that chooses the GPUs
itself, a VM whose GPU failed goes from draining to keeping and kept: it is off, and
holds the GPU until that may be used again.
` + serverHelp,
		Example: `  gpuserver vm list
  gpuserver vm list --all --limit 20 --output json`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return usageError(cmd, fmt.Errorf("--limit %d is not between 1 and 1000", limit))
			}
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				vms, err := c.VMs(ctx, all, limit)
				if err != nil {
					return err
				}
				if output == outputJSON {
					return printJSON(cmd.OutOrStdout(), api.VMList{VMs: vms})
				}
				return printVMs(cmd.OutOrStdout(), vms)
			})
		},
	}
	server.add(cmd)
	addOutputFlag(cmd, &output)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "the VMs that are gone too")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many")
	return cmd
}

func printVMs(w io.Writer, vms []gpuserver.VM) error {
	if len(vms) == 0 {
		_, err := fmt.Fprintln(w, "No VMs.")
		return err
	}
	rows := make([][]string, len(vms))
	for i, v := range vms {
		job := ""
		switch {
		case v.Assigned != 0:
			job = fmt.Sprint(v.Assigned)
		case v.MadeFor != 0:
			job = fmt.Sprintf("(%d)", v.MadeFor)
		}
		rows[i] = []string{fmt.Sprint(v.ID), v.Name, string(v.State), lasted(v.CreatedAt, goneAt(v)), v.Cloud + "/" + v.Host, v.Flavor, v.Image, job, v.Reason}
	}
	return printTable(w, []string{"VM", "NAME", "STATE", "AGE", "HOST", "FLAVOR", "IMAGE", "JOB", "WHY"}, rows)
}

func newVMConsoleCommand() *cobra.Command {
	var server serverFlags
	var follow bool
	var from int64
	cmd := &cobra.Command{
		Use:   "console VM",
		Short: "Print a VM's serial console",
		Long: `Prints what a VM wrote to its serial console: the kernel, the agent and the runner.
With --follow it goes on until the VM is gone. Consoles of this machine's VMs that
are gone are kept for some days (retention.consoles); an OpenStack keeps none.

On a terminal control characters are shown as "?", because whoever runs a job can
write what he likes to the console; in a pipe or file the bytes are as they were.
` + serverHelp,
		Example: `  gpuserver vm console gs-k3-12
  gpuserver vm console gs-k3-12 --follow
  gpuserver vm console 12 --from 1000000 > part.log`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if from < 0 {
				return usageError(cmd, fmt.Errorf("--from %d is before the beginning", from))
			}
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				return copyConsole(ctx, cmd.OutOrStdout(), c, args[0], from, follow)
			})
		},
	}
	server.add(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the VM is gone")
	cmd.Flags().Int64Var(&from, "from", 0, "byte to begin at")
	cmd.ValidArgsFunction = server.complete(false, vmCompletions)
	return cmd
}

// consoleLimit is how much of a console is asked for at a time.
const consoleLimit = 64 << 20

func copyConsole(ctx context.Context, w io.Writer, c *api.Client, vm string, from int64, follow bool) error {
	r, err := c.Console(ctx, vm, from, consoleLimit, follow)
	if err != nil {
		return err
	}
	defer r.Close()
	if isTerminal(w) {
		w = &harmless{w}
	}
	if _, err = io.Copy(w, r); ctx.Err() != nil {
		return &exitError{code: exitInterrupted}
	}
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(f.Fd())
}

// harmless replaces the control characters that could do something to a
// terminal. It works on bytes, so that a character cut in two stays whole.
type harmless struct{ w io.Writer }

// Write implements io.Writer.
func (h *harmless) Write(p []byte) (int, error) {
	clean := make([]byte, len(p))
	for i, b := range p {
		if b < ' ' && b != '\n' && b != '\t' && b != '\r' || b == 0x7f {
			b = '?'
		}
		clean[i] = b
	}
	return h.w.Write(clean)
}

func newVMDeleteCommand() *cobra.Command {
	var server serverFlags
	cmd := &cobra.Command{
		Use:   "delete VM...",
		Short: "Take VMs down, whatever they do",
		Long: `Takes VMs down. The job that runs on one fails on the forge; one that waits for it
gets another VM. The command returns once the order is taken; "gpuserver vm list"
shows when the VM is gone.
` + serverHelp,
		Example: `  gpuserver vm delete gs-k3-12
  gpuserver vm delete 12 13`,
		Args: checkedArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				var errs []error
				for _, ref := range args {
					if err := c.DeleteVM(ctx, ref); err != nil {
						errs = append(errs, fmt.Errorf("VM %s: %w", ref, err))
						continue
					}
					_, _ = fmt.Fprintf(cmd.OutOrStdout(), "VM %s is being deleted.\n", ref)
				}
				return errors.Join(errs...)
			})
		},
	}
	server.add(cmd)
	cmd.ValidArgsFunction = server.complete(true, vmCompletions)
	return cmd
}

func vmCompletions(ctx context.Context, c *api.Client) ([]cobra.Completion, error) {
	vms, err := c.VMs(ctx, false, 50)
	cs := make([]cobra.Completion, len(vms))
	for i, v := range vms {
		cs[i] = cobra.CompletionWithDesc(v.Name, string(v.State)+" on "+v.Cloud+"/"+v.Host)
	}
	return cs, err
}

// goneAt gives when a VM was gone, zero if it is not.
func goneAt(v gpuserver.VM) (t time.Time) {
	if v.State == gpuserver.VMGone {
		t = v.StateAt
	}
	return t
}
