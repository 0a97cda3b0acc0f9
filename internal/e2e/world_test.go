package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/forgetest/runnerclient"
	"gpuserver/internal/guest"
)

const webhookSecret = "a secret of the tests"

// patience is how long an event is waited for: generous, because machines are
// shared. A test that passes never waits so long.
var patience = patienceOf()

// patienceOf gives two minutes, or what GPUSERVER_E2E_PATIENCE says: somebody
// who looks for a mistake does not want to wait.
func patienceOf() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("GPUSERVER_E2E_PATIENCE")); err == nil {
		return d
	}
	return 2 * time.Minute
}

// world is a forge, a cloud and the service, each a process.
type world struct {
	t     *testing.T
	ctx   context.Context
	dir   string
	forge *forgetest.Client
	cloud *fake.Admin
	api   *api.Client

	hooks, agent, apiAddr string
	forgeURL, cloudURL    string
	server                *process
	data                  string // the data folder
	extra                 string // more sections of the configuration
	ofForge               string // more lines of its forge, indented by 4
	ofFlavor              string // more fields of its flavor, ", time_limit: 1s"
}

// process is a child process that ends with the test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	log  bytes.Buffer
}

// Write keeps what the process prints, for a failing test.
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

func (p *process) signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s)
}

// ended waits for the end of the process.
func (p *process) ended(t *testing.T) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("process %d did not end; it printed:\n%s", p.cmd.Process.Pid, tail(p.text()))
	}
}

func tail(s string) string {
	if len(s) > 8000 {
		return "…" + s[len(s)-8000:]
	}
	return s
}

// start starts a child; it is killed at the latest when the test ends.
func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() { p.signal(syscall.SIGKILL); <-p.done })
	return p
}

// startRole starts this binary in a role and gives the address that it says.
func startRole(t *testing.T, role string, env ...string) string {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	p.cmd.Env = append(append(os.Environ(), roleVar+"="+role), env...)
	p.cmd.Stderr = p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() { p.signal(syscall.SIGTERM); <-p.done })
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		t.Fatalf("%s did not start: %v %q\n%s", role, err, line, p.text())
	}
	return addr
}

var worlds atomic.Int32

// ownAddress gives a loopback address that only this world uses, so that its
// ports are free at every restart.
func ownAddress() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid/256%254, pid%256, 1+worlds.Add(1)%254)
}

// newWorld starts forge and cloud, with an organisation, a repository and a
// runner entry; the service is started by serve.
func newWorld(t *testing.T, guests string) *world {
	t.Helper()
	w := &world{t: t, ctx: t.Context(), dir: t.TempDir()}
	w.forgeURL = "http://" + startRole(t, "forge")
	w.cloudURL = "http://" + startRole(t, "cloud", "GPUSERVER_E2E_GUEST="+guests)
	w.forge = &forgetest.Client{URL: w.forgeURL}
	w.cloud = fake.NewAdmin(w.cloudURL)
	ip := ownAddress()
	w.hooks, w.agent, w.apiAddr = ip+":8440", ip+":8441", ip+":8442"
	w.data = filepath.Join(w.dir, "data")
	w.extra = "reconcile: {deliveries: 1s, jobs: 10m, runners: 10m}\n"
	w.populate()
	return w
}

// The organisation's files, in the form of conda-forge's.
const (
	globalFile = `runners:
  - name: cirun-openstack-gpu-large
    cloud: openstack
    instance_type: gpu_large
    machine_image: ubuntu-2404-gpu
    region: RegionOne
    labels: [linux, x64, cirun-openstack-gpu-large]
`
	accessFile = `version: 1
policies:
  - id: hello-policy
    repo: hello
    roles: [admin, write]
    pull_request: true
access_control:
  - resource: cirun-openstack-gpu-large
    policies: [hello-policy]
`
)

func (w *world) populate() {
	w.t.Helper()
	w.must(w.forge.AddOrg(w.ctx, forgetest.Org{Login: "octo"}))
	w.must(w.forge.AddUser(w.ctx, forgetest.User{Login: "alice"}))
	w.must(w.forge.AddUser(w.ctx, forgetest.User{Login: "mallory"}))
	w.must(w.forge.AddRepo(w.ctx, forgetest.Repository{Name: "octo/hello"}))
	w.must(w.forge.AddRepo(w.ctx, forgetest.Repository{Name: "octo/.cirun"}))
	w.must(w.forge.SetFile(w.ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".cirun.global.yml", Content: []byte(globalFile)}))
	w.must(w.forge.SetFile(w.ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".access.yml", Content: []byte(accessFile)}))
	w.ok(w.forge.SetRole(w.ctx, forgetest.Role{Repo: "octo/hello", Login: "alice", Role: "write"}))
	s := forgetest.Settings{}
	url := "http://" + w.hooks + "/webhooks/github"
	s.WebhookURL = &url
	w.ok(w.forge.Configure(w.ctx, s))
}

func (w *world) must(_ any, err error) { w.t.Helper(); w.ok(err) }

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// config writes the configuration file and gives its path.
func (w *world) config() string {
	w.t.Helper()
	app, err := w.forge.App(w.ctx)
	w.ok(err)
	key, secret := filepath.Join(w.dir, "app.pem"), filepath.Join(w.dir, "secret")
	w.ok(os.WriteFile(key, []byte(app.PrivateKeyPEM), 0o600))
	w.ok(os.WriteFile(secret, []byte(webhookSecret), 0o600))
	text := fmt.Sprintf(`
server:
  name: e2e
  data_dir: %s
  listen: {webhooks: %q, agent: %q, api: %q, socket: %q}
  log: {level: debug, format: text}
forges:
  - name: github
    type: github
    base_url: %s
    app_id: %d
    private_key: {file: %s}
    webhook_secrets: [{file: %s}]
%sclouds:
  - name: local
    type: fake
    serves: [{cloud: openstack, region: RegionOne}]
    fake: {url: %s}
flavors:
  - {name: gpu_large, vcpus: 4, memory: 12GiB, disk: 60GiB%s}
images:
  - {name: ubuntu, aliases: [ubuntu-2404-gpu], fake: {}}
%s`, w.data, w.hooks, w.agent, w.apiAddr, filepath.Join(w.dir, "api.sock"),
		w.forgeURL, app.ID, key, secret, w.ofForge, w.cloudURL, w.ofFlavor, w.extra)
	path := filepath.Join(w.dir, "gpuserver.yaml")
	w.ok(os.WriteFile(path, []byte(text), 0o600))
	return path
}

// serve starts the service and waits until it is ready. env may name a crash
// point; then it need not become ready.
func (w *world) serve(env ...string) *process {
	w.t.Helper()
	w.server = start(w.t, env, binary, "serve", "--config", w.config())
	server := w.server
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("the service printed:\n%s", tail(server.text()))
		}
	})
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		select {
		case <-w.server.done:
			if len(env) > 0 {
				return w.server
			}
			w.t.Fatalf("the service ended at its start:\n%s", tail(w.server.text()))
		default:
		}
		resp, err := http.Get("http://" + w.apiAddr + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return w.server
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.t.Fatalf("the service is not ready:\n%s", tail(w.server.text()))
	return nil
}

// client talks to the service over its socket.
func (w *world) client() *api.Client {
	w.t.Helper()
	if w.api == nil {
		c, err := api.NewClient(filepath.Join(w.dir, "api.sock"), "")
		w.ok(err)
		w.t.Cleanup(c.Close)
		w.api = c
	}
	return w.api
}

// dispatch starts a run of n jobs by actor.
func (w *world) dispatch(actor string, n int, change ...func(*forgetest.RunSpec)) forgetest.Run {
	w.t.Helper()
	spec := forgetest.RunSpec{Repo: "octo/hello", Actor: actor}
	for i := range n {
		spec.Jobs = append(spec.Jobs, forgetest.JobSpec{
			Name: fmt.Sprintf("job-%d", i+1), Labels: []string{"cirun-openstack-gpu-large--7"}, Steps: []runnerclient.Step{{Name: "hello", Run: "echo hello"}},
		})
	}
	for _, c := range change {
		c(&spec)
	}
	r, err := w.forge.Dispatch(w.ctx, spec)
	w.ok(err)
	return r
}

// wait waits until all jobs of a run are in a status and gives them.
func (w *world) wait(run forgetest.Run, status string) []forgetest.Job {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	jobs, err := w.forge.Wait(ctx, forgetest.JobFilter{Run: run.ID}, status)
	if err != nil {
		text, _ := json.Marshal(jobs)
		w.t.Fatalf("run %d is not %s: %v\n%s\nto the service:\n%s", run.ID, status, err, text, w.unfinished())
	}
	return jobs
}

// unfinished tells of the jobs that are not over to the service, for a failed
// test's text.
func (w *world) unfinished() string {
	jobs, err := w.client().Jobs(w.ctx, nil, "", 1000)
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, j := range jobs {
		if j.State.Over() {
			continue
		}
		e, _ := w.client().Explain(w.ctx, j.ID)
		d, _ := w.client().Job(w.ctx, j.ID)
		text, _ := json.Marshal([]any{e, d})
		fmt.Fprintf(&out, "%s\n", text)
	}
	return out.String()
}

// eventually waits for a condition; it gives "" or what is still wrong.
func (w *world) eventually(what string, cond func() string) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	last := ""
	for time.Now().Before(deadline) {
		if last = cond(); last == "" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.t.Fatalf("%s: %s", what, last)
}

// succeeded checks that all jobs of a run ended well.
func (w *world) succeeded(run forgetest.Run) []forgetest.Job {
	w.t.Helper()
	jobs := w.wait(run, "completed")
	for _, j := range jobs {
		if j.Conclusion != "success" {
			w.t.Errorf("job %s: %s", j.Name, j.Conclusion)
		}
	}
	return jobs
}

// nothingLeft waits until neither the cloud nor the forge holds anything, as
// they themselves say, and the service's own rows agree.
func (w *world) nothingLeft() {
	w.t.Helper()
	w.eventually("nothing is left", func() string {
		vms, err := w.cloud.VMs(w.ctx)
		if err != nil || len(vms) > 0 {
			return fmt.Sprintf("VMs on the cloud: %v (%v)", vms, err)
		}
		runners, err := w.forge.Runners(w.ctx)
		if err != nil || len(runners) > 0 {
			return fmt.Sprintf("runners on the forge: %v (%v)", runners, err)
		}
		rows, err := w.client().VMs(w.ctx, false, 100)
		if err != nil || len(rows) > 0 {
			return fmt.Sprintf("VMs in the store: %v (%v)", rows, err)
		}
		status, err := w.client().Status(w.ctx)
		if err != nil || slices.ContainsFunc(status.Hosts, func(h api.HostStatus) bool { return h.Used.VMs > 0 }) {
			return fmt.Sprintf("leases: %+v (%v)", status.Hosts, err)
		}
		return ""
	})
}

// kill ends the service as power loss would.
func (w *world) kill() {
	w.t.Helper()
	w.server.signal(syscall.SIGKILL)
	w.server.ended(w.t)
}

// creates counts the create calls that the cloud got.
func (w *world) creates() (n int) {
	w.t.Helper()
	calls, err := w.cloud.Calls(w.ctx, 0)
	w.ok(err)
	for _, c := range calls {
		if c.Call == "create" {
			n++
		}
	}
	return n
}

// vmsIn waits until exactly n VMs of the store are in a state, and gives them.
func (w *world) vmsIn(state gpuserver.VMState, n int) (in []gpuserver.VM) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d VMs %s", n, state), func() string {
		in = nil
		vms, err := w.client().VMs(w.ctx, false, 1000)
		for _, v := range vms {
			if v.State == state {
				in = append(in, v)
			}
		}
		if err != nil || len(in) != n {
			return fmt.Sprintf("there are %d: %v (%v)", len(in), vms, err)
		}
		return ""
	})
	return in
}

// job gives our row of a job of the forge; it waits until there is one.
func (w *world) job(id int64) (job gpuserver.Job) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("job %d is known", id), func() string {
		jobs, err := w.client().Jobs(w.ctx, nil, "", 1000)
		for _, j := range jobs {
			if j.ForgeID == id {
				job = j
				return ""
			}
		}
		return fmt.Sprintf("%d jobs are known (%v)", len(jobs), err)
	})
	return job
}

// jobIs waits until our row of a job is in a state, and gives it.
func (w *world) jobIs(id int64, states ...gpuserver.JobState) (job gpuserver.Job) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("job %d is %v", id, states), func() string {
		if job = w.job(id); !slices.Contains(states, job.State) {
			return fmt.Sprintf("it is %s: %+v", job.State, job.Reason)
		}
		return ""
	})
	return job
}

// events gives the texts of a job's history of one kind.
func (w *world) events(id int64, kind string) (texts []string) {
	w.t.Helper()
	d, err := w.client().Job(w.ctx, w.job(id).ID)
	w.ok(err)
	for _, e := range d.Events {
		if e.Kind == kind {
			texts = append(texts, e.Text)
		}
	}
	return texts
}

func held(s *forgetest.RunSpec) {
	for i := range s.Jobs {
		s.Jobs[i].Hold = true
	}
}

func ptr[T any](v T) *T { return &v }

// configure changes settings of the forge.
func (w *world) configure(s forgetest.Settings) {
	w.t.Helper()
	w.ok(w.forge.Configure(w.ctx, s))
}

// online waits until n runners are online at the forge.
func (w *world) online(n int) (runners []forgetest.Runner) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d runners are online", n), func() string {
		all, err := w.forge.Runners(w.ctx)
		runners = slices.DeleteFunc(all, func(r forgetest.Runner) bool { return !r.Online })
		if err != nil || len(runners) != n {
			return fmt.Sprintf("%d of %v (%v)", len(runners), all, err)
		}
		return ""
	})
	return runners
}

// madeFor gives the VM that was made for a job of the forge.
func (w *world) madeFor(forgeID int64) (vm gpuserver.VM) {
	w.t.Helper()
	id := w.job(forgeID).ID
	w.eventually(fmt.Sprintf("job %d has a VM", id), func() string {
		vms, err := w.client().VMs(w.ctx, false, 1000)
		for _, v := range vms {
			if v.MadeFor == id {
				vm = v
				return ""
			}
		}
		return fmt.Sprintf("%v (%v)", vms, err)
	})
	return vm
}

// release lets runners have the held jobs of a run.
func (w *world) release(run forgetest.Run) {
	w.t.Helper()
	for _, j := range run.Jobs {
		w.ok(w.forge.Release(w.ctx, j.ID))
	}
}

// beat reports like the agent of a VM.
func (w *world) beat(vm string, h guest.Heartbeat) (o guest.Orders) {
	w.t.Helper()
	spec, err := w.cloud.Spec(w.ctx, vm)
	w.ok(err)
	p, err := guest.ParseUserData(spec.UserData)
	w.ok(err)
	body, err := json.Marshal(h)
	w.ok(err)
	req, err := http.NewRequestWithContext(w.ctx, http.MethodPost, p.Server+"/guest/v1/heartbeat", bytes.NewReader(body))
	w.ok(err)
	req.Header.Set("Authorization", "Bearer "+p.Token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	w.ok(err)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		w.ok(json.NewDecoder(resp.Body).Decode(&o))
	}
	return o
}
