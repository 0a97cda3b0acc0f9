// Package apitest plays the fleet for tests of the API, the pages and the
// operator's commands: a real store, real HTTP and no VMs.
package apitest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/health"
	"gpuserver/internal/store"
)

// OpenStore opens an empty store that is closed when the test ends.
func OpenStore(t testing.TB) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), filepath.Join(t.TempDir(), "gpuserver.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Fleet is an api.Actions that keeps what it was told. Set the exported fields
// before it is used.
type Fleet struct {
	DB *store.DB
	// OnRun plays a command's VM, in a goroutine of its own that the test's end
	// waits for; nil: the command stays in the queue.
	OnRun func(ctx context.Context, job gpuserver.JobID, r api.RunRequest)
	// Fail is the error of every action; nil: none fails.
	Fail error

	HostList  []gpuserver.Host
	CloudList []api.CloudStatus
	ForgeList []api.ForgeStatus
	Policy    health.Policy
	// MoreFlavors are there beside "small".
	MoreFlavors []api.FlavorInfo

	mu       sync.Mutex
	calls    []string
	consoles map[gpuserver.VMID][]byte
	streams  map[string]*stream
	ctx      context.Context
	running  sync.WaitGroup
}

type stream struct {
	data []byte
	done bool
	more chan struct{} // closed and replaced at each change
}

// NewFleet gives a fleet of one cloud with one host. Runs that it plays end
// with the test.
func NewFleet(t testing.TB, db *store.DB) *Fleet {
	ctx, cancel := context.WithCancel(context.Background())
	f := &Fleet{
		DB: db, ctx: ctx, consoles: map[gpuserver.VMID][]byte{}, streams: map[string]*stream{},
		HostList: []gpuserver.Host{{Cloud: "local", Name: "node1", VCPUs: 16, MemoryMiB: 65536, DiskGiB: 500}},
		CloudList: []api.CloudStatus{{
			Name: "local", Type: "libvirt", Up: true, Known: true, Cards: true, Note: "VMs run under software emulation",
		}},
		ForgeList: []api.ForgeStatus{{
			Name: "github", Type: "github", Up: true, Limit: 5000, Remaining: 4321, Spent: map[string]int64{"register": 50, "read": 12},
		}},
	}
	t.Cleanup(func() {
		cancel()
		f.running.Wait()
	})
	return f
}

// Calls gives the actions asked for, in order, such as "cancel 3 by socket".
func (f *Fleet) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func (f *Fleet) called(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.Fail
}

// CancelJob implements api.Actions: the job is done, cancelled.
func (f *Fleet) CancelJob(ctx context.Context, id gpuserver.JobID, by string) error {
	if err := f.called("cancel %d by %s", id, by); err != nil {
		return err
	}
	return f.End(ctx, id, "cancelled")
}

// End ends a job with a conclusion; KindConflict if it is over.
func (f *Fleet) End(ctx context.Context, id gpuserver.JobID, conclusion string) error {
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		if j.State.Over() {
			return gpuserver.Errorf(gpuserver.KindConflict, "Job %d is over already.", id)
		}
		j.Conclusion, j.ForgeState, j.EndedAt = conclusion, gpuserver.ForgeCompleted, tx.Now
		return tx.MoveJob(&j, gpuserver.JobDone, conclusion)
	})
	f.EndOutput(id)
	return err
}

// RetryJob implements api.Actions.
func (f *Fleet) RetryJob(_ context.Context, id gpuserver.JobID, by string) error {
	return f.called("retry %d by %s", id, by)
}

// DeleteVM implements api.Actions.
func (f *Fleet) DeleteVM(_ context.Context, id gpuserver.VMID, by string) error {
	return f.called("delete %d by %s", id, by)
}

// CordonGPU implements api.Actions.
func (f *Fleet) CordonGPU(ctx context.Context, id gpuserver.GPUID, reason, by string) error {
	if err := f.called("cordon %d %q by %s", id, reason, by); err != nil {
		return err
	}
	return f.moveGPU(ctx, id, gpuserver.GPUCordoned, "cordoned", strings.TrimSpace(reason+" (by "+by+")"))
}

// UncordonGPU implements api.Actions.
func (f *Fleet) UncordonGPU(ctx context.Context, id gpuserver.GPUID, by string) error {
	if err := f.called("uncordon %d by %s", id, by); err != nil {
		return err
	}
	return f.moveGPU(ctx, id, gpuserver.GPUInService, "uncordoned", "by "+by)
}

func (f *Fleet) moveGPU(ctx context.Context, id gpuserver.GPUID, to gpuserver.GPUState, kind, text string) error {
	return f.DB.Update(ctx, func(tx *store.Tx) error {
		g, err := tx.GPU(id)
		if err != nil {
			return err
		}
		g.State, g.Reason, g.StateAt = to, text, tx.Now
		if to == gpuserver.GPUInService {
			g.Reason, g.Strikes, g.RestUntil = "", 0, time.Time{}
		}
		if err := tx.SaveGPU(&g); err != nil {
			return err
		}
		return tx.AddGPUEvent(gpuserver.GPUEvent{GPU: id, Kind: kind, Text: text})
	})
}

// TestGPU implements api.Actions: a run that OnRun plays.
func (f *Fleet) TestGPU(ctx context.Context, id gpuserver.GPUID, by string) (gpuserver.JobID, error) {
	if err := f.called("test %d by %s", id, by); err != nil {
		return 0, err
	}
	return f.startRun(ctx, api.RunRequest{Args: []string{"gpu-test"}}, by)
}

// ReleaseImage implements api.Actions.
func (f *Fleet) ReleaseImage(ctx context.Context, name, by string) error {
	if err := f.called("release %s by %s", name, by); err != nil {
		return err
	}
	return f.DB.Update(ctx, func(tx *store.Tx) error { return tx.ClearImage(name) })
}

// ResumeFlavor implements api.Actions.
func (f *Fleet) ResumeFlavor(ctx context.Context, cloud, flavor, by string) error {
	if err := f.called("resume %s on %s by %s", flavor, cloud, by); err != nil {
		return err
	}
	return f.DB.Update(ctx, func(tx *store.Tx) error { return tx.ClearSuspension(cloud, flavor) })
}

// WriteConsole adds to a VM's console.
func (f *Fleet) WriteConsole(id gpuserver.VMID, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.consoles[id] = append(f.consoles[id], text...)
}

// Console implements api.Actions.
func (f *Fleet) Console(_ context.Context, id gpuserver.VMID, from, limit int64) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Fail != nil {
		return nil, f.Fail
	}
	text := f.consoles[id]
	text = text[min(from, int64(len(text))):]
	return io.NopCloser(bytes.NewReader(bytes.Clone(text[:min(limit, int64(len(text)))]))), nil
}

// StartRun implements api.Actions.
func (f *Fleet) StartRun(ctx context.Context, r api.RunRequest, by string) (gpuserver.JobID, error) {
	if err := f.called("run %q by %s", r.Args, by); err != nil {
		return 0, err
	}
	return f.startRun(ctx, r, by)
}

func (f *Fleet) startRun(ctx context.Context, r api.RunRequest, by string) (gpuserver.JobID, error) {
	j := gpuserver.Job{
		Forge: "local", Repo: "local", Name: r.Args[0], Labels: []string{}, ForgeState: gpuserver.ForgeQueued, State: gpuserver.JobReceived,
		ForgeID: time.Now().UnixNano(), QueuedAt: time.Now().UTC(), Command: &gpuserver.Command{Args: r.Args, Env: r.Env, Timeout: r.Timeout()},
	}
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		if err := tx.InsertJob(&j); err != nil {
			return err
		}
		return tx.MoveJob(&j, gpuserver.JobQueued, "asked for by "+by)
	})
	if err == nil && f.OnRun != nil {
		f.running.Go(func() { f.OnRun(f.ctx, j.ID, r) })
	}
	return j.ID, err
}

// StartVM makes a VM for a job and moves both to where the command runs.
func (f *Fleet) StartVM(ctx context.Context, id gpuserver.JobID) (v gpuserver.VM, err error) {
	err = f.DB.Update(ctx, func(tx *store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		v = gpuserver.VM{Forge: j.Forge, Cloud: "local", Host: "node1", Flavor: "small", Image: "demo", MadeFor: id, Assigned: id}
		name := func(id gpuserver.VMID) string { return fmt.Sprintf("gs-t-%d", id) }
		if err := tx.InsertVM(&v, name, gpuserver.Lease{Cloud: "local", Host: "node1", VCPUs: 2, MemoryMiB: 4096, DiskGiB: 20}); err != nil {
			return err
		}
		for _, s := range []gpuserver.VMState{gpuserver.VMCreating, gpuserver.VMBooting, gpuserver.VMReady, gpuserver.VMBusy} {
			if err := tx.MoveVM(&v, s, "played"); err != nil {
				return err
			}
		}
		j.VM, j.StartedAt = v.ID, tx.Now
		return tx.MoveJob(&j, gpuserver.JobRunning, "played")
	})
	return v, err
}

// Exit ends a command with its exit status.
func (f *Fleet) Exit(ctx context.Context, id gpuserver.JobID, v gpuserver.VM, status int) error {
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		v.Guest.RunnerExit = &status
		return tx.SaveVM(&v)
	})
	if err != nil {
		return err
	}
	conclusion := "success"
	if status != 0 {
		conclusion = "failure"
	}
	return f.End(ctx, id, conclusion)
}

// stream is called with mu held.
func (f *Fleet) stream(id gpuserver.JobID, name string) *stream {
	key := fmt.Sprintf("%d/%s", id, name)
	s := f.streams[key]
	if s == nil {
		s = &stream{more: make(chan struct{})}
		f.streams[key] = s
	}
	return s
}

// Write adds to what a command wrote.
func (f *Fleet) Write(id gpuserver.JobID, name, text string) {
	f.change(id, name, func(s *stream) { s.data = append(s.data, text...) })
}

// EndOutput says that nothing more comes.
func (f *Fleet) EndOutput(id gpuserver.JobID) {
	for _, name := range []string{"stdout", "stderr"} {
		f.change(id, name, func(s *stream) { s.done = true })
	}
}

func (f *Fleet) change(id gpuserver.JobID, name string, fn func(*stream)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stream(id, name)
	fn(s)
	close(s.more)
	s.more = make(chan struct{})
}

// Output implements api.Actions.
func (f *Fleet) Output(ctx context.Context, id gpuserver.JobID, name string, from int64, wait time.Duration) (api.Output, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		f.mu.Lock()
		s := f.stream(id, name)
		from = min(from, int64(len(s.data)))
		o := api.Output{Data: bytes.Clone(s.data[from:]), Next: int64(len(s.data)), Done: s.done}
		more := s.more
		f.mu.Unlock()
		if len(o.Data) > 0 || o.Done {
			return o, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return o, nil
		}
	}
}

// Hosts implements api.Actions.
func (f *Fleet) Hosts(context.Context) []gpuserver.Host { return f.HostList }

// Clouds implements api.Actions.
func (f *Fleet) Clouds(context.Context) []api.CloudStatus { return f.CloudList }

// Forges implements api.Actions.
func (f *Fleet) Forges(context.Context) []api.ForgeStatus { return f.ForgeList }

// HealthPolicy implements api.Surroundings.
func (f *Fleet) HealthPolicy(context.Context) health.Policy { return f.Policy }

// Flavors implements api.Surroundings.
func (f *Fleet) Flavors(context.Context) []api.FlavorInfo {
	small := api.FlavorInfo{Flavor: gpuserver.Flavor{Name: "small", VCPUs: 2, MemoryMiB: 2048, DiskGiB: 10}, Aliases: []string{"2vcpu"}}
	return append([]api.FlavorInfo{small}, f.MoreFlavors...)
}

// Images implements api.Surroundings.
func (f *Fleet) Images(context.Context) []gpuserver.Image {
	return []gpuserver.Image{{Name: "demo", Aliases: []string{"ubuntu-2404"}}}
}
