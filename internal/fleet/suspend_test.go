package fleet

import (
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/store"
)

// mixed is a bench with a second cloud, one that chooses cards and hosts itself as
// OpenStack does.
type mixed struct {
	*bench
	stack  *fake.Cloud
	change func(*Options)
}

// noHost is Nova's answer where it finds no host.
var noHost = fake.Fault{At: "create.before", Kind: gpuserver.KindCapacity, Text: "No valid host was found.", NoHost: true}

// onTwoClouds runs fn with a fleet on the clouds "local" and "stack".
func onTwoClouds(t *testing.T, change func(*Options), fn func(*mixed)) {
	m := &mixed{}
	m.change = func(o *Options) {
		if m.stack == nil {
			m.stack = fake.NewCloud(fake.Config{
				Name: "stack", Hosts: []gpuserver.Host{{Name: "stack", VCPUs: 64, MemoryMiB: 64 << 10, DiskGiB: 1000}},
				Capabilities: &cloud.Capabilities{Keep: true, Console: true, Events: true, Leavable: true, Accelerated: true},
			})
		}
		o.Clouds = append(o.Clouds, m.stack.Open(""))
		o.Limits.SuspendAfter, o.Limits.SuspendOver, o.Limits.SuspendFor = 3, time.Minute, 10*time.Minute
		if change != nil {
			change(o)
		}
	}
	inBubble(t, func(o *Options) { m.change(o) }, func(b *bench) {
		defer m.stack.Close()
		defer func() { b.stop() }()
		m.bench = b
		fn(m)
	})
}

// on queues a job with the entries "cloud/flavor".
func (m *mixed) on(entries ...string) gpuserver.JobID {
	m.t.Helper()
	id := m.job()
	m.update(func(tx *store.Tx) error {
		j, err := tx.Job(id)
		for _, e := range entries {
			c, flavor, _ := strings.Cut(e, "/")
			j.Entries = append(j.Entries, gpuserver.Entry{Cloud: c, Flavor: flavor, Image: "img", Runner: "gpu"})
		}
		if err != nil {
			return err
		}
		return tx.SaveJob(&j)
	})
	m.fleet.wakePlanner()
	m.settle()
	return id
}

func (m *mixed) suspension() (s store.Suspension) {
	m.t.Helper()
	if err := m.db.View(m.ctx, func(tx *store.Tx) (err error) { s, err = tx.Suspension("stack", "small"); return err }); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// suspend has the flavor small suspended on stack.
func (m *mixed) suspend() gpuserver.JobID {
	m.t.Helper()
	m.stack.SetFaults([]fake.Fault{noHost})
	id := m.on("stack/small")
	m.pass(2*time.Minute + 5*time.Second)
	if !m.suspension().Suspended() {
		m.t.Fatalf("it is not suspended: %+v", m.suspension())
	}
	return id
}

// TestFlavorIsSuspended suspends a flavor of which the cloud finds no host again and
// again, and no other; its jobs wait with the reason or go elsewhere.
func TestFlavorIsSuspended(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		id := m.suspend()
		j := m.wantJob(id, gpuserver.JobQueued)
		for _, want := range []string{"suspended there", "ledger and cloud disagree", "No valid host was found", "tried"} {
			if !strings.Contains(strings.ReplaceAll(j.Reason.Text, "try it", "tried"), want) {
				t.Errorf("it waits because it %s, want %q", j.Reason.Text, want)
			}
		}
		if j.Reason.Class != gpuserver.ReasonSuspended || !strings.Contains(j.Reason.Help, "gpuserver cloud check stack") || !strings.Contains(j.Reason.Help, "gpuserver cloud resume stack small") || j.Tries != 0 {
			t.Errorf("the job: %+v", j)
		}
		made := len(m.stack.Calls(0))
		other := m.on("stack/small", "local/small")
		if v := m.vm(m.wantJob(other, gpuserver.JobStarting).VM); v.Cloud != "local" {
			t.Errorf("a job with another entry is on %s", v.Cloud)
		}
		m.pass(5 * time.Minute)
		if n := len(m.stack.Calls(0)); n != made {
			t.Errorf("%d calls to the cloud while it is suspended", n-made)
		}
		m.stack.SetFaults(nil)
		if large := m.on("stack/large"); m.read(large).State != gpuserver.JobStarting {
			t.Error("another flavor is suspended, too")
		}
		m.wantJob(id, gpuserver.JobQueued)
	})
}

// TestSuspensionIsTried makes one VM after a while, of several jobs that wait; what
// becomes of it decides for all.
func TestSuspensionIsTried(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		ids := []gpuserver.JobID{m.suspend(), m.on("stack/small"), m.on("stack/small")}
		until := m.suspension().Until
		calls := m.creates()
		m.pass(time.Until(until) + time.Second)
		if n := m.creates() - calls; n != 1 {
			t.Errorf("%d VMs were tried, want 1", n)
		}
		if s := m.suspension(); !s.Suspended() || !s.Until.After(until) {
			t.Errorf("after a try that failed: %+v", s)
		}
		// The next try hangs: meanwhile there is no other, and jobs say so.
		stall := fake.Fault{At: "create.before", Stall: true}
		m.stack.SetFaults([]fake.Fault{stall})
		calls = m.creates()
		m.pass(15 * time.Minute)
		if n := m.creates() - calls; n != 1 {
			t.Errorf("%d VMs were tried while one is under way, want 1", n)
		}
		told := 0
		for _, id := range ids {
			if strings.Contains(m.read(id).Reason.Text, "is being made to try it") {
				told++
			}
		}
		if told != 2 {
			t.Errorf("%d jobs say that a VM is being tried, want 2", told)
		}
		m.stack.SetFaults(nil)
		m.settle()
		for _, id := range ids {
			m.wantJob(id, gpuserver.JobStarting)
		}
		if s := m.suspension(); s.Failures != 0 {
			t.Errorf("after a try that worked: %+v", s)
		}
	})
}

// forgeAway has the forge register no runner.
func (m *mixed) forgeAway(yes bool) {
	m.forge.mu.Lock()
	defer m.forge.mu.Unlock()
	m.forge.fail = nil
	if yes {
		m.forge.fail = func(call string) error {
			if call == "register" {
				return gpuserver.Errorf(gpuserver.KindUnavailable, "away")
			}
			return nil
		}
	}
}

// creates counts the creates that the second cloud was asked for.
func (m *mixed) creates() (n int) {
	for _, c := range m.stack.Calls(0) {
		if c.Call == "create" {
			n++
		}
	}
	return n
}

// TestTriedVMThatWasTakenDown tells nothing: another is made.
func TestTriedVMThatWasTakenDown(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		id := m.suspend()
		m.stack.SetFaults(nil)
		m.forgeAway(true)
		m.pass(11 * time.Minute)
		first := m.wantJob(id, gpuserver.JobStarting).VM
		m.wantJob(m.on("stack/small"), gpuserver.JobQueued)
		if err := m.fleet.DeleteVM(m.ctx, first, "alice"); err != nil {
			t.Fatal(err)
		}
		m.forgeAway(false)
		m.pass(2 * time.Minute)
		m.wantVM(first, gpuserver.VMGone)
		if v := m.wantJob(id, gpuserver.JobStarting).VM; v == first {
			t.Error("no other VM was made")
		}
	})
}

// TestSuspensionOutlivesARestart finds it in the store.
func TestSuspensionOutlivesARestart(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		id := m.suspend()
		m.stop()
		m.stack.SetFaults(nil)
		m.start(m.change)
		m.pass(time.Minute)
		if j := m.wantJob(id, gpuserver.JobQueued); j.Reason.Class != gpuserver.ReasonSuspended {
			t.Errorf("it waits for %+v", j.Reason)
		}
		m.pass(10 * time.Minute)
		m.wantJob(id, gpuserver.JobStarting)
	})
}

// TestSuspendedWhileAPlanWasMade: what a plan placed is looked at once more in the
// transaction that would make its VM.
func TestSuspendedWhileAPlanWasMade(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		m.suspend()
		held := func(flavor string) (held bool) {
			t.Helper()
			m.update(func(tx *store.Tx) (err error) {
				held, err = m.fleet.heldBack(tx, gpuserver.VM{Cloud: "stack", Flavor: flavor})
				return err
			})
			return held
		}
		if !held("small") || held("large") {
			t.Errorf("held back: small %t, large %t", held("small"), held("large"))
		}
		m.forgeAway(true)
		m.pass(11 * time.Minute)
		if !held("small") {
			t.Error("a second VM is let through while one is tried")
		}
		m.forgeAway(false)
		m.stack.SetFaults(nil)
		m.pass(2 * time.Minute)
		if held("small") {
			t.Error("it is held back although a VM was made")
		}
	})
}

// TestResumeFlavor ends a suspension by an operator's word.
func TestResumeFlavor(t *testing.T) {
	onTwoClouds(t, nil, func(m *mixed) {
		id := m.suspend()
		m.stack.SetFaults(nil)
		if err := m.fleet.ResumeFlavor(m.ctx, "stack", "large", "alice"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
			t.Errorf("a flavor that is not suspended: %v", err)
		}
		m.pass(time.Minute)
		if err := m.fleet.ResumeFlavor(m.ctx, "stack", "small", "alice"); err != nil {
			t.Fatal(err)
		}
		m.settle()
		m.wantJob(id, gpuserver.JobStarting)
	})
}

// TestWhatSuspendsNoFlavor: a quota, failures that come at once, and those between
// which a VM was made.
func TestWhatSuspendsNoFlavor(t *testing.T) {
	quota := noHost
	quota.NoHost = false
	for name, tt := range map[string]struct {
		change func(*Options)
		fault  fake.Fault
		try    func(*mixed)
	}{
		"a quota":       {nil, quota, func(m *mixed) { m.pass(time.Hour) }},
		"it is off":     {func(o *Options) { o.Limits.SuspendAfter = 0 }, noHost, func(m *mixed) { m.pass(time.Hour) }},
		"too few":       {func(o *Options) { o.Limits.SuspendAfter = 10 }, noHost, func(m *mixed) { m.pass(4 * time.Minute) }},
		"all at once":   {nil, noHost, func(m *mixed) { m.on("stack/small"); m.on("stack/small"); m.on("stack/small") }},
		"one was made":  {nil, noHost, func(m *mixed) { m.pass(50 * time.Second); m.madeOne(); m.pass(50 * time.Second) }},
		"a day between": {nil, noHost, func(m *mixed) { m.pass(50 * time.Second); m.aDayLater(); m.pass(50 * time.Second) }},
	} {
		t.Run(name, func(t *testing.T) {
			onTwoClouds(t, tt.change, func(m *mixed) {
				m.stack.SetFaults([]fake.Fault{tt.fault})
				m.on("stack/small")
				tt.try(m)
				if s := m.suspension(); s.Suspended() {
					t.Errorf("it is suspended: %+v", s)
				}
			})
		})
	}
}

// aDayLater has the first job cancelled and another queued a day later.
func (m *mixed) aDayLater() {
	if err := m.fleet.CancelJob(m.ctx, 1, "alice"); err != nil {
		m.t.Fatal(err)
	}
	m.pass(25 * time.Hour)
	m.on("stack/small")
}

// madeOne has the cloud find a host for one VM.
func (m *mixed) madeOne() {
	m.stack.SetFaults(nil)
	m.on("stack/small")
	m.stack.SetFaults([]fake.Fault{noHost})
	m.on("stack/small")
}
