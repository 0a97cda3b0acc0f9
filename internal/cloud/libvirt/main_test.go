package libvirt

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/libvirt/libvirttest"
)

// Tests with a real libvirt run on a host of their own, see libvirttest.
// GPUSERVER_TEST_LIBVIRT=0 leaves them out.
const (
	guestEnv = "GPUSERVER_TEST_GUEST" // the guest's folder, in the namespaces
	serveEnv = "GPUSERVER_TEST_SERVE" // addresses to greet on, for the process that plays the world
)

// limit is how long a test waits for what must happen: generous, because guests
// are emulated on a busy machine.
const limit = 2 * time.Minute

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(serveEnv) != "":
		os.Exit(serveWorld(strings.Split(os.Getenv(serveEnv), ",")))
	case !libvirttest.Wanted():
		os.Exit(m.Run())
	case !libvirttest.Inside():
		os.Exit(goInside())
	}
	os.Exit(runInside(m))
}

// goInside runs this test binary again on a host of its own.
func goInside() int {
	guest, err := buildGuest()
	if err != nil {
		fmt.Fprintf(os.Stderr, "cannot build the tests' guest: %v; GPUSERVER_TEST_LIBVIRT=0 leaves these tests out\n", err)
		return 1
	}
	return libvirttest.Enter(guestEnv + "=" + guest)
}

// buildGuest gives the folder of the tests' guest, built once for its recipe.
func buildGuest() (string, error) {
	sum := sha256.New()
	for _, f := range []string{"build", "init"} {
		b, err := os.ReadFile(filepath.Join("testdata", "guest", f))
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "gpuserver", "testguest-"+hex.EncodeToString(sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	out, err := exec.Command("testdata/guest/build", dir).CombinedOutput()
	if _, e := os.Stat(dir); e == nil {
		return dir, nil // by us, or by another at the same time
	}
	return "", fmt.Errorf("%w: %s", err, out)
}

// lab is the place that the tests run in.
var lab struct {
	*libvirttest.Daemons
	guest ImageSource
}

func runInside(m *testing.M) int {
	var err error
	if lab.Daemons, err = libvirttest.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer lab.Remove()
	guest := os.Getenv(guestEnv)
	lab.guest = ImageSource{Kernel: filepath.Join(guest, "vmlinuz"), Initrd: filepath.Join(guest, "initrd.img"), Cmdline: "console=ttyS0 quiet"}
	return m.Run()
}

// needLibvirt skips a test that needs the lab where it was left out.
func needLibvirt(t testing.TB) {
	t.Helper()
	if !libvirttest.Wanted() {
		t.Skip("GPUSERVER_TEST_LIBVIRT=0")
	}
}

var places struct {
	sync.Mutex
	n int
}

// newPlace gives a configuration that no other test shares anything with.
func newPlace(t testing.TB) Config {
	t.Helper()
	needLibvirt(t)
	places.Lock()
	places.n++
	number := places.n
	places.Unlock()
	dir, err := os.MkdirTemp("", "gpuserver-vms-")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Name: "lab", Owner: "test-" + strconv.Itoa(number), Dir: dir, Accel: AccelTCG, Overcommit: 4,
		Images: map[string]ImageSource{"guest": lab.guest},
		Network: Network{
			Name: "gst" + strconv.Itoa(number), Bridge: "gst" + strconv.Itoa(number),
			CIDR: prefix("192.168." + strconv.Itoa(100+number) + ".0/24"), CIDR6: prefix("fd77:0:0:" + strconv.Itoa(number) + "::/64"),
			MTU: 1420, AgentPort: 8441,
		},
	}
	t.Cleanup(func() { clearPlace(t, cfg) })
	return cfg
}

// clearPlace takes away whatever a test left.
func clearPlace(t testing.TB, cfg Config) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cfg.Images = map[string]ImageSource{"guest": lab.guest}
	d, err := Open(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Error(err)
		return
	}
	vms, err := d.List(ctx)
	if err != nil {
		t.Errorf("clearing up: %v", err)
	}
	for _, vm := range vms {
		if err := d.Delete(ctx, vm.Name); err != nil {
			t.Errorf("clearing up: %v", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	host(t, "virsh -q net-destroy "+cfg.Network.Name+" >/dev/null 2>&1; virsh -q nwfilter-undefine "+filterName(cfg.Network)+" >/dev/null 2>&1; nft delete table inet "+
		tableName(cfg.Network)+"; nft delete table bridge "+tableName(cfg.Network)+"; true")
	if err := os.RemoveAll(cfg.Dir); err != nil {
		t.Error(err)
	}
}

// open opens a driver that is closed at the test's end, before what it left is
// cleared.
func open(t testing.TB, cfg Config) *Driver {
	t.Helper()
	d, err := Open(t.Context(), cfg, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func logger(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// bounded gives a context for what must happen.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// spec gives a VM that runs a shell script.
func spec(cfg Config, name, script string) cloud.Spec {
	return cloud.Spec{
		Name: name, Owner: cfg.Owner, Image: "guest", UserData: []byte(script),
		Flavor: gpuserver.Flavor{Name: "small", VCPUs: 1, MemoryMiB: 192},
	}
}

// start makes a VM or fails the test.
func start(t testing.TB, d *Driver, name, script string) cloud.VM {
	t.Helper()
	vm, err := d.Create(bounded(t), spec(d.cfg, name, script))
	if err != nil {
		t.Fatalf("Create(%s): %v", name, err)
	}
	return vm
}

// consoleUntil waits until a VM's console has text, and gives all of it.
func consoleUntil(t testing.TB, d *Driver, name, text string) string {
	t.Helper()
	var all string
	eventually(t, func() error {
		r, err := d.Console(bounded(t), name, 0, 64<<20)
		if err != nil {
			return err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if all = string(b); !strings.Contains(all, text) {
			return fmt.Errorf("the console of %s has no %q; it has:\n%s", name, text, all[max(0, len(all)-3000):])
		}
		return nil
	})
	return all
}

// eventually repeats a check until it succeeds.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: %v", limit, err)
		}
	}
}

// host runs a shell command on the lab's host.
func host(t testing.TB, command string) string {
	t.Helper()
	out, err := exec.Command("bash", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// greet answers every connection with a greeting, until l is closed.
func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprint(c, "hello\n") // who asks and leaves is no failure
		c.Close()
	}
}

// serveWorld greets on addresses until standard input ends.
func serveWorld(addresses []string) int {
	for _, a := range addresses {
		l, err := net.Listen("tcp", a)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go greet(l)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the test ends
	return 0
}

// world starts a process in another network namespace that greets on addresses.
func world(t testing.TB, namespace string, addresses ...string) {
	t.Helper()
	c := exec.Command("ip", "netns", "exec", namespace, libvirttest.Self())
	c.Env = append(os.Environ(), serveEnv+"="+strings.Join(addresses, ","))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); c.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the world does not start: %q, %v", line, err)
	}
}
