//go:build openstack

package openstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/forgetest/runnerclient"
)

// program is the program itself, built from the same source.
var program = os.Getenv("GPUSERVER_OPENSTACK_PROGRAM")

const webhookSecret = "a secret of the laboratory"

// Where the service of a test listens. One runs at a time.
const (
	webhooksAt = "127.18.0.1:8440"
	agentAt    = outside + ":8441"
	apiAt      = "127.18.0.1:8442"
)

// site is an installation as its users have one: the program as a process with a
// configuration file, and GitHub's stand-in, whose repository octo/hello may use the
// runners.
type site struct {
	t   *testing.T
	dir string
	hub *forgetest.Server
	api *api.Client

	forges string // the configuration's section
	file   string
	server *process
}

// newSite starts the stand-in for GitHub with the organisation's runner entries.
// The service is started by serve.
func newSite(t *testing.T, entries string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	s.file = filepath.Join(s.dir, "gpuserver.yaml")
	s.hub = forgetest.New(forgetest.Config{WebhookSecret: webhookSecret, WebhookURL: "http://" + webhooksAt + "/webhooks/github", RunnerLease: 10 * time.Minute})
	t.Cleanup(func() { _ = s.hub.Close() })
	guests, url := serve(t, outside, s.hub.RunnerHandler()), serve(t, "127.0.0.1", s.hub)
	s.hub.Configure(forgetest.Settings{RunnerURL: &guests})
	s.must(s.hub.AddOrg(forgetest.Org{Login: "octo"}))
	s.must(s.hub.AddUser(forgetest.User{Login: "alice"}))
	s.must(s.hub.AddRepo(forgetest.Repository{Name: "octo/hello"}))
	s.must(s.hub.AddRepo(forgetest.Repository{Name: "octo/.cirun"}))
	s.must(s.hub.SetFile(forgetest.FileChange{Repo: "octo/.cirun", Path: ".cirun.global.yml", Content: []byte(entries)}))
	s.ok(s.hub.SetRole(forgetest.Role{Repo: "octo/hello", Login: "alice", Role: "write"}))
	app := s.hub.App()
	s.write("app.pem", app.PrivateKeyPEM)
	s.write("secret", webhookSecret)
	s.forges = fmt.Sprintf(`forges:
  - name: github
    type: github
    base_url: %s
    app_id: %d
    private_key: {file: app.pem}
    webhook_secrets: [{file: secret}]
`, url, app.ID)
	return s
}

// entry is a runner entry for newSite; a label of several means each of them, in order.
func entry(name, cloud, flavor, label string) string {
	return fmt.Sprintf("  - {name: %s, cloud: %s, instance_type: %s, machine_image: debian-12, labels: [%s]}\n", name, cloud, flavor, label)
}

func (s *site) must(_ any, err error) { s.t.Helper(); s.ok(err) }

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) write(name, text string) {
	s.t.Helper()
	s.ok(os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
}

func (s *site) socket() string { return filepath.Join(s.dir, "api.sock") }

// configure writes the configuration: what is the same for all, and the rest.
func (s *site) configure(rest string) {
	s.t.Helper()
	s.write("gpuserver.yaml", fmt.Sprintf(`server:
  name: lab
  data_dir: data
  listen: {webhooks: %q, agent: %q, api: %q, socket: api.sock}
  log: {level: debug, format: text}
`, webhooksAt, agentAt, apiAt)+s.forges+rest)
}

// process is a program under way; what it prints is kept.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	log  bytes.Buffer
}

// Write keeps what the process prints.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// serve starts the service, and waits until it is ready. It ends before the stand-in.
func (s *site) serve() {
	s.t.Helper()
	p := &process{cmd: exec.Command(program, "serve", "--config", s.file), done: make(chan struct{})}
	p.cmd.Stderr, p.cmd.Stdout = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.ok(p.cmd.Start())
	s.server = p
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	s.t.Cleanup(func() {
		if s.t.Failed() {
			text := p.text()
			s.t.Logf("the service printed at the end:\n%s", text[max(0, len(text)-20000):])
		}
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			s.t.Error("the service does not end")
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	})
	c, err := api.NewClient(s.socket(), "")
	s.ok(err)
	s.t.Cleanup(c.Close)
	s.api = c
	eventually(s.t, "the service is ready", func() string {
		select {
		case <-p.done:
			s.t.Fatalf("the service has ended:\n%s", p.text())
		default:
		}
		resp, err := web.Get("http://" + apiAt + "/readyz")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return resp.Status
		}
		return ""
	})
}

// run runs the program as a user does, and gives its exit status and what it printed.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	c := exec.CommandContext(t.Context(), program, args...)
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), out.String(), errs.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out.String(), errs.String()
}

// ask asks the running service, as a user does, and gives what was printed.
func (s *site) ask(args ...string) string {
	s.t.Helper()
	status, out, errs := run(s.t, append(args, "--server", s.socket())...)
	if status != 0 {
		s.t.Fatalf("gpuserver %s: status %d\n%s%s", strings.Join(args, " "), status, out, errs)
	}
	return out
}

// dispatch starts a run of jobs with a label, one step each.
func (s *site) dispatch(label, script string, jobs int) forgetest.Run {
	s.t.Helper()
	spec := forgetest.RunSpec{Repo: "octo/hello", Actor: "alice"}
	for n := range jobs {
		spec.Jobs = append(spec.Jobs, forgetest.JobSpec{Name: fmt.Sprintf("job-%d", n+1), Labels: []string{label}, Steps: []runnerclient.Step{{Name: "step", Run: script}}})
	}
	r, err := s.hub.Dispatch(spec)
	s.ok(err)
	return r
}

// succeeded waits until all jobs of a run are over, and wants each to be a success.
func (s *site) succeeded(run forgetest.Run) []forgetest.Job {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	jobs, err := s.hub.Wait(ctx, forgetest.JobFilter{Run: run.ID}, "completed")
	if err != nil {
		s.t.Fatalf("run %d: %v\n%s", run.ID, err, s.ask("job", "list"))
	}
	for _, j := range jobs {
		if j.Conclusion != "success" {
			s.t.Errorf("%s ended with %s", j.Name, j.Conclusion)
		}
	}
	return jobs
}

// jobs gives our rows of jobs in a state.
func (s *site) jobs(states ...gpuserver.JobState) (out []gpuserver.Job) {
	s.t.Helper()
	all, err := s.api.Jobs(s.t.Context(), nil, "", 1000)
	s.ok(err)
	for _, j := range all {
		if slices.Contains(states, j.State) {
			out = append(out, j)
		}
	}
	return out
}

// vms gives the VMs that are alive.
func (s *site) vms() []gpuserver.VM {
	s.t.Helper()
	vms, err := s.api.VMs(s.t.Context(), false, 1000)
	s.ok(err)
	return vms
}

// nothingLeft waits until neither the service, the forge nor a cloud has anything of
// ours any more.
func (s *site) nothingLeft(cloud *client) {
	s.t.Helper()
	eventually(s.t, "nothing is left", func() string {
		var got struct{ Servers []server }
		cloud.call("GET", "compute", "/servers/detail", nil, &got)
		if vms, runners := s.vms(), s.hub.Runners(); len(vms)+len(runners)+len(got.Servers) > 0 {
			return fmt.Sprintf("VMs %+v\nrunners %+v\nservers %v", vms, runners, got.Servers)
		}
		return ""
	})
}

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
