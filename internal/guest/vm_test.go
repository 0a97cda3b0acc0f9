package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"gpuserver"
	"gpuserver/internal/guest"
)

// vmLimit bounds one VM's whole life. It is a net under a hanging guest, not a
// measure: a busy machine that emulates may take minutes.
const vmLimit = 8 * time.Minute

// slirpHost is the machine that runs QEMU as a guest of its user network sees it.
const slirpHost = "10.0.2.2"

// demoImage gives the folder of the image, built by the project's own script.
func demoImage(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots VMs")
	}
	for _, tool := range []string{"qemu-system-x86_64", "qemu-img", "mmdebstrap"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: boot tests need it", tool)
		}
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "../../scripts/demo-image")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("demo-image: %v\n%s", err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// vm is one emulated machine.
type vm struct {
	t       *testing.T
	console string // path of its serial console
	ended   chan error
}

// bootVM starts a VM with p on its config drive. It is gone at the test's end.
// Without networkData it finds its address by DHCP.
func bootVM(t *testing.T, image string, p guest.Payload, memoryMiB int, networkData string) *vm {
	t.Helper()
	dir := t.TempDir()
	userData, err := guest.UserData(p)
	if err != nil {
		t.Fatal(err)
	}
	drive := filepath.Join(dir, "config.iso")
	files := map[string]string{
		"/openstack/latest/user_data":      string(userData),
		"/openstack/latest/meta_data.json": `{"hostname": "` + p.VM + `"}`,
	}
	if networkData != "" {
		files["/openstack/latest/network_data.json"] = networkData
	}
	writeConfigDrive(t, drive, files)
	var manifest struct{ Cmdline string }
	b, err := os.ReadFile(filepath.Join(image, "manifest"))
	if err == nil {
		err = json.Unmarshal(b, &manifest)
	}
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
		"-b", filepath.Join(image, "root.qcow2"), root, "2G").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	v := &vm{t: t, console: filepath.Join(dir, "console"), ended: make(chan error, 1)}
	cmd := exec.Command("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2",
		"-m", fmt.Sprint(memoryMiB), "-display", "none", "-no-reboot", "-nodefaults",
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd.img"), "-append", manifest.Cmdline,
		"-drive", "if=virtio,format=qcow2,cache=unsafe,file="+root,
		"-drive", "if=none,id=config,format=raw,readonly=on,file="+drive, "-device", "ide-cd,drive=config",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56", "-device", "virtio-rng-pci",
		"-device", "i6300esb", "-action", "watchdog=poweroff", "-serial", "file:"+v.console)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with QEMU, which the clean-up ends
		defer close(done)
		v.ended <- cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // ended already, mostly
		<-done
		if t.Failed() {
			console, _ := os.ReadFile(v.console)
			t.Logf("QEMU: %s\nconsole:\n%s", stderr.String(), console[max(0, len(console)-12<<10):])
		}
	})
	return v
}

// awaitPowerOff waits until the guest powered itself off.
func (v *vm) awaitPowerOff() {
	v.t.Helper()
	select {
	case err := <-v.ended:
		if err != nil {
			v.t.Fatalf("QEMU: %v", err)
		}
	case <-time.After(vmLimit):
		v.t.Fatalf("the VM did not power off within %s", vmLimit)
	}
}

// writeConfigDrive makes an ISO 9660 image with the label config-2.
func writeConfigDrive(t *testing.T, path string, files map[string]string) {
	t.Helper()
	const size = 2 << 20
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(f.Truncate(size))
	iso, err := iso9660.Create(file.New(f, false), size, 0, 2048, "")
	check(err)
	defer os.RemoveAll(iso.Workspace())
	for name, content := range files {
		full := filepath.Join(iso.Workspace(), name)
		check(os.MkdirAll(filepath.Dir(full), 0o755))
		check(os.WriteFile(full, []byte(content), 0o644))
	}
	check(iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: "config-2"}))
}

// service is the server's side of one VM: it records and answers.
type service struct {
	token   string
	verdict func(guest.JobStarted) (guest.Verdict, error)

	mu        sync.Mutex
	beats     []guest.Heartbeat
	questions []guest.JobStarted
	output    map[string][]byte
	orders    guest.Orders
	changed   chan struct{}
}

func newService(token string) *service {
	return &service{token: token, output: map[string][]byte{}, changed: make(chan struct{})}
}

func (s *service) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Authenticate implements guest.Service.
func (s *service) Authenticate(_ context.Context, token string) (gpuserver.VMID, error) {
	if token != s.token {
		return 0, gpuserver.Errorf(gpuserver.KindRefused, "no such token")
	}
	return 7, nil
}

// Heartbeat implements guest.Service.
func (s *service) Heartbeat(_ context.Context, _ gpuserver.VMID, h guest.Heartbeat) (guest.Orders, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beats = append(s.beats, h)
	s.change()
	return s.orders, nil
}

// JobStarted implements guest.Service.
func (s *service) JobStarted(_ context.Context, _ gpuserver.VMID, j guest.JobStarted) (guest.Verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.questions = append(s.questions, j)
	s.change()
	if s.verdict == nil {
		return guest.Verdict{Allowed: true}, nil
	}
	return s.verdict(j)
}

// Output implements guest.Service.
func (s *service) Output(_ context.Context, _ gpuserver.VMID, stream string, offset int64, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := int64(len(s.output[stream]))
	if offset > have {
		return gpuserver.Errorf(gpuserver.KindConflict, "a gap")
	}
	if end := offset + int64(len(data)); end > have {
		s.output[stream] = append(s.output[stream], data[have-offset:]...)
	}
	s.change()
	return nil
}

// await waits until is, called with the lock held, is true.
func (s *service) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	limit := time.After(vmLimit)
	for {
		s.mu.Lock()
		ok, changed := is(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("waited %s for %s", vmLimit, what)
		}
	}
}

// last gives the last heartbeat, which tells how the runner ended.
func (s *service) last(t *testing.T) guest.Heartbeat {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.beats) == 0 {
		t.Fatal("the agent never reported")
	}
	return s.beats[len(s.beats)-1]
}

// phases gives the phases in the order in which they were first reported.
func (s *service) phases() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var phases []string
	for _, b := range s.beats {
		if len(phases) == 0 || phases[len(phases)-1] != b.Phase {
			phases = append(phases, b.Phase)
		}
	}
	return phases
}

// logPhases writes when the guest reached which phase, in its kernel's time.
func (s *service) logPhases(t *testing.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := ""
	for _, b := range s.beats {
		if b.Phase != last {
			t.Logf("%-12s at %5.1f s", b.Phase, b.UptimeSeconds-b.AgoSeconds)
		}
		last = b.Phase
	}
}

// serveLocal serves h on the loopback, and gives the port.
func serveLocal(t *testing.T, h http.Handler) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("server: %v", err)
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}
