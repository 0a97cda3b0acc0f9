package libvirt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/pci/pcitest"
)

// procWith gives a /proc in which a process has a file open.
func procWith(t *testing.T, pid int, comm, cmdline, open string) string {
	t.Helper()
	proc := t.TempDir()
	dir := filepath.Join(proc, fmt.Sprint(pid))
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "fd"), 0o755),
		os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "cmdline"), []byte(cmdline), 0o600),
		os.Symlink("socket:[1]", filepath.Join(dir, "fd/3")),
		os.Symlink(open, filepath.Join(dir, "fd/4")),
	)
	if err != nil {
		t.Fatal(err)
	}
	return proc
}

// TestOccupiedSaysForWhom takes the words of libvirt and QEMU for what they are.
func TestOccupiedSaysForWhom(t *testing.T) {
	inv := inventory(t, pcitest.Seed("vfio-pci"))
	d := &Driver{cfg: Config{Proc: procWith(t, 4711, "dpdk", "dpdk\x00-n\x004", "/dev/vfio/19")}}
	for _, tt := range []struct{ said, want string }{
		{"Requested operation is not valid: PCI device 0000:27:00.0 is in use by driver QEMU, domain holder", "0000:27:00.0 cannot be given to a VM now: the VM holder has it;"},
		{"Requested operation is not valid: PCI device 0000:28:00.0 is in use by driver QEMU, domain holder", "the VM holder has 0000:28:00.0, which is in the same IOMMU group"},
		{"internal error: qemu: vfio 0000:27:00.0: failed to open /dev/vfio/19: Device or resource busy", "IOMMU group 19 is held by process 4711 (dpdk)"},
		{"vfio 0000:27:00.0: group 19 is not viable. Please ensure all devices", "a driver of this host took another device of IOMMU group 19"},
		{"Failed to trigger a probe for PCI device '0000:27:00.0': Device or resource busy", "vfio-pci does not take it (Failed to trigger a probe for PCI device '0000:27:00.0)"},
		{"Failed to add driver 'vfio-pci' to driver_override  interface of PCI device '0000:27:00.0': No space left on device", "vfio-pci does not take it"},
		{"vfio 0000:27:00.0: error getting device from group 19: No such device\nVerify all devices in group 19 are bound to vfio-<bus> or pci-stub and not already in use", "vfio-pci does not take it (Verify all devices in group 19 are bound)"},
		{"internal error: Failed to reset PCI device: PCI device 0000:27:00.0 is not assignable", "vfio-pci does not take it"},
	} {
		err := d.occupied(errors.New(tt.said), inv, []string{"0000:27:00.0"})
		if gpuserver.KindOf(err) != gpuserver.KindCapacity || !strings.Contains(gpuserver.PublicText(err), tt.want) {
			t.Errorf("%q is %v (%s), want %q", tt.said, gpuserver.PublicText(err), gpuserver.KindOf(err), tt.want)
		}
	}
	if err := d.occupied(errors.New("out of memory"), inv, []string{"0000:27:00.0"}); err != nil {
		t.Errorf("another error is %v", err)
	}
}

// TestSlotOfAStranger is out; that of a VM of ours is not.
func TestSlotOfAStranger(t *testing.T) {
	qemu := "/usr/bin/qemu-system-x86_64\x00-name\x00guest=ours-1,debug-threads=on\x00-S"
	for _, tt := range []struct{ name, comm, cmdline, vm, want string }{
		{"a stranger", "dpdk", "dpdk", "", "process 4711 (dpdk)"},
		{"somebody's VM", "qemu-system-x86", qemu, "", "the VM ours-1"},
		{"a VM of ours", "qemu-system-x86", qemu, "ours-1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &Driver{cfg: Config{Dir: t.TempDir(), Owner: "me", Proc: procWith(t, 4711, tt.comm, tt.cmdline, "/dev/vfio/32")}}
			if tt.vm != "" {
				if err := errors.Join(os.MkdirAll(d.cfg.vmDir(tt.vm), 0o755), d.cfg.writeRecord(tt.vm, record{Owner: "me"})); err != nil {
					t.Fatal(err)
				}
			}
			slots := slotsOf(inventory(t, pcitest.Seed("vfio-pci")), map[string]string{"10de:1db4": "tesla-v100"})
			d.occupiedSlots(slots)
			for _, s := range slots {
				if want := tt.want; s.Group != 32 && s.Out != "" || s.Group == 32 && (s.Out != "") != (want != "") || s.Group == 32 && !strings.Contains(s.Out, want) {
					t.Errorf("group %d is out: %q, want %q", s.Group, s.Out, want)
				}
			}
		})
	}
}
