package forgetest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Config is how a Server starts. The zero value is usable: an App with a key of
// its own, no limits, no latency, deliveries that fail until a URL is set.
type Config struct {
	AppID         int64           // 0: 4711
	AppSlug       string          // "": gpuserver
	PrivateKey    *rsa.PrivateKey // nil: one per process
	WebhookSecret string          // "": a random one
	WebhookURL    string
	// HookTarget is X-GitHub-Hook-Installation-Target-Type: integration (an
	// App's hook; ""), organization or repository.
	HookTarget string
	BaseURL    string // prefix of the links in payloads; "": http://forge.invalid
	RunnerURL  string // what a JIT configuration names; "": as its caller reached us
	Limits     Limits
	Latency    time.Duration
	Seed       uint64        // of probabilities
	TokenLife  time.Duration // of installation tokens; 0: 1 h
	// RunnerLease is how long a runner may be silent; 0: 60 s.
	RunnerLease time.Duration
	// CancelGrace is how long a cancelled job's runner may take; 0: 5 min.
	CancelGrace     time.Duration
	DeliveryTimeout time.Duration // 0: 10 s, as GitHub's
	Senders         int           // concurrent deliveries; 0: 16
	Retention       Retention
	Log             *slog.Logger // nil: none
}

// Retention bounds what a Server keeps; the oldest goes first. 0 is the default.
type Retention struct {
	Deliveries int   // 20000
	Runs       int   // completed ones: 5000
	Calls      int   // 10000
	Checks     int   // 10000
	LogBytes   int64 // of one job: 4 MiB
}

// Server is the stand-in. It is an http.Handler and safe for concurrent use.
type Server struct {
	cfg    Config
	log    *slog.Logger
	top    *http.ServeMux
	github *http.ServeMux
	runner *http.ServeMux

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards all below
	set     live
	rand    *mathrand.Rand
	changed chan struct{} // closed and replaced whenever a job changes
	world   world
	runners runnerPool
	hooks   hookState
	meter   meter
	checks  checkStore
}

// live is the part of the configuration that may change.
type live struct {
	webhookURL    string
	runnerURL     string
	latency       time.Duration
	limits        Limits
	runnerLease   time.Duration
	pauseDispatch bool
	permissions   map[string]string
	events        []string
}

// processKey is generated once, because that takes up to a second of CPU.
var processKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// New starts a Server; Close ends it.
func New(cfg Config) *Server {
	cfg = withDefaults(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, log: cfg.Log, ctx: ctx, cancel: cancel, changed: make(chan struct{})}
	s.rand = mathrand.New(mathrand.NewPCG(cfg.Seed, cfg.Seed))
	s.set = live{
		webhookURL: cfg.WebhookURL, runnerURL: cfg.RunnerURL, latency: cfg.Latency, limits: cfg.Limits,
		runnerLease: cfg.RunnerLease, permissions: defaultPermissions(), events: []string{"check_run", "workflow_job"},
	}
	s.world.init()
	s.runners.init()
	s.hooks.init(cfg)
	s.meter.init(time.Now())
	s.checks.init()
	s.github, s.runner, s.top = http.NewServeMux(), http.NewServeMux(), http.NewServeMux()
	s.routes()
	s.runnerRoutes()
	s.top.Handle("/_runner/", s.runner)
	s.controlRoutes(s.top)
	s.top.Handle("/api/v3/", http.StripPrefix("/api/v3", s.github))
	s.top.Handle("/", s.github)
	s.startSenders()
	s.wg.Go(s.reap)
	return s
}

func withDefaults(cfg Config) Config {
	orInt := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	orTime := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	orText := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	if cfg.AppID == 0 {
		cfg.AppID = 4711
	}
	if cfg.PrivateKey == nil {
		key, err := processKey()
		if err != nil {
			panic(err) // the system's source of randomness failed
		}
		cfg.PrivateKey = key
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Retention.LogBytes == 0 {
		cfg.Retention.LogBytes = 4 << 20
	}
	orText(&cfg.AppSlug, "gpuserver")
	orText(&cfg.WebhookSecret, rand.Text())
	orText(&cfg.HookTarget, "integration")
	orText(&cfg.BaseURL, "http://forge.invalid")
	cfg.BaseURL = strings.TrimSuffix(cfg.BaseURL, "/")
	orTime(&cfg.TokenLife, time.Hour)
	orTime(&cfg.RunnerLease, time.Minute)
	orTime(&cfg.CancelGrace, 5*time.Minute)
	orTime(&cfg.DeliveryTimeout, 10*time.Second)
	orInt(&cfg.Senders, 16)
	orInt(&cfg.Retention.Deliveries, 20000)
	orInt(&cfg.Retention.Runs, 5000)
	orInt(&cfg.Retention.Calls, 10000)
	orInt(&cfg.Retention.Checks, 10000)
	return cfg
}

func (cfg *Config) clientID() string { return fmt.Sprintf("Iv23li%d", cfg.AppID) }

// defaultPermissions are what the service needs; a test takes some away with
// Settings.Permissions.
func defaultPermissions() map[string]string {
	return map[string]string{
		"actions": "read", "administration": "write", "checks": "write", "contents": "read", "members": "read",
		"metadata": "read", "organization_self_hosted_runners": "write",
	}
}

// Close ends deliveries and long polls and waits for the goroutines.
func (s *Server) Close() error {
	s.cancel()
	s.wg.Wait()
	s.hooks.client.CloseIdleConnections()
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.top.ServeHTTP(w, r) }

// RunnerHandler serves the runner protocol alone: what may be exposed to guests.
func (s *Server) RunnerHandler() http.Handler { return s.runner }

// App gives the identity that the server under test is configured with.
func (s *Server) App() App {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(s.cfg.PrivateKey)})
	a := App{
		ID: s.cfg.AppID, ClientID: s.cfg.clientID(), Slug: s.cfg.AppSlug, PrivateKeyPEM: string(key),
		WebhookSecret: s.cfg.WebhookSecret, WebhookURL: s.set.webhookURL,
	}
	if len(s.world.installed) > 0 {
		a.InstallationID = s.world.installed[0].installID
	}
	return a
}

// Configure changes settings while the server runs.
func (s *Server) Configure(c Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	put(&s.set.webhookURL, c.WebhookURL)
	put(&s.set.runnerURL, c.RunnerURL)
	put(&s.set.latency, c.Latency)
	put(&s.set.limits, c.Limits)
	put(&s.set.runnerLease, c.RunnerLease)
	put(&s.set.permissions, c.Permissions)
	put(&s.set.events, c.Events)
	put(&s.set.pauseDispatch, c.PauseDispatch)
	if c.PauseDispatch != nil && !*c.PauseDispatch {
		s.dispatchAll()
	}
}

func put[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// jobsChanged wakes all that wait for a job; s.mu is held.
func (s *Server) jobsChanged() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// chance decides whether something of probability p happens; 0 means always.
// s.mu is held.
func (s *Server) chance(p float64) bool { return p == 0 || s.rand.Float64() < p }
