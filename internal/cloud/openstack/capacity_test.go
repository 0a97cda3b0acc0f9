package openstack

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

func capacity(t *testing.T, d *Driver) gpuserver.Host {
	t.Helper()
	hosts, err := d.Capacity(t.Context())
	if err != nil || len(hosts) != 1 {
		t.Fatalf("Capacity gives %+v, %v", hosts, err)
	}
	return hosts[0]
}

// usable counts the slots that VMs may have.
func usable(h gpuserver.Host) (n int) {
	for _, s := range h.Slots {
		if s.Out == "" {
			n++
		}
	}
	return n
}

// The room is what the quotas leave, without what others in the project use.
func TestCapacityIsTheQuotas(t *testing.T) {
	s := newStandin(t)
	s.quota = map[string]int64{"maxTotalInstances": 10, "maxTotalCores": 40, "maxTotalRAMSize": 51200}
	cfg := s.config()
	d := open(t, cfg)
	want := gpuserver.Host{Cloud: "stack", Name: "stack", Bound: "the project's quotas", VCPUs: 40, MemoryMiB: 51200, DiskGiB: manyGiB, MaxVMs: 10}
	check := func(what string, cards int) {
		t.Helper()
		h := capacity(t, d)
		if n := usable(h); n != cards || len(h.Slots) != 4 {
			t.Errorf("%s: %d of %d cards may be had, want %d of 4", what, n, len(h.Slots), cards)
		}
		h.Slots = nil
		if diff := cmp.Diff(want, h); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("nothing there", 4)
	ours := spec(cfg, "vm-1")
	ours.Flavor = gpuFlavor
	if _, err := d.Create(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	check("one of ours", 4)
	s.do(func() {
		s.machines = append(s.machines, &machine{ID: s.id("b"), Name: "stranger", Status: "ACTIVE", Flavor: "gpu", Meta: map[string]string{}, Created: s.now(), Updated: s.now()})
	})
	want.VCPUs, want.MemoryMiB, want.MaxVMs = 38, 50176, 9
	check("a stranger's", 3)
	s.do(func() { s.quota["maxTotalInstances"] = 0 })
	want.MaxVMs = 1 // ours stays
	check("no server more", 3)
	s.do(func() {
		s.quota = map[string]int64{"maxTotalInstances": -1, "maxTotalCores": -1, "maxTotalRAMSize": -1}
	})
	want.VCPUs, want.MemoryMiB, want.MaxVMs = manyVCPUs, manyMiB, 0
	check("no quotas", 3)
	if err := d.Delete(t.Context(), ours.Name); err != nil {
		t.Fatal(err)
	}
	s.do(func() {
		s.quota = map[string]int64{"maxTotalInstances": 0, "maxTotalCores": 40, "maxTotalRAMSize": 51200}
	})
	want = gpuserver.Host{Cloud: "stack", Name: "stack", Bound: "the project's quota of servers", DiskGiB: manyGiB}
	check("no servers at all", 3)
}

// Placement knows of cards that servers of other projects have.
func TestCardsOfPlacement(t *testing.T) {
	s := newStandin(t)
	s.place = map[string]int{"CUSTOM_V100": 1}
	cfg := s.config()
	cfg.GPUs = []GPUs{{Model: "tesla-v100", Count: 4, Class: "CUSTOM_V100"}, {Model: "a100", Class: "CUSTOM_A100"}}
	d := open(t, cfg)
	vm := spec(cfg, "vm-1")
	vm.Flavor = gpuFlavor
	if _, err := d.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	if h := capacity(t, d); usable(h) != 2 || len(h.Slots) != 4 {
		t.Errorf("with one of ours and one free: %+v", h.Slots)
	}
	s.do(func() { s.place["CUSTOM_A100"] = 2 })
	h := capacity(t, d)
	if usable(h) != 4 || len(h.Slots) != 6 || h.Slots[5].Cards[0].Model != "a100" || h.Slots[5].Group != 5 {
		t.Errorf("with two more that are not declared: %+v", h.Slots)
	}
	s.do(func() { s.place = nil }) // the credential may not ask
	if h := capacity(t, d); usable(h) != 4 || len(h.Slots) != 4 {
		t.Errorf("without Placement: %+v", h.Slots)
	}
}

// Where limits are unified, a limit of disks that is not set counts as 0 until
// Nova 2025.1.
func TestUnifiedLimits(t *testing.T) {
	limits := map[string]int64{"servers": 10, "class:VCPU": 30, "class:MEMORY_MB": 51200}
	for _, tt := range []struct {
		name   string
		change func(*standin)
		want   int64
	}{
		{"not unified", func(s *standin) { s.unified = nil }, manyGiB},
		{"registered, but Nova has quotas of its own", func(s *standin) { s.quota["maxTotalCores"] = 20 }, manyGiB},
		{"disk not set", func(*standin) {}, 0},
		{"disk not set, Nova 2025.1", func(s *standin) { s.newest = "2.100" }, manyGiB},
		{"disk registered", func(s *standin) { s.unified["class:DISK_GB"] = 500 }, 500},
		{"the project's own", func(s *standin) {
			s.unified["class:DISK_GB"], s.unified["class:VCPU"] = 500, 1
			s.owned = map[string]int64{"class:DISK_GB": 700, "class:VCPU": 30}
		}, 700},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStandin(t)
			s.quota = map[string]int64{"maxTotalInstances": 10, "maxTotalCores": 30, "maxTotalRAMSize": 51200}
			s.unified = map[string]int64{}
			for k, v := range limits {
				s.unified[k] = v
			}
			tt.change(s)
			if got := capacity(t, open(t, s.config())).DiskGiB; got != tt.want {
				t.Errorf("%d GiB of disk, want %d", got, tt.want)
			}
		})
	}
}

// The quota of volumes bounds VMs that boot from one.
func TestVolumeQuota(t *testing.T) {
	s := newStandin(t)
	s.quota["gigabytes"] = 100
	cfg := s.config()
	cfg.BootFromVolume = true
	d := open(t, cfg)
	for range 2 {
		if h := capacity(t, d); h.DiskGiB != 100 || h.MaxVMs != 50 {
			t.Errorf("capacity %+v, want 100 GiB and 50 VMs", h)
		}
		if s.alive() == 0 {
			create(t, d, "vm-1")
		}
	}
}

// Nova gives the end of a console only; offsets go on all the same.
func TestConsoleMovesOn(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	m := s.find("vm-1")
	read := func(from int64) string {
		t.Helper()
		r, err := d.Console(t.Context(), "vm-1", from, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	line := func(n int, what string) string { return strings.Repeat(what, n) }
	all := line(3000, "a") + line(3000, "b")
	show := func(from int) { s.do(func() { m.Console = all[from:] }) }
	show(0)
	read(0)
	all += line(2000, "c")
	show(0)
	if got := read(6000); got != line(2000, "c") {
		t.Errorf("after it grew: %.40q…", got)
	}
	all += line(2000, "d")
	show(4000) // the oldest 4000 bytes are gone
	if got := read(8000); got != line(2000, "d") {
		t.Errorf("after it moved on: %d bytes %.40q…", len(got), got)
	}
	if got := read(0); got != all[4000:] {
		t.Errorf("from an offset that is gone: %d bytes", len(got))
	}
	all += line(9000, "e")
	show(12000) // nothing of what was seen is left
	if got := read(10000); got != all[12000:] {
		t.Errorf("after it moved on far: %d bytes", len(got))
	}
}
