package hostprep

import (
	"context"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// loaderKind is how the kernel's command line is set.
type loaderKind int

const (
	loaderOther  loaderKind = iota // in a way that we do not know
	loaderGRUB                     // Debian's update-grub
	loaderGrubby                   // grubby, of Fedora and its relatives
)

// loader is what sets the kernel's command line.
type loader struct {
	kind    loaderKind
	name    string
	have    []string // the parameters as they are set, without our GRUB file's
	remarks []string
}

// command reports whether the system has a command.
func (p *Preparer) command(name string) bool {
	for _, dir := range []string{"usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin", "usr/local/bin"} {
		if info, err := fs.Stat(p.Root, path.Join(dir, name)); err == nil && !info.IsDir() {
			return true
		}
	}
	return false
}

func (p *Preparer) exists(name string) bool {
	_, err := fs.Stat(p.Root, name)
	return err == nil
}

// loader finds out what sets the command line, and what it sets already.
func (p *Preparer) loader(ctx context.Context) loader {
	var l loader
	switch {
	case p.command("grubby"):
		l = loader{kind: loaderGrubby, name: "grubby"}
		out, err := p.Run(ctx, "grubby", "--info=ALL")
		if kernels := grubbyArgs(out); err == nil && len(kernels) > 0 {
			l.have = shared(kernels)
		} else {
			l.kind, l.name, l.have = loaderOther, "grubby, which shows no kernels", commandLine(p.Proc)
		}
	case p.command("update-grub") && p.exists(grubConfig):
		l = loader{kind: loaderGRUB, name: "GRUB"}
		s := readGrub(p.Root)
		l.have = s.parameters()
		for _, where := range s.odd {
			l.remarks = append(l.remarks, where+" is more than a plain assignment and was not understood; what GRUB makes of it is looked at afterwards")
		}
	default:
		l = loader{kind: loaderOther, name: p.otherLoader(), have: commandLine(p.Proc)}
	}
	for _, h := range l.have {
		switch {
		case h == "amd_iommu=on":
			l.remarks = append(l.remarks, "amd_iommu=on is set already; Linux knows no such word and ignores it")
		case slices.Contains(iommuOff, h):
			l.remarks = append(l.remarks, h+" is set and switches the IOMMU off: take it away, or no VM gets a card")
		}
	}
	return l
}

// otherLoader names what sets the command line where we do not.
func (p *Preparer) otherLoader() string {
	for _, dir := range []string{"boot", "boot/efi", "efi"} {
		if p.exists(dir+"/loader/loader.conf") || p.exists(dir+"/loader/entries") {
			return "systemd-boot (/etc/kernel/cmdline, or the options of the entries below /" + dir + "/loader/entries)"
		}
	}
	for name, file := range map[string]string{
		"GRUB without update-grub (GRUB_CMDLINE_LINUX in /etc/default/grub)": grubDefault,
		"a unified kernel image (/etc/kernel/cmdline)":                       "etc/kernel/cmdline",
	} {
		if p.exists(file) {
			return name
		}
	}
	return "a boot loader that was not recognised"
}

// grubbyLine is args="…" in what grubby --info=ALL prints, once for each kernel.
var grubbyLine = regexp.MustCompile(`(?m)^args="(.*)"\s*$`)

func grubbyArgs(info string) (kernels [][]string) {
	for _, m := range grubbyLine.FindAllStringSubmatch(info, -1) {
		kernels = append(kernels, strings.Fields(m[1]))
	}
	return kernels
}

// shared are the parameters that all kernels have.
func shared(kernels [][]string) (all []string) {
	for _, p := range kernels[0] {
		if !slices.ContainsFunc(kernels, func(k []string) bool { return !slices.Contains(k, p) }) {
			all = append(all, p)
		}
	}
	return all
}

// initramfs is what makes the initial RAM disk.
type initramfs struct {
	run  []string // nil: nothing that we know
	file string   // that makes it take VFIO in, from the root
	// text is the file's, rules what is added for udev's rules.
	text, rules string
	mode        fs.FileMode
}

func (p *Preparer) initramfs() initramfs {
	switch {
	case p.command("update-initramfs"):
		return initramfs{
			run: []string{"update-initramfs", "-u", "-k", "all"}, file: "etc/initramfs-tools/hooks/gpuserver", mode: 0o755,
			text: "#!/bin/sh\n" + header + `[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
force_load vfio_iommu_type1
force_load vfio-pci
`,
			rules: "mkdir -p \"$DESTDIR/usr/lib/udev/rules.d\"\ncp /" + udevRules + " \"$DESTDIR/usr/lib/udev/rules.d/\"\n",
		}
	case p.command("dracut"):
		return initramfs{
			run: []string{"dracut", "--force", "--regenerate-all"}, file: "etc/dracut.conf.d/gpuserver.conf", mode: 0o644,
			text:  header + "force_drivers+=\" vfio_iommu_type1 vfio-pci \"\n",
			rules: "install_items+=\" /" + udevRules + " \"\n",
		}
	}
	return initramfs{}
}

func (i initramfs) content(rules bool) *content {
	text := i.text
	if rules {
		text += i.rules
	}
	return &content{[]byte(text), i.mode}
}

// addSteps adds the commands that make files count. They are run if a file
// changed, or if an earlier run did not come to its end.
func (p *Preparer) addSteps(plan *Plan, l loader, maker initramfs, want []string, pending bool) {
	grub := pending
	other := pending
	for _, f := range plan.Files {
		if f.Path == "/"+grubOurs {
			grub = true
		} else {
			other = true
		}
	}
	if other && maker.run != nil {
		plan.steps = append(plan.steps, step{run: maker.run})
	}
	if other && maker.run == nil {
		plan.Remarks = append(plan.Remarks, "nothing that makes an initial RAM disk was recognised: make it anew with your system's own command")
	}
	switch l.kind {
	case loaderGRUB:
		verify := func(string) string {
			text, err := fs.ReadFile(p.Root, grubConfig)
			if err != nil {
				return "cannot be read: " + err.Error()
			}
			return verifyGrub(string(text), want, plan.Parameters)
		}
		if text, err := fs.ReadFile(p.Root, grubConfig); err == nil && verifyGrub(string(text), want, plan.Parameters) != "" {
			grub = true // somebody changed the settings and did not run it
		}
		if grub {
			plan.steps = append(plan.steps, step{run: []string{"update-grub"}, makes: grubConfig, verify: named("/"+grubConfig, verify)})
		}
	case loaderGrubby:
		p.addGrubby(plan, l, want)
	}
	for _, s := range plan.steps {
		plan.Commands = append(plan.Commands, strings.Join(s.run, " "))
	}
}

func named(what string, verify func(string) string) func(string) string {
	return func(out string) string {
		if wrong := verify(out); wrong != "" {
			return what + " " + wrong
		}
		return ""
	}
}

// addGrubby sets parameters by grubby, which has no file of its own: what was
// added, and what it replaced, is kept in the manifest.
func (p *Preparer) addGrubby(plan *Plan, l loader, want []string) {
	if len(plan.Parameters) == 0 {
		return
	}
	for i, p := range plan.Parameters {
		if value, ok := strings.CutPrefix(p, blacklist+"="); ok { // grubby may keep one of a name only
			plan.Parameters[i] = blacklist + "=" + strings.Join(append(valuesOf(l.have, blacklist), value), ",")
		}
	}
	replaced := sameNames(l.have, plan.Parameters)
	plan.Removed = replaced
	plan.steps = append(plan.steps, grubbyStep(plan.Parameters, replaced), step{
		run: []string{"grubby", "--info=ALL"},
		verify: func(out string) string {
			for _, kernel := range grubbyArgs(out) {
				if m := missing(kernel, want); len(m) > 0 {
					return "grubby did not add " + strings.Join(m, " ") + " to each kernel"
				}
			}
			return ""
		},
		undo: []string{},
	})
	// What an earlier run added is no original.
	known := append(slices.Clone(plan.next.Added), plan.next.Replaced...)
	plan.next.Replaced = append(plan.next.Replaced, without(replaced, known)...)
	plan.next.Added = append(without(without(plan.next.Added, replaced), plan.Parameters), plan.Parameters...)
}

// sameNames gives the parameters of have whose names are among those of others.
func sameNames(have, others []string) (same []string) {
	for _, h := range have {
		name, _, _ := strings.Cut(h, "=")
		if slices.ContainsFunc(others, func(o string) bool { n, _, _ := strings.Cut(o, "="); return normal(n) == normal(name) }) {
			same = append(same, h)
		}
	}
	return same
}

// valuesOf gives the values of all parameters of a name.
func valuesOf(have []string, name string) (values []string) {
	for _, h := range have {
		if n, v, ok := strings.Cut(h, "="); ok && normal(n) == normal(name) {
			values = append(values, v)
		}
	}
	return values
}

// grubbyStep takes parameters off each kernel and adds others.
func grubbyStep(add, remove []string) step {
	change := func(add, remove []string) []string {
		args := []string{"grubby", "--update-kernel=ALL"}
		if len(remove) > 0 {
			args = append(args, "--remove-args="+strings.Join(remove, " "))
		}
		if len(add) > 0 {
			args = append(args, "--args="+strings.Join(add, " "))
		}
		return args
	}
	return step{run: change(add, remove), undo: change(remove, add)}
}
