package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"gpuserver"
)

// proxyArgs are how the proxy before an OpenStack runs.
type proxyArgs struct {
	// Targets are the cloud's URLs by our word for the service: keystone, nova,
	// glance, neutron, placement.
	Targets map[string]string `json:"targets"`
}

// stackCall is a call that went through the proxy.
type stackCall struct {
	From    string `json:"from"`    // who made it, see proxyURL
	Service string `json:"service"` // as in proxyArgs
	Method  string `json:"method"`
	Path    string `json:"path"` // behind the service's URL
	Query   string `json:"query,omitempty"`
	At      int64  `json:"at"`  // when it arrived, in ns since 1970
	End     int64  `json:"end"` // when it was answered
	Status  int    `json:"status"`
}

// stackServer is what answers that went through the proxy said of a server.
type stackServer struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	From     string `json:"from"`      // who was told
	ActiveAt int64  `json:"active_at"` // when an answer first said ACTIVE; 0: none did
	Failed   bool   `json:"failed"`    // an answer said ERROR
}

// proxyURL is where a client finds a service behind the proxy; its name stands in
// the path, so that its calls are told from others'.
func proxyURL(addr, from, service string) string {
	return "http://" + addr + "/" + from + "/" + service
}

// stackProxy counts the calls to a cloud and notes when an answer first says that a
// server is active. It is between the cloud and everybody who is measured, so that
// what it costs is the same for all.
type stackProxy struct {
	to   map[string]*url.URL
	wire *http.Transport // to the cloud

	mu      sync.Mutex
	calls   []stackCall
	servers map[string]*stackServer // by who was told and id
}

func newStackProxy(a proxyArgs) (*stackProxy, error) {
	p := &stackProxy{to: map[string]*url.URL{}, wire: http.DefaultTransport.(*http.Transport).Clone(), servers: map[string]*stackServer{}}
	p.wire.Proxy, p.wire.DisableCompression, p.wire.MaxIdleConnsPerHost = nil, true, 128
	for name, target := range a.Targets {
		u, err := url.Parse(strings.TrimSuffix(target, "/"))
		if err != nil {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "bench: %q is no URL of %s", target, name)
		}
		p.to[name] = u
	}
	return p, nil
}

// ServeHTTP implements http.Handler.
func (p *stackProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if name, own := strings.CutPrefix(r.URL.Path, "/_"); own {
		_ = json.NewEncoder(w).Encode(p.seen(name)) // whoever asks sees that it is short
		return
	}
	from, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	service, path, _ := strings.Cut(rest, "/")
	target := p.to[service]
	if target == nil {
		http.Error(w, "no service "+service, http.StatusNotFound)
		return
	}
	c := stackCall{From: from, Service: service, Method: r.Method, Path: "/" + path, Query: r.URL.RawQuery, At: time.Now().UnixNano()}
	rp := httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Path, pr.Out.URL.RawPath = c.Path, ""
			pr.SetURL(target)
		},
		ModifyResponse: func(resp *http.Response) error {
			c.Status = resp.StatusCode
			if !strings.HasPrefix(c.Path, "/servers") || c.Method != http.MethodGet {
				return nil
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			p.look(c.From, body)
			resp.Body = io.NopCloser(bytes.NewReader(body))
			return nil
		},
		Transport: p.wire,
	}
	rp.ServeHTTP(w, r)
	c.End = time.Now().UnixNano()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, c)
}

// look notes what an answer says of servers.
func (p *stackProxy) look(from string, body []byte) {
	now := time.Now().UnixNano()
	type server struct{ ID, Name, Status string }
	var answer struct {
		Server  *server
		Servers []server
	}
	if json.Unmarshal(body, &answer) != nil {
		return // an error's text
	}
	if answer.Server != nil {
		answer.Servers = append(answer.Servers, *answer.Server)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range answer.Servers {
		known := p.servers[from+s.ID]
		if known == nil {
			known = &stackServer{ID: s.ID, Name: s.Name, From: from}
			p.servers[from+s.ID] = known
		}
		if s.Status == "ACTIVE" && known.ActiveAt == 0 {
			known.ActiveAt = now
		}
		known.Failed = known.Failed || s.Status == "ERROR"
	}
}

// seen gives the calls or the servers that went through.
func (p *stackProxy) seen(what string) any {
	p.mu.Lock()
	defer p.mu.Unlock()
	if what == "calls" {
		return slices.Clone(p.calls)
	}
	servers := []stackServer{}
	for _, s := range p.servers {
		servers = append(servers, *s)
	}
	return servers
}

// serveProxy is the proxy's process.
func serveProxy(ctx context.Context, a proxyArgs) error {
	p, err := newStackProxy(a)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "bench: listen", err)
	}
	fmt.Println("ready", ln.Addr())
	s := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	_ = s.Serve(ln) // it ends with ctx
	return nil
}

// shared reports whether a call is one that all VMs share: the driver's lists, and
// what it asks to know the room.
func (c stackCall) shared() bool {
	if c.Method != http.MethodGet {
		return false
	}
	switch c.Service + " " + c.Path {
	case "nova /servers/detail":
		return !strings.Contains(c.Query, "name=") // else one VM is looked for
	case "nova /limits", "neutron /v2.0/ports", "placement /allocation_candidates",
		"keystone /v3/registered_limits", "keystone /v3/limits":
		return true
	}
	return false
}

var uuidRE = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// what is the call in words, without the id: "nova DELETE /servers/ID".
func (c stackCall) what() string {
	return c.Service + " " + c.Method + " " + uuidRE.ReplaceAllString(c.Path, "ID")
}

// CallsByService are calls to the services of an OpenStack.
type CallsByService struct {
	Keystone  float64 `json:"keystone"`
	Nova      float64 `json:"nova"`
	Glance    float64 `json:"glance"`
	Neutron   float64 `json:"neutron"`
	Placement float64 `json:"placement"`
}

// perVM divides calls by a number of VMs.
func perVM(calls []stackCall, n int) (out CallsByService) {
	of := map[string]*float64{
		"keystone": &out.Keystone, "nova": &out.Nova, "glance": &out.Glance, "neutron": &out.Neutron, "placement": &out.Placement,
	}
	for _, c := range calls {
		if f := of[c.Service]; f != nil {
			*f++
		}
	}
	for _, f := range of {
		*f = round(*f/float64(n), 2)
	}
	return out
}

// byKind counts calls by what they are, each divided by a number of VMs.
func byKind(calls []stackCall, n int) map[string]float64 {
	out := map[string]float64{}
	for _, c := range calls {
		out[c.what()]++
	}
	for k, v := range out {
		out[k] = round(v/float64(n), 2)
	}
	return out
}
