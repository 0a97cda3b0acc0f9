//go:build openstack

package openstack

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/forgetest/runnerclient"
	"gpuserver/internal/forge/github"
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

// serve answers on an address of this machine, and gives the URL.
func serve(t *testing.T, address string, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }() // until Close
	t.Cleanup(func() { _ = s.Close() })
	return "http://" + l.Addr().String()
}

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

// TestLibvirtJob runs a real job of the stand-in for GitHub in a real server.
func TestLibvirtJob(t *testing.T) {
	need(t, virt)
	member := login(t, "member")
	member.quota(login(t, "admin"), unlimited)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	hub := forgetest.New(forgetest.Config{RunnerLease: 10 * time.Minute})
	t.Cleanup(func() { _ = hub.Close() })
	hubURL := serve(t, outside, hub) // for the runner
	hub.Configure(forgetest.Settings{RunnerURL: &hubURL})
	_, err := hub.AddOrg(forgetest.Org{Login: "octo-org"})
	must(err)
	repo, err := hub.AddRepo(forgetest.Repository{Name: "octo-org/hello"})
	must(err)
	run, err := hub.Dispatch(forgetest.RunSpec{Repo: repo.Name, Jobs: []forgetest.JobSpec{{
		Name: "build", Labels: []string{"gpu"}, Steps: []runnerclient.Step{{Name: "who", Run: askAll}},
	}}})
	must(err)
	app := hub.App()
	f, err := github.New(t.Context(), github.Config{
		Name: "hub", BaseURL: serve(t, "127.0.0.1", hub) + "/api/v3", AppID: fmt.Sprint(app.ID), PrivateKey: []byte(app.PrivateKeyPEM),
	})
	must(err)
	t.Cleanup(func() { _ = f.Close() })
	reg, err := f.RegisterRunner(t.Context(), forge.RunnerSpec{
		Scope: forge.Scope{Repo: forge.Repo{Name: repo.Name, InstallationID: repo.InstallationID}}, Name: "lab-job", Labels: []string{"gpu"},
	})
	must(err)
	s := &service{beats: make(chan guest.Heartbeat, 1000)}
	data, err := guest.UserData(guest.Payload{
		VM: "lab-job", Server: serve(t, outside, guest.Handler(s, slog.New(slog.NewTextHandler(t.Output(), nil)))), Token: token, JITConfig: reg.JITConfig,
		Repo: repo.Name, RunID: run.ID, RunAttempt: run.Attempt, BeatEvery: time.Second, ReserveMiB: 160,
	})
	must(err)
	id := member.create(newServer{Name: "lab-job", Flavor: "lab.small", Image: member.image("demo"), ConfigDrive: true, UserData: data})
	if got := member.settled(id); got.Status != "ACTIVE" {
		t.Fatal(got)
	}
	job := hub.Jobs(forgetest.JobFilter{Run: run.ID})[0]
	eventually(t, "the job ends", func() string {
		if job = hub.Jobs(forgetest.JobFilter{Run: run.ID})[0]; job.Status != "completed" {
			return fmt.Sprintf("it is %s; the console:\n%s", job.Status, member.console(id))
		}
		return ""
	})
	text, err := hub.Log(job.ID)
	must(err)
	t.Logf("the job's log:\n%s", text)
	if job.Conclusion != "success" || !strings.Contains(text, "Z the job ran") || !strings.Contains(text, id) {
		t.Errorf("the job's conclusion is %q, want success, its last words and the server's id", job.Conclusion)
	}
	// The agent powers the server off after its job, and Nova notices.
	eventually(t, "the server is off", func() string {
		var got struct{ Server server }
		if member.call("GET", "compute", "/servers/"+id, nil, &got); got.Server.Status != "SHUTOFF" {
			return got.Server.String()
		}
		return ""
	})
}
