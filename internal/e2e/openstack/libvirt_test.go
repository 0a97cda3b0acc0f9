//go:build openstack

package openstack

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/guest"
)

// console gives what a server's console has said so far.
func (c *client) console(id string) string {
	c.t.Helper()
	var got struct{ Output string }
	c.call("POST", "compute", "/servers/"+id+"/action", map[string]any{"os-getConsoleOutput": map[string]any{}}, &got)
	return got.Output
}

// says waits until a server's console has all of the words.
func (c *client) says(id string, words ...string) string {
	c.t.Helper()
	var text string
	eventually(c.t, "the console of "+id, func() string {
		text = c.console(id)
		for _, w := range words {
			if !strings.Contains(text, w) {
				return fmt.Sprintf("it has no %q; its end is:\n%s", w, text[max(0, len(text)-2000):])
			}
		}
		return ""
	})
	return text
}

const token = "agent-token-of-the-laboratory"

// service answers the agent of one server, and keeps the phases that it reported.
type service struct{ beats chan guest.Heartbeat }

// Authenticate implements guest.Service.
func (s *service) Authenticate(_ context.Context, got string) (gpuserver.VMID, error) {
	if got != token {
		return 0, gpuserver.Errorf(gpuserver.KindRefused, "no such token")
	}
	return 1, nil
}

// Heartbeat implements guest.Service.
func (s *service) Heartbeat(_ context.Context, _ gpuserver.VMID, h guest.Heartbeat) (guest.Orders, error) {
	select {
	case s.beats <- h:
	default: // nobody reads any more
	}
	return guest.Orders{}, nil
}

// JobStarted implements guest.Service.
func (s *service) JobStarted(context.Context, gpuserver.VMID, guest.JobStarted) (guest.Verdict, error) {
	return guest.Verdict{Allowed: true}, nil
}

// Output implements guest.Service.
func (s *service) Output(context.Context, gpuserver.VMID, string, int64, []byte) error { return nil }

// TestLibvirtServer boots a real server: its console shows the userland, and our
// agent, which has read the config drive.
func TestLibvirtServer(t *testing.T) {
	need(t, virt)
	member := login(t, "member")
	member.quota(login(t, "admin"), unlimited)
	s := &service{beats: make(chan guest.Heartbeat, 1000)}
	data, err := guest.UserData(guest.Payload{
		VM: "lab-server", Server: serve(t, outside, guest.Handler(s, slog.New(slog.NewTextHandler(t.Output(), nil)))), Token: token,
		Command: &gpuserver.Command{Args: []string{"/bin/sh", "-c", "echo the command ran; sleep 100000"}}, BeatEvery: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	id := member.create(newServer{Name: "lab-server", Flavor: "lab.small", Image: member.image("demo"), ConfigDrive: true, UserData: data})
	got := member.settled(id)
	if got.Status != "ACTIVE" || got.ConfigDrive != "True" {
		t.Fatalf("%v, config drive %q", got, got.ConfigDrive)
	}
	t.Logf("the console:\n%s", member.says(id, "systemd[1]", "gpuserver-guest", "msg=phase name=agent"))
	// Only the config drive told the agent where to report, and with which token.
	select {
	case h := <-s.beats:
		t.Logf("the agent reports: %+v", h)
	case <-time.After(limit):
		t.Fatalf("the agent does not report; the console:\n%s", member.console(id))
	}
}

// askAll is the job: who it is, and what the metadata service says of it.
const askAll = `uname -a; hostname; ip addr
curl -sS --fail --retry 5 --retry-connrefused --max-time 120 http://169.254.169.254/openstack/latest/meta_data.json
echo; echo the job ran`

// TestLibvirtJob takes a real job all the way, through a service that is configured
// as docs/openstack.md says: a delivery, a server of Nova's, the job in it, nothing
// left.
func TestLibvirtJob(t *testing.T) {
	need(t, virt)
	member := login(t, "member")
	member.quota(login(t, "admin"), unlimited)
	s := newSite(t, `runners:
  - {name: lab-runner, cloud: openstack, region: RegionOne, instance_type: lab.small, machine_image: debian-12, labels: [cirun-lab]}
`)
	s.configure(fmt.Sprintf(`clouds:
  - name: stack
    type: openstack
    serves: [{cloud: openstack, region: RegionOne}]
    openstack: {clouds_file: %s, cloud: member, networks: [lab], emulated: true}
flavors:
  - {name: lab.small, vcpus: 1, memory: 512MiB, disk: 2GiB}
images:
  - {name: debian-12, openstack: {image: demo}}
`, cloudsFile))
	s.serve()
	made := s.held("cirun-lab", askAll, 1)
	s.ready("stack", 1)
	vm := s.vms()[0]
	if got := member.named(vm.Name); got.ID != vm.CloudID {
		t.Errorf("Nova calls %s %s, the service %s", vm.Name, got.ID, vm.CloudID)
	}
	// What a person sees while it runs: afterwards Nova has no console any more.
	listed, console := s.ask("vm", "list"), s.ask("vm", "console", vm.Name)
	t.Logf("gpuserver vm list:\n%s\ngpuserver vm console, its end:\n%s", listed, console[max(0, len(console)-3000):])
	if !strings.Contains(listed, vm.Name) || !strings.Contains(listed, "stack/stack") {
		t.Error("the VM is not listed with its cloud")
	}
	for _, want := range []string{"systemd[1]", "msg=phase name=agent"} {
		if !strings.Contains(console, want) {
			t.Errorf("the console has no %q", want)
		}
	}
	s.release()
	job := s.succeeded(made)[0]
	text, err := s.hub.Log(job.ID)
	s.ok(err)
	t.Logf("the job's log:\n%s", text)
	if !strings.Contains(text, "Z the job ran") || !strings.Contains(text, vm.CloudID) {
		t.Errorf("the job's log lacks its last words, or its server's id %s", vm.CloudID)
	}
	s.nothingLeft(member)
	if status, _, errs := run(t, "vm", "console", vm.Name, "--server", s.socket()); status == 0 || !strings.Contains(errs, "Nova keeps no console") {
		t.Errorf("the console of a server that is gone: status %d, %s", status, errs)
	}
	shown := s.ask("job", "show", fmt.Sprint(vm.MadeFor))
	t.Logf("gpuserver job show:\n%s", shown)
	for _, want := range []string{vm.Name, "success", gpuserver.PhaseAgent, gpuserver.PhaseJobEnded, gpuserver.PhaseGone} {
		if !strings.Contains(shown, want) {
			t.Errorf("job show has no %q", want)
		}
	}
}
