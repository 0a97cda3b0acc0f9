// Package cloudtest is the conformance suite of cloud drivers: what the fleet
// relies on, tried on any driver in the same way.
package cloudtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// Options say how the suite is run on one driver. Hooks act on the cloud behind
// the driver's back; a promise whose hook is nil is skipped, and the test's
// output says so.
type Options struct {
	// Spec is what VMs are made of; the suite sets Name (and, for some tests,
	// UserData and Metadata). Its Owner is the tag that drivers are opened with.
	Spec cloud.Spec
	// Prefix starts the names of all VMs; "" is "ct". Random letters follow.
	Prefix string
	// Limit is how long the suite waits for anything that must happen, such as
	// a real guest's boot; 0 is 30 s. It never makes a test slower that passes.
	Limit time.Duration
	// Cards are addresses of GPUs on CardHost that VMs of the suite may have, in
	// groups of their own; none: promises about cards are skipped but for those
	// that need none.
	Cards    []string
	CardHost string
	// CardFlavor is a flavor with one GPU, for a cloud that chooses the cards
	// itself; the zero value: what is promised of it is skipped.
	CardFlavor gpuserver.Flavor
	// HasGuest says that VMs run a guest that writes to its console by itself.
	HasGuest bool

	// Stop makes a VM stop by itself, as when its guest shuts down.
	Stop func(t *testing.T, name string)
	// LeavePart leaves a part of a VM with our owner tag behind (a volume).
	LeavePart func(t *testing.T, name string)
	// AddForeign makes a VM that lacks our owner tag; the hook cleans it up.
	AddForeign func(t *testing.T, name string)
	// Handed gives the user data and metadata as the VM's guest finds them.
	Handed func(t *testing.T, name string) (userData []byte, metadata map[string]string)
	// Write makes the guest write text to its console.
	Write func(t *testing.T, name string, text []byte)
	// RotateConsole makes the guest write until the console's oldest bytes are
	// rotated away.
	RotateConsole func(t *testing.T, name string)
	// Shrink takes the cloud's room away for the rest of the test.
	Shrink func(t *testing.T)
}

// Run tries every promise of package cloud on a driver. Each call of open gives
// a new driver of the same cloud, as a restart of the server does; the suite
// closes it. VMs that a failed test leaves are deleted.
func Run(t *testing.T, open func(t *testing.T) cloud.Driver, opts Options) {
	opts.Prefix = cmp.Or(opts.Prefix, "ct")
	opts.Limit = cmp.Or(opts.Limit, 30*time.Second)
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) {
			s := &suite{T: t, open: open, opts: opts}
			if p.leak {
				s.noLeaks() // before the first driver is opened
			}
			s.d = s.openDriver()
			p.check(s)
		})
	}
}

// promise is one sentence of the contract.
type promise struct {
	name  string
	leak  bool // goroutines that outlive the drivers are a failure
	check func(*suite)
}

var promises = []promise{
	{"name and capabilities are data", false, nameAndCapabilities},
	{"create, get, list, delete", false, createGetListDelete},
	{"an impossible spec is invalid", false, invalidSpec},
	{"a second create is a conflict and changes nothing", false, conflict},
	{"concurrent creates of one name make one VM", false, concurrentCreates},
	{"concurrent creates of many names make them all", false, manyCreates},
	{"delete of nothing is success", false, deleteNothing},
	{"concurrent deletes all succeed", false, concurrentDeletes},
	{"a name can be used again after delete", false, reuse},
	{"get, keep and console of nothing are not found", false, nothingThere},
	{"what is left of a VM is listed and can be deleted", false, remains},
	{"a VM without our tag is left alone", false, foreign},
	{"user data and metadata reach the guest", false, handed},
	{"console offsets", false, consoleOffsets},
	{"a rotated console starts at its oldest byte", false, consoleRotated},
	{"a guest writes to its console", false, consoleBoot},
	{"a VM that stops is told and listed", false, stopped},
	{"keep stops a VM and leaves it there", false, keep},
	{"a kept VM holds its devices until it is deleted", false, keptDevices},
	{"a kept VM holds the card that the cloud chose", false, keptChoice},
	{"cards are read, or nothing is said of them", false, cards},
	{"capacity names hosts and counts what is used", false, capacity},
	{"capacity is never below what is used", false, shrunkCapacity},
	{"an ended context ends a call", false, endedContext},
	{"VMs live on after close and are found again", false, liveOn},
	{"close ends everything that open started", true, closeEnds},
}

// suite is one test with its driver.
type suite struct {
	*testing.T
	open func(t *testing.T) cloud.Driver
	opts Options
	d    cloud.Driver
}

// openDriver opens a driver that is closed at the test's end.
func (s *suite) openDriver() cloud.Driver {
	s.Helper()
	d := s.open(s.T)
	s.Cleanup(func() {
		if err := d.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	})
	return d
}

// ctx ends after the suite's limit or with the test.
func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), s.opts.Limit)
	s.Cleanup(cancel)
	return ctx
}

// spec gives a spec with a name that nobody else uses. Whatever has that name
// at the test's end is deleted.
func (s *suite) spec() cloud.Spec {
	spec := s.opts.Spec
	spec.Name = s.name()
	spec.Metadata = maps.Clone(spec.Metadata)
	return spec
}

func (s *suite) name() string {
	name := s.opts.Prefix + "-" + strings.ToLower(rand.Text()[:10])
	s.Cleanup(func() { s.tidy(name) })
	return name
}

// tidy deletes what a test left, through a driver of its own, since the test's
// may be closed already.
func (s *suite) tidy(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Limit)
	defer cancel()
	d := s.open(s.T)
	defer d.Close()
	if err := d.Delete(ctx, name); err != nil && gpuserver.KindOf(err) != gpuserver.KindRefused {
		s.Errorf("cleaning up: Delete(%s): %v", name, err)
	}
}

// create makes a VM or fails the test.
func (s *suite) create() cloud.VM {
	s.Helper()
	vm, err := s.d.Create(s.ctx(), s.spec())
	if err != nil {
		s.Fatalf("Create: %v", err)
	}
	return vm
}

// get finds a VM or fails the test.
func (s *suite) get(name string) cloud.VM {
	s.Helper()
	vm, err := s.d.Get(s.ctx(), name)
	if err != nil {
		s.Fatalf("Get(%s): %v", name, err)
	}
	return vm
}

// listed gives the VM of that name in List, or nil.
func (s *suite) listed(name string) *cloud.VM {
	s.Helper()
	vms, err := s.d.List(s.ctx())
	if err != nil {
		s.Fatalf("List: %v", err)
	}
	var found *cloud.VM
	for i, vm := range vms {
		if vm.Name != name {
			continue
		}
		if found != nil {
			s.Errorf("List has %s twice", name)
		}
		found = &vms[i]
	}
	return found
}

func (s *suite) delete(name string) {
	s.Helper()
	if err := s.d.Delete(s.ctx(), name); err != nil {
		s.Fatalf("Delete(%s): %v", name, err)
	}
}

// gone fails the test unless nothing of that name is there.
func (s *suite) gone(name string) {
	s.Helper()
	_, err := s.d.Get(s.ctx(), name)
	s.kind(err, "Get of a VM that is gone", gpuserver.KindNotFound)
	if vm := s.listed(name); vm != nil {
		s.Errorf("List has %s, which is gone: %+v", name, *vm)
	}
}

// kind fails the test unless err is of one of the kinds.
func (s *suite) kind(err error, what string, kinds ...gpuserver.Kind) {
	s.Helper()
	if got := gpuserver.KindOf(err); !slices.Contains(kinds, got) {
		s.Errorf("%s: error %v of kind %q, want kind %q", what, err, got, kinds)
	}
}

// eventually repeats a check until it gives "" and fails with its last word
// otherwise. It is for what a real cloud does in its own time.
func (s *suite) eventually(check func() string) {
	s.Helper()
	ctx, pause := s.ctx(), 5*time.Millisecond
	for {
		last := check()
		if last == "" {
			return
		}
		select {
		case <-ctx.Done():
			s.Fatalf("after %v: %s", s.opts.Limit, last)
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		}
	}
}

// need skips the test if a hook or capability is missing.
func (s *suite) need(has bool, what string) {
	s.Helper()
	if !has {
		s.Skipf("not tried: no %s", what)
	}
}
