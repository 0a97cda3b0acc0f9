package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/hostprep"
	"gpuserver/internal/pci"
)

// prepareFlags are the flags of host prepare.
type prepareFlags struct {
	files               hostFiles
	root                string
	cards               []string
	dryRun, undo, force bool
	output              outputFormat
}

func newHostPrepareCommand() *cobra.Command {
	var f prepareFlags
	cmd := &cobra.Command{
		Use:   "prepare",
		Short: "Give this machine's GPUs to vfio-pci at each start, or undo it",
		Long: `Sets what is needed so that vfio-pci, and no driver of the host, has the GPUs and
their other functions (sound, USB) from the next start on: parameters of the
kernel, files of modprobe, and the initial RAM disk. The card that shows the
host's console is left out unless --card names it. Network cards, disks and
whatever else is in use are never touched.

First the change is shown as a diff, then it is made; --dry-run only shows it. It
may be run again at any time, and does nothing if nothing is to be done. What was
replaced is kept below /var/lib/gpuserver/host-prepare, and --undo makes every
file as it was before the first run; not one that you changed since, unless
--force is given. If a step fails, the steps before it are put back.

Parameters go to /etc/default/grub.d/zz-gpuserver.cfg (Debian, Ubuntu; what is set
already is not doubled, and what update-grub makes of it is verified), or are set
by grubby (Fedora, Rocky). With another boot loader the line to add is printed and
the exit status is 1.

The machine is never started anew: that is up to you. Needs root.

Exit status: 0 done, or nothing to do; 1 it could not be done; 2 a wrong argument,
or no card to prepare.`,
		Example: `  gpuserver host prepare --dry-run
  gpuserver host prepare
  gpuserver host prepare --card 0000:27:00.0 --card 0000:28:00.0
  gpuserver host prepare --undo`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return hostError(prepareHost(cmd, &f)) },
	}
	f.files.add(cmd)
	addOutputFlag(cmd, &f.output)
	cmd.Flags().StringVar(&f.root, "root", "/", "the folder that stands for /, with --dry-run only")
	cmd.Flags().StringArrayVar(&f.cards, "card", nil, "the address of a card to prepare, as 0000:27:00.0 (may be repeated; default: all but the one with the console)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would be done, and do nothing")
	cmd.Flags().BoolVar(&f.undo, "undo", false, "make everything as it was before the first run")
	cmd.Flags().BoolVar(&f.force, "force", false, "with --undo, also files that were changed since; the change is kept beside")
	return cmd
}

// check refuses flags that do not go together, and whoever is not root.
func (f *prepareFlags) check() error {
	switch {
	case f.undo && len(f.cards) > 0:
		return gpuserver.Errorf(gpuserver.KindInvalid, "--undo takes everything back; --card does not go with it")
	case f.force && !f.undo:
		return gpuserver.Errorf(gpuserver.KindInvalid, "--force is for --undo only")
	case !f.dryRun && (filepath.Clean(f.root) != "/" || !f.files.ours()):
		return gpuserver.Errorf(gpuserver.KindInvalid, "only this machine itself can be prepared: give --dry-run with --root, --sysfs or --procfs")
	case !f.dryRun && os.Geteuid() != 0:
		return gpuserver.Errorf(gpuserver.KindRefused, "this writes below /etc and makes boot files anew, which only root may do: use sudo, or --dry-run to see what would be done")
	}
	return nil
}

// prepared is what a run did.
type prepared struct {
	*hostprep.Plan
	Done   bool `json:"done"`   // false: --dry-run, or there was nothing to do
	Reboot bool `json:"reboot"` // it counts after the next start
}

func prepareHost(cmd *cobra.Command, f *prepareFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	sys, proc, done, err := f.files.open()
	if err != nil {
		return err
	}
	defer done()
	p := &hostprep.Preparer{
		Machine: hostprep.Machine{Sys: sys, Proc: proc, Root: os.DirFS(f.root), Names: pci.MachineNames()},
		Dir:     f.root, Cards: f.cards, Run: runCommand,
	}
	if filepath.Clean(f.root) != "/" { // its commands cannot be run
		p.Run = func(context.Context, string, ...string) (string, error) {
			return "", errors.New("commands run on this machine only")
		}
	}
	if f.files.ours() {
		p.Live = &hostprep.Live{Log: kernelLog}
	}
	var plan *hostprep.Plan
	if f.undo {
		plan, err = p.PlanUndo(f.force)
	} else {
		plan, err = p.Plan(cmd.Context())
	}
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if f.output == outputTable {
		if err := printPlan(w, plan); err != nil {
			return err
		}
	}
	result := prepared{Plan: plan}
	if !f.dryRun && !plan.Empty() {
		if err := p.Apply(cmd.Context(), plan); err != nil {
			return err
		}
		result.Done, result.Reboot = true, true
	}
	if f.output == outputJSON {
		return printJSON(w, result)
	}
	return printOutcome(w, f, result)
}

// printPlan shows what will be done.
func printPlan(w io.Writer, plan *hostprep.Plan) error {
	text := ""
	for _, r := range plan.Remarks {
		if !strings.HasPrefix(r, "WARNING") {
			r = "Note: " + r
		}
		text += printable(r) + ".\n"
	}
	if plan.Empty() {
		_, err := io.WriteString(w, text)
		return err
	}
	text += plan.Diff()
	for _, p := range plan.Removed {
		text += "kernel command line: -" + printable(p) + "\n"
	}
	for _, p := range plan.Parameters {
		text += "kernel command line: +" + printable(p) + "\n"
	}
	for _, c := range plan.Commands {
		text += "then: " + printable(c) + "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

// printOutcome says what was done and what is left to do.
func printOutcome(w io.Writer, f *prepareFlags, r prepared) error {
	text := "Nothing to change.\n"
	switch {
	case r.Empty() && f.undo:
		text = "Nothing to undo.\n"
	case r.Empty():
	case f.dryRun:
		text = "Nothing was changed (--dry-run).\n"
	case f.undo:
		text = "Everything is as it was before. Until the machine is started anew (reboot), the running kernel keeps its parameters, and vfio-pci the cards.\n"
	default:
		text = "Done. It counts once the machine is started anew (reboot); then run gpuserver host check.\n"
	}
	_, err := fmt.Fprint(w, text)
	return err
}
