//go:build openstack

package openstack

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	cloudfake "gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/guest/guesttest"
)

// playGuests plays the guests of the fake hypervisor, which runs none, until the test
// ends: what Nova was handed for them is all that they know.
func playGuests(t *testing.T, admin *client, project string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		playing := map[string]context.CancelFunc{}
		for ctx.Err() == nil {
			there, err := admin.handed(ctx, project)
			for id, data := range there {
				if playing[id] == nil {
					guest, end := context.WithCancel(ctx)
					playing[id] = end
					go (&guesttest.Player{}).Play(guest, cloud.Spec{UserData: data}, t.Output())
				}
			}
			for id, end := range playing {
				if _, ok := there[id]; !ok && err == nil {
					end()
					delete(playing, id)
				}
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
}

// handed gives the user data of a project's servers that are active, by their ids.
func (c *client) handed(ctx context.Context, project string) (map[string][]byte, error) {
	var got struct {
		Servers []struct {
			ID, Status string
			UserData   string `json:"OS-EXT-SRV-ATTR:user_data"`
		}
	}
	status, text, err := c.send(ctx, "GET", "compute", "/servers/detail?all_tenants=1&project_id="+project, nil)
	if err == nil {
		err = json.Unmarshal([]byte(text), &got)
	}
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("listing servers: %d %s: %w", status, text, err)
	}
	out := map[string][]byte{}
	for _, s := range got.Servers {
		if s.Status != "ACTIVE" {
			continue
		}
		data, err := base64.StdEncoding.DecodeString(s.UserData)
		if err != nil {
			return nil, err
		}
		out[s.ID] = data
	}
	return out, nil
}

// localGPUs is a cloud in memory beside the OpenStack, with room for one VM with a
// card, and gives its URL.
func localGPUs(t *testing.T) string {
	t.Helper()
	c := cloudfake.NewCloud(cloudfake.Config{
		Name: "local", Guest: (&guesttest.Player{}).Play,
		Capabilities: &cloud.Capabilities{Keep: true, Console: true, Events: true, Accelerated: true},
		Hosts: []gpuserver.Host{{Name: "one", VCPUs: 4, MemoryMiB: 1 << 14, DiskGiB: 100, Slots: []gpuserver.Slot{
			{NUMANode: -1, Cards: []gpuserver.Card{{Model: "tesla-v100"}}},
		}}},
	})
	t.Cleanup(c.Close)
	return serve(t, "127.0.0.1", c.Handler())
}

// never is longer than a test takes.
const never = "1h"

// mixed is an installation with an OpenStack and a cloud in memory. Its ledger has
// one card more than Nova. The clouds' room and VMs are read anew as often as every
// says.
func mixed(t *testing.T, every string) (s *site, admin, member *client) {
	t.Helper()
	admin, member = login(t, "admin"), login(t, "member")
	member.quota(admin, unlimited)
	t.Cleanup(func() { // the test's context has ended
		if _, _, err := admin.send(context.Background(), "PUT", "compute", "/os-quota-sets/"+member.project, map[string]any{"quota_set": unlimited}); err != nil {
			t.Error(err)
		}
	})
	s = newSite(t, "runners:\n"+
		entry("cpu", "stack", "lab.nano", "cirun-cpu")+
		entry("gpu", "stack", "gpu_tiny", "cirun-gpu")+
		entry("stack-first", "stack", "gpu_tiny", "cirun-either")+
		entry("local-second", "local", "gpu_tiny", "cirun-either")+
		entry("local-first", "local", "gpu_tiny", "cirun-other")+
		entry("stack-second", "stack", "gpu_tiny", "cirun-other"))
	s.configure(fmt.Sprintf(`clouds:
  - name: stack
    type: openstack
    openstack:
      clouds_file: %s
      cloud: member
      networks: [lab]
      gpus: [{model: tesla-v100, count: 5}]
  - {name: local, type: fake, fake: {url: %s}}
flavors:
  - {name: lab.nano, vcpus: 1, memory: 128MiB, disk: 1GiB}
  - {name: gpu_tiny, vcpus: 4, memory: 2GiB, disk: 20GiB, gpus: {model: tesla-v100}}
images:
  - {name: debian-12, openstack: {image: empty}, fake: {}}
reconcile: {clouds: %s}
`, cloudsFile, localGPUs(t), every))
	playGuests(t, admin, member.project)
	s.serve()
	eventually(t, "the clouds' room is known", func() string {
		status, err := s.api.Status(t.Context())
		if err != nil || len(status.Hosts) != 2 {
			return fmt.Sprintf("%+v, %v", status.Hosts, err)
		}
		return ""
	})
	return s, admin, member
}

// held dispatches a run whose jobs no runner gets before they are released.
func (s *site) held(label, script string, jobs int) forgetest.Run {
	s.t.Helper()
	pause := true
	s.hub.Configure(forgetest.Settings{PauseDispatch: &pause})
	return s.dispatch(label, script, jobs)
}

// release lets the runners have all jobs.
func (s *site) release() {
	pause := false
	s.hub.Configure(forgetest.Settings{PauseDispatch: &pause})
}

// ready waits until a cloud has n VMs whose runners wait for a job. A guest may be
// quicker than the answer to its create, which is waited for, too.
func (s *site) ready(on string, n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d VMs are ready on %s", n, on), func() string {
		have := 0
		for _, v := range s.vms() {
			if v.Cloud == on && v.State == gpuserver.VMReady && v.CloudID != "" {
				have++
			}
		}
		if have != n {
			return s.ask("vm", "list") + s.ask("job", "list")
		}
		return ""
	})
}

// waits waits until the only job that is queued says why, and gives it.
func (s *site) waits(why string) (job gpuserver.Job) {
	s.t.Helper()
	eventually(s.t, "a job waits because of "+why, func() string {
		queued := s.jobs(gpuserver.JobQueued)
		if len(queued) != 1 || !strings.Contains(queued[0].Reason.Text, why) {
			return s.ask("job", "list")
		}
		job = queued[0]
		return ""
	})
	return job
}

// TestServiceNoValidHost has five jobs want one card each while Nova has four, and
// our ledger believes in five: the fifth waits with Nova's reason, loses no try, and
// leaves no failed server; one that may go elsewhere does.
func TestServiceNoValidHost(t *testing.T) {
	need(t, fake)
	s, _, member := mixed(t, never)
	four := s.held("cirun-gpu", "true", 4)
	s.ready("stack", 4)
	fifth := s.held("cirun-gpu", "true", 1)
	job := s.waits("No valid host")
	t.Logf("gpuserver job explain says:\n%s", s.ask("job", "explain", fmt.Sprint(job.ID)))
	if job.Tries != 0 || job.Reason.Class != gpuserver.ReasonCapacity {
		t.Errorf("the job that waits lost %d tries, and its reason is %+v", job.Tries, job.Reason)
	}
	eventually(t, "the server that failed is deleted", func() string {
		var got struct{ Servers []server }
		if member.call("GET", "compute", "/servers/detail", nil, &got); len(got.Servers) != 4 {
			return fmt.Sprint(got.Servers)
		}
		return ""
	})
	d := &declaration{s, nil} // that declares nothing
	d.cloud(0, words("check"), "pass   PciPassthroughFilter and alias tesla-v100", "has a card by it")
	d.cloud(1, words("show"), s.vms()[0].Name, "ours", "tesla-v100:1", "not looked at: hypervisors: ", "os_compute_api:os-hypervisors:list-detail")
	elsewhere := s.held("cirun-either", "true", 1)
	s.ready("local", 1)
	t.Logf("with one job that may run elsewhere:\n%s%s", s.ask("vm", "list"), s.ask("job", "list"))
	s.release()
	for _, r := range []forgetest.Run{four, fifth, elsewhere} {
		s.succeeded(r)
	}
	s.nothingLeft(member)
}

// TestServiceFallsBackToOpenStack has the second of two jobs go to OpenStack, because
// the cloud that its label names first is full.
func TestServiceFallsBackToOpenStack(t *testing.T) {
	need(t, fake)
	s, _, member := mixed(t, never)
	both := s.held("cirun-other", "true", 2)
	s.ready("local", 1)
	s.ready("stack", 1)
	t.Logf("gpuserver vm list:\n%s", s.ask("vm", "list"))
	s.release()
	s.succeeded(both)
	s.nothingLeft(member)
}

// TestServiceQuota has Nova refuse a server for its project's quota, of which the
// service heard other numbers: the job waits with Nova's reason, and runs once there
// is room.
func TestServiceQuota(t *testing.T) {
	need(t, fake)
	s, admin, member := mixed(t, never)
	member.quota(admin, map[string]any{"instances": 0})
	run := s.dispatch("cirun-cpu", "true", 1)
	job := s.waits("Quota exceeded for instances")
	if job.Tries != 0 || job.Reason.Class != gpuserver.ReasonCapacity {
		t.Errorf("the job that waits lost %d tries, and its reason is %+v", job.Tries, job.Reason)
	}
	if status, text := member.do("GET", "compute", "/servers/detail", nil); status != http.StatusOK || !strings.Contains(text, `"servers": []`) {
		t.Errorf("there are servers: %d %s", status, text)
	}
	member.quota(admin, unlimited)
	s.succeeded(run)
	s.nothingLeft(member)
}

// TestServiceRepairs has things happen behind the service's back: it is killed while
// it has a server, a server of its own is there that it knows nothing of, and somebody
// deletes the one that waits for a job. What is not its own stays.
func TestServiceRepairs(t *testing.T) {
	need(t, fake)
	s, _, member := mixed(t, "1s")
	run := s.held("cirun-cpu", "true", 1)
	s.ready("stack", 1)
	before := s.vms()[0]
	s.ok(s.server.cmd.Process.Kill())
	<-s.server.done
	s.serve()
	s.ready("stack", 1)
	if after := s.vms()[0]; after.CloudID != before.CloudID {
		t.Errorf("after it was killed the service has server %s in place of %s", after.CloudID, before.CloudID)
	}

	var got struct {
		Server struct{ Metadata map[string]string }
	}
	member.call("GET", "compute", "/servers/"+before.CloudID, nil, &got)
	name := before.Name[:strings.LastIndex(before.Name, "-")] + "-9999" // as the service gives names
	ask := newServer{Name: name, Flavor: "lab.nano", Image: member.image("empty"), Metadata: got.Server.Metadata}
	orphan := member.create(ask)
	ask.Name, ask.Metadata = "somebody", nil
	stranger := member.create(ask)
	eventually(t, "the orphan is deleted", func() string {
		if status, text := member.do("GET", "compute", "/servers/"+orphan, nil); status != http.StatusNotFound {
			return text
		}
		return ""
	})

	member.remove(before.CloudID)
	eventually(t, "the job has another server", func() string {
		if vms := s.vms(); len(vms) != 1 || vms[0].CloudID == before.CloudID || vms[0].State != gpuserver.VMReady {
			return s.ask("vm", "list")
		}
		return ""
	})
	t.Logf("gpuserver job show:\n%s", s.ask("job", "show", fmt.Sprint(before.MadeFor)))
	if got := member.settled(stranger); got.Status != "ACTIVE" {
		t.Errorf("the server that is not ours: %v", got)
	}
	member.remove(stranger)
	s.release()
	s.succeeded(run)
	s.nothingLeft(member)
}
