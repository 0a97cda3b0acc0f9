package machine

import (
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// TestKilledOnTheWay kills the service at one place after the other on the way
// of one job: the VM is not made, is made and not noted, is made and noted, is
// gone and not noted.
func TestKilledOnTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var run forgetest.Run
	for i, at := range []string{"create.before", "create.effect", "create.commit", "delete.effect"} {
		w.begin("GPUSERVER_CRASH=" + at)
		if i == 0 {
			w.awaitReady()
			run = w.dispatch("killed", "uname -a")
		}
		if status := w.server.ended(t); status != -1 {
			t.Fatalf("the service ended with status %d, not by the kill at %s", status, at)
		}
	}
	w.serve()
	w.succeeded(run)
	w.jobIs(run, gpuserver.JobDone)
	w.nothingLeft()
	if n := w.made(); n != 1 {
		t.Errorf("%d VMs were made for one job", n)
	}
}

// TestHostReboots takes away what a reboot of the host takes away, while the
// service is down: domains, network and rules.
func TestHostReboots(t *testing.T) {
	w := newWorld(t)
	w.serve()
	busy := w.dispatch("busy", w.step("busy"))
	idle := w.dispatch("idle", "uname -a", func(j *forgetest.JobSpec) { j.Hold = true })
	w.came("busy")
	first, second := w.vm(busy, gpuserver.VMBusy), w.vm(idle, gpuserver.VMReady)
	w.kill()
	lease := 5 * time.Second // how long the forge believes in a silent runner
	w.ok(w.Configure(w.ctx, forgetest.Settings{RunnerLease: &lease}))
	w.clear()
	host(t, "nft flush ruleset")
	if left := host(t, "virsh -q list --all --name; ip -o link show type bridge"); left != "" {
		t.Fatalf("the host was not rebooted: %s", left)
	}

	w.serve()
	if v := w.vm(busy, gpuserver.VMGone); v.Name != first.Name || v.Reason == "" {
		t.Errorf("VM %s of the running job is closed as %q", v.Name, v.Reason)
	}
	if j := w.completed(busy); j.Conclusion != "failure" || j.Dispatched != 1 {
		t.Errorf("the job whose VM was lost ended as %q, given to %d runners", j.Conclusion, j.Dispatched)
	}
	w.jobIs(busy, gpuserver.JobDone)
	w.ok(w.Release(w.ctx, idle.Jobs[0].ID))
	w.succeeded(idle)
	if v := w.vm(idle, gpuserver.VMGone); v.Name == second.Name {
		t.Errorf("the job that no runner had ran on %s, which the reboot took", v.Name)
	}
	w.nothingLeft()
	if n := w.made(); n != 3 {
		t.Errorf("%d VMs were made; want one that was lost, one that was lost without a job, and one anew", n)
	}
}
