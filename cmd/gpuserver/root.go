package main

import (
	"github.com/spf13/cobra"
)

// defaultConfig is where commands look for the configuration file.
const defaultConfig = "/etc/gpuserver/gpuserver.yaml"

// commands are the sub-commands, in the order of the help. Each is made by a
// function in the file of its name.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newServeCommand(),
		newDemoCommand(),
		newRunCommand(),
		newStatusCommand(),
		newJobCommand(),
		newVMCommand(),
		newGPUCommand(),
		newImageCommand(),
		newCloudCommand(),
		newHostCommand(),
		newForgeCommand(),
		newCirunCommand(),
		newConfigCommand(),
		newGuestCommand(),
		newVersionCommand(),
		newForgetestCommand(),
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "gpuserver",
		Short: "A CI service of your own: each job a fresh VM",
		Long: `gpuserver makes a Linux machine a CI service. A job that is queued on a forge
(GitHub Actions) becomes a fresh virtual machine that runs this one job and is
gone.

"gpuserver serve" is the service; the other commands ask it, try it out or check
its files. Each has a help of its own: gpuserver help COMMAND.

Exit status, unless a command says otherwise: 0 done, 1 it could not be done,
2 the arguments or a file that they name are wrong.`,
		Example: `  gpuserver config sample > gpuserver.yaml
  gpuserver config check gpuserver.yaml
  gpuserver serve --config gpuserver.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(usageError)
	root.AddCommand(commands()...)
	group(root)
	return root
}

// group makes a command that only holds others: alone it prints its help, and
// an unknown sub-command is a mistake of the caller.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		return usageError(cmd, cobra.NoArgs(cmd, args))
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// usageError makes err one of the arguments.
func usageError(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{exitUsage, &usage{cmd.CommandPath(), err}}
}

// usage is an error in the arguments, with the way to the command's help.
type usage struct {
	command string
	err     error
}

// Error implements error.
func (u *usage) Error() string {
	return u.err.Error() + "\nSee '" + u.command + " --help'."
}

// Unwrap gives the cause.
func (u *usage) Unwrap() error { return u.err }

// exactArgs is cobra.ExactArgs with our exit status.
func exactArgs(n int) cobra.PositionalArgs { return checkedArgs(cobra.ExactArgs(n)) }

// checkedArgs gives a check of arguments our exit status.
func checkedArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		return usageError(cmd, check(cmd, args))
	}
}
