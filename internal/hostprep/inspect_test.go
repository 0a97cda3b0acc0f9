package hostprep

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"gpuserver/internal/pci/pcitest"
)

const epyc = `processor	: 0
vendor_id	: AuthenticAMD
model name	: AMD EPYC 7352 24-Core Processor
flags		: fpu vme svm sse4a
address sizes	: 43 bits physical, 48 bits virtual

processor	: 1
model name	: another
flags		: none
`

func TestInspect(t *testing.T) {
	kvm := func(root string) { _ = os.MkdirAll(root+"/devices/virtual/misc/kvm", 0o755) }
	for _, tt := range []struct {
		name, cpuinfo string
		prepare       func(string)
		want          CPU
	}{
		{"with KVM", epyc, kvm, CPU{"AMD EPYC 7352 24-Core Processor", "svm", "on", 43, false}},
		{"KVM not loaded", epyc, nil, CPU{"AMD EPYC 7352 24-Core Processor", "svm", "unknown", 43, false}},
		{"off in the firmware", strings.ReplaceAll(epyc, "svm ", ""), nil, CPU{"AMD EPYC 7352 24-Core Processor", "none", "off", 43, false}},
		{"a guest of Intel", "flags : vmx hypervisor\n", nil, CPU{"", "vmx", "unknown", 0, true}},
		{"nothing known", "", nil, CPU{"", "unknown", "unknown", 0, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := pcitest.Write(t, pcitest.Seed("vfio-pci"))
			if tt.prepare != nil {
				tt.prepare(root)
			}
			h, err := Inspect(os.DirFS(root), fstest.MapFS{"cpuinfo": {Data: []byte(tt.cpuinfo)}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if h.CPU != tt.want {
				t.Errorf("CPU %+v, want %+v", h.CPU, tt.want)
			}
			if len(h.GPUs) != 6 {
				t.Errorf("%d GPUs, want 6", len(h.GPUs))
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	root := pcitest.Write(t, pcitest.ACSOverride())
	proc := fstest.MapFS{"cmdline": {Data: []byte("root=/dev/sda1 amd_iommu=on iommu=pt pcie_acs_override=downstream,multifunction vfio_iommu_type1.allow_unsafe_interrupts=1\n")}}
	h, err := Inspect(os.DirFS(root), proc, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"amd_iommu=on", "pcie_acs_override", "inject interrupts"} {
		if !slices.ContainsFunc(h.Warnings, func(w string) bool { return strings.Contains(w, word) }) {
			t.Errorf("no warning about %s in %q", word, h.Warnings)
		}
	}
	if len(h.Warnings) != 3 {
		t.Errorf("warnings %q, want three", h.Warnings)
	}
}
