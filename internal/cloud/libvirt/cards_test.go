package libvirt

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/pci"
	"gpuserver/internal/pci/pcitest"
)

// cardsDriver is a driver for what it does without libvirtd.
func cardsDriver(t *testing.T, log string) *Driver {
	t.Helper()
	kmsg := filepath.Join(t.TempDir(), "kmsg")
	if err := os.WriteFile(kmsg, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	return &Driver{cfg: Config{Sysfs: pcitest.Write(t, pcitest.Seed("vfio-pci")), Kmsg: kmsg}, looks: make(chan struct{}, maxLooks), log: slog.New(slog.DiscardHandler)}
}

func TestCards(t *testing.T) {
	d := cardsDriver(t, "3,2,1000000,-;vfio-pci 0000:27:00.0: not ready 65535ms after FLR; giving up\n")
	rs, err := d.Cards(t.Context(), "", []string{"0000:27:00.0", "0000:99:00.0"})
	if err != nil {
		t.Fatal(err)
	}
	if !rs[0].Present || rs[0].Driver != "vfio-pci" || rs[1].Present || rs[1].Address != "0000:99:00.0" {
		t.Errorf("readings %+v", rs)
	}
	// The line is of a second after the start of the machine's clock.
	if l := rs[0].Log; len(l) != 1 || l[0].Trouble != pci.TroubleReset || !l[0].At.Before(time.Now()) || l[0].At.Before(time.Now().Add(-10*365*24*time.Hour)) {
		t.Errorf("log %+v", l)
	}
	d.cfg.Kmsg += ".none"
	if rs, err := d.Cards(t.Context(), "", []string{"0000:27:00.0"}); err != nil || len(rs[0].Log) != 0 {
		t.Errorf("without the kernel's log: %+v, %v", rs, err)
	}
	d.cfg.Sysfs += "/none"
	if _, err := d.Cards(t.Context(), "", nil); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("without sysfs: %v", err)
	}
}

// A card that hangs ends the call with its context, and a few that hang do not
// take all threads.
func TestCardThatHangs(t *testing.T) {
	d := cardsDriver(t, "")
	// To open a pipe for reading blocks until somebody writes to it.
	config := filepath.Join(d.cfg.Sysfs, "bus/pci/devices/0000:27:00.0/config")
	if err := errors.Join(os.Remove(config), unix.Mkfifo(config, 0o600)); err != nil {
		t.Fatal(err)
	}
	for range maxLooks + 1 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := d.Cards(ctx, "", []string{"0000:27:00.0"})
			done <- err
		}()
		cancel()
		if err := <-done; gpuserver.KindOf(err) != gpuserver.KindUnavailable || !errors.Is(err, context.Canceled) || !strings.Contains(gpuserver.PublicText(err), "0000:27:00.0") {
			t.Errorf("got %v, want unavailable with the card's address", err)
		}
	}
	for len(d.looks) > 0 { // let go of those that hang
		if f, err := os.OpenFile(config, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			f.Close()
		}
		runtime.Gosched()
	}
}

// The real log is read to its present end, without waiting for the next line.
func TestCardsReadTheRealLogWithoutWaiting(t *testing.T) {
	d := cardsDriver(t, "")
	d.cfg.Kmsg = "/dev/kmsg"
	if _, err := d.Cards(t.Context(), "", []string{"0000:27:00.0"}); err != nil {
		t.Error(err)
	}
}

// The cards of a VM are nobody else's, also once it is off: its record says so,
// as libvirt knows nothing of it any more.
func TestCardsOfAnotherVM(t *testing.T) {
	cfg := Config{Name: "here", Dir: t.TempDir(), Owner: "us"}
	d := &Driver{cfg: cfg}
	write := func(vm string, r record) {
		t.Helper()
		if err := os.MkdirAll(cfg.vmDir(vm), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := cfg.writeRecord(vm, r); err != nil {
			t.Fatal(err)
		}
	}
	write("runs", record{Devices: []string{"0000:27:00.0", "0000:28:00.0"}})
	write("kept", record{Devices: []string{"0000:44:00.0"}, Kept: true, Started: true})
	write("without", record{})
	for _, tt := range []struct {
		vm, card, say string
	}{
		{"new", "0000:28:00.0", "the GPU at 0000:28:00.0 cannot be given to VM new: VM runs has it"},
		{"new", "0000:44:00.0", "the GPU at 0000:44:00.0 cannot be given to VM new: VM kept is kept because of it"},
		{"new", "0000:a3:00.0", ""},
		{"runs", "0000:28:00.0", ""},
	} {
		err := d.checkDevices(tt.vm, []string{tt.card})
		if tt.say == "" {
			if err != nil {
				t.Errorf("%s for %s: %v", tt.card, tt.vm, err)
			}
		} else if gpuserver.KindOf(err) != gpuserver.KindCapacity || gpuserver.PublicText(err) != tt.say {
			t.Errorf("%s for %s: %v, want %q", tt.card, tt.vm, err, tt.say)
		}
	}
	r, _, err := cfg.readRecord("kept")
	if vm := d.describe("kept", r, cloud.StateStopped); err != nil || !vm.Kept {
		t.Errorf("%v: a kept VM is described as %+v", err, vm)
	}
}
