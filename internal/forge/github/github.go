// Package github speaks with GitHub and GitHub Enterprise as one GitHub App:
// it verifies and parses deliveries, and makes every call through one budget.
//
// The calls are few, so the package has its own small client: each answer is
// decoded into only the fields that are used, and each call, the ones for
// tokens too, is counted in points before it is sent.
package github

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
)

// The scopes in which runners can be registered.
const (
	ScopeRepository   = "repository"
	ScopeOrganisation = "organisation"
)

// Config describes one GitHub App on one GitHub.
type Config struct {
	// Name is the forge's name in the configuration.
	Name string
	// BaseURL is the API's address: "" for github.com, else that of GitHub
	// Enterprise, such as "https://ghe.example.org/api/v3".
	BaseURL string
	// AppID is the App's number or its client id.
	AppID string
	// PrivateKey is the App's RSA key in PEM (PKCS #1 or #8).
	PrivateKey []byte
	// WebhookSecrets are the secrets of which a delivery must be signed with
	// one; several while a secret is being changed.
	WebhookSecrets []string
	// RunnerScope is ScopeRepository (the default) or ScopeOrganisation.
	RunnerScope string
	// RunnerGroup is the runner group's name at ScopeOrganisation; "" is the
	// default group.
	RunnerGroup string
	// CheckName is the name of our check runs; "" is "gpuserver".
	CheckName string
	// Limits bound what we ask of GitHub.
	Limits Limits
	// CallTimeout bounds one call without its wait for the budget; 0 is 20 s.
	CallTimeout time.Duration
	// Files keeps the last good copies of files across restarts; may be nil.
	Files FileCache
	// HTTPClient is the client for all calls; nil is one of our own. Its
	// CheckRedirect is replaced.
	HTTPClient *http.Client
}

// Forge is one App on one GitHub. It implements forge.Forge, and is safe for
// use by several goroutines.
type Forge struct {
	cfg    Config
	base   *url.URL
	client *http.Client
	budget *budget
	health health
	app    *appKey
	// ownSlug is the App's slug, once it was asked for.
	ownSlug atomic.Pointer[string]

	ctx  context.Context // of renewals in the background
	stop context.CancelFunc
	work sync.WaitGroup

	tokens        tokenCache
	installations installationCache
	groups        groupCache
	runs          runCache
	files         fileCache
	flight        flights
}

var _ forge.Forge = (*Forge)(nil)

// New makes a Forge; it calls nobody. Renewals of tokens in the background end
// with ctx or Close.
func New(ctx context.Context, cfg Config) (*Forge, error) {
	base, err := ParseBaseURL(cfg.BaseURL)
	if err != nil {
		return nil, err
	}
	app, err := newAppKey(cfg.AppID, cfg.PrivateKey)
	if err != nil {
		return nil, err
	}
	switch cfg.RunnerScope {
	case "":
		cfg.RunnerScope = ScopeRepository
	case ScopeRepository, ScopeOrganisation:
	default:
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "runner scope %q: write %s or %s",
			cfg.RunnerScope, ScopeRepository, ScopeOrganisation)
	}
	if cfg.CheckName == "" {
		cfg.CheckName = "gpuserver"
	}
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = 20 * time.Second
	}
	f := &Forge{
		cfg: cfg, base: base, app: app,
		client: newClient(cfg.HTTPClient),
		budget: newBudget(cfg.Limits),
		runs:   newRunCache(),
		files:  newFileCache(),
	}
	f.ctx, f.stop = context.WithCancel(ctx)
	return f, nil
}

// Close ends the renewals in the background and idle connections.
func (f *Forge) Close() error {
	f.tokens.mu.Lock() // a renewal is begun under it, and none after this
	f.stop()
	f.tokens.mu.Unlock()
	f.work.Wait()
	f.client.CloseIdleConnections()
	return nil
}

// Name implements forge.Forge.
func (f *Forge) Name() string { return f.cfg.Name }

// Scope is where the configuration has runners for repo registered.
func (f *Forge) Scope(repo forge.Repo) forge.Scope {
	if f.cfg.RunnerScope == ScopeOrganisation {
		return forge.Scope{Repo: repo, Organisation: true, RunnerGroup: f.cfg.RunnerGroup}
	}
	return forge.Scope{Repo: repo}
}

// Verify reports whether a delivery was signed with one of our secrets; see
// VerifySignature.
func (f *Forge) Verify(body []byte, header string) error {
	return VerifySignature(f.cfg.WebhookSecrets, body, header)
}

// Budget tells what is left of the budget now.
func (f *Forge) Budget() Snapshot { return f.budget.snapshot() }
