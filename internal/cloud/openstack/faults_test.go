package openstack

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// eventually repeats a check until it gives "".
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		last := check()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", patience, last)
		}
		time.Sleep(time.Millisecond)
	}
}

// wantKind fails the test unless err is of a kind and its sentence for people has
// all of the texts.
func wantKind(t *testing.T, err error, kind gpuserver.Kind, texts ...string) {
	t.Helper()
	if got := gpuserver.KindOf(err); got != kind {
		t.Fatalf("error %v of kind %q, want %q", err, got, kind)
	}
	for _, text := range texts {
		if err != nil && !strings.Contains(gpuserver.PublicText(err), text) {
			t.Errorf("people are told %q, which lacks %q", gpuserver.PublicText(err), text)
		}
	}
}

func create(t *testing.T, d *Driver, name string) cloud.VM {
	t.Helper()
	vm, err := d.Create(t.Context(), spec(d.cfg, name))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return vm
}

// is reports whether a request is of a method and begins with a path.
func is(r *http.Request, method, path string) bool {
	return r.Method == method && strings.HasPrefix(r.URL.Path, path)
}

// Keystone is away when the driver is opened, and later.
func TestKeystoneAway(t *testing.T) {
	s := newStandin(t)
	var away atomic.Bool
	away.Store(true)
	s.intercept(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
		if away.Load() && is(r, "POST", "/identity") {
			fault(w, 503, "Keystone is down for maintenance")
			return true
		}
		return false
	})
	d := open(t, s.config())
	_, err := d.Create(t.Context(), spec(d.cfg, "vm-1"))
	wantKind(t, err, gpuserver.KindUnavailable, "cloud stack", "log in", "503", "maintenance")
	_, err = d.Capacity(t.Context())
	wantKind(t, err, gpuserver.KindUnavailable)
	away.Store(false)
	create(t, d, "vm-1")

	// Later: its token is refused and no other can be had.
	away.Store(true)
	s.do(func() { clear(s.tokens) })
	_, err = d.Get(t.Context(), "vm-1")
	wantKind(t, err, gpuserver.KindUnavailable, "503")
	away.Store(false)
	if vm, err := d.Get(t.Context(), "vm-1"); err != nil || vm.State != cloud.StateRunning {
		t.Errorf("Get gives %+v, %v once Keystone is back", vm, err)
	}
}

// One token is used for its lifetime; one that was revoked is replaced within the
// call, and the call is carried out once.
func TestTokenRevoked(t *testing.T) {
	s := newStandin(t)
	d := open(t, s.config())
	create(t, d, "vm-1")
	create(t, d, "vm-2")
	if n := s.count("POST /identity/v3/auth/tokens"); n != 1 {
		t.Errorf("%d tokens for two VMs, want 1", n)
	}
	s.do(func() { clear(s.tokens) })
	create(t, d, "vm-3")
	if n := s.count("POST /identity/v3/auth/tokens"); n != 2 {
		t.Errorf("%d tokens after one was revoked, want 2", n)
	}
	if n := s.alive(); n != 3 {
		t.Errorf("%d servers, want 3", n)
	}
}

// A password that was changed is used as soon as the file has it.
func TestCredentialsRefused(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	d := open(t, cfg)
	create(t, d, "vm-1")
	s.do(func() { s.secret = "another"; clear(s.tokens) })
	_, err := d.Get(t.Context(), "vm-1")
	wantKind(t, err, gpuserver.KindUnavailable, "401", "not accepted", "expired")
	_, err = d.Get(t.Context(), "vm-1")
	wantKind(t, err, gpuserver.KindUnavailable, "401", "not accepted")
	s.write(cfg.Credentials.CloudsFile, "another")
	if _, err := d.Get(t.Context(), "vm-1"); err != nil {
		t.Errorf("with the new password in the file: %v", err)
	}
}

// What the cloud answers to a create decides whose fault it is.
func TestAnswersToACreate(t *testing.T) {
	html := "<html><head><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>"
	for _, tt := range []struct {
		name, body string
		status     int
		header     string // Retry-After
		kind       gpuserver.Kind
		text       string
	}{
		{"policy", `{"forbidden": {"code": 403, "message": "Policy doesn't allow os_compute_api:servers:create to be performed."}}`, 403, "", gpuserver.KindRefused, "os_compute_api:servers:create"},
		{"quota of Nova", `{"forbidden": {"code": 403, "message": "Quota exceeded for ram: Requested 65536, but already used 0 of 51200 ram"}}`, 403, "", gpuserver.KindCapacity, "65536"},
		{"ports used up", `{"forbidden": {"code": 403, "message": "Maximum number of ports exceeded"}}`, 403, "", gpuserver.KindCapacity, "ports"},
		{"no such thing", `{"itemNotFound": {"code": 404, "message": "The resource could not be found."}}`, 404, "", gpuserver.KindNotFound, "404"},
		{"conflict", `{"conflictingRequest": {"code": 409, "message": "Multiple possible networks found, use a Network ID to be more specific."}}`, 409, "", gpuserver.KindUnavailable, "Multiple possible networks"},
		{"unified limits", `{"forbidden": {"code": 403, "message": "Project b8f6 is over a limit for [Resource class:VCPU is over limit of 2 due to current usage 2 and delta 1]"}}`, 403, "", gpuserver.KindCapacity, "class:VCPU"},
		{"quota of Neutron", `{"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['port'].", "detail": ""}}`, 409, "", gpuserver.KindCapacity, "port"},
		{"quota of Cinder", `{"overLimit": {"code": 413, "message": "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota.", "retryAfter": "0"}}`, 413, "0", gpuserver.KindCapacity, "gigabytes"},
		{"too many calls, once", `{"overLimit": {"code": 413, "message": "This request was rate-limited."}}`, 413, "600", gpuserver.KindLimited, "600 s"},
		{"too many calls", ``, 429, "600", gpuserver.KindLimited, "600 s"},
		{"failure", `{"computeFault": {"code": 500, "message": "Unexpected API Error."}}`, 500, "", gpuserver.KindUnavailable, "Unexpected API Error"},
		{"down", ``, 503, "", gpuserver.KindUnavailable, "503"},
		{"page of a proxy", html, 502, "", gpuserver.KindUnavailable, "502 Bad Gateway (an HTML page"},
		{"a page as success", html, 202, "", gpuserver.KindUnavailable, "no JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStandin(t)
			s.intercept(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
				if !is(r, "POST", "/compute/v2.1/servers") {
					return false
				}
				if tt.header != "" {
					w.Header().Set("Retry-After", tt.header)
				}
				answer(w, tt.status, tt.body)
				return true
			})
			cfg := s.config()
			cfg.Ports = true
			d := open(t, cfg)
			_, err := d.Create(t.Context(), spec(cfg, "vm-1"))
			wantKind(t, err, tt.kind, "cloud stack", tt.text)
			if _, err := d.Get(t.Context(), "vm-1"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
				t.Errorf("a create that failed left something: %v", err)
			}
			if strings.Contains(gpuserver.PublicText(err), "<") {
				t.Errorf("people are told HTML: %s", gpuserver.PublicText(err))
			}
		})
	}
}

// A call that is answered with 429 is repeated after the pause that it names.
func TestRateLimited(t *testing.T) {
	s := newStandin(t)
	var left atomic.Int32
	left.Store(2)
	s.intercept(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
		if !is(r, "POST", "/compute/v2.1/servers") || left.Add(-1) < 0 {
			return false
		}
		w.Header().Set("Retry-After", "0")
		answer(w, 429, "")
		return true
	})
	d := open(t, s.config())
	create(t, d, "vm-1")
	if n := s.count("POST /compute/v2.1/servers"); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// cut carries a request out, or not, and breaks the connection instead of the
// answer.
func cut(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	if serve != nil {
		serve(httptest.NewRecorder(), r)
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		c.Close()
	}
}

// The connection breaks after a create was sent. Its server is found by name; if
// there is none, nothing is left and the name can be used.
func TestCutAfterTheCreate(t *testing.T) {
	for _, made := range []bool{true, false} {
		t.Run(fmt.Sprintf("carried out: %v", made), func(t *testing.T) {
			s := newStandin(t)
			var cutOnce atomic.Bool
			s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
				if !is(r, "POST", "/compute/v2.1/servers") || cutOnce.Swap(true) {
					return false
				}
				if !made {
					serve = nil
				}
				cut(w, r, serve)
				return true
			})
			d := open(t, s.config())
			vm, err := d.Create(t.Context(), spec(d.cfg, "vm-1"))
			if made {
				if err != nil || vm.ID != s.find("vm-1").ID {
					t.Errorf("Create gives %+v, %v; want the server that was made", vm, err)
				}
			} else {
				wantKind(t, err, gpuserver.KindUnavailable, "cannot be reached")
				create(t, d, "vm-1")
			}
			if n := s.alive(); n != 1 {
				t.Errorf("%d servers, want 1", n)
			}
		})
	}
}

// Nova acts on a create long after its connection broke, when it was repeated: the
// second server is deleted, and the VM is listed once.
func TestLateCreate(t *testing.T) {
	s := newStandin(t)
	var late atomic.Pointer[object]
	s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
		if !is(r, "POST", "/compute/v2.1/servers") || late.Load() != nil {
			return false
		}
		b := body(r)
		late.Store(&b)
		cut(w, r, nil)
		return true
	})
	d := open(t, s.config())
	_, err := d.Create(t.Context(), spec(d.cfg, "vm-1"))
	wantKind(t, err, gpuserver.KindUnavailable)
	vm := create(t, d, "vm-1")
	s.do(func() { s.boot(httptest.NewRecorder(), *late.Load()) })
	vms, err := d.List(t.Context())
	if err != nil || len(vms) != 1 || vms[0].ID != vm.ID {
		t.Errorf("List gives %+v, %v; want one VM, with the server that its create gave", vms, err)
	}
	eventually(t, func() string {
		if n := s.alive(); n != 1 {
			return fmt.Sprintf("%d servers, want 1", n)
		}
		return ""
	})
	if m := s.find("vm-1"); m.ID != vm.ID {
		t.Errorf("server %s is left, want %s", m.ID, vm.ID)
	}
}
