package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
)

// memForge is a forge in memory: registrations, and jobs for those who ask.
type memForge struct {
	forge.Forge // what is not needed here panics

	mu      sync.Mutex
	next    int64
	runners map[int64]forge.Runner
	jobs    map[int64]forge.Job
	run     forge.Run // of all jobs
	reran   []int64   // the jobs that were run again
	calls   []string
	fail    func(call string) error // before the effect; nil: never
	failed  func(call string) error // after it
}

func (m *memForge) Name() string { return "gh" }

func (m *memForge) call(name string, effect func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, name)
	if m.fail != nil {
		if err := m.fail(name); err != nil {
			return err
		}
	}
	if err := effect(); err != nil {
		return err
	}
	if m.failed != nil {
		return m.failed(name)
	}
	return nil
}

func (m *memForge) RegisterRunner(_ context.Context, s forge.RunnerSpec) (r forge.Registration, err error) {
	err = m.call("register", func() error {
		for _, o := range m.runners {
			if o.Name == s.Name {
				return gpuserver.Errorf(gpuserver.KindConflict, "already exists")
			}
		}
		m.next++
		m.runners[m.next] = forge.Runner{ID: m.next, Name: s.Name, Labels: s.Labels}
		r = forge.Registration{RunnerID: m.next, JITConfig: "aml0"}
		return nil
	})
	return r, err
}

func (m *memForge) FindRunner(_ context.Context, _ forge.Scope, name string) (r forge.Runner, err error) {
	err = m.call("find", func() error {
		for _, o := range m.runners {
			if o.Name == name {
				r = o
				return nil
			}
		}
		return gpuserver.Errorf(gpuserver.KindNotFound, "no runner %s", name)
	})
	return r, err
}

func (m *memForge) DeleteRunner(_ context.Context, _ forge.Scope, id int64) error {
	return m.call("delete", func() error {
		if m.runners[id].Busy {
			return gpuserver.Errorf(gpuserver.KindConflict, "busy")
		}
		delete(m.runners, id)
		return nil
	})
}

func (m *memForge) Runners(_ context.Context, _ forge.Scope, prefix string) (rs []forge.Runner, err error) {
	err = m.call("runners", func() error {
		for _, r := range m.runners {
			if strings.HasPrefix(r.Name, prefix) {
				rs = append(rs, r)
			}
		}
		return nil
	})
	return rs, err
}

func (m *memForge) Job(_ context.Context, _ forge.Repo, id int64) (j forge.Job, err error) {
	err = m.call("job", func() error {
		var ok bool
		if j, ok = m.jobs[id]; !ok {
			return gpuserver.Errorf(gpuserver.KindNotFound, "no job %d", id)
		}
		return nil
	})
	return j, err
}

func (m *memForge) Run(_ context.Context, _ forge.Repo, _ int64, attempt int) (r forge.Run, err error) {
	err = m.call("run", func() error {
		if attempt != 0 {
			return gpuserver.Errorf(gpuserver.KindInternal, "only the latest attempt is known here")
		}
		r = m.run
		return nil
	})
	return r, err
}

func (m *memForge) RerunJob(_ context.Context, _ forge.Repo, id int64) error {
	return m.call("rerun", func() error {
		if m.run.Status != string(gpuserver.ForgeCompleted) {
			return gpuserver.Errorf(gpuserver.KindConflict, "its run goes on")
		}
		m.run.Attempt, m.run.Status, m.run.Conclusion = m.run.Attempt+1, "in_progress", ""
		m.reran = append(m.reran, id)
		return nil
	})
}

// count gives how often a call was made.
func (m *memForge) count(name string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.calls {
		if c == name {
			n++
		}
	}
	return n
}

func (m *memForge) setBusy(name string, busy bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, r := range m.runners {
		if r.Name == name {
			r.Busy = busy
			m.runners[id] = r
		}
	}
}

// bench is a fleet on a cloud and a forge in memory, in a bubble of time.
type bench struct {
	t     *testing.T
	ctx   context.Context
	db    *store.DB
	cloud *fake.Cloud
	drv   *fake.Driver
	forge *memForge
	fleet *Fleet
	stop  func()
	n     int64
}

var testFlavors = map[string]gpuserver.Flavor{
	"small": {Name: "small", VCPUs: 1, MemoryMiB: 1024, DiskGiB: 10}, "large": {Name: "large", VCPUs: 4, MemoryMiB: 4096, DiskGiB: 40},
}

// inBubble runs fn with a fleet whose clock jumps to the next event.
func inBubble(t *testing.T, change func(*Options), fn func(*bench)) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		b := &bench{t: t, ctx: t.Context(), db: db, cloud: fake.NewCloud(fake.Config{Name: "local"})}
		defer b.cloud.Close()
		b.forge = &memForge{runners: map[int64]forge.Runner{}, jobs: map[int64]forge.Job{}}
		b.start(change)
		defer func() { b.stop() }()
		fn(b)
	})
}

// start starts a fleet on what the store holds, as a new process would.
func (b *bench) start(change func(*Options)) {
	b.t.Helper()
	b.drv = b.cloud.Open("")
	o := Options{
		DB: b.db, Clouds: []cloud.Driver{b.drv}, Forges: map[string]Forge{"gh": {Forge: b.forge}}, Flavors: testFlavors, Name: "t",
		AgentURL: func(string) string { return "http://192.0.2.1:1" }, OutputDir: b.t.TempDir(),
		Limits: Limits{
			Boot: 5 * time.Minute, EmulationFactor: 4, Idle: 5 * time.Minute, Job: time.Hour, Grace: 30 * time.Second, Retries: 2,
			RetryAfter: 5 * time.Second, HoldImageAfter: 3, Registrations: 8, Creates: 8,
		},
		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	f, err := New(b.ctx, o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.fleet = f
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
		_ = b.drv.Close()
	})
	b.settle()
}

// settle waits until nothing more happens without time passing.
func (b *bench) settle() { synctest.Wait() }

func (b *bench) pass(d time.Duration) {
	time.Sleep(d)
	b.settle()
}

func (b *bench) update(fn func(*store.Tx) error) {
	b.t.Helper()
	if err := b.db.Update(b.ctx, fn); err != nil {
		b.t.Fatal(err)
	}
	b.settle()
}

// job queues a job that may run on the given flavors.
func (b *bench) job(flavors ...string) gpuserver.JobID {
	b.t.Helper()
	b.n++
	j := gpuserver.Job{
		Forge: "gh", ForgeID: b.n, Repo: "octo/hello", RunID: 7, RunAttempt: 1, Name: fmt.Sprint("job-", b.n), Labels: []string{"gpu"},
		ForgeState: gpuserver.ForgeQueued, State: gpuserver.JobReceived, QueuedAt: time.Now(), Resource: "gpu",
	}
	for _, f := range flavors {
		j.Entries = append(j.Entries, gpuserver.Entry{Cloud: "local", Flavor: f, Image: "img", Runner: "gpu"})
	}
	b.forge.mu.Lock()
	b.forge.jobs[b.n] = forge.Job{ID: b.n, State: gpuserver.ForgeQueued}
	b.forge.mu.Unlock()
	b.update(func(tx *store.Tx) error {
		if err := tx.InsertJob(&j); err != nil {
			return err
		}
		return tx.MoveJob(&j, gpuserver.JobQueued, "")
	})
	return j.ID
}

func (b *bench) read(id gpuserver.JobID) (j gpuserver.Job) {
	b.t.Helper()
	if err := b.db.View(b.ctx, func(tx *store.Tx) (err error) { j, err = tx.Job(id); return err }); err != nil {
		b.t.Fatal(err)
	}
	return j
}

func (b *bench) vm(id gpuserver.VMID) (v gpuserver.VM) {
	b.t.Helper()
	if err := b.db.View(b.ctx, func(tx *store.Tx) (err error) { v, err = tx.VM(id); return err }); err != nil {
		b.t.Fatal(err)
	}
	return v
}

// running says as the forge does that a runner has a job.
func (b *bench) running(id gpuserver.JobID, runner string) {
	b.t.Helper()
	b.forge.setBusy(runner, true)
	b.update(func(tx *store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		j.ForgeState, j.RunnerName, j.StartedAt = gpuserver.ForgeInProgress, runner, tx.Now
		return tx.MoveJob(&j, gpuserver.JobRunning, "")
	})
}

// done says that a job ended.
func (b *bench) done(id gpuserver.JobID, conclusion string) {
	b.t.Helper()
	b.update(func(tx *store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		j.ForgeState, j.Conclusion, j.EndedAt = gpuserver.ForgeCompleted, conclusion, tx.Now
		return tx.MoveJob(&j, gpuserver.JobDone, "")
	})
	b.forge.mu.Lock()
	defer b.forge.mu.Unlock()
	for i, r := range b.forge.runners {
		if r.Name == b.read(id).RunnerName {
			delete(b.forge.runners, i) // a runner's registration ends with its job
		}
	}
}

func (b *bench) beat(id gpuserver.VMID, h guest.Heartbeat) guest.Orders {
	b.t.Helper()
	o, err := b.fleet.Heartbeat(b.ctx, id, h)
	if err != nil {
		b.t.Fatal(err)
	}
	b.settle()
	return o
}

// isEmpty checks that cloud, forge and ledger hold nothing.
func (b *bench) isEmpty() {
	b.t.Helper()
	var uses []store.Usage
	_ = b.db.View(b.ctx, func(tx *store.Tx) (err error) { uses, err = tx.Usages(); return err })
	if vms := b.cloud.VMs(); len(vms)+len(uses)+len(b.forge.runners) > 0 {
		b.t.Errorf("left over: VMs %v, leases %v, runners %v", vms, uses, slices.Collect(maps.Values(b.forge.runners)))
	}
}

func (b *bench) wantVM(id gpuserver.VMID, s gpuserver.VMState) {
	b.t.Helper()
	if v := b.vm(id); v.State != s {
		b.t.Fatalf("VM %d is %s (%s), want %s", id, v.State, v.Reason, s)
	}
}

func (b *bench) wantJob(id gpuserver.JobID, s gpuserver.JobState) gpuserver.Job {
	b.t.Helper()
	j := b.read(id)
	if j.State != s {
		b.t.Fatalf("job %d is %s (%+v), want %s", id, j.State, j.Reason, s)
	}
	return j
}

func TestWholeLife(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.job("small")
		j := b.wantJob(id, gpuserver.JobStarting)
		b.wantVM(j.VM, gpuserver.VMBooting)
		b.beat(j.VM, guest.Heartbeat{Phase: "runner", UptimeSeconds: 3})
		b.wantVM(j.VM, gpuserver.VMReady)
		b.running(id, b.vm(j.VM).Runner.Name)
		b.wantVM(j.VM, gpuserver.VMBusy)
		b.done(id, "success")
		b.wantVM(j.VM, gpuserver.VMGone)
		b.isEmpty()
		if got := b.forge.calls; !slices.Equal(got, []string{"register"}) {
			t.Errorf("the forge was asked for %v, want one registration", got)
		}
	})
}

// Who asks for what there is not is told what there is.
func TestRunWithoutAPlaceNamesWhatThereIs(t *testing.T) {
	places := []gpuserver.Entry{{Flavor: "small", Image: "debian"}, {Flavor: "big", Image: "debian"}, {Flavor: "big", Image: "gpu"}}
	for _, tt := range []struct {
		flavor, image string
		places        []gpuserver.Entry
		say           string
	}{
		{"huge", "", places, `there is no flavor "huge"; there is big, small`},
		{"", "windows", places, `there is no image "windows"; there is debian, gpu`},
		{"small", "gpu", places, `no cloud has both flavor "small" and image "gpu"`},
		{"", "", nil, "no command can be run: no cloud has a flavor and an image"},
	} {
		run := Run{Command: gpuserver.Command{Args: []string{"true"}}, Flavor: tt.flavor, Image: tt.image}
		_, err := new(Fleet).StartRun(t.Context(), run, tt.places, "alice")
		if gpuserver.KindOf(err) != gpuserver.KindInvalid || gpuserver.PublicText(err) != tt.say {
			t.Errorf("%q, %q: %v, want %q", tt.flavor, tt.image, err, tt.say)
		}
	}
}
