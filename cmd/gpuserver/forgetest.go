package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"gpuserver/internal/forge/forgetest"
)

// newForgetestCommand is the stand-in for GitHub as a process of its own, for
// "demo". It is hidden: nobody needs it by hand.
func newForgetestCommand() *cobra.Command {
	var o forgetest.Options
	cmd := &cobra.Command{
		Use:    "forgetest",
		Short:  "Run the stand-in for GitHub",
		Hidden: true,
		Long: `Runs a stand-in for GitHub: its REST interface, signed deliveries and runners, for
the demonstration and for tests. Everybody who reaches it may do everything.
Prints the address that it listens on.`,
		Example: `  gpuserver forgetest --listen 127.0.0.1:8090`,
		Args:    exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Ready = func(address, _ string) { _, _ = fmt.Fprintln(cmd.OutOrStdout(), address) }
			return forgetest.Serve(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Listen, "listen", "127.0.0.1:0", "address to listen on")
	return cmd
}
