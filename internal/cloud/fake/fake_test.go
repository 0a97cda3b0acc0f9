package fake_test

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/cloudtest"
	"gpuserver/internal/cloud/fake"
)

const owner = "test"

var flavor = gpuserver.Flavor{Name: "small", VCPUs: 2, MemoryMiB: 2048, DiskGiB: 10}

func spec(name string) cloud.Spec {
	return cloud.Spec{Name: name, Owner: owner, Flavor: flavor, Image: "debian", UserData: []byte("#cloud-config\n{}\n")}
}

// options are those of the conformance suite with every hook set.
func options(c *fake.Cloud, hosts []gpuserver.Host) cloudtest.Options {
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := spec("")
	s.UserData = nil
	return cloudtest.Options{
		Spec:       s,
		Stop:       func(t *testing.T, name string) { must(t, c.Stop(name, "shutdown")) },
		LeavePart:  func(t *testing.T, name string) { c.LeavePart(name, owner) },
		AddForeign: func(t *testing.T, name string) { c.AddForeign(name); t.Cleanup(func() { c.Vanish(name) }) },
		Handed: func(t *testing.T, name string) ([]byte, map[string]string) {
			s, err := c.Spec(name)
			must(t, err)
			return s.UserData, s.Metadata
		},
		Write: func(t *testing.T, name string, text []byte) { must(t, c.Write(name, text)) },
		RotateConsole: func(t *testing.T, name string) {
			for range 40 {
				must(t, c.Write(name, bytes.Repeat([]byte("x"), 4096)))
			}
		},
		Cards: []string{"0000:27:00.0", "0000:44:00.0"}, CardHost: "a",
		Shrink: func(t *testing.T) { c.SetHosts(nil); t.Cleanup(func() { c.SetHosts(hosts) }) },
	}
}

var twoHosts = []gpuserver.Host{
	{Name: "a", VCPUs: 16, MemoryMiB: 1 << 15, DiskGiB: 100, MaxVMs: 8, Slots: []gpuserver.Slot{
		{Group: 19, Cards: []gpuserver.Card{{Address: "0000:27:00.0", Model: "v100"}, {Address: "0000:28:00.0", Model: "v100"}}},
		{Group: 32, Cards: []gpuserver.Card{{Address: "0000:44:00.0", Model: "v100"}}},
	}},
	{Name: "b", VCPUs: 16, MemoryMiB: 1 << 15, DiskGiB: 100},
}

func TestConformance(t *testing.T) {
	c := fake.NewCloud(fake.Config{Hosts: twoHosts})
	defer c.Close()
	cloudtest.Run(t, func(*testing.T) cloud.Driver { return c.Open(owner) }, options(c, twoHosts))
}

// A cloud that chooses the cards gives those with the lowest addresses first, and
// tells how many it has, not where they are.
func TestConformanceOfACloudThatChooses(t *testing.T) {
	c := fake.NewCloud(fake.Config{Hosts: twoHosts, Capabilities: &cloud.Capabilities{Keep: true, Console: true, Events: true, Accelerated: true}})
	defer c.Close()
	opts := options(c, twoHosts)
	opts.CardFlavor = flavor
	opts.CardFlavor.GPUs = gpuserver.GPUs{Model: "v100", Count: 1}
	cloudtest.Run(t, func(*testing.T) cloud.Driver { return c.Open(owner) }, opts)
	d := c.Open(owner)
	defer d.Close()
	hosts, err := d.Capacity(t.Context())
	one := gpuserver.Slot{NUMANode: -1, Cards: []gpuserver.Card{{Model: "v100"}}}
	want := []gpuserver.Slot{one, one, one}
	want[1].Group, want[2].Group = 1, 2
	if diff := cmp.Diff(want, hosts[0].Slots); diff != "" || err != nil {
		t.Errorf("%v; slots (-want +got):\n%s", err, diff)
	}
	for i, card := range []string{"0000:27:00.0", "0000:28:00.0"} {
		s := spec(fmt.Sprint("chosen-", i))
		s.Flavor = opts.CardFlavor
		if _, err := d.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if made, _ := c.Spec(s.Name); !slices.Equal(made.Devices, []string{card}) {
			t.Errorf("VM %d got %v, want %s", i, made.Devices, card)
		}
	}
}

// 5,000 VMs must fit beside a benchmark: nothing but their specs is kept, and
// no goroutine each.
func TestManyVMs(t *testing.T) {
	d := fake.New(fake.Config{})
	defer d.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	const n = 5000
	for i := range n {
		s := spec(fmt.Sprint("vm-", i))
		s.UserData = make([]byte, 4096)
		if _, err := d.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if more := runtime.NumGoroutine() - goroutines; more > 100 {
		t.Errorf("%d goroutines more", more)
	}
	if each := int64(after.HeapAlloc-before.HeapAlloc) / n; each > 4096+2048 {
		t.Errorf("%d bytes each, with 4096 of user data", each)
	}
	vms, err := d.List(t.Context())
	if err != nil || len(vms) != n || vms[0].Name != "vm-0" || vms[n-1].Name != fmt.Sprint("vm-", n-1) {
		t.Errorf("List gives %d VMs (%v), want %d in the order of creation", len(vms), err, n)
	}
}
