package fake_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/cloudtest"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/pci"
)

// serve runs a cloud as Serve does and gives its address.
func serve(t *testing.T, network, address string, cfg fake.Config) string {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fake.Serve(ctx, ln, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	if network == "unix" {
		return "unix://" + address
	}
	return "http://" + ln.Addr().String()
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestConformanceOverHTTP(t *testing.T) {
	c := fake.NewCloud(fake.Config{Hosts: twoHosts})
	defer c.Close()
	srv := httptest.NewServer(c.Handler())
	defer srv.Close()
	cloudtest.Run(t, func(*testing.T) cloud.Driver { return fake.Dial("far", srv.URL, owner) }, options(c, twoHosts))
}

func TestConformanceWithoutCapabilities(t *testing.T) {
	cfg := fake.Config{Capabilities: &cloud.Capabilities{Note: "a test"}}
	c := fake.NewCloud(cfg)
	defer c.Close()
	opts := options(c, nil)
	opts.Shrink = nil // this cloud has its default host
	t.Run("in process", func(t *testing.T) {
		cloudtest.Run(t, func(*testing.T) cloud.Driver { return c.Open(owner) }, opts)
	})
	srv := httptest.NewServer(c.Handler())
	defer srv.Close()
	t.Run("over HTTP", func(t *testing.T) {
		cloudtest.Run(t, func(*testing.T) cloud.Driver { return fake.Dial("far", srv.URL, owner) }, opts)
	})
}

// The whole surface of a served cloud, over a Unix socket.
func TestServeAndAdmin(t *testing.T) {
	address := serve(t, "unix", filepath.Join(t.TempDir(), "cloud.sock"), fake.Config{})
	a, d, ctx := fake.NewAdmin(address), fake.Dial("", address, owner), within(t)
	defer a.Close()
	defer d.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(a.SetHosts(ctx, twoHosts))
	_, err := d.Create(ctx, spec("one"))
	must(err)
	must(a.Stop(ctx, "one", "crashed"))
	select {
	case e := <-d.Events():
		if want := (cloud.Event{VM: "one", State: cloud.StateStopped, Reason: "crashed"}); e != want {
			t.Errorf("event %+v, want %+v", e, want)
		}
	case <-ctx.Done():
		t.Fatal("no event")
	}
	must(a.LeavePart(ctx, "part", owner))
	must(a.AddForeign(ctx, "foreign"))
	must(d.Delete(ctx, "part"))
	must(a.Vanish(ctx, "one"))
	vms, err := a.VMs(ctx)
	must(err)
	if len(vms) != 1 || vms[0].Name != "foreign" {
		t.Errorf("VMs %+v, want the foreign one only", vms)
	}
	if _, err := a.Spec(ctx, "one"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("Spec of nothing: %v", err)
	}
	calls, err := a.Calls(ctx, 0)
	must(err)
	if len(calls) != 2 || calls[0].Call != "create" || calls[0].Name != "one" || calls[1].Call != "delete" || calls[0].At > calls[1].At {
		t.Errorf("calls %+v, want the create of one and the delete of part", calls)
	}
	must(a.SetCard(ctx, pci.Reading{Address: "0000:44:00.0", Present: true, Dead: true}))
	if cards, err := d.Cards(ctx, "h", []string{"0000:44:00.0"}); err != nil || len(cards) != 1 || !cards[0].Dead {
		t.Errorf("cards %+v, %v; want a dead one", cards, err)
	}
	must(a.Reset(ctx))
	if vms, err := a.VMs(ctx); err != nil || len(vms) != 0 {
		t.Errorf("after Reset: %+v, %v", vms, err)
	}
}

// A call that stalls can be waited for and let go, from another process.
func TestStallOverHTTP(t *testing.T) {
	address := serve(t, "tcp", "127.0.0.1:0", fake.Config{})
	a, d, ctx := fake.NewAdmin(address), fake.Dial("", address, owner), within(t)
	defer a.Close()
	defer d.Close()
	if err := a.SetFaults(ctx, []fake.Fault{{At: "create.after", Name: "st*", Stall: true}}); err != nil {
		t.Fatal(err)
	}
	cut, hangUp := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := d.Create(cut, spec("stalled"))
		failed <- err
	}()
	if _, err := a.WaitCall(ctx, 0, func(c fake.Call) bool { return c.Call == "create" && c.Name == "stalled" }); err != nil {
		t.Fatal(err)
	}
	for { // the call was noted when it arrived; its effect follows
		vms, err := a.VMs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(vms) == 1 {
			break
		}
	}
	hangUp()
	if err := <-failed; gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("a create that was cut: %v, want KindUnavailable", err)
	}
	if _, err := d.Get(ctx, "stalled"); err != nil {
		t.Errorf("it happened, and yet: %v", err)
	}
}

// A driver that was opened while the cloud was away works once it is there, and
// again after the cloud's restart.
func TestDialBeforeServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cloud.sock")
	d, ctx := fake.Dial("", "unix://"+path, owner), within(t)
	defer d.Close()
	if _, err := d.List(ctx); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Fatalf("List of a cloud that is away: %v", err)
	}
	for i := range 2 {
		t.Run(fmt.Sprint("start ", i+1), func(t *testing.T) {
			a := fake.NewAdmin(serve(t, "unix", path, fake.Config{}))
			defer a.Close()
			createSurely(ctx, t, d, "one")
			awaitStop(ctx, t, a, d)
		})
	}
}

// createSurely creates a VM as the contract asks its callers to: a create whose
// outcome is unknown, as on a kept connection whose other end went away with the
// old cloud, is looked up by name before it is tried again.
func createSurely(ctx context.Context, t *testing.T, d cloud.Driver, name string) {
	t.Helper()
	_, err := d.Create(ctx, spec(name))
	for gpuserver.KindOf(err) == gpuserver.KindUnavailable && ctx.Err() == nil {
		if _, err = d.Get(ctx, name); gpuserver.KindOf(err) == gpuserver.KindNotFound {
			_, err = d.Create(ctx, spec(name))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// awaitStop stops VMs until an event comes: the driver may still be waiting to
// follow the events anew.
func awaitStop(ctx context.Context, t *testing.T, a *fake.Admin, d cloud.Driver) {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for i := 0; ; i++ {
		name := fmt.Sprint("stop-", i)
		createSurely(ctx, t, d, name)
		if err := a.Stop(ctx, name, "shutdown"); err != nil {
			t.Fatal(err)
		}
		select {
		case <-d.Events():
			return
		case <-again.C:
		case <-ctx.Done():
			t.Fatal("no event")
		}
	}
}

func TestGuest(t *testing.T) {
	var mu sync.Mutex
	made := map[string]bool{}
	c := fake.NewCloud(fake.Config{
		OnCreate: func(s cloud.Spec) {
			mu.Lock()
			defer mu.Unlock()
			made[s.Name] = true
		},
		Guest: func(ctx context.Context, s cloud.Spec, console io.Writer) {
			fmt.Fprintf(console, "hello from %s", s.Name)
			if s.Name == "endless" {
				<-ctx.Done()
			}
		},
	})
	d, ctx := c.Open(owner), within(t)
	for _, name := range []string{"endless", "short"} {
		if _, err := d.Create(ctx, spec(name)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case e := <-d.Events():
		if want := (cloud.Event{VM: "short", State: cloud.StateStopped, Reason: "shutdown"}); e != want {
			t.Errorf("event %+v, want %+v", e, want)
		}
	case <-ctx.Done():
		t.Fatal("no event of the guest that shut down")
	}
	r, err := d.Console(ctx, "short", 0, 5)
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(r); string(text) != "hello" {
		t.Errorf("console %q, want hello", text)
	}
	c.Close() // ends the endless one and waits for it
	for range d.Events() {
		t.Error("a guest that was ended with the cloud told that it stopped")
	}
	if !made["endless"] || !made["short"] {
		t.Errorf("OnCreate was called for %v", made)
	}
}

func TestFaults(t *testing.T) {
	d := fake.New(fake.Config{Faults: []fake.Fault{
		{At: "create.before", Name: "bad-*", Times: 1, Kind: gpuserver.KindCapacity, Text: "no room today"},
		{At: "create.after", Name: "odd", Times: 1, Kind: gpuserver.KindUnavailable},
		{At: "delete.before", Stall: true},
	}})
	c, ctx := d.Cloud(), within(t)
	defer c.Close()
	defer d.Close()
	_, err := d.Create(ctx, spec("bad-1"))
	if gpuserver.KindOf(err) != gpuserver.KindCapacity || gpuserver.PublicText(err) != "no room today" {
		t.Errorf("create.before: %v", err)
	}
	if len(c.VMs()) != 0 {
		t.Error("create.before made a VM")
	}
	if _, err := d.Create(ctx, spec("bad-1")); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if _, err := d.Create(ctx, spec("odd")); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("create.after: %v", err)
	}
	if _, err := d.Get(ctx, "odd"); err != nil {
		t.Errorf("create.after made no VM: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- d.Delete(ctx, "odd") }()
	if _, err := c.WaitCall(ctx, 0, func(c fake.Call) bool { return c.Call == "delete" }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(ctx, "odd"); err != nil {
		t.Errorf("a delete that stalls before its effect: %v", err)
	}
	c.SetFaults(nil)
	if err := <-done; err != nil {
		t.Errorf("the delete that was let go: %v", err)
	}
	if n := c.Count("create"); n != 3 {
		t.Errorf("%d creates counted, want 3", n)
	}
}

// Room is taken by a VM from its create to its delete, on the host that was
// asked for.
func TestRoom(t *testing.T) {
	c := fake.NewCloud(fake.Config{Hosts: []gpuserver.Host{{Name: "a", VCPUs: 4, MemoryMiB: 4096, DiskGiB: 100}, {Name: "b", VCPUs: 2, MemoryMiB: 8192, DiskGiB: 10}}})
	defer c.Close()
	d, ctx := c.Open(owner), within(t)
	defer d.Close()
	on := func(name, host string) error {
		s := spec(name)
		s.Host = host
		vm, err := d.Create(ctx, s)
		if err == nil && host != "" && vm.Host != host {
			t.Errorf("%s is on host %s, want %s", name, vm.Host, host)
		}
		return err
	}
	for _, step := range []struct {
		name, host string
		want       gpuserver.Kind
	}{
		{"b1", "b", ""},
		{"b2", "b", gpuserver.KindCapacity},
		{"a1", "", ""},
		{"a2", "a", ""},
		{"x", "", gpuserver.KindCapacity},
		{"y", "c", gpuserver.KindInvalid},
	} {
		if got := gpuserver.KindOf(on(step.name, step.host)); got != step.want {
			t.Errorf("create %s on %q: kind %q, want %q", step.name, step.host, got, step.want)
		}
	}
	if err := d.Delete(ctx, "b1"); err != nil {
		t.Fatal(err)
	}
	if err := on("b2", "b"); err != nil {
		t.Errorf("after a delete: %v", err)
	}
}

// The log of calls is bounded and keeps the latest.
func TestCallsAreBounded(t *testing.T) {
	d := fake.New(fake.Config{})
	defer d.Close()
	const n = 250_000
	for range n {
		d.Get(t.Context(), "nothing")
	}
	calls := d.Cloud().Calls(0)
	if len(calls) < 100_000 || len(calls) > 200_000 || calls[len(calls)-1].Seq != n {
		t.Errorf("%d calls are kept, the last is %+v", len(calls), calls[len(calls)-1])
	}
	if got := d.Cloud().Calls(n - 3); len(got) != 3 || got[0].Seq != n-2 {
		t.Errorf("the last three: %+v", got)
	}
}

// A cloud in a process of its own must not be what a benchmark of 1000 creates
// a second measures.
func BenchmarkCreateOverHTTP(b *testing.B) {
	c := fake.NewCloud(fake.Config{})
	defer c.Close()
	srv := httptest.NewServer(c.Handler())
	defer srv.Close()
	d := fake.Dial("far", srv.URL, owner)
	defer d.Close()
	s := spec("")
	s.UserData = make([]byte, 8<<10)
	var mu sync.Mutex
	n := 0
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			one := s
			mu.Lock()
			n++
			i := n
			mu.Unlock()
			one.Name = fmt.Sprint("vm-", i)
			if _, err := d.Create(b.Context(), one); err != nil {
				b.Error(err)
				return
			}
			if i > 5000 {
				d.Delete(b.Context(), fmt.Sprint("vm-", i-5000))
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
}
