package libvirt

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// golden compares what we write with a file, and hands it to a checker where
// the machine has it.
func golden(t *testing.T, name, got string, checker ...string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); -update writes it anew:\n%s", path, diff)
	}
	if len(checker) == 0 {
		return
	}
	program, err := exec.LookPath(checker[0])
	if err != nil {
		t.Logf("not checked: no %s here", checker[0])
		return
	}
	args := append([]string{path}, checker[1:]...)
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", checker[0], err, out)
	}
}

func exampleConfig(t *testing.T, six bool) Config {
	t.Helper()
	c := Config{Name: "local", Owner: "o-1", Dir: "/srv/vms", Network: Network{
		CIDR: prefix("192.168.77.0/28"), MTU: 1400, AgentPort: 8441,
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, OpenRanges: []netip.Prefix{prefix("10.1.0.0/16"), prefix("fd01::/64")},
	}}
	if six {
		c.Network.CIDR6 = prefix("fd77::/64")
	}
	c, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func exampleMachine(t *testing.T) machine {
	c := exampleConfig(t, false)
	return machine{
		name: "gs-1", uuid: "6f1c2b1e-8f64-4d0a-9a51-0a6a1c3f7e11", owner: "o-1", created: time.Unix(1700000000, 0),
		vcpus: 2, memoryMiB: 2048, image: ImageSource{Disk: "/srv/i/root.qcow2", Kernel: "/srv/i/vmlinuz", Initrd: "/srv/i/initrd.img", Cmdline: "root=/dev/vda console=ttyS0 a=\"<&>\""},
		disk: "/srv/vms/vms/gs-1/disk.qcow2", drive: "/srv/vms/vms/gs-1/config.iso", console: c.console("gs-1"),
		net: c.Network, port: newPool(c.Network, c.addressesDir()).at(3),
	}
}

func TestDomainXML(t *testing.T) {
	m := exampleMachine(t)
	golden(t, "domain-direct-tcg.xml", text(m.domain()), "virt-xml-validate", "domain")
	m.kvm, m.devices = true, []string{"0000:3b:00.0", "0000:3b:00.1"}
	m.image = ImageSource{Disk: "/srv/i/root.raw", Format: "raw"}
	m.node, m.hugePages = numaNode{1, "24-47,72-95"}, true
	m.roms = map[string]string{"0000:3b:00.0": "/etc/gpuserver/v100.rom"}
	golden(t, "domain-disk-kvm.xml", text(m.domain()), "virt-xml-validate", "domain")
}

func TestNetworkXML(t *testing.T) {
	for name, six := range map[string]bool{"4": false, "6": true} {
		c := exampleConfig(t, six)
		p := newPool(c.Network, c.addressesDir())
		golden(t, "network-"+name+".xml", text(describeNetwork(p, c.Owner)), "virt-xml-validate", "network")
		golden(t, "filter-"+name+".xml", text(describeFilter(c.Network, "", 0)), "virt-xml-validate", "nwfilter")
		golden(t, "rules-"+name+".nft", rules(p))
	}
}

func TestTagIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := tag{Owner: rapid.StringMatching(`[ -~ä]{1,40}`).Draw(t, "owner"), Config: rapid.StringMatching(`[a-z0-9]{0,8}`).Draw(t, "config")}
		got := readTag(text(domainXML{Tag: want}))
		if got.Owner != want.Owner || got.Config != want.Config {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
	for _, foreign := range []string{"", "<", "<domain/>", "<domain><metadata><gpuserver owner='x'/></metadata></domain>"} {
		if got := readTag(foreign); got.Owner != "" {
			t.Errorf("readTag(%q) = %+v, want none", foreign, got)
		}
	}
}

func TestAddressesAreDistinctAndInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(8, 29).Draw(t, "bits")
		n := Network{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 255).Draw(t, "b")), 77, 0}), bits).Masked(), Bridge: rapid.StringMatching(`[a-z][a-z0-9.-]{0,14}`).Draw(t, "bridge")}
		p := newPool(n, "")
		seen := map[string]bool{n.Gateway().String(): true, n.CIDR.Addr().String(): true}
		for _, a := range p.all() {
			if seen[a.ip.String()] || seen[a.mac.String()] || seen[a.tap] || !n.CIDR.Contains(a.ip) || n.CIDR.Contains(a.ip.Next()) == false {
				t.Fatalf("%+v is used twice, or is outside %v or its broadcast address", a, n.CIDR)
			}
			if len(a.tap) > 15 || a.mac[0]&1 != 0 {
				t.Fatalf("%+v cannot be on a port", a)
			}
			seen[a.ip.String()], seen[a.mac.String()], seen[a.tap] = true, true, true
		}
	})
}

func TestAddressesAreClaimedOnce(t *testing.T) {
	p := newPool(Network{CIDR: prefix("192.168.77.0/29"), Bridge: "b"}, t.TempDir())
	claimed := map[string]string{}
	for i := range p.size {
		vm := string(rune('a' + i))
		a, err := p.claim(vm)
		if err != nil {
			t.Fatal(err)
		}
		if other := claimed[a.ip.String()]; other != "" {
			t.Errorf("%s and %s have the address %s", vm, other, a.ip)
		}
		claimed[a.ip.String()] = vm
	}
	if _, err := p.claim("more"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("one more: %v, want an error that says that all are in use", err)
	}
	_, b, err := p.held("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.release("b"); err != nil {
		t.Fatal(err)
	}
	if again, err := p.claim("new"); err != nil || again.ip != b.ip {
		t.Errorf("after a release: %v, %v, want %v", again.ip, err, b.ip)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for what, spoil := range map[string]func(*Config){
		"name": func(c *Config) { c.Name = "" }, "owner": func(c *Config) { c.Owner = "" }, "dir": func(c *Config) { c.Dir = "vms" },
		"accel": func(c *Config) { c.Accel = "xen" }, "bridge": func(c *Config) { c.Network.Bridge = "a-name-far-too-long" },
		"cidr": func(c *Config) { c.Network.CIDR = prefix("192.168.0.0/30") }, "cidr6": func(c *Config) { c.Network.CIDR6 = prefix("fd77::/48") },
		"mtu":   func(c *Config) { c.Network.MTU = 68 },
		"image": func(c *Config) { c.Images = map[string]ImageSource{"x": {Disk: "/x", Format: "vmdk"}} },
	} {
		c := Config{Name: "local", Owner: "o"}
		spoil(&c)
		if _, err := c.withDefaults(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("a wrong %s: error %v, want one that names it", what, err)
		}
	}
}

func FuzzQcow2Size(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 24)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, header []byte) {
		if size, err := qcow2Size(header); err == nil && size < 0 {
			t.Errorf("a disk of %d bytes", size)
		}
	})
}
