package openstack

import (
	"context"
	"net/http"
	"testing"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// A create whose caller goes while Nova is asked for the server is answered, and the
// server is left: what Nova makes of it is found by the next who asks. Nobody waits
// for a server that is built for long.
func TestCreateIsLeft(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	d := open(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	leaveAtPost(s, cancel)
	_, err := d.Create(ctx, spec(cfg, "vm-1"))
	wantKind(t, err, gpuserver.KindUnavailable)
	d.watch.mu.Lock()
	id := d.watch.made["vm-1"]
	d.watch.mu.Unlock()
	if m := s.find("vm-1"); m == nil || id != m.ID {
		t.Errorf("the answer to the POST was not waited for: %q is noted", id)
	}
	if n := s.count("DELETE /compute/.*"); n != 0 {
		t.Errorf("%d servers were deleted", n)
	}
	_ = d.Close()

	next := open(t, cfg)
	vm, err := next.Get(t.Context(), "vm-1")
	if err != nil || vm.State != cloud.StateBuilding || vm.Owner != cfg.Owner {
		t.Errorf("the next driver finds %+v, %v", vm, err)
	}
	fault := "No valid host was found."
	m := s.find("vm-1")
	s.do(func() { m.stuck, m.Status, m.Fault, m.Updated = false, "ERROR", fault, s.now() })
	vm, err = next.Get(t.Context(), "vm-1")
	if err != nil || gpuserver.KindOf(vm.Failure()) != gpuserver.KindCapacity || !vm.NoHost || vm.Fault != fault {
		t.Errorf("after it failed: %+v, %v", vm, err)
	}
	if err := next.Delete(t.Context(), "vm-1"); err != nil || s.alive() != 0 {
		t.Errorf("Delete: %v; %d servers are left", err, s.alive())
	}
}

// Which faults say that no host was found, and which that a quota is used up.
func TestNoHostIsNoQuota(t *testing.T) {
	for fault, want := range map[string]bool{
		"No valid host was found. There are not enough hosts available.":                                               true,
		"Exceeded maximum number of retries. Exceeded max scheduling attempts 3 for instance x.":                       true,
		"Project b8f6 is over a limit for [Resource class:VCPU is over limit of 2 due to current usage 2 and delta 1]": false,
		"Quota exceeded for cores: Requested 8, but already used 40 of 40 cores":                                       false,
		"Build of instance x aborted: Flavor's disk is too small for requested image.":                                 false,
	} {
		if got := noHost(fault); got != want {
			t.Errorf("%s: %t, want %t", fault, got, want)
		}
		vm := server{Status: "ERROR", Fault: &struct {
			Message string `json:"message"`
		}{fault}}.vm()
		if vm.NoHost != want || vm.FaultKind != ofFault(fault) {
			t.Errorf("%s: %+v", fault, vm)
		}
	}
}

// The volumes of a server whose create was left are named by the next who sees it run,
// and once.
func TestVolumesOfAServerThatWasLeft(t *testing.T) {
	for _, built := range []bool{true, false} { // when the next driver comes
		s := newStandin(t)
		cfg := s.config()
		cfg.BootFromVolume = true
		d := open(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		leaveAtPost(s, cancel)
		_, err := d.Create(ctx, spec(cfg, "vm-1"))
		wantKind(t, err, gpuserver.KindUnavailable)
		_ = d.Close()
		m := s.find("vm-1")
		finish := func() { s.do(func() { m.stuck, m.Status, m.Updated = false, "ACTIVE", s.now() }) }
		if built {
			finish()
		}
		next := open(t, cfg)
		if _, err := next.Get(t.Context(), "vm-1"); err != nil {
			t.Fatal(err)
		}
		finish()
		eventually(t, func() string {
			if _, err := next.List(t.Context()); err != nil {
				return err.Error()
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, p := range s.parts {
				if p.Name == "vm-1" && p.Mark == cfg.Owner {
					return ""
				}
			}
			return "its volume has no name"
		})
		if _, err := next.Get(t.Context(), "vm-1"); err != nil {
			t.Fatal(err)
		}
		if n := s.count("PUT .*/volumes/.*"); n != 1 {
			t.Errorf("its volume was named %d times", n)
		}
	}
}

// leaveAtPost has the caller of the next create go while Nova is asked for the
// server, which Nova then never builds.
func leaveAtPost(s *standin, cancel context.CancelFunc) {
	s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
		if !is(r, "POST", "/compute/v2.1/servers") {
			return false
		}
		cancel()
		serve(w, r)
		s.do(func() { s.machines[0].stuck = true })
		return true
	})
}
