package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/pci"
)

// withCards gives the world a host with four single cards, and a service that has
// jobs run again whose card failed. Jobs end when the test says so.
func withCards(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, "jobtime=1h")
	w.mayWrite("write")
	h := gpuserver.Host{Name: "one", VCPUs: 48, MemoryMiB: 1 << 20, DiskGiB: 1000}
	for i, address := range []string{"0000:27:00.0", "0000:44:00.0", "0000:83:00.0", "0000:a3:00.0"} {
		h.Slots = append(h.Slots, gpuserver.Slot{Group: 10 + i, Cards: []gpuserver.Card{{Address: address, Model: "v100"}}})
	}
	w.ok(w.cloud.SetHosts(w.ctx, []gpuserver.Host{h}))
	w.ofFlavor = ", gpus: {model: v100}"
	w.extra += "gpu_models: [{name: v100, ids: [\"10de:1db4\"]}]\njobs: {rerun_on_gpu_failure: true}\n"
	return w
}

// mayWrite sets how much the App may do with workflow runs.
func (w *world) mayWrite(actions string) {
	w.t.Helper()
	w.configure(forgetest.Settings{Permissions: &map[string]string{
		"actions": actions, "administration": "write", "checks": "write", "contents": "read", "members": "read", "metadata": "read",
	}})
}

// cardOf gives the address of the card that the VM of a running job has.
func (w *world) cardOf(forgeID int64) (vm, address string) {
	w.t.Helper()
	id := w.jobIs(forgeID, gpuserver.JobRunning).ID
	w.eventually(fmt.Sprintf("job %d has a VM", id), func() string { // often the one that was made for its sibling
		vms, err := w.client().VMs(w.ctx, false, 1000)
		i := slices.IndexFunc(vms, func(v gpuserver.VM) bool { return v.Assigned == id })
		if i < 0 {
			return fmt.Sprintf("%+v (%v)", vms, err)
		}
		vm = vms[i].Name
		return ""
	})
	spec, err := w.cloud.Spec(w.ctx, vm)
	w.ok(err)
	if len(spec.Devices) != 1 {
		w.t.Fatalf("VM %s has devices %v", vm, spec.Devices)
	}
	return vm, spec.Devices[0]
}

// dies has the card of a running job die, and its VM with it; the forge misses the
// runner a while after that.
func (w *world) dies(forgeID int64) (address string) {
	w.t.Helper()
	vm, address := w.cardOf(forgeID)
	w.ok(w.cloud.SetCard(w.ctx, pci.Reading{Address: address, Present: true, Dead: true}))
	w.ok(w.cloud.Stop(w.ctx, vm, "crashed"))
	w.eventually("the VM is gone", func() string {
		vms, err := w.cloud.VMs(w.ctx)
		if err != nil || slices.ContainsFunc(vms, func(v cloud.VM) bool { return v.Name == vm }) {
			return fmt.Sprint(vms, err)
		}
		return ""
	})
	w.ok(w.forge.FinishJob(w.ctx, forgeID, "failure"))
	return address
}

// again waits for an attempt of a run, and gives its jobs.
func (w *world) again(run forgetest.Run, attempt int) (jobs []forgetest.Job) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("the run's attempt %d", attempt), func() string {
		all, err := w.forge.Jobs(w.ctx, forgetest.JobFilter{Run: run.ID})
		jobs = slices.DeleteFunc(all, func(j forgetest.Job) bool { return j.RunAttempt != attempt })
		if err != nil || len(jobs) == 0 {
			return fmt.Sprintf("%+v (%v)", all, err)
		}
		return ""
	})
	return jobs
}

// ranOnAnother ends the second attempt of a job well, and checks that it had
// another card and that there was no third.
func (w *world) ranOnAnother(run forgetest.Run, job forgetest.Job, bad string) {
	w.t.Helper()
	if _, good := w.cardOf(job.ID); good == bad {
		w.t.Errorf("it had %s again", good)
	}
	w.ok(w.forge.FinishJob(w.ctx, job.ID, "success"))
	w.jobIs(job.ID, gpuserver.JobDone)
	w.nothingLeft()
	all, err := w.forge.Jobs(w.ctx, forgetest.JobFilter{Run: run.ID})
	w.ok(err)
	if last := all[len(all)-1]; last.RunAttempt != 2 {
		w.t.Errorf("there are more attempts: %+v", all)
	}
}

// toldOnce waits until a job's history says that it was run again, and checks
// that it says so once.
func (w *world) toldOnce(forgeID int64) {
	w.t.Helper()
	w.eventually("its history says that it was run again", func() string {
		said := w.events(forgeID, "rerun")
		if len(said) < 2 {
			return fmt.Sprintf("%q", said)
		}
		if len(said) > 2 || said[1] != "it was run again, as attempt 2" {
			w.t.Errorf("its history says %q", said)
		}
		return ""
	})
}

// TestJobWhoseCardDiesRunsAgain has a card die during one of two jobs. The other
// one ends as it would; then the first one is run again, by the App and with the
// rights of who began it, on the other card, and its check run says so.
func TestJobWhoseCardDiesRunsAgain(t *testing.T) {
	t.Parallel()
	w := withCards(t)
	w.serve()
	run := w.dispatch("alice", 2)
	first, second := run.Jobs[0].ID, run.Jobs[1].ID
	w.jobIs(second, gpuserver.JobRunning)
	bad := w.dies(first)
	w.eventually("the card is named on the job", func() string {
		if j := w.job(first); j.Reason.Class != gpuserver.ReasonGPU || !strings.Contains(j.Reason.Text, bad) || !strings.Contains(j.Reason.Help, "run again by itself") {
			return fmt.Sprintf("%s: %+v", j.State, j.Reason)
		}
		return ""
	})
	w.ok(w.forge.FinishJob(w.ctx, second, "success"))
	jobs := w.again(run, 2)
	if len(jobs) != 2 {
		t.Fatalf("the second attempt: %+v", jobs)
	}
	w.ranOnAnother(run, jobs[0], bad)
	if j := w.job(jobs[0].ID); j.Actor != "alice" {
		t.Errorf("the second attempt is %s's", j.Actor)
	}
	if n := w.creates(); n != 3 {
		t.Errorf("%d VMs for 2 jobs, of which one ran twice", n)
	}
	w.toldOnce(first)
	w.eventually("its check run says so", func() string {
		checks, err := w.forge.Checks(w.ctx, "octo/hello")
		if err != nil || !slices.ContainsFunc(checks, func(c forgetest.Check) bool {
			return strings.HasPrefix(c.Title, "A GPU failed") && strings.Contains(c.Summary, bad) && strings.Contains(c.Summary, "it was run again, as attempt 2")
		}) {
			return fmt.Sprintf("%+v (%v)", checks, err)
		}
		return ""
	})
}

// TestKilledAroundARerun kills the service around the call: the job is run again
// once.
func TestKilledAroundARerun(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"rerun.before", "rerun.effect", "rerun.commit"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := withCards(t)
			w.serve("GPUSERVER_CRASH=" + at)
			run := w.dispatch("alice", 1)
			bad := w.dies(run.Jobs[0].ID)
			w.killedAt(at)
			w.serve()
			w.ranOnAnother(run, w.again(run, 2)[0], bad)
			w.toldOnce(run.Jobs[0].ID)
		})
	}
}

// TestBothCardsOfARunDie has the cards of both jobs of a run die: GitHub runs one
// job of a run again at a time, and the other one, which it carries over into that
// attempt under a new number, in the attempt after it. Each runs twice.
func TestBothCardsOfARunDie(t *testing.T) {
	t.Parallel()
	w := withCards(t)
	w.serve()
	run := w.dispatch("alice", 2)
	w.dies(run.Jobs[0].ID)
	w.dies(run.Jobs[1].ID)
	for attempt := 2; attempt <= 3; attempt++ {
		jobs := w.again(run, attempt)
		i := slices.IndexFunc(jobs, func(j forgetest.Job) bool { return j.Status != "completed" })
		if i < 0 {
			t.Fatalf("attempt %d: %+v", attempt, jobs)
		}
		w.jobIs(jobs[i].ID, gpuserver.JobRunning)
		w.ok(w.forge.FinishJob(w.ctx, jobs[i].ID, "success"))
		w.jobIs(jobs[i].ID, gpuserver.JobDone)
	}
	w.nothingLeft()
	for _, j := range run.Jobs {
		w.eventually("its history says that it was run again", func() string {
			if said := w.events(j.ID, "rerun"); len(said) != 2 || !strings.HasPrefix(said[1], "it was run again, as attempt ") {
				return fmt.Sprintf("%q", said)
			}
			return ""
		})
	}
	all, err := w.forge.Jobs(w.ctx, forgetest.JobFilter{Run: run.ID})
	w.ok(err)
	if len(all) != 6 || slices.ContainsFunc(all[4:], func(j forgetest.Job) bool { return j.Conclusion != "success" }) {
		t.Errorf("want 3 attempts of 2 jobs, the last of which succeeded: %+v", all)
	}
	if n := w.creates(); n != 4 {
		t.Errorf("%d VMs for 2 jobs that ran twice", n)
	}
}

// TestRerunIsNotAllowed leaves the App without the permission: the check run says
// which one it lacks, and the job stays as it is.
func TestRerunIsNotAllowed(t *testing.T) {
	t.Parallel()
	w := withCards(t)
	w.mayWrite("read")
	w.serve()
	run := w.dispatch("alice", 1)
	id := run.Jobs[0].ID
	w.dies(id)
	w.eventually("its check run names the permission", func() string {
		checks, err := w.forge.Checks(w.ctx, "octo/hello")
		if err != nil || !slices.ContainsFunc(checks, func(c forgetest.Check) bool {
			return strings.HasPrefix(c.Title, "A GPU failed") && strings.Contains(c.Summary, "not run again by itself") && strings.Contains(c.Summary, "grant it actions=write")
		}) {
			return fmt.Sprintf("%+v (%v)", checks, err)
		}
		return ""
	})
	if said := w.events(id, "rerun"); len(said) != 2 || !strings.Contains(said[1], "grant it actions=write") {
		t.Errorf("its history says %q", said)
	}
	w.nothingLeft()
	all, err := w.forge.Jobs(w.ctx, forgetest.JobFilter{Run: run.ID})
	w.ok(err)
	if len(all) != 1 {
		t.Errorf("it was run again: %+v", all)
	}
}
