package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"gpuserver/internal/guest"
)

// newGuestCommand is the agent inside a VM. Images of ours have it as a small
// program of its own, gpuserver-guest; an image that has this program needs no
// other.
func newGuestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "guest agent|gate|hook|exec|version [ARGUMENT...]",
		Short: "Be the agent inside a VM",
		Long: `Runs inside a VM, never on the host: reads the config drive, sets the VM up, starts
the runner and reports to the server. It powers the machine off at its end.

  guest agent [--runner-dir DIR] [--runner-user USER]
                        the agent (default /opt/runner and runner); only systemd starts
                        it, by a unit of type notify
  guest gate [--output table|json] [--dcgm] [--timeout TIME] [VENDOR:DEVICE...]
                        checks the VM's cards by hand: those named (as 10de:1db4), or
                        all that are there; status 1 if it did not pass
  guest hook job-started
                        asks the agent whether a job may run; the runner calls it
  guest exec USER ADJ -- PROGRAM [ARGUMENT...]
                        runs a program as USER with an oom_score_adj; the agent calls it
  guest version         the agent's version

It is the same as gpuserver-guest, the small program that images of this project
have.`,
		Example: `  ExecStart=/usr/bin/gpuserver guest agent --runner-dir /opt/runner   (in the unit)
  gpuserver guest gate 10de:1db4 10de:1db4
  gpuserver guest version`,
		DisableFlagParsing: true,
		Args:               cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "--help" || args[0] == "-h" {
				return cmd.Help()
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("the program's own path is not known: %w", err)
			}
			if code := guest.Main(args, []string{self, "guest"}, cmd.OutOrStdout(), cmd.ErrOrStderr()); code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
}
