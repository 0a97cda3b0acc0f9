package openstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// These tests have a clock of their own, which jumps to the next event: an hour of
// the driver's usual times takes no time. So its network has to be in memory.

// pipes is such a network: a listener, and what connects to it.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	end   func() // closes done, once
}

func newPipes() *pipes {
	done := make(chan struct{})
	return &pipes{make(chan net.Conn), done, sync.OnceFunc(func() { close(done) })}
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
	case <-ctx.Done():
	}
	return nil, &net.OpError{Op: "dial", Net: "pipe", Err: errors.New("connection refused")}
}

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pipes) Close() error { p.end(); return nil }

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// virtual runs fn in a bubble of time with a stand-in and a configuration of the
// driver's usual times.
func virtual(t *testing.T, fn func(t *testing.T, s *standin, cfg Config)) {
	synctest.Test(t, func(t *testing.T) {
		s, cfg := virtualStandin(t)
		fn(t, s, cfg)
	})
}

// virtualStandin is for use in a bubble.
func virtualStandin(t *testing.T) (*standin, Config) {
	s, p := emptyStandin(t), newPipes()
	s.http = &httptest.Server{Listener: p, Config: &http.Server{Handler: s}}
	s.http.Start()
	t.Cleanup(s.http.Close)
	cfg := s.config()
	cfg.times, cfg.dial = usual, p.dial
	cfg.BuildTimeout, cfg.DeleteTimeout, cfg.CallTimeout = 5*time.Minute, 5*time.Minute, time.Minute
	return s, cfg
}

// took measures in the bubble's time.
func took(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

// Each call to one cloud takes 30 seconds: VMs are made and deleted there all the
// same, slowly. Another cloud's take as long as ever meanwhile.
func TestSlowAPIInVirtualTime(t *testing.T) {
	virtual(t, func(t *testing.T, slow *standin, slowConf Config) {
		_, quickConf := virtualStandin(t)
		slow.intercept(func(http.ResponseWriter, *http.Request, http.HandlerFunc) bool {
			time.Sleep(30 * time.Second)
			return false
		})
		d, other := open(t, slowConf), open(t, quickConf)
		life := func(d *Driver, name string) error {
			if _, err := d.Create(t.Context(), spec(d.cfg, name)); err != nil {
				return err
			}
			return d.Delete(t.Context(), name)
		}
		done := make(chan error, 1)
		go func() { done <- life(d, "vm-slow") }()
		lives := 0
		for over := false; !over; {
			select {
			case err := <-done:
				over = true
				if err != nil {
					t.Errorf("on the slow cloud: %v", err)
				}
			default:
				lives++
				if d := took(func() {
					if err := life(other, fmt.Sprint("vm-", lives)); err != nil {
						t.Errorf("on the other cloud: %v", err)
					}
				}); d > 8*time.Second {
					t.Errorf("a VM's life on the other cloud took %s", d)
				}
			}
		}
		if lives < 20 || slow.alive() != 0 {
			t.Errorf("%d lives on the other cloud, and %d servers left on the slow one", lives, slow.alive())
		}
	})
}

// For an hour no connection to the cloud can be used: each call fails with the
// reason, the cloud is not stormed, and nothing that was known is taken for gone.
// Half a minute after it is back all is known that happened meanwhile, with a new
// token.
func TestHourWithoutTheCloud(t *testing.T) {
	virtual(t, func(t *testing.T, s *standin, cfg Config) {
		d := open(t, cfg)
		for _, name := range []string{"stays", "stops", "goes", "ours"} {
			create(t, d, name)
		}
		var tries atomic.Int64
		s.intercept(func(w http.ResponseWriter, _ *http.Request, _ http.HandlerFunc) bool {
			tries.Add(1)
			cut(w, nil, nil)
			return true
		})
		time.Sleep(5 * time.Minute)
		_, err := d.Create(t.Context(), spec(cfg, "vm-new"))
		wantKind(t, err, gpuserver.KindUnavailable, "cannot be reached")
		wantKind(t, d.Delete(t.Context(), "ours"), gpuserver.KindUnavailable, "cannot be reached")
		_, err = d.List(t.Context())
		wantKind(t, err, gpuserver.KindUnavailable, "cannot be reached")
		time.Sleep(55 * time.Minute)
		// gophercloud asks a second time if a connection that it kept breaks.
		if n := tries.Load(); n < 60 || n > 400 {
			t.Errorf("%d tries in an hour", n)
		}
		select {
		case e := <-d.Events():
			t.Errorf("event %+v while nothing was known", e)
		default:
		}
		stops, goes := s.find("stops"), s.find("goes")
		s.do(func() {
			stops.Status, stops.Updated = "SHUTOFF", s.now().Add(-30*time.Minute)
			s.vanish(goes)
			goes.Updated = s.now().Add(-30 * time.Minute)
			clear(s.tokens)
		})
		s.intercept(nil)
		told := map[string]cloud.State{}
		for len(told) < 2 {
			select {
			case e := <-d.Events():
				told[e.VM] = e.State
			case <-time.After(35 * time.Second):
				t.Fatalf("told %v within 35 s of the cloud's return", told)
			}
		}
		if told["stops"] != cloud.StateStopped || told["goes"] != cloud.StateRemains {
			t.Errorf("told %v", told)
		}
		if err := d.Delete(t.Context(), "ours"); err != nil {
			t.Error(err)
		}
		vms, err := d.List(t.Context())
		if err != nil || len(vms) != 2 {
			t.Errorf("List gives %+v, %v; want what stays and what stopped", vms, err)
		}
	})
}

// A gateway tells another time than Nova notes, or none: what lists of changes lack
// for it is seen in the next whole list.
func TestGatewaysClock(t *testing.T) {
	for name, date := range map[string]func() string{
		"ahead":   func() string { return time.Now().Add(10 * time.Minute).UTC().Format(http.TimeFormat) },
		"behind":  func() string { return time.Now().Add(-10 * time.Minute).UTC().Format(http.TimeFormat) },
		"none":    func() string { return "" },
		"nothing": func() string { return "yesterday" },
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T, s *standin, cfg Config) {
				s.intercept(func(w http.ResponseWriter, _ *http.Request, _ http.HandlerFunc) bool {
					w.Header()["Date"] = []string{date()}
					return false
				})
				d := open(t, cfg)
				for _, name := range []string{"vm-0", "vm-1"} {
					if took := took(func() { create(t, d, name) }); took > 5*time.Second {
						t.Errorf("the create of %s took %s", name, took)
					}
				}
				m := s.find("vm-1")
				s.do(func() { m.Status, m.Updated = "SHUTOFF", s.now() })
				select {
				case e := <-d.Events():
					if e.State != cloud.StateStopped {
						t.Errorf("event %+v", e)
					}
				case <-time.After(usual.full + usual.idle + time.Second):
					t.Error("a stop was not seen")
				}
				if err := d.Delete(t.Context(), "vm-1"); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An answer that says to come again later is obeyed, whichever way it says so.
func TestComeAgainLater(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		after  func() string
		pause  time.Duration
	}{
		"429":                {429, func() string { return "7" }, 7 * time.Second},
		"413":                {413, func() string { return "7" }, 7 * time.Second},
		"429 without a time": {429, func() string { return "" }, time.Second},
		"429 at a time":      {429, func() string { return time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat) }, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T, s *standin, cfg Config) {
				d := open(t, cfg)
				create(t, d, "vm-0")
				var refused atomic.Bool
				s.intercept(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
					if !is(r, "POST", "/compute/v2.1/servers") || refused.Swap(true) {
						return false
					}
					if after := tt.after(); after != "" {
						w.Header().Set("Retry-After", after)
					}
					answer(w, tt.status, `{"overLimit": {"code": 413, "message": "This request was rate-limited."}}`)
					return true
				})
				before := s.count("POST /compute/v2.1/servers")
				if got := took(func() { create(t, d, "vm-1") }); got < tt.pause || got > tt.pause+5*time.Second {
					t.Errorf("a create that was told to wait %s took %s", tt.pause, got)
				}
				if n := s.count("POST /compute/v2.1/servers") - before; n != 2 {
					t.Errorf("%d requests, want 2", n)
				}
			})
		})
	}
}

// What answers at the cloud's address is something else for a while: pages and JSON
// of others, as success or as errors. No VM is gone for that, and none is made up.
func TestAnswersOfOthers(t *testing.T) {
	const html = "<html><head><title>Welcome</title></head><body>Log in to the wireless network</body></html>"
	for name, other := range map[string]struct {
		status int
		body   string
	}{
		"a page":                 {200, html},
		"a page as an error":     {502, html},
		"a page as not found":    {404, html},
		"JSON":                   {200, `{}`},
		"JSON of a gateway":      {404, `{"message": "no Route matched with those values"}`},
		"an array":               {200, `[]`},
		"nothing":                {200, ``},
		"cut short":              {200, `{"servers": [{"id": "b00000`},
		"a server without an id": {200, `{"server": {}, "servers": null}`},
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T, s *standin, cfg Config) {
				d := open(t, cfg)
				vm := create(t, d, "vm-1")
				var sent atomic.Int64
				s.intercept(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) bool {
					if r.Method == http.MethodPost {
						return false
					}
					sent.Add(1)
					answer(w, other.status, other.body)
					return true
				})
				_, err := d.List(t.Context()) // of changes
				wantKind(t, err, gpuserver.KindUnavailable)
				time.Sleep(2 * usual.full) // whole lists, too
				if sent.Load() < 10 {
					t.Fatalf("%d answers of another: this shows nothing", sent.Load())
				}
				_, err = d.Get(t.Context(), "vm-1")
				wantKind(t, err, gpuserver.KindUnavailable)
				_, err = d.List(t.Context())
				wantKind(t, err, gpuserver.KindUnavailable)
				if strings.Contains(gpuserver.PublicText(err), "<") {
					t.Errorf("people are told HTML: %s", gpuserver.PublicText(err))
				}
				if other.status != http.StatusOK { // else Nova has taken it, as far as anybody can tell
					wantKind(t, d.Delete(t.Context(), "vm-1"), gpuserver.KindUnavailable)
				}
				s.intercept(nil)
				vms, err := d.List(t.Context())
				if err != nil || len(vms) != 1 || vms[0].ID != vm.ID || vms[0].State != cloud.StateRunning {
					t.Errorf("List gives %+v, %v", vms, err)
				}
				select {
				case e := <-d.Events():
					t.Errorf("event %+v", e)
				default:
				}
			})
		})
	}
}

// A card that is bad keeps its server: ten more VMs, one after another, get the other
// card, and two at once find no room, until it is deleted.
func TestOneBadCardTenVMs(t *testing.T) {
	virtual(t, func(t *testing.T, s *standin, cfg Config) {
		s.cards = 2
		d := open(t, cfg)
		gpu := func(name string) error {
			one := spec(cfg, name)
			one.Flavor = gpuFlavor
			_, err := d.Create(t.Context(), one)
			return err
		}
		if err := gpu("bad"); err != nil {
			t.Fatal(err)
		}
		if err := d.Keep(t.Context(), "bad"); err != nil {
			t.Fatal(err)
		}
		for n := range 10 {
			name := fmt.Sprint("job-", n)
			if err := gpu(name); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			wantKind(t, gpu(name+"-more"), gpuserver.KindCapacity, "No valid host")
			if err := d.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if vm, err := d.Get(t.Context(), "bad"); err != nil || !vm.Kept || vm.State != cloud.StateStopped {
			t.Errorf("the VM with the bad card: %+v, %v", vm, err)
		}
		if err := d.Delete(t.Context(), "bad"); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b"} {
			if err := gpu(name); err != nil {
				t.Errorf("with both cards: %v", err)
			}
		}
	})
}

// No list shows a server that is built: it is asked for itself before it is given up.
func TestBuiltUnseen(t *testing.T) {
	virtual(t, func(t *testing.T, s *standin, cfg Config) {
		cfg.BuildTimeout = 2 * time.Minute // before the next whole list
		d := open(t, cfg)
		create(t, d, "vm-0")
		s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
			if !is(r, "POST", "/compute/v2.1/servers") {
				return false
			}
			serve(w, r)
			s.do(func() { s.machines[1].hidden, s.machines[1].seen = true, true })
			return true
		})
		vm := create(t, d, "vm-1")
		if vm.State != cloud.StateRunning || s.alive() != 2 {
			t.Errorf("Create gives %+v, and %d servers are there", vm, s.alive())
		}
	})
}

// Lists of changes are short: once nothing happens any more, they are empty, even if
// much was deleted at last.
func TestListsOfChangesAreShort(t *testing.T) {
	virtual(t, func(t *testing.T, s *standin, cfg Config) {
		d := open(t, cfg)
		for n := range 5 {
			create(t, d, fmt.Sprint("vm-", n))
			if err := d.Delete(t.Context(), fmt.Sprint("vm-", n)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(overlap + 2*usual.idle)
		var lists atomic.Int32
		s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
			if r.URL.Query().Get("changes-since") == "" {
				return false
			}
			lists.Add(1)
			answer := httptest.NewRecorder()
			serve(answer, r)
			if text := answer.Body.String(); text != `{"servers":[]}` {
				t.Errorf("a list of changes: %s", text)
			}
			return false
		})
		time.Sleep(time.Minute)
		if n := lists.Load(); n < 5 {
			t.Errorf("%d lists in a minute", n)
		}
	})
}

// While something is built, a cloud whose lists take long is listed at most half of the
// time: they are what it is busy with.
func TestSlowLists(t *testing.T) {
	virtual(t, func(t *testing.T, s *standin, cfg Config) {
		d := open(t, cfg)
		const slow = 3 * time.Second
		var lists atomic.Int32
		s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
			switch {
			case is(r, "POST", "/compute/v2.1/servers"):
				serve(w, r)
				s.do(func() { s.machines[0].stuck = true })
				return true
			case is(r, "GET", "/compute/v2.1/servers/detail"):
				lists.Add(1)
				time.Sleep(slow)
			}
			return false
		})
		ctx, cancel := context.WithCancel(t.Context())
		built := make(chan error, 1)
		go func() {
			_, err := d.Create(ctx, spec(cfg, "vm-1"))
			built <- err
		}()
		time.Sleep(30 * time.Second) // it is being built by now
		before := lists.Load()
		const over = 2 * time.Minute
		time.Sleep(over)
		if n := lists.Load() - before; n < 10 || time.Duration(n)*slow > over/2 {
			t.Errorf("%d lists of %s in %s, want half of the time, and no less than every 12 s", n, slow, over)
		}
		cancel()
		if err := <-built; err == nil {
			t.Error("it was built")
		}
	})
}
