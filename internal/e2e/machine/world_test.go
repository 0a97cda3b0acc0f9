package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/forgetest/runnerclient"
)

// world is a site, the host's libvirt and the service.
type world struct {
	*site
	t      *testing.T
	ctx    context.Context
	name   string // of the installation, the network and everything else on the host
	dir    string
	ip     string // ours on the link to the site
	config string // the file
	client *api.Client
	server *process
}

var worlds atomic.Int32

// newWorld makes everything but the service, which serve starts.
func newWorld(t *testing.T) *world {
	t.Helper()
	n := int(worlds.Add(1))
	w := &world{t: t, ctx: t.Context(), name: fmt.Sprintf("gsm%d", n), ip: fmt.Sprintf("203.0.113.%d", 4*n+1)}
	var err error
	if w.dir, err = os.MkdirTemp("/var/tmp", w.name+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(w.dir) })
	w.ok(os.Chmod(w.dir, 0o711)) // QEMU's user passes through to its disks
	w.site = newSite(t, w.name, w.ip, fmt.Sprintf("203.0.113.%d", 4*n+2))
	w.populate("http://" + w.ip + ":8440/webhooks/github")
	w.writeConfig(n)
	w.client, err = api.NewClient(w.socket(), "")
	w.ok(err)
	t.Cleanup(w.client.Close)
	t.Cleanup(w.clear)
	return w
}

// forTest gives the same world for a test within the one that made it.
func (w *world) forTest(t *testing.T) *world {
	inner, s := *w, *w.site
	inner.t, inner.ctx, s.t = t, t.Context(), t
	inner.site = &s
	return &inner
}

func (w *world) socket() string { return filepath.Join(w.dir, "api.sock") }

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// writeConfig writes the configuration: conda-forge's words for places, sizes
// and images stand for this machine's.
func (w *world) writeConfig(n int) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(image, "manifest"))
	w.ok(err)
	var manifest struct{ Cmdline string }
	w.ok(json.Unmarshal(b, &manifest))
	text := strings.NewReplacer("NAME", w.name, "DIR", w.dir, "IP", w.ip, "NET", fmt.Sprintf("192.168.%d", 100+n), "IMAGE", image, "CMDLINE", manifest.Cmdline).Replace(`
server:
  name: NAME
  data_dir: DIR/data
  listen: {webhooks: "IP:8440", agent: "NET.1:8441", api: "IP:8442", socket: DIR/api.sock}
  log: {level: debug, format: text}
clouds:
  - name: local
    type: libvirt
    serves: [{cloud: openstack, region: RegionOne}]
    libvirt:
      overcommit: 4
      memory_reserve: 1GiB
      disk_reserve: 1GiB
      network: {name: NAME, bridge: NAMEbr, cidr: NET.0/24}
flavors:
  - {name: ci_small, aliases: [gpu_large], vcpus: 1, memory: 512MiB, disk: 4GiB}
  - {name: ci_brief, aliases: [gpu_brief], vcpus: 1, memory: 512MiB, disk: 4GiB, time_limit: 5s}
images:
  - name: demo
    aliases: [ubuntu-2404-gpu]
    libvirt: {disk: IMAGE/root.qcow2, kernel: IMAGE/vmlinuz, initrd: IMAGE/initrd.img, cmdline: "CMDLINE"}
reconcile: {clouds: 2s, deliveries: 1s, jobs: 10m, runners: 2s}
`) + w.identity(w.dir)
	w.config = filepath.Join(w.dir, "gpuserver.yaml")
	w.ok(os.WriteFile(w.config, []byte(text), 0o600))
}

// clear takes away what the service, which has ended, left on the host.
func (w *world) clear() {
	host(w.t, fmt.Sprintf(`for d in $(virsh -q list --all --name | grep "^%[1]s-"); do virsh -q destroy "$d"; done
virsh -q net-destroy %[1]s
for f in $(virsh -q nwfilter-list | grep -o "gpuserver-%[1]sbr$"); do virsh -q nwfilter-undefine "$f"; done
nft list tables | grep "[_ -]%[1]s" | while read -r table; do nft delete $table; done
true`, w.name))
}

// begin starts the service. env may name a place at which it is killed.
func (w *world) begin(env ...string) *process {
	w.t.Helper()
	w.server = program(w.t, env, "serve", "--config", w.config)
	return w.server
}

// serve starts the service and waits until it is ready.
func (w *world) serve() {
	w.t.Helper()
	w.begin()
	w.awaitReady()
}

func (w *world) awaitReady() {
	w.t.Helper()
	eventually(w.t, "the service is ready", func() string {
		status, body := w.get("/readyz")
		if status == http.StatusOK {
			return ""
		}
		return fmt.Sprint(status, " ", body)
	})
}

// get asks the service over TCP; status 0 is no answer.
func (w *world) get(path string) (status int, body string) {
	w.t.Helper()
	select {
	case <-w.server.done:
		w.t.Fatalf("the service ended: %v", w.server.cmd.ProcessState)
	default:
	}
	resp, err := http.Get("http://" + w.ip + ":8442" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var s strings.Builder
	_, _ = fmt.Fprint(&s, resp.Status)
	var v any
	if json.NewDecoder(resp.Body).Decode(&v) == nil {
		_, _ = fmt.Fprint(&s, " ", v)
	}
	return resp.StatusCode, s.String()
}

// kill ends the service as power loss would.
func (w *world) kill() {
	w.t.Helper()
	w.server.signal(syscall.SIGKILL)
	w.server.ended(w.t)
}

// dispatch starts a run of one job that runs a script.
func (w *world) dispatch(name, script string, change ...func(*forgetest.JobSpec)) forgetest.Run {
	w.t.Helper()
	job := forgetest.JobSpec{
		Name: name, Labels: []string{"cirun-openstack-gpu-large--" + name}, Steps: []runnerclient.Step{{Name: "step", Run: script}},
	}
	for _, c := range change {
		c(&job)
	}
	r, err := w.Dispatch(w.ctx, forgetest.RunSpec{Repo: "octo/hello", Actor: "alice", Jobs: []forgetest.JobSpec{job}})
	w.ok(err)
	return r
}

// completed waits for the end of a run's job and gives it.
func (w *world) completed(run forgetest.Run) forgetest.Job {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	jobs, err := w.Wait(ctx, forgetest.JobFilter{Run: run.ID}, "completed")
	if err != nil || len(jobs) != 1 {
		w.t.Fatalf("run %d is not completed: %v %+v", run.ID, err, jobs)
	}
	if jobs[0].Dispatched > 1 {
		w.t.Errorf("job %s was given to %d runners", jobs[0].Name, jobs[0].Dispatched)
	}
	return jobs[0]
}

// succeeded waits for the good end of a run's job and gives its log.
func (w *world) succeeded(run forgetest.Run) string {
	w.t.Helper()
	j := w.completed(run)
	log, err := w.Log(w.ctx, j.ID)
	w.ok(err)
	if j.Conclusion != "success" {
		w.t.Errorf("job %s ended as %s: %s\n%s", j.Name, j.Conclusion, j.Message, log)
	}
	return log
}

// job waits until the service knows the run's job, and gives it.
func (w *world) job(run forgetest.Run) (job gpuserver.Job) {
	w.t.Helper()
	eventually(w.t, "the job is known", func() string {
		jobs, err := w.client.Jobs(w.ctx, nil, "", 100)
		for _, j := range jobs {
			if j.ForgeID == run.Jobs[0].ID {
				job = j
				return ""
			}
		}
		return fmt.Sprintf("%d jobs are known (%v)", len(jobs), err)
	})
	return job
}

// jobIs waits until the service has the run's job in a state, and gives it.
func (w *world) jobIs(run forgetest.Run, state gpuserver.JobState) (job gpuserver.Job) {
	w.t.Helper()
	eventually(w.t, "the job is "+string(state), func() string {
		if job = w.job(run); job.State != state {
			return fmt.Sprintf("it is %s: %+v", job.State, job.Reason)
		}
		return ""
	})
	return job
}

// vm waits until the VM that was last made for a run's job is in a state, and
// gives it.
func (w *world) vm(run forgetest.Run, state gpuserver.VMState) (vm gpuserver.VM) {
	w.t.Helper()
	job := w.job(run).ID
	eventually(w.t, "the VM is "+string(state), func() string {
		vms, err := w.client.VMs(w.ctx, true, 100)
		vm = gpuserver.VM{}
		for _, v := range vms {
			if v.MadeFor == job && v.ID > vm.ID {
				vm = v
			}
		}
		if vm.ID == 0 || vm.State != state {
			return fmt.Sprintf("it is %q: %s (%v)", vm.State, vm.Reason, err)
		}
		return ""
	})
	return vm
}

// made counts the VMs that the service has ever made, as its store says.
func (w *world) made() int {
	w.t.Helper()
	vms, err := w.client.VMs(w.ctx, true, 1000)
	w.ok(err)
	return len(vms)
}

// nothingLeft waits until libvirt, the file system and the forge hold nothing,
// as they themselves say, and the service's own rows agree.
func (w *world) nothingLeft() {
	w.t.Helper()
	eventually(w.t, "nothing is left", func() string {
		files := host(w.t, fmt.Sprintf(`find %[1]s/data/libvirt/vms %[1]s/data/libvirt/addresses -mindepth 1; virsh -q list --all --name | grep '^%[2]s'; pgrep -a qemu-system | grep '%[2]s-'; true`, w.dir, w.name))
		if files != "" {
			return "domains, volumes and addresses: " + files
		}
		runners, err := w.Runners(w.ctx)
		if err != nil || len(runners) > 0 {
			return fmt.Sprintf("runners on the forge: %v (%v)", runners, err)
		}
		rows, err := w.client.VMs(w.ctx, false, 100)
		if err != nil || len(rows) > 0 {
			return fmt.Sprintf("VMs in the store: %v (%v)", rows, err)
		}
		s, err := w.client.Status(w.ctx)
		if err != nil || len(s.Hosts) != 1 || s.Hosts[0].Used != (api.Used{}) {
			return fmt.Sprintf("leases: %+v (%v)", s.Hosts, err)
		}
		return ""
	})
}
