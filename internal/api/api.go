package api

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gpuserver"
	"gpuserver/internal/store"
)

// Options are what an API is made of. DB and Actions are needed.
type Options struct {
	DB      *store.DB
	Actions Actions
	Tokens  []Token  // with none, whoever reaches the TCP listener is a viewer
	Hosts   []string // names, beside addresses and localhost, under which we are reached over TCP
	Version string   // of the program
	Probe   *Probe   // of DB, if somebody else asks it, too; nil: one of our own
	Log     *slog.Logger

	Metrics http.Handler // GET /metrics, for viewers; nil: none
	Pages   http.Handler // everything that is not ours, GET for viewers; nil: none

	// Observe is told of each answer, with the pattern that matched and never a
	// path with ids in it; nil: nobody is.
	Observe func(pattern string, status int, took time.Duration)
}

// API serves the JSON API, health, metrics and pages.
type API struct {
	db       *store.DB
	actions  Actions
	version  string
	log      *slog.Logger
	hosts    []string
	guard    *guard
	observe  func(string, int, time.Duration)
	mux      *http.ServeMux
	huma     huma.API
	hub      *hub
	writable *Probe
	stop     context.CancelFunc
	stopped  context.Context // ends when Close is called
}

// New makes an API. KindInvalid: a token is configured wrongly.
func New(o Options) (*API, error) {
	guard, err := newGuard(o.Tokens)
	if err != nil {
		return nil, err
	}
	a := &API{
		db: o.DB, actions: o.Actions, version: o.Version, log: o.Log, hosts: o.Hosts, guard: guard,
		writable: cmp.Or(o.Probe, NewProbe(o.DB)), observe: o.Observe, mux: http.NewServeMux(), hub: newHub(),
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.observe == nil {
		a.observe = func(string, int, time.Duration) {}
	}
	a.stopped, a.stop = context.WithCancel(context.Background())
	a.huma = newHuma(a.mux)
	a.routes(o)
	if a.db != nil {
		a.db.Watch(a.hub.tell)
	}
	return a, nil
}

func newHuma(mux *http.ServeMux) huma.API {
	c := huma.DefaultConfig("gpuserver", "v1")
	c.Info.Description = "Jobs, VMs and the state of a gpuserver. Every answer that is not a success is a Problem (RFC 9457)."
	c.OpenAPIPath = prefix + "/openapi"
	c.DocsPath, c.SchemasPath = "", "" // the page that huma offers loads a script from elsewhere
	c.CreateHooks = nil                // no $schema member in answers
	c.RejectUnknownQueryParameters = true
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer": {Type: "http", Scheme: "bearer", Description: "A token of the configuration's api.tokens. None is needed over the unix socket, which only root can open."},
	}
	return humago.New(mux, c)
}

const prefix = "/api/v1"

func (a *API) routes(o Options) {
	a.jobRoutes()
	a.vmRoutes()
	a.gpuRoutes()
	a.runRoutes()
	a.statusRoutes()
	a.eventRoute()
	a.mux.HandleFunc("GET /healthz", a.healthz)
	a.mux.HandleFunc("GET /readyz", a.readyz)
	a.mux.HandleFunc("/api/", a.nothing)
	if o.Metrics != nil {
		a.mux.Handle("GET /metrics", a.viewers(o.Metrics))
	}
	rest := http.Handler(http.HandlerFunc(a.nothing))
	if o.Pages != nil {
		rest = a.viewers(o.Pages)
	}
	a.mux.Handle("/", rest)
}

func (a *API) nothing(w http.ResponseWriter, r *http.Request) {
	a.fail(w, r, gpuserver.Errorf(gpuserver.KindNotFound, "There is no %s %.200s; %s/openapi.yaml lists what there is.", r.Method, r.URL.Path, prefix))
}

// register adds an operation that the role need, or one above it, may use.
func register[I, O any](a *API, need Role, op huma.Operation, fn func(context.Context, *I) (*O, error)) {
	op.Path = prefix + op.Path
	op.Security = []map[string][]string{{"bearer": {}}}
	op.Description += " Needs the role " + string(need) + "."
	op.BodyReadTimeout = -1 // its deadline would outlive the body and cut the answer off; authorised callers only get that far
	op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		c := callerOf(ctx.Context())
		if c.Role.May(need) {
			next(ctx)
			return
		}
		r, w := humago.Unwrap(ctx)
		a.fail(w, r, forbidden(c, need))
	})
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, a.report(ctx, op.OperationID, err)
		}
		return out, nil
	})
}

// viewers lets callers through that may look.
func (a *API) viewers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := callerOf(r.Context()); !c.Role.May(RoleViewer) {
			a.fail(w, r, forbidden(c, RoleViewer))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Socket serves a listener that only the administrator can open, such as a unix
// socket of mode 0600 in a folder of root: whoever gets in is an admin.
func (a *API) Socket() http.Handler {
	return a.serve(func(*http.Request) (caller, error) { return caller{Name: "socket", Role: RoleAdmin}, nil })
}

// TCP serves any other listener: callers are known by their token.
func (a *API) TCP() http.Handler {
	guarded := a.serve(a.guard.identify)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(a.guard.tokens) == 0 && !allowedHost(r.Host, a.hosts) {
			a.fail(w, r, misdirected(r.Host))
			return
		}
		guarded.ServeHTTP(w, r)
	})
}

// open are the paths that need no caller: a load balancer or the service
// manager asks them.
var open = map[string]bool{"/healthz": true, "/readyz": true}

func (a *API) serve(identify func(*http.Request) (caller, error)) http.Handler {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !open[r.URL.Path] {
			c, err := identify(r)
			if err != nil {
				challenge(w, r, err)
				a.fail(w, r, err)
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
		}
		start := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		a.mux.ServeHTTP(rec, r)
		a.observe(r.Pattern, rec.status, time.Since(start))
	})
	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.fail(w, r, gpuserver.Errorf(gpuserver.KindRefused, "A page of another site may not do this."))
	}))
	protected := cross.Handler(answer)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		protected.ServeHTTP(w, r)
	})
}

// challenge tells a browser that looks at a page to ask for a token, and a
// program to send one.
func challenge(w http.ResponseWriter, r *http.Request, err error) {
	switch p := asProblem(err); p.Status {
	case http.StatusUnauthorized:
		w.Header().Add("WWW-Authenticate", `Bearer realm="gpuserver"`)
		if r.Method == http.MethodGet {
			w.Header().Add("WWW-Authenticate", `Basic realm="gpuserver: any name, the token as password", charset="UTF-8"`)
		}
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "6")
	}
}

// Close ends the answers that go on by themselves (events, followed consoles),
// so that http.Server.Shutdown does not wait for them. Give it to the server's
// RegisterOnShutdown.
func (a *API) Close() {
	a.stop()
	a.hub.close()
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if !r.wrote {
		r.status, r.wrote = status, true
	}
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController find the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// OpenAPI gives the API's description as YAML, as /api/v1/openapi.yaml does.
func OpenAPI() ([]byte, error) {
	a, err := New(Options{})
	if err != nil {
		return nil, err
	}
	defer a.Close()
	return a.huma.OpenAPI().YAML()
}
