package api

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/store"
)

// ReadJob gives a job with its VM, phases and history; KindNotFound if there is
// none.
func ReadJob(ctx context.Context, db *store.DB, id gpuserver.JobID) (d JobDetail, err error) {
	err = db.View(ctx, func(tx *store.Tx) error {
		d, err = readJob(tx, id)
		return err
	})
	return d, err
}

func readJob(tx *store.Tx, id gpuserver.JobID) (d JobDetail, err error) {
	if d.Job, err = tx.Job(id); err != nil {
		return d, named(err, "job", id)
	}
	d.Job = redacted(d.Job)
	if d.Events, err = tx.JobEvents(id); err != nil {
		return d, err
	}
	if d.Events == nil {
		d.Events = []gpuserver.Event{}
	}
	var ofVM []gpuserver.Event
	if d.Job.VM != 0 {
		v, err := tx.VM(d.Job.VM)
		switch {
		case err == nil:
			d.VM = &v
		case gpuserver.KindOf(err) != gpuserver.KindNotFound:
			return d, err
		}
		if ofVM, err = tx.VMEvents(d.Job.VM); err != nil {
			return d, err
		}
	}
	d.Phases = phases(d.Job, d.Events, ofVM)
	d.GPUs, err = tx.GPUsOfJob(id)
	return d, err
}

// phases gives the phases that a job's last attempt passed, in order. What the
// VM passed counts even if it was made for a sibling, as runners take any job;
// when the job itself started and ended does not.
func phases(j gpuserver.Job, ofJob, ofVM []gpuserver.Event) []PhaseAt {
	at := map[string]time.Time{}
	for _, e := range ofJob {
		if e.VM == 0 || e.VM == j.VM {
			at[e.Kind] = e.At
		}
	}
	for _, e := range ofVM {
		own := e.Kind == gpuserver.PhaseJobStarted || e.Kind == gpuserver.PhaseJobEnded || e.Kind == gpuserver.PhaseDecided
		if !own {
			at[e.Kind] = e.At
		}
	}
	ps := []PhaseAt{}
	for _, name := range gpuserver.Phases {
		t, ok := at[name]
		if !ok {
			continue
		}
		p := PhaseAt{Name: name, At: t}
		if n := len(ps); n > 0 {
			p.Seconds = t.Sub(ps[n-1].At).Seconds()
		}
		ps = append(ps, p)
	}
	return ps
}

// redacted hides the values of a command's environment, which may be secrets;
// whoever set them knows them.
func redacted(j gpuserver.Job) gpuserver.Job {
	if j.Command == nil || len(j.Command.Env) == 0 {
		return j
	}
	c := *j.Command
	c.Env = make(map[string]string, len(j.Command.Env))
	for k := range j.Command.Env {
		c.Env[k] = "(hidden)"
	}
	j.Command = &c
	return j
}

func named(err error, what string, id any) error {
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		return gpuserver.Errorf(gpuserver.KindNotFound, "There is no %s %v; it may be older than what is kept.", what, id)
	}
	return err
}

// ReadExplanation says why a job is where it is and what would change that;
// KindNotFound if there is none.
func ReadExplanation(ctx context.Context, db *store.DB, id gpuserver.JobID) (x Explanation, err error) {
	err = db.View(ctx, func(tx *store.Tx) error {
		x, err = readExplanation(tx, id)
		return err
	})
	return x, err
}

func readExplanation(tx *store.Tx, id gpuserver.JobID) (Explanation, error) {
	d, err := readJob(tx, id)
	if err != nil {
		return Explanation{}, err
	}
	j := d.Job
	x := Explanation{Job: j.ID, State: j.State, Class: j.Reason.Class, Help: j.Reason.Help, NextTry: j.NextTryAt, GPUs: d.GPUs, History: d.Events}
	if j.State == gpuserver.JobQueued {
		ahead, err := tx.QueuePosition(j)
		if err != nil {
			return x, err
		}
		counts, err := tx.JobCounts()
		if err != nil {
			return x, err
		}
		x.Position, x.Waiting = ahead+1, counts[gpuserver.JobQueued]
	}
	x.Sentence = sentence(j, d.VM, x.Position)
	return x, nil
}

// sentence says where a job is. What the stage that holds it wrote comes first;
// a reason that the job has left behind is not told.
func sentence(j gpuserver.Job, vm *gpuserver.VM, position int) string {
	name := "its VM"
	if vm != nil {
		name = "VM " + vm.Name
	}
	switch j.State {
	case gpuserver.JobRunning:
		return "It runs on " + name + "."
	case gpuserver.JobDone:
		s := "It ended: " + cmp.Or(j.Conclusion, "the forge did not say how") + "."
		// Any other class belongs to the wait that is over.
		if j.Reason.Text != "" && (j.Reason.Class == "" || j.Reason.Class == gpuserver.ReasonGPU) {
			s += " " + j.Reason.Text
		}
		return s
	}
	if j.Reason.Text != "" {
		return j.Reason.Text
	}
	switch j.State {
	case gpuserver.JobWaiting:
		return "The forge holds it back by a deployment rule; no VM is made until it is queued there."
	case gpuserver.JobReceived:
		return "It was received; whether and where it may run is being decided."
	case gpuserver.JobRefused:
		return "It was refused; the reason was not kept."
	case gpuserver.JobQueued:
		return fmt.Sprintf("It may run and waits for a VM; its place in the queue is %d.", position)
	case gpuserver.JobStarting:
		return "It gets " + name + ", which is being made."
	case gpuserver.JobFailed:
		return "No VM could be made for it; the reason was not kept."
	}
	return "It is " + string(j.State) + "."
}

// ReadStatus gives the server at a glance. Ready is left to the caller.
func ReadStatus(ctx context.Context, db *store.DB, around Surroundings, version string) (Status, error) {
	s := Status{Version: version, Clouds: around.Clouds(ctx), Forges: around.Forges(ctx), VMs: []VMCount{}, Hosts: []HostStatus{}, Images: []HeldImage{}, Suspended: []SuspendedFlavor{}}
	if s.Clouds == nil {
		s.Clouds = []CloudStatus{}
	}
	if s.Forges == nil {
		s.Forges = []ForgeStatus{}
	}
	s.Warnings = cardWarnings(s.Clouds, around.Hosts(ctx), around.Flavors(ctx))
	err := db.View(ctx, func(tx *store.Tx) error { return s.read(ctx, tx, around) })
	return s, err
}

func (s *Status) read(ctx context.Context, tx *store.Tx, around Surroundings) (err error) {
	s.Now = tx.Now
	hosts := around.Hosts(ctx)
	if s.Jobs, err = tx.JobCounts(); err != nil {
		return err
	}
	s.Queue.Length = s.Jobs[gpuserver.JobQueued]
	if s.Queue.Oldest, err = tx.OldestQueued(); err != nil {
		return err
	}
	if !s.Queue.Oldest.IsZero() {
		s.Queue.AgeSeconds = max(0, tx.Now.Sub(s.Queue.Oldest).Seconds())
	}
	counts, err := tx.VMCounts()
	if err != nil {
		return err
	}
	s.VMs = vmCounts(counts)
	usages, err := tx.Usages()
	if err != nil {
		return err
	}
	s.Hosts = hostStatuses(hosts, usages)
	gpus, err := readGPUs(ctx, tx, around)
	if err != nil {
		return err
	}
	s.GPUs, s.Slots = summary(gpus, tx.Now), slotCounts(hosts, usages, around.Flavors(ctx), gpus, tx.Now)
	images, err := tx.Images()
	for _, h := range images {
		s.Images = append(s.Images, HeldImage{Name: h.Name, Failures: h.Failures, Held: !h.HeldAt.IsZero(), HeldAt: h.HeldAt, Reason: h.Reason})
	}
	if err != nil {
		return err
	}
	suspensions, err := tx.Suspensions()
	for _, x := range suspensions {
		if x.Suspended() {
			s.Suspended = append(s.Suspended, SuspendedFlavor{Cloud: x.Cloud, Flavor: x.Flavor, Failures: x.Failures, Since: x.SuspendedAt, Until: x.Until, Reason: x.Reason})
		}
	}
	return err
}

func vmCounts(counts map[string]map[gpuserver.VMState]int) []VMCount {
	vs := []VMCount{}
	for cloud, states := range counts {
		for state, n := range states {
			vs = append(vs, VMCount{Cloud: cloud, State: state, Count: n})
		}
	}
	slices.SortFunc(vs, func(a, b VMCount) int {
		return cmp.Or(cmp.Compare(a.Cloud, b.Cloud), cmp.Compare(a.State, b.State))
	})
	return vs
}

// hostStatuses joins hosts with the leases on them. A host that no cloud names
// any more but that leases are still held on is listed too, without room.
func hostStatuses(hosts []gpuserver.Host, usages []store.Usage) []HostStatus {
	hs := []HostStatus{}
	for _, h := range hosts {
		hs = append(hs, HostStatus{Host: h})
	}
	for _, u := range usages {
		i := slices.IndexFunc(hs, func(h HostStatus) bool { return h.Cloud == u.Cloud && h.Name == u.Host })
		if i < 0 {
			hs = append(hs, HostStatus{Host: gpuserver.Host{Cloud: u.Cloud, Name: u.Host}})
			i = len(hs) - 1
		}
		hs[i].Used = Used{VMs: u.VMs, VCPUs: u.VCPUs, MemoryMiB: u.MemoryMiB, DiskGiB: u.DiskGiB}
	}
	slices.SortFunc(hs, func(a, b HostStatus) int {
		return cmp.Or(cmp.Compare(a.Cloud, b.Cloud), cmp.Compare(a.Name, b.Name))
	})
	return hs
}

func readRun(tx *store.Tx, id gpuserver.JobID) (RunStatus, error) {
	d, err := readJob(tx, id)
	if err != nil {
		return RunStatus{}, err
	}
	if d.Job.Command == nil {
		return RunStatus{}, gpuserver.Errorf(gpuserver.KindNotFound, "Job %d is not a command; see it with: gpuserver job show %d", id, id)
	}
	j := d.Job
	r := RunStatus{Job: j.ID, State: j.State, Done: j.State.Over(), Conclusion: j.Conclusion}
	position := 0
	if j.State == gpuserver.JobQueued {
		ahead, err := tx.QueuePosition(j)
		if err != nil {
			return r, err
		}
		position = ahead + 1
	}
	r.Sentence = sentence(j, d.VM, position)
	if d.VM != nil {
		r.VM = d.VM.Name
	}
	if j.State == gpuserver.JobDone && d.VM != nil {
		r.Exit = d.VM.Guest.RunnerExit
	}
	return r, nil
}
