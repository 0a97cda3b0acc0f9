package openstack

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// standin is an OpenStack in memory: of Keystone, Nova, Glance, Neutron, Cinder and
// Placement what the driver uses, with Nova's ways of answering. A server is built,
// and is gone, when it was listed or read once more.
type standin struct {
	t    *testing.T
	http *httptest.Server

	mu       sync.Mutex
	serial   int
	tokens   map[string]bool
	secret   string
	newest   string // microversion
	skew     time.Duration
	page     int // servers on a page
	quota    map[string]int64
	unified  map[string]int64 // registered limits of Keystone
	owned    map[string]int64 // and the project's own
	sizes    map[string]size
	images   map[string]string // id by name
	cards    int               // for the alias tesla-v100
	place    map[string]int    // free devices by class; nil: Placement refuses
	machines []*machine
	parts    []*piece
	reclaim  bool // deleted servers are kept for a while
	calls    []string
	hook     func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool
}

// machine is a server of the stand-in.
type machine struct {
	ID, Name, Status, Task, Flavor, Image, UserData, Console string
	Meta                                                     map[string]string
	Tags, Volumes, Ports                                     []string
	Fault, late                                              string // late: Nova's fault comes after the status
	Created, Updated                                         time.Time
	Body                                                     map[string]any // as it was asked for
	stuck, hidden, down                                      bool           // never changes; is in no list; its cell is down
	seen                                                     bool
}

// piece is a port or a volume.
type piece struct {
	kind, ID, Name, Mark string
	GiB                  int64
	body                 map[string]any
}

func newStandin(t *testing.T) *standin {
	s := emptyStandin(t)
	s.http = httptest.NewServer(s)
	t.Cleanup(s.http.Close)
	return s
}

// emptyStandin is a stand-in that answers nowhere yet.
func emptyStandin(t *testing.T) *standin {
	return &standin{
		t: t, tokens: map[string]bool{}, secret: "secret", newest: "2.93", page: 1000, cards: 4,
		quota: map[string]int64{"maxTotalInstances": 100, "maxTotalCores": 400, "maxTotalRAMSize": 1 << 20},
		sizes: map[string]size{
			"small":  {ID: "f-small", VCPUs: 1, RAM: 512, Disk: 2},
			"gpu":    {ID: "f-gpu", VCPUs: 2, RAM: 1024, Disk: 2, Specs: map[string]string{"pci_passthrough:alias": "tesla-v100:1"}},
			"spare1": {ID: "f-1"}, "spare2": {ID: "f-2"},
		},
		images: map[string]string{"debian": "11111111-2222-3333-4444-555555555555"},
	}
}

// config gives a configuration for the stand-in, with quick lists.
func (s *standin) config() Config {
	file := filepath.Join(s.t.TempDir(), "clouds.yaml")
	s.write(file, "secret")
	quick := usual
	quick.busy, quick.idle, quick.settle, quick.look, quick.maxInterval = time.Millisecond, 20*time.Millisecond, 300*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	return Config{
		Name: "stack", Owner: "gpuserver-test1", Credentials: Credentials{CloudsFile: file, Cloud: "lab"},
		Flavors: map[string]string{"ci": "small"}, Images: map[string]string{"debian-12": "debian"}, Networks: []string{"guests"},
		GPUs: []GPUs{{Model: "tesla-v100", Count: 4}}, BuildTimeout: 20 * time.Second, DeleteTimeout: 20 * time.Second, CallTimeout: 10 * time.Second, times: quick,
	}
}

func (s *standin) write(file, password string) {
	s.t.Helper()
	text := fmt.Sprintf("clouds:\n  lab:\n    region_name: RegionOne\n    auth: {auth_url: %q, username: ci, password: %q, project_name: ci, user_domain_name: Default, project_domain_name: Default}\n",
		s.http.URL+"/identity", password)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// do runs f with the stand-in's state.
func (s *standin) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// intercept makes hook see each request first; it reports whether it answered.
func (s *standin) intercept(hook func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool) {
	s.do(func() { s.hook = hook })
}

// find gives the machine of a name, the newest first.
func (s *standin) find(name string) *machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range slices.Backward(s.machines) {
		if m.Name == name && m.Status != "DELETED" {
			return m
		}
	}
	return nil
}

// alive counts the servers that are not deleted.
func (s *standin) alive() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.machines {
		if m.Status != "DELETED" {
			n++
		}
	}
	return n
}

// count gives how many calls match a pattern, such as "POST /compute/servers".
func (s *standin) count(pattern string) (n int) {
	re := regexp.MustCompile("^" + pattern + "$")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if re.MatchString(c) {
			n++
		}
	}
	return n
}

func (s *standin) now() time.Time { return time.Now().Add(s.skew).UTC() }

func (s *standin) id(prefix string) string {
	s.serial++
	return fmt.Sprintf("%s%07d-0000-4000-8000-000000000000", prefix, s.serial)
}

// ServeHTTP implements http.Handler.
func (s *standin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	hook := s.hook
	s.calls = append(s.calls, r.Method+" "+r.URL.Path)
	w.Header().Set("Date", s.now().Format(http.TimeFormat))
	s.mu.Unlock()
	if hook == nil || !hook(w, r, s.serve) {
		s.serve(w, r)
	}
}

func (s *standin) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	service, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if service+"/"+path == "identity/v3/auth/tokens" {
		s.authenticate(w, r)
		return
	}
	if !s.tokens[r.Header.Get("X-Auth-Token")] {
		answer(w, 401, `{"error": {"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}}`)
		return
	}
	switch service {
	case "identity":
		s.keystone(w, r, strings.TrimPrefix(path, "v3/"))
	case "compute":
		s.nova(w, r, strings.Trim(strings.TrimPrefix(path, "v2.1"), "/"))
	case "image":
		id := s.images[r.URL.Query().Get("name")]
		var found []any
		if id != "" {
			found = []any{object{"id": id, "name": r.URL.Query().Get("name")}}
		}
		send(w, 200, object{"images": found})
	case "network":
		s.neutron(w, r, strings.TrimPrefix(path, "v2.0/"))
	case "volume":
		s.cinder(w, r, strings.TrimPrefix(path, "v3/p/"))
	case "placement":
		s.placement(w, r)
	}
}

type object = map[string]any

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

func send(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	answer(w, status, string(text))
}

func fault(w http.ResponseWriter, status int, message string) {
	kind := "fault"
	if status == http.StatusNotFound {
		kind = "itemNotFound"
	}
	send(w, status, object{kind: object{"code": status, "message": message}})
}

func body(r *http.Request) (b object) {
	_ = json.NewDecoder(r.Body).Decode(&b)
	return b
}

func (s *standin) authenticate(w http.ResponseWriter, r *http.Request) {
	text, _ := json.Marshal(body(r))
	if !strings.Contains(string(text), strconv.Quote(s.secret)) {
		answer(w, 401, `{"error": {"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}}`)
		return
	}
	token := s.id("t")
	s.tokens[token] = true
	var catalog []any
	for kind, path := range map[string]string{"compute": "compute/v2.1", "image": "image", "network": "network", "volumev3": "volume/v3/p", "placement": "placement", "identity": "identity/v3"} {
		catalog = append(catalog, object{"id": "id-" + kind, "type": kind, "name": kind, "endpoints": []any{
			object{"id": kind, "interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": s.http.URL + "/" + path},
			object{"id": kind + "2", "interface": "public", "region": "RegionTwo", "region_id": "RegionTwo", "url": "http://192.0.2.1/"},
		}})
	}
	w.Header().Set("X-Subject-Token", token)
	send(w, 201, object{"token": object{"expires_at": "2030-01-01T00:00:00.000000Z", "project": object{"id": "p", "name": "ci"}, "catalog": catalog}})
}

func (s *standin) keystone(w http.ResponseWriter, r *http.Request, path string) {
	list := []any{}
	if q := r.URL.Query(); q.Get("service_id") != "id-compute" || q.Get("region_id") != "RegionOne" { // others' are not ours
		send(w, 200, object{path: list})
		return
	}
	switch path {
	case "registered_limits":
		for name, n := range s.unified {
			list = append(list, object{"resource_name": name, "default_limit": n, "service_id": "id-compute"})
		}
	case "limits":
		for name, n := range s.owned {
			list = append(list, object{"resource_name": name, "resource_limit": n, "project_id": "p"})
		}
	}
	send(w, 200, object{path: list})
}

func (s *standin) neutron(w http.ResponseWriter, r *http.Request, path string) {
	kind, id, _ := strings.Cut(path, "/")
	switch {
	case kind == "networks" || kind == "security-groups":
		key, name := strings.ReplaceAll(kind, "-", "_"), r.URL.Query().Get("name")
		send(w, 200, object{key: []any{object{"id": "id-" + name, "name": name}}})
	case r.Method == http.MethodPost:
		p := body(r)["port"].(object)
		made := &piece{kind: "port", ID: s.id("a"), Name: p["name"].(string), Mark: fmt.Sprint(p["description"]), body: p}
		s.parts = append(s.parts, made)
		send(w, 201, object{"port": object{"id": made.ID, "name": made.Name}})
	case r.Method == http.MethodDelete:
		s.drop(w, "port", id)
	default:
		var list []any
		for _, p := range s.parts {
			if mark := r.URL.Query().Get("description"); p.kind == "port" && p.Mark == mark {
				list = append(list, object{"id": p.ID, "name": p.Name, "description": p.Mark, "created_at": s.now().Format(time.RFC3339)})
			}
		}
		send(w, 200, object{"ports": list})
	}
}

// drop deletes a port or a volume.
func (s *standin) drop(w http.ResponseWriter, kind, id string) {
	i := slices.IndexFunc(s.parts, func(p *piece) bool { return p.kind == kind && p.ID == id })
	if i < 0 {
		fault(w, 404, kind+" "+id+" could not be found.")
		return
	}
	s.parts = slices.Delete(s.parts, i, i+1)
	w.WriteHeader(204)
}

func (s *standin) cinder(w http.ResponseWriter, r *http.Request, path string) {
	id := strings.TrimPrefix(path, "volumes/")
	var all, used int64
	var list []any
	for _, p := range s.parts {
		if p.kind != "volume" {
			continue
		}
		all, used = all+1, used+p.GiB
		list = append(list, object{"id": p.ID, "name": p.Name, "size": p.GiB, "metadata": object{ownerKey: p.Mark}})
		if r.Method == http.MethodPut && p.ID == id {
			v := body(r)["volume"].(object)
			p.Name, p.Mark = v["name"].(string), v["metadata"].(object)[ownerKey].(string)
			send(w, 200, object{"volume": object{"id": id}})
			return
		}
	}
	switch {
	case path == "limits":
		send(w, 200, object{"limits": object{"absolute": object{"maxTotalVolumes": 50, "maxTotalVolumeGigabytes": cmp.Or(s.quota["gigabytes"], 1000), "totalVolumesUsed": all, "totalGigabytesUsed": used}}})
	case r.Method == http.MethodDelete:
		s.drop(w, "volume", id)
	default:
		send(w, 200, object{"volumes": list})
	}
}

func (s *standin) placement(w http.ResponseWriter, r *http.Request) {
	if s.place == nil {
		send(w, 403, object{"errors": []any{object{"status": 403, "title": "Forbidden", "detail": "Access was denied to this resource."}}})
		return
	}
	class, _, _ := strings.Cut(r.URL.Query().Get("resources"), ":")
	providers := object{}
	for i := range s.place[class] {
		providers[fmt.Sprint("rp", i)] = object{"resources": object{class: object{"capacity": 1, "used": 0}}}
	}
	send(w, 200, object{"provider_summaries": providers})
}
