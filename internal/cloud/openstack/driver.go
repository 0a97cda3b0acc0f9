// Package openstack is a project on an OpenStack as a cloud: VMs are servers of
// Nova, found by their names and by an owner tag that is kept as metadata too.
//
// All servers of the project are read by one list that everybody shares: changes
// only, and whole every few minutes (see watch). What belongs to one VM costs at
// most three calls to make and two to delete; docs/openstack.md has the table.
// Names are not unique on OpenStack, so one operation at a time works on a name,
// and a create whose answer was lost is looked for before it is given up.
//
// A server is gone when Nova says DELETED or 404, never because a list lacks it
// or its cell is down.
package openstack

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/pci"
)

// Driver is a project of an OpenStack. Make one with Open.
type Driver struct {
	cfg    Config
	log    *slog.Logger
	wire   *wire
	login  login
	watch  *watch
	parts  *parts
	names  cloud.Turns
	launch *rate.Limiter // of POST /servers
	found  *directory    // names of the cloud's things, resolved
	quota  keystoneLimits
	spools *consoles
	// volumesNamed are the servers whose volumes were named.
	volumesNamed sync.Map
	admin        *Driver      // speaks to Placement as an administrator; nil: nobody does
	held         reservations // cards that we hold back there
	events       chan cloud.Event

	stop    context.CancelFunc // ends the goroutines and all calls
	running context.Context    // ends with Close
	work    sync.WaitGroup
	closing sync.Once
	startMu sync.Mutex // guards closed
	closed  bool
}

var _ cloud.Driver = (*Driver)(nil)

// Open gives a driver. With a wrong configuration it fails with KindInvalid.
// Nothing is asked of the cloud: with Keystone away calls fail with
// KindUnavailable until it is back.
func Open(cfg Config, log *slog.Logger) (*Driver, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	d := &Driver{
		cfg: cfg, log: log.With("cloud", cfg.Name),
		wire: &wire{dial: cfg.dial}, watch: newWatch(), parts: newParts(), found: newDirectory(), spools: newConsoles(),
		launch: rate.NewLimiter(rate.Inf, 1), login: login{turns: newTurns()},
		events: make(chan cloud.Event, 256), running: running, stop: stop,
	}
	if cfg.LaunchesPerMinute > 0 {
		d.launch = rate.NewLimiter(rate.Limit(float64(cfg.LaunchesPerMinute)/60), 1)
	}
	if cfg.Placement != nil {
		as := cfg
		as.Credentials = *cfg.Placement
		d.admin = idleDriver(as, log)
	}
	d.start(d.poll)
	return d, nil
}

// start runs f in a goroutine that Close waits for; after Close it does nothing.
func (d *Driver) start(f func()) {
	d.startMu.Lock()
	defer d.startMu.Unlock()
	if !d.closed {
		d.work.Go(f)
	}
}

// bind gives a context that ends with ctx and with the driver.
func (d *Driver) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	end := context.AfterFunc(d.running, cancel)
	return ctx, func() { end(); cancel() }
}

// Name implements cloud.Driver.
func (d *Driver) Name() string { return d.cfg.Name }

// Capabilities implements cloud.Driver.
func (d *Driver) Capabilities() cloud.Capabilities {
	c := cloud.Capabilities{Keep: true, Console: true, Events: true, Leavable: true, Accelerated: !d.cfg.Emulated}
	if d.cfg.Emulated {
		c.Note = "the configuration says that its hypervisors emulate (openstack.emulated)"
	}
	return c
}

// Cards implements cloud.Driver: a card is seen by its guest only.
func (d *Driver) Cards(context.Context, string, []string) ([]pci.Reading, error) {
	return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s does not show the state of its GPUs: OpenStack has no call for it; what their guests report is all that is known", d.cfg.Name)
}

// Events implements cloud.Driver. They come with the shared list, so a VM that
// stopped is told within the time between two lists.
func (d *Driver) Events() <-chan cloud.Event { return d.events }

// tell sends an event; one that nobody reads in time is lost.
func (d *Driver) tell(e cloud.Event) {
	d.startMu.Lock()
	defer d.startMu.Unlock()
	if d.closed {
		return
	}
	select {
	case d.events <- e:
	default:
	}
}

// Close ends the driver's calls and goroutines. VMs go on.
func (d *Driver) Close() error {
	d.closing.Do(func() {
		d.startMu.Lock()
		d.closed = true
		d.startMu.Unlock()
		d.stop()
		d.work.Wait()
		d.wire.close()
		if d.admin != nil {
			d.admin.stop()
			d.admin.wire.close()
		}
		close(d.events)
	})
	return nil
}

// turns lets one caller at a time read something, for all that wait for it.
type turns struct {
	sem   chan struct{}
	began time.Time // of the last reading
	err   error     // and its outcome
}

func newTurns() turns { return turns{sem: make(chan struct{}, 1)} }

// do returns once a reading is over that began after do was called: its own or
// another caller's. A hundred callers at once cost two readings.
func (t *turns) do(ctx context.Context, read func(context.Context) error) error {
	asked := time.Now()
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case t.sem <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.sem }()
	if t.began.After(asked) {
		return t.err
	}
	began := time.Now()
	err := read(ctx)
	if err != nil && ctx.Err() != nil { // says nothing to the others
		return err
	}
	t.began, t.err = began, err
	return err
}
