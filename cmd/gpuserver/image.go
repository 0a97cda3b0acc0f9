package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gpuserver/internal/api"
)

func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Release images that are held",
		Long: `An image is held, which means that no VM is made from it, after three VMs in a row
whose runner ended without a job: most often its runner is so old that the forge
refuses it. "gpuserver status" lists held images.
` + serverHelp,
		Example: `  gpuserver image release ubuntu-24.04`,
	}
	cmd.AddCommand(newImageReleaseCommand())
	return group(cmd)
}

func newImageReleaseCommand() *cobra.Command {
	var server serverFlags
	cmd := &cobra.Command{
		Use:   "release IMAGE",
		Short: "Let VMs be made from a held image again",
		Long: `Ends the hold of an image and forgets its failures, once what was wrong with it is
mended. Over an URL it needs the role admin.
` + serverHelp,
		Example: `  gpuserver image release ubuntu-24.04`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				if err := c.ReleaseImage(ctx, args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "Image %s is released.\n", printable(args[0]))
				return err
			})
		},
	}
	server.add(cmd)
	cmd.ValidArgsFunction = server.complete(false, func(ctx context.Context, c *api.Client) (cs []cobra.Completion, err error) {
		s, err := c.Status(ctx)
		for _, i := range s.Images {
			cs = append(cs, i.Name)
		}
		return cs, err
	})
	return cmd
}
