//go:build vfio

package vfio

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/libvirt"
	"gpuserver/internal/pci"
)

// The cards' addresses are the seed's; the groups' numbers are the machine's.
var pairs = [][]string{{"0000:27:00.0", "0000:28:00.0"}, {"0000:44:00.0"}, {"0000:a3:00.0"}, {"0000:c3:00.0", "0000:c4:00.0"}}

// TestInspect shows six cards in the seed's four groups, all ready.
func TestInspect(t *testing.T) {
	var h pci.Inventory
	if err := json.Unmarshal([]byte(command(t, shared+"/gpuserver", "host", "inspect", "--output", "json")), &h); err != nil {
		t.Fatal(err)
	}
	var got [][]string
	for _, s := range h.Slots {
		got = append(got, s.GPUs)
		if !s.Usable || !s.Ready {
			t.Errorf("slot %d: usable %v, ready %v: %s", s.Group, s.Usable, s.Ready, s.Why)
		}
	}
	slices.SortFunc(got, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	if d := cmp.Diff(pairs, got); d != "" {
		t.Errorf("slots (-want +got):\n%s", d)
	}
	if !h.IOMMU.Enabled || h.IOMMU.Kind != pci.KindIntel || len(h.GPUs) != 6 || len(h.Problems) > 0 {
		t.Errorf("IOMMU %+v, %d GPUs, problems %v", h.IOMMU, len(h.GPUs), h.Problems)
	}
}

// TestCaptureIsReplayed packs the machine, and reads the archive like it.
func TestCaptureIsReplayed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "machine.tar")
	want := command(t, shared+"/gpuserver", "host", "inspect", "--output", "json", "--capture", file)
	got := command(t, shared+"/gpuserver", "host", "inspect", "--output", "json", "--sysfs", file)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the machine and its capture differ:\n%s", d)
	}
}

// TestRenderNova names the seed's four addresses.
func TestRenderNova(t *testing.T) {
	out := command(t, shared+"/gpuserver", "host", "render", "nova")
	want := `device_spec = [{"address":"0000:27:00.0"},{"address":"0000:44:00.0"},{"address":"0000:a3:00.0"},{"address":"0000:c3:00.0"}]`
	if !strings.Contains(out, want) {
		t.Errorf("no %s in:\n%s", want, out)
	}
}

// TestHostCheck finds nothing that stands between the machine and VMs with its
// cards; what it says of what a laboratory cannot have (KVM) is for the service's
// configuration.
func TestHostCheck(t *testing.T) {
	var got struct {
		Findings []struct{ Name, Level, Seen string }
	}
	out, err := exec.Command(shared+"/gpuserver", "host", "check", "--output", "json").Output()
	if e, exited := errors.AsType[*exec.ExitError](err); err != nil && (!exited || e.ExitCode() != 1) {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	levels := map[string]string{}
	for _, f := range got.Findings {
		levels[f.Name] = f.Level
		t.Logf("%s %s: %s", f.Level, f.Name, f.Seen)
	}
	for _, name := range []string{"iommu", "interrupts", "parameters", "cards", "vfio", "drivers", "groups", "addresses", "locked-memory", "libvirt"} {
		if levels[name] != "pass" {
			t.Errorf("%s is %q, want pass", name, levels[name])
		}
	}
}

// TestCapacity tells the slots with their cards.
func TestCapacity(t *testing.T) {
	hosts, err := open(t).Capacity(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range hosts[0].Slots {
		n += len(s.Cards)
		if s.Out != "" || s.Cards[0].Model != "tesla-v100" {
			t.Errorf("slot %+v", s)
		}
	}
	if len(hosts[0].Slots) != 4 || n != 6 {
		t.Errorf("%d slots with %d cards, want 4 with 6", len(hosts[0].Slots), n)
	}
}

// use uses each card: its registers, a computation, and memory that it reads and
// writes by itself.
const use = `
n=0
for d in /sys/bus/pci/devices/*; do
	[ "$(cat $d/vendor)" = 0x10de ] || continue
	n=$((n + 1))
	echo 1 >$d/enable
	printf '\006' | dd of=$d/config bs=1 seek=4 conv=notrunc 2>/dev/null
	base=$(head -n 1 $d/resource | cut -d' ' -f1)
	devmem $((base + 4)) 32 0x12345678
	echo "CARD $n inverse $(devmem $((base + 4)) 32)"
	devmem $((base + 8)) 32 10
	while [ $(($(devmem $((base + 0x20)) 32) & 1)) = 1 ]; do :; done
	echo "CARD $n factorial $(devmem $((base + 8)) 32)"
	copy() {
		devmem $((base + 0x80)) 64 $1
		devmem $((base + 0x88)) 64 $2
		devmem $((base + 0x90)) 64 64
		devmem $((base + 0x98)) 64 $3
		while [ $(($(devmem $((base + 0x98)) 64) & 1)) = 1 ]; do :; done
	}
	devmem 0x8000000 32 $((0xcafe0000 + n))
	devmem 0x8100000 32 0
	copy 0x8000000 0x40000 1
	copy 0x40000 0x8100000 3
	echo "CARD $n memory $(devmem 0x8100000 32)"
done
echo "CARDS $n"
`

func used(t *testing.T, text string, cards int) {
	t.Helper()
	for n := 1; n <= cards; n++ {
		for _, want := range []string{"inverse 0xEDCBA987", "factorial 0x00375F00", fmt.Sprintf("memory 0xCAFE%04d", n)} {
			if !strings.Contains(text, fmt.Sprintf("CARD %d %s", n, want)) {
				t.Errorf("card %d does not say %q:\n%s", n, want, text)
			}
		}
	}
	if !strings.Contains(text, fmt.Sprintf("CARDS %d", cards)) {
		t.Errorf("it has not %d cards:\n%s", cards, text)
	}
}

// wantCapacity checks that a VM could not be made for want of its card, that the
// reason has some words, and that nothing is left of it.
func wantCapacity(t *testing.T, d *libvirt.Driver, s cloud.Spec, words ...string) {
	t.Helper()
	_, err := d.Create(bounded(t), s)
	if gpuserver.KindOf(err) != gpuserver.KindCapacity {
		t.Errorf("create %s: %v (%s), want KindCapacity", s.Name, err, gpuserver.KindOf(err))
	}
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("create %s: %v, want a reason with %q", s.Name, err, w)
		}
	}
	if _, err := d.Get(bounded(t), s.Name); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("something is left of %s: %v", s.Name, err)
	}
}

func TestPassthrough(t *testing.T) {
	d := open(t)
	t.Run("one card", func(t *testing.T) {
		create(t, d, spec("one", use, "0000:44:00.0"))
		used(t, console(t, d, "one", "GUEST: done"), 1)
	})
	t.Run("a pair", func(t *testing.T) {
		create(t, d, spec("pair", use, "0000:27:00.0", "0000:28:00.0"))
		used(t, console(t, d, "pair", "GUEST: done"), 2)
	})
	t.Run("four VMs at once", func(t *testing.T) {
		for _, group := range pairs {
			create(t, d, spec("four-"+group[0][5:7], use, group[0]))
		}
		for _, group := range pairs {
			used(t, console(t, d, "four-"+group[0][5:7], "GUEST: done"), 1)
		}
	})
	t.Run("a neighbour with a driver", func(t *testing.T) {
		bind(t, "0000:28:00.0", "uio_pci_generic")
		wantCapacity(t, d, spec("viable", use, "0000:27:00.0"), "0000:28:00.0", "uio_pci_generic")
	})
	t.Run("a neighbour without a driver", func(t *testing.T) {
		bind(t, "0000:28:00.0", "")
		create(t, d, spec("bare", use, "0000:27:00.0"))
		used(t, console(t, d, "bare", "GUEST: done"), 1)
	})
	t.Run("an occupied group", func(t *testing.T) {
		create(t, d, spec("holder", "sleep 100000", "0000:27:00.0"))
		console(t, d, "holder", "GUEST: up")
		wantCapacity(t, d, spec("second", use, "0000:28:00.0"), "holder")
		wantCapacity(t, d, spec("same", use, "0000:27:00.0"), "holder")
	})
	t.Run("a group that a stranger holds", func(t *testing.T) {
		stranger := exec.Command("sh", "-c", `exec sleep 100000 3<>/dev/vfio/"$(basename "$(readlink /sys/bus/pci/devices/0000:44:00.0/iommu_group)")"`)
		if err := stranger.Start(); err != nil {
			t.Fatal(err)
		}
		end := func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }
		defer end()
		out := func() (why string) {
			hosts, err := d.Capacity(bounded(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range hosts[0].Slots {
				why += s.Out
			}
			return why
		}
		eventually(t, "the group is out", func() string {
			if why := out(); !strings.Contains(why, "(sleep), which is no VM of ours") {
				return why
			}
			return ""
		})
		wantCapacity(t, d, spec("third", use, "0000:44:00.0"), "0000:44:00.0", "(sleep)")
		end()
		if why := out(); why != "" {
			t.Errorf("once the stranger left, a group is out: %s", why)
		}
	})
	t.Run("released at the end", func(t *testing.T) {
		for _, group := range pairs {
			for _, card := range group {
				if got := driver(card); got != "vfio-pci" {
					t.Errorf("%s is held by %q", card, got)
				}
			}
		}
		hosts, err := d.Capacity(bounded(t))
		if err != nil || len(hosts[0].Slots) != 4 {
			t.Fatalf("%v, %v", hosts, err)
		}
		for _, s := range hosts[0].Slots {
			if s.Out != "" {
				t.Errorf("group %d is out: %s", s.Group, s.Out)
			}
		}
		if text := command(t, "sh", "-c", "virsh -q list --all; ls /var/lib/gpuserver/vms; pgrep -af '[q]emu-system' || true"); strings.TrimSpace(text) != "" {
			t.Errorf("left behind:\n%s", text)
		}
	})
}

// TestDeadCard has a card fall off the bus, while a VM has it and before another
// one would get it. A dead card stays dead.
func TestDeadCard(t *testing.T) {
	d := open(t)
	create(t, d, spec("victim", `
until [ -e /tmp/never ]; do
	for d in /sys/bus/pci/devices/*; do
		[ "$(cat $d/vendor)" = 0x10de ] || continue
		echo 1 >$d/enable
		base=$(head -n 1 $d/resource | cut -d' ' -f1)
		echo "CARD says $(devmem $base 32)"
	done
	sleep 1
done
`, "0000:c4:00.0"))
	console(t, d, "victim", "CARD says 0x010000ED")
	dies(t, "0000:c4:00.0")
	console(t, d, "victim", "CARD says 0xFFFFFFFF")
	if err := d.Delete(bounded(t), "victim"); err != nil {
		t.Errorf("delete of the VM with the dead card: %v", err)
	}
	wantCapacity(t, d, spec("next", use, "0000:c4:00.0"), "0000:c4:00.0", "all ones")
	wantCapacity(t, d, spec("neighbour", use, "0000:c3:00.0"), "all ones")
	hosts, err := d.Capacity(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	out := 0
	for _, s := range hosts[0].Slots {
		if s.Out != "" {
			out++
			if !strings.Contains(s.Out, "0000:c4:00.0 answers all ones") {
				t.Errorf("group %d is out: %s", s.Group, s.Out)
			}
		}
	}
	if out != 1 {
		t.Errorf("%d groups are out, want the dead card's", out)
	}
	create(t, d, spec("others", use, "0000:a3:00.0"))
	used(t, console(t, d, "others", "GUEST: done"), 1)
}
