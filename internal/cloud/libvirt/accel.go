package libvirt

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver/internal/cloud"
)

// verdict says how guests are executed, and why.
type verdict struct {
	kvm   bool
	note  string
	known bool
	// A verdict that may change is looked into again once the time has come, or
	// once something else would be tried.
	again time.Time // zero: it stands
	tried string    // what was tried, see probeKey
}

// stands says whether a verdict need not be looked into.
func (v verdict) stands(key string) bool {
	return v.known && (v.again.IsZero() || v.tried == key && time.Now().Before(v.again))
}

// accelState is a driver's verdict.
type accelState struct {
	mu  sync.Mutex // guards now
	now verdict
	try sync.Mutex // held while a probe runs
}

func (a *accelState) get() verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

func (a *accelState) set(v verdict) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = v
}

// probed are what this process found for good: reasons against KVM by probeKey.
var probed sync.Map

// probeLimit is how long a kernel may take to start under KVM; it takes a second
// or two where KVM works.
const probeLimit = 15 * time.Second

// probeAgain is how long a reason against KVM counts that may go away: a module
// is loaded, an image is built, memory is free again.
const probeAgain = 10 * time.Minute

// Capabilities implements cloud.Driver.
func (d *Driver) Capabilities() cloud.Capabilities {
	v := d.accel.get()
	if !v.known {
		v.note = "not known yet: libvirtd could not be asked so far"
	}
	return cloud.Capabilities{Keep: true, Cards: true, Console: true, Events: true, DirectBoot: true, Accelerated: v.kvm, Note: v.note}
}

// findAcceleration decides how guests are executed.
func (d *Driver) findAcceleration(ctx context.Context) error {
	d.accel.try.Lock()
	defer d.accel.try.Unlock()
	old, key := d.accel.get(), d.probeKey()
	if old.stands(key) {
		return nil
	}
	v := verdict{known: true}
	switch d.cfg.Accel {
	case AccelKVM:
		v.kvm = true
	case AccelTCG:
		v.note = "software emulation, as configured (accel: tcg)"
	default:
		reason, lasting, err := d.remembered(ctx, key)
		if err != nil {
			return err
		}
		if !lasting {
			v.again, v.tried = time.Now().Add(probeAgain), key
		}
		v.kvm = reason == ""
		if !v.kvm {
			v.note = "software emulation: " + reason
		}
		switch {
		case !v.kvm && (!old.known || old.kvm || old.tried != key):
			d.log.Warn("VMs are emulated in software and slow", "reason", reason)
		case v.kvm && old.known:
			d.log.Info("KVM works now; new VMs run on it")
		}
	}
	d.accel.set(v)
	return nil
}

// probeKey names what would be tried.
func (d *Driver) probeKey() string {
	key := d.cfg.Socket
	if image, ok := d.probeImage(); ok {
		if st, err := os.Stat(image.Kernel); err == nil { // not its path: a copy starts as the original does
			key += fmt.Sprintf("\n%d\n%d", st.Size(), st.ModTime().UnixNano())
		}
	}
	return key
}

// remembered is tryKVM, once in the life of the machine for each kernel: what it
// found for good is kept in memory and, since a machine on which KVM fails takes
// long to show it, in a folder that a reboot empties.
func (d *Driver) remembered(ctx context.Context, key string) (reason string, lasting bool, err error) {
	if old, ok := probed.Load(key); ok {
		return old.(string), true, nil
	}
	path := filepath.Join("/run/gpuserver", "kvm-"+digest(key))
	if b, err := os.ReadFile(path); err == nil {
		probed.Store(key, string(b))
		return string(b), true, nil
	}
	if reason, lasting, err = d.tryKVM(ctx); err != nil || !lasting {
		return reason, false, err
	}
	probed.Store(key, reason)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), replaceFile(path, []byte(reason))); err != nil {
		d.log.Debug("cannot remember whether KVM works", "err", err) // tried again by the next process
	}
	return reason, true, nil
}

// tryKVM runs a kernel on KVM and gives the reason if that did not work: a
// device that opens and a domain that starts prove nothing where KVM is nested.
// lasting says that it will be so until the machine is started again.
func (d *Driver) tryKVM(ctx context.Context) (reason string, lasting bool, err error) {
	capabilities, err := ask(ctx, d, "read libvirt's capabilities", func(l *lv.Libvirt) (string, error) { return l.ConnectGetCapabilities() })
	if err != nil {
		return "", false, err
	}
	if !strings.Contains(capabilities, "<domain type='kvm'") {
		return "this machine has no KVM (/dev/kvm)", false, nil
	}
	image, ok := d.probeImage()
	if !ok {
		return "no image has a kernel that is there, with which KVM could be tried; give one, or set accel: kvm", false, nil
	}
	return d.runProbe(ctx, d.probe(image, true), probeLimit)
}

// probe describes a VM that shows whether a kernel starts.
func (d *Driver) probe(image ImageSource, kvm bool) machine {
	name := "gpuserver-probe-" + strings.ToLower(rand.Text()[:8])
	return machine{
		name: name, uuid: newUUID(), owner: d.cfg.Owner + "/probe", created: time.Now(), kvm: kvm, vcpus: 1, memoryMiB: 256,
		// Without a root file system the kernel ends in a panic; that it got
		// there is what we want to know.
		image:   ImageSource{Kernel: image.Kernel, Cmdline: "console=ttyS0 panic=-1"},
		console: d.cfg.console(name),
	}
}

// probeImage gives an image with a kernel that is there.
func (d *Driver) probeImage() (ImageSource, bool) {
	for _, name := range slices.Sorted(maps.Keys(d.cfg.Images)) {
		i := d.cfg.Images[name]
		if st, err := os.Stat(i.Kernel); err == nil && st.Mode().IsRegular() {
			return i, true
		}
	}
	return ImageSource{}, false
}

// reached is what a kernel says once all of it but the root file system started.
const reached = "VFS:"

// runProbe runs m until its kernel is there, or for limit at most.
func (d *Driver) runProbe(ctx context.Context, m machine, limit time.Duration) (reason string, lasting bool, err error) {
	defer os.Remove(m.console)
	dom, err := ask(ctx, d, "try KVM", func(l *lv.Libvirt) (lv.Domain, error) {
		return l.DomainCreateXML(text(m.domain()), lv.DomainStartAutodestroy)
	})
	if code(err) != 0 {
		return fmt.Sprintf("QEMU does not start with KVM (%v)", err), false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer func() { // also if ctx ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		_ = do(ctx, d, "end the KVM probe", func(l *lv.Libvirt) error { return l.DomainDestroyFlags(dom, lv.DomainDestroyDefault) }) // gone by itself, or with our connection
	}()
	over := time.NewTimer(limit)
	defer over.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		b, _ := os.ReadFile(m.console) // not there yet: empty
		if strings.Contains(string(b), reached) {
			return "", true, nil
		}
		select {
		case <-tick.C:
		case <-over.C:
			return fmt.Sprintf("KVM is there, but %s did not start on it within %v", filepath.Base(m.image.Kernel), limit), true, nil
		case <-ctx.Done():
			return "", false, unavailable("try KVM", ctx.Err())
		}
	}
}
