package libvirt

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/cloudtest"
)

// conformer says what its config drive held, writes to its console what it is
// sent on port 998, and powers off once somebody connects to port 999.
const conformer = `
drive=/drive/openstack/latest
echo "USER $(base64 $drive/user_data | tr -d '\n') ENDUSER"
echo "META $(base64 $drive/meta_data.json | tr -d '\n') ENDMETA"
static ADDRESS GATEWAY 1420
stty -F /dev/ttyS0 raw
(while :; do nc -l -p 998 >/dev/ttyS0; done) &
nc -l -p 999
`

func TestConformance(t *testing.T) {
	cfg := newPlace(t)
	script := strings.ReplaceAll(conformer, "GATEWAY", cfg.Network.Gateway().String())
	// Each VM has an address of its own; the guest takes it from the drive.
	script = strings.ReplaceAll(script, "ADDRESS", `$(sed 's/.*"ip_address":"\([0-9.]*\)".*/\1/' $drive/network_data.json)/24`)
	s := spec(cfg, "", script)
	cloudtest.Run(t, func(t *testing.T) cloud.Driver {
		d, err := Open(t.Context(), cfg, logger(t))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, cloudtest.Options{
		Spec: s, Limit: limit, HasGuest: true,
		Stop: func(t *testing.T, name string) { dial(t, cfg, name, "999").Close() },
		Write: func(t *testing.T, name string, text []byte) {
			c := dial(t, cfg, name, "998")
			defer c.Close()
			if _, err := c.Write(text); err != nil {
				t.Fatal(err)
			}
		},
		LeavePart: func(t *testing.T, name string) {
			if err := os.Mkdir(cfg.vmDir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(cfg.vmDir(name), diskFile), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		AddForeign: addForeign,
		Handed:     func(t *testing.T, name string) ([]byte, map[string]string) { return handed(t, cfg, name) },
		RotateConsole: func(t *testing.T, name string) {
			writeConsole(t, name, 10<<20)
		},
	})
}

// dial connects to a VM once its guest listens.
func dial(t testing.TB, cfg Config, vm, port string) net.Conn {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	_, a, err := newPool(cfg.Network, cfg.addressesDir()).held(vm)
	if err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	eventually(t, func() (err error) {
		conn, err = net.DialTimeout("tcp", net.JoinHostPort(a.ip.String(), port), 5*time.Second)
		return err
	})
	return conn
}

// addForeign makes a domain without our tag.
func addForeign(t *testing.T, name string) {
	host(t, fmt.Sprintf(`virsh -q create /dev/stdin <<'XML'
<domain type='qemu'><name>%s</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>
XML`, name))
	t.Cleanup(func() { host(t, "virsh -q destroy "+name) })
}

// handed reads what a conformer says of its config drive.
func handed(t *testing.T, cfg Config, name string) ([]byte, map[string]string) {
	d := open(t, cfg)
	all := consoleUntil(t, d, name, "ENDMETA")
	part := func(from, to string) []byte {
		_, rest, _ := strings.Cut(all, from+" ")
		encoded, _, _ := strings.Cut(rest, " "+to)
		b, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var meta struct {
		Name string            `json:"name"`
		Meta map[string]string `json:"meta"`
	}
	if err := json.Unmarshal(part("META", "ENDMETA"), &meta); err != nil {
		t.Fatal(err)
	}
	if meta.Name != name {
		t.Errorf("the guest's name is %q, want %q", meta.Name, name)
	}
	return part("USER", "ENDUSER"), meta.Meta
}

// writeConsole writes n bytes to a VM's console in QEMU's place, into the very
// pipe that QEMU writes to: an emulated serial port takes minutes for what this
// does in a second.
func writeConsole(t testing.TB, vm string, n int) {
	t.Helper()
	pid := strings.TrimSpace(host(t, "cat /run/libvirt/qemu/"+vm+".pid"))
	pipe, err := os.OpenFile(consolePipe(t, pid), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	line := strings.Repeat("x", 79) + "\n"
	for block := strings.Repeat(line, 1000); n > 0; n -= len(block) {
		if _, err := io.WriteString(pipe, block); err != nil {
			t.Fatal(err)
		}
	}
}

// consolePipe finds the pipe that virtlogd gave a QEMU: the one that virtlogd
// has too.
func consolePipe(t testing.TB, pid string) string {
	t.Helper()
	log := strings.TrimSpace(host(t, "pgrep -x virtlogd"))
	theirs := strings.Fields(host(t, "readlink /proc/"+log+"/fd/* | grep pipe: | sort -u"))
	fds, err := filepath.Glob("/proc/" + pid + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	// The highest is the console's; the lowest are QEMU's own output.
	found := ""
	for _, fd := range fds {
		target, _ := os.Readlink(fd) // closed since: not it
		for _, p := range theirs {
			if p == target && filepath.Base(fd) != "1" && filepath.Base(fd) != "2" {
				found = fd
			}
		}
	}
	if found == "" {
		t.Fatalf("QEMU %s shares no pipe with virtlogd %s", pid, log)
	}
	return found
}
