package main

import (
	"path/filepath"
	"strings"
	"testing"

	"gpuserver/internal/pci/pcitest"
)

// The catalogue's cards are those of the first machine, and of no other.
func TestConfigCheckComparesFlavorsWithCards(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	write(t, path, "clouds: [{name: local, type: fake}]\nimages: [{name: i, fake: {}}]\n")
	for _, tt := range []struct {
		name    string
		machine pcitest.Machine
		warned  bool
	}{
		{"the seed's machine", pcitest.Seed("vfio-pci"), false},
		{"its IOMMU off", pcitest.Off(), true},
		{"another card", pcitest.Board(), true},
	} {
		status, out, errs := run(t, "config", "check", "--sysfs", pcitest.Write(t, tt.machine), path)
		if status != 0 || out != "" {
			t.Errorf("%s: status %d, stdout %q", tt.name, status, out)
		}
		const words = "note: no host has a card of model tesla-v100 that VMs may have, so jobs for gpu_2x_large, gpu_2x_xlarge, gpu_2xlarge"
		if got := strings.Contains(errs, words); got != tt.warned {
			t.Errorf("%s: stderr %q", tt.name, errs)
		}
	}
	if status, _, errs := run(t, "config", "check", "--sysfs", filepath.Join(t.TempDir(), "none"), path); status != exitUsage || errs == "" {
		t.Errorf("no such folder: status %d, stderr %q", status, errs)
	}
}
