package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
	"gpuserver/internal/config"
	"gpuserver/internal/pci"
	"gpuserver/internal/sched"
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
	var machine string
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file",
		Long: `Checks a configuration file and prints every mistake in it, one a line:

  FILE:LINE:COLUMN: what is wrong and what was expected

FILE is ` + defaultConfig + ` if not given. Nothing is changed and
nobody is asked, so that it can be checked anywhere; with --secrets the secrets
that the file names are read, too (never printed), as the service would. With
--sysfs the flavors are compared with a machine's cards.

A clouds.yaml that can be read here is looked into: the entry has to be there,
what its auth_type needs complete, its certificates readable. With --secrets one
that cannot be read is a mistake. Whether the cloud accepts the credentials, asks
"gpuserver cloud check"; whether the forge does, "gpuserver forge check".

What is no mistake but should be known goes to standard error: that the default
catalogue of flavors is used, credentials that could not be looked into, and
flavors for whose cards the machine has none.

Exit status: 0 no mistake, 2 mistakes, or the file cannot be read.`,
		Example: `  gpuserver config check
  gpuserver config check --secrets gpuserver.yaml
  gpuserver config check --sysfs /sys gpuserver.yaml`,
		Args: checkedArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := defaultConfig
			if len(args) > 0 {
				path = args[0]
			}
			return checkConfig(cmd, path, secrets, machine)
		},
	}
	cmd.Flags().StringVar(&machine, "sysfs", "", "compare flavors with the cards of this machine: /sys, or a file of \"host inspect --capture\"")
	cmd.Flags().BoolVar(&secrets, "secrets", false, "read the secrets that the file names, too")
	return cmd
}

// checkConfig prints a file's mistakes, one a line. machine is the folder that
// stands for /sys, "" for none.
func checkConfig(cmd *cobra.Command, path string, secrets bool, machine string) error {
	c, err := config.Load(path)
	if err == nil && secrets {
		err = c.CheckSecrets()
	}
	var unseen []string
	if err == nil {
		unseen, err = checkLogins(c, secrets)
	}
	if err == nil {
		return printNotes(cmd, c, machine, unseen)
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

// checkLogins looks into the files with the credentials of clouds. One that cannot be
// read here may be there where the service runs: it is a mistake only if all is to be
// as the service finds it, and else among those that were not looked into.
func checkLogins(c *config.Config, asService bool) (unseen []string, err error) {
	err = c.CheckLogins(func(cl *config.Cloud) error {
		o := openStackConfig(c, cl, "")
		logins := []openstack.Credentials{o.Credentials}
		if o.Placement != nil {
			logins = append(logins, *o.Placement)
		}
		for _, login := range logins {
			if why := hidden(login.CloudsFile); why != nil && !asService {
				unseen = append(unseen, fmt.Sprintf("the credentials of cloud %s are not checked: %v", cl.Name, why))
				continue
			}
			if login.CloudsFile == "" && !asService {
				continue // the environment is the service's
			}
			if err := login.Check(); err != nil {
				return err
			}
		}
		return nil
	})
	return unseen, err
}

// hidden says why a file cannot be read here; no file is none that is hidden.
func hidden(file string) error {
	if file == "" {
		return nil
	}
	f, err := os.Open(file)
	if err == nil {
		_ = f.Close()
	}
	return err
}

// printNotes prints what is no mistake but should be known, unseen first.
func printNotes(cmd *cobra.Command, c *config.Config, machine string, unseen []string) error {
	notes := append(unseen, c.Notes()...)
	if machine != "" {
		cards, err := cardWarnings(c, machine)
		if err != nil {
			return hostError(err)
		}
		notes = append(notes, cards...)
	}
	for _, n := range notes {
		if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "note: "+printable(n)); err != nil {
			return err
		}
	}
	return nil
}

// cardWarnings says which flavors ask for cards that a machine does not have.
func cardWarnings(c *config.Config, sysfs string) ([]string, error) {
	files := hostFiles{sysfs: sysfs}
	sys, _, done, err := files.open()
	if err != nil {
		return nil, err
	}
	defer done()
	inventory, err := pci.Read(sys, nil)
	if err != nil {
		return nil, err
	}
	names, have := c.Models(), map[string]bool{}
	for _, g := range inventory.GPUs {
		have[names[g.VendorID+":"+g.DeviceID]] = have[names[g.VendorID+":"+g.DeviceID]] || g.Usable
	}
	return sched.Cardless(slices.Collect(maps.Values(c.FlavorMap())), func(model string) bool { return have[model] }), nil
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
