package hostprep

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/pci"
	"gpuserver/internal/pci/pcitest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func inventory(t *testing.T, m pcitest.Machine) *pci.Inventory {
	t.Helper()
	inv, err := pci.Read(os.DirFS(pcitest.Write(t, m)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), text); d != "" {
		t.Errorf("%s (-want +got; go test -update writes it):\n%s", file, d)
	}
}

func TestRenderNova(t *testing.T) {
	pool := pcitest.Seed("vfio-pci")
	for i := range pool.Devices { // one card less, and a stranger in a group
		if pool.Devices[i].Address == "0000:a3:00.0" {
			pool.Devices[i].ID = "10de:20f1"
			pool.Devices[i].VFs = 16
		}
	}
	pool.Devices = append(pool.Devices, pcitest.Device{Address: "0000:c5:00.0", Under: "0000:c2:10.0", ID: "144d:a808", Class: "010802", Group: 87, Driver: "nvme"})
	v100 := map[string]string{"10de:1db4": "tesla-v100"}
	for _, tt := range []struct {
		name string
		nova Nova
		m    pcitest.Machine
	}{
		{"nova-seed.conf", Nova{Names: v100}, pcitest.Seed("vfio-pci")},
		{"nova-pairs.conf", Nova{Names: v100, Pairs: true}, pcitest.Seed("nouveau")},
		{"nova-filters.conf", Nova{Filters: []string{"AFilter", "PciPassthroughFilter"}}, pcitest.Board()},
		{"nova-two-models.conf", Nova{}, pool},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := tt.nova.Render(inventory(t, tt.m))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name, r.File())
		})
	}
}

func TestRenderKolla(t *testing.T) {
	r, err := Nova{Pairs: true}.Render(inventory(t, pcitest.Seed("vfio-pci")))
	if err != nil {
		t.Fatal(err)
	}
	files := r.Kolla("gpu1")
	if len(files) != 3 {
		t.Errorf("%d files, want 3", len(files))
	}
	for name, text := range files {
		golden(t, "kolla-"+strings.ReplaceAll(name, "/", "-"), text)
	}
	if len(r.Warnings()) != 1 {
		t.Errorf("warnings %q, want one about report_in_placement", r.Warnings())
	}
}

func TestRenderNothing(t *testing.T) {
	if _, err := (Nova{}).Render(inventory(t, pcitest.Off())); gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Errorf("a host without IOMMU: %v, want KindInvalid", err)
	}
	m := pcitest.Seed("vfio-pci")
	for i := range m.Devices {
		if m.Devices[i].Address == "0000:44:00.0" {
			m.Devices[i].ID = "10de:1db5"
		}
	}
	same := Nova{Names: map[string]string{"10de:1db4": "v100", "10de:1db5": "v100"}}
	if _, err := same.Render(inventory(t, m)); gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Errorf("two models of one name: %v, want KindInvalid", err)
	}
}
