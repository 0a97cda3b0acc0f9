package forgetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBody is the longest request body that is read, in bytes.
const maxBody = 1 << 20

// The resources that primary limits count.
const (
	resourceCore         = "core"
	resourceRegistration = "actions_runner_registration"
)

// route is one operation of GitHub's interface.
type route struct {
	pattern  string // of http.ServeMux
	auth     authKind
	needs    []permissionNeeded
	content  bool // creates content: has a limit of its own
	free     bool // counts against no limit
	resource string
	handle   func(*call) (int, any, *apiError) // called with Server.mu held
}

// call is a request on its way.
type call struct {
	s      *Server
	r      *http.Request
	w      http.ResponseWriter
	route  *route
	rec    Call
	body   []byte
	header http.Header // of the answer
	token  *token
	app    bool
}

// apiError is an answer other than success.
type apiError struct {
	status  int
	message string
	errors  []obj
	header  http.Header
}

var notFound = &apiError{status: http.StatusNotFound, message: "Not Found"}

func invalid(resource, field, code string) *apiError {
	return &apiError{
		status: http.StatusUnprocessableEntity, message: "Validation Failed",
		errors: []obj{{"resource": resource, "field": field, "code": code}},
	}
}

const jsonType = "application/json; charset=utf-8"

// rawAnswer is sent as it is.
type rawAnswer struct {
	contentType string
	body        []byte
}

// redirect answers with a Location.
type redirect string

// etagSeed makes ETags cheap: they need not survive the process.
var etagSeed = maphash.MakeSeed()

// routes registers GitHub's interface.
func (s *Server) routes() {
	for _, group := range [][]route{s.appRoutes(), s.actionsRoutes(), s.poolRoutes(), s.repoRoutes(), s.checkRoutes()} {
		for _, rt := range group {
			if rt.resource == "" {
				rt.resource = resourceCore
			}
			s.github.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(&rt, w, r) })
		}
	}
	s.github.HandleFunc("GET /_blob/logs/{job_id}", s.serveLog)
	unknown := route{pattern: "unknown", auth: authNone, resource: resourceCore, handle: func(*call) (int, any, *apiError) { return 0, nil, notFound }}
	s.github.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.serve(&unknown, w, r) })
}

func needs(pairs ...string) []permissionNeeded {
	var out []permissionNeeded
	for _, p := range pairs {
		name, level, _ := strings.Cut(p, "=")
		out = append(out, permissionNeeded{name, level})
	}
	return out
}

// serve carries out one call: wait, fault, who is it, limits, effect, answer.
func (s *Server) serve(rt *route, w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, r: r, w: w, route: rt, header: http.Header{}}
	c.rec = Call{Route: rt.pattern, Path: r.URL.RequestURI(), Start: now(), Points: 5, Repo: c.repoName()}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		c.rec.Points = 1
	}
	c.rec.Run, c.rec.Job = c.number("run_id"), c.number("job_id")
	var err error
	if c.body, err = io.ReadAll(io.LimitReader(r.Body, maxBody)); err != nil {
		return // the caller went away
	}
	s.mu.Lock()
	wait, f := s.set.latency, s.faultFor(r.Method, r.URL.Path)
	s.meter.running++
	s.mu.Unlock()
	if f != nil {
		c.rec.Fault = f.Kind
		if f.Kind == FaultDelay {
			wait += f.Delay
			f = nil
		}
	}
	sleep(r.Context(), wait)
	if f != nil && !f.After {
		c.fail(f)
		return
	}
	status, body, e := c.run()
	if f != nil {
		c.fail(f)
		return
	}
	c.answer(status, body, e)
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// run does what the call asks for, under the lock.
func (c *call) run() (int, any, *apiError) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.authenticate(c); e != nil {
		c.rec.Limited = "auth"
		return 0, nil, e
	}
	if c.route.free {
		c.rec.Points = 0
	} else if no := s.meter.charge(s.set.limits, c, time.Now()); no != nil {
		c.rec.Limited = no.limit
		return 0, nil, c.limited(no.limit == "primary", no.after, s.set.limits.TooManyRequests)
	}
	if e := s.authorise(c); e != nil {
		return 0, nil, e
	}
	return c.route.handle(c)
}

// limited is GitHub's refusal for a rate limit.
// Source: GitHub docs, "Rate limits for the REST API", exceeding the rate limit.
func (c *call) limited(primary bool, after time.Duration, tooMany bool) *apiError {
	e := &apiError{status: http.StatusForbidden, header: http.Header{}}
	if tooMany {
		e.status = http.StatusTooManyRequests
	}
	after = max((after + time.Second - 1).Truncate(time.Second), time.Second)
	if primary {
		e.message = "API rate limit exceeded for installation ID " + c.identity() + "."
		e.header.Set("X-RateLimit-Remaining", "0")
		e.header.Set("X-RateLimit-Reset", strconv.FormatInt(time.Now().Add(after).Unix(), 10))
		return e
	}
	e.message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
	e.header.Set("Retry-After", strconv.Itoa(int(after.Seconds())))
	return e
}

// fail answers with an injected fault.
func (c *call) fail(f *Fault) {
	after := f.RetryAfter
	if after == 0 {
		after = time.Minute
		if f.Kind == FaultPrimary {
			after = time.Hour
		}
	}
	var e *apiError
	switch f.Kind {
	case FaultCut:
		c.finish(0)
		panic(http.ErrAbortHandler) // net/http closes the connection
	case FaultPrimary, FaultSecondary, Fault429:
		e = c.limited(f.Kind == FaultPrimary, after, f.Kind == Fault429)
	case Fault502:
		e = &apiError{status: http.StatusBadGateway, message: "Server Error"}
	case Fault503:
		e = &apiError{status: http.StatusServiceUnavailable, message: "No server is currently available to service your request. Sorry about that."}
	default:
		e = &apiError{status: http.StatusInternalServerError, message: "Server Error"}
	}
	c.answer(0, nil, e)
}

// finish counts the call, before its answer can be seen.
func (c *call) finish(status int) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.finishLocked(status)
}

func (c *call) finishLocked(status int) {
	c.rec.Status, c.rec.End = status, now()
	c.s.meter.running--
	c.s.meter.seq++
	c.rec.Seq = c.s.meter.seq
	c.s.count(c)
}

// answer writes what a call came to.
func (c *call) answer(status int, body any, e *apiError) {
	h := c.w.Header()
	contentType, b := jsonType, []byte(nil)
	switch v := body.(type) {
	case rawAnswer:
		contentType, b = v.contentType, v.body
	case redirect:
		h.Set("Location", string(v))
	case nil:
	default:
		b = raw(v)
	}
	if e != nil {
		status, b = e.status, c.errorBody(e)
	}
	if status == http.StatusOK && c.r.Method == http.MethodGet {
		etag := fmt.Sprintf(`W/"%016x"`, maphash.Bytes(etagSeed, b))
		h.Set("ETag", etag)
		if sameETag(c.r.Header.Get("If-None-Match"), etag) {
			status, b = http.StatusNotModified, nil
		}
	}
	for k, v := range c.header {
		h[k] = v
	}
	c.close(h, status)
	if e != nil {
		for k, v := range e.header {
			h[k] = v
		}
	}
	if len(b) > 0 {
		h.Set("Content-Type", contentType)
	}
	c.w.WriteHeader(status)
	_, _ = c.w.Write(b)
}

// close counts the call and sets the headers that every answer carries.
func (c *call) close(h http.Header, status int) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.meter.budget(c, time.Now())
	if status == http.StatusNotModified {
		s.meter.stats.NotModified++
		b.used-- // unchanged: not counted
	}
	limit := s.set.limits.primary(c.route.resource)
	used := b.used
	if limit == 0 {
		limit, used = 1_000_000, 0
	}
	h.Set("X-GitHub-Media-Type", "github.v3; format=json")
	h.Set("X-GitHub-Request-Id", fmt.Sprintf("F0:%X", s.meter.seq+1))
	h.Set("X-RateLimit-Limit", strconv.Itoa(limit))
	h.Set("X-RateLimit-Remaining", strconv.Itoa(max(0, limit-used)))
	h.Set("X-RateLimit-Used", strconv.Itoa(used))
	h.Set("X-RateLimit-Reset", strconv.FormatInt(b.reset.Unix(), 10))
	h.Set("X-RateLimit-Resource", c.route.resource)
	c.finishLocked(status)
}

func sameETag(given, etag string) bool {
	for one := range strings.SplitSeq(given, ",") {
		one = strings.TrimSpace(one)
		if one != "" && strings.TrimPrefix(one, "W/") == strings.TrimPrefix(etag, "W/") {
			return true
		}
	}
	return false
}

func (c *call) errorBody(e *apiError) []byte {
	o := obj{"message": e.message, "documentation_url": "https://docs.github.com/rest", "status": strconv.Itoa(e.status)}
	if e.errors != nil {
		o["errors"] = e.errors
	}
	return raw(o)
}

// identity names whose budget a call counts against.
func (c *call) identity() string {
	switch {
	case c.token != nil:
		return strconv.FormatInt(c.token.account.installID, 10)
	case c.app:
		return "app"
	}
	return "anonymous"
}

func (c *call) decode(out any) *apiError {
	if len(bytes.TrimSpace(c.body)) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, out); err != nil {
		return &apiError{status: http.StatusBadRequest, message: "Problems parsing JSON"}
	}
	return nil
}

// number reads a numeric part of the path; 0 if there is none.
func (c *call) number(name string) int64 {
	n, _ := strconv.ParseInt(c.r.PathValue(name), 10, 64)
	return n
}

func (c *call) id(name string) (int64, *apiError) {
	if n := c.number(name); n > 0 {
		return n, nil
	}
	return 0, notFound
}

func (c *call) repoName() string {
	if o := c.r.PathValue("owner"); o != "" {
		return o + "/" + c.r.PathValue("repo")
	}
	return ""
}

// repo finds the repository that the path names, as far as the token reaches.
func (c *call) repo() (*repo, *apiError) {
	p := c.s.world.repos[strings.ToLower(c.repoName())]
	if p == nil {
		return nil, notFound
	}
	if c.token != nil && (c.token.account != p.owner || (c.token.repos != nil && !c.token.repos[p.id])) {
		if p.private {
			return nil, notFound
		}
		if c.r.Method != http.MethodGet || strings.Contains(c.route.pattern, "/runners") {
			return nil, &apiError{status: http.StatusForbidden, message: "Resource not accessible by integration"}
		}
	}
	return p, nil
}

// org finds the account that the path names.
func (c *call) org() (*account, *apiError) {
	a := c.s.world.accounts[strings.ToLower(c.r.PathValue("org"))]
	if a == nil || !a.org || (c.token != nil && c.token.account != a) {
		return nil, notFound
	}
	return a, nil
}

// page gives the part of n things that the query asks for, and sets Link.
func (c *call) page(n int) (from, to int) {
	q := c.r.URL.Query()
	per, _ := strconv.Atoi(q.Get("per_page"))
	if per <= 0 {
		per = 30
	}
	per = min(per, 100)
	page, _ := strconv.Atoi(q.Get("page"))
	page = max(page, 1)
	from, to = min((page-1)*per, n), min(page*per, n)
	last := (n + per - 1) / per
	link := func(page int, rel string) string {
		q.Set("page", strconv.Itoa(page))
		return fmt.Sprintf(`<%s%s?%s>; rel="%s"`, c.base(), c.r.URL.Path, q.Encode(), rel)
	}
	var links []string
	if page > 1 {
		links = append(links, link(page-1, "prev"), link(1, "first"))
	}
	if page < last {
		links = append(links, link(page+1, "next"), link(last, "last"))
	}
	if len(links) > 0 {
		c.header.Set("Link", strings.Join(links, ", "))
	}
	return from, to
}

// base is where the caller reached us.
func (c *call) base() string { return baseOf(c.r) }

func baseOf(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}
