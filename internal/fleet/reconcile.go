package fleet

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// Intervals are how often the reconcilers compare. Nothing waits for them: they
// repair what was lost.
type Intervals struct {
	Clouds  time.Duration // VMs of each cloud with ours
	Jobs    time.Duration // each unfinished job is read from its forge once in so long
	Runners time.Duration // registrations at forges with ours
}

// recently is how long ago a repository had a job of ours for its runners to be
// looked at.
const recently = 48 * time.Hour

// jobReadsPerSecond bounds what the reconciler takes of a forge's budget.
const jobReadsPerSecond = 2

func (f *Fleet) startReconcilers(ctx context.Context, wg *sync.WaitGroup) {
	for _, c := range f.Clouds {
		wg.Go(func() {
			f.compareCloud(ctx, c)
			every(ctx, f.Every.Clouds, func() {
				f.refreshCapacity(ctx, c)
				f.compareCloud(ctx, c)
			})
		})
	}
	for name, fg := range f.Forges {
		wg.Go(func() { f.rereadJobs(ctx, name, fg) })
		wg.Go(func() { every(ctx, f.Every.Runners, func() { f.compareRunners(ctx, name, fg) }) })
	}
}

// every calls fn each d until ctx is done.
func every(ctx context.Context, d time.Duration, fn func()) {
	if d <= 0 {
		return
	}
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			fn()
		}
	}
}

// watchCloud follows a cloud's hints about VMs that stopped by themselves.
func (f *Fleet) watchCloud(ctx context.Context, c cloud.Driver) {
	events := c.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			var v gpuserver.VM
			err := f.DB.View(ctx, func(tx *store.Tx) (err error) { v, err = tx.VMByName(e.VM); return err })
			if err == nil && v.Cloud == c.Name() {
				f.stopped(ctx, v, f.whatHappened(ctx, c, v, e))
			}
		}
	}
}

// whatHappened says what an event means for a VM.
func (f *Fleet) whatHappened(ctx context.Context, c cloud.Driver, v gpuserver.VM, e cloud.Event) failure {
	if e.State == cloud.StateError {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if m, err := c.Get(ctx, v.Name); err == nil && m.State == cloud.StateError {
			return broke(v, m)
		}
	}
	return told(e)
}

// broke says what it means that the cloud gave a VM up: before its guest was ever
// heard of it may be that the cloud had no room for it, and it was taken up by a
// start of ours that did not wait for the answer.
func broke(v gpuserver.VM, m cloud.VM) failure {
	if err := m.Failure(); v.State == gpuserver.VMBooting && v.HeartbeatAt.IsZero() && gpuserver.KindOf(err) == gpuserver.KindCapacity {
		return noRoom(v, err)
	}
	return lost("the VM failed: " + m.Fault)
}

// told says what it means that a cloud told of a VM without a job: one that stopped
// may have an image to blame, one that failed or was taken away has not.
func told(e cloud.Event) failure {
	switch e.State {
	case cloud.StateError:
		return lost("the VM failed: " + e.Reason)
	case cloud.StateRemains:
		return lost("the VM was lost: " + e.Reason)
	}
	return failure{why: "the VM stopped: " + e.Reason, counts: true, image: true}
}

// stopped follows a VM that is off or gone although we did not ask for it; x
// says what that means if it had no job yet.
func (f *Fleet) stopped(ctx context.Context, v gpuserver.VM, x failure) {
	switch v.State {
	case gpuserver.VMBooting, gpuserver.VMReady:
		if f.readGate(ctx, v) {
			return
		}
		if x.image {
			x.also = f.noReport
		}
		if x.class != gpuserver.ReasonCapacity {
			x.why += " before it had a job"
		}
		f.endedIdle(ctx, v, x)
	case gpuserver.VMBusy:
		err := f.move(ctx, &v, gpuserver.VMDeleting, x.why, func(v *gpuserver.VM) { v.Reason = x.why }, func(tx *store.Tx) error {
			if err := f.endLocal(tx, v, "failure", x.why); err != nil {
				return err
			}
			return f.deleteCalled(tx, v)
		})
		if err == nil && v.Assigned != 0 {
			f.queue.Add(key{job: v.Assigned}) // the forge's word is on the way, or will be asked for
		}
	}
}

// compareCloud deletes VMs of ours that no row keeps alive, and closes rows
// whose VM is gone or off.
func (f *Fleet) compareCloud(ctx context.Context, c cloud.Driver) {
	lctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	listed, err := c.List(lctx)
	if err != nil {
		if ctx.Err() == nil {
			f.Log.Warn("cloud cannot be listed", "cloud", c.Name(), "err", err)
		}
		return
	}
	there := map[string]cloud.VM{}
	for _, m := range listed {
		if m.Owner == f.id {
			there[m.Name] = m
		}
	}
	var alive []gpuserver.VM
	if err := f.DB.View(ctx, func(tx *store.Tx) (err error) { alive, err = tx.AliveVMs(); return err }); err != nil {
		return
	}
	rows := map[string]bool{}
	for _, v := range alive {
		if v.Cloud == c.Name() {
			rows[v.Name] = true
			f.compareVM(ctx, c, v, there)
		}
	}
	for name := range there {
		if rows[name] || ctx.Err() != nil {
			continue
		}
		if !f.gaveName(name) {
			f.Log.Warn("a VM with our owner tag and a name that we never gave is left alone; look what it is", "vm", name, "cloud", c.Name())
			continue
		}
		if there[name].Kept {
			f.Log.Warn("a kept VM that we know nothing of is left alone; delete it on its cloud once its GPU is well", "vm", name, "cloud", c.Name())
			continue
		}
		if _, err := c.Get(ctx, name); gpuserver.KindOf(err) == gpuserver.KindNotFound {
			continue // deleted since it was listed
		}
		f.Log.Warn("orphan VM deleted", "vm", name, "cloud", c.Name())
		if err := c.Delete(ctx, name); err != nil {
			f.Log.Error("orphan VM cannot be deleted", "vm", name, "cloud", c.Name(), "err", err)
			continue
		}
		f.repaired("orphan_vm")
	}
}

// gaveName reports whether a VM's name is one of this installation's.
func (f *Fleet) gaveName(name string) bool {
	number, ok := strings.CutPrefix(name, f.id+"-")
	_, err := strconv.ParseUint(number, 10, 63)
	return ok && err == nil
}

// compareVM closes a row whose VM is off or gone. Absence from a list is no
// proof, as the VM may be younger than the list: the cloud is asked again.
func (f *Fleet) compareVM(ctx context.Context, c cloud.Driver, v gpuserver.VM, there map[string]cloud.VM) {
	switch v.State {
	case gpuserver.VMBooting, gpuserver.VMReady, gpuserver.VMBusy:
	case gpuserver.VMKept:
		f.compareKept(ctx, c, v, there)
		return
	default:
		return
	}
	m, ok := there[v.Name]
	if ok && (m.State == cloud.StateRunning || m.State == cloud.StateBuilding) {
		return
	}
	m, err := c.Get(ctx, v.Name)
	switch {
	case gpuserver.KindOf(err) == gpuserver.KindNotFound:
		f.stopped(ctx, v, lost("the VM was lost: "+c.Name()+" no longer has it"))
	case err != nil:
		return
	case m.State == cloud.StateRunning || m.State == cloud.StateBuilding:
		return
	case m.State == cloud.StateError:
		f.stopped(ctx, v, broke(v, m))
	default:
		f.stopped(ctx, v, lost("the VM was lost: it is off"))
	}
	f.repaired("lost_vm")
}

// compareKept closes a row whose kept VM somebody deleted: it holds its card no
// more.
func (f *Fleet) compareKept(ctx context.Context, c cloud.Driver, v gpuserver.VM, there map[string]cloud.VM) {
	if _, ok := there[v.Name]; ok || v.Reserved != "" {
		return
	}
	if _, err := c.Get(ctx, v.Name); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		return
	}
	_ = f.move(ctx, &v, gpuserver.VMDeleting, "the kept VM was lost: "+c.Name()+" no longer has it", nil, func(tx *store.Tx) error { return f.deleteCalled(tx, v) })
	f.repaired("lost_vm")
}

// lost says what it means that a VM was found gone or off: as after a reboot of
// its host, it is nobody's fault, its image's least of all.
func lost(why string) failure { return failure{why: why, counts: true} }

// rereadJobs reads each unfinished job of a forge again and again, slowly, so
// that a lost event costs minutes and not a day.
func (f *Fleet) rereadJobs(ctx context.Context, name string, fg Forge) {
	if f.Reread == nil || f.Every.Jobs <= 0 {
		return
	}
	read := map[gpuserver.JobID]time.Time{}
	every(ctx, max(f.Every.Jobs/10, 100*time.Millisecond), func() {
		var jobs []gpuserver.Job
		_ = f.DB.View(ctx, func(tx *store.Tx) (err error) {
			jobs, err = tx.UnfinishedBefore(name, tx.Now.Add(-f.Every.Jobs)) // thousands may have come just now
			return err
		})
		seen := map[gpuserver.JobID]time.Time{}
		for _, j := range jobs {
			seen[j.ID] = read[j.ID]
			if time.Since(read[j.ID]) < f.Every.Jobs || ctx.Err() != nil {
				continue
			}
			f.rereadJob(ctx, name, fg, j.ID)
			seen[j.ID] = time.Now()
			select {
			case <-ctx.Done():
			case <-time.After(time.Second / jobReadsPerSecond):
			}
		}
		read = seen
	})
}

// rereadByID reads a job from the forge that it is of.
func (f *Fleet) rereadByID(ctx context.Context, id gpuserver.JobID) {
	var j gpuserver.Job
	if err := f.DB.View(ctx, func(tx *store.Tx) (err error) { j, err = tx.Job(id); return err }); err == nil {
		f.rereadJob(ctx, j.Forge, f.Forges[j.Forge], id)
	}
}

// rereadJob reads one job from its forge and applies the answer.
func (f *Fleet) rereadJob(ctx context.Context, name string, fg Forge, id gpuserver.JobID) {
	if f.Reread == nil || fg.Forge == nil || id == 0 {
		return
	}
	var j gpuserver.Job
	if err := f.DB.View(ctx, func(tx *store.Tx) (err error) { j, err = tx.Job(id); return err }); err != nil {
		return
	}
	now, err := fg.Job(ctx, repoOf(j), j.ForgeID)
	unknown := gpuserver.KindOf(err) == gpuserver.KindNotFound
	if !f.confirmed(id, unknown) {
		f.Log.Warn("the forge does not know a job; it is asked again before that counts", "job", id, "forge", name)
		return
	}
	if unknown {
		// The repository or the run was deleted, or the App removed.
		now, err = forge.Job{ID: j.ForgeID, State: gpuserver.ForgeCompleted, Conclusion: "not_found", Repo: repoOf(j), RunID: j.RunID, Labels: j.Labels}, nil
	}
	if err != nil {
		if ctx.Err() == nil {
			f.Log.Warn("job cannot be read", "job", id, "forge", name, "err", err)
		}
		return
	}
	if now.State.Rank() > j.ForgeState.Rank() {
		f.Log.Warn("missed event found", "job", id, "was", j.ForgeState, "is", now.State)
		f.repaired("missed_event")
	}
	if err := f.Reread(ctx, name, now); err != nil {
		f.Log.Error("job's state cannot be applied", "job", id, "err", err)
	}
}

// absentFor is how long a forge does not know a job before we believe it: an
// answer of that kind can pass, and taking it for the job's end would end its VM.
const absentFor = time.Minute

// confirmed notes whether the forge knew a job, and reports whether the answer
// counts: a second denial, a while after the first, or none.
func (f *Fleet) confirmed(id gpuserver.JobID, unknown bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	first, denied := f.absent[id]
	if !unknown || denied && time.Since(first) >= absentFor {
		delete(f.absent, id)
		return true
	}
	if !denied {
		f.absent[id] = time.Now()
	}
	return false
}

// compareRunners deletes registrations of ours that belong to no VM alive.
func (f *Fleet) compareRunners(ctx context.Context, name string, fg Forge) {
	var repos []store.SeenRepo
	err := f.DB.View(ctx, func(tx *store.Tx) (err error) { repos, err = tx.SeenRepos(name, tx.Now.Add(-recently)); return err })
	if err != nil {
		return
	}
	done := map[gpuserver.Owner]bool{}
	for _, r := range repos {
		scope := f.scope(fg, gpuserver.Job{Repo: r.Name, RepoID: r.RepoID, InstallationID: r.InstallationID})
		if done[scope.Owner()] || ctx.Err() != nil {
			continue
		}
		done[scope.Owner()] = true
		f.compareScope(ctx, name, fg, scope)
	}
}

func (f *Fleet) compareScope(ctx context.Context, name string, fg Forge, scope forge.Scope) {
	runners, err := fg.Runners(ctx, scope, f.id+"-")
	if err != nil || len(runners) == 0 {
		return
	}
	keep := map[string]bool{}
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		alive, err := tx.AliveVMs()
		for _, v := range alive {
			keep[v.Runner.Name] = v.State != gpuserver.VMKept
		}
		return err
	})
	if err != nil {
		return
	}
	for _, r := range runners {
		if keep[r.Name] || r.Busy {
			continue
		}
		if err := fg.DeleteRunner(ctx, scope, r.ID); err != nil {
			f.Log.Warn("orphan runner cannot be deleted", "runner", r.Name, "forge", name, "err", err)
			continue
		}
		f.Log.Warn("orphan runner deleted", "runner", r.Name, "forge", name)
		f.repaired("orphan_runner")
	}
}
