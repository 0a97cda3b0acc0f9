package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// TestRegistrationOfUnknownOutcome answers a registration with an error after it
// happened: it is found by its name, deleted and made again under the next.
func TestRegistrationOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	for _, kind := range []forgetest.FaultKind{forgetest.Fault502, forgetest.Fault500, forgetest.FaultCut} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.ok(w.forge.SetFaults(w.ctx, []forgetest.Fault{{Kind: kind, Path: "*generate-jitconfig", After: true, Count: 1}}))
			w.serve()
			run := w.dispatch("alice", 1)
			jobs := w.succeeded(run)
			w.ranOnce(jobs)
			if !strings.HasSuffix(jobs[0].RunnerName, "-2") {
				t.Errorf("it ran on %s, want the second attempt", jobs[0].RunnerName)
			}
			w.nothingLeft()
			if n := w.creates(); n != 1 {
				t.Errorf("%d VMs for 1 job", n)
			}
		})
	}
}

// TestRegistrationRefusedForALimit is repeated when the forge says so.
func TestRegistrationRefusedForALimit(t *testing.T) {
	t.Parallel()
	for _, kind := range []forgetest.FaultKind{forgetest.Fault429, forgetest.FaultSecondary} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.ok(w.forge.SetFaults(w.ctx, []forgetest.Fault{{Kind: kind, Path: "*generate-jitconfig", Count: 1, RetryAfter: time.Second}}))
			w.serve()
			run := w.dispatch("alice", 2)
			w.ranOnce(w.succeeded(run))
			w.nothingLeft()
			if n := w.creates(); n != 2 {
				t.Errorf("%d VMs for 2 jobs", n)
			}
		})
	}
}

// TestForgeThatFailsIsTold shows an outage of the forge in the status, and its end.
func TestForgeThatFailsIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	up := func(want bool) {
		t.Helper()
		c := w.client()
		defer c.Close()
		w.eventually(fmt.Sprintf("status says that the forge is up: %v", want), func() string {
			s, err := c.Status(w.ctx)
			if err != nil || len(s.Forges) != 1 || s.Forges[0].Up != want || !want && s.Forges[0].Reason == "" {
				return fmt.Sprintf("%+v, %v", s.Forges, err)
			}
			return ""
		})
	}
	up(true)
	w.ok(w.forge.SetFaults(w.ctx, []forgetest.Fault{{Kind: forgetest.Fault502, Path: "*"}}))
	run := w.dispatch("alice", 1)
	up(false)
	w.ok(w.forge.SetFaults(w.ctx, nil))
	w.succeeded(run)
	up(true)
}

// TestCreateThatHappenedIsAdopted answers a create with an error after the VM
// came to be: it is taken for ours, not made twice.
func TestCreateThatHappenedIsAdopted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.ok(w.cloud.SetFaults(w.ctx, []fake.Fault{{At: "create.after", Times: 1, Kind: gpuserver.KindUnavailable}}))
	w.serve()
	run := w.dispatch("alice", 1, held)
	w.online(1)
	w.vmsIn(gpuserver.VMReady, 1)
	w.release(run)
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
	if n := w.creates(); n != 1 {
		t.Errorf("%d create calls for 1 job", n)
	}
}

// TestFullCloudFallsBack refuses the first entry for want of room: the next one
// is tried at once.
func TestFullCloudFallsBack(t *testing.T) {
	t.Parallel()
	for _, kind := range []gpuserver.Kind{gpuserver.KindCapacity, gpuserver.KindInvalid} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			file := strings.Replace(globalFile, "instance_type: gpu_large", "instance_type: [gpu_large, gpu_small]", 1)
			file = strings.NewReplacer("region: RegionOne", "region: [RegionOne, RegionOne]",
				"machine_image: ubuntu-2404-gpu", "machine_image: [ubuntu-2404-gpu, ubuntu-2404-gpu]").Replace(file)
			w.must(w.forge.SetFile(w.ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".cirun.global.yml", Content: []byte(file)}))
			w.ofFlavor = "}\n  - {name: gpu_small, vcpus: 2, memory: 4GiB, disk: 20GiB"
			w.extra += "jobs: {retry_after: 0s}\n"
			w.ok(w.cloud.SetFaults(w.ctx, []fake.Fault{{At: "create.before", Times: 1, Kind: kind}}))
			w.serve()
			run := w.dispatch("alice", 1)
			w.ranOnce(w.succeeded(run))
			w.nothingLeft()
			vms, err := w.client().VMs(w.ctx, true, 10)
			w.ok(err)
			if len(vms) != 2 || vms[0].Flavor != "gpu_small" || vms[1].Flavor != "gpu_large" {
				t.Errorf("the VMs were %+v, want gpu_large, then gpu_small", vms)
			}
		})
	}
}

// TestDeleteFailsForAWhile keeps the lease until the VM is verified gone.
func TestDeleteFailsForAWhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.ok(w.cloud.SetFaults(w.ctx, []fake.Fault{
		{At: "delete.before", Times: 2, Kind: gpuserver.KindUnavailable}, {At: "delete.after", Times: 1, Kind: gpuserver.KindUnavailable},
	}))
	w.ok(w.cloud.SetHosts(w.ctx, []gpuserver.Host{{Name: "one", VCPUs: 4, MemoryMiB: 1 << 20, DiskGiB: 1000}}))
	w.serve()
	run := w.dispatch("alice", 2)
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
	calls, err := w.cloud.Calls(w.ctx, 0)
	w.ok(err)
	var order []string
	for _, c := range calls {
		if c.Call == "create" || c.Call == "delete" {
			order = append(order, c.Call)
		}
	}
	if got := strings.Join(order, " "); got != "create delete delete delete delete create delete" {
		t.Errorf("the cloud was asked for %s: the second VM was made before the first was verified gone", got)
	}
}

// TestVMStopsByItself makes the job anew if it had not begun, and tells the
// forge's side nothing else.
func TestVMStopsByItself(t *testing.T) {
	t.Parallel()
	t.Run("before the job", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "")
		w.extra += "jobs: {retry_after: 0s}\n"
		w.serve()
		run := w.dispatch("alice", 1, held)
		w.online(1)
		first := w.madeFor(run.Jobs[0].ID).Name
		w.ok(w.cloud.Stop(w.ctx, first, "crashed"))
		w.eventually("another VM", func() string {
			vms, err := w.cloud.VMs(w.ctx)
			if err != nil || len(vms) != 1 || vms[0].Name == first {
				return fmt.Sprint(vms)
			}
			return ""
		})
		w.release(run)
		w.ranOnce(w.succeeded(run))
		w.nothingLeft()
		if j := w.job(run.Jobs[0].ID); j.Tries != 1 {
			t.Errorf("%d failed VMs were counted, want 1", j.Tries)
		}
	})
	t.Run("while the job runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "jobtime=1h")
		w.configure(forgetest.Settings{RunnerLease: ptr(2 * time.Second)})
		w.serve()
		run := w.dispatch("alice", 1)
		w.jobIs(run.Jobs[0].ID, gpuserver.JobRunning)
		w.ok(w.cloud.Stop(w.ctx, w.madeFor(run.Jobs[0].ID).Name, "crashed"))
		w.eventually("the VM is gone", func() string {
			if vms, err := w.cloud.VMs(w.ctx); err != nil || len(vms) > 0 {
				return fmt.Sprint(vms, err)
			}
			return ""
		})
		if j := w.wait(run, "completed")[0]; j.Conclusion != "failure" || j.Dispatched != 1 {
			t.Errorf("the job ended with %s after %d runners", j.Conclusion, j.Dispatched)
		}
		w.jobIs(run.Jobs[0].ID, gpuserver.JobDone)
		if n := w.creates(); n != 1 {
			t.Errorf("%d VMs were made for a job that had begun", n)
		}
	})
}

// TestImageIsHeld lets the runner of every VM of an image end without a job, as
// GitHub's refusal of an old runner does.
func TestImageIsHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "norunner")
	w.extra += "jobs: {retries: 20, retry_after: 0s}\n"
	w.serve()
	run := w.dispatch("alice", 1)
	id := run.Jobs[0].ID
	isHeld := func() (reason string) {
		w.eventually("the image is held", func() string {
			j := w.job(id)
			s, err := w.client().Status(w.ctx)
			if err != nil || j.State != gpuserver.JobQueued || j.Reason.Class != gpuserver.ReasonImageHeld || len(s.Images) != 1 || !s.Images[0].Held {
				return fmt.Sprintf("%s: %+v, images %+v (%v)", j.State, j.Reason, s.Images, err)
			}
			reason = s.Images[0].Reason
			return ""
		})
		return reason
	}
	if reason := isHeld(); !strings.Contains(reason, "ubuntu") || !strings.Contains(reason, "status 1") {
		t.Errorf("the reason does not name the image and the runner's end: %q", reason)
	}
	w.nothingLeft()
	if n := w.creates(); n != 3 {
		t.Errorf("%d VMs were made before it was held, want 3", n)
	}
	if !strings.Contains(w.server.text(), "image held") {
		t.Error("the log has no alarm")
	}
	w.ok(w.client().ReleaseImage(w.ctx, "ubuntu"))
	w.eventually("it is used again", func() string {
		if n := w.creates(); n < 4 {
			return fmt.Sprintf("%d VMs", n)
		}
		return ""
	})
	isHeld()
	w.ok(w.forge.CancelRun(w.ctx, run.ID))
	w.jobIs(id, gpuserver.JobDone)
	w.nothingLeft()
}

// TestHostReboots takes all VMs away without a word: they are closed as lost,
// their leases freed, and jobs that had not begun are made anew.
func TestHostReboots(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "jobtime=1h")
	w.configure(forgetest.Settings{RunnerLease: ptr(2 * time.Second)})
	w.extra = "reconcile: {clouds: 1s, runners: 1s}\njobs: {retry_after: 0s}\n"
	w.serve()
	began := w.dispatch("alice", 1)
	w.jobIs(began.Jobs[0].ID, gpuserver.JobRunning)
	waiting := w.dispatch("alice", 4, held)
	w.vmsIn(gpuserver.VMReady, 4)
	before := w.vmNames()
	for name := range before {
		w.ok(w.cloud.Vanish(w.ctx, name))
	}
	w.eventually("4 new VMs", func() string {
		now := w.vmNames()
		for name := range now {
			if before[name] {
				return name + " is an old one"
			}
		}
		if len(now) != 4 {
			return fmt.Sprint(now)
		}
		return ""
	})
	if j := w.wait(began, "completed")[0]; j.Conclusion != "failure" {
		t.Errorf("the job that had begun ended with %s", j.Conclusion)
	}
	w.ok(w.forge.CancelRun(w.ctx, waiting.ID))
	w.nothingLeft()
	s, err := w.client().Status(w.ctx)
	w.ok(err)
	if len(s.Images) != 0 {
		t.Errorf("the reboot counted against an image: %+v", s.Images)
	}
	if s.Hosts[0].Used.VMs != 0 {
		t.Errorf("leases are left: %+v", s.Hosts)
	}
}

func (w *world) vmNames() map[string]bool {
	w.t.Helper()
	vms, err := w.cloud.VMs(w.ctx)
	w.ok(err)
	names := map[string]bool{}
	for _, v := range vms {
		if v.State == cloud.StateRunning {
			names[v.Name] = true
		}
	}
	return names
}

// TestLeftoversOfOthers puts a VM that is not ours, and an orphan of ours, on
// the cloud: only the orphan goes.
func TestLeftoversOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.extra = "reconcile: {clouds: 1s}\n"
	w.serve()
	run := w.dispatch("alice", 1)
	name := w.succeeded(run)[0].RunnerName
	w.nothingLeft()
	owner := name[:strings.LastIndex(name[:strings.LastIndex(name, "-")], "-")]
	w.ok(w.cloud.AddForeign(w.ctx, "foreign"))
	w.ok(w.cloud.LeavePart(w.ctx, owner+"-999", owner))
	w.eventually("the orphan goes", func() string {
		vms, err := w.cloud.VMs(w.ctx)
		if err != nil || len(vms) != 1 || vms[0].Name != "foreign" {
			return fmt.Sprint(vms, err)
		}
		return ""
	})
}
