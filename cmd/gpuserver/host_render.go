package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/hostprep"
	"gpuserver/internal/pci"
)

func newHostRenderCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "render",
		Short: "Write what OpenStack has to be told of this machine's GPUs",
		Long: `Nova knows no IOMMU groups: told both cards of a group, it gives them to two
servers, and the second does not start. So of each usable group one card is named,
the lowest; with --pairs, groups of two are named whole, as a thing of their own.

What it says for the machine that this project began with is what a real Nova (Zed,
with a hypervisor that only plays those cards) runs with in the project's tests; the
rest, --pairs and Kolla's files among it, is held against written-down examples.`,
		Example: `  gpuserver host render nova
  gpuserver host render kolla /etc/kolla/config`,
	})
	cmd.AddCommand(newHostRenderNovaCommand(), newHostRenderKollaCommand())
	return cmd
}

// novaFlags are the flags of both forms.
type novaFlags struct {
	files   hostFiles
	aliases []string
	filters []string
	pairs   bool
}

func (f *novaFlags) add(cmd *cobra.Command) {
	f.files.add(cmd)
	cmd.Flags().StringArrayVar(&f.aliases, "alias", nil, "what flavors call a model, as 10de:1db4=tesla-v100 (may be repeated; default: after its PCI name)")
	cmd.Flags().StringSliceVar(&f.filters, "filters", nil, "the scheduler's filters so far, to which PciPassthroughFilter is added (default: Nova's own)")
	cmd.Flags().BoolVar(&f.pairs, "pairs", false, "name groups of two cards whole, each with its own resource class (Nova 2023.1 or newer)")
}

// aliasFlag is one value of --alias.
var aliasFlag = regexp.MustCompile(`^([0-9a-f]{4}:[0-9a-f]{4})=([A-Za-z0-9_.-]+)$`)

// render gives the fragments, and prints warnings.
func (f *novaFlags) render(warnings io.Writer) (*hostprep.Rendered, error) {
	n := hostprep.Nova{Names: map[string]string{}, Filters: f.filters, Pairs: f.pairs}
	for _, a := range f.aliases {
		m := aliasFlag.FindStringSubmatch(a)
		if m == nil {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "--alias %q is not of the form 10de:1db4=tesla-v100", a)
		}
		n.Names[m[1]] = m[2]
	}
	sys, _, done, err := f.files.open()
	if err != nil {
		return nil, err
	}
	defer done()
	inv, err := pci.Read(sys, pci.MachineNames())
	if err != nil {
		return nil, err
	}
	r, err := n.Render(inv)
	if err != nil {
		return nil, err
	}
	for _, w := range r.Warnings() {
		_, _ = fmt.Fprintln(warnings, "Warning: "+w+".")
	}
	return r, nil
}

func newHostRenderNovaCommand() *cobra.Command {
	var flags novaFlags
	cmd := &cobra.Command{
		Use:   "nova",
		Short: "Print the fragment for nova.conf",
		Long: `Prints [pci] device_spec with the lowest usable card of each usable IOMMU group,
an alias for each model, and [filter_scheduler] with PciPassthroughFilter added,
which is not among Nova's defaults. The alias has to be known to nova-compute and
to nova-api. A card that could have virtual functions is of type-PF to Nova.

With --pairs each group of two cards gets a resource class and an alias of its own,
because alias:2 alone may take one card of each of two groups; it then goes to a
server whole or not at all. That needs Nova 2023.1 or newer and cannot be undone.
` + hostFilesHelp,
		Example: `  gpuserver host render nova
  gpuserver host render nova --alias 10de:1db4=tesla-v100
  gpuserver host render nova --sysfs machine.tar --pairs`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := flags.render(cmd.ErrOrStderr())
			if err != nil {
				return hostError(err)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), r.File())
			return err
		},
	}
	flags.add(cmd)
	return cmd
}

func newHostRenderKollaCommand() *cobra.Command {
	var flags novaFlags
	var host string
	var force bool
	cmd := &cobra.Command{
		Use:   "kolla DIR",
		Short: "Write the fragments where Kolla Ansible looks for them",
		Long: `Writes below DIR (Kolla Ansible's node_custom_config, as a rule /etc/kolla/config)
nova/nova-api.conf, nova/nova-scheduler.conf, and for this host nova/HOST/nova.conf,
with what "gpuserver host render nova" prints. HOST is the machine's name in Kolla's
inventory. A file that says something else is not replaced without --force.
` + hostFilesHelp,
		Example: `  gpuserver host render kolla /etc/kolla/config --host gpu1`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := flags.render(cmd.ErrOrStderr())
			if err != nil {
				return hostError(err)
			}
			if host == "" || strings.ContainsAny(host, "/\x00") || host == "." || host == ".." {
				return usageError(cmd, fmt.Errorf("--host %q is no host's name", host))
			}
			return writeFragments(cmd.OutOrStdout(), args[0], r.Kolla(host), force)
		},
	}
	flags.add(cmd)
	name, _ := os.Hostname() // without it, --host has to be given
	cmd.Flags().StringVar(&host, "host", name, "this machine's name in Kolla's inventory")
	cmd.Flags().BoolVar(&force, "force", false, "replace files that say something else")
	return cmd
}

// writeFragments writes all files or none: those that would be replaced are
// found before the first is written.
func writeFragments(w io.Writer, dir string, files map[string]string, force bool) error {
	names := slices.Sorted(maps.Keys(files))
	var write []string
	for _, name := range names {
		old, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && string(old) == files[name] {
			continue
		}
		if err == nil && !force {
			return gpuserver.Errorf(gpuserver.KindConflict, "%s says something else: compare it with what gpuserver host render nova prints, then remove it or give --force", filepath.Join(dir, name))
		}
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		write = append(write, name)
	}
	for _, name := range write {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w, "wrote "+path); err != nil {
			return err
		}
	}
	if len(write) == 0 {
		_, err := fmt.Fprintln(w, "nothing to do: all files are as they should be")
		return err
	}
	return nil
}
