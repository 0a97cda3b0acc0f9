package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuserver/internal/pci/pcitest"
)

// What would be done is shown, and nothing is done.
func TestHostPrepare(t *testing.T) {
	root := lay(t, map[string]string{
		"etc/default/grub": "GRUB_CMDLINE_LINUX=\"iommu=pt\"\n", "boot/grub/grub.cfg": "\tlinux /vmlinuz iommu=pt\n",
		"usr/sbin/update-grub": "", "usr/sbin/update-initramfs": "",
	})
	sys, proc := pcitest.Write(t, pcitest.Seed("nouveau")), lay(t, map[string]string{"cmdline": "iommu=pt\n", "interrupts": " 0: 1 IR-IO-APIC timer\n"})
	here := []string{"host", "prepare", "--sysfs", sys, "--procfs", proc, "--root", root}
	status, out, errs := run(t, append(here, "--dry-run")...)
	if status != 0 || errs != "" {
		t.Errorf("status %d, stderr %q", status, errs)
	}
	for _, line := range []string{
		"+++ /etc/default/grub.d/zz-gpuserver.cfg\n", "+options vfio-pci ids=10de:1db4\n",
		"kernel command line: +vfio-pci.ids=10de:1db4\n", "then: update-grub\n", "Nothing was changed (--dry-run).\n",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in:\n%s", line, out)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "etc/default/grub.d")); !os.IsNotExist(err) {
		t.Errorf("--dry-run wrote something: %v", err)
	}
	status, out, _ = run(t, append(here, "--dry-run", "--output", "json")...)
	var p struct {
		Cards, Parameters, Commands []string
		Files                       []struct{ Path, Diff string }
		Done                        bool
	}
	if err := json.Unmarshal([]byte(out), &p); err != nil || status != 0 || len(p.Cards) != 6 || len(p.Files) != 4 || len(p.Commands) != 2 || p.Done {
		t.Errorf("status %d, %v: %s", status, err, out)
	}
	if status, out, _ := run(t, append(here, "--dry-run", "--undo")...); status != 0 || out != "Nothing to undo.\n" {
		t.Errorf("undo of nothing: status %d, %q", status, out)
	}
	for _, tt := range []struct {
		args   []string
		status int
		say    string
	}{
		{here, exitUsage, "only this machine itself can be prepared"},
		{append(here, "--dry-run", "--force"), exitUsage, "--force is for --undo only"},
		{append(here, "--dry-run", "--undo", "--card", "0000:27:00.0"), exitUsage, "--card does not go with it"},
		{append(here, "--dry-run", "--card", "0000:99:00.0"), exitUsage, "there is no GPU at"},
		{[]string{"host", "prepare", "--sysfs", sys, "--root", t.TempDir(), "--dry-run"}, exitFailed, "vfio-pci.ids=10de:1db4"},
	} {
		if status, out, errs := run(t, tt.args...); status != tt.status || out != "" || !strings.Contains(errs, tt.say) {
			t.Errorf("%q: status %d, stdout %q, stderr %q", tt.args, status, out, errs)
		}
	}
}
