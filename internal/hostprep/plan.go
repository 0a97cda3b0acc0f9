package hostprep

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gpuserver"
)

// Preparer prepares a system for giving its GPUs to VMs.
type Preparer struct {
	Machine
	// Dir is the system's root folder, as Machine.Root. Commands run in the system
	// itself, so with another than "/" nothing but a look makes sense.
	Dir string
	// Cards are the addresses to give away; nil: all but the one with the console.
	Cards []string
	// Run runs a command and gives what it printed, or an error.
	Run func(ctx context.Context, name string, args ...string) (string, error)

	replacing func(path string, c *content) error // tests let it fail; nil: replace
}

// Plan is what is to be done, or undone.
type Plan struct {
	Cards      []string     `json:"cards,omitempty"`      // that are prepared
	Parameters []string     `json:"parameters,omitempty"` // that are added to the kernel's command line
	Removed    []string     `json:"removed,omitempty"`    // that are taken off it
	Files      []FileChange `json:"files"`
	Commands   []string     `json:"commands"` // that are run after the files are written
	Remarks    []string     `json:"remarks"`

	steps  []step
	next   *manifest // what is kept once it is done
	undo   bool
	edited []string // files with a foreign change that undo puts away
}

// FileChange is one file that is written or removed.
type FileChange struct {
	Path string `json:"path"` // absolute
	Diff string `json:"diff"` // unified

	before, after *content // nil: no file
}

// content is what a file is.
type content struct {
	text []byte
	mode fs.FileMode
}

func (c *content) bytes() []byte {
	if c == nil {
		return nil
	}
	if c.text == nil {
		return []byte{}
	}
	return c.text
}

func (c *content) same(other *content) bool {
	return (c == nil) == (other == nil) && (c == nil || bytes.Equal(c.text, other.text) && c.mode == other.mode)
}

// step is a command with what undoes and what verifies it.
type step struct {
	run    []string
	undo   []string                // nil: run again, over the files as they were
	makes  string                  // the one file that it makes, from the root; "": others
	verify func(out string) string // what is wrong, "" if nothing; nil: nothing to verify
}

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool { return len(p.Files) == 0 && len(p.steps) == 0 }

// Diff shows the whole change.
func (p *Plan) Diff() string {
	var b strings.Builder
	for _, f := range p.Files {
		b.WriteString(f.Diff)
	}
	return b.String()
}

// Plan works out what has to change so that the cards go to vfio-pci at each
// start. Nothing is written. KindInvalid: there is no card to prepare, or a card
// that was named cannot be. KindUnavailable: the kernel's parameters have to be
// set in a way that we do not know; the sentence has the line to set. The plan
// comes with it if it could be made, and may not be carried out.
func (p *Preparer) Plan(ctx context.Context) (*Plan, error) {
	h, err := Inspect(p.Sys, p.Proc, p.Names)
	if err != nil {
		return nil, err
	}
	w, err := p.want(h)
	if err != nil {
		return nil, err
	}
	old, err := p.readManifest()
	if err != nil {
		return nil, err
	}
	plan := &Plan{Cards: w.cards, Remarks: w.remarks, Files: []FileChange{}, Commands: []string{}, next: old.clone()}
	parameters := p.parameters(ctx, h, w, plan)
	maker := p.initramfs()
	files := p.files(w, maker)
	l := p.loader(ctx)
	plan.Remarks = append(plan.Remarks, l.remarks...)
	plan.Parameters = missing(l.have, parameters)
	if l.kind == loaderGRUB && len(plan.Parameters) > 0 {
		files[grubOurs] = grubFile(plan.Parameters)
	}
	if l.kind == loaderOther && len(plan.Parameters) > 0 {
		return plan, gpuserver.Errorf(gpuserver.KindUnavailable,
			"the kernel's command line is set by %s, which is not written here. Nothing was changed. Add this to the command line, start the host anew, and run gpuserver host prepare again for the rest:\n%s", l.name, strings.Join(plan.Parameters, " "))
	}
	if err := p.compare(plan, files, old); err != nil {
		return nil, err
	}
	p.addSteps(plan, l, maker, parameters, old.Pending)
	return plan, nil
}

// parameters are what the kernel is to be started with. amd_iommu=on is not
// among them: Linux knows no such word and ignores it.
func (p *Preparer) parameters(ctx context.Context, h *Host, w *wanted, plan *Plan) (want []string) {
	if cpuVendor(p.Proc) == "GenuineIntel" {
		want = append(want, "intel_iommu=on")
	}
	want = append(want, "iommu=pt")
	for _, l := range []struct {
		name   string
		values []string
	}{{vfioIDs, w.ids}, {stubIDs, w.stubs}, {blacklist, w.blacklist}} {
		if len(l.values) > 0 {
			want = append(want, l.name+"="+strings.Join(l.values, ","))
		}
	}
	k := checker{Machine: p.Machine, host: h, log: p.Live.log(ctx)}
	switch r := k.remapping(); r.state {
	case remapNo:
		want = append(want, unsafeInterrupts+"=1")
		plan.Remarks = append(plan.Remarks, "WARNING: interrupts cannot be remapped here ("+r.by+"), and VFIO refuses to work. So "+unsafeInterrupts+"=1 is set: a VM with a card can then inject interrupts into the host, and so stop it or worse. Do this only if you trust who runs jobs; look for interrupt remapping (x2APIC) in the firmware first")
	case remapOff:
		plan.Remarks = append(plan.Remarks, "interrupts are not remapped because of "+r.by+" on the kernel's command line: take it off, or VFIO refuses to work")
	case remapUnknown:
		plan.Remarks = append(plan.Remarks, "whether interrupts can be remapped is not known yet: after the next start, gpuserver host check tells")
	}
	return want
}

// header begins each file that is written.
const header = "# Written by gpuserver host prepare; gpuserver host prepare --undo takes it away.\n"

func plain(lines ...string) *content {
	return &content{text: []byte(header + strings.Join(lines, "\n") + "\n"), mode: 0o644}
}

// grubFile appends to what GRUB's other settings say.
func grubFile(parameters []string) *content {
	return plain(`GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX ` + strings.Join(parameters, " ") + `"`)
}

// files are the files that are to be there, by path from the root.
func (p *Preparer) files(w *wanted, maker initramfs) map[string]*content {
	modprobe := []string{"# vfio-pci takes the cards and their other functions, before any driver of the host."}
	if len(w.ids) > 0 {
		modprobe = append(modprobe, "options vfio-pci ids="+strings.Join(w.ids, ","))
	}
	for _, m := range w.modules {
		modprobe = append(modprobe, "softdep "+m+" pre: vfio-pci")
	}
	files := map[string]*content{
		modprobeFile:                        plain(modprobe...),
		"etc/modules-load.d/gpuserver.conf": plain("vfio_iommu_type1", "vfio-pci"),
	}
	if len(w.overrides) > 0 {
		var rules []string
		for _, address := range w.overrides {
			rules = append(rules, fmt.Sprintf(`ACTION=="add", SUBSYSTEM=="pci", KERNEL=="%s", ATTR{driver_override}="vfio-pci"`, address))
		}
		files[udevRules] = plain(rules...)
	}
	if maker.file != "" {
		files[maker.file] = maker.content(len(w.overrides) > 0)
	}
	return files
}

// Files that are named in more than one place, from the root.
const (
	modprobeFile = "etc/modprobe.d/gpuserver.conf"
	udevRules    = "etc/udev/rules.d/10-gpuserver.rules"
)

// compare adds to the plan what differs: files that are to be there, and files of
// an earlier run that are not to be any more.
func (p *Preparer) compare(plan *Plan, files map[string]*content, old *manifest) error {
	for _, k := range old.Files {
		if _, wanted := files[k.Path]; !wanted {
			original, err := p.original(k)
			if err != nil {
				return err
			}
			files[k.Path] = original
		}
	}
	for name, after := range files {
		before, err := p.read(name)
		if err != nil {
			return err
		}
		if !before.same(after) {
			plan.Files = append(plan.Files, FileChange{"/" + name, diff(name, before.bytes(), after.bytes()), before, after})
		}
	}
	slices.SortFunc(plan.Files, func(a, b FileChange) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

// read gives a file of the system, nil if it is absent.
func (p *Preparer) read(name string) (*content, error) {
	full := filepath.Join(p.Dir, name)
	info, err := os.Lstat(full)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "/%s is no plain file, and is not written to; remove it", name)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(full)
	}
	if err != nil {
		return nil, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Public: "/" + name + " cannot be read", Err: err}
	}
	return &content{text, info.Mode().Perm()}, nil
}
