package openstack

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// A server that fails at once, or late: the reason is Nova's, the server is gone.
func TestErrorWhileBuilding(t *testing.T) {
	for _, tt := range []struct {
		fault string
		kind  gpuserver.Kind
	}{
		{"No valid host was found. There are not enough hosts available.", gpuserver.KindCapacity},
		{"Exceeded maximum number of retries. Exceeded max scheduling attempts 3 for instance x.", gpuserver.KindCapacity},
		{"Build of instance x aborted: Flavor's disk is too small for requested image.", gpuserver.KindInvalid},
		{"Build of instance x aborted: Failed to allocate the network(s), not rescheduling.", gpuserver.KindUnavailable},
	} {
		t.Run(tt.fault, func(t *testing.T) {
			s := newStandin(t)
			cfg := s.config()
			cfg.Ports = true
			d := open(t, cfg)
			s.failNew(tt.fault)
			_, err := d.Create(t.Context(), spec(cfg, "vm-1"))
			wantKind(t, err, tt.kind, tt.fault)
			if got := errors.Is(err, cloud.ErrNoHost); got != (tt.kind == gpuserver.KindCapacity) {
				t.Errorf("it says that no host was found: %t", got)
			}
			if s.alive() != 0 || len(s.parts) != 0 {
				t.Errorf("%d servers and %d ports are left", s.alive(), len(s.parts))
			}
		})
	}
}

// failNew makes servers that are asked for from now on fail.
func (s *standin) failNew(fault string) {
	s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
		if !is(r, "POST", "/compute/v2.1/servers") || strings.HasSuffix(r.URL.Path, "/action") {
			return false
		}
		serve(w, r)
		s.do(func() {
			m := s.machines[len(s.machines)-1]
			m.Status, m.Task, m.late = "ERROR", "", fault
		})
		return true
	})
}

// A server that fails when it was built already: the fleet is told at once.
func TestErrorLate(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	m := s.find("vm-1")
	s.do(func() { m.Status, m.Fault, m.Updated = "ERROR", "libvirt lost it", s.now() })
	if e := <-d.Events(); e.VM != "vm-1" || e.State != cloud.StateError || !strings.Contains(e.Reason, "libvirt lost it") {
		t.Errorf("event %+v", e)
	}
	if vm, err := d.Get(t.Context(), "vm-1"); err != nil || vm.State != cloud.StateError || vm.Fault != "libvirt lost it" {
		t.Errorf("Get gives %+v, %v", vm, err)
	}
	if err := d.Delete(t.Context(), "vm-1"); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

func TestDeletedByAStranger(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	m := s.find("vm-1")
	s.do(func() { s.vanish(m) })
	if e := <-d.Events(); e.VM != "vm-1" || e.State != cloud.StateRemains || !strings.Contains(e.Reason, "not by us") {
		t.Errorf("event %+v", e)
	}
	_, err := d.Get(t.Context(), "vm-1")
	wantKind(t, err, gpuserver.KindNotFound)
}

// A server that is built for ever is deleted, and its create fails.
func TestStuckInBuild(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	cfg.BuildTimeout, cfg.times.perGiB = 50*time.Millisecond, time.Nanosecond
	d := open(t, cfg)
	s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
		if is(r, "POST", "/compute/v2.1/servers") {
			serve(w, r)
			s.do(func() { s.machines[0].stuck = true })
			return true
		}
		if is(r, "DELETE", "/compute") {
			s.do(func() { s.machines[0].stuck = false })
		}
		return false
	})
	_, err := d.Create(t.Context(), spec(cfg, "vm-1"))
	wantKind(t, err, gpuserver.KindUnavailable, "still being built")
	if n := s.alive(); n != 0 {
		t.Errorf("%d servers are left", n)
	}
}

// The longer a VM's memory takes to be pinned, the longer it may be built.
func TestBuildTimeGrowsWithMemory(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	cfg.BuildTimeout, cfg.times.perGiB = time.Nanosecond, time.Minute
	d := open(t, cfg)
	big := spec(cfg, "vm-1")
	big.Flavor.MemoryMiB = 64 << 10
	if _, err := d.Create(t.Context(), big); err != nil {
		t.Errorf("Create with 64 GiB: %v", err)
	}
}

// A server that is deleted for ever: the delete says so, and succeeds once it is
// gone.
func TestStuckInDeleting(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	d := open(t, cfg)
	create(t, d, "vm-1")
	m := s.find("vm-1")
	s.do(func() { m.stuck = true })
	d.cfg.DeleteTimeout = 20 * time.Millisecond
	wantKind(t, d.Delete(t.Context(), "vm-1"), gpuserver.KindUnavailable, "not gone", "deleting", "reset its state")
	d.cfg.DeleteTimeout = patience
	s.do(func() { m.stuck = false })
	if err := d.Delete(t.Context(), "vm-1"); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

// A cloud that keeps deleted servers for a while keeps their devices with them.
func TestSoftDeleted(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	s.do(func() { s.reclaim = true })
	if err := d.Delete(t.Context(), "vm-1"); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	if n := s.alive(); n != 0 {
		t.Errorf("%d servers are left", n)
	}
}

// An image or flavor is replaced by one of the same name, or gone.
func TestImageAndFlavorGone(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	s.do(func() {
		s.images["debian"] = "99999999-2222-3333-4444-555555555555"
		f := s.sizes["small"]
		f.ID = "f-new"
		s.sizes["small"] = f
	})
	create(t, d, "vm-2")
	if m := s.find("vm-2"); m.Image != "99999999-2222-3333-4444-555555555555" || m.Flavor != "small" {
		t.Errorf("the VM was made of image %s and flavor %q", m.Image, m.Flavor)
	}
	s.do(func() { delete(s.images, "debian") })
	_, err := d.Create(t.Context(), spec(d.cfg, "vm-3"))
	wantKind(t, err, gpuserver.KindNotFound, `no image named "debian"`)
	s.do(func() { s.images["debian"] = "11111111-2222-3333-4444-555555555555"; delete(s.sizes, "small") })
	_, err = d.Create(t.Context(), spec(d.cfg, "vm-3"))
	wantKind(t, err, gpuserver.KindNotFound, `no flavor named "small"`)
}

// The clocks of cloud and server may differ by hours.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{-26 * time.Hour, 26 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			s := newStandin(t)
			s.skew = skew
			d := open(t, s.config())
			create(t, d, "vm-1")
			m := s.find("vm-1")
			s.do(func() { m.Status, m.Updated = "SHUTOFF", s.now() })
			if e := <-d.Events(); e.State != cloud.StateStopped {
				t.Errorf("event %+v", e)
			}
			if err := d.Delete(t.Context(), "vm-1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A call that the cloud does not answer ends with its caller; other clouds and
// Close do not wait for it.
func TestSlowAPI(t *testing.T) {
	slow, quick := newStandin(t), newStandin(t)
	d, other := open(t, slow.config()), open(t, quick.config())
	create(t, d, "vm-1")
	stalled, release := make(chan struct{}, 100), make(chan struct{})
	defer close(release)
	slow.intercept(func(http.ResponseWriter, *http.Request, http.HandlerFunc) bool {
		stalled <- struct{}{}
		<-release
		return true
	})
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 3)
	go func() { _, err := d.Create(ctx, spec(d.cfg, "vm-2")); errs <- err }()
	go func() { _, err := d.List(ctx); errs <- err }()
	go func() { errs <- d.Delete(ctx, "vm-1") }()
	<-stalled
	create(t, other, "vm-1")
	cancel()
	for range 3 {
		if err := <-errs; !errors.Is(err, context.Canceled) || gpuserver.KindOf(err) != gpuserver.KindUnavailable {
			t.Errorf("a call whose context ended: %v", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// A call that takes too long is given up by itself.
func TestCallTimeout(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	cfg.CallTimeout = 50 * time.Millisecond
	d := open(t, cfg)
	release := make(chan struct{})
	defer close(release)
	s.intercept(func(http.ResponseWriter, *http.Request, http.HandlerFunc) bool {
		<-release
		return true
	})
	_, err := d.Get(t.Context(), "vm-1")
	wantKind(t, err, gpuserver.KindUnavailable, "did not answer in time")
}

// The cloud cannot be reached for an hour, and its records of what was deleted
// meanwhile are gone, too.
func TestPartitionForAnHour(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	create(t, d, "vm-2")
	var down atomic.Bool
	down.Store(true)
	s.intercept(func(w http.ResponseWriter, _ *http.Request, _ http.HandlerFunc) bool {
		if !down.Load() {
			return false
		}
		cut(w, nil, nil)
		return true
	})
	_, err := d.List(t.Context())
	wantKind(t, err, gpuserver.KindUnavailable, "cannot be reached")
	_, err = d.Create(t.Context(), spec(d.cfg, "vm-3"))
	wantKind(t, err, gpuserver.KindUnavailable, "cannot be reached")
	wantKind(t, d.Delete(t.Context(), "vm-1"), gpuserver.KindUnavailable)

	lost := s.find("vm-1").ID
	d.watch.mu.Lock()
	d.watch.fullAt = d.watch.fullAt.Add(-time.Hour)
	d.watch.mu.Unlock()
	s.do(func() {
		s.machines = slices.DeleteFunc(s.machines, func(m *machine) bool { return m.ID == lost })
	})
	down.Store(false)
	vms, err := d.List(t.Context())
	if err != nil || len(vms) != 1 || vms[0].Name != "vm-2" {
		t.Errorf("List gives %+v, %v; want vm-2 alone", vms, err)
	}
}

// A proxy that lost its way answers 404 to everything: no VM is gone for that, nor
// for a Keystone that cannot be found.
func TestNotFoundByAProxy(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	s.intercept(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
		switch {
		case is(r, "POST", "/identity"):
			answer(w, 404, `{"error": {"code": 404, "message": "Not Found"}}`)
		default:
			answer(w, 404, "<html><head><title>404 Not Found</title></head></html>")
		}
		return true
	})
	for range 2 {
		_, err := d.Get(t.Context(), "vm-1")
		wantKind(t, err, gpuserver.KindUnavailable, "404")
		wantKind(t, d.Delete(t.Context(), "vm-1"), gpuserver.KindUnavailable, "404")
		d.login.drop(d.login.get())
	}
	s.intercept(nil)
	if vm, err := d.Get(t.Context(), "vm-1"); err != nil || vm.State != cloud.StateRunning {
		t.Errorf("Get gives %+v, %v", vm, err)
	}
}
