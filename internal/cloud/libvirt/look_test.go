package libvirt

import (
	"path/filepath"
	"regexp"
	"testing"

	"gpuserver"
)

// A look at libvirtd, without being a cloud.
func TestVersion(t *testing.T) {
	needLibvirt(t)
	got, err := Version(t.Context(), newPlace(t))
	if err != nil || !regexp.MustCompile(`^libvirt \d+\.\d+\.\d+ with QEMU \d+\.\d+\.\d+$`).MatchString(got) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestLookWithoutLibvirtd(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Name: "x", Owner: "x", Dir: dir, Socket: filepath.Join(dir, "absent")}
	if _, err := Version(t.Context(), cfg); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("version: %v, want KindUnavailable", err)
	}
	if _, err := TryKVM(t.Context(), cfg); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("no kernel to try: %v, want KindNotFound", err)
	}
	if _, err := Version(t.Context(), Config{}); gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Errorf("no configuration: %v, want KindInvalid", err)
	}
}

func TestDotted(t *testing.T) {
	if got := dotted(9_000_012); got != "9.0.12" {
		t.Errorf("%q", got)
	}
}
