package guest

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuserver/internal/gate"
)

func TestNetworkFiles(t *testing.T) {
	const data = `{
		"links": [{"id": "a", "ethernet_mac_address": "52:54:00:AA:bb:01", "mtu": 1442}, {"id": "b", "ethernet_mac_address": "52:54:00:aa:bb:02"}, {"id": "c", "ethernet_mac_address": "none"}],
		"networks": [
			{"link": "a", "type": "ipv4", "ip_address": "192.168.77.10", "netmask": "255.255.255.0", "routes": [
				{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "192.168.77.1"}, {"network": "169.254.169.254", "netmask": "255.255.255.255", "gateway": "192.168.77.2"},
				{"network": "10.0.0.0", "netmask": "255.0.255.0", "gateway": "192.168.77.3"}]},
			{"link": "a", "type": "ipv6", "ip_address": "fd00::5/64", "gateway": "fd00::1"},
			{"link": "b", "type": "ipv4_dhcp"}, {"link": "b", "type": "ipv6_slaac"}],
		"services": [{"type": "dns", "address": "192.168.77.1"}, {"type": "dns", "address": "x\n[Evil]"}]}`
	var n networkData
	if err := json.Unmarshal([]byte(data), &n); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"05-gpuserver-0.network": `[Match]
MACAddress=52:54:00:aa:bb:01

[Link]
MTUBytes=1442

[Network]
Address=192.168.77.10/24
Address=fd00::5/64
DNS=192.168.77.1

[Route]
Destination=0.0.0.0/0
Gateway=192.168.77.1

[Route]
Destination=169.254.169.254/32
Gateway=192.168.77.2

[Route]
Destination=::/0
Gateway=fd00::1
`,
		"05-gpuserver-1.network": `[Match]
MACAddress=52:54:00:aa:bb:02

[Network]
DHCP=ipv4
IPv6AcceptRA=yes
DNS=192.168.77.1
`,
	}
	if diff := cmp.Diff(want, n.files(0)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	want = map[string]string{"05-gpuserver.network": "[Match]\nType=ether\n\n[Link]\nMTUBytes=1400\n\n[Network]\nDHCP=yes\n"}
	if diff := cmp.Diff(want, (*networkData)(nil).files(1400)); diff != "" {
		t.Errorf("without network data (-want +got):\n%s", diff)
	}
}

func TestLabelled(t *testing.T) {
	iso := func(label string) []byte {
		b := make([]byte, 16*2048+2048)
		copy(b[16*2048:], "\x01CD001")
		copy(b[16*2048+40:], append([]byte(label), bytes.Repeat([]byte(" "), 32-len(label))...))
		return b
	}
	fat := make([]byte, 512)
	copy(fat[43:], "CONFIG-2   ")
	fat[510], fat[511] = 0x55, 0xAA
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"iso": {iso("config-2"), "iso9660"}, "upper case": {iso("CONFIG-2"), "iso9660"}, "fat": {fat, "vfat"},
		"another": {iso("cidata"), ""}, "longer": {iso("config-22"), ""}, "short": {[]byte("x"), ""}, "empty": {nil, ""},
	} {
		path := filepath.Join(t.TempDir(), "device")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := labelled(path, driveLabel); got != c.want {
			t.Errorf("%s: %q, expected %q", name, got, c.want)
		}
	}
	if got := labelled("/nonexistent", driveLabel); got != "" {
		t.Errorf("no device: %q", got)
	}
}

func TestMemoryLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Int64Range(64<<20, 4<<40).Draw(t, "total")
		reserve := rapid.Int64Range(0, 1<<20).Draw(t, "reserve")
		limit := memoryLimit(total, reserve)
		if limit > total || limit < total/2-4096 || limit%4096 != 0 {
			t.Fatalf("limit %d of %d", limit, total)
		}
		if left := total - limit; left < reserve<<20 && limit > total/2 {
			t.Fatalf("%d bytes are left, expected %d MiB", left, reserve)
		}
	})
}

// TestLookReadsCgroup also covers kernels without memory.peak, and that a peak
// never falls.
func TestLookReadsCgroup(t *testing.T) {
	a := newAgent(Options{Root: t.TempDir(), Unprivileged: true, Log: slog.New(slog.DiscardHandler)})
	slice := a.path(jobSlice)
	if err := os.MkdirAll(slice, 0o755); err != nil {
		t.Fatal(err)
	}
	s := newStatus(a)
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(slice, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("memory.current", "734003200\n")
	write("memory.events", "low 0\nhigh 0\nmax 20\noom 2\noom_kill 3\noom_group_kill 0\n")
	s.look()
	if s.beat.MemPeakMiB != 700 || s.beat.OOMKills != 3 || s.beat.DiskPeakMiB == 0 {
		t.Errorf("%+v", s.beat)
	}
	write("memory.peak", "104857600\n")
	write("memory.events", "oom_kill 0\n")
	s.look()
	if s.beat.MemPeakMiB != 700 || s.beat.OOMKills != 3 {
		t.Errorf("after a fall: %+v", s.beat)
	}
}

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		beat Heartbeat
		exit jobExit
		want string
	}{
		"nothing": {want: ""},
		"memory":  {beat: Heartbeat{OOMKills: 1}, want: VerdictMemory},
		"disk":    {beat: Heartbeat{DiskFull: true}, want: VerdictDisk},
		"both":    {beat: Heartbeat{OOMKills: 1, DiskFull: true}, want: VerdictMemory},
		"timeout": {beat: Heartbeat{OOMKills: 1}, exit: jobExit{timedOut: true}, want: VerdictTimeout},
	} {
		a := newAgent(Options{Root: t.TempDir(), Unprivileged: true, Log: slog.New(slog.DiscardHandler)})
		a.report = newReporter(a)
		a.status = newStatus(a)
		a.status.beat.OOMKills, a.status.beat.DiskFull = c.beat.OOMKills, c.beat.DiskFull
		full := func() bool { _, full := diskUse(a.path("/")); return full }
		if full() {
			t.Skip("the test's own disk is full")
		}
		a.status.ended(c.exit, nil)
		if a.status.beat.Verdict != c.want {
			t.Errorf("%s: verdict %q, expected %q", name, a.status.beat.Verdict, c.want)
		}
	}
}

func TestBoundText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := string(rapid.SliceOf(rapid.Byte()).Draw(t, "in"))
		n := rapid.IntRange(0, 40).Draw(t, "n")
		got := gate.Clip(in, n)
		if len(got) > n || gate.Clip(got, n) != got {
			t.Fatalf("%q has %d bytes", got, len(got))
		}
	})
}
