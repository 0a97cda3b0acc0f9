package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gpuserver/internal/cloud/libvirt"
	"gpuserver/internal/config"
	"gpuserver/internal/hostprep"
	"gpuserver/internal/pci"
)

func newHostCheckCommand() *cobra.Command {
	var files hostFiles
	var output outputFormat
	var configPath string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check what VMs with GPUs need of this machine",
		Long: `Checks one thing after another that VMs with GPUs need, and says of each what was
found and, where it is not as it should be, the command or setting that mends it:

  pass  it is as it should be
  warn  it works, but not as well or as safely as it could
  FAIL  jobs with GPUs would fail because of it
  skip  it could not be looked at, or does not matter here; it says why

With a configuration, what it asks for counts: sizes of flavors, huge pages, MTU,
folders. Nothing is changed, but to see whether KVM truly works a kernel of the
configuration's images is started for some seconds, and to measure the MTU a
connection to the forge is opened. Some answers need root.
` + hostFilesHelp + `
Then only what files tell is checked.

Exit status: 0 nothing failed, 1 something failed, 2 the machine's files or the
configuration cannot be read.`,
		Example: `  gpuserver host check
  gpuserver host check --output json
  gpuserver host check --sysfs machine.tar --config gpuserver.yaml`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := optionalConfig(configPath, cmd.Flags().Changed("config"), files.ours())
			if err != nil {
				return &exitError{exitUsage, err}
			}
			r, err := checkHost(cmd, &files, cfg)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if output == outputJSON {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				err = printChecks(cmd.OutOrStdout(), r)
			}
			if err == nil && r.Failed() {
				return &exitError{code: exitFailed} // the findings say why
			}
			return err
		},
	}
	files.add(cmd)
	addOutputFlag(cmd, &output)
	addConfigFlag(cmd, &configPath)
	return cmd
}

// ours reports whether this machine's own files are looked at.
func (f *hostFiles) ours() bool {
	return filepath.Clean(f.sysfs) == "/sys" && (f.procfs == "" || filepath.Clean(f.procfs) == "/proc")
}

// optionalConfig reads the configuration: one that was named has to be there, the
// usual one counts for this machine if it is there.
func optionalConfig(path string, named, ours bool) (*config.Config, error) {
	if !named {
		if _, err := os.Stat(path); !ours || errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	return config.Load(path)
}

func checkHost(cmd *cobra.Command, files *hostFiles, cfg *config.Config) (*hostprep.Report, error) {
	sys, proc, done, err := files.open()
	if err != nil {
		return nil, err
	}
	defer done()
	m := hostprep.Machine{Sys: sys, Proc: proc, Names: pci.MachineNames()}
	if files.ours() {
		m.Root, m.Live = os.DirFS("/"), liveMachine(cfg)
	}
	return hostprep.Check(cmd.Context(), m, hostNeeds(cfg))
}

// hostNeeds are what a configuration asks of a machine.
func hostNeeds(cfg *config.Config) (n hostprep.Needs) {
	if cfg == nil {
		return n
	}
	var smallest, largest int64
	for _, f := range cfg.Flavors {
		n.Memory = max(n.Memory, int64(f.Memory))
		if f.GPUs != nil {
			n.CardMemory = max(n.CardMemory, int64(f.Memory))
		}
		largest = max(largest, int64(f.Disk))
		if smallest == 0 || int64(f.Disk) < smallest {
			smallest = int64(f.Disk)
		}
	}
	for i := range cfg.Clouds {
		l := cfg.Clouds[i].Libvirt
		if l == nil {
			continue
		}
		n.Emulated = n.Emulated || l.Accel == string(libvirt.AccelTCG)
		n.HugePages = n.HugePages || l.HugePages
		n.MTU = max(n.MTU, l.Network.MTU)
		n.Disks = append(n.Disks, hostprep.DiskNeed{Dir: string(l.Dir), Smallest: smallest, Largest: largest, Reserve: int64(l.DiskReserve)})
	}
	return n
}

// printChecks prints a line for each check, and below them what mends those
// that did not pass.
func printChecks(w io.Writer, r *hostprep.Report) error {
	var rows [][]string
	var mends []string
	count := map[hostprep.Level]int{}
	for _, f := range r.Findings {
		count[f.Level]++
		mark := string(f.Level)
		if f.Level == hostprep.LevelFail {
			mark = strings.ToUpper(mark)
		}
		rows = append(rows, []string{mark, f.Name, f.Seen})
		if f.Mend != "" {
			mends = append(mends, printable("  "+f.Name+": "+f.Mend))
		}
	}
	if err := printTable(w, []string{"LEVEL", "CHECK", "SEEN"}, rows); err != nil {
		return err
	}
	text := fmt.Sprintf("\n%d passed, %d warnings, %d failed, %d skipped\n", count[hostprep.LevelPass], count[hostprep.LevelWarn], count[hostprep.LevelFail], count[hostprep.LevelSkip])
	if len(mends) > 0 {
		text += "\nTo mend it:\n" + strings.Join(mends, "\n") + "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}
