// Package userlist fetches the lists of users that a policy names by address
// (users_from_json): over https only, bounded in size and time, from public
// addresses only, asked for conditionally, with the last good copy kept for when
// the address cannot be reached.
package userlist

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"gpuserver"
	"gpuserver/internal/cirun"
)

// Bounds and defaults.
const (
	MaxSize        = 4 << 20 // bytes of a list
	maxRedirects   = 3
	maxLists       = 256       // in memory, those used last
	maxKept        = 1_000_000 // users in all of them
	defaultTimeout = 10 * time.Second
	defaultFresh   = time.Minute
	defaultRetry   = 10 * time.Second
	defaultMaxAge  = 7 * 24 * time.Hour
)

// List is what an address held.
type List struct {
	Users     []cirun.User
	FetchedAt time.Time // when it was last known to be so
	// Stale says why an older copy was given, as a sentence; "" is a fresh one.
	Stale string
}

// Copy is a list as it was received; the last good one is kept across restarts.
type Copy struct {
	Body      []byte
	ETag      string
	FetchedAt time.Time
}

// Keeper keeps the last good copy of each list. An address that it does not
// have is KindNotFound.
type Keeper interface {
	LoadUserList(ctx context.Context, address string) (Copy, error)
	SaveUserList(ctx context.Context, address string, c Copy) error
}

// Options are the settings of a Fetcher; zero values stand for the defaults.
type Options struct {
	Keeper  Keeper                    // nil: copies are kept in memory only
	Timeout time.Duration             // of one fetch, redirects included; 10 s
	Fresh   time.Duration             // how long a list is used without asking; 1 min
	Retry   time.Duration             // how long after a failure the address is left alone; 10 s
	MaxAge  time.Duration             // how old a last good copy may be; 7 days
	Allow   func(netip.AddrPort) bool // which addresses may be connected to; public ones, port 443 or above 1023
	TLS     *tls.Config               // such as the certificate authorities to trust
	Now     func() time.Time
	Log     *slog.Logger
}

// Fetcher fetches lists. Its methods may be called concurrently; one address is
// fetched once at a time.
type Fetcher struct {
	o      Options
	client *http.Client

	mu    sync.Mutex
	lists *simplelru.LRU[string, *listed]
	users int // in all lists
	most  int // of users; maxKept
}

// listed is an entry with the number of its users.
type listed struct {
	*entry
	n int
}

// entry is one address; its channel is the lock for fetching, so that waiting
// for it obeys the context.
type entry struct {
	lock    chan struct{}
	loaded  bool         // the keeper was asked
	copy    Copy         // its body is with the keeper only
	users   []cirun.User // of copy
	good    bool         // users are a list
	weight  atomic.Int64 // how many there are
	keptAt  time.Time    // when the keeper's copy was so
	triedAt time.Time
	problem error // of the last try; nil is success
}

// New makes a Fetcher.
func New(o Options) *Fetcher {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Fresh <= 0 {
		o.Fresh = defaultFresh
	}
	if o.Retry <= 0 {
		o.Retry = defaultRetry
	}
	if o.MaxAge <= 0 {
		o.MaxAge = defaultMaxAge
	}
	if o.Allow == nil {
		o.Allow = allowPublic
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	dialer := &net.Dialer{Timeout: o.Timeout, Control: control(o.Allow)}
	f := &Fetcher{o: o, most: maxKept, client: &http.Client{
		Timeout:       o.Timeout,
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			// No proxy: it would connect in our place, to addresses that we did
			// not judge.
			Proxy: nil, DialContext: dialer.DialContext, TLSClientConfig: o.TLS, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: o.Timeout, ResponseHeaderTimeout: o.Timeout,
			MaxResponseHeaderBytes: 64 << 10, MaxIdleConns: 10, IdleConnTimeout: 30 * time.Second,
		},
	}}
	var err error
	if f.lists, err = simplelru.NewLRU(maxLists, func(_ string, l *listed) { f.users -= l.n }); err != nil {
		panic(err) // only for a size below 1
	}
	return f
}

// Close ends idle connections.
func (f *Fetcher) Close() { f.client.CloseIdleConnections() }

func allowPublic(ap netip.AddrPort) bool {
	return Public(ap.Addr()) && (ap.Port() == 443 || ap.Port() > 1023)
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("it is redirected more than %d times", maxRedirects)
	}
	return checkURL(req.URL)
}

func checkURL(u *url.URL) error {
	if u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("%s is not an https address", cirun.ShownAddress(u.Redacted()))
	}
	return nil
}

// Get gives the list at an address: the one in memory if it is fresh, else what
// the address holds now, else the last good copy with Stale set. The error is
// KindInvalid for an address that can never be fetched, else KindUnavailable.
func (f *Fetcher) Get(ctx context.Context, address string) (List, error) {
	return f.GetSince(ctx, address, time.Time{})
}

// GetSince is Get, but a list of before since is asked for anew even if it is
// fresh.
func (f *Fetcher) GetSince(ctx context.Context, address string, since time.Time) (List, error) {
	u, err := url.Parse(address)
	if err == nil {
		err = checkURL(u)
	}
	if err != nil {
		return List{}, &gpuserver.Error{Kind: gpuserver.KindInvalid, Public: "the list of users cannot be fetched: its address has to be https", Err: err}
	}
	e := f.entry(address)
	defer f.weigh(address, e)
	select {
	case e.lock <- struct{}{}:
		defer func() { <-e.lock }()
	case <-ctx.Done():
		return List{}, gpuserver.Wrap(gpuserver.KindUnavailable, "fetch users "+cirun.ShownAddress(address), ctx.Err())
	}
	f.load(ctx, address, e)
	now := f.o.Now()
	if e.due(now, since, f.o) {
		err := f.refresh(ctx, address, e)
		if ctx.Err() != nil && err != nil {
			// The caller gave up; that says nothing of the address.
			return List{}, gpuserver.Wrap(gpuserver.KindUnavailable, "fetch users "+cirun.ShownAddress(address), ctx.Err())
		}
		e.triedAt, e.problem = now, err
		if err != nil {
			f.o.Log.Warn("a list of users cannot be fetched", "address", cirun.ShownAddress(address), "err", err, "last_good", e.copy.FetchedAt)
		}
	}
	return e.answer(address, f.o.Now(), f.o.MaxAge)
}

// entry gives an address's entry. The one that was not used for longest makes
// room, so that nobody's lists keep another's from being read; its last good copy
// stays with the keeper.
func (f *Fetcher) entry(address string) *entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, ok := f.lists.Get(address); ok {
		return l.entry
	}
	e := &entry{lock: make(chan struct{}, 1)}
	f.lists.Add(address, &listed{entry: e})
	return e
}

// weigh takes a list's new number of users into account.
func (f *Fetcher) weigh(address string, e *entry) {
	n := int(e.weight.Load())
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, ok := f.lists.Peek(address); ok && l.entry == e {
		f.users += n - l.n
		l.n = n
	}
	for f.users > f.most && f.lists.Len() > 1 {
		f.lists.RemoveOldest()
	}
}

// due reports whether the address is to be asked now.
func (e *entry) due(now, since time.Time, o Options) bool {
	if e.problem != nil {
		return now.Sub(e.triedAt) >= o.Retry
	}
	return !e.good || now.Sub(e.copy.FetchedAt) >= o.Fresh || e.copy.FetchedAt.Before(since)
}

func (e *entry) answer(address string, now time.Time, maxAge time.Duration) (List, error) {
	if e.problem == nil && e.good {
		return List{Users: e.users, FetchedAt: e.copy.FetchedAt}, nil
	}
	why := "it was not fetched"
	if e.problem != nil {
		why = e.problem.Error()
	}
	if e.good && now.Sub(e.copy.FetchedAt) <= maxAge {
		return List{Users: e.users, FetchedAt: e.copy.FetchedAt, Stale: fmt.Sprintf("the list %s cannot be read now; its copy of %s was used",
			cirun.ShownAddress(address), e.copy.FetchedAt.UTC().Format(time.RFC3339))}, nil
	}
	return List{}, &gpuserver.Error{
		Kind: gpuserver.KindUnavailable, Op: "fetch users", Err: e.problem,
		Public: fmt.Sprintf("the list of users %s cannot be read: %s", cirun.ShownAddress(address), why),
	}
}

func (e *entry) take(c Copy, users []cirun.User) {
	c.Body = nil
	e.copy, e.users, e.good, e.keptAt = c, users, true, c.FetchedAt
	e.weight.Store(int64(len(users)))
}

// load takes the keeper's copy, once.
func (f *Fetcher) load(ctx context.Context, address string, e *entry) {
	if e.loaded || f.o.Keeper == nil {
		return
	}
	c, err := f.o.Keeper.LoadUserList(ctx, address)
	if err != nil {
		if gpuserver.KindOf(err) == gpuserver.KindNotFound {
			e.loaded = true
		} else {
			f.o.Log.Warn("the kept list of users cannot be loaded", "address", cirun.ShownAddress(address), "err", err)
		}
		return
	}
	e.loaded = true
	users, err := Parse(c.Body)
	if err != nil {
		f.o.Log.Warn("the kept list of users cannot be read", "address", cirun.ShownAddress(address), "err", err)
		return
	}
	e.take(c, users)
}

// refresh asks the address, conditionally if there is a copy. Its error texts
// are shown to people.
func (f *Fetcher) refresh(ctx context.Context, address string, e *entry) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json, text/plain;q=0.9")
	req.Header.Set("User-Agent", "gpuserver")
	if e.good && e.copy.ETag != "" {
		req.Header.Set("If-None-Match", e.copy.ETag)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return plain(err)
	}
	defer resp.Body.Close()
	c := Copy{ETag: resp.Header.Get("ETag"), FetchedAt: f.o.Now()}
	switch {
	case resp.StatusCode == http.StatusNotModified && e.good:
		c.ETag = e.copy.ETag
		e.copy = c
		f.confirm(ctx, address, e)
		return nil
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("it answers %s", resp.Status)
	}
	if c.Body, err = io.ReadAll(io.LimitReader(resp.Body, MaxSize+1)); err != nil {
		return plain(err)
	}
	users, err := Parse(c.Body)
	if err != nil {
		return err
	}
	e.take(c, users)
	if f.o.Keeper != nil {
		if err := f.o.Keeper.SaveUserList(ctx, address, c); err != nil {
			f.o.Log.Warn("the list of users cannot be kept", "address", cirun.ShownAddress(address), "err", err)
		}
	}
	return nil
}

// confirm tells the keeper from time to time that its copy is still so: after a
// restart a list that never changes must not look too old to be used.
func (f *Fetcher) confirm(ctx context.Context, address string, e *entry) {
	if f.o.Keeper == nil || e.copy.FetchedAt.Sub(e.keptAt) < f.o.MaxAge/10 {
		return
	}
	c, err := f.o.Keeper.LoadUserList(ctx, address)
	if err == nil {
		c.FetchedAt = e.copy.FetchedAt
		err = f.o.Keeper.SaveUserList(ctx, address, c)
	}
	if err != nil {
		f.o.Log.Warn("the list of users cannot be kept", "address", cirun.ShownAddress(address), "err", err)
		return
	}
	e.keptAt = c.FetchedAt
}

// plain takes the address out of an http error: it is told already.
func plain(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		if ue.Timeout() {
			return errors.New("it does not answer in time")
		}
		return ue.Err
	}
	return err
}
