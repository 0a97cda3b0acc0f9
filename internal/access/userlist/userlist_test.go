package userlist

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/cirun"
)

// site is an https server that test cases change at will.
type site struct {
	*httptest.Server
	calls   atomic.Int64
	handler atomic.Value // http.HandlerFunc
}

func newSite(t *testing.T, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.handler.Store(h)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		s.handler.Load().(http.HandlerFunc)(w, r)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *site) answer(h http.HandlerFunc) { s.handler.Store(h) }

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// clock is a clock that stands still until it is moved.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// memory is a Keeper in memory.
type memory struct {
	mu     sync.Mutex
	copies map[string]Copy
}

func (m *memory) LoadUserList(_ context.Context, address string) (Copy, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.copies[address]
	if !ok {
		return c, gpuserver.Errorf(gpuserver.KindNotFound, "no copy")
	}
	return c, nil
}

func (m *memory) SaveUserList(_ context.Context, address string, c Copy) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.copies == nil {
		m.copies = map[string]Copy{}
	}
	m.copies[address] = c
	return nil
}

// newFetcher makes a Fetcher that trusts the sites and may connect to loopback.
func newFetcher(t *testing.T, c *clock, keeper Keeper, sites ...*site) *Fetcher {
	t.Helper()
	return newFetcherWith(t, Options{
		Keeper: keeper, Now: c.now, Allow: func(ap netip.AddrPort) bool { return ap.Addr().IsLoopback() },
	}, sites...)
}

func newFetcherWith(t *testing.T, o Options, sites ...*site) *Fetcher {
	t.Helper()
	pool := x509.NewCertPool()
	for _, s := range sites {
		pool.AddCert(s.Certificate())
	}
	o.TLS = &tls.Config{RootCAs: pool}
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	f := New(o)
	t.Cleanup(f.Close)
	return f
}

const alice = `{"users":[{"github":"alice","id":7}]}`

func TestFetchCacheAndLastGood(t *testing.T) {
	s := newSite(t, answer(200, alice))
	c, kept := newClock(), &memory{}
	f := newFetcher(t, c, kept, s)
	get := func(f *Fetcher) List {
		t.Helper()
		l, err := f.Get(t.Context(), s.URL)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	want := List{Users: []cirun.User{{Login: "alice", ID: 7}}, FetchedAt: c.now()}
	if diff := cmp.Diff(want, get(f)); diff != "" {
		t.Fatalf("the first list (-want +got):\n%s", diff)
	}
	get(f)
	if n := s.calls.Load(); n != 1 {
		t.Errorf("a fresh list was fetched again: %d calls", n)
	}

	if _, err := f.GetSince(t.Context(), s.URL, c.now()); err != nil || s.calls.Load() != 1 {
		t.Errorf("a list of just now was fetched again: %d calls, %v", s.calls.Load(), err)
	}
	c.advance(time.Second)
	if _, err := f.GetSince(t.Context(), s.URL, c.now()); err != nil || s.calls.Load() != 2 {
		t.Errorf("a list of before was used: %d calls, %v", s.calls.Load(), err)
	}

	fetched := c.now()
	s.answer(answer(500, "oops"))
	c.advance(2 * time.Minute)
	if l := get(f); l.Stale == "" || !l.FetchedAt.Equal(fetched) || len(l.Users) != 1 {
		t.Errorf("the last good list is %+v", l)
	}
	calls := s.calls.Load()
	if get(f); s.calls.Load() != calls {
		t.Error("an address that just failed was asked again")
	}
	again := newFetcher(t, c, kept, s)
	if l := get(again); l.Stale == "" || len(l.Users) != 1 {
		t.Errorf("after a restart the last good list is %+v", l)
	}

	s.answer(answer(200, `{"users":[]}`))
	c.advance(time.Minute)
	if l := get(f); l.Stale != "" || len(l.Users) != 0 {
		t.Errorf("after recovery the list is %+v", l)
	}

	s.answer(answer(404, ""))
	c.advance(30 * 24 * time.Hour)
	_, err := f.Get(t.Context(), s.URL)
	if gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(gpuserver.PublicText(err), "404") {
		t.Errorf("a copy that is too old: %v", err)
	}
	if _, err := f.Get(t.Context(), s.URL+"/?token=s3cret"); err == nil || strings.Contains(err.Error()+gpuserver.PublicText(err), "s3cret") {
		t.Errorf("an address with a secret: %v", err)
	}
}

func TestConditionalRequest(t *testing.T) {
	var conditional atomic.Int64
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		if r.Header.Get("If-None-Match") == `"v1"` {
			conditional.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, alice)
	})
	c, kept := newClock(), &memory{}
	f := newFetcher(t, c, kept, s)
	for range 3 {
		l, err := f.Get(t.Context(), s.URL)
		if err != nil || l.Stale != "" || len(l.Users) != 1 || !l.FetchedAt.Equal(c.now()) {
			t.Fatalf("got %+v, %v", l, err)
		}
		c.advance(2 * time.Minute)
	}
	if s.calls.Load() != 3 || conditional.Load() != 2 {
		t.Errorf("%d calls, %d of them answered \"not modified\"", s.calls.Load(), conditional.Load())
	}

	for range 20 { // days
		c.advance(24 * time.Hour)
		if _, err := f.Get(t.Context(), s.URL); err != nil {
			t.Fatal(err)
		}
	}
	s.answer(answer(500, "oops"))
	c.advance(24 * time.Hour)
	if l, err := newFetcher(t, c, kept, s).Get(t.Context(), s.URL); err != nil || l.Stale == "" || len(l.Users) != 1 {
		t.Errorf("after a restart, a list that did not change for long: %+v, %v", l, err)
	}
}

// TestRefused shows what is never fetched, or never taken for a list. Each
// address leads to a server that would answer with a list.
func TestRefused(t *testing.T) {
	plain := httptest.NewServer(answer(200, alice))
	t.Cleanup(plain.Close)
	other := newSite(t, answer(200, alice))
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	endless := func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"users":["`)
		chunk := strings.Repeat("x", 1<<16)
		for {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	}
	cases := []struct {
		name    string
		handler http.HandlerFunc
		says    string
	}{
		{"redirect to http", redirect(plain.URL), "not an https address"},
		{"redirect to a file", redirect("file:///etc/passwd"), "not an https address"},
		{"redirect to a forbidden address", redirect(strings.Replace(other.URL, "127.0.0.1", "127.0.0.2", 1)), "not on the public internet"},
		{"redirects without end", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "redirected more than 3 times"},
		{"without end", endless, "more than 4194304 bytes"},
		{"an error", answer(403, alice), "403"},
		{"no JSON", answer(200, "<html>"), "is not"},
		{"no users", answer(200, `{"message":"rate limited"}`), "is not"},
		{"null", answer(200, `null`), "is not"},
		{"nothing", answer(200, ``), "is not"},
	}
	for _, c := range cases {
		s := newSite(t, c.handler)
		f := newFetcherWith(t, Options{Allow: func(ap netip.AddrPort) bool { return ap.Addr() == netip.MustParseAddr("127.0.0.1") }}, s, other)
		l, err := f.Get(t.Context(), s.URL)
		if gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(gpuserver.PublicText(err), c.says) {
			t.Errorf("%s: %+v, %v", c.name, l, err)
		}
	}
	for _, address := range []string{plain.URL, "ftp://example.com/x", "file:///etc/passwd", "https://", "", "::"} {
		if _, err := newFetcher(t, newClock(), nil).Get(t.Context(), address); gpuserver.KindOf(err) != gpuserver.KindInvalid {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// TestPrivateAddressesAreRefusedWhenDialed runs the default check against a
// server that would answer.
func TestPrivateAddressesAreRefusedWhenDialed(t *testing.T) {
	s := newSite(t, answer(200, alice))
	f := newFetcherWith(t, Options{}, s)
	for _, address := range []string{s.URL, strings.Replace(s.URL, "127.0.0.1", "localhost", 1)} {
		_, err := f.Get(t.Context(), address)
		if _, ok := errors.AsType[*net.AddrError](err); !ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("%d requests reached a private address", n)
	}
}

func TestPublic(t *testing.T) {
	cases := map[string]bool{
		"8.8.8.8": true, "185.199.108.133": true, "2606:50c0:8000::154": true, "::ffff:8.8.8.8": true,
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false,
		"0.0.0.0": false, "0.1.2.3": false, "100.64.0.1": false, "198.18.0.1": false, "224.0.0.1": false, "255.255.255.255": false,
		"::1": false, "::": false, "fe80::1": false, "fe80::1%eth0": false, "fd00::1": false, "ff02::1": false, "fec0::1": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:100.64.0.1": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "2001:db8::1": false,
		"::ffff:0:127.0.0.1": false, "64:ff9b:1::1": false, "100::1": false, "5f00::1": false, "4000::1": false, "3fff::1": false,
	}
	for s, want := range cases {
		if got := Public(netip.MustParseAddr(s)); got != want {
			t.Errorf("Public(%s) = %v", s, got)
		}
	}
	for s, want := range map[string]bool{"8.8.8.8:443": true, "8.8.8.8:8443": true, "8.8.8.8:22": false, "10.0.0.1:443": false} {
		if got := allowPublic(netip.MustParseAddrPort(s)); got != want {
			t.Errorf("allowPublic(%s) = %v", s, got)
		}
	}
}

// TestSilentServer shows that the time-out ends a fetch, and a caller's context
// ends it without blaming the address.
func TestSilentServer(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 10)
	s := newSite(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(func() { close(release) })
	loopback := func(ap netip.AddrPort) bool { return ap.Addr().IsLoopback() }

	f := newFetcherWith(t, Options{Timeout: 50 * time.Millisecond, Allow: loopback}, s)
	if _, err := f.Get(t.Context(), s.URL); gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(gpuserver.PublicText(err), "in time") {
		t.Errorf("a silent server: %v", err)
	}

	patient := newFetcherWith(t, Options{Allow: loopback}, s)
	ctx, cancel := context.WithCancel(t.Context())
	for len(arrived) > 0 {
		<-arrived
	}
	done := make(chan error, 1)
	go func() {
		_, err := patient.Get(ctx, s.URL)
		done <- err
	}()
	<-arrived
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	s.answer(answer(200, alice))
	if l, err := patient.Get(t.Context(), s.URL); err != nil || len(l.Users) != 1 {
		t.Errorf("the next caller: %+v, %v", l, err)
	}
}

func TestOneFetchForMany(t *testing.T) {
	s := newSite(t, answer(200, alice))
	f := newFetcher(t, newClock(), &memory{}, s)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if l, err := f.Get(t.Context(), s.URL); err != nil || len(l.Users) != 1 {
				t.Errorf("got %+v, %v", l, err)
			}
		})
	}
	wg.Wait()
	if n := s.calls.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

// TestManyLists shows that who names many lists keeps nobody else's from being
// read, and that memory is bounded by lists and by users.
func TestManyLists(t *testing.T) {
	s := newSite(t, answer(200, alice))
	f := newFetcher(t, newClock(), &memory{}, s)
	get := func(path string) {
		t.Helper()
		if l, err := f.Get(t.Context(), s.URL+path); err != nil || len(l.Users) == 0 {
			t.Fatalf("%s: %d users, %v", path, len(l.Users), err)
		}
	}
	for i := range maxLists + 10 {
		get(fmt.Sprintf("/%d", i))
	}
	if f.lists.Len() != maxLists || f.users != maxLists {
		t.Errorf("%d lists with %d users are kept", f.lists.Len(), f.users)
	}
	f.most = maxLists + 100
	s.answer(answer(200, `{"users":[`+strings.Repeat(`{"id":7},`, 149)+`{"id":7}]}`))
	for i := range 5 {
		get(fmt.Sprintf("/long/%d", i))
	}
	if f.users > f.most || f.users < 150 {
		t.Errorf("%d users are kept", f.users)
	}
	s.answer(answer(200, alice))
	get("/0")
}

func TestParse(t *testing.T) {
	got, err := Parse([]byte(`{"version":1,"users":[{"github":"alice","id":7,"note":"x"},{"login":"bob"},"carol",{"id":9},{}]}`))
	want := []cirun.User{{Login: "alice", ID: 7}, {Login: "bob"}, {Login: "carol"}, {ID: 9}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	// One bad entry disables only itself, and never matches by half of it.
	got, err = Parse([]byte(`{"users":[7,{"github":"mallory","id":-1},{"github":"eve","id":"x"},{"github":["a"]},null,{"github":"bob","id":"42"},{"github":"alice","id":7}]}`))
	want = []cirun.User{{Login: "bob", ID: 42}, {Login: "alice", ID: 7}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{`{"users":{"a":1}}`, `{"users":[7]}`, `{"users":[{"id":-1}]}`, `{"users":[{}]}`, `{"users":null}`, `7`, `[`} {
		if users, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s gave %v", bad, users)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(alice))
	f.Add([]byte(`["a",{"github":"b","id":1}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		users, err := Parse(data)
		if err != nil && users != nil {
			t.Error("users beside an error")
		}
		for _, u := range users {
			if u.Login == "" && u.ID <= 0 {
				t.Errorf("an empty user: %+v", u)
			}
		}
	})
}
