package libvirt

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// wantKind fails the test unless err is of a kind.
func wantKind(t *testing.T, err error, what string, want gpuserver.Kind) {
	t.Helper()
	if got := gpuserver.KindOf(err); got != want {
		t.Errorf("%s: error %v of kind %q, want %q", what, err, got, want)
	}
}

func TestLibvirtAway(t *testing.T) {
	needLibvirt(t) // for its namespaces: rules are applied without libvirtd too
	cfg := Config{Name: "away", Owner: "o", Dir: t.TempDir(), Socket: filepath.Join(t.TempDir(), "none"), Images: map[string]ImageSource{"guest": {Kernel: "/k"}}}
	for range 2 {
		d, err := Open(t.Context(), cfg, logger(t))
		if err != nil {
			t.Fatalf("Open with libvirtd away: %v", err)
		}
		_, err = d.List(bounded(t))
		wantKind(t, err, "List", gpuserver.KindUnavailable)
		if text := gpuserver.PublicText(err); !strings.Contains(text, cfg.Socket) {
			t.Errorf("the public sentence does not name the socket: %q", text)
		}
		wantKind(t, d.Delete(bounded(t), "x"), "Delete", gpuserver.KindUnavailable)
		if c := d.Capabilities(); c.Accelerated || c.Note == "" {
			t.Errorf("capabilities %+v, want not accelerated with a note", c)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLibvirtDies kills libvirtd while a VM runs: calls fail as unavailable,
// nobody opens the driver again, and the VM is found where it was.
func TestLibvirtDies(t *testing.T) {
	cfg := newPlace(t)
	d := open(t, cfg)
	vm := start(t, d, "survivor", "sleep 1000000")
	for range 2 {
		host(t, "kill -9 $(cat "+lab.Libvirtd()+")")
		eventually(t, func() error {
			_, err := d.Get(bounded(t), vm.Name)
			if err == nil {
				return fmt.Errorf("libvirtd was killed and answers")
			}
			wantKind(t, err, "Get", gpuserver.KindUnavailable)
			return nil
		})
		_, err := d.Create(bounded(t), spec(cfg, "late", "sleep 1000000"))
		wantKind(t, err, "Create", gpuserver.KindUnavailable)
		wantKind(t, d.Delete(bounded(t), vm.Name), "Delete", gpuserver.KindUnavailable)
		if err := lab.Up(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			got, err := d.Get(bounded(t), vm.Name)
			if err == nil && (got.ID != vm.ID || got.State != cloud.StateRunning) {
				err = fmt.Errorf("the VM is %+v, it was %+v", got, vm)
			}
			return err
		})
	}
	// Events come again over a new connection.
	eventually(t, func() error {
		if out, err := exec.Command("virsh", "-q", "qemu-monitor-command", vm.Name, "--hmp", "quit").CombinedOutput(); err != nil && !strings.Contains(string(out), "domain") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	eventually(t, func() error {
		got, err := d.Get(bounded(t), vm.Name)
		if gpuserver.KindOf(err) == gpuserver.KindNotFound {
			t.Fatalf("its folder is there, and while it stops: %v", err)
		}
		if err == nil && got.State != cloud.StateStopped {
			err = fmt.Errorf("the VM is %s", got.State)
		}
		return err
	})
	if err := d.Delete(bounded(t), vm.Name); err != nil {
		t.Error(err)
	}
	if vms, err := d.List(bounded(t)); err != nil || len(vms) != 0 {
		t.Errorf("List: %v, %v, want nothing", vms, err)
	}
}

// TestLibvirtDiesInACreate kills libvirtd on the way to a VM. Whatever came of
// the VM, it is found by its name, and after a delete nothing of it is left.
func TestLibvirtDiesInACreate(t *testing.T) {
	cfg := newPlace(t)
	d := open(t, cfg)
	for name, sign := range map[string]string{
		"before":  filepath.Join(cfg.vmDir("before"), recordFile),
		"called":  filepath.Join(cfg.vmDir("called"), driveFile),
		"process": "/run/libvirt/qemu/process.pid",
		"console": cfg.console("console"),
	} {
		made := make(chan error, 1)
		go func() {
			_, err := d.Create(bounded(t), spec(cfg, name, "sleep 1000000"))
			made <- err
		}()
		eventually(t, func() error { _, err := os.Stat(sign); return err })
		host(t, "kill -9 $(cat "+lab.Libvirtd()+")")
		created := <-made
		if created != nil {
			wantKind(t, created, "Create "+name, gpuserver.KindUnavailable)
		}
		if err := lab.Up(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			vm, err := d.Get(bounded(t), name)
			if gpuserver.KindOf(err) == gpuserver.KindNotFound && created != nil {
				return nil
			}
			if err == nil && created == nil && vm.State != cloud.StateRunning {
				t.Errorf("%s: the VM was made, and is %s", name, vm.State)
			}
			return err
		})
		eventually(t, func() error { return d.Delete(bounded(t), name) })
		if left := host(t, "pgrep -af '[g]uest="+name+",'; ls -A "+cfg.vmsDir()+" "+cfg.addressesDir()+" | grep -v : ; virsh -q list --all --name; true"); strings.TrimSpace(left) != "" {
			t.Errorf("%s: left behind: %s", name, left)
		}
	}
}

// TestConsoleIsBounded writes 100 MB to a console.
func TestConsoleIsBounded(t *testing.T) {
	cfg := newPlace(t)
	d := open(t, cfg)
	start(t, d, "chatty", "sleep 1000000")
	consoleUntil(t, d, "chatty", "GUEST: up")
	writeConsole(t, "chatty", 100<<20)
	eventually(t, func() error { // virtlogd writes what is in the pipe
		if rotated, _ := filepath.Glob(cfg.console("chatty") + ".*"); len(rotated) == 0 {
			return fmt.Errorf("no rotated file")
		}
		return nil
	})
	files, err := filepath.Glob(cfg.console("chatty") + "*")
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			sum += st.Size()
		}
	}
	if sum > 10<<20 || sum < 1<<20 {
		t.Errorf("100 MB written to a console take %d bytes in %d files, want 1 to 10 MiB", sum, len(files))
	}
	if err := d.Delete(bounded(t), "chatty"); err != nil {
		t.Fatal(err)
	}
	r, err := d.Console(bounded(t), "chatty", 0, 1<<10)
	if err != nil {
		t.Fatalf("the console of a deleted VM: %v", err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || len(b) != 1<<10 {
		t.Errorf("the console of a deleted VM gives %d bytes, %v", len(b), err)
	}
}

// TestOldConsolesAreForgotten keeps consoles as long as configured.
func TestOldConsolesAreForgotten(t *testing.T) {
	dir := t.TempDir()
	d := &Driver{cfg: Config{Owner: "o", Dir: dir, KeepConsoles: time.Hour}, log: logger(t)}
	for _, sub := range []string{d.cfg.vmsDir(), d.cfg.consolesDir(), d.cfg.vmDir("alive")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, age := range map[string]time.Duration{"old": 2 * time.Hour, "young": time.Minute, "alive": 2 * time.Hour} {
		for _, suffix := range []string{"", ".0"} {
			if err := os.WriteFile(d.cfg.console(name)+suffix, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(d.cfg.console(name)+suffix, time.Now(), time.Now().Add(-age)); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.sweepConsoles()
	left, _ := filepath.Glob(filepath.Join(d.cfg.consolesDir(), "*"))
	if got := len(left); got != 4 {
		t.Errorf("left: %v, want those of young and alive", left)
	}
}

// TestDiskIsReserved fills a VM's disk: it holds what its lease says, the shared
// image stays as it was, and a disk that could not be filled is refused.
func TestDiskIsReserved(t *testing.T) {
	cfg := newPlace(t)
	base := filepath.Join(cfg.Dir, "base.qcow2")
	host(t, "qemu-img create -q -f qcow2 "+base+" 8M && qemu-io -c 'write -P 65 0 1M' "+base+" >/dev/null")
	withDisk := lab.guest
	withDisk.Disk = base
	cfg.Images["disk"] = withDisk
	before, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, cfg)
	s := spec(cfg, "filler", "dd if=/dev/urandom of=/dev/vda bs=1M\nsync\n blockdev --getsize64 /dev/vda; echo FILLED\nsleep 1000000")
	s.Image, s.Flavor.DiskGiB = "disk", 1
	// 1 GiB is too slow to fill under emulation: what counts is who bounds it.
	s.Flavor.DiskGiB = 0
	if _, err := d.Create(bounded(t), s); err != nil {
		t.Fatal(err)
	}
	if all := consoleUntil(t, d, "filler", "FILLED"); !strings.Contains(all, "8388608") {
		t.Errorf("the guest's disk is not 8 MiB:\n%s", all)
	}
	if got := allocated(filepath.Join(cfg.vmDir("filler"), diskFile)); got > 9<<20 || got < 7<<20 {
		t.Errorf("a filled disk of 8 MiB takes %d bytes of the host", got)
	}
	after, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the shared image was written to")
	}
	s.Name, s.Flavor.DiskGiB = "huge", 1<<20
	_, err = d.Create(bounded(t), s)
	wantKind(t, err, "a disk larger than the host's", gpuserver.KindCapacity)
	if _, err := os.Stat(cfg.vmDir("huge")); !os.IsNotExist(err) {
		t.Errorf("the refused VM left a folder: %v", err)
	}
	u, err := d.used("")
	if err != nil {
		t.Fatal(err)
	}
	if u.leased != 8<<20 || u.vms != 1 {
		t.Errorf("used: %+v, want one VM with 8 MiB leased", u)
	}
}

// TestImageStandsAlone refuses an image of which a part is in another file, and
// says what to do; its VMs would find zeros there.
func TestImageStandsAlone(t *testing.T) {
	needLibvirt(t) // and with it qemu-img
	dir := t.TempDir()
	base, part := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "part.qcow2")
	host(t, "qemu-img create -q -f qcow2 "+base+" 8M && qemu-img create -q -f qcow2 -F qcow2 -b "+base+" "+part)
	if size, err := leasedSize(ImageSource{Disk: base}, gpuserver.Flavor{}); err != nil || size != 8<<20 {
		t.Errorf("an image of 8 MiB: %d, %v", size, err)
	}
	_, err := leasedSize(ImageSource{Disk: part}, gpuserver.Flavor{})
	wantKind(t, err, "an image with a backing file", gpuserver.KindInvalid)
	if text := gpuserver.PublicText(err); !strings.Contains(text, "qemu-img convert") {
		t.Errorf("it does not say what to do: %s", text)
	}
}

// TestRoom refuses what is more than the configuration allows.
func TestRoom(t *testing.T) {
	d := &Driver{cfg: Config{Name: "c", Owner: "o", Dir: t.TempDir(), MaxVMs: 1}, log: logger(t)}
	d.pool = newPool(Network{CIDR: prefix("192.168.77.0/24"), Bridge: "b"}, d.cfg.addressesDir())
	if err := os.MkdirAll(d.cfg.vmsDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	free, err := freeDisk(d.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, d.claim("big", record{Owner: "o", DiskBytes: free + 1<<40}), "more disk than is free", gpuserver.KindCapacity)
	if err := d.claim("a", record{Owner: "o", DiskBytes: free / 2}); err != nil {
		t.Fatal(err)
	}
	wantKind(t, d.claim("a", record{Owner: "o"}), "the same name", gpuserver.KindConflict)
	wantKind(t, d.claim("b", record{Owner: "o"}), "more VMs than allowed", gpuserver.KindCapacity)
	d.cfg.MaxVMs = 0
	wantKind(t, d.claim("c", record{Owner: "o", DiskBytes: free/2 + 1<<40}), "disk that is promised", gpuserver.KindCapacity)
	d.cfg.DiskReserveGiB = free / gib
	wantKind(t, d.claim("d", record{Owner: "o", DiskBytes: 1 << 30}), "disk that is reserved", gpuserver.KindCapacity)
	if entries, _ := os.ReadDir(d.cfg.vmsDir()); len(entries) != 1 {
		t.Errorf("refused VMs left folders: %v", entries)
	}
}

// TestAcceleration tries KVM on this machine: whatever comes out, guests run.
func TestAcceleration(t *testing.T) {
	cfg := newPlace(t)
	cfg.Accel = AccelAuto
	d := open(t, cfg)
	c := d.Capabilities()
	t.Logf("%+v", c)
	if c.Accelerated == (c.Note != "") {
		t.Errorf("capabilities %+v, want either acceleration or a note", c)
	}
	start(t, d, "any", "true")
	consoleUntil(t, d, "any", "GUEST: done")
	if out := host(t, "virsh -q list --all --name"); strings.Contains(out, "probe") {
		t.Errorf("the probe is still there: %s", out)
	}
}

// TestProbe looks at a kernel that starts, at one that is never heard of, and at
// a QEMU that does not start; under emulation, so that any machine shows it.
func TestProbe(t *testing.T) {
	cfg := newPlace(t)
	d := open(t, cfg)
	silent := d.probe(lab.guest, false)
	silent.image.Cmdline = "quiet"
	missing := d.probe(ImageSource{Kernel: filepath.Join(cfg.Dir, "none")}, false)
	for what, c := range map[string]struct {
		m       machine
		limit   time.Duration
		reason  string
		lasting bool
	}{
		"a kernel that starts":       {d.probe(lab.guest, false), limit, "", true},
		"one that is never heard of": {silent, time.Second, "vmlinuz did not start on it within 1s", true},
		"no kernel":                  {missing, limit, "QEMU does not start", false},
	} {
		reason, lasting, err := d.runProbe(bounded(t), c.m, c.limit)
		if err != nil || lasting != c.lasting || !strings.Contains(reason, c.reason) || c.reason == "" && reason != "" {
			t.Errorf("%s: reason %q, lasting %v (%v); want %q, %v", what, reason, lasting, err, c.reason, c.lasting)
		}
		if out := host(t, "virsh -q list --all --name; ls "+d.cfg.consolesDir()); strings.Contains(out, "probe") {
			t.Errorf("%s: the probe is still there: %s", what, out)
		}
	}
}

// TestAccelerationIsFoundLater builds an image while the driver is open: that
// nothing could be tried before does not count for ever.
func TestAccelerationIsFoundLater(t *testing.T) {
	cfg := newPlace(t)
	late := lab.guest
	late.Kernel = filepath.Join(cfg.Dir, "vmlinuz")
	cfg.Accel, cfg.Images = AccelAuto, map[string]ImageSource{"guest": late}
	d := open(t, cfg)
	before := d.Capabilities()
	if !strings.Contains(before.Note, "no image has a kernel") {
		t.Skipf("this machine has no KVM at all: %+v", before)
	}
	host(t, "cp "+lab.guest.Kernel+" "+late.Kernel)
	eventually(t, func() error {
		if c := d.Capabilities(); c.Note == before.Note {
			return fmt.Errorf("capabilities %+v", c)
		}
		return nil
	})
	t.Logf("%+v", d.Capabilities())
}

// TestForeignNetwork leaves a network of our name alone that is not ours.
func TestForeignNetwork(t *testing.T) {
	cfg := newPlace(t)
	host(t, fmt.Sprintf("virsh -q net-create /dev/stdin <<<'<network><name>%s</name><bridge name=\"gsforeign\"/></network>'", cfg.Network.Name))
	d := open(t, cfg)
	_, err := d.Create(bounded(t), spec(cfg, "x", "true"))
	wantKind(t, err, "Create on a foreign network", gpuserver.KindUnavailable)
	_, err = d.Capacity(bounded(t))
	wantKind(t, err, "Capacity on a foreign network", gpuserver.KindUnavailable)
	host(t, "virsh -q net-info "+cfg.Network.Name+" && virsh -q net-destroy "+cfg.Network.Name)
}

// hang arms the watchdog card and never feeds it, as a guest whose kernel hangs.
// Registers: Intel 6300ESB I/O Controller Hub datasheet, chapter 16.
const hang = `
for card in /sys/bus/pci/devices/*; do
	[ "$(cat $card/device)" = 0x25ab ] && break
done
echo 1 >$card/enable
base=$(head -n 1 $card/resource | cut -d' ' -f1)
unlock() { devmem $((base + 12)) 16 0x80; devmem $((base + 12)) 16 0x86; }
unlock; devmem $base 32 0x100
unlock; devmem $((base + 4)) 32 0x100
printf '\002' | dd of=$card/config bs=1 seek=104 conv=notrunc
sleep 1000000
`

// TestStopIsTold tells of each end of a guest what it was.
func TestStopIsTold(t *testing.T) {
	cfg := newPlace(t)
	d := open(t, cfg)
	for name, c := range map[string]struct{ script, reason string }{
		"off":     {"poweroff -f", "shutdown"},
		"again":   {"reboot -f", "destroyed shutdown"},
		"crashed": {"sleep 1000000", "crashed failed"},
		"hangs":   {hang, "watchdog"},
	} {
		start(t, d, name, c.script)
		if name == "crashed" {
			consoleUntil(t, d, name, "GUEST: up")
			host(t, "kill -9 $(cat /run/libvirt/qemu/"+name+".pid)")
		}
		select {
		case e := <-d.Events():
			if e.VM != name || e.State != cloud.StateStopped || !strings.Contains(c.reason, e.Reason) {
				t.Errorf("%s: event %+v, want the reason %s", name, e, c.reason)
			}
		case <-time.After(limit):
			t.Fatalf("%s: no event", name)
		}
	}
}

// TestPlaceCountsOn checks the offsets of a console's files over any rotation.
func TestPlaceCountsOn(t *testing.T) {
	first := []piece{{Inode: 1, Size: 10}}
	place(first, nil)
	second := []piece{{Inode: 1, Size: 100}, {Inode: 2, Size: 7}}
	place(second, first)
	third := []piece{{Inode: 2, Size: 100}, {Inode: 1, Born: 5, Size: 50}} // an inode used again
	place(third, second)
	lost := []piece{{Inode: 9, Size: 3}}
	place(lost, third)
	for i, want := range []struct {
		got  []piece
		at   int
		from int64
	}{{first, 0, 0}, {second, 0, 0}, {second, 1, 100}, {third, 0, 100}, {third, 1, 200}, {lost, 0, 250}} {
		if got := want.got[want.at].Start; got != want.from {
			t.Errorf("case %d: starts at %d, want %d", i, got, want.from)
		}
	}
}
