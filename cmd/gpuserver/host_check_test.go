package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/hostprep"
	"gpuserver/internal/pci/pcitest"
)

// lay writes files below a folder of their own.
func lay(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The exit status is what scripts go by.
func TestHostCheck(t *testing.T) {
	good := lay(t, map[string]string{"cpuinfo": "flags : svm\naddress sizes : 43 bits physical\n", "interrupts": " 0: 1 IR-IO-APIC timer\n", "cmdline": ""})
	bad := lay(t, map[string]string{"cpuinfo": "flags : svm\naddress sizes : 30 bits physical\n"})
	ready, held := pcitest.Write(t, pcitest.Seed("vfio-pci")), pcitest.Write(t, pcitest.Seed("nouveau"))
	if err := os.MkdirAll(ready+"/devices/virtual/misc/kvm", 0o755); err != nil {
		t.Fatal(err)
	}
	status, out, errs := run(t, "host", "check", "--sysfs", ready, "--procfs", good)
	if status != 0 || errs != "" || !strings.Contains(out, "0 failed") || strings.Contains(out, "To mend it") {
		t.Errorf("status %d, stderr %q:\n%s", status, errs, out)
	}
	status, out, errs = run(t, "host", "check", "--sysfs", held, "--procfs", bad)
	if status != exitFailed || errs != "" || !strings.Contains(out, "\nFAIL   drivers ") || !strings.Contains(out, "\n  drivers: gpuserver host prepare") {
		t.Errorf("status %d, stderr %q:\n%s", status, errs, out)
	}
	status, out, errs = run(t, "host", "check", "--sysfs", held, "--procfs", bad, "--output", "json")
	var r hostprep.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != exitFailed || errs != "" || len(r.Findings) < 15 || !r.Failed() {
		t.Errorf("status %d, %v, stderr %q: %s", status, err, errs, out)
	}
	for _, args := range [][]string{
		{"--sysfs", t.TempDir()},
		{"--sysfs", ready, "--config", filepath.Join(t.TempDir(), "absent.yaml")},
	} {
		if status, out, errs := run(t, append([]string{"host", "check"}, args...)...); status != exitUsage || out != "" || errs == "" {
			t.Errorf("%q: status %d, stdout %q, stderr %q", args, status, out, errs)
		}
	}
}

// A configuration's needs are what is checked against.
func TestHostNeeds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gpuserver.yaml")
	text := `
clouds:
  - name: local
    type: libvirt
    libvirt: {dir: /srv/vms, accel: tcg, huge_pages: true, disk_reserve: 5GiB, network: {mtu: 1400}}
gpu_models:
  - {name: v100, ids: ["10de:1db4"]}
flavors:
  - {name: small, vcpus: 1, memory: 2GiB, disk: 10GiB}
  - {name: gpu, vcpus: 4, memory: 8GiB, disk: 20GiB, gpus: {model: v100}}
  - {name: large, vcpus: 8, memory: 32GiB, disk: 60GiB}
images:
  - {name: debian, libvirt: {disk: /srv/debian.qcow2}}
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg, err := optionalConfig(file, true, false)
	if err != nil {
		t.Fatal(err)
	}
	const gib = int64(1) << 30
	want := hostprep.Needs{
		Emulated: true, HugePages: true, Memory: 32 * gib, CardMemory: 8 * gib, MTU: 1400,
		Disks: []hostprep.DiskNeed{{Dir: "/srv/vms", Smallest: 10 * gib, Largest: 60 * gib, Reserve: 5 * gib}},
	}
	if d := cmp.Diff(want, hostNeeds(cfg)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if cfg, err := optionalConfig(filepath.Join(t.TempDir(), "absent"), false, true); cfg != nil || err != nil {
		t.Errorf("an absent file that nobody named: %v, %v", cfg, err)
	}
}

// What asks this machine answers something, on any machine.
func TestLiveMachine(t *testing.T) {
	if free, err := freeBytes(filepath.Join(t.TempDir(), "not", "there", "yet")); err != nil || free <= 0 {
		t.Errorf("free: %d, %v", free, err)
	}
	if _, within, err := clockState(); err == nil && within < 0 {
		t.Errorf("clock: within %v", within)
	}
	if out, err := runCommand(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3"); err == nil || out != "out\nerr\n" {
		t.Errorf("command: %q, %v", out, err)
	}
}
