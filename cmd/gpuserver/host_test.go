package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/pci/pcitest"
)

// What scripts may rely on.
func TestHostInspectJSON(t *testing.T) {
	root := pcitest.Write(t, pcitest.Seed("vfio-pci"))
	status, out, errs := run(t, "host", "inspect", "--sysfs", root, "--output", "json")
	if status != 0 || errs != "" {
		t.Fatalf("status %d: %s", status, errs)
	}
	var got struct {
		IOMMU map[string]any
		GPUs  []map[string]any
		Slots []map[string]any
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.IOMMU["enabled"] != true || got.IOMMU["kind"] != "amd" {
		t.Errorf("iommu %v", got.IOMMU)
	}
	only := func(all map[string]any, names ...string) map[string]any {
		some := map[string]any{}
		for _, n := range names {
			some[n] = all[n]
		}
		return some
	}
	if len(got.GPUs) != 6 || len(got.Slots) != 4 {
		t.Fatalf("%d GPUs in %d slots, want 6 in 4", len(got.GPUs), len(got.Slots))
	}
	wantGPU := map[string]any{
		"address": "0000:27:00.0", "vendor_id": "10de", "device_id": "1db4", "model": "GV100GL [Tesla V100 PCIe 16GB]",
		"iommu_group": 19.0, "numa_node": 0.0, "driver": "vfio-pci", "usable": true, "ready": true, "why": "",
	}
	if d := cmp.Diff(wantGPU, only(got.GPUs[0], "address", "vendor_id", "device_id", "model", "iommu_group", "numa_node", "driver", "usable", "ready", "why")); d != "" {
		t.Errorf("GPU (-want +got):\n%s", d)
	}
	wantSlot := map[string]any{
		"group": 19.0, "gpus": []any{"0000:27:00.0", "0000:28:00.0"}, "others": []any{"0000:25:00.0", "0000:26:00.0", "0000:26:10.0"},
		"usable": true, "ready": true, "why": "",
	}
	if d := cmp.Diff(wantSlot, only(got.Slots[0], "group", "gpus", "others", "usable", "ready", "why")); d != "" {
		t.Errorf("slot (-want +got):\n%s", d)
	}
}

// A capture is read like the machine itself, with what /proc said.
func TestHostInspectCapture(t *testing.T) {
	root, proc := pcitest.Write(t, pcitest.Desktop()), t.TempDir()
	if err := os.WriteFile(filepath.Join(proc, "cpuinfo"), []byte("model name : A Processor\nflags : vmx\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "machine.tar")
	status, want, errs := run(t, "host", "inspect", "--sysfs", root, "--procfs", proc, "--capture", file)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	status, got, errs := run(t, "host", "inspect", "--sysfs", file)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the machine and its capture differ:\n%s", d)
	}
	for _, words := range []string{"A Processor", "VT-x", "0000:01:00.3 by nvidia-gpu", "intel, on (dmar0, dmar1)"} {
		if !strings.Contains(got, words) {
			t.Errorf("%q is not in:\n%s", words, got)
		}
	}
}

func TestHostInspectMistakes(t *testing.T) {
	text := filepath.Join(t.TempDir(), "machine.tar")
	if err := os.WriteFile(text, []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ sysfs, say string }{
		{t.TempDir(), "not a sysfs tree"},
		{filepath.Join(t.TempDir(), "absent"), "cannot be opened"},
		{text, "no archive of gpuserver host inspect --capture"},
	} {
		status, out, errs := run(t, "host", "inspect", "--sysfs", tt.sysfs)
		if status != exitUsage || out != "" || !strings.Contains(errs, tt.say) {
			t.Errorf("%s: status %d, stdout %q, stderr %q, want %q", tt.sysfs, status, out, errs, tt.say)
		}
	}
}

// The seed's four addresses, and files that are not replaced unasked.
func TestHostRender(t *testing.T) {
	root, dir := pcitest.Write(t, pcitest.Seed("vfio-pci")), t.TempDir()
	status, out, errs := run(t, "host", "render", "nova", "--sysfs", root)
	want := `device_spec = [{"address":"0000:27:00.0"},{"address":"0000:44:00.0"},{"address":"0000:a3:00.0"},{"address":"0000:c3:00.0"}]` + "\n"
	if status != 0 || !strings.Contains(out, want) {
		t.Errorf("status %d, stderr %q, stdout:\n%s", status, errs, out)
	}
	kolla := func(more ...string) (int, string, string) {
		return run(t, append([]string{"host", "render", "kolla", dir, "--sysfs", root, "--host", "gpu1"}, more...)...)
	}
	if status, out, errs := kolla(); status != 0 || strings.Count(out, "wrote ") != 3 {
		t.Errorf("status %d, stdout %q, stderr %q", status, out, errs)
	}
	if status, out, _ := kolla(); status != 0 || !strings.Contains(out, "nothing to do") {
		t.Errorf("a second time: status %d, stdout %q", status, out)
	}
	mine := filepath.Join(dir, "nova/gpu1/nova.conf")
	if err := os.WriteFile(mine, []byte("[DEFAULT]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if status, _, errs := kolla(); status == 0 || !strings.Contains(errs, mine) {
		t.Errorf("over another's file: status %d, stderr %q", status, errs)
	}
	if status, _, errs := kolla("--force"); status != 0 {
		t.Errorf("with --force: status %d, stderr %q", status, errs)
	}
	for _, args := range [][]string{{"--alias", "v100"}, {"--alias", "10de:1db4="}} {
		if status, _, errs := run(t, append([]string{"host", "render", "nova", "--sysfs", root}, args...)...); status != exitUsage || !strings.Contains(errs, "is not of the form") {
			t.Errorf("%v: status %d, stderr %q", args, status, errs)
		}
	}
}
