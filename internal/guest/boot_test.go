package guest_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/forgetest/runnerclient"
	"gpuserver/internal/forge/github"
	"gpuserver/internal/guest"
)

const token = "agent-token-that-no-job-may-see"

// staticNetwork is the address of the only guest in QEMU's user network, as a
// driver that knows it beforehand tells it.
const staticNetwork = `{
	"links": [{"id": "port0", "type": "phy", "ethernet_mac_address": "52:54:00:12:34:56", "mtu": 1450}],
	"networks": [{"id": "network0", "link": "port0", "type": "ipv4", "ip_address": "10.0.2.15", "netmask": "255.255.255.0",
		"routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.2.2"}]}],
	"services": [{"type": "dns", "address": "10.0.2.3"}]}`

// site is a stand-in for GitHub with one repository, and a server for one VM.
type site struct {
	hub     *forgetest.Server
	service *service
	payload guest.Payload
	job     forgetest.Job
}

// newSite dispatches a run with one job, and makes the payload of its VM.
func newSite(t *testing.T, name string, steps []runnerclient.Step) *site {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	hub := forgetest.New(forgetest.Config{RunnerLease: 5 * time.Minute})
	t.Cleanup(func() { _ = hub.Close() })
	port := serveLocal(t, hub)
	hub.Configure(forgetest.Settings{RunnerURL: ptr(fmt.Sprintf("http://%s:%d", slirpHost, port))})
	_, err := hub.AddOrg(forgetest.Org{Login: "octo-org"})
	must(err)
	repo, err := hub.AddRepo(forgetest.Repository{Name: "octo-org/hello"})
	must(err)
	run, err := hub.Dispatch(forgetest.RunSpec{Repo: repo.Name, Jobs: []forgetest.JobSpec{{Name: "build", Labels: []string{"gpu"}, Steps: steps}}})
	must(err)
	app := hub.App()
	f, err := github.New(t.Context(), github.Config{
		Name: "hub", BaseURL: fmt.Sprintf("http://127.0.0.1:%d/api/v3", port), AppID: fmt.Sprint(app.ID), PrivateKey: []byte(app.PrivateKeyPEM),
	})
	must(err)
	t.Cleanup(func() { _ = f.Close() })
	reg, err := f.RegisterRunner(t.Context(), forge.RunnerSpec{
		Scope: forge.Scope{Repo: forge.Repo{Name: repo.Name, InstallationID: repo.InstallationID}}, Name: name, Labels: []string{"gpu"},
	})
	must(err)

	s := &site{hub: hub, service: newService(token), job: hub.Jobs(forgetest.JobFilter{Run: run.ID})[0]}
	s.payload = s.agentPayload(t, name)
	s.payload.JITConfig = reg.JITConfig
	s.payload.Repo, s.payload.RunID, s.payload.RunAttempt = repo.Name, run.ID, run.Attempt
	s.payload.Env = map[string]string{"SITE_GREETING": "hello from the payload"}
	s.payload.SetupInfo = []gpuserver.SetupInfo{{Group: "Machine", Detail: "a small one"}}
	return s
}

// agentPayload gives the part of the payload by which an agent finds s.
func (s *site) agentPayload(t *testing.T, name string) guest.Payload {
	port := serveLocal(t, guest.Handler(s.service, slog.New(slog.NewTextHandler(t.Output(), nil))))
	return guest.Payload{
		VM: name, Server: fmt.Sprintf("http://%s:%d", slirpHost, port), Token: token,
		MTU: 1400, ReserveMiB: 160, BeatEvery: time.Second, Grace: time.Minute,
	}
}

func ptr[T any](v T) *T { return &v }

// finish waits for the VM's end, and gives the job as the forge sees it, with
// its log.
func (s *site) finish(t *testing.T, v *vm) (forgetest.Job, string) {
	t.Helper()
	v.awaitPowerOff()
	log, err := s.hub.Log(s.job.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the job's log:\n%s", log)
	s.service.logPhases(t)
	return s.hub.Jobs(forgetest.JobFilter{Job: s.job.ID})[0], log
}

// probe tries everything plausible that holds the agent's token or the config
// drive; it prints LEAK for what it could read.
const probe = `
set +e
agent=$(pgrep -o gpuserver-guest) || echo "LEAK: no agent to try on"
for f in environ mem maps fd/0 root/etc/hosts; do head -c 1 "/proc/$agent/$f" >/dev/null 2>&1 && echo "LEAK /proc/agent/$f"; done
grep -qsa "$NEEDLE" /proc/[0-9]*/cmdline && echo "LEAK cmdline"
for d in /dev/sr0 /dev/vdb /dev/disk/by-label/config-2 /dev/kmsg /dev/mem; do head -c 1 "$d" >/dev/null 2>&1 && echo "LEAK $d"; done
grep -rsla "$NEEDLE" /run /etc /var /tmp /opt /home /root /usr/lib/gpuserver /sys/firmware 2>/dev/null | grep -v "$RUNNER_TEMP" | sed 's/^/LEAK /'
mount | grep -i iso9660 && echo "LEAK mount"
cat /var/lib/cloud/instance/user-data.txt 2>/dev/null && echo "LEAK user-data"
curl -s --max-time 2 --unix-socket /run/gpuserver/hook.sock http://agent/guest/v1/heartbeat -d '{}' | grep -v 404
curl -s --max-time 2 --unix-socket /run/gpuserver/hook.sock http://agent/ | grep -i -e token -e orders && echo "LEAK socket"
kill -STOP "$agent" 2>/dev/null && echo "LEAK signal"
echo 0 >/sys/fs/cgroup/gpuserver.slice/gpuserver-job.slice/memory.max 2>/dev/null && echo "LEAK cgroup"
id -u; [ "$(id -u)" != 0 ] && ls -l /run/gpuserver
echo probed`

// TestJobThatEatsMemory boots the real image: the job is set up as the payload
// says, finds no secret, and its last step allocates without end.
func TestJobThatEatsMemory(t *testing.T) {
	t.Parallel()
	image := demoImage(t)
	s := newSite(t, "boot-memory", []runnerclient.Step{
		{Name: "who", Run: `uname -a; id; echo "greeting: $SITE_GREETING"; echo "jit: ${ACTIONS_RUNNER_INPUT_JITCONFIG-gone}"; git --version; cat /sys/class/net/eth0/mtu; cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj; echo "at $HOME $USER"; df -m / | tail -1; cat /proc/self/cgroup; cat /etc/resolv.conf; ip route; grep SITE /etc/environment
cd /sys/fs/cgroup; echo "kept $(cat system.slice/memory.min) $(cat system.slice/gpuserver-agent.service/memory.min) alone $(cat gpuserver.slice/gpuserver-job.slice/memory.oom.group)"
echo "left $(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - $(cat gpuserver.slice/gpuserver-job.slice/memory.max) / 1048576))"`},
		{Name: "probe", Run: probe, Env: map[string]string{"NEEDLE": token[6:]}},
		{Name: "hog", Run: "head -c 8G /dev/zero | tail; echo survived"},
	})
	v := bootVM(t, image, s.payload, 512, staticNetwork)
	job, log := s.finish(t, v)
	if job.Conclusion != "failure" {
		t.Errorf("the job's conclusion is %q, expected failure", job.Conclusion)
	}
	for _, want := range []string{
		"Linux boot-memory 6.1", "(runner)", "greeting: hello from the payload", "jit: gone", "git version", "Z 1400", "Z 500", "Z -500", "at /home/runner runner",
		"a small one", "gpuserver-job.slice", "nameserver 10.0.2.3", "default via 10.0.2.2 dev eth0", "SITE_GREETING=", "probed", "kept 100663296 50331648 alone 0", "left 160", "##[error]Process completed with exit code 137.",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	for _, bad := range []string{"LEAK", "survived", "uid=0", token} {
		for line := range strings.Lines(log) {
			// The runner prints scripts before it runs them.
			if _, text, _ := strings.Cut(line, " "); strings.HasPrefix(text, bad) {
				t.Errorf("the log has %q", strings.TrimSpace(line))
			}
		}
	}
	last := s.service.last(t)
	if last.Verdict != guest.VerdictMemory || last.OOMKills == 0 || last.MemPeakMiB < 100 {
		t.Errorf("verdict %q with %d kills and a peak of %d MiB, expected memory", last.Verdict, last.OOMKills, last.MemPeakMiB)
	}
	if last.RunnerExit == nil || *last.RunnerExit != 0 || last.RunnerVersion == "" || !strings.Contains(last.Kernel, "boot-memory") {
		t.Errorf("the last report is %+v", last)
	}
	want := []string{"agent", "network", "runner", "job_started", "exited"}
	if diff := cmp.Diff(want, s.service.phases()); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	wantQ := []guest.JobStarted{{Repo: "octo-org/hello", RunID: s.job.RunID, RunAttempt: 1, Job: "build"}}
	if diff := cmp.Diff(wantQ, s.service.questions); diff != "" {
		t.Errorf("questions (-want +got):\n%s", diff)
	}
}

// TestJobThatFillsDisk also shows that the hook lets the run that the VM was
// made for pass while the server fails.
func TestJobThatFillsDisk(t *testing.T) {
	t.Parallel()
	image := demoImage(t)
	s := newSite(t, "boot-disk", []runnerclient.Step{{Name: "fill", Run: "cat /etc/resolv.conf; fallocate -l 1600M most; head -c 10G /dev/zero >big; echo survived"}})
	s.service.verdict = func(guest.JobStarted) (guest.Verdict, error) {
		return guest.Verdict{}, gpuserver.Errorf(gpuserver.KindUnavailable, "not now")
	}
	job, log := s.finish(t, bootVM(t, image, s.payload, 512, ""))
	if job.Conclusion != "failure" || !strings.Contains(log, "No space left on device") || !strings.Contains(log, "Z nameserver 10.0.2.3") {
		t.Errorf("conclusion %q, expected failure for want of space, and the name server of DHCP", job.Conclusion)
	}
	last := s.service.last(t)
	// The image's file system has 1 GiB: more shows that the agent grew it.
	if last.Verdict != guest.VerdictDisk || !last.DiskFull || last.DiskPeakMiB < 1500 {
		t.Errorf("verdict %q, full %v, peak %d MiB; expected a full disk of 2 GiB", last.Verdict, last.DiskFull, last.DiskPeakMiB)
	}
}

// TestRefusedJob: a refused job fails before its first step.
func TestRefusedJob(t *testing.T) {
	t.Parallel()
	image := demoImage(t)
	s := newSite(t, "boot-refused", []runnerclient.Step{{Name: "first", Run: "echo ran", Always: true}})
	s.service.verdict = func(guest.JobStarted) (guest.Verdict, error) {
		return guest.Verdict{Text: "policy line 3 says no"}, nil
	}
	job, log := s.finish(t, bootVM(t, image, s.payload, 512, staticNetwork))
	if job.Conclusion != "failure" || !strings.Contains(log, "policy line 3 says no") || strings.Contains(log, "Z ran") {
		t.Errorf("conclusion %q, expected failure with the reason before the first step", job.Conclusion)
	}
	if slices.Contains(s.service.phases(), guest.PhaseJobStarted) {
		t.Error("the phase job_started was reported for a refused job")
	}
}

// TestCommand runs a program instead of a runner: output kept apart, interrupt
// by order, its own exit status.
func TestCommand(t *testing.T) {
	t.Parallel()
	image := demoImage(t)
	s := &site{service: newService(token)}
	s.payload = s.agentPayload(t, "boot-command")
	s.payload.Command = &gpuserver.Command{
		Args: []string{"bash", "-c", `trap 'echo interrupted; exit 3' INT; echo "out $GREETING $(id -un) $(hostname)"; echo err >&2; seq 1 100000; while :; do sleep 0.2; done`},
		Env:  map[string]string{"GREETING": "hi"}, Timeout: time.Hour,
	}
	v := bootVM(t, image, s.payload, 512, staticNetwork)
	s.service.await(t, "output", func() bool { return strings.Contains(string(s.service.output["stdout"]), "\n100000\n") })
	s.service.mu.Lock()
	s.service.orders = guest.Orders{Interrupt: true, Reason: "cancelled"}
	s.service.mu.Unlock()
	v.awaitPowerOff()
	s.service.logPhases(t)
	stdout := string(s.service.output["stdout"])
	if !strings.HasPrefix(stdout, "out hi runner boot-command\n1\n2\n") || !strings.HasSuffix(stdout, "\n100000\ninterrupted\n") {
		t.Errorf("stdout starts %q and ends %q", stdout[:min(60, len(stdout))], stdout[max(0, len(stdout)-60):])
	}
	if got := string(s.service.output["stderr"]); got != "err\n" {
		t.Errorf("stderr is %q", got)
	}
	last := s.service.last(t)
	if last.RunnerExit == nil || *last.RunnerExit != 3 || last.Verdict != "" {
		t.Errorf("the last report is %+v, expected exit 3", last)
	}
}
