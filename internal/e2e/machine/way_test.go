package machine

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuserver"
)

// TestJobOutlivesServiceAndLibvirtd is one job's way in the words of
// conda-forge's files, with everything around its VM going away and coming
// back: libvirtd at the start, the service, and libvirtd in the middle.
func TestJobOutlivesServiceAndLibvirtd(t *testing.T) {
	w := newWorld(t)
	w.ok(lab.Down())
	t.Cleanup(func() {
		if err := lab.Up(); err != nil {
			t.Error(err)
		}
	})
	w.begin()
	w.saysWhyNotReady()
	run := w.dispatch("lasting", w.step("lasting"))
	w.jobIs(run, gpuserver.JobQueued)

	w.ok(lab.Up())
	w.awaitReady() // by itself
	w.came("lasting")
	vm := w.vm(run, gpuserver.VMBusy)
	w.mappedByConfiguration(vm)

	begin := time.Now()
	w.server.signal(syscall.SIGTERM)
	if status := w.server.ended(t); status != 0 {
		t.Errorf("the service ended with status %d", status)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("the service took %v to end; 10 s are promised", d)
	}
	w.running(vm)
	w.serve()
	if again := w.vm(run, gpuserver.VMBusy); again.Name != vm.Name || again.CreatedAt != vm.CreatedAt {
		t.Errorf("after the restart the job has the VM %s, before it had %s", again.Name, vm.Name)
	}

	host(t, "kill -9 $(cat "+lab.Libvirtd()+")")
	w.cloudIs(false)
	w.open("lasting") // the job ends while libvirtd is away
	log := w.succeeded(run)
	w.jobIs(run, gpuserver.JobDone)
	w.ok(lab.Up())
	w.cloudIs(true)
	w.nothingLeft()
	if !strings.Contains(log, "Linux "+vm.Name+" ") || !strings.Contains(log, "went on") {
		t.Errorf("the log is not that of VM %s:\n%s", vm.Name, log)
	}
	if n := w.made(); n != 1 {
		t.Errorf("%d VMs were made for one job", n)
	}
}

// saysWhyNotReady checks what a service without libvirtd says.
func (w *world) saysWhyNotReady() {
	w.t.Helper()
	eventually(w.t, "/readyz says what is missing", func() string {
		status, body := w.get("/readyz")
		if status != 503 || !strings.Contains(body, "local") || !strings.Contains(body, "libvirtd") {
			return fmt.Sprint(status, " ", body)
		}
		return ""
	})
	if status, body := w.get("/healthz"); status != 200 {
		w.t.Errorf("/healthz says %d %s: the process itself is well", status, body)
	}
	p := program(w.t, nil, "status", "--server", w.socket())
	if status := p.ended(w.t); status != 1 {
		w.t.Errorf("gpuserver status ended with %d without a cloud", status)
	}
	for _, want := range []string{"local", "libvirtd", "cannot be reached"} {
		if !strings.Contains(p.stdout.String(), want) {
			w.t.Errorf("gpuserver status does not say %q:\n%s", want, p.stdout.String())
		}
	}
}

// mappedByConfiguration checks that cloud, region, instance type and image of
// conda-forge's entry became what the configuration has for them.
func (w *world) mappedByConfiguration(vm gpuserver.VM) {
	w.t.Helper()
	if vm.Cloud != "local" || vm.Flavor != "ci_small" || vm.Image != "demo" || vm.Resource != "cirun-openstack-gpu-large" {
		w.t.Errorf("the VM is of %s, %s, %s for %q", vm.Cloud, vm.Flavor, vm.Image, vm.Resource)
	}
	xml := host(w.t, "virsh -q dumpxml "+vm.Name)
	for _, want := range []string{image + "/root.qcow2", image + "/vmlinuz", "<vcpu placement='static'>1</vcpu>", "<memory unit='KiB'>524288</memory>"} {
		if !strings.Contains(xml, want) {
			w.t.Errorf("the domain has no %s:\n%s", want, xml)
		}
	}
	runners, err := w.Runners(w.ctx)
	if err != nil || len(runners) != 1 || strings.Join(runners[0].Labels, " ") != "cirun-openstack-gpu-large--lasting" {
		w.t.Errorf("the runners are %+v (%v); want one with exactly the requested label", runners, err)
	}
}

func (w *world) running(vm gpuserver.VM) {
	w.t.Helper()
	if state := host(w.t, "virsh -q domstate "+vm.Name); state != "running" {
		w.t.Errorf("the VM is %s", state)
	}
}

// cloudIs waits until the service knows whether its cloud answers.
func (w *world) cloudIs(up bool) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("the cloud's being up is %v", up), func() string {
		s, err := w.client.Status(w.ctx)
		if err != nil || len(s.Clouds) != 1 || s.Clouds[0].Up != up || !up && s.Clouds[0].Reason == "" {
			return fmt.Sprintf("%+v (%v)", s.Clouds, err)
		}
		return ""
	})
}
