//go:build openstack

package openstack

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"gpuserver"
	"gpuserver/internal/cloud"
	driver "gpuserver/internal/cloud/openstack"
)

// front is a proxy between the driver and the cloud. What hook answers does not reach
// the cloud.
type front struct {
	url    string
	hook   atomic.Pointer[func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool]
	posts  atomic.Int64 // POST /servers that came
	logins atomic.Int64 // tokens that were asked for
}

func newFront(t *testing.T, c *client) *front {
	t.Helper()
	f := &front{}
	mux := http.NewServeMux()
	for service, target := range c.endpoints {
		u, err := url.Parse(strings.TrimSuffix(target, "/v3")) // of Keystone; the driver adds it again
		if err != nil {
			t.Fatal(err)
		}
		pass := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(u) }}
		mux.Handle("/"+service+"/", http.StripPrefix("/"+service, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost && r.URL.Path == "/servers":
				f.posts.Add(1)
			case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/auth/tokens"):
				f.logins.Add(1)
			}
			if h := f.hook.Load(); h == nil || !(*h)(w, r, pass) {
				pass.ServeHTTP(w, r)
			}
		})))
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

// once makes one POST /servers be answered by a function.
func (f *front) once(answer func(w http.ResponseWriter, r *http.Request, pass http.Handler)) {
	var done atomic.Bool
	hook := func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if r.Method != http.MethodPost || r.URL.Path != "/servers" || done.Swap(true) {
			return false
		}
		answer(w, r, pass)
		return true
	}
	f.hook.Store(&hook)
}

// drop breaks the connection in place of an answer.
func drop(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
}

// openDriver gives our driver for the member, with changes to its configuration.
func openDriver(t *testing.T, owner string, change func(*driver.Config)) *driver.Driver {
	t.Helper()
	cfg := driver.Config{
		Name: "lab", Owner: owner, Credentials: driver.Credentials{CloudsFile: cloudsFile, Cloud: "member"},
		Flavors: map[string]string{"small": "lab.nano"}, Images: map[string]string{"empty": "empty"}, Networks: []string{"lab"},
		BuildTimeout: limit, DeleteTimeout: limit,
	}
	change(&cfg)
	d, err := driver.Open(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// open gives our driver, with the proxy before all services.
func (f *front) open(t *testing.T, owner string) *driver.Driver {
	t.Helper()
	return openDriver(t, owner, func(c *driver.Config) {
		c.Endpoints = driver.Endpoints{
			Identity: f.url + "/identity", Compute: f.url + "/compute", Image: f.url + "/image", Network: f.url + "/network", Placement: f.url + "/placement",
		}
	})
}

func small(owner, name string) cloud.Spec {
	return cloud.Spec{Name: name, Owner: owner, Image: "empty", Flavor: gpuserver.Flavor{Name: "small", VCPUs: 1, MemoryMiB: 128, DiskGiB: 1}}
}

// ids gives the ids of the servers of a name, asked of Nova itself.
func (c *client) ids(name string) (ids []string) {
	c.t.Helper()
	var got struct{ Servers []server }
	c.call("GET", "compute", "/servers/detail?name="+url.QueryEscape("^"+name+"$"), nil, &got)
	for _, s := range got.Servers {
		ids = append(ids, s.ID)
	}
	return ids
}

// TestFakeCut breaks the connection after a create was sent: its server is found if
// there is one, and there are never two.
func TestFakeCut(t *testing.T) {
	need(t, fake)
	all := login(t, "member")
	all.quota(login(t, "admin"), unlimited)
	const owner = "gpuserver-cut"
	one := func(t *testing.T, member *client, name string, vm cloud.VM) {
		t.Helper()
		eventually(t, "there is one server "+name, func() string {
			if ids := member.ids(name); len(ids) != 1 || ids[0] != vm.ID {
				return fmt.Sprintf("there are %v, want %s", ids, vm.ID)
			}
			return ""
		})
	}
	end := func(t *testing.T, d *driver.Driver, member *client, name string) {
		t.Helper()
		if err := d.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
		if ids := member.ids(name); len(ids) != 0 {
			t.Errorf("left after its deletion: %v", ids)
		}
	}
	t.Run("the server was made", func(t *testing.T) {
		member := all.as(t)
		f := newFront(t, member)
		d := f.open(t, owner)
		f.once(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			pass.ServeHTTP(httptest.NewRecorder(), r)
			drop(w)
		})
		vm, err := d.Create(t.Context(), small(owner, "cut-made"))
		if err != nil || vm.State != cloud.StateRunning {
			t.Fatalf("Create gives %+v, %v; want the server that was made", vm, err)
		}
		one(t, member, "cut-made", vm)
		if n := f.posts.Load(); n != 1 {
			t.Errorf("%d servers were asked for, want 1", n)
		}
		end(t, d, member, "cut-made")
	})
	t.Run("it was not", func(t *testing.T) {
		member := all.as(t)
		f := newFront(t, member)
		d := f.open(t, owner)
		f.once(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { drop(w) })
		if _, err := d.Create(t.Context(), small(owner, "cut-lost")); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
			t.Fatalf("Create: %v", err)
		}
		if ids := member.ids("cut-lost"); len(ids) != 0 {
			t.Errorf("servers %v after a create that never arrived", ids)
		}
		vm, err := d.Create(t.Context(), small(owner, "cut-lost"))
		if err != nil {
			t.Fatal(err)
		}
		one(t, member, "cut-lost", vm)
		end(t, d, member, "cut-lost")
	})
	t.Run("it is made after the next", func(t *testing.T) {
		member := all.as(t)
		f := newFront(t, member)
		d := f.open(t, owner)
		var late *http.Request
		var next http.Handler
		f.once(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			body, _ := io.ReadAll(r.Body)
			late, next = r.Clone(t.Context()), pass
			late.Body = io.NopCloser(bytes.NewReader(body))
			drop(w)
		})
		if _, err := d.Create(t.Context(), small(owner, "cut-late")); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
			t.Fatalf("Create: %v", err)
		}
		vm, err := d.Create(t.Context(), small(owner, "cut-late"))
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		next.ServeHTTP(w, late)
		if w.Code != http.StatusAccepted {
			t.Fatalf("the first create, late: %d %s", w.Code, w.Body)
		}
		one(t, member, "cut-late", vm)
		vms, err := d.List(t.Context())
		if err != nil || len(vms) != 1 || vms[0].ID != vm.ID {
			t.Errorf("List gives %+v, %v", vms, err)
		}
		end(t, d, member, "cut-late")
	})
}

// TestFakeTokenRevoked has Keystone revoke the driver's token before Glance sees it:
// another is asked for within the same call, and the VM is made.
func TestFakeTokenRevoked(t *testing.T) {
	need(t, fake)
	member := login(t, "member")
	member.quota(login(t, "admin"), unlimited)
	const owner = "gpuserver-token"
	f := newFront(t, member)
	var revoked atomic.Int64
	hook := func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.URL.Path == "/v2/images" && revoked.Load() == 0 {
			revoked.Store(int64(member.revoke(r.Header.Get("X-Auth-Token"))))
		}
		return false
	}
	f.hook.Store(&hook)
	d := f.open(t, owner)
	vm, err := d.Create(t.Context(), small(owner, "token-1"))
	if err != nil || vm.State != cloud.StateRunning {
		t.Fatalf("Create gives %+v, %v", vm, err)
	}
	if n := revoked.Load(); n != http.StatusNoContent {
		t.Fatalf("the token was not revoked: %d", n)
	}
	if n := f.logins.Load(); n != 2 {
		t.Errorf("%d tokens were asked for, want 2", n)
	}
	if ids := member.ids("token-1"); len(ids) != 1 || ids[0] != vm.ID {
		t.Errorf("there are %v, want %s", ids, vm.ID)
	}
	if err := d.Delete(t.Context(), "token-1"); err != nil {
		t.Error(err)
	}
}

// revoke has Keystone end a token, and gives the status of the answer.
func (c *client) revoke(token string) int {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodDelete, c.endpoints["identity"]+"/auth/tokens", nil)
	if err != nil {
		return -1
	}
	req.Header.Set("X-Auth-Token", token)
	req.Header.Set("X-Subject-Token", token)
	resp, err := web.Do(req)
	if err != nil {
		return -1
	}
	resp.Body.Close()
	return resp.StatusCode
}
