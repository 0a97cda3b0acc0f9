package cloudtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"go.uber.org/goleak"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// console reads a piece of a VM's console or fails the test.
func (s *suite) console(name string, from, limit int64) []byte {
	s.Helper()
	r, err := s.d.Console(s.ctx(), name, from, limit)
	if err != nil {
		s.Fatalf("Console(%s, %d, %d): %v", name, from, limit, err)
	}
	text, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		s.Fatalf("reading Console(%s, %d, %d): %v", name, from, limit, err)
	}
	if int64(len(text)) > limit {
		s.Fatalf("Console(%s, %d, %d) gave %d bytes", name, from, limit, len(text))
	}
	return text
}

const consoleLimit = 64 << 20

func consoleOffsets(s *suite) {
	s.need(s.d.Capabilities().Console, "console")
	s.need(s.opts.Write != nil, "hook Write")
	vm := s.create()
	first, second := []byte("first line: ä\r\n"), []byte("second line\r\n")
	var end int64 // of the first line
	s.opts.Write(s.T, vm.Name, first)
	s.eventually(func() string {
		all := s.console(vm.Name, 0, consoleLimit)
		i := bytes.Index(all, first)
		if i < 0 {
			return fmt.Sprintf("the console lacks what the guest wrote; it has %q", all)
		}
		end = int64(i + len(first))
		return ""
	})
	s.opts.Write(s.T, vm.Name, second)
	s.eventually(func() string {
		if rest := s.console(vm.Name, end, consoleLimit); !bytes.Contains(rest, second) || bytes.Contains(rest, first) {
			return fmt.Sprintf("from offset %d on the console has %q", end, rest)
		}
		return ""
	})
	start := end - int64(len(first))
	if got := s.console(vm.Name, start, int64(len(first))); !bytes.Equal(got, first) {
		s.Errorf("from %d, %d bytes: %q, want %q", start, len(first), got, first)
	}
	if got := s.console(vm.Name, start+1, 3); !bytes.Equal(got, first[1:4]) {
		s.Errorf("from %d, 3 bytes: %q, want %q", start+1, got, first[1:4])
	}
	for _, from := range []int64{1 << 40, math.MaxInt64} {
		if got := s.console(vm.Name, from, consoleLimit); len(got) != 0 {
			s.Errorf("past the end, from %d: %q, want nothing", from, got)
		}
	}
	if got := s.console(vm.Name, start, 0); len(got) != 0 {
		s.Errorf("with limit 0: %q, want nothing", got)
	}
}

func consoleRotated(s *suite) {
	s.need(s.d.Capabilities().Console, "console")
	s.need(s.opts.RotateConsole != nil, "hook RotateConsole")
	vm := s.create()
	s.opts.RotateConsole(s.T, vm.Name)
	s.eventually(func() string {
		if len(s.console(vm.Name, 0, 16)) == 0 {
			return "the console is empty from offset 0 on"
		}
		return ""
	})
}

func consoleBoot(s *suite) {
	s.need(s.d.Capabilities().Console, "console")
	s.need(s.opts.HasGuest, "guest")
	vm := s.create()
	s.eventually(func() string {
		if len(s.console(vm.Name, 0, 1)) == 0 {
			return "the guest wrote nothing to its console"
		}
		return ""
	})
}

func stopped(s *suite) {
	s.need(s.opts.Stop != nil, "hook Stop")
	vm := s.create()
	s.opts.Stop(s.T, vm.Name)
	if s.d.Capabilities().Events {
		s.awaitEvent(vm.Name)
	} else if s.d.Events() != nil {
		s.Error("without the capability, Events gives a channel")
	}
	s.eventually(func() string {
		if vm := s.get(vm.Name); vm.State != cloud.StateStopped {
			return fmt.Sprintf("Get: state %s, want %s", vm.State, cloud.StateStopped)
		}
		return ""
	})
	if s.listed(vm.Name) == nil {
		s.Error("List lacks the stopped VM")
	}
	s.delete(vm.Name)
	s.gone(vm.Name)
}

// awaitEvent waits until the driver tells that a VM stopped.
func (s *suite) awaitEvent(name string) {
	s.Helper()
	ctx := s.ctx()
	for {
		select {
		case e, ok := <-s.d.Events():
			if !ok {
				s.Fatal("the channel of events was closed before Close")
			}
			if e.VM != name {
				continue // another test's
			}
			if e.State != cloud.StateStopped {
				s.Errorf("event %+v, want state %s", e, cloud.StateStopped)
			}
			return
		case <-ctx.Done():
			s.Fatalf("no event for %s in %v", name, s.opts.Limit)
		}
	}
}

// total sums the hosts' room, and checks each host.
func (s *suite) total() gpuserver.Host {
	s.Helper()
	hosts, err := s.d.Capacity(s.ctx())
	if err != nil {
		s.Fatalf("Capacity: %v", err)
	}
	if len(hosts) == 0 {
		s.Error("Capacity gives no host")
	}
	var sum gpuserver.Host
	seen := map[string]bool{}
	for _, h := range hosts {
		if h.Cloud != s.d.Name() || h.Name == "" || seen[h.Name] {
			s.Errorf("Capacity gives %+v, want cloud %s and a name of its own", h, s.d.Name())
		}
		seen[h.Name] = true
		if h.VCPUs < 0 || h.MemoryMiB < 0 || h.DiskGiB < 0 || h.MaxVMs < 0 {
			s.Errorf("Capacity gives less than nothing: %+v", h)
		}
		sum.VCPUs, sum.MemoryMiB, sum.DiskGiB = sum.VCPUs+h.VCPUs, sum.MemoryMiB+h.MemoryMiB, sum.DiskGiB+h.DiskGiB
	}
	return sum
}

// holds checks that room is enough for n VMs of the suite's flavor.
func (s *suite) holds(room gpuserver.Host, n int) {
	s.Helper()
	f := s.opts.Spec.Flavor
	if room.VCPUs < n*f.VCPUs || room.MemoryMiB < int64(n)*f.MemoryMiB || room.DiskGiB < int64(n)*f.DiskGiB {
		s.Errorf("capacity %+v is less than the %d VMs of %+v use that are there", room, n, f)
	}
}

func capacity(s *suite) {
	before := s.total()
	s.create()
	s.create()
	after := s.total()
	s.holds(after, 2)
	// Memory and processors in total do not change with our own VMs. The disk that
	// is really free may, by what others write, and a host that is itself a VM may
	// be given memory or lose some meanwhile.
	if after.VCPUs != before.VCPUs || after.MemoryMiB <= before.MemoryMiB-2*s.opts.Spec.Flavor.MemoryMiB {
		s.Errorf("with two more VMs the capacity in total went from %+v to %+v", before, after)
	}
}

func shrunkCapacity(s *suite) {
	s.need(s.opts.Shrink != nil, "hook Shrink")
	s.create()
	s.create()
	s.opts.Shrink(s.T)
	s.holds(s.total(), 2)
}

func endedContext(s *suite) {
	vm := s.create()
	ended, cancel := context.WithCancel(s.Context())
	cancel()
	spec := s.spec()
	calls := map[string]func() error{
		"Create":   func() error { _, err := s.d.Create(ended, spec); return err },
		"Get":      func() error { _, err := s.d.Get(ended, vm.Name); return err },
		"List":     func() error { _, err := s.d.List(ended); return err },
		"Delete":   func() error { return s.d.Delete(ended, vm.Name) },
		"Capacity": func() error { _, err := s.d.Capacity(ended); return err },
	}
	if s.d.Capabilities().Cards {
		calls["Cards"] = func() error { _, err := s.d.Cards(ended, s.opts.CardHost, []string{nowhere}); return err }
	}
	for name, call := range calls {
		done := make(chan error, 1)
		go func() { done <- call() }()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				s.Errorf("%s with an ended context: %v, want context.Canceled in it", name, err)
			}
			s.kind(err, name+" with an ended context", gpuserver.KindUnavailable)
		case <-time.After(s.opts.Limit):
			s.Fatalf("%s with an ended context does not return", name)
		}
	}
	s.get(vm.Name) // the deletion did not happen
	s.gone(spec.Name)
}

func liveOn(s *suite) {
	vm := s.create()
	if err := s.d.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	s.d = s.openDriver()
	found := s.listed(vm.Name)
	if found == nil {
		s.Fatal("after Close, a second driver's List lacks the VM")
	}
	if found.ID != vm.ID || found.Owner != vm.Owner {
		s.Errorf("a second driver finds %+v, the first one made %+v", *found, vm)
	}
	if st := s.get(vm.Name).State; st != cloud.StateRunning && st != cloud.StateBuilding {
		s.Errorf("after Close the VM is %s", st)
	}
	s.delete(vm.Name)
	s.gone(vm.Name)
}

// noLeaks fails the test at its end, after all drivers are closed, if a
// goroutine is still there that was not there before.
func (s *suite) noLeaks() {
	present := goleak.IgnoreCurrent()
	s.Cleanup(func() {
		deadline := time.Now().Add(s.opts.Limit)
		for {
			err := goleak.Find(present)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				s.Errorf("after Close: %v", err)
				return
			}
		}
	})
}

func closeEnds(s *suite) {
	vm := s.create()
	s.delete(vm.Name)
	for i := range 2 { // closing twice does no harm
		if err := s.d.Close(); err != nil {
			s.Errorf("Close, time %d: %v", i+1, err)
		}
	}
	events := s.d.Events()
	if events == nil {
		return
	}
	ctx := s.ctx()
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-ctx.Done():
			s.Fatal("Close does not close the channel of events")
		}
	}
}
