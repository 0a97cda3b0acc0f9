package main

import (
	"archive/tar"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/hostprep"
	"gpuserver/internal/pci"
)

func newHostCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "host",
		Short: "Look at this machine's GPUs, check and prepare it",
		Long: `A VM can have a GPU only with all of its IOMMU group: the smallest set of devices
that the hardware keeps apart. These commands read the machine's own files and say
which cards that leaves, and why not the others; check what else VMs with GPUs
need; and prepare the machine for it. The service need not run.`,
		Example: `  gpuserver host inspect
  gpuserver host check
  gpuserver host prepare --dry-run
  gpuserver host render nova`,
	})
	cmd.AddCommand(newHostInspectCommand(), newHostCheckCommand(), newHostPrepareCommand(), newHostRenderCommand())
	return cmd
}

// hostFiles are the flags of commands that read a machine's files.
type hostFiles struct {
	sysfs, procfs string
}

func (f *hostFiles) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.sysfs, "sysfs", "/sys", "the folder that stands for /sys, or a file of --capture")
	cmd.Flags().StringVar(&f.procfs, "procfs", "", "the folder that stands for /proc (default: /proc with this machine's /sys, else none)")
}

const hostFilesHelp = `
--sysfs takes another machine's files instead of this one's: a folder that stands
for /sys, or an archive of "gpuserver host inspect --capture".`

// open gives the two trees; proc is nil if there is none.
func (f *hostFiles) open() (sys, proc fs.FS, done func(), err error) {
	var undo []func()
	done = func() {
		for _, u := range undo {
			u()
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	open := func(dir string) (fs.FS, error) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, &gpuserver.Error{Kind: gpuserver.KindInvalid, Public: fmt.Sprintf("the folder %s cannot be opened", dir), Err: err}
		}
		undo = append(undo, func() { _ = root.Close() }) // it was only read
		return root.FS(), nil
	}
	sysfs, procfs := f.sysfs, f.procfs
	if info, failed := os.Stat(sysfs); failed == nil && info.Mode().IsRegular() {
		dir, err := unpackCapture(sysfs)
		if err != nil {
			return nil, nil, done, err
		}
		undo = append(undo, func() { _ = os.RemoveAll(dir) })
		sysfs, procfs = filepath.Join(dir, "sys"), cmp.Or(procfs, filepath.Join(dir, "proc"))
		if err := os.MkdirAll(procfs, 0o755); err != nil {
			return nil, nil, done, err
		}
	} else if filepath.Clean(sysfs) == "/sys" {
		procfs = cmp.Or(procfs, "/proc")
	}
	if sys, err = open(sysfs); err != nil {
		return nil, nil, done, err
	}
	if procfs != "" {
		proc, err = open(procfs)
	}
	return sys, proc, done, err
}

// unpackCapture lays a capture out in a temporary folder, which the caller
// removes.
func unpackCapture(file string) (dir string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if dir, err = os.MkdirTemp("", "gpuserver-capture-"); err != nil {
		return "", err
	}
	root, err := os.OpenRoot(dir)
	if err == nil {
		err = pci.Unpack(f, root)
		_ = root.Close() // what was written is read next
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}

func newHostInspectCommand() *cobra.Command {
	var files hostFiles
	var output outputFormat
	var capture string
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Show GPUs, IOMMU groups and what a VM can have",
		Long: `Shows the processor's virtualisation, the IOMMU, each GPU, the slots (the IOMMU
groups that have a GPU: a VM gets a whole one), and every group with all of its
members. A card is usable if a VM can have it once the host is prepared, ready if
it can now; for the others it says why not. Nothing is changed.

--capture packs the files that were read, and only those, into an archive that can
be sent with a report: no serial numbers, no host name.
` + hostFilesHelp,
		Example: `  gpuserver host inspect
  gpuserver host inspect --output json
  gpuserver host inspect --capture machine.tar
  gpuserver host inspect --sysfs machine.tar`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := inspectHost(&files, capture)
			if err != nil {
				return hostError(err)
			}
			if output == outputJSON {
				return printJSON(cmd.OutOrStdout(), h)
			}
			return printHost(cmd.OutOrStdout(), h)
		},
	}
	files.add(cmd)
	addOutputFlag(cmd, &output)
	cmd.Flags().StringVar(&capture, "capture", "", "also pack the files that were read into this archive")
	for _, name := range []string{"capture", "sysfs"} {
		if err := cmd.MarkFlagFilename(name, "tar"); err != nil {
			panic(err) // the flags were added before
		}
	}
	return cmd
}

// hostError makes a tree or an archive that cannot be used a mistake of the
// caller.
func hostError(err error) error {
	if gpuserver.KindOf(err) == gpuserver.KindInvalid {
		return &exitError{exitUsage, err}
	}
	return err
}

func inspectHost(files *hostFiles, capture string) (*hostprep.Host, error) {
	sys, proc, done, err := files.open()
	if err != nil {
		return nil, err
	}
	defer done()
	if capture == "" {
		return hostprep.Inspect(sys, proc, pci.MachineNames())
	}
	recSys, recProc := pci.NewRecorder(sys), (*pci.Recorder)(nil)
	var read fs.FS
	if proc != nil {
		recProc = pci.NewRecorder(proc)
		read = recProc
	}
	h, err := hostprep.Inspect(recSys, read, pci.MachineNames())
	if err != nil {
		return nil, err
	}
	return h, writeCapture(capture, recSys, recProc)
}

// writeCapture writes the archive beside its name first, so that an old one is
// replaced only by a whole one.
func writeCapture(name string, sys, proc *pci.Recorder) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".capture-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	w := tar.NewWriter(f)
	err = sys.Pack(w, "sys")
	if err == nil && proc != nil {
		err = proc.Pack(w, "proc")
	}
	if err == nil {
		err = w.Close()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err = os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func printHost(w io.Writer, h *hostprep.Host) error {
	err := fields(w,
		"Processor", cmp.Or(h.CPU.Model, "unknown"),
		"Virtual.", virtualisation(h.CPU),
		"IOMMU", iommu(h.IOMMU),
	)
	var gpus, slots, groups [][]string
	for i := range h.GPUs {
		gpus = append(gpus, gpuRow(&h.GPUs[i]))
	}
	for _, s := range h.Slots {
		slots = append(slots, []string{fmt.Sprint(s.Group), strings.Join(s.GPUs, " "), orDash(strings.Join(s.Others, " ")), node(s.NUMANode), state(s.Usable, s.Ready)})
	}
	for _, g := range h.Groups {
		for _, d := range g.Devices {
			groups = append(groups, []string{fmt.Sprint(g.Number), d.Address, orDash(d.Class), orDash(strings.Trim(d.VendorID+":"+d.DeviceID, ":")), orDash(string(d.Header)), orDash(d.Driver), d.Model})
		}
	}
	for _, t := range []struct {
		head []string
		rows [][]string
	}{
		{[]string{"GPU", "MODEL", "GROUP", "NODE", "LINK", "MEMORY", "RESET", "DRIVER", "STATE"}, gpus},
		{[]string{"SLOT", "GPUS", "OTHER MEMBERS", "NODE", "STATE"}, slots},
		{[]string{"GROUP", "DEVICE", "CLASS", "ID", "HEADER", "DRIVER", "NAME"}, groups},
	} {
		if err == nil && len(t.rows) > 0 {
			if _, err = fmt.Fprintln(w); err == nil {
				err = printTable(w, t.head, t.rows)
			}
		}
	}
	if err != nil {
		return err
	}
	return printRemarks(w, h)
}

// printRemarks prints what has to be said in sentences: each reason once, with
// the cards that it is about.
func printRemarks(w io.Writer, h *hostprep.Host) error {
	var lines []string
	if len(h.GPUs) == 0 {
		lines = append(lines, "There is no GPU: no display controller of NVIDIA, AMD or Intel on the PCI bus.")
	}
	var whys []string
	about := map[string][]string{}
	for _, g := range h.GPUs {
		if g.Why != "" {
			if about[g.Why] == nil {
				whys = append(whys, g.Why)
			}
			about[g.Why] = append(about[g.Why], g.Address)
		}
	}
	for _, why := range whys {
		lines = append(lines, strings.Join(about[why], ", ")+": "+why+".")
	}
	for _, warning := range h.Warnings {
		lines = append(lines, "Warning: "+warning+".")
	}
	for _, p := range h.Problems {
		lines = append(lines, "Unknown: "+p.String()+".")
	}
	for i, line := range lines {
		lines[i] = printable(line) + "\n"
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := io.WriteString(w, "\n"+strings.Join(lines, ""))
	return err
}

func virtualisation(c hostprep.CPU) string {
	text := map[string]string{"svm": "AMD-V (SVM)", "vmx": "VT-x", "none": "none", "unknown": "unknown"}[c.Virtualisation]
	switch c.State {
	case "on":
		text += ", KVM is loaded"
	case "off":
		text += ": the processor shows no such extension; switch it on in the firmware (SVM Mode, VT-x)"
	default:
		text += ", KVM is not loaded"
	}
	if c.AddressBits > 0 {
		text += fmt.Sprintf("; %d bits of physical address", c.AddressBits)
	}
	if c.Guest {
		text += "; this machine is itself a VM"
	}
	return text
}

func iommu(m pci.IOMMU) string {
	switch {
	case m.Enabled && len(m.Units) > 0:
		return fmt.Sprintf("%s, on (%s)", m.Kind, strings.Join(m.Units, ", "))
	case m.Enabled:
		return string(m.Kind) + ", on"
	case m.NoIOMMU:
		return "off (VFIO's no-IOMMU mode keeps nothing apart)"
	}
	return "off, or none"
}

func gpuRow(g *pci.GPU) []string {
	group := "-"
	if g.IOMMUGroup != nil {
		group = fmt.Sprint(*g.IOMMUGroup)
	}
	return []string{g.Address, g.Model, group, node(g.NUMANode), link(g.Link), largest(g.BARs), reset(g.Reset), orDash(g.Driver), state(g.Usable, g.Ready)}
}

func orDash(s string) string { return cmp.Or(s, "-") }

func node(n int) string {
	if n < 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func state(usable, ready bool) string {
	switch {
	case ready:
		return "ready"
	case usable:
		return "usable"
	}
	return "no"
}

// link says a link's lanes and speeds, as "x16 of x16, 2.5 of 8 GT/s".
func link(l pci.Link) string {
	if l.Width == 0 {
		return "-"
	}
	return fmt.Sprintf("x%d of x%d, %g of %g GT/s", l.Width, l.MaxWidth, l.Speed, l.MaxSpeed)
}

// largest says the size of the largest region: as a rule the card's memory, or
// the window to it.
func largest(bars []pci.BAR) string {
	var size uint64
	for _, b := range bars {
		size = max(size, b.Size)
	}
	if size == 0 {
		return "-"
	}
	return humanize.IBytes(size)
}

func reset(r pci.Reset) string {
	switch {
	case r.Possible == nil:
		return "-"
	case !*r.Possible:
		return "none"
	case len(r.Methods) == 0:
		return "yes"
	}
	return strings.Join(r.Methods, " ")
}
