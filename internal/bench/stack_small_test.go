package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// tinyStack is of an OpenStack just what the parts openstack-… call: servers are
// active at once, and gone at once.
type tinyStack struct {
	url string

	mu      sync.Mutex
	n       int
	servers []map[string]any
	quotas  int // that were set
}

func newTinyStack(t *testing.T) *tinyStack {
	s := &tinyStack{}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// ServeHTTP implements http.Handler.
func (s *tinyStack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	type object = map[string]any
	say := func(status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	one := func(name string) object {
		return object{name: []object{{"id": "the-" + name, "name": r.URL.Query().Get("name")}}}
	}
	switch path := strings.TrimPrefix(r.URL.Path, "/nova"); r.Method + " " + path {
	case "POST /v3/auth/tokens":
		var catalog []object
		for kind, name := range map[string]string{"compute": "/nova", "image": "/glance", "network": "/neutron"} {
			catalog = append(catalog, object{"type": kind, "endpoints": []object{{"interface": "public", "region_id": "RegionOne", "url": s.url + name}}})
		}
		w.Header().Set("X-Subject-Token", "token")
		say(http.StatusCreated, object{"token": object{"expires_at": "2099-01-01T00:00:00Z", "project": object{"id": "p"}, "catalog": catalog}})
	case "GET /v3/registered_limits":
		say(http.StatusOK, object{"registered_limits": []object{}})
	case "GET /":
		say(http.StatusOK, object{"version": object{"version": "2.93"}})
	case "GET /limits":
		say(http.StatusOK, object{"limits": object{"absolute": object{"maxTotalInstances": -1, "maxTotalCores": -1, "maxTotalRAMSize": -1}}})
	case "GET /flavors":
		say(http.StatusOK, object{"flavors": []object{{"id": "f", "name": stackFlavor}}})
	case "GET /glance/v2/images":
		say(http.StatusOK, one("images"))
	case "GET /neutron/v2.0/networks":
		say(http.StatusOK, one("networks"))
	case "PUT /os-quota-sets/p", "PUT /neutron/v2.0/quotas/p":
		s.quotas++
		say(http.StatusOK, object{})
	case "POST /servers":
		s.boot(r, say)
	case "GET /servers", "GET /servers/detail":
		say(http.StatusOK, object{"servers": s.list(r)})
	default:
		id := strings.TrimPrefix(path, "/servers/")
		for i, one := range s.servers {
			if one["id"] != id {
				continue
			}
			if r.Method == http.MethodDelete {
				s.servers = append(s.servers[:i:i], s.servers[i+1:]...)
				w.WriteHeader(http.StatusNoContent)
				return
			}
			say(http.StatusOK, object{"server": one})
			return
		}
		say(http.StatusNotFound, object{"itemNotFound": object{"message": "no " + path}})
	}
}

func (s *tinyStack) boot(r *http.Request, say func(int, any)) {
	var ask struct {
		Server struct {
			Name     string            `json:"name"`
			Metadata map[string]string `json:"metadata"`
			Count    int               `json:"max_count"`
		} `json:"server"`
	}
	_ = json.NewDecoder(r.Body).Decode(&ask)
	var id string
	for range max(1, ask.Server.Count) {
		s.n++
		id = fmt.Sprintf("%08d-0000-4000-8000-000000000000", s.n)
		now := time.Now().UTC().Format(time.RFC3339)
		s.servers = append(s.servers, map[string]any{
			"id": id, "name": ask.Server.Name, "status": "ACTIVE", "metadata": ask.Server.Metadata, "created": now, "updated": now, "flavor": map[string]any{"vcpus": 1, "ram": 128, "disk": 1},
		})
	}
	say(http.StatusAccepted, map[string]any{"server": map[string]any{"id": id}})
}

func (s *tinyStack) list(r *http.Request) []map[string]any {
	found := []map[string]any{}
	for _, one := range s.servers {
		if name := r.URL.Query().Get("name"); name != "" && !regexp.MustCompile(name).MatchString(one["name"].(string)) {
			continue
		}
		if r.URL.Query().Get("marker") == "" {
			found = append(found, one)
		}
	}
	return found
}

// measuresStack runs the parts on a real cloud with few VMs on a stand-in.
func measuresStack(t *testing.T, dir, program string) {
	s := newTinyStack(t)
	entry := "auth: {auth_url: " + s.url + "/v3, username: u, password: p, project_name: p, user_domain_name: Default, project_domain_name: Default}"
	clouds := filepath.Join(t.TempDir(), "clouds.yaml")
	if err := os.WriteFile(clouds, []byte("clouds:\n  admin: {"+entry+"}\n  member: {"+entry+", region_name: RegionOne}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), Options{
		Server: program, Self: os.Args[0], Dir: dir, Size: SmallSize(), Progress: t.Output(), Clouds: clouds,
		Parts: []string{"openstack-single", "openstack-burst", "openstack-idle"}, Onto: Report{IntakePerS: 7},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Overhead1 <= 0 || r.Overhead100 <= 0 || len(r.Detail.Idle) != 3 || r.Detail.Idle[2].VMs != SmallSize().StackLive {
		t.Errorf("measured: %+v", *r.OpenStack)
	}
	// Two VMs, one of which is made before the pair: one login for both.
	if r.CallsPerVM.Keystone != 0.5 || r.Detail.OwnCalls["nova POST /servers"] != 1 || r.Detail.OwnCalls["nova DELETE /servers/ID"] != 1 {
		t.Errorf("calls: %+v", r.Detail.OwnCalls)
	}
	if r.IntakePerS != 7 {
		t.Error("what was measured before is lost")
	}
	if len(s.servers) != 0 || s.quotas == 0 {
		t.Errorf("%d servers are left, and %d quotas were set", len(s.servers), s.quotas)
	}
}
