package openstack

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// still gives a configuration whose driver lists only when it is asked to.
func (s *standin) still() Config {
	cfg := s.config()
	cfg.times.idle = time.Hour
	return cfg
}

// callsOf gives the calls that do makes, without the shared list of servers.
func (s *standin) callsOf(do func()) map[string]int {
	s.do(func() { s.calls = nil })
	do()
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := map[string]int{}
	for _, c := range s.calls {
		method, path, _ := strings.Cut(c, " ")
		parts := strings.Split(path, "/")
		if what := method + " " + parts[1] + " " + parts[min(3, len(parts)-1)]; path != "/compute/v2.1/servers/detail" {
			calls[what]++
		}
	}
	return calls
}

// A VM costs at most three calls to make and two to delete.
func TestCallsPerVM(t *testing.T) {
	for _, tt := range []struct {
		name        string
		change      func(*Config)
		made, ended map[string]int
		shared      string // a list that all VMs share
	}{
		{"networks left to Nova", func(*Config) {}, map[string]int{"POST compute servers": 1}, map[string]int{"DELETE compute servers": 1}, ""},
		{
			"ports of our own", func(c *Config) { c.Ports, c.SecurityGroups = true, []string{"ci"} },
			map[string]int{"POST compute servers": 1, "POST network ports": 1},
			map[string]int{"DELETE compute servers": 1, "DELETE network ports": 1},
			"GET network ports",
		},
		{
			"boot from volume", func(c *Config) { c.BootFromVolume = true },
			map[string]int{"POST compute servers": 1, "PUT volume p": 1},
			map[string]int{"DELETE compute servers": 1},
			"GET volume p",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStandin(t)
			cfg := s.still()
			tt.change(&cfg)
			d := open(t, cfg)
			create(t, d, "vm-0") // logs in, resolves names
			own := func(calls map[string]int) map[string]int {
				delete(calls, tt.shared)
				return calls
			}
			if diff := cmp.Diff(tt.made, own(s.callsOf(func() { create(t, d, "vm-1") }))); diff != "" {
				t.Errorf("calls to make a VM (-want +got):\n%s", diff)
			}
			ended := own(s.callsOf(func() {
				if err := d.Delete(t.Context(), "vm-1"); err != nil {
					t.Fatal(err)
				}
			}))
			if diff := cmp.Diff(tt.ended, ended); diff != "" {
				t.Errorf("calls to delete a VM (-want +got):\n%s", diff)
			}
		})
	}
}

// Many VMs that are made at once by a driver that knows no names yet look for each
// name once.
func TestNamesAreResolvedOnce(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	d := open(t, cfg)
	hold := make(chan struct{})
	s.intercept(func(_ http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
		if is(r, "GET", "/image") {
			<-hold // all others come to where they need it
		}
		return false
	})
	const n = 20
	errs := make(chan error, n)
	for i := range n {
		go func() { _, err := d.Create(t.Context(), spec(cfg, fmt.Sprint("vm-", i))); errs <- err }()
	}
	eventually(t, func() string {
		for i := range n {
			if name := fmt.Sprint("vm-", i); !d.names.Making(name) {
				return name + " is not being made"
			}
		}
		return ""
	})
	close(hold)
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for what, want := range map[string]int{"GET /image/v2/images": 1, "GET /network/v2.0/networks": 1, "GET /compute/v2.1/flavors": 2} { // two pages
		if got := s.count(what); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
}

// What is asked for all VMs does not grow with their number.
func TestSharedCallsAreConstant(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.still())
	create(t, d, "vm-0")
	s.do(func() {
		for i := range 500 {
			s.machines = append(s.machines, &machine{
				ID: s.id("b"), Name: fmt.Sprint("old-", i), Status: "ACTIVE", Flavor: "small",
				Meta: map[string]string{ownerKey: d.cfg.Owner}, Created: s.now(), Updated: s.now(),
			})
		}
	})
	s.do(func() { s.calls = nil })
	vms, err := d.List(t.Context())
	if err != nil || len(vms) != 501 {
		t.Fatalf("List gives %d VMs, %v", len(vms), err)
	}
	if _, err := d.Capacity(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.count(".*"); n > 5 {
		t.Errorf("%d calls for a list and the capacity of 501 VMs: %v", n, s.calls)
	}
}

// Lists ask for what changed, by the cloud's own time, and without a filter by tags.
func TestListsAskForChanges(t *testing.T) {
	s := newStandin(t)
	s.skew = -5 * time.Hour
	var queries []string
	s.intercept(func(_ http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
		if strings.HasSuffix(r.URL.Path, "/detail") {
			s.do(func() { queries = append(queries, r.URL.RawQuery) })
		}
		return false
	})
	d := open(t, s.still())
	create(t, d, "vm-1")
	if _, err := d.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.do(func() {
		first, last := queries[0], queries[len(queries)-1]
		if strings.Contains(first, "changes-since") || strings.Contains(last, "tags") {
			t.Errorf("queries %q and %q", first, last)
		}
		since, err := time.Parse(time.RFC3339, s.query(last, "changes-since"))
		if err != nil || since.After(s.now().Add(-overlap)) || since.Before(s.now().Add(-overlap-patience)) {
			t.Errorf("changes are asked for since %v, and the cloud's time is %v", since, s.now())
		}
	})
	d.watch.mu.Lock()
	d.watch.fullAt = d.watch.fullAt.Add(-2 * d.cfg.times.full)
	d.watch.mu.Unlock()
	if _, err := d.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.do(func() {
		if last := queries[len(queries)-1]; strings.Contains(last, "changes-since") {
			t.Errorf("after %v the query was %q, want a whole list", d.cfg.times.full, last)
		}
	})
}

func (s *standin) query(raw, key string) string {
	r, err := http.NewRequest(http.MethodGet, "http://x/?"+raw, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.URL.Query().Get(key)
}

// Absence from a list, or a cell that is down, does not mean that a VM is gone.
func TestAbsenceIsNoProof(t *testing.T) {
	for name, hide := range map[string]func(*machine, bool){
		"absent from lists": func(m *machine, is bool) { m.hidden = is },
		"its cell is down":  func(m *machine, is bool) { m.down = is },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandin(t)
			cfg := s.config()
			cfg.times.full = time.Nanosecond // every list is whole
			d := open(t, cfg)
			made := create(t, d, "vm-1")
			m := s.find("vm-1")
			s.do(func() { hide(m, true) })
			for range 3 {
				vms, err := d.List(t.Context())
				if err != nil || len(vms) != 1 || vms[0].ID != made.ID || vms[0].State != cloud.StateRunning {
					t.Fatalf("List gives %+v, %v", vms, err)
				}
			}
			if vm, err := d.Get(t.Context(), "vm-1"); err != nil || vm.State != cloud.StateRunning {
				t.Errorf("Get gives %+v, %v", vm, err)
			}
			select {
			case e := <-d.Events():
				t.Errorf("event %+v", e)
			default:
			}
			s.do(func() { hide(m, false) })
			if err := d.Delete(t.Context(), "vm-1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A server that starts anew while a cell is down does not know the VMs in it: it
// says that it cannot tell, not that they are gone.
func TestCellDownAtTheStart(t *testing.T) {
	s := newStandin(t)
	first := open(t, s.still())
	create(t, first, "vm-1")
	m := s.find("vm-1")
	s.do(func() { m.down = true })
	d := open(t, s.still())
	if _, err := d.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := d.Get(t.Context(), "vm-1")
	wantKind(t, err, gpuserver.KindUnavailable, "cell")
	wantKind(t, d.Delete(t.Context(), "vm-1"), gpuserver.KindUnavailable, "cell")
	s.do(func() { m.down, m.Updated = false, s.now() })
	if vm, err := d.Get(t.Context(), "vm-1"); err != nil || vm.State != cloud.StateRunning {
		t.Errorf("Get gives %+v, %v", vm, err)
	}
}

// A kept VM is tagged where there are tags, and noted in its metadata anyway; it is
// marked before it is stopped.
func TestKeepMarks(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	m := s.find("vm-1")
	s.intercept(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
		if strings.HasSuffix(r.URL.Path, "/action") {
			fault(w, 500, "no")
			return true
		}
		return false
	})
	wantKind(t, d.Keep(t.Context(), "vm-1"), gpuserver.KindUnavailable)
	if vm, err := d.Get(t.Context(), "vm-1"); err != nil || !vm.Kept || vm.State != cloud.StateRunning {
		t.Errorf("before it is stopped: %+v, %v", vm, err)
	}
	s.intercept(nil)
	if err := d.Keep(t.Context(), "vm-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if vm, err := d.Get(t.Context(), "vm-1"); err != nil || vm.State != cloud.StateStopped {
			return fmt.Sprint(vm, err)
		}
		return ""
	})
	s.do(func() {
		if m.Meta[keptKey] == "" || !strings.Contains(strings.Join(m.Tags, " "), "gpuserver-quarantine") || m.Meta[ownerKey] != d.cfg.Owner {
			t.Errorf("metadata %v, tags %v", m.Meta, m.Tags)
		}
	})
	select {
	case e := <-d.Events():
		t.Errorf("event %+v for a VM that we stopped", e)
	default:
	}
}

// A server says whose it is from its first moment.
func TestOwnership(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	cfg.KeyPair, cfg.AvailabilityZone, cfg.ServerGroup, cfg.SecurityGroups = "admin", "az1", "apart", []string{"ci"}
	d := open(t, cfg)
	create(t, d, "vm-1")
	m := s.find("vm-1")
	want := object{
		"name": "vm-1", "flavorRef": "f-small", "imageRef": s.images["debian"], "config_drive": true, "key_name": "admin", "availability_zone": "az1",
		"networks": []any{object{"uuid": "id-guests"}}, "security_groups": []any{object{"name": "ci"}},
		"metadata": object{"gpuserver-owner": cfg.Owner}, "tags": []any{"gpuserver", "gpuserver-owner-" + cfg.Owner},
	}
	if diff := cmp.Diff(object{"server": want, "os:scheduler_hints": object{"group": "99999999-2222-4333-8444-555555555555"}}, m.Body); diff != "" {
		t.Errorf("the request (-want +got):\n%s", diff)
	}
}

// Servers are launched at the configured rate.
func TestLaunchRate(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	cfg.LaunchesPerMinute = 1
	d := open(t, cfg)
	create(t, d, "vm-1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := d.Create(ctx, spec(cfg, "vm-2")); done <- err }()
	eventually(t, func() string {
		if d.launch.Tokens() > -0.5 {
			return "the second create does not wait for its turn"
		}
		return ""
	})
	cancel()
	wantKind(t, <-done, gpuserver.KindUnavailable, "1 may be asked for in a minute")
	if n := s.alive(); n != 1 {
		t.Errorf("%d servers, want 1", n)
	}
}

// A list that was asked for before something happened tells of it too late.
func TestOldNews(t *testing.T) {
	w := newWatch()
	now := time.Now()
	before, after := now.Add(-time.Second), now.Add(time.Second)
	w.put(server{ID: "1", Name: "vm", Status: "ACTIVE"}, now)
	w.put(server{ID: "1", Name: "vm", Status: "BUILD"}, before)
	if s, ok := w.get("1"); !ok || s.Status != "ACTIVE" {
		t.Errorf("after older news: %+v", s)
	}
	w.put(server{ID: "1", Name: "vm", Status: "SHUTOFF"}, after)
	if s, ok := w.get("1"); !ok || s.Status != "SHUTOFF" {
		t.Errorf("after newer news: %+v", s)
	}
	w.bury("1")
	w.put(server{ID: "1", Name: "vm", Status: "ACTIVE"}, after)
	if s, ok := w.get("1"); ok {
		t.Errorf("a server that is gone is back: %+v", s)
	}
}

// A reading that its caller gave up says nothing to those who wait for one.
func TestReadingGivenUp(t *testing.T) {
	turns := newTurns()
	ctx, cancel := context.WithCancel(t.Context())
	err := turns.do(ctx, func(ctx context.Context) error { cancel(); return ctx.Err() })
	if err == nil || !turns.began.IsZero() {
		t.Errorf("error %v, and others would take it for theirs", err)
	}
}

func TestStates(t *testing.T) {
	for status, want := range map[string]cloud.State{
		"BUILD": cloud.StateBuilding, "ACTIVE": cloud.StateRunning, "REBOOT": cloud.StateRunning, "SHUTOFF": cloud.StateStopped,
		"PAUSED": cloud.StateStopped, "SHELVED_OFFLOADED": cloud.StateStopped, "ERROR": cloud.StateError, "SOFT_DELETED": cloud.StateRemains,
	} {
		if got := (server{Status: status, Power: 1}).state(); got != want {
			t.Errorf("%s is %s, want %s", status, got, want)
		}
	}
	if got := (server{Status: "ACTIVE", Power: 4}).state(); got != cloud.StateStopped {
		t.Errorf("a server that is shut down, which Nova did not note yet, is %s", got)
	}
}
