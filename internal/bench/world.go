package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// world is a forge, a cloud and the service, each a process, in a folder.
type world struct {
	b   *bench
	ctx context.Context
	dir string

	forge *forgetest.Client
	cloud *fake.Admin

	forgeURL              string
	hooks, agent, apiAddr string

	forgeProc, cloudProc, server *process
}

const repoName = "octo/hello"

// The organisation's files: a job needs its run, both files and the actor's
// role read before it may run, as in an organisation that really uses them.
const (
	runnersFile = `runners:
  - name: cirun-bench
    cloud: openstack
    instance_type: small
    machine_image: debian
    region: RegionOne
    labels: [cirun-bench]
`
	accessFile = `version: 1
policies:
  - id: hello-policy
    repo: hello
    roles: [admin, write]
access_control:
  - resource: cirun-bench
    policies: [hello-policy]
`
)

// newWorld starts forge and cloud and fills them; serve starts the service.
func (b *bench) newWorld(name string, f forgeArgs, c cloudArgs) (*world, error) {
	return b.newWorldOn(name, f, func(w *world) (clouds string, err error) {
		var addr string
		if w.cloudProc, addr, err = b.startRole(filepath.Join(w.dir, "cloud.log"), "cloud", text(c)); err != nil {
			return "", err
		}
		w.cloud = fake.NewAdmin("http://" + addr)
		return fmt.Sprintf(`clouds:
  - name: local
    type: fake
    serves: [{cloud: openstack, region: RegionOne}]
    fake: {url: http://%s}
flavors:
  - {name: small, vcpus: 1, memory: 1GiB, disk: 10GiB}
images:
  - {name: debian, fake: {}}
`, addr), nil
	})
}

// newWorldOn starts the forge and fills it; clouds starts the cloud and gives the
// part of the configuration with clouds, flavors and images.
func (b *bench) newWorldOn(name string, f forgeArgs, clouds func(*world) (string, error)) (w *world, err error) {
	w = &world{b: b, ctx: b.ctx}
	defer func() {
		if err != nil {
			w.close()
			w = nil
		}
	}()
	if w.dir, err = b.folder(name); err != nil {
		return w, err
	}
	var addr string
	if w.forgeProc, addr, err = b.startRole(filepath.Join(w.dir, "forge.log"), "forge", text(f)); err != nil {
		return w, err
	}
	w.forgeURL = "http://" + addr
	w.forge = &forgetest.Client{URL: w.forgeURL}
	for _, a := range []*string{&w.hooks, &w.agent, &w.apiAddr} {
		if *a, err = freePort(); err != nil {
			return w, err
		}
	}
	if err = w.populate(); err != nil {
		return w, err
	}
	places, err := clouds(w)
	if err != nil {
		return w, err
	}
	return w, w.configure(f, places)
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types encode
	}
	return string(b)
}

// freePort finds a port that was free a moment ago; it must be in the
// configuration before the service binds it. It is below those that the kernel gives
// to connections (Linux, ip-sysctl, ip_local_port_range: from 32768), of which a
// benchmark opens so many that one would take it in that moment.
func freePort() (string, error) {
	var last error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return addr, ln.Close()
		}
		last = err
	}
	return "", gpuserver.Wrap(gpuserver.KindUnavailable, "bench: listen", last)
}

func (w *world) populate() error {
	_, err := w.forge.AddOrg(w.ctx, forgetest.Org{Login: "octo"})
	if err == nil {
		_, err = w.forge.AddUser(w.ctx, forgetest.User{Login: "alice"})
	}
	if err == nil {
		_, err = w.forge.AddRepo(w.ctx, forgetest.Repository{Name: repoName})
	}
	if err == nil {
		_, err = w.forge.AddRepo(w.ctx, forgetest.Repository{Name: "octo/.cirun", Files: map[string]string{
			".cirun.global.yml": runnersFile, ".access.yml": accessFile,
		}})
	}
	if err == nil {
		err = w.forge.SetRole(w.ctx, forgetest.Role{Repo: repoName, Login: "alice", Role: "write"})
	}
	if err == nil {
		err = w.deliverTo("http://" + w.hooks + "/webhooks/github")
	}
	return err
}

func (w *world) deliverTo(url string) error {
	return w.forge.Configure(w.ctx, forgetest.Settings{WebhookURL: &url})
}

// The budgets that the service keeps to where the forge has no limits.
const noBudget = "budget: {points_per_minute: 100000, registrations_per_hour: 1000000, content_per_minute: 80, content_per_hour: 500}"

// configure writes the configuration: defaults, but for addresses, names and,
// where the forge has no limits, the budget.
func (w *world) configure(f forgeArgs, clouds string) error {
	app, err := w.forge.App(w.ctx)
	if err != nil {
		return err
	}
	budget := noBudget
	if f.Limits {
		budget = ""
	}
	cfg := fmt.Sprintf(`server:
  name: bench
  data_dir: %s
  listen: {webhooks: %q, agent: %q, api: %q, socket: %q}
forges:
  - name: github
    type: github
    base_url: %s
    app_id: %d
    private_key: {file: %s}
    webhook_secrets: [{file: %s}]
    %s
%s`, w.path("data"), w.hooks, w.agent, w.apiAddr, w.path("api.sock"), w.forgeURL, app.ID, w.path("app.pem"), w.path("secret"), budget, clouds)
	for name, text := range map[string]string{"app.pem": app.PrivateKeyPEM, "secret": webhookSecret, "gpuserver.yaml": cfg} {
		if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
			return gpuserver.Wrap(gpuserver.KindUnavailable, "bench: write "+name, err)
		}
	}
	return nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// start starts the service and does not wait for it.
func (w *world) start() (err error) {
	w.server, err = start(w.path("gpuserver.log"), w.b.Environment, nil, false, w.b.Server, "serve", "--config", w.path("gpuserver.yaml"))
	return err
}

// serve starts the service and waits until it is ready.
func (w *world) serve() error {
	if err := w.start(); err != nil {
		return err
	}
	return until(w.ctx, 20*time.Millisecond, "the service starts", func() (string, error) {
		if err := w.server.ended(); err != nil {
			return "", err
		}
		resp, err := http.Get("http://" + w.apiAddr + "/readyz")
		if err != nil {
			return "it does not answer", nil
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return resp.Status, nil
		}
		return "", nil
	})
}

// kill is kill -9.
func (w *world) kill() { w.server.stop(syscall.SIGKILL) }

// close ends all processes; the folder is removed with the benchmark's. The
// service is killed, not drained: the parts must not wait for each other.
func (w *world) close() {
	w.server.stop(syscall.SIGKILL)
	w.forgeProc.stop(syscall.SIGKILL)
	w.cloudProc.stop(syscall.SIGKILL)
	if w.cloud != nil {
		w.cloud.Close()
	}
	if !w.b.Keep && w.dir != "" {
		_ = os.RemoveAll(w.dir) // else the disk fills with worlds that nobody needs
	}
}

// dispatch starts runs of n jobs in all, in runs of at most 250: a matrix has up
// to 256 jobs.
func (w *world) dispatch(n int, labels func(i int) string) ([]forgetest.Run, error) {
	var runs []forgetest.Run
	for i := 0; i < n; {
		spec := forgetest.RunSpec{Repo: repoName, Actor: "alice"}
		for ; i < n && len(spec.Jobs) < 250; i++ {
			spec.Jobs = append(spec.Jobs, forgetest.JobSpec{Labels: []string{labels(i)}})
		}
		r, err := w.forge.Dispatch(w.ctx, spec)
		if err != nil {
			return runs, err
		}
		runs = append(runs, r)
	}
	return runs, nil
}

// sameLabel is what all jobs of a matrix ask for.
func sameLabel(int) string { return "cirun-bench" }

// creates waits until so many create calls have arrived and gives them, in the
// order of their arrival.
func (w *world) creates(n int) ([]fake.Call, error) {
	return w.calls("create", n, 0)
}

// calls waits for n calls of a kind after the one numbered seq.
func (w *world) calls(kind string, n int, seq int64) ([]fake.Call, error) {
	var found []fake.Call
	err := until(w.ctx, 50*time.Millisecond, fmt.Sprintf("%d %s calls", n, kind), func() (string, error) {
		if err := w.server.ended(); err != nil {
			return "", err
		}
		all, err := w.cloud.Calls(w.ctx, seq)
		for _, c := range all {
			seq = max(seq, c.Seq)
			if c.Call == kind {
				found = append(found, c)
			}
		}
		if len(found) < n {
			return fmt.Sprintf("%d so far", len(found)), err
		}
		return "", err
	})
	return found, err
}

// sent gives when the deliveries of an action were sent, by the forge's number
// of the job. A second delivery of the same counts for nothing.
func (w *world) sent(action string) (map[int64]time.Time, error) {
	list, err := w.forge.Deliveries(w.ctx)
	if err != nil {
		return nil, err
	}
	m := map[int64]time.Time{}
	for _, d := range list {
		if d.Event == "workflow_job" && d.Action == action && !d.Redelivery {
			if d.StatusCode >= 300 {
				return nil, gpuserver.Errorf(gpuserver.KindUnavailable, "bench: the delivery of job %d was answered %d %s", d.Job, d.StatusCode, d.Status)
			}
			m[d.Job] = d.DeliveredAt
		}
	}
	return m, nil
}

// at is when a call arrived.
func at(c fake.Call) time.Time { return time.Unix(0, c.At) }

// vmOf is the VM's name in a runner's: the fleet appends the attempt.
func vmOf(runner string) string {
	i := strings.LastIndexByte(runner, '-')
	return runner[:max(i, 0)]
}
