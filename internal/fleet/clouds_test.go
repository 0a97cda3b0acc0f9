package fleet

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/store"
)

// overQuota is the answer where a quota is used up.
var overQuota = fake.Fault{At: "create.before", Kind: gpuserver.KindCapacity, Text: "Quota exceeded for cores"}

// TestNoRoomFallsBack: "No valid host" and a used-up quota send a job on to the next of
// its entries at once, at no cost to it; without another it waits with the reason.
func TestNoRoomFallsBack(t *testing.T) {
	for name, fault := range map[string]fake.Fault{"no valid host": noHost, "a quota": overQuota} {
		t.Run(name, func(t *testing.T) {
			onTwoClouds(t, nil, func(m *mixed) {
				m.stack.SetFaults([]fake.Fault{fault})
				alone, other := m.on("stack/small"), m.on("stack/small", "local/small")
				j := m.wantJob(other, gpuserver.JobStarting)
				if v := m.vm(j.VM); v.Cloud != "local" || j.Tries != 0 {
					t.Errorf("the job is on %s after %d tries", v.Cloud, j.Tries)
				}
				j = m.wantJob(alone, gpuserver.JobQueued)
				if j.Reason.Class != gpuserver.ReasonCapacity || !strings.Contains(j.Reason.Text, fault.Text) || j.Tries != 0 {
					t.Errorf("the other job waits with %+v after %d tries", j.Reason, j.Tries)
				}
				m.pass(time.Second)
				if vms := m.stack.VMs(); len(vms) != 0 {
					t.Errorf("on the full cloud: %+v", vms)
				}
				m.stack.SetFaults(nil)
				m.pass(31 * time.Second)
				m.wantJob(alone, gpuserver.JobStarting)
			})
		})
	}
}

// TestMixedClouds fills cards of this machine first and then those of a cloud that
// chooses them itself, as the entries say, and back when it is away.
func TestMixedClouds(t *testing.T) {
	cards := func(o *Options) {
		gpuFleet(o)
		o.Models = map[string]string{"10de:1db4": "v100"}
	}
	onTwoClouds(t, cards, func(m *mixed) {
		h := seedHost()
		h.Slots = h.Slots[:1] // one group
		m.cloud.SetHosts([]gpuserver.Host{h})
		stack := gpuserver.Host{Name: "stack", VCPUs: 64, MemoryMiB: 64 << 10, DiskGiB: 1000, Slots: seedHost().Slots}
		m.stack.SetHosts([]gpuserver.Host{stack})
		read := func() {
			for _, c := range m.fleet.Clouds {
				m.fleet.refreshCapacity(m.ctx, c)
			}
		}
		read()
		local, second := m.on("local/gpu1", "stack/gpu1"), m.on("local/gpu1", "stack/gpu2")
		where := func(id gpuserver.JobID) string {
			v := m.vm(m.wantJob(id, gpuserver.JobStarting).VM)
			return v.Cloud + "/" + v.Flavor
		}
		if got := []string{where(local), where(second)}; !slices.Equal(got, []string{"local/gpu1", "stack/gpu2"}) {
			t.Errorf("the jobs are on %q", got)
		}
		m.stack.SetFaults([]fake.Fault{{At: "capacity.before", Kind: gpuserver.KindUnavailable, Text: "Keystone is away"}})
		read()
		third := m.on("stack/gpu1", "local/small")
		if got := where(third); got != "local/small" {
			t.Errorf("with the cloud away the job is on %q", got)
		}
		waits := m.wantJob(m.on("stack/gpu1"), gpuserver.JobQueued)
		if waits.Reason.Class != gpuserver.ReasonUnreachable || !strings.Contains(waits.Reason.Text, "Keystone is away") {
			t.Errorf("the job waits with %+v", waits.Reason)
		}
		m.stack.SetFaults(nil)
		read()
		m.settle()
		if got := where(waits.ID); got != "stack/gpu1" {
			t.Errorf("with the cloud back the job is on %q", got)
		}
		// Both sides end as one.
		for _, id := range []gpuserver.JobID{local, second, third, waits.ID} {
			m.running(id, m.vm(m.read(id).VM).Runner.Name)
			m.done(id, "success")
		}
		m.pass(time.Minute)
		m.isEmpty()
		if vms := m.stack.VMs(); len(vms) != 0 {
			t.Errorf("left on stack: %+v", vms)
		}
	})
}

// TestConsolesOfTwoClouds reads each VM's console from its own cloud.
func TestConsolesOfTwoClouds(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		for place, c := range map[string]*fake.Cloud{"local/small": m.cloud, "stack/small": m.stack} {
			v := m.vm(m.wantJob(m.on(place), gpuserver.JobStarting).VM)
			if err := c.Write(v.Name, []byte("booted on "+place)); err != nil {
				t.Fatal(err)
			}
			r, err := m.fleet.Console(m.ctx, v.ID, 0, 1000)
			if err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(r); err != nil || string(text) != "booted on "+place {
				t.Errorf("the console of %s is %q, %v", place, text, err)
			}
		}
	})
}

// building has a VM on stack of which the cloud took the create, and whose server is
// still being built.
func (m *mixed) building(entries ...string) (gpuserver.JobID, gpuserver.VM) {
	m.t.Helper()
	m.stack.SetFaults([]fake.Fault{{At: "create.after", Stall: true}})
	id := m.on(entries...)
	v := m.vm(m.wantJob(id, gpuserver.JobStarting).VM)
	m.wantVM(v.ID, gpuserver.VMCreating)
	if err := m.stack.Edit(v.Name, func(vm *cloud.VM) { vm.State = cloud.StateBuilding }); err != nil {
		m.t.Fatal(err)
	}
	return id, v
}

// restart ends the service, which must wait for nothing, and starts it again.
func (m *mixed) restart() {
	m.t.Helper()
	at := time.Now()
	m.stop()
	if d := time.Since(at); d != 0 {
		m.t.Errorf("the service took %s to end", d)
	}
	m.start(m.change)
}

// TestRestartWhileACloudBuilds leaves a server that is being built, and the next start
// takes it up: nothing is made twice, whatever the cloud makes of it.
func TestRestartWhileACloudBuilds(t *testing.T) {
	t.Run("it becomes a VM", func(t *testing.T) {
		onTwoClouds(t, nil, func(m *mixed) {
			id, v := m.building("stack/small", "local/small")
			m.restart()
			m.wantVM(v.ID, gpuserver.VMBooting)
			if vms := m.stack.VMs(); len(vms) != 1 || m.creates() != 1 || m.forge.count("register") != 1 {
				t.Errorf("VMs %+v, %d creates, %d registrations", vms, m.creates(), m.forge.count("register"))
			}
			m.running(id, m.vm(v.ID).Runner.Name)
			m.done(id, "success")
			m.pass(time.Minute)
			m.isEmpty()
		})
	})
	fails := func(m *mixed, v gpuserver.VM) {
		why := gpuserver.Errorf(gpuserver.KindCapacity, "No valid host was found.")
		why.Err = cloud.ErrNoHost
		if err := m.stack.Fail(v.Name, why); err != nil {
			m.t.Fatal(err)
		}
		m.settle()
	}
	after := func(m *mixed, id gpuserver.JobID, v gpuserver.VM) {
		m.t.Helper()
		m.pass(time.Second)
		m.wantVM(v.ID, gpuserver.VMGone)
		j := m.wantJob(id, gpuserver.JobStarting)
		if next := m.vm(j.VM); next.Cloud != "local" || j.Tries != 0 {
			m.t.Errorf("the job is on %s after %d tries", next.Cloud, j.Tries)
		}
		if s := m.suspension(); s.Failures != 1 {
			m.t.Errorf("it is counted: %+v", s)
		}
		if vms := m.stack.VMs(); len(vms) != 0 {
			m.t.Errorf("left: %+v", vms)
		}
	}
	t.Run("it finds no host meanwhile", func(t *testing.T) {
		onTwoClouds(t, nil, func(m *mixed) {
			id, v := m.building("stack/small", "local/small")
			m.stop()
			fails(m, v)
			m.start(m.change)
			after(m, id, v)
		})
	})
	t.Run("it finds no host afterwards", func(t *testing.T) {
		onTwoClouds(t, nil, func(m *mixed) {
			id, v := m.building("stack/small", "local/small")
			m.restart()
			m.wantVM(v.ID, gpuserver.VMBooting)
			fails(m, v)
			after(m, id, v)
		})
	})
	t.Run("it finds no host, and no event says so", func(t *testing.T) {
		onTwoClouds(t, func(o *Options) { o.Every.Clouds = 30 * time.Second }, func(m *mixed) {
			id, v := m.building("stack/small", "local/small")
			m.restart()
			if err := m.stack.Edit(v.Name, func(vm *cloud.VM) {
				vm.State, vm.Fault, vm.FaultKind, vm.NoHost = cloud.StateError, "No valid host was found.", gpuserver.KindCapacity, true
			}); err != nil {
				t.Fatal(err)
			}
			m.pass(31 * time.Second)
			after(m, id, v)
		})
	})
}

// TestRestartWhileACloudDeletes leaves a deletion that takes long, and repeats it.
func TestRestartWhileACloudDeletes(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		id := m.on("stack/small")
		v := m.vm(m.wantJob(id, gpuserver.JobStarting).VM)
		m.stack.SetFaults([]fake.Fault{{At: "delete.before", Stall: true}})
		m.running(id, v.Runner.Name)
		m.done(id, "success")
		m.wantVM(v.ID, gpuserver.VMDeleting)
		m.restart()
		m.wantVM(v.ID, gpuserver.VMDeleting)
		m.stack.SetFaults(nil)
		m.pass(time.Minute)
		m.wantVM(v.ID, gpuserver.VMGone)
		m.isEmpty()
	})
}

// TestOrphansOfTwoClouds sweeps each cloud by owner and name, and only what no row
// keeps alive there.
func TestOrphansOfTwoClouds(t *testing.T) {
	onTwoClouds(t, func(o *Options) { o.Every.Clouds = 30 * time.Second }, func(m *mixed) {
		v := m.vm(m.wantJob(m.on("stack/small"), gpuserver.JobStarting).VM)
		lost := m.vm(m.wantJob(m.on("stack/large"), gpuserver.JobStarting).VM)
		spec, err := m.stack.Spec(v.Name)
		if err != nil {
			t.Fatal(err)
		}
		make := func(c *fake.Cloud, name, owner string) {
			t.Helper()
			spec := spec
			spec.Name, spec.Owner, spec.Host = name, owner, ""
			if _, err := c.Open("").Create(m.ctx, spec); err != nil {
				t.Fatal(err)
			}
		}
		id := m.fleet.ID()
		make(m.stack, id+"-90", id)         // ours, without a row
		make(m.cloud, v.Name, id)           // ours, and its row is alive on another cloud
		make(m.stack, "other-abcde-1", "x") // another installation's
		m.stack.AddForeign(id + "-91")      // a stranger with a name of ours
		make(m.stack, "somebodys", id)      // our tag on a name that we never gave
		m.stack.LeavePart(id+"-92", id)
		m.stack.Vanish(lost.Name)
		m.pass(time.Minute)
		names := func(c *fake.Cloud) (names []string) {
			for _, vm := range c.VMs() {
				names = append(names, vm.Name)
			}
			slices.Sort(names)
			return names
		}
		again := m.vm(m.read(lost.MadeFor).VM)
		want := []string{v.Name, again.Name, id + "-91", "other-abcde-1", "somebodys"}
		slices.Sort(want)
		if got := names(m.stack); !slices.Equal(got, want) {
			t.Errorf("on stack there are %q, want %q", got, want)
		}
		if got := names(m.cloud); len(got) != 0 {
			t.Errorf("on local there are %q", got)
		}
		m.wantVM(lost.ID, gpuserver.VMGone)
		if again.ID == lost.ID || again.State != gpuserver.VMBooting {
			t.Errorf("the job whose VM was lost has %+v", again)
		}
		var uses []store.Usage
		_ = m.db.View(m.ctx, func(tx *store.Tx) (err error) { uses, err = tx.Usages(); return err })
		if len(uses) != 1 || uses[0].VMs != 2 {
			t.Errorf("leases: %+v", uses)
		}
	})
}
