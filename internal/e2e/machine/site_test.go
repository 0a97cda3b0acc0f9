package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuserver/internal/cloud/libvirt/libvirttest"
	"gpuserver/internal/forge/forgetest"
)

const webhookSecret = "a secret of the tests"

// site is what VMs find on the internet: the stand-in for GitHub and a gate at
// which a job's step waits, in a network namespace, as a process.
type site struct {
	*forgetest.Client
	t        *testing.T
	gate     string // URL
	loopback string // the forge's URL for the service, which speaks plain HTTP on loopback only
}

// newSite makes namespace, link and process; addr is the site's, hostAddr ours.
func newSite(t *testing.T, name, hostAddr, addr string) *site {
	t.Helper()
	ns, link := name+"-forge", name+"f"
	t.Cleanup(func() { host(t, fmt.Sprintf("ip link del %s; ip netns del %s; true", link, ns)) })
	host(t, fmt.Sprintf(`set -e
ip netns add %[1]s
ip link add %[2]s type veth peer name eth0 netns %[1]s
ip addr add %[3]s/30 dev %[2]s && ip link set %[2]s up
ip -n %[1]s addr add %[4]s/30 dev eth0 && ip -n %[1]s link set eth0 up && ip -n %[1]s link set lo up`, ns, link, hostAddr, addr))
	p := start(t, []string{roleVar + "=site"}, "ip", "netns", "exec", ns, libvirttest.Self(), addr)
	p.says(t, &p.stdout, "ready\n")
	forgeURL := "http://" + net.JoinHostPort(addr, forgePort)
	target, err := url.Parse(forgeURL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
	t.Cleanup(func() { proxy.CloseClientConnections(); proxy.Close() })
	return &site{
		Client: &forgetest.Client{URL: forgeURL}, t: t, loopback: proxy.URL,
		gate: "http://" + net.JoinHostPort(addr, gatePort),
	}
}

const forgePort, gatePort = "8090", "8091"

// serveSite is the process.
func serveSite(ctx context.Context, addr string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ln, err := net.Listen("tcp", net.JoinHostPort(addr, gatePort))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: newGate(), ReadHeaderTimeout: 10 * time.Second}
	var both sync.WaitGroup
	var gateErr error
	both.Go(func() {
		if gateErr = srv.Serve(ln); errors.Is(gateErr, http.ErrServerClosed) {
			gateErr = nil
		}
		stop()
	})
	err = forgetest.Serve(ctx, forgetest.Options{
		Config: forgetest.Config{WebhookSecret: webhookSecret}, Listen: net.JoinHostPort(addr, forgePort),
		Ready: func(string, string) { fmt.Println("ready") },
	})
	_ = srv.Close()
	both.Wait()
	return errors.Join(err, gateErr)
}

// gates are places by name at which a VM says that it came, and waits.
type gates struct {
	mu     sync.Mutex
	byName map[string]*gate
}

type gate struct{ came, open chan struct{} }

func newGate() http.Handler {
	g := &gates{byName: map[string]*gate{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pass/{name}", func(w http.ResponseWriter, r *http.Request) {
		p := g.get(r.PathValue("name"))
		g.mark(p.came)
		g.wait(w, r, p.open)
	})
	mux.HandleFunc("GET /came/{name}", func(w http.ResponseWriter, r *http.Request) { g.wait(w, r, g.get(r.PathValue("name")).came) })
	mux.HandleFunc("POST /open/{name}", func(_ http.ResponseWriter, r *http.Request) { g.mark(g.get(r.PathValue("name")).open) })
	return mux
}

func (g *gates) get(name string) *gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byName[name] == nil {
		g.byName[name] = &gate{make(chan struct{}), make(chan struct{})}
	}
	return g.byName[name]
}

func (g *gates) mark(c chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-c:
	default:
		close(c)
	}
}

func (g *gates) wait(w http.ResponseWriter, r *http.Request, c chan struct{}) {
	select {
	case <-c:
		_, _ = io.WriteString(w, "pass\n")
	case <-r.Context().Done():
	}
}

// step gives the script of a step that says who it is and waits at a gate.
func (s *site) step(name string) string {
	return "uname -a\ncurl -sS --fail " + s.gate + "/pass/" + name + "\necho went on"
}

// came waits until a VM is at a gate.
func (s *site) came(name string) { s.t.Helper(); s.ask("GET", "/came/"+name) }

// open lets pass who waits at a gate, and who will.
func (s *site) open(name string) { s.t.Helper(); s.ask("POST", "/open/"+name) }

func (s *site) ask(method, path string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.gate+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("at the gate: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("at the gate, %s: %s", path, resp.Status)
	}
}

// The organisation's files, in the form of conda-forge's.
const (
	runnersFile = `runners:
  - name: cirun-openstack-gpu-large
    cloud: openstack
    instance_type: gpu_large
    machine_image: ubuntu-2404-gpu
    region: RegionOne
    labels: [linux, x64, cirun-openstack-gpu-large]
  - name: cirun-openstack-brief
    cloud: openstack
    instance_type: gpu_brief
    machine_image: ubuntu-2404-gpu
    region: RegionOne
    labels: [linux, x64, cirun-openstack-brief]
`
	accessFile = `version: 1
policies:
  - id: hello-policy
    repo: hello
    roles: [admin, write]
    pull_request: true
access_control:
  - resource: cirun-openstack-gpu-large
    policies: [hello-policy]
  - resource: cirun-openstack-brief
    policies: [hello-policy]
`
)

// populate makes the organisation, its files and the user whose jobs run.
func (s *site) populate(webhook string) {
	s.t.Helper()
	ctx := s.t.Context()
	first := func(_ any, err error) error { return err }
	for _, err := range []error{
		first(s.AddOrg(ctx, forgetest.Org{Login: "octo"})),
		first(s.AddUser(ctx, forgetest.User{Login: "alice"})),
		first(s.AddRepo(ctx, forgetest.Repository{Name: "octo/hello"})),
		first(s.AddRepo(ctx, forgetest.Repository{Name: "octo/.cirun"})),
		first(s.SetFile(ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".cirun.global.yml", Content: []byte(runnersFile)})),
		first(s.SetFile(ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".access.yml", Content: []byte(accessFile)})),
		s.SetRole(ctx, forgetest.Role{Repo: "octo/hello", Login: "alice", Role: "write"}),
		s.Configure(ctx, forgetest.Settings{WebhookURL: &webhook, RunnerURL: &s.URL}),
	} {
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// identity writes the App's key and secret, and gives the part of the
// configuration that names them.
func (s *site) identity(dir string) string {
	s.t.Helper()
	app, err := s.App(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for name, content := range map[string]string{"app.pem": app.PrivateKeyPEM, "secret": webhookSecret} {
		if err := os.WriteFile(dir+"/"+name, []byte(content), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return strings.NewReplacer("DIR", dir, "URL", s.loopback, "ID", fmt.Sprint(app.ID)).Replace(`forges:
  - name: github
    type: github
    base_url: URL
    app_id: ID
    private_key: {file: DIR/app.pem}
    webhook_secrets: [{file: DIR/secret}]
`)
}
