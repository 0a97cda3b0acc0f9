package fake

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/pci"
)

// Cloud holds VMs in memory. Its methods are what a test does behind a driver's
// back; they may be called concurrently.
type Cloud struct {
	cfg    Config
	ctx    context.Context // ends with the cloud; parent of every guest's
	cancel context.CancelFunc
	guests sync.WaitGroup
	faults faults
	calls  calls

	mu       sync.Mutex
	closed   bool
	serial   int64
	machines map[string]*machine
	hosts    []*host
	subs     map[chan cloud.Event]bool
	readings map[string]pci.Reading // by address; set by SetCard
	reserved map[string]bool        // addresses of cards that are held back
	// remembered is what drivers were told that they held back before.
	remembered []string
}

type machine struct {
	serial  int64
	vm      cloud.VM
	spec    cloud.Spec
	host    *host // nil: takes no room (a foreign one, or only a part)
	console *console
	stop    context.CancelFunc // ends the guest; never nil
}

// NewCloud makes a cloud without VMs.
func NewCloud(cfg Config) *Cloud {
	cfg.Name = cmp.Or(cfg.Name, "fake")
	cfg.ConsoleBytes = cmp.Or(cfg.ConsoleBytes, 64<<10)
	if cfg.Capabilities == nil {
		cfg.Capabilities = &cloud.Capabilities{Keep: true, Cards: true, Console: true, Events: true, Accelerated: true}
	}
	if cfg.Hosts == nil {
		cfg.Hosts = []gpuserver.Host{{Name: "fake", VCPUs: 1 << 20, MemoryMiB: 1 << 32, DiskGiB: 1 << 24, MaxVMs: 100_000}}
	}
	c := &Cloud{cfg: cfg, machines: map[string]*machine{}, subs: map[chan cloud.Event]bool{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.faults.set(cfg.Faults)
	c.SetHosts(cfg.Hosts)
	return c
}

// Open gives a driver whose owner tag is owner; "" takes every VM that has a
// tag for its own.
func (c *Cloud) Open(owner string) *Driver {
	d := &Driver{cloud: c, owner: owner}
	if c.cfg.Capabilities.Events {
		d.events = c.subscribe()
	}
	return d
}

// Close ends the cloud: its guests, which it waits for, its stalled calls and
// the event channels of its drivers.
func (c *Cloud) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.faults.set(nil)
	c.guests.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for ch := range c.subs {
		delete(c.subs, ch)
		close(ch)
	}
}

// VMs gives all VMs, foreign ones too, in the order of their creation.
func (c *Cloud) VMs() []cloud.VM { return c.list(func(string) bool { return true }) }

// Spec gives what a VM was made of; its Devices are those that it has, also where
// the cloud chose them.
func (c *Cloud) Spec(name string) (cloud.Spec, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.find(name)
	if err != nil {
		return cloud.Spec{}, err
	}
	return m.spec, nil
}

// Stop makes a VM stop by itself, and tells the drivers so.
func (c *Cloud) Stop(name, reason string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.find(name)
	if err != nil {
		return err
	}
	c.halt(m, reason)
	return nil
}

// Edit changes what is said of a VM, such as its state, without a word to drivers.
func (c *Cloud) Edit(name string, change func(*cloud.VM)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.find(name)
	if err == nil {
		change(&m.vm)
	}
	return err
}

// Fail makes a VM fail as a cloud's that took a create and then cannot carry it
// out, and tells the drivers so. why is as Create would have given it.
func (c *Cloud) Fail(name string, why *gpuserver.Error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.find(name)
	if err != nil {
		return err
	}
	m.stop()
	m.vm.State, m.vm.Fault, m.vm.FaultKind, m.vm.NoHost = cloud.StateError, why.Public, why.Kind, errors.Is(why, cloud.ErrNoHost)
	c.tell(cloud.Event{VM: name, State: cloud.StateError, Reason: why.Public})
	return nil
}

// Write appends to a VM's console.
func (c *Cloud) Write(name string, text []byte) error {
	c.mu.Lock()
	m, err := c.find(name)
	c.mu.Unlock()
	if err == nil {
		_, err = m.console.Write(text)
	}
	return err
}

// LeavePart makes a leftover: only a part of a VM, with an owner tag.
func (c *Cloud) LeavePart(name, owner string) {
	c.put(cloud.VM{Name: name, Owner: owner, State: cloud.StateRemains})
}

// AddForeign makes a running VM that carries no owner tag.
func (c *Cloud) AddForeign(name string) {
	c.put(cloud.VM{Name: name, State: cloud.StateRunning})
}

// Vanish takes a VM away without a word, as the reboot of a host does.
func (c *Cloud) Vanish(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.machines[name]; m != nil {
		c.remove(m)
	}
}

// Reset takes all VMs, faults and calls away.
func (c *Cloud) Reset() {
	c.SetFaults(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.machines {
		c.remove(m)
	}
	c.calls.clear()
}

func (c *Cloud) create(spec cloud.Spec) (cloud.VM, error) {
	if err := spec.Validate(); err != nil {
		return cloud.VM{}, err
	}
	spec.UserData = bytes.Clone(spec.UserData)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return cloud.VM{}, gpuserver.Errorf(gpuserver.KindUnavailable, "cloud %s is closed", c.cfg.Name)
	}
	if c.machines[spec.Name] != nil {
		return cloud.VM{}, gpuserver.Errorf(gpuserver.KindConflict, "cloud %s: a VM named %s, or a part of one, exists already", c.cfg.Name, spec.Name)
	}
	h, err := c.hostFor(spec)
	if err == nil && !c.cfg.Capabilities.Cards {
		spec.Devices, err = c.chooseCards(h, spec)
	} else if err == nil {
		err = c.devicesFree(h, spec)
	}
	if err != nil {
		return cloud.VM{}, err
	}
	m := c.insert(cloud.VM{Name: spec.Name, Owner: spec.Owner, Host: h.name, State: cloud.StateRunning}, spec)
	m.host = h
	h.used.add(spec.Flavor)
	c.boot(m)
	return m.vm, nil
}

// boot starts the guest of m. The caller holds mu.
func (c *Cloud) boot(m *machine) {
	if c.cfg.OnCreate != nil {
		c.cfg.OnCreate(m.spec)
	}
	if c.cfg.Guest == nil {
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	m.stop = cancel
	c.guests.Go(func() {
		defer cancel()
		c.cfg.Guest(ctx, m.spec, m.console)
		c.mu.Lock()
		defer c.mu.Unlock()
		if ctx.Err() == nil {
			c.halt(m, "shutdown")
		}
	})
}

func (c *Cloud) get(name string) (cloud.VM, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.find(name)
	if err != nil {
		return cloud.VM{}, err
	}
	return m.vm, nil
}

func (c *Cloud) list(ours func(owner string) bool) []cloud.VM {
	c.mu.Lock()
	found := make([]*machine, 0, len(c.machines))
	for _, m := range c.machines {
		if ours(m.vm.Owner) {
			found = append(found, m)
		}
	}
	slices.SortFunc(found, func(a, b *machine) int { return cmp.Compare(a.serial, b.serial) })
	vms := make([]cloud.VM, len(found))
	for i, m := range found {
		vms[i] = m.vm
	}
	c.mu.Unlock()
	return vms
}

func (c *Cloud) delete(name string, ours func(owner string) bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.machines[name]
	if m == nil {
		return nil
	}
	if !ours(m.vm.Owner) {
		return c.notOurs("delete", name)
	}
	c.remove(m)
	return nil
}

func (c *Cloud) keep(name string, ours func(owner string) bool) error {
	if !c.cfg.Capabilities.Keep {
		return gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s cannot keep a VM without running it", c.cfg.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.find(name)
	if err != nil {
		return err
	}
	if !ours(m.vm.Owner) {
		return c.notOurs("keep", name)
	}
	m.stop()
	m.vm.Kept = true
	if m.vm.State == cloud.StateRunning {
		m.vm.State = cloud.StateStopped
	}
	return nil
}

func (c *Cloud) console(name string, from, limit int64) (io.ReadCloser, error) {
	if !c.cfg.Capabilities.Console {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s has no consoles", c.cfg.Name)
	}
	c.mu.Lock()
	m, err := c.find(name)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(m.console.from(from, limit))), nil
}

// The functions below are called with mu held.

func (c *Cloud) find(name string) (*machine, error) {
	if m := c.machines[name]; m != nil {
		return m, nil
	}
	return nil, gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no VM named %s", c.cfg.Name, name)
}

func (c *Cloud) notOurs(verb, name string) error {
	return gpuserver.Errorf(gpuserver.KindRefused, "cloud %s: VM %s does not carry our owner tag; we do not %s what is not ours", c.cfg.Name, name, verb)
}

func (c *Cloud) insert(vm cloud.VM, spec cloud.Spec) *machine {
	c.serial++
	vm.ID, vm.CreatedAt = fmt.Sprintf("fake-%d", c.serial), time.Now()
	m := &machine{serial: c.serial, vm: vm, spec: spec, console: &console{keep: c.cfg.ConsoleBytes}, stop: func() {}}
	c.machines[vm.Name] = m
	return m
}

func (c *Cloud) remove(m *machine) {
	m.stop()
	delete(c.machines, m.vm.Name)
	if m.host != nil {
		m.host.used.sub(m.spec.Flavor)
	}
}

func (c *Cloud) halt(m *machine, reason string) {
	m.stop()
	if m.vm.State != cloud.StateRunning {
		return
	}
	m.vm.State = cloud.StateStopped
	c.tell(cloud.Event{VM: m.vm.Name, State: cloud.StateStopped, Reason: reason})
}

func (c *Cloud) tell(e cloud.Event) {
	for ch := range c.subs {
		select {
		case ch <- e:
		default: // events are hints; a reader this slow finds out by Get
		}
	}
}

// put inserts a VM that no Create made, in place of one of the same name.
func (c *Cloud) put(vm cloud.VM) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.machines[vm.Name]; m != nil {
		c.remove(m)
	}
	c.insert(vm, cloud.Spec{Name: vm.Name, Owner: vm.Owner})
}

// eventBuffer is how many events a driver may be behind before it loses some.
const eventBuffer = 8192

func (c *Cloud) subscribe() chan cloud.Event {
	ch := make(chan cloud.Event, eventBuffer)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		close(ch)
	} else {
		c.subs[ch] = true
	}
	return ch
}

func (c *Cloud) unsubscribe(ch chan cloud.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.subs[ch] {
		delete(c.subs, ch)
		close(ch)
	}
}
