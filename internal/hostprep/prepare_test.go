package hostprep

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/pci/pcitest"
)

// all shows a plan and the files that came of it.
func (s *system) all(plan *Plan) string {
	var b strings.Builder
	b.WriteString("parameters: " + strings.Join(plan.Parameters, " ") + "\nremoved: " + strings.Join(plan.Removed, " ") + "\n")
	for _, c := range plan.Commands {
		b.WriteString("command: " + c + "\n")
	}
	for _, r := range plan.Remarks {
		b.WriteString("remark: " + r + "\n")
	}
	b.WriteString(plan.Diff())
	return b.String()
}

// What is written on each kind of system, for each kind of machine.
func TestPlan(t *testing.T) {
	stranger := pcitest.Desktop() // another card of the same number has the same sound device, and the host's sound is of it
	stranger.Devices = append(stranger.Devices, pcitest.Device{Address: "0000:00:1f.3", ID: "10de:10f7", Class: "040300", Group: 9, NUMA: -1, Driver: "snd_hda_intel"})
	for _, tt := range []struct {
		name string
		s    func(*testing.T) *system
	}{
		{"seed", func(t *testing.T) *system { return debian(t, seed(), nil) }},
		{"fedora", func(t *testing.T) *system {
			return fedora(t, seed(), "vfio-pci.ids=8086:10fb", "modprobe.blacklist=floppy")
		}},
		{"intel", func(t *testing.T) *system {
			s := debian(t, pcitest.Write(t, pcitest.Desktop()), nil)
			s.proc["cpuinfo"].Data = []byte("vendor_id : GenuineIntel\nflags : vmx\n")
			return s
		}},
		{"same-number", func(t *testing.T) *system { return debian(t, pcitest.Write(t, stranger), nil) }},
		{"built-in", func(t *testing.T) *system {
			return debian(t, pcitest.Write(t, pcitest.Desktop()), map[string]string{"usr/lib/modules/6.1.0-31-amd64/modules.builtin": "kernel/drivers/pci/pci-stub.ko\nkernel/drivers/usb/host/xhci-pci.ko\n"})
		}},
		{"not-remapped", func(t *testing.T) *system {
			s := debian(t, seed(), nil)
			s.proc["interrupts"].Data = []byte(notRemapped)
			return s
		}},
		{"acs-override", func(t *testing.T) *system { return debian(t, pcitest.Write(t, pcitest.ACSOverride()), nil) }},
		{"off", func(t *testing.T) *system {
			s := debian(t, pcitest.Write(t, pcitest.Off()), map[string]string{"etc/default/grub": "GRUB_CMDLINE_LINUX='amd_iommu=on iommu=off'\n"})
			s.proc["interrupts"].Data = []byte(notRemapped)
			return s
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.s(t)
			golden(t, "prepare-"+tt.name+".txt", s.all(s.prepare()))
			again := s.prepare()
			if !again.Empty() {
				t.Errorf("a second time there is still to do:\n%s", s.all(again))
			}
		})
	}
}

// After the next start vfio-pci has the devices, and there is nothing to do.
func TestPlanAfterTheStart(t *testing.T) {
	odd := pcitest.Desktop()
	odd.Devices = append(odd.Devices,
		pcitest.Device{Address: "0000:01:00.4", Under: "0000:00:01.0", ID: "10de:1111", Class: "118000", Group: 1, NUMA: -1, Driver: "odd-driver"},
		pcitest.Device{Address: "0000:01:00.5", Under: "0000:00:01.0", ID: "10de:2222", Class: "118000", Group: 1, NUMA: -1, Driver: "fixed"})
	for _, m := range []pcitest.Machine{pcitest.Seed("nouveau"), odd} {
		s := debian(t, pcitest.Write(t, m), map[string]string{"usr/lib/modules/6.1.0-31-amd64/modules.builtin": "kernel/pci-stub.ko\nkernel/fixed.ko\n"})
		plan := s.prepare()
		m.Devices = slices.Clone(m.Devices)
		for i, d := range m.Devices {
			switch {
			case d.ID == "10de:2222":
				m.Devices[i].Driver = "pci-stub"
			case strings.HasPrefix(d.ID, "10de:"):
				m.Devices[i].Driver = "vfio-pci"
			}
		}
		s.sys = pcitest.Write(t, m)
		s.proc["cmdline"].Data = []byte(strings.Join(plan.Parameters, " "))
		if again := s.prepare(); !again.Empty() {
			t.Errorf("after the start there is still to do:\n%s", s.all(again))
		}
		want := "pci-stub.ids=10de:2222"
		if len(m.Devices) == len(odd.Devices) && (!slices.Contains(plan.Parameters, want) || !strings.Contains(s.read(modprobeFile), "softdep odd_driver pre: vfio-pci\n")) {
			t.Errorf("parameters %q, and\n%s", plan.Parameters, s.read(modprobeFile))
		}
	}
}

// A file of an earlier plan that is not wanted any more goes.
func TestPlanDropsFiles(t *testing.T) {
	s := debian(t, seed(), nil)
	s.prepare("0000:44:00.0")
	if s.read(udevRules) == "" {
		t.Fatal("there is no rule for the one card")
	}
	s.prepare()
	if rules := s.read(udevRules); rules != "" {
		t.Errorf("with all cards there is still a rule:\n%s", rules)
	}
}

// What the seed's operators wrote by hand is not written again.
func TestPlanSeedsOwnLine(t *testing.T) {
	const seed = `GRUB_CMDLINE_LINUX_DEFAULT="amd_iommu=on iommu=pt vfio-pci.ids=10de:1db4 vfio_iommu_type1.allow_unsafe_interrupts=1 modprobe.blacklist=nvidiafb,nouveau"` + "\n"
	s := debian(t, pcitest.Write(t, pcitest.Seed("vfio-pci")), map[string]string{"etc/default/grub": seed})
	plan := s.prepare()
	if len(plan.Parameters) > 0 || s.read(grubOurs) != "" {
		t.Errorf("parameters %q are doubled: %q", plan.Parameters, s.read(grubOurs))
	}
	if slices.Contains(plan.Commands, "update-grub") {
		t.Error("update-grub is run for nothing")
	}
	if !slices.ContainsFunc(plan.Remarks, func(r string) bool { return strings.Contains(r, "amd_iommu=on") }) {
		t.Errorf("no remark about amd_iommu=on in %q", plan.Remarks)
	}
}

// Settings that stand in other files of grub.d count, and a part of a list is
// added to.
func TestPlanPartOfALine(t *testing.T) {
	s := debian(t, seed(), map[string]string{
		"etc/default/grub.d/50-mine.cfg": "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX iommu=pt modprobe.blacklist=nouveau vfio_pci.ids=8086:10fb\"\n",
	})
	plan := s.prepare()
	want := []string{"vfio-pci.ids=8086:10fb,10de:1db4", "modprobe.blacklist=nvidiafb"}
	if d := cmp.Diff(want, plan.Parameters); d != "" {
		t.Errorf("parameters (-want +got):\n%s", d)
	}
}

// Somebody changed the settings and did not run update-grub.
func TestPlanStaleConfig(t *testing.T) {
	s := debian(t, seed(), nil)
	s.prepare()
	s.put(map[string]string{grubConfig: "\tlinux /vmlinuz root=/dev/sda1\n"})
	if plan := s.prepare(); !slices.Equal(plan.Commands, []string{"update-grub"}) || len(plan.Files) > 0 {
		t.Errorf("commands %q, files %v", plan.Commands, plan.Files)
	}
}

// Another loader: the line, and nothing else until it counts.
func TestPlanOtherLoader(t *testing.T) {
	for _, tt := range []struct {
		file, say string
	}{
		{"boot/efi/loader/loader.conf", "systemd-boot"},
		{"etc/default/grub", "GRUB without update-grub"},
		{"etc/kernel/cmdline", "unified kernel image"},
		{"etc/other", "not recognised"},
	} {
		s := newSystem(t, seed(), map[string]string{tt.file: "", "usr/sbin/update-initramfs": ""})
		plan, err := s.preparer().Plan(t.Context())
		if gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(err.Error(), tt.say) ||
			!strings.Contains(err.Error(), "iommu=pt vfio-pci.ids=10de:1db4 modprobe.blacklist=nvidiafb,nouveau") {
			t.Errorf("%s: %v", tt.file, err)
		}
		if plan == nil || len(plan.Files) > 0 {
			t.Errorf("%s: a plan is given that does something", tt.file)
		}
		s.proc["cmdline"].Data = []byte("iommu=pt vfio-pci.ids=10de:1db4 modprobe.blacklist=nvidiafb,nouveau")
		if plan := s.prepare(); len(plan.Parameters) > 0 || !slices.Equal(plan.Commands, []string{"update-initramfs -u -k all"}) {
			t.Errorf("%s, once the line is there: %s", tt.file, s.all(plan))
		}
	}
}

// Which cards are given away.
func TestPlanCards(t *testing.T) {
	console := pcitest.Seed("nouveau")
	for i := range console.Devices {
		console.Devices[i].BootVGA = console.Devices[i].Address == "0000:44:00.0"
	}
	off := pcitest.Desktop() // with its IOMMU off, and the console on the card
	off.Units = nil
	for i := range off.Devices {
		off.Devices[i].BootVGA, off.Devices[i].Group = false, -1
	}
	for _, tt := range []struct {
		m     pcitest.Machine
		named []string
		want  []string
		say   string
	}{
		{pcitest.Seed("nouveau"), nil, []string{"0000:27:00.0", "0000:28:00.0", "0000:44:00.0", "0000:a3:00.0", "0000:c3:00.0", "0000:c4:00.0"}, ""},
		{console, nil, []string{"0000:27:00.0", "0000:28:00.0", "0000:a3:00.0", "0000:c3:00.0", "0000:c4:00.0"}, "0000:44:00.0 is left out: it shows the host's console"},
		{console, []string{"0000:44:00.0"}, []string{"0000:44:00.0"}, ""},
		{pcitest.Desktop(), nil, []string{"0000:01:00.0"}, "0000:00:02.0 is left out: it is the processor's own graphics"},
		{pcitest.Desktop(), []string{"0000:00:02.0"}, nil, "the processor's own graphics"},
		{off, nil, []string{"0000:01:00.0"}, "the processor's own graphics"},
		{pcitest.Desktop(), []string{"0000:00:1f.3"}, nil, "there is no GPU at"},
		{pcitest.NoIOMMUMode(), nil, []string{"0000:27:00.0", "0000:28:00.0", "0000:44:00.0", "0000:a3:00.0", "0000:c3:00.0", "0000:c4:00.0"}, ""},
		{pcitest.Machine{}, nil, nil, "no GPU that could be prepared"},
	} {
		plan, err := debian(t, pcitest.Write(t, tt.m), nil).preparer(tt.named...).Plan(t.Context())
		if tt.want == nil {
			if gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("%v: %v, want %q", tt.named, err, tt.say)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, plan.Cards); d != "" {
			t.Errorf("cards (-want +got):\n%s", d)
		}
		if tt.say != "" && !strings.Contains(strings.Join(plan.Remarks, "\n"), tt.say) {
			t.Errorf("remarks %q, want %q", plan.Remarks, tt.say)
		}
	}
}

// Others of the same number that VMs have already stand against nothing.
func TestPlanSameNumberForVMs(t *testing.T) {
	s := debian(t, pcitest.Write(t, pcitest.Seed("vfio-pci")), nil)
	if plan := s.prepare("0000:44:00.0"); !slices.Contains(plan.Parameters, "vfio-pci.ids=10de:1db4") || s.read(udevRules) != "" {
		t.Errorf("parameters %q, rules %q", plan.Parameters, s.read(udevRules))
	}
}

// A NIC or an NVMe that somebody uses is never touched, and its group left out.
func TestPlanLeavesOthersAlone(t *testing.T) {
	m := pcitest.Seed("nouveau")
	m.Devices = append(m.Devices, pcitest.Device{Address: "0000:c5:00.0", Under: "0000:c2:10.0", ID: "144d:a808", Class: "010802", Group: 87, Driver: "nvme"})
	s := debian(t, pcitest.Write(t, m), nil)
	plan := s.prepare()
	for name, text := range s.tree() {
		if strings.Contains(text, "144d:a808") || strings.Contains(text, "c5:00.0") {
			t.Errorf("%s names the NVMe:\n%s", name, text)
		}
	}
	if slices.Contains(plan.Cards, "0000:c3:00.0") || !strings.Contains(strings.Join(plan.Remarks, "\n"), "0000:c3:00.0 is left out") {
		t.Errorf("cards %q, remarks %q", plan.Cards, plan.Remarks)
	}
	// The other two have the same number and are still the host's.
	if rules := s.read(udevRules); strings.Count(rules, "driver_override") != 4 || strings.Contains(s.read("etc/modprobe.d/gpuserver.conf"), "10de:1db4") {
		t.Errorf("rules:\n%s\nmodprobe:\n%s", rules, s.read("etc/modprobe.d/gpuserver.conf"))
	}
}

func TestPlanOddFiles(t *testing.T) {
	s := debian(t, seed(), nil)
	if err := os.Symlink("other.conf", filepath.Join(s.dir, "etc/modprobe.d/gpuserver.conf")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.preparer().Plan(t.Context()); gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(err.Error(), "/etc/modprobe.d/gpuserver.conf is no plain file") {
		t.Errorf("a link in the place of a file: %v", err)
	}
	s = debian(t, seed(), map[string]string{stateDir + "/manifest.json": "{"})
	if _, err := s.preparer().Plan(t.Context()); gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(err.Error(), "manifest.json") {
		t.Errorf("a broken manifest: %v", err)
	}
}
