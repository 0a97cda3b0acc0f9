package hostprep

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"gpuserver"
)

var systems = map[string]func(*testing.T) *system{
	"debian": func(t *testing.T) *system { return debian(t, seed(), nil) },
	"fedora": func(t *testing.T) *system {
		return fedora(t, seed(), "vfio-pci.ids=8086:10fb", "modprobe.blacklist=floppy")
	},
	"files of others": func(t *testing.T) *system {
		s := debian(t, seed(), map[string]string{"etc/modprobe.d/gpuserver.conf": "# mine\n", grubOurs: "GRUB_TIMEOUT=1\n"})
		if err := os.Chmod(filepath.Join(s.dir, "etc/modprobe.d/gpuserver.conf"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.updateInitramfs()
		return s
	},
}

// Undo makes everything as it was, to the byte.
func TestUndo(t *testing.T) {
	for name, make := range systems {
		t.Run(name, func(t *testing.T) {
			s := make(t)
			before, kernels := s.tree(), slices.Clone(s.kernels)
			s.sync = true
			s.prepare()
			if len(gocmp.Diff(before, s.tree())) == 0 {
				t.Fatal("nothing was prepared")
			}
			s.prepare("0000:44:00.0") // another plan over the first
			s.undo()
			if d := gocmp.Diff(before, s.tree()); d != "" {
				t.Errorf("files (-before +after):\n%s", d)
			}
			if d := gocmp.Diff(sorted(kernels), sorted(s.kernels)); d != "" {
				t.Errorf("kernels (-before +after):\n%s", d)
			}
			if plan := s.undo(); !plan.Empty() {
				t.Errorf("a second undo still has to do: %v", plan)
			}
			if _, err := os.Stat(filepath.Join(s.dir, stateDir)); !os.IsNotExist(err) {
				t.Errorf("what was kept is still there: %v", err)
			}
		})
	}
}

// sorted puts each kernel's parameters in order: their order does not count.
func sorted(kernels []string) (out [][]string) {
	for _, k := range kernels {
		out = append(out, slices.Sorted(slices.Values(strings.Fields(k))))
	}
	return out
}

// A failure at each command leaves all as it was; so does one over an earlier
// plan.
func TestApplyFails(t *testing.T) {
	commands := []string{"update-initramfs", "dracut", "update-grub", "grubby"}
	tried := map[string]bool{}
	for name, make := range systems {
		for _, command := range commands {
			t.Run(name+" "+command, func(t *testing.T) {
				s := make(t)
				if _, err := os.Stat(filepath.Join(s.dir, "usr/sbin", command)); err != nil {
					return // this system has another one for it
				}
				tried[command] = true
				before, kernels := s.tree(), slices.Clone(s.kernels)
				p := s.preparer()
				plan, err := p.Plan(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.failOnce(plan, command)
				err = p.Apply(t.Context(), plan)
				if gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(err.Error(), command) || !strings.Contains(err.Error(), "it broke") ||
					!strings.Contains(err.Error(), "Everything is as it was before") {
					t.Errorf("%v", err)
				}
				if d := gocmp.Diff(before, s.tree()); d != "" {
					t.Errorf("files (-before +after):\n%s", d)
				}
				if d := gocmp.Diff(sorted(kernels), sorted(s.kernels)); d != "" {
					t.Errorf("kernels (-before +after):\n%s", d)
				}
				s.prepare() // it goes on from there
				s.undo()
				if d := gocmp.Diff(before, s.tree()); d != "" {
					t.Errorf("files after prepare and undo (-before +after):\n%s", d)
				}
			})
		}
	}
	for _, command := range commands {
		if !tried[command] {
			t.Errorf("no system has %s", command)
		}
	}
}

// failOnce lets a command fail the first time that the plan runs it.
func (s *system) failOnce(plan *Plan, command string) {
	for _, line := range plan.Commands {
		if strings.HasPrefix(line, command) {
			s.once[line] = errors.New("exit status 1")
			return
		}
	}
	s.t.Fatalf("the plan does not run %s: %q", command, plan.Commands)
}

// A command that goes on failing after the files are put back is told.
func TestApplyFailsForGood(t *testing.T) {
	s := debian(t, seed(), nil)
	before := s.tree()
	p := s.preparer()
	plan, err := p.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.fail["update-initramfs"] = errors.New("no space left on device")
	err = p.Apply(t.Context(), plan)
	if !strings.Contains(err.Error(), "Not all of it could be put back: “update-initramfs -u -k all” (no space left on device)") {
		t.Errorf("%v", err)
	}
	if d := gocmp.Diff(before, s.tree()); d != "" {
		t.Errorf("files (-before +after):\n%s", d)
	}
	delete(s.fail, "update-initramfs")
	if plan := s.undo(); !slices.Contains(plan.Commands, "update-initramfs -u -k all") {
		t.Errorf("undo does not make the initial RAM disk anew: %q", plan.Commands)
	}
	if m, err := p.readManifest(); err != nil || !m.empty() {
		t.Errorf("manifest %+v, %v", m, err)
	}
}

// update-grub succeeds, and what it writes is not what was asked for.
func TestApplyVerifies(t *testing.T) {
	s := debian(t, seed(), nil)
	before := s.tree()
	s.before["update-grub"] = func() {
		if s.read(grubOurs) != "" { // it is put back afterwards
			s.put(map[string]string{grubOurs: "GRUB_CMDLINE_LINUX=iommu=pt\n"})
		}
	}
	p := s.preparer()
	plan, err := p.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = p.Apply(t.Context(), plan)
	if gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(err.Error(), "/boot/grub/grub.cfg does not have vfio-pci.ids=10de:1db4 modprobe.blacklist=nvidiafb,nouveau in its first entry") {
		t.Errorf("%v", err)
	}
	if d := gocmp.Diff(before, s.tree()); d != "" {
		t.Errorf("files (-before +after):\n%s", d)
	}
	f := fedora(t, seed())
	p = f.preparer()
	if plan, err = p.Plan(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Run = func(ctx context.Context, name string, args ...string) (string, error) {
		out, err := f.run(ctx, name, args...)
		return strings.Replace(out, "iommu=pt", "", 1), err
	}
	if err = p.Apply(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "grubby did not add iommu=pt to each kernel") {
		t.Errorf("%v", err)
	}
	if f.kernels[0] != "ro rhgb" {
		t.Errorf("kernels %q", f.kernels)
	}
}

// A full disk at each file that is written, for once or for good: nothing is half
// done. Files can be removed on a full disk.
func TestApplyFullDisk(t *testing.T) {
	full := errors.New("no space left on device")
	for name, make := range systems {
		for _, forGood := range []bool{false, true} {
			failed := true
			for n := 0; failed; n++ {
				if failed = fullDisk(t, make(t), n, forGood, full); n == 0 && !failed {
					t.Errorf("%s: nothing is written", name)
				}
			}
		}
	}
}

// fullDisk lets the n-th writing of a file fail, and reports whether there was
// one.
func fullDisk(t *testing.T, s *system, n int, forGood bool, full error) (failed bool) {
	t.Helper()
	before, kernels := s.tree(), slices.Clone(s.kernels)
	p := s.preparer()
	plan, err := p.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	writes, at := 0, ""
	p.replacing = func(path string, c *content) error {
		if c != nil {
			if writes++; writes-1 == n || forGood && writes > n {
				at = cmp.Or(at, path)
				return full
			}
		}
		return replace(path, c, false)
	}
	err = p.Apply(t.Context(), plan)
	if at == "" {
		if err != nil {
			t.Error(err)
		}
		return false
	}
	if gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(err.Error(), "cannot be written: no space") {
		t.Errorf("%s: %v", at, err)
	}
	whole := strings.Contains(err.Error(), "Everything is as it was before")
	if !whole && !(forGood && strings.Contains(err.Error(), "Not all of it could be put back: ")) {
		t.Errorf("%s: %v", at, err)
	}
	if whole {
		if d := gocmp.Diff(before, s.tree()); d != "" {
			t.Errorf("%s: files (-before +after):\n%s", at, d)
		}
		if d := gocmp.Diff(sorted(kernels), sorted(s.kernels)); d != "" {
			t.Errorf("%s: kernels (-before +after):\n%s", at, d)
		}
	}
	s.undo()
	if d := gocmp.Diff(before, s.tree()); d != "" {
		t.Errorf("%s, then undo: files (-before +after):\n%s", at, d)
	}
	return true
}

// Interrupted while a command runs.
func TestApplyInterrupted(t *testing.T) {
	s := debian(t, seed(), nil)
	before := s.tree()
	p := s.preparer()
	plan, err := p.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.before["update-grub"] = cancel
	if err := p.Apply(ctx, plan); err == nil || !strings.Contains(err.Error(), "Everything is as it was before") {
		t.Errorf("%v", err)
	}
	if d := gocmp.Diff(before, s.tree()); d != "" {
		t.Errorf("files (-before +after):\n%s", d)
	}
}

// The machine dies in the middle: the next run, or undo, goes on from there.
func TestApplyAfterACrash(t *testing.T) {
	type crash struct{}
	for _, next := range []string{"prepare", "undo"} {
		for name, make := range systems {
			for n := range 3 { // commands that come to their end
				s := make(t)
				before, kernels := s.tree(), slices.Clone(s.kernels)
				p := s.preparer()
				plan, err := p.Plan(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				done := 0
				p.Run = func(ctx context.Context, name string, args ...string) (string, error) {
					if done == n {
						panic(crash{})
					}
					done++
					return s.run(ctx, name, args...)
				}
				func() {
					defer func() {
						if r := recover(); r != nil && r != (crash{}) {
							panic(r)
						}
					}()
					_ = p.Apply(t.Context(), plan) // it may come to its end, with two commands
				}()
				if next == "prepare" {
					if plan := s.prepare(); n < 2 && !slices.ContainsFunc(plan.Commands, func(c string) bool { return strings.HasPrefix(c, "update-initramfs") || strings.HasPrefix(c, "dracut") }) {
						t.Errorf("%s %d: the initial RAM disk is not made anew: %q", name, n, plan.Commands)
					}
					if plan := s.prepare(); !plan.Empty() {
						t.Errorf("%s %d: there is still to do: %s", name, n, s.all(plan))
					}
				}
				s.undo()
				if d := gocmp.Diff(before, s.tree()); d != "" {
					t.Errorf("%s %d, then %s: files (-before +after):\n%s", name, n, next, d)
				}
				if d := gocmp.Diff(sorted(kernels), sorted(s.kernels)); d != "" {
					t.Errorf("%s %d, then %s: kernels (-before +after):\n%s", name, n, next, d)
				}
			}
		}
	}
}

// The machine dies before update-grub, in a plan with fewer parameters than the one
// before: grub.cfg has all that is wanted, and more.
func TestPlanAfterACrashBeforeUpdateGrub(t *testing.T) {
	type crash struct{}
	s := debian(t, seed(), nil)
	s.prepare()
	p := s.preparer("0000:44:00.0")
	plan, err := p.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.before["update-grub"] = func() { panic(crash{}) }
	func() {
		defer func() {
			if r := recover(); r != (crash{}) {
				t.Errorf("ended with %v", r)
			}
		}()
		_ = p.Apply(t.Context(), plan) // it does not come to its end
	}()
	delete(s.before, "update-grub")
	s.prepare("0000:44:00.0")
	if strings.Contains(s.read(grubConfig), "vfio-pci.ids") {
		t.Errorf("grub.cfg is of the first plan:\n%s", s.read(grubConfig))
	}
}

// The machine dies in the middle of a second plan, before or after some of its
// files are written: none of them is taken for somebody else's.
func TestUndoAfterACrashOfASecondPlan(t *testing.T) {
	type crash struct{}
	for n := range 3 { // files that are written
		s := debian(t, seed(), nil)
		before := s.tree()
		s.prepare()
		p := s.preparer("0000:44:00.0")
		plan, err := p.Plan(t.Context())
		if err != nil || len(plan.Files) < 3 {
			t.Fatalf("%v, %d files", err, len(plan.Files))
		}
		writes := 0
		p.replacing = func(path string, c *content) error {
			if !strings.Contains(path, stateDir) {
				if writes++; writes > n {
					panic(crash{})
				}
			}
			return replace(path, c, false)
		}
		func() {
			defer func() {
				if r := recover(); r != (crash{}) {
					t.Errorf("%d: ended with %v", n, r)
				}
			}()
			_ = p.Apply(t.Context(), plan) // it does not come to its end
		}()
		s.undo()
		if d := gocmp.Diff(before, s.tree()); d != "" {
			t.Errorf("%d: files (-before +after):\n%s", n, d)
		}
	}
}

// What somebody changed since is not undone unasked, and never lost.
func TestUndoAfterAForeignEdit(t *testing.T) {
	s := debian(t, seed(), nil)
	before := s.tree()
	s.prepare()
	const mine = "options vfio-pci ids=10de:1db4 disable_vga=1\n"
	s.put(map[string]string{"etc/modprobe.d/gpuserver.conf": mine})
	prepared := s.tree()
	p := s.preparer()
	_, err := p.PlanUndo(false)
	if gpuserver.KindOf(err) != gpuserver.KindConflict || !strings.Contains(err.Error(), "/etc/modprobe.d/gpuserver.conf") || strings.Contains(err.Error(), "modules-load") {
		t.Errorf("%v", err)
	}
	if d := gocmp.Diff(prepared, s.tree()); d != "" {
		t.Errorf("a refused undo changed files:\n%s", d)
	}
	plan, err := p.PlanUndo(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if d := gocmp.Diff(before, s.tree()); d != "" {
		t.Errorf("files (-before +after):\n%s", d)
	}
	if got := s.read(stateDir + "/edited/etc_modprobe.d_gpuserver.conf"); got != mine || len(plan.Remarks) != 1 {
		t.Errorf("the edit is kept as %q, remarks %q", got, plan.Remarks)
	}
}

// Undo that fails leaves the system prepared.
func TestUndoFails(t *testing.T) {
	s := debian(t, seed(), nil)
	before := s.tree()
	s.prepare()
	prepared := s.tree()
	p := s.preparer()
	plan, err := p.PlanUndo(false)
	if err != nil {
		t.Fatal(err)
	}
	s.failOnce(plan, "update-initramfs")
	if err := p.Apply(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "Everything is as it was before") {
		t.Errorf("%v", err)
	}
	if d := gocmp.Diff(prepared, s.tree()); d != "" {
		t.Errorf("files (-prepared +after):\n%s", d)
	}
	s.undo()
	if d := gocmp.Diff(before, s.tree()); d != "" {
		t.Errorf("files (-before +after):\n%s", d)
	}
}

// Two at once, and a file that changes between plan and deed.
func TestApplyConflicts(t *testing.T) {
	s := debian(t, seed(), nil)
	p := s.preparer()
	plan, err := p.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := p.lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context(), plan); gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("two at once: %v", err)
	}
	unlock()
	s.put(map[string]string{"etc/modprobe.d/gpuserver.conf": "# mine\n"})
	if err := p.Apply(t.Context(), plan); gpuserver.KindOf(err) != gpuserver.KindConflict || s.read("etc/modprobe.d/gpuserver.conf") != "# mine\n" {
		t.Errorf("a file that changed: %v", err)
	}
}
