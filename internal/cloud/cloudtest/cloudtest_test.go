package cloudtest_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/cloudtest"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/pci"
)

const owner = "test"

// broken is a driver with one defect. Each method of the embedded driver that a
// defect does not replace is sound.
type broken struct {
	*fake.Driver
	chooses  bool // the cloud chooses the cards
	create   func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error)
	get      func(d *fake.Driver, ctx context.Context, name string) (cloud.VM, error)
	list     func(d *fake.Driver, ctx context.Context) ([]cloud.VM, error)
	delete   func(d *fake.Driver, ctx context.Context, name string) error
	keep     func(d *fake.Driver, ctx context.Context, name string) error
	console  func(d *fake.Driver, ctx context.Context, name string, from, limit int64) (io.ReadCloser, error)
	capacity func(d *fake.Driver, ctx context.Context) ([]gpuserver.Host, error)
	cards    func(d *fake.Driver, ctx context.Context, host string, addresses []string) ([]pci.Reading, error)
	events   func(d *fake.Driver) <-chan cloud.Event
	close    func(d *fake.Driver) error
}

func (b *broken) Create(ctx context.Context, s cloud.Spec) (cloud.VM, error) {
	if b.create != nil {
		return b.create(b.Driver, ctx, s)
	}
	return b.Driver.Create(ctx, s)
}

func (b *broken) Get(ctx context.Context, name string) (cloud.VM, error) {
	if b.get != nil {
		return b.get(b.Driver, ctx, name)
	}
	return b.Driver.Get(ctx, name)
}

func (b *broken) List(ctx context.Context) ([]cloud.VM, error) {
	if b.list != nil {
		return b.list(b.Driver, ctx)
	}
	return b.Driver.List(ctx)
}

func (b *broken) Delete(ctx context.Context, name string) error {
	if b.delete != nil {
		return b.delete(b.Driver, ctx, name)
	}
	return b.Driver.Delete(ctx, name)
}

func (b *broken) Keep(ctx context.Context, name string) error {
	if b.keep != nil {
		return b.keep(b.Driver, ctx, name)
	}
	return b.Driver.Keep(ctx, name)
}

func (b *broken) Console(ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
	if b.console != nil {
		return b.console(b.Driver, ctx, name, from, limit)
	}
	return b.Driver.Console(ctx, name, from, limit)
}

func (b *broken) Capacity(ctx context.Context) ([]gpuserver.Host, error) {
	if b.capacity != nil {
		return b.capacity(b.Driver, ctx)
	}
	return b.Driver.Capacity(ctx)
}

func (b *broken) Cards(ctx context.Context, host string, addresses []string) ([]pci.Reading, error) {
	if b.cards != nil {
		return b.cards(b.Driver, ctx, host, addresses)
	}
	return b.Driver.Cards(ctx, host, addresses)
}

func (b *broken) Events() <-chan cloud.Event {
	if b.events != nil {
		return b.events(b.Driver)
	}
	return b.Driver.Events()
}

func (b *broken) Close() error {
	if b.close != nil {
		return b.close(b.Driver)
	}
	return b.Driver.Close()
}

// defects, each with the promise that it breaks.
var defects = map[string]struct {
	promise string
	broken  broken
}{
	"create replaces what is there": {"a second create is a conflict and changes nothing", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			d.Cloud().Vanish(s.Name)
			return d.Create(ctx, s)
		},
	}},
	"create finds what is there": {"concurrent creates of one name make one VM", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			if vm, err := d.Get(ctx, s.Name); err == nil {
				return vm, nil
			}
			vm, err := d.Create(ctx, s)
			if gpuserver.KindOf(err) == gpuserver.KindConflict {
				return d.Get(ctx, s.Name)
			}
			return vm, err
		},
	}},
	"create swallows the user data": {"user data and metadata reach the guest", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			s.UserData = bytes.TrimSpace(s.UserData)
			return d.Create(ctx, s)
		},
	}},
	"create swallows metadata": {"user data and metadata reach the guest", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			s.Metadata = nil
			return d.Create(ctx, s)
		},
	}},
	"create forgets the tag": {"create, get, list, delete", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			s.Owner = "somebody"
			return d.Create(ctx, s)
		},
	}},
	"create takes any spec": {"an impossible spec is invalid", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			s.UserData, s.Metadata = nil, nil
			return d.Create(ctx, s)
		},
	}},
	"create goes on without its context": {"an ended context ends a call", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			return d.Create(context.WithoutCancel(ctx), s)
		},
	}},
	"get finds no remains": {"what is left of a VM is listed and can be deleted", broken{
		get: func(d *fake.Driver, ctx context.Context, name string) (cloud.VM, error) {
			vm, err := d.Get(ctx, name)
			if vm.State == cloud.StateRemains {
				return cloud.VM{}, gpuserver.Errorf(gpuserver.KindNotFound, "gone")
			}
			return vm, err
		},
	}},
	"get of nothing has the wrong kind": {"get, keep and console of nothing are not found", broken{
		get: func(d *fake.Driver, ctx context.Context, name string) (cloud.VM, error) {
			vm, err := d.Get(ctx, name)
			return vm, gpuserver.Wrap(gpuserver.KindInternal, "get", err)
		},
	}},
	"list has foreign VMs": {"a VM without our tag is left alone", broken{
		list: func(d *fake.Driver, ctx context.Context) ([]cloud.VM, error) { return d.Cloud().VMs(), nil },
	}},
	"list lacks stopped VMs": {"a VM that stops is told and listed", broken{
		list: func(d *fake.Driver, ctx context.Context) ([]cloud.VM, error) {
			var running []cloud.VM
			vms, err := d.List(ctx)
			for _, vm := range vms {
				if vm.State == cloud.StateRunning {
					running = append(running, vm)
				}
			}
			return running, err
		},
	}},
	"delete of nothing fails": {"delete of nothing is success", broken{
		delete: func(d *fake.Driver, ctx context.Context, name string) error {
			if _, err := d.Get(ctx, name); err != nil {
				return err
			}
			return d.Delete(ctx, name)
		},
	}},
	"delete takes what is not ours": {"a VM without our tag is left alone", broken{
		delete: func(d *fake.Driver, ctx context.Context, name string) error {
			d.Cloud().Vanish(name)
			return nil
		},
	}},
	"delete leaves a part": {"create, get, list, delete", broken{
		delete: func(d *fake.Driver, ctx context.Context, name string) error {
			vm, err := d.Get(ctx, name)
			if err == nil && vm.Owner == owner && vm.State == cloud.StateRunning {
				d.Cloud().LeavePart(name, owner)
				return nil
			}
			return d.Delete(ctx, name)
		},
	}},
	"keep does nothing": {"keep stops a VM and leaves it there", broken{
		keep: func(d *fake.Driver, ctx context.Context, name string) error { _, err := d.Get(ctx, name); return err },
	}},
	"keep tells nobody": {"keep stops a VM and leaves it there", broken{
		get: func(d *fake.Driver, ctx context.Context, name string) (cloud.VM, error) {
			vm, err := d.Get(ctx, name)
			vm.Kept = false
			return vm, err
		},
	}},
	"list has kept VMs like others": {"keep stops a VM and leaves it there", broken{
		list: func(d *fake.Driver, ctx context.Context) ([]cloud.VM, error) {
			vms, err := d.List(ctx)
			for i := range vms {
				vms[i].Kept = false
			}
			return vms, err
		},
	}},
	"close deletes kept VMs": {"keep stops a VM and leaves it there", broken{
		close: func(d *fake.Driver) error {
			for _, vm := range d.Cloud().VMs() {
				if vm.Kept {
					d.Cloud().Vanish(vm.Name)
				}
			}
			return d.Close()
		},
	}},
	"a card goes to two VMs": {"a kept VM holds its devices until it is deleted", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			s.Devices = nil
			return d.Create(ctx, s)
		},
	}},
	"a kept VM's card goes to another": {"a kept VM holds its devices until it is deleted", broken{
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			for _, vm := range d.Cloud().VMs() {
				if vm.Kept {
					s.Devices = nil
				}
			}
			return d.Create(ctx, s)
		},
	}},
	"a kept VM's card is chosen again": {"a kept VM holds the card that the cloud chose", broken{
		chooses: true,
		create: func(d *fake.Driver, ctx context.Context, s cloud.Spec) (cloud.VM, error) {
			for _, vm := range d.Cloud().VMs() {
				if vm.Kept {
					s.Flavor.GPUs.Count = 0
				}
			}
			return d.Create(ctx, s)
		},
	}},
	"cards that are not there are left out": {"cards are read, or nothing is said of them", broken{
		cards: func(d *fake.Driver, ctx context.Context, host string, addresses []string) (rs []pci.Reading, err error) {
			all, err := d.Cards(ctx, host, addresses)
			for _, r := range all {
				if r.Present {
					rs = append(rs, r)
				}
			}
			return rs, err
		},
	}},
	"cards are not said to be what they are": {"cards are read, or nothing is said of them", broken{
		cards: func(d *fake.Driver, ctx context.Context, host string, addresses []string) ([]pci.Reading, error) {
			rs, err := d.Cards(ctx, host, addresses)
			for i := range rs {
				rs[i].VendorID = ""
			}
			return rs, err
		},
	}},
	"cards are read for ever": {"an ended context ends a call", broken{
		cards: func(d *fake.Driver, ctx context.Context, host string, addresses []string) ([]pci.Reading, error) {
			return d.Cards(context.WithoutCancel(ctx), host, addresses)
		},
	}},
	"keep deletes": {"keep stops a VM and leaves it there", broken{
		keep: func(d *fake.Driver, ctx context.Context, name string) error { return d.Delete(ctx, name) },
	}},
	"console ignores the offset": {"console offsets", broken{
		console: func(d *fake.Driver, ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
			return d.Console(ctx, name, 0, limit)
		},
	}},
	"console ignores the limit": {"console offsets", broken{
		console: func(d *fake.Driver, ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
			return d.Console(ctx, name, from, limit+1)
		},
	}},
	"console past the end fails": {"console offsets", broken{
		console: func(d *fake.Driver, ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
			if from > 1<<30 {
				return nil, gpuserver.Errorf(gpuserver.KindInvalid, "past the end")
			}
			return d.Console(ctx, name, from, limit)
		},
	}},
	"console is lost when it rotates": {"a rotated console starts at its oldest byte", broken{
		console: func(d *fake.Driver, ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
			if from == 0 {
				return io.NopCloser(strings.NewReader("")), nil
			}
			return d.Console(ctx, name, from, limit)
		},
	}},
	"capacity is what is free": {"capacity names hosts and counts what is used", broken{
		capacity: func(d *fake.Driver, ctx context.Context) ([]gpuserver.Host, error) {
			hosts, err := d.Capacity(ctx)
			for range d.Cloud().VMs() {
				hosts[0].VCPUs -= flavor.VCPUs
			}
			return hosts, err
		},
	}},
	"capacity shrinks below what is used": {"capacity is never below what is used", broken{
		capacity: func(d *fake.Driver, ctx context.Context) ([]gpuserver.Host, error) {
			hosts, err := d.Capacity(ctx)
			if hosts[0].VCPUs < 100 {
				hosts[0].VCPUs = 0
			}
			return hosts, err
		},
	}},
	"no event": {"a VM that stops is told and listed", broken{
		events: func(d *fake.Driver) <-chan cloud.Event { return make(chan cloud.Event) },
	}},
	"close deletes the VMs": {"VMs live on after close and are found again", broken{
		close: func(d *fake.Driver) error {
			for _, vm := range d.Cloud().VMs() {
				d.Cloud().Vanish(vm.Name)
			}
			return d.Close()
		},
	}},
	"close leaves events open": {"close ends everything that open started", broken{
		close: func(d *fake.Driver) error { return nil },
	}},
	"close leaves a goroutine": {"close ends everything that open started", broken{
		close: func(d *fake.Driver) error {
			go time.Sleep(time.Hour)
			return d.Close()
		},
	}},
}

var flavor = gpuserver.Flavor{Name: "small", VCPUs: 2, MemoryMiB: 2048, DiskGiB: 10}

var cardFlavor = gpuserver.Flavor{Name: "gpu", VCPUs: 2, MemoryMiB: 2048, DiskGiB: 10, GPUs: gpuserver.GPUs{Model: "v100", Count: 1}}

// brokenEnv names the defect that TestBroken is run with.
const brokenEnv = "GPUSERVER_TEST_DEFECT"

// TestBroken runs the suite on a driver with a defect. It is a part of
// TestSuiteFindsDefects.
func TestBroken(t *testing.T) {
	defect, ok := defects[os.Getenv(brokenEnv)]
	if !ok {
		t.Skip("run by TestSuiteFindsDefects")
	}
	slots := []gpuserver.Slot{{Group: 32, Cards: []gpuserver.Card{{Address: "0000:44:00.0", Model: "v100"}}}}
	hosts := []gpuserver.Host{{Name: "a", VCPUs: 100, MemoryMiB: 1 << 20, DiskGiB: 1000, Slots: slots}}
	caps := &cloud.Capabilities{Keep: true, Cards: !defect.broken.chooses, Console: true, Events: true, Accelerated: true}
	c := fake.NewCloud(fake.Config{Hosts: hosts, Capabilities: caps})
	defer c.Close()
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	cloudtest.Run(t, func(*testing.T) cloud.Driver {
		b := defect.broken
		b.Driver = c.Open(owner)
		return &b
	}, cloudtest.Options{
		Spec:       cloud.Spec{Owner: owner, Flavor: flavor, Image: "debian"},
		Cards:      []string{"0000:44:00.0"},
		CardHost:   "a",
		CardFlavor: cardFlavor,
		Limit:      500 * time.Millisecond, // only what is missing for good takes as long
		Stop:       func(_ *testing.T, name string) { must(c.Stop(name, "shutdown")) },
		LeavePart:  func(_ *testing.T, name string) { c.LeavePart(name, owner) },
		AddForeign: func(t *testing.T, name string) { c.AddForeign(name); t.Cleanup(func() { c.Vanish(name) }) },
		Handed: func(_ *testing.T, name string) ([]byte, map[string]string) {
			s, err := c.Spec(name)
			must(err)
			return s.UserData, s.Metadata
		},
		Write:         func(_ *testing.T, name string, text []byte) { must(c.Write(name, text)) },
		RotateConsole: func(_ *testing.T, name string) { must(c.Write(name, make([]byte, 1<<20))) },
		Shrink:        func(t *testing.T) { c.SetHosts(nil); t.Cleanup(func() { c.SetHosts(hosts) }) },
	})
}

// Every promise can fail: a driver that breaks it is found out, by the subtest
// that stands for the promise.
func TestSuiteFindsDefects(t *testing.T) {
	for name, defect := range defects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestBroken$/^"+subtest(defect.promise)+"$", "-test.v")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte("--- FAIL: TestBroken/"+subtest(defect.promise))) {
				t.Errorf("the suite does not find that %s:\n%s", name, out)
			}
		})
	}
}

// subtest is the name that testing gives to a subtest.
func subtest(promise string) string { return strings.ReplaceAll(promise, " ", "_") }
