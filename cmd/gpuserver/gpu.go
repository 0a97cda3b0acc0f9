package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/api"
)

// gpuNames is part of the help of each command that names a card.
const gpuNames = `A GPU is named by its number, the first column of the list, by its UUID or serial
number, or by its address: 0000:27:00.0, 27:00.0, or HOST/27:00.0 where several
hosts have a card there.
`

func newGPUCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "gpu",
		Aliases: []string{"gpus"},
		Short:   "Look at GPUs, take them out of service, test them, put them back",
		Long: `Asks a running server about the GPUs of its hosts. Each card is checked before and
after every job; what goes wrong counts as strikes, which fade with time. A card
with too many is quarantined: no VM gets it until somebody puts it back.

` + gpuNames + serverHelp,
		Example: `  gpuserver gpu list --state quarantined
  gpuserver gpu history 27:00.0
  gpuserver gpu cordon node1/27:00.0 --reason "its fan is loud"`,
	}
	cmd.AddCommand(newGPUListCommand(), newGPUShowCommand(), newGPUHistoryCommand(), newGPUCordonCommand(), newGPUUncordonCommand(), newGPUTestCommand())
	return group(cmd)
}

var gpuStates = []string{string(gpuserver.GPUInService), string(gpuserver.GPUCordoned), string(gpuserver.GPUQuarantined)}

func newGPUListCommand() *cobra.Command {
	var server serverFlags
	var output outputFormat
	var states []string
	var cloud, host string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the GPUs with their state and who has them",
		Long: `Lists the GPUs by cloud, host and address.

States: in service, resting (in service, and no VM gets it for a while), cordoned
(taken out by somebody), quarantined (taken out by its strikes), absent (another
card is in its place). HELD BY is the VM that has the card, in brackets if that VM
has another card of the same IOMMU group. Below the list stands what to do about
each card that no VM gets.
` + serverHelp,
		Example: `  gpuserver gpu list
  gpuserver gpu list --state cordoned,quarantined
  gpuserver gpu list --host node1 --output json`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := knownStates(states, gpuStates); err != nil {
				return usageError(cmd, err)
			}
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				gs, err := c.GPUs(ctx, states, cloud, host)
				if err != nil {
					return err
				}
				if output == outputJSON {
					return printJSON(cmd.OutOrStdout(), api.GPUList{GPUs: gs})
				}
				return printGPUs(cmd.OutOrStdout(), gs)
			})
		},
	}
	server.add(cmd)
	addOutputFlag(cmd, &output)
	cmd.Flags().StringSliceVar(&states, "state", nil, "only GPUs in these states: in_service, cordoned, quarantined (default any)")
	cmd.Flags().StringVar(&cloud, "cloud", "", "only GPUs of this cloud (default any)")
	cmd.Flags().StringVar(&host, "host", "", "only GPUs of hosts with this name (default any)")
	must(cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(gpuStates, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func newGPUShowCommand() *cobra.Command {
	return readsGPU(&cobra.Command{
		Use:   "show GPU",
		Short: "Show a GPU, who has it, and the last that happened to it",
		Long: `Shows all that is known of one GPU: where it is, how it stands and why, which VM
and job have it until when, the last lines of its history, and what to do next.

` + gpuNames + serverHelp,
		Example: `  gpuserver gpu show 3
  gpuserver gpu show node1/27:00.0 --output json | jq .gpu.strikes_now`,
	}, (*api.Client).GPU, printGPU)
}

func newGPUHistoryCommand() *cobra.Command {
	var limit int
	cmd := readsGPU(&cobra.Command{
		Use:   "history GPU",
		Short: "Say what happened to a GPU, newest first",
		Long: `Prints a GPU's history, newest first: when it was seen first and where, each strike
with its points and the job in which it was seen, what followed, and who took it
out, tested it or put it back: the name of a token, or "socket" for root here.

` + gpuNames + serverHelp,
		Example: `  gpuserver gpu history 3
  gpuserver gpu history node1/27:00.0 --limit 1000 --output json`,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return usageError(cmd, fmt.Errorf("--limit %d is not between 1 and 1000", limit))
			}
			return nil
		},
	}, func(c *api.Client, ctx context.Context, ref string) (api.GPUHistory, error) {
		es, err := c.GPUHistory(ctx, ref, limit)
		return api.GPUHistory{Events: es}, err
	}, func(w io.Writer, h api.GPUHistory) error { return printGPUHistory(w, h.Events) })
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many lines")
	return cmd
}

// readsGPU makes cmd a command that reads one thing of one card and prints it as
// text or JSON.
func readsGPU[T any](cmd *cobra.Command, read func(*api.Client, context.Context, string) (T, error), print func(io.Writer, T) error) *cobra.Command {
	var server serverFlags
	var output outputFormat
	cmd.Args = exactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
			v, err := read(c, ctx, args[0])
			if err != nil {
				return err
			}
			if output == outputJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			return print(cmd.OutOrStdout(), v)
		})
	}
	server.add(cmd)
	addOutputFlag(cmd, &output)
	cmd.ValidArgsFunction = server.complete(false, gpuCompletions)
	return cmd
}

func newGPUCordonCommand() *cobra.Command {
	var reason string
	cmd := changesGPUs(&cobra.Command{
		Use:   "cordon GPU...",
		Short: "Take GPUs out of service; what runs on them runs to its end",
		Long: `Takes GPUs out of service: no VM gets one of them, nor another card of its IOMMU
group, until it is put back by "gpuserver gpu uncordon". The job that runs on one
runs to its end.

` + gpuNames + serverHelp,
		Example: `  gpuserver gpu cordon 3 --reason "its fan is loud"
  gpuserver gpu cordon node1/27:00.0 node1/28:00.0`,
	}, func(c *api.Client, ctx context.Context, ref string) (api.GPUDetail, error) {
		return c.CordonGPU(ctx, ref, reason)
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at the GPU later")
	return cmd
}

func newGPUUncordonCommand() *cobra.Command {
	return changesGPUs(&cobra.Command{
		Use:   "uncordon GPU...",
		Short: "Put GPUs back into service",
		Long: `Puts GPUs that were cordoned or quarantined back into service and forgets their
strikes; the history stays. A VM that was kept because of one, on a cloud that
chooses the card itself, is deleted. Try the card before: gpuserver gpu test GPU.

` + gpuNames + serverHelp,
		Example: `  gpuserver gpu uncordon 3
  gpuserver gpu uncordon node1/27:00.0`,
	}, (*api.Client).UncordonGPU)
}

// changesGPUs makes cmd a command that does one thing to each card it is given
// and says how the card stands then.
func changesGPUs(cmd *cobra.Command, change func(*api.Client, context.Context, string) (api.GPUDetail, error)) *cobra.Command {
	var server serverFlags
	cmd.Args = checkedArgs(cobra.MinimumNArgs(1))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
			var errs []error
			for _, ref := range args {
				d, err := change(c, ctx, ref)
				if err != nil {
					errs = append(errs, fmt.Errorf("GPU %s: %w", ref, err))
					continue
				}
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), printable(standing(d.GPU)))
			}
			return errors.Join(errs...)
		})
	}
	server.add(cmd)
	cmd.ValidArgsFunction = server.complete(true, gpuCompletions)
	return cmd
}

func gpuCompletions(ctx context.Context, c *api.Client) ([]cobra.Completion, error) {
	gs, err := c.GPUs(ctx, nil, "", "")
	cs := make([]cobra.Completion, len(gs))
	for i, g := range gs {
		name := fmt.Sprint(g.ID)
		if g.Address != "" && !strings.ContainsAny(g.Host, " /") {
			name = g.Host + "/" + g.Address
		}
		cs[i] = cobra.CompletionWithDesc(name, printable(g.Model+", "+gpuState(g)))
	}
	return cs, err
}
