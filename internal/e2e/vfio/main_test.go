//go:build vfio

package vfio

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/libvirt"
	"gpuserver/internal/cloud/libvirt/libvirttest"
)

// shared is the folder that the laboratory hands to its machine.
var shared = os.Getenv("GPUSERVER_VFIO_LAB")

// limit is how long a test waits for what must happen: guests are emulated by an
// emulated processor.
const limit = 8 * time.Minute

var daemons *libvirttest.Daemons

func TestMain(m *testing.M) {
	if shared == "" {
		fmt.Fprintln(os.Stderr, "these tests run in the machine that scripts/vfio-lab makes")
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if daemons, err = libvirttest.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer daemons.Remove()
	return m.Run()
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until fn finds nothing to say.
func eventually(t *testing.T, what string, fn func() string) {
	t.Helper()
	var last string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if last = fn(); last == "" {
			return
		}
	}
	t.Fatalf("%s: not within %s: %s", what, limit, last)
}

// command runs a command of the machine and gives what it printed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

const owner = "lab"

// open opens the machine's libvirt as a cloud with cards.
func open(t *testing.T) *libvirt.Driver {
	t.Helper()
	d, err := libvirt.Open(bounded(t), libvirt.Config{
		Name: "local", Owner: owner, Dir: "/var/lib/gpuserver", Accel: libvirt.AccelKVM, Overcommit: 8,
		Models: map[string]string{"10de:1db4": "tesla-v100"},
		Images: map[string]libvirt.ImageSource{"guest": {
			Kernel: filepath.Join(shared, "guest/vmlinux"), Initrd: filepath.Join(shared, "guest/initrd.img"),
			// What is reserved is the cards' to read and write.
			Cmdline: "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check tsc=reliable mitigations=off memmap=2M$0x8000000",
		}},
		Network: libvirt.Network{CIDR: netip.MustParsePrefix("192.168.77.0/24"), AgentPort: 8441},
	}, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// spec is a VM with cards that runs a script.
func spec(name, script string, cards ...string) cloud.Spec {
	return cloud.Spec{
		Name: name, Owner: owner, Image: "guest", UserData: []byte(script), Devices: cards,
		Flavor: gpuserver.Flavor{Name: "gpu", VCPUs: 1, MemoryMiB: 160, DiskGiB: 0, GPUs: gpuserver.GPUs{Model: "tesla-v100", Count: len(cards)}},
	}
}

// create makes a VM, which is deleted with the test.
func create(t *testing.T, d *libvirt.Driver, s cloud.Spec) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := d.Delete(ctx, s.Name); err != nil {
			t.Errorf("delete %s: %v", s.Name, err)
		}
	})
	if _, err := d.Create(bounded(t), s); err != nil {
		t.Fatalf("create %s: %v", s.Name, err)
	}
}

// console waits until a VM has said something, and gives all that it said.
// virtlogd may write a guest's last words a moment after its end.
func console(t *testing.T, d *libvirt.Driver, vm, words string) (text string) {
	t.Helper()
	var ended time.Time
	eventually(t, "the console of "+vm+" says "+words, func() string {
		state, gone := d.Get(bounded(t), vm)
		r, err := d.Console(bounded(t), vm, 0, 1<<20)
		if err != nil {
			return err.Error()
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if text = string(b); err == nil && strings.Contains(text, words) {
			return ""
		}
		if gone == nil && state.State == cloud.StateRunning {
			ended = time.Time{}
		} else if ended.IsZero() {
			ended = time.Now()
		} else if time.Since(ended) > time.Minute {
			log, _ := os.ReadFile("/var/log/libvirt/qemu/" + vm + ".log")
			t.Fatalf("%s ended (%s, %v) and did not say %q:\n%s\nQEMU's log:\n%s", vm, state.State, gone, words, text, log)
		}
		return fmt.Sprintf("%v\n%s", err, text)
	})
	return text
}

// driver gives the driver of a device, "" if it has none.
func driver(address string) string {
	link, err := os.Readlink("/sys/bus/pci/devices/" + address + "/driver")
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

// bind gives a device to a driver, "" to none, until the test ends.
func bind(t *testing.T, address, to string) {
	t.Helper()
	set := func(to string) {
		if d := driver(address); d != "" && d != to {
			write(t, "/sys/bus/pci/drivers/"+d+"/unbind", address)
		}
		write(t, "/sys/bus/pci/devices/"+address+"/driver_override", to+"\n")
		if to != "" {
			write(t, "/sys/bus/pci/drivers_probe", address)
		}
		if d := driver(address); d != to {
			t.Fatalf("%s is held by %q, want %q", address, d, to)
		}
	}
	set(to)
	t.Cleanup(func() { set("vfio-pci") })
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}
