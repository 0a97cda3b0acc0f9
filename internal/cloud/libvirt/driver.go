// Package libvirt is the cloud of one machine: VMs of QEMU kept by libvirtd,
// spoken to by its RPC, on a NAT network of their own that reaches the internet
// and nothing else.
//
// What there is of a VM: a transient domain that carries our owner tag, and a
// folder under Config.Dir with a record, the disk and the config drive. The
// folder is made first and removed last, so a VM is gone when its folder is.
// libvirtd may go away and come back at any time; calls meanwhile fail with
// KindUnavailable, and running VMs go on.
package libvirt

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// Driver is the machine's libvirt as a cloud. Make one with Open.
type Driver struct {
	cfg    Config
	log    *slog.Logger
	calls  *link         // for calls
	hints  *link         // for events alone, so that a slow call holds none back
	looks  chan struct{} // readings of cards under way
	pool   pool          // the network's addresses
	names  cloud.Turns
	net    network
	room   sync.Mutex // held from the check of the room to the claim of it
	accel  accelState
	events chan cloud.Event

	stop    context.CancelFunc // ends the goroutines
	running context.Context    // ends with Close
	work    sync.WaitGroup     // everything that was started
	closing sync.Once
	startMu sync.Mutex // guards closed: no goroutine starts once Close waits
	closed  bool
}

var _ cloud.Driver = (*Driver)(nil)

// Open gives a driver. With a wrong configuration it fails with KindInvalid.
// With libvirtd away it succeeds too: calls fail with KindUnavailable until it
// is back. ctx bounds the first look at libvirtd only.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Driver, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{cfg.vmsDir(), cfg.consolesDir(), cfg.addressesDir()} {
		// QEMU's user passes through to its own files and lists nothing.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, &gpuserver.Error{
				Kind: gpuserver.KindUnavailable, Op: "libvirt: open " + cfg.Name, Err: err,
				Public: "the folder " + dir + " of cloud " + cfg.Name + " cannot be made; make it writable or set libvirt.dir",
			}
		}
	}
	running, stop := context.WithCancel(context.Background())
	d := &Driver{
		cfg: cfg, log: log.With("cloud", cfg.Name),
		calls: newLink(cfg.Socket), hints: newLink(cfg.Socket),
		pool: newPool(cfg.Network, cfg.addressesDir()), looks: make(chan struct{}, maxLooks),
		events: make(chan cloud.Event, 256), running: running, stop: stop,
	}
	if err := d.settle(ctx); err != nil {
		d.log.Warn("the cloud cannot be used yet", "socket", cfg.Socket, "err", err)
	}
	d.start(d.watchEvents)
	d.start(d.watchHost)
	return d, nil
}

// settle makes the network and finds out about acceleration; it is repeated
// until it succeeded once.
func (d *Driver) settle(ctx context.Context) error {
	if err := d.ensureNetwork(ctx); err != nil {
		return err
	}
	return d.findAcceleration(ctx)
}

// start runs f in a goroutine that Close waits for. After Close it does nothing
// and reports false.
func (d *Driver) start(f func()) bool {
	d.startMu.Lock()
	defer d.startMu.Unlock()
	if d.closed {
		return false
	}
	d.work.Go(f)
	return true
}

// Name implements cloud.Driver.
func (d *Driver) Name() string { return d.cfg.Name }

// Events implements cloud.Driver.
func (d *Driver) Events() <-chan cloud.Event { return d.events }

// Close ends the connections and goroutines. VMs and the network go on.
func (d *Driver) Close() error {
	d.closing.Do(func() {
		d.startMu.Lock()
		d.closed = true
		d.startMu.Unlock()
		d.stop()
		d.calls.close()
		d.hints.close()
		d.work.Wait()
		close(d.events)
	})
	return nil
}

// watchHost repairs what others take away (the network after net-destroy, the
// rules after a flush), and forgets old consoles.
func (d *Driver) watchHost() {
	const every, sweepEvery = 5 * time.Second, time.Hour
	tick := time.NewTicker(every)
	defer tick.Stop()
	swept := time.Time{}
	for {
		if time.Since(swept) > sweepEvery {
			d.sweepConsoles()
			swept = time.Now()
		}
		select {
		case <-d.running.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(d.running, time.Minute)
		if err := d.settle(ctx); err != nil && d.running.Err() == nil {
			d.log.Debug("looking after the network", "err", err)
		}
		cancel()
	}
}

func (c Config) vmsDir() string           { return filepath.Join(c.Dir, "vms") }
func (c Config) consolesDir() string      { return filepath.Join(c.Dir, "consoles") }
func (c Config) addressesDir() string     { return filepath.Join(c.Dir, "addresses") }
func (c Config) vmDir(vm string) string   { return filepath.Join(c.vmsDir(), vm) }
func (c Config) console(vm string) string { return filepath.Join(c.consolesDir(), vm+".log") }
