// Package fleet carries out what sched decided: it owns the lives of VMs and
// runners from the lease to the verified end.
//
// It is the only writer of VM, lease and runner states and the only caller of
// cloud drivers. A VM's life is a list of named steps (see gpuserver.VMState),
// each safe to run twice: a step reads the row, does its one effect, and
// commits the move. Names are committed before any call, so that an effect
// whose outcome is unknown is found by its name and never repeated blindly.
// After a crash each VM simply goes on with the step that its row names.
package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/forge"
	"gpuserver/internal/gate"
	"gpuserver/internal/guest"
	"gpuserver/internal/health"
	"gpuserver/internal/store"
	"gpuserver/internal/workqueue"
)

// LocalForge is the forge's name of jobs that come from `gpuserver run`.
const LocalForge = "local"

// Forge is a forge with how we use it.
type Forge struct {
	forge.Forge
	// Scope says where the runners for a repository's jobs are registered.
	Scope func(forge.Repo) forge.Scope
}

// Limits are the fleet's times and counts.
type Limits struct {
	Boot            time.Duration // from the create call to a started runner, on an accelerated cloud
	EmulationFactor int           // Boot is multiplied by it where the cloud is not accelerated
	Idle            time.Duration // a runner that is up without a job is retired
	Job             time.Duration // time limit of a job whose flavor has none
	Grace           time.Duration // between interrupting a runner and destroying its VM
	Retries         int           // further VMs for a job whose VM failed before it began
	RetryAfter      time.Duration // before the first retry; doubles
	HoldImageAfter  int           // failures in a row after which an image is held
	// SuspendAfter is after how many VMs in a row for which a cloud found no host,
	// over at least SuspendOver, a flavor is suspended there for SuspendFor; 0: never.
	SuspendAfter  int
	SuspendOver   time.Duration
	SuspendFor    time.Duration
	Registrations int   // concurrent calls to a forge
	Creates       int   // concurrent create calls to a cloud
	MemoryReserve int64 // MiB kept in each guest for agent and system
	MTU           int   // of guests; 0: the network tells them
}

// Options are what a fleet is made of.
type Options struct {
	DB      *store.DB
	Clouds  []cloud.Driver
	Forges  map[string]Forge
	Flavors map[string]gpuserver.Flavor
	// Models are our names of GPU models by PCI vendor and device number
	// ("10de:1db4"), and Places is where a command may run: every flavor and image
	// on the clouds that have them. A test of a GPU picks from these.
	Models   map[string]string
	Places   []gpuserver.Entry
	Health   health.Policy                 // what a card's strikes lead to
	Name     string                        // of this installation; begins every VM's name
	AgentURL func(cloudName string) string // where guests of a cloud reach the agent listener
	// OutputDir holds the output of local jobs.
	OutputDir string
	// Admit decides about a job that a runner of ours was given before we knew
	// of it: may this repository, run and attempt use that resource?
	Admit  func(ctx context.Context, vm gpuserver.VM, j guest.JobStarted) (guest.Verdict, error)
	Limits Limits
	Every  Intervals
	// Reread applies what the forge says of a job now, as if it had sent it.
	Reread func(ctx context.Context, forgeName string, j forge.Job) error
	// Repaired is told the kind of each repair, for the metrics.
	Repaired func(kind string)
	// Struck is told of each thing that was seen wrong of a card, for the metrics;
	// it is called within a transaction and must not wait.
	Struck func(card gpuserver.GPUID, kind gate.Kind)
	// RerunOnGPU has jobs run again on their forge that failed while a GPU of them
	// did, at most Limits.Retries times.
	RerunOnGPU bool
	// BackfillFor is how long smaller jobs may overtake one that does not fit.
	BackfillFor time.Duration
	Log         *slog.Logger
}

// Fleet owns the VMs. Make it with New, then Run it.
type Fleet struct {
	Options
	clouds map[string]cloud.Driver
	id     string // of this installation, in every name
	queue  *workqueue.Queue[key]
	replan chan struct{} // holds one: there may be room
	jobs   chan struct{} // holds one: a job came into the queue
	out    *outputs
	told   round // the planner's alone

	mu       sync.Mutex
	secrets  map[gpuserver.VMID]secret
	beats    map[gpuserver.VMID]time.Time
	avoid    map[avoidKey]avoided
	down     map[string]gpuserver.Reason   // clouds that cannot be reached
	hosts    map[string][]gpuserver.Host   // last good capacity by cloud
	since    map[string]time.Time          // when a cloud went up or down
	absent   map[gpuserver.JobID]time.Time // jobs that their forge did not know when it was asked, since when
	looked   map[place]looked              // cards, before or after their last VM
	draining bool

	calls map[string]chan struct{} // limits of concurrent calls, by forge or cloud

	running context.Context // ends when Run is to return; set by it
}

// secret is what a VM is handed and only memory holds: a restart before the
// create call makes new ones.
type secret struct {
	token string
	jit   string
}

// New makes a fleet and reads its identity from the store (or makes one).
func New(ctx context.Context, o Options) (*Fleet, error) {
	f := &Fleet{
		Options: o, clouds: map[string]cloud.Driver{}, replan: make(chan struct{}, 1), jobs: make(chan struct{}, 1),
		secrets: map[gpuserver.VMID]secret{}, beats: map[gpuserver.VMID]time.Time{}, avoid: map[avoidKey]avoided{},
		down: map[string]gpuserver.Reason{}, hosts: map[string][]gpuserver.Host{}, since: map[string]time.Time{}, absent: map[gpuserver.JobID]time.Time{}, looked: map[place]looked{}, calls: map[string]chan struct{}{},
		out: newOutputs(o.OutputDir),
	}
	for _, c := range o.Clouds {
		f.clouds[c.Name()] = c
		f.calls["cloud "+c.Name()] = make(chan struct{}, max(1, o.Limits.Creates))
	}
	for name := range o.Forges {
		f.calls["forge "+name] = make(chan struct{}, max(1, o.Limits.Registrations))
	}
	id, err := Identity(ctx, o.DB, o.Name)
	f.id = id
	return f, err
}

// Identity gives the name that tags every VM of this installation: its
// configured name and a random part made once per database, so that two
// databases never take each other's VMs for their own.
func Identity(ctx context.Context, db *store.DB, name string) (id string, err error) {
	err = db.Update(ctx, func(tx *store.Tx) error {
		random, err := tx.Setting("installation")
		if err == nil && random == "" {
			random = strings.ToLower(rand.Text()[:5])
			err = tx.SetSetting("installation", random)
		}
		id = name + "-" + random
		return err
	})
	return id, err
}

// ID is the identity of this installation: the owner tag of its VMs.
func (f *Fleet) ID() string { return f.id }

// Run takes up what the store holds and works until ctx is done; then it lets
// the steps under way end and returns. VMs and jobs go on without it.
func (f *Fleet) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.running = ctx
	f.queue = workqueue.New(ctx, f.step)
	f.DB.Watch(f.changed)
	var wg sync.WaitGroup
	for _, c := range f.Clouds {
		wg.Go(func() {
			f.refreshCapacity(ctx, c) // others need not wait for a cloud that is away
			f.watchCloud(ctx, c)
		})
	}
	err := f.takeUp(ctx)
	if err == nil {
		wg.Go(func() { f.planLoop(ctx) })
		f.startReconcilers(ctx, &wg)
		<-ctx.Done()
	}
	cancel()
	wg.Wait()
	f.queue.Wait()
	return err
}

// takeUp wakes every VM and job that the store says is under way, and the jobs
// of the VMs: one may have ended a moment before we did.
func (f *Fleet) takeUp(ctx context.Context) error {
	return f.DB.View(ctx, func(tx *store.Tx) error {
		vms, err := tx.AliveVMs()
		if err != nil {
			return err
		}
		for _, v := range vms {
			if r, ok := f.clouds[v.Cloud].(cloud.Reserver); ok && v.Reserved != "" {
				r.Remember(v.Reserved)
			}
			f.queue.Add(key{vm: v.ID})
			for _, id := range []gpuserver.JobID{v.MadeFor, v.Assigned} {
				if id != 0 {
					f.queue.Add(key{job: id})
				}
			}
		}
		jobs, err := tx.UnfinishedJobs("")
		if err != nil {
			return err
		}
		for _, j := range jobs {
			f.queue.Add(key{job: j.ID})
		}
		reruns, err := tx.WaitingReruns()
		for _, id := range reruns {
			f.queue.Add(key{job: id, rerun: true})
		}
		if len(vms)+len(jobs) > 0 {
			f.Log.Info("taken up", "vms", len(vms), "jobs", len(jobs))
		}
		return err
	})
}

// changed runs after each commit, in the store's writer: it only wakes.
func (f *Fleet) changed(cs []store.Change) {
	for _, c := range cs {
		switch {
		case c.Rerun != 0:
			f.queue.Add(key{job: c.Rerun, rerun: true})
		case c.GPU != 0:
			f.wakePlanner()
		case c.VM != 0:
			f.queue.Add(key{vm: c.VM})
			if c.VMState == gpuserver.VMGone {
				f.wakePlanner()
			}
		case c.JobState == gpuserver.JobQueued:
			wake(f.jobs)
		case c.JobState == gpuserver.JobRunning || c.JobState.Over():
			f.queue.Add(key{job: c.Job})
			f.out.wake(c.Job)
		}
	}
}

func (f *Fleet) wakePlanner() { wake(f.replan) }

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// step does the next step of a VM, a job or a re-run and says when to look again.
func (f *Fleet) step(ctx context.Context, k key) time.Duration {
	switch {
	case k.rerun:
		return f.stepRerun(ctx, k.job)
	case k.job != 0:
		return f.stepJob(ctx, k.job)
	}
	return f.stepVM(ctx, k.vm)
}

// call runs fn within the limit of concurrent calls named by what.
func (f *Fleet) call(ctx context.Context, what string, fn func() error) error {
	sem := f.calls[what]
	select {
	case sem <- struct{}{}:
		defer func() { <-sem }()
		return fn()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leavable gives a context for a call to a cloud that an interrupt must not break
// off. The service's end does where the cloud goes on without us: the next start
// finds by its name what became of it, and nobody has to wait for it now.
func (f *Fleet) leavable(ctx context.Context, drv cloud.Driver) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if !drv.Capabilities().Leavable {
		return ctx, cancel
	}
	end := context.AfterFunc(f.running, cancel)
	return ctx, func() { end(); cancel() }
}

func (f *Fleet) vmName(id gpuserver.VMID) string { return fmt.Sprintf("%s-%d", f.id, id) }

// runnerName is at most 20 + 1 + 5 + 1 + 19 + 1 + 10 = 57 characters; GitHub
// allows 64.
func runnerName(vm string, attempt int) string { return fmt.Sprintf("%s-%d", vm, attempt) }

func tokenHash(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}

func (f *Fleet) secret(id gpuserver.VMID) (secret, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.secrets[id]
	return s, ok
}

func (f *Fleet) keepSecret(id gpuserver.VMID, s secret) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets[id] = s
}

func (f *Fleet) forget(id gpuserver.VMID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.secrets, id)
	delete(f.beats, id)
}

func (f *Fleet) repaired(kind string) {
	if f.Repaired != nil {
		f.Repaired(kind)
	}
}

// backoff is the pause after the nth failed try of a step: 0.5 s doubling to
// 60 s.
func backoff(n int) time.Duration {
	return min(time.Minute, 500*time.Millisecond<<min(n-1, 7))
}
