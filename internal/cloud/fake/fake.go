// Package fake is a cloud in memory: a driver for tests and benchmarks that can
// fail or stall at a named call, and that can run as a process of its own so
// that its VMs outlive the server.
//
// A Cloud holds the VMs; any number of drivers are opened on it, one after the
// other or at once, as restarts of the server do with a real cloud.
package fake

import (
	"context"
	"io"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// Config is what a cloud in memory is like. The zero value is a cloud of one
// very large host without faults or delays.
type Config struct {
	// Name is the cloud's name; "" is "fake".
	Name string
	// Hosts are where VMs run. A create that fits on none of them is
	// KindCapacity. Nil is one host named "fake" on which 100,000 VMs fit.
	Hosts []gpuserver.Host
	// Capabilities are what drivers report; nil is everything but direct boot.
	Capabilities *cloud.Capabilities
	// Delays is how long a call ("create", "delete", …) takes.
	Delays map[string]time.Duration
	// Faults are there from the start; SetFaults replaces them.
	Faults []Fault
	// Reserves makes drivers hold cards back without their VM; else Reserve is
	// KindInvalid.
	Reserves bool
	// ConsoleBytes is how much of each VM's console is kept at least; 0 is 64 KiB.
	ConsoleBytes int
	// OnCreate is called once for each VM that came to be, before its create is
	// answered. It must neither block nor call the cloud.
	OnCreate func(cloud.Spec)
	// Guest plays the guest of a VM, in a goroutine of its own: ctx ends when
	// the VM is deleted, kept or stopped, and with the cloud; what it writes is
	// the VM's console. The VM shuts down when it returns. Nil is a guest that
	// does nothing and never ends, and costs no goroutine.
	Guest func(ctx context.Context, spec cloud.Spec, console io.Writer)
}

// Driver is one driver of a Cloud. It implements cloud.Driver.
type Driver struct {
	cloud  *Cloud
	owner  string
	events chan cloud.Event
	once   sync.Once
}

var _ cloud.Driver = (*Driver)(nil)

// New gives a driver of a new cloud. Its owner tag is open: every VM that has a
// tag counts as ours. A test that set Config.Guest closes d.Cloud() at its end.
func New(cfg Config) *Driver { return NewCloud(cfg).Open("") }

// Cloud is the cloud that d is a driver of.
func (d *Driver) Cloud() *Cloud { return d.cloud }

// Name implements cloud.Driver.
func (d *Driver) Name() string { return d.cloud.cfg.Name }

// Capabilities implements cloud.Driver.
func (d *Driver) Capabilities() cloud.Capabilities { return *d.cloud.cfg.Capabilities }

// Create implements cloud.Driver. It passes the points "create.before" (nothing
// has happened) and "create.after" (the VM is there).
func (d *Driver) Create(ctx context.Context, spec cloud.Spec) (cloud.VM, error) {
	return at(ctx, d.cloud, "create", spec.Name, func() (cloud.VM, error) { return d.cloud.create(spec) })
}

// Get implements cloud.Driver.
func (d *Driver) Get(ctx context.Context, name string) (cloud.VM, error) {
	return at(ctx, d.cloud, "get", name, func() (cloud.VM, error) { return d.cloud.get(name) })
}

// List implements cloud.Driver. The VMs come in the order of their creation.
func (d *Driver) List(ctx context.Context) ([]cloud.VM, error) {
	return at(ctx, d.cloud, "list", "", func() ([]cloud.VM, error) { return d.cloud.list(d.ours), nil })
}

// Delete implements cloud.Driver.
func (d *Driver) Delete(ctx context.Context, name string) error {
	_, err := at(ctx, d.cloud, "delete", name, func() (struct{}, error) { return struct{}{}, d.cloud.delete(name, d.ours) })
	return err
}

// Keep implements cloud.Driver.
func (d *Driver) Keep(ctx context.Context, name string) error {
	_, err := at(ctx, d.cloud, "keep", name, func() (struct{}, error) { return struct{}{}, d.cloud.keep(name, d.ours) })
	return err
}

// Console implements cloud.Driver.
func (d *Driver) Console(ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
	return at(ctx, d.cloud, "console", name, func() (io.ReadCloser, error) { return d.cloud.console(name, from, limit) })
}

// Capacity implements cloud.Driver.
func (d *Driver) Capacity(ctx context.Context) ([]gpuserver.Host, error) {
	return at(ctx, d.cloud, "capacity", "", func() ([]gpuserver.Host, error) { return d.cloud.capacity(), nil })
}

// Events implements cloud.Driver.
func (d *Driver) Events() <-chan cloud.Event { return d.events }

// Close implements cloud.Driver. The cloud and its VMs go on; Cloud.Close ends
// them.
func (d *Driver) Close() error {
	d.once.Do(func() { d.cloud.unsubscribe(d.events) })
	return nil
}

// ours reports whether a VM with this owner tag is one of the driver's.
func (d *Driver) ours(owner string) bool { return owner != "" && (d.owner == "" || d.owner == owner) }
