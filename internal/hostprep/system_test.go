package hostprep

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"gpuserver/internal/pci/pcitest"
)

const (
	debianGrub = `# If you change this file, run 'update-grub' afterwards.
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=` + "`lsb_release -i -s 2> /dev/null || echo Debian`" + `
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX=""
`
)

// system is a system whose commands do what the real ones do, as far as it
// matters here.
type system struct {
	t       *testing.T
	dir     string
	kernels []string          // parameters of each, as grubby has them
	ran     []string          // commands
	fail    map[string]error  // by command; it then does nothing
	once    map[string]error  // by command line; it fails once
	before  map[string]func() // run before a command
	proc    fstest.MapFS
	sys     string
	sync    bool // files are synced to disk, which takes its time
}

// put writes files, by name from the root.
func (s *system) put(files map[string]string) {
	s.t.Helper()
	for name, text := range files {
		full := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			s.t.Fatal(err)
		}
		mode := fs.FileMode(0o644)
		if strings.Contains(name, "/sbin/") {
			mode = 0o755
		}
		if err := os.WriteFile(full, []byte(text), mode); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *system) read(name string) string {
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		return ""
	}
	return string(text)
}

// tree gives all files with what they say, but for what we keep.
func (s *system) tree() map[string]string {
	s.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(s.dir, path)
		switch {
		case name == "var":
			return filepath.SkipDir
		case e.IsDir():
			files[name+"/"] = ""
			return nil
		}
		text, err := os.ReadFile(path)
		info, _ := e.Info()
		files[name] = info.Mode().String() + "\n" + string(text)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}

// seed is the tree of the machine that this project began with, laid out once.
var seed = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "gpuserver-hostprep-")
	if err == nil {
		err = pcitest.Lay(dir, pcitest.Seed("nouveau"))
	}
	if err != nil {
		panic(err)
	}
	return dir
})

func TestMain(m *testing.M) {
	status := m.Run()
	if dir := seed(); os.RemoveAll(dir) != nil {
		status = 1
	}
	os.Exit(status)
}

func newSystem(t *testing.T, sys string, files map[string]string) *system {
	s := &system{t: t, dir: t.TempDir(), fail: map[string]error{}, once: map[string]error{}, before: map[string]func(){}, sys: sys}
	s.proc = fstest.MapFS{
		"cpuinfo":              {Data: []byte(epyc)},
		"cmdline":              {Data: []byte("root=/dev/sda1 quiet\n")},
		"interrupts":           {Data: []byte(remapped)},
		"sys/kernel/osrelease": {Data: []byte("6.1.0-31-amd64\n")},
	}
	s.put(map[string]string{
		"usr/lib/modules/6.1.0-31-amd64/modules.builtin": "kernel/drivers/pci/pci-stub.ko\n",
		"usr/lib/modules/6.1.0-31-amd64/modules.dep":     "kernel/drivers/vfio/pci/vfio-pci.ko: kernel/drivers/vfio/vfio.ko\nkernel/drivers/vfio/vfio_iommu_type1.ko:\n",
		"etc/modprobe.d/other.conf":                      "options kvm ignore_msrs=0\n",
		"etc/modules-load.d/other.conf":                  "loop\n",
	})
	s.put(files)
	return s
}

// debian is a system with GRUB and initramfs-tools.
func debian(t *testing.T, sys string, files map[string]string) *system {
	all := map[string]string{"usr/sbin/update-grub": "", "usr/sbin/update-initramfs": "", "etc/default/grub": debianGrub, "etc/initramfs-tools/hooks/other": "", "boot/initrd": ""}
	maps.Copy(all, files)
	s := newSystem(t, sys, all)
	s.updateGrub()
	s.updateInitramfs()
	return s
}

// fedora is a system with grubby and dracut.
func fedora(t *testing.T, sys string, parameters ...string) *system {
	s := newSystem(t, sys, map[string]string{"usr/sbin/grubby": "", "usr/sbin/dracut": "", "etc/default/grub": "GRUB_ENABLE_BLSCFG=true\n", "etc/dracut.conf.d/other.conf": "", "boot/initrd": ""})
	for range 2 {
		s.kernels = append(s.kernels, strings.Join(append([]string{"ro", "rhgb"}, parameters...), " "))
	}
	s.updateInitramfs()
	return s
}

func (s *system) preparer(cards ...string) *Preparer {
	return &Preparer{
		Machine: Machine{Sys: os.DirFS(s.sys), Proc: s.proc, Root: os.DirFS(s.dir), Live: &Live{}},
		Dir:     s.dir, Cards: cards, Run: s.run,
		replacing: func(path string, c *content) error { return replace(path, c, s.sync) },
	}
}

// run plays the commands.
func (s *system) run(ctx context.Context, name string, args ...string) (string, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	if line != "grubby --info=ALL" {
		s.ran = append(s.ran, line)
	}
	if f := s.before[line]; f != nil {
		f()
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := s.once[line]; err != nil {
		delete(s.once, line)
		return "first\nit broke\n", err
	}
	if err := s.fail[name]; err != nil {
		return "first\nit broke\n", err
	}
	switch name {
	case "update-grub":
		s.updateGrub()
	case "update-initramfs", "dracut":
		s.updateInitramfs()
	case "grubby":
		return s.grubby(args), nil
	default:
		return "", errors.New("unknown command " + line)
	}
	return "", nil
}

// updateGrub writes grub.cfg from what a real shell makes of the settings.
func (s *system) updateGrub() {
	g := readGrub(os.DirFS(s.dir))
	g.read(grubOurs, s.read(grubOurs))
	both := g.vars["GRUB_CMDLINE_LINUX"]
	s.put(map[string]string{grubConfig: "### BEGIN /etc/grub.d/10_linux ###\nmenuentry 'Debian' {\n\tlinux\t/vmlinuz-6.1 root=/dev/sda1 ro " + both + " " + g.vars["GRUB_CMDLINE_LINUX_DEFAULT"] +
		"\n}\nmenuentry 'Debian, recovery' {\n\tlinux\t/vmlinuz-6.1 root=/dev/sda1 ro single " + both + "\n}\n### END /etc/grub.d/10_linux ###\nmenuentry 'another system' {\n\tlinux /vmlinuz root=/dev/sdb1\n}\n"})
}

// updateInitramfs makes an initial RAM disk that shows what it was made of.
func (s *system) updateInitramfs() {
	text := ""
	for name, file := range s.tree() {
		if strings.HasPrefix(name, "etc/modprobe.d/") || strings.HasPrefix(name, "etc/initramfs-tools") || strings.HasPrefix(name, "etc/dracut.conf.d") {
			text += name + "\n" + file + "\n"
		}
	}
	l := strings.Split(text, "\n")
	slices.Sort(l)
	s.put(map[string]string{"boot/initrd": strings.Join(l, "\n")})
}

// grubby changes the kernels' parameters, or shows them.
func (s *system) grubby(args []string) (out string) {
	for i, kernel := range s.kernels {
		list := strings.Fields(kernel)
		for _, a := range args {
			if remove, ok := strings.CutPrefix(a, "--remove-args="); ok {
				list = without(list, strings.Fields(remove))
			}
			if add, ok := strings.CutPrefix(a, "--args="); ok {
				list = append(without(list, strings.Fields(add)), strings.Fields(add)...)
			}
		}
		s.kernels[i] = strings.Join(list, " ")
		out += "index=0\nkernel=\"/boot/vmlinuz\"\nargs=\"" + s.kernels[i] + "\"\nroot=\"/dev/sda1\"\n"
	}
	return out
}

// prepare plans and applies.
func (s *system) prepare(cards ...string) *Plan {
	s.t.Helper()
	p := s.preparer(cards...)
	plan, err := p.Plan(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.Apply(s.t.Context(), plan); err != nil {
		s.t.Fatal(err)
	}
	return plan
}

// undo takes everything back.
func (s *system) undo() *Plan {
	s.t.Helper()
	p := s.preparer()
	plan, err := p.PlanUndo(false)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.Apply(s.t.Context(), plan); err != nil {
		s.t.Fatal(err)
	}
	return plan
}
