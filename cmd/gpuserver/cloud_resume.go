package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gpuserver/internal/api"
)

func newCloudResumeCommand() *cobra.Command {
	var server serverFlags
	cmd := &cobra.Command{
		Use:   "resume CLOUD FLAVOR",
		Short: "Let VMs of a suspended flavor be made on a cloud again",
		Long: `A flavor is suspended on a cloud when that found no host for one VM of it after
another, although it has room by our ledger: "ledger and cloud disagree". No VM
of it is made there then, and jobs go to the next of their entries. "gpuserver
status" lists suspended flavors; "gpuserver cloud check" names the usual causes.

It ends by itself once a VM of the flavor could be made, which is tried from time
to time with one VM. This command ends it at once and forgets the failures, once
what was wrong is mended.
` + serverHelp,
		Example: `  gpuserver cloud resume stack gpu_large`,
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				if err := c.ResumeFlavor(ctx, args[0], args[1]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "VMs of flavor %s are made on cloud %s again.\n", printable(args[1]), printable(args[0]))
				return err
			})
		},
	}
	server.add(cmd)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return server.complete(true, func(ctx context.Context, c *api.Client) (cs []cobra.Completion, err error) {
			s, err := c.Status(ctx)
			for _, f := range s.Suspended {
				switch {
				case len(args) == 0:
					cs = append(cs, f.Cloud)
				case f.Cloud == args[0]:
					cs = append(cs, f.Flavor)
				}
			}
			return cs, err
		})(cmd, args, part)
	}
	return cmd
}
