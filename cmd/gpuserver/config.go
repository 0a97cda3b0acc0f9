package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/config"
)

func newConfigCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "config",
		Short: "Check a configuration file, or print one to start from",
		Long: `The service has one configuration file, in YAML, and reads it strictly: a key
that it does not know, a value of a wrong type or unit, a name given twice and a
reference that leads nowhere are refused, each with its line and column.

Secrets never stand in the file: it names the file, environment variable or
systemd credential that holds them.`,
		Example: `  gpuserver config sample > gpuserver.yaml
  gpuserver config check gpuserver.yaml
  gpuserver config schema > gpuserver.schema.json`,
	})
	cmd.AddCommand(newConfigCheckCommand(), newConfigSampleCommand(), newConfigSchemaCommand())
	return cmd
}

func newConfigCheckCommand() *cobra.Command {
	var secrets bool
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file",
		Long: `Checks a configuration file and prints every mistake in it, one a line:

  FILE:LINE:COLUMN: what is wrong and what was expected

FILE is ` + defaultConfig + ` if not given. Nothing is changed and
nobody is asked, so that it can be checked anywhere; with --secrets the secrets
that the file names are read, too (never printed), as the service would.

Exit status: 0 no mistake, 2 mistakes, or the file cannot be read.`,
		Example: `  gpuserver config check
  gpuserver config check --secrets gpuserver.yaml`,
		Args: checkedArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := defaultConfig
			if len(args) > 0 {
				path = args[0]
			}
			return checkConfig(cmd, path, secrets)
		},
	}
	cmd.Flags().BoolVar(&secrets, "secrets", false, "read the secrets that the file names, too")
	return cmd
}

// checkConfig prints a file's mistakes, one a line.
func checkConfig(cmd *cobra.Command, path string, secrets bool) error {
	c, err := config.Load(path)
	if err == nil && secrets {
		err = c.CheckSecrets()
	}
	if err == nil {
		return nil
	}
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		problems = config.Problems{{File: path, Line: 1, Column: 1, Text: unreadable(err)}}
	}
	for _, p := range problems {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), p); err != nil {
			return err
		}
	}
	return &exitError{code: exitUsage}
}

func unreadable(err error) string {
	if e, ok := errors.AsType[*gpuserver.Error](err); ok && e.Err != nil {
		err = e.Err
	}
	return "cannot be read: " + err.Error()
}

func newConfigSampleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "sample",
		Short: "Print a commented configuration file",
		Long: `Prints a configuration file with a comment on every setting. What may be left
out is commented out and shows its default. Change it to your needs, then check
it with "gpuserver config check".`,
		Example: `  gpuserver config sample > gpuserver.yaml`,
		Args:    checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Sample())
			return err
		},
	}
}

func newConfigSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration file",
		Long: `Prints the JSON Schema (draft 2020-12) of the configuration file, made from the
program's own types. Editors complete and check the file with it; most take a
comment as its first line:

  # yaml-language-server: $schema=gpuserver.schema.json

The schema cannot say everything: "gpuserver config check" has the last word.`,
		Example: `  gpuserver config schema > gpuserver.schema.json`,
		Args:    checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := config.Schema()
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), s)
		},
	}
}
