package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/guest"
)

// TestMain lets the test program be the agent's own, which the hook script calls,
// and the worker of a runner.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "hook":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		code := guest.HookMain(ctx, os.Getenv("HOOK_SOCKET"), os.Stdout)
		stop()
		os.Exit(code)
	case len(os.Args) == 2 && os.Args[1] == "worker":
		if err := worker(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// house is a guest's file system in a folder, with a runner that is a script.
type house struct {
	root    string
	service *service
	payload guest.Payload
	door    *door
	options guest.Options
	done    chan error
	stop    context.CancelFunc // asks the agent to stop
}

// door lets a test close the way to the server.
type door struct {
	closed atomic.Bool
	next   http.Handler
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.closed.Load() {
		panic(http.ErrAbortHandler) // cuts the connection
	}
	d.next.ServeHTTP(w, r)
}

// newHouse makes a guest whose runner is script.
func newHouse(t *testing.T, script string) *house {
	t.Helper()
	// A socket's path has at most 107 bytes, and a test's folder may be longer.
	root, err := os.MkdirTemp("", "guest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	h := &house{root: root, service: newService(token), done: make(chan error, 1)}
	for name, content := range map[string]string{
		"etc/hosts": "127.0.0.1 localhost\n", "etc/environment": "OLD=1", "opt/runner/.setup_info": `[{"group":"Image","detail":"i"}]`,
		"opt/runner/bin/Runner.Listener": "#!/bin/bash\n[ \"$1\" = --version ] && { echo 9.9; exit; }\n" + script,
	} {
		h.write(t, name, content)
	}
	h.door = &door{next: guest.Handler(h.service, slog.New(slog.DiscardHandler))}
	h.payload = guest.Payload{
		VM: "gs-1", Server: fmt.Sprintf("http://127.0.0.1:%d", serveLocal(t, h.door)), Token: token, JITConfig: "aml0",
		Repo: "octo-org/hello", RunID: 12, RunAttempt: 1, BeatEvery: 50 * time.Millisecond, Grace: time.Minute,
		Env:       map[string]string{"GREETING": "hi there", "HOOK_SOCKET": filepath.Join(root, guest.HookSocket)},
		SetupInfo: []gpuserver.SetupInfo{{Group: "Flavor", Detail: "small"}},
	}
	return h
}

// write makes a file of the house.
func (h *house) write(t *testing.T, name, content string) {
	t.Helper()
	path := filepath.Join(h.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// start runs the agent in the house until the test's end.
func (h *house) start(t *testing.T) {
	t.Helper()
	data, err := guest.UserData(h.payload)
	if err != nil {
		t.Fatal(err)
	}
	drive := filepath.Join(h.root, "drive/openstack/latest")
	if err := os.MkdirAll(drive, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(drive, "user_data"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	o := h.options
	o.Root, o.ConfigDrive, o.Unprivileged = h.root, filepath.Join(h.root, "drive"), true
	o.SampleEvery, o.HookPatience = 20*time.Millisecond, 3*time.Second
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		h.done <- guest.Run(ctx, o)
	}()
	t.Cleanup(func() { cancel(); <-finished })
}

// order makes the server give an order with its next answers.
func (h *house) order(o guest.Orders) {
	h.service.mu.Lock()
	defer h.service.mu.Unlock()
	h.service.orders = o
}

// awaitFile waits until the runner has made a file.
func (h *house) awaitFile(t *testing.T, name string) {
	t.Helper()
	for limit := time.Now().Add(vmLimit); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(h.root, name)); err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s did not come", name)
		}
	}
}

func (h *house) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-h.done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(vmLimit):
		t.Fatal("the agent did not end")
	}
}

func (h *house) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAgentSetsUpAndRunsTheRunner(t *testing.T) {
	h := newHouse(t, `env >env; echo "$@" >args; tr '\0' '\n' </proc/$$/cmdline >cmdline
GITHUB_REPOSITORY=octo-org/hello GITHUB_RUN_ID=12 GITHUB_RUN_ATTEMPT=1 GITHUB_JOB=build $ACTIONS_RUNNER_HOOK_JOB_STARTED >hook; echo $? >>hook
exit 0`)
	h.start(t)
	h.wait(t)
	if diff := cmp.Diff([]string{"agent", "network", "runner", "job_started", "exited"}, h.service.phases()); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	env := h.read(t, "opt/runner/env")
	for _, want := range []string{"ACTIONS_RUNNER_INPUT_JITCONFIG=aml0\n", "GREETING=hi there\n", "ACTIONS_RUNNER_HOOK_JOB_STARTED=" + h.root + "/run/gpuserver/job-started.sh\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("the runner's environment lacks %q:\n%s", want, env)
		}
	}
	if strings.Contains(env+h.read(t, "opt/runner/cmdline"), token) || strings.Contains(h.read(t, "opt/runner/cmdline"), "aml0") {
		t.Error("a secret is where it does not belong")
	}
	for name, want := range map[string]string{
		"opt/runner/args": "run\n", "opt/runner/hook": "0\n", "etc/hostname": "gs-1\n",
		"etc/hosts":              "127.0.0.1 localhost\n127.0.1.1 gs-1\n",
		"etc/environment":        "OLD=1\nGREETING=\"hi there\"\nHOOK_SOCKET=\"" + h.root + guest.HookSocket + "\"\n",
		"opt/runner/.setup_info": `[{"group":"Image","detail":"i"},{"group":"Flavor","detail":"small"}]`,
	} {
		if diff := cmp.Diff(want, h.read(t, name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	last := h.service.last(t)
	if last.RunnerExit == nil || *last.RunnerExit != 0 || last.Verdict != "" || last.AgentVersion != guest.AgentVersion {
		t.Errorf("the last report is %+v", last)
	}
	h.noSecretLeft(t)
}

func TestContainersShareTheSlice(t *testing.T) {
	for name, c := range map[string]struct {
		daemon       bool
		before, want string
	}{
		"no Docker":   {},
		"no settings": {daemon: true, want: `{"cgroup-parent":"gpuserver-job.slice"}`},
		"others":      {daemon: true, before: `{"mtu":1400}`, want: `{"cgroup-parent":"gpuserver-job.slice","mtu":1400}`},
		"cgroupfs": {
			daemon: true, before: `{"exec-opts":["native.cgroupdriver=cgroupfs"]}`,
			want: `{"cgroup-parent":"/gpuserver.slice/gpuserver-job.slice","exec-opts":["native.cgroupdriver=cgroupfs"]}`,
		},
		"its own": {daemon: true, before: `{"cgroup-parent":"x.slice"}`, want: `{"cgroup-parent":"x.slice"}`},
		"damaged": {daemon: true, before: `{`, want: `{`},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, "exit 0")
			if c.daemon {
				h.write(t, "usr/bin/dockerd", "")
			}
			if c.before != "" {
				h.write(t, "etc/docker/daemon.json", c.before)
			}
			h.start(t)
			h.wait(t)
			b, err := os.ReadFile(filepath.Join(h.root, "etc/docker/daemon.json"))
			if c.want == "" {
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%q (%v), expected no file", b, err)
				}
				return
			}
			var got bytes.Buffer
			if json.Compact(&got, b) != nil {
				got.Write(b)
			}
			if got := strings.ReplaceAll(got.String(), "\n", ""); !strings.HasSuffix(got, c.want) {
				t.Errorf("%s, expected %s", got, c.want)
			}
		})
	}
}

// noSecretLeft looks for the agent's token and the runner's secret in all files
// but the drive's own, which a real VM takes away.
func (h *house) noSecretLeft(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(h.root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(path, filepath.Join(h.root, "drive")) {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), token) {
			t.Errorf("%s holds the token", path)
		}
		if strings.Contains(string(b), "aml0") && path != filepath.Join(h.root, "opt/runner/env") { // which the test's runner wrote
			t.Errorf("%s holds the JIT configuration", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAgentStartsTheRunnerAgain(t *testing.T) {
	h := newHouse(t, `echo x >>runs; touch update.finished; [ $(wc -l <runs) = 1 ] && exit 3; exit 7`)
	h.start(t)
	h.wait(t)
	if got := h.read(t, "opt/runner/runs"); got != "x\nx\n" {
		t.Errorf("runs %q, expected two", got)
	}
	if last := h.service.last(t); *last.RunnerExit != 7 {
		t.Errorf("exit %d, expected 7", *last.RunnerExit)
	}
}

// TestAgentLetsTheRunnerUpdate: the script that puts the new version in place
// waits for the old one's end, so it has to outlive it.
func TestAgentLetsTheRunnerUpdate(t *testing.T) {
	h := newHouse(t, `[ -e began ] && { cat version >ran; exit 7; }
touch began
(while [ -e /proc/$$ ]; do sleep 0.05; done; echo new >version; touch update.finished) &
exit 4`)
	h.start(t)
	h.wait(t)
	if got := h.read(t, "opt/runner/ran"); got != "new\n" {
		t.Errorf("version %q runs after the update, expected the new one", got)
	}
}

func TestAgentInterruptsByOrder(t *testing.T) {
	h := newHouse(t, `trap 'echo interrupted >sig; exit 5' INT; touch ready; sleep 1000 & wait`)
	h.start(t)
	h.awaitFile(t, "opt/runner/ready")
	h.order(guest.Orders{Interrupt: true, Reason: "limit"})
	h.wait(t)
	if last := h.service.last(t); last.RunnerExit == nil || *last.RunnerExit != 5 || h.read(t, "opt/runner/sig") != "interrupted\n" {
		t.Errorf("the last report is %+v, expected exit 5", last)
	}
}

func TestAgentKillsAfterGrace(t *testing.T) {
	h := newHouse(t, `trap '' INT; touch ready; sleep 1000 & while :; do wait; done`)
	h.payload.Grace = 50 * time.Millisecond
	h.start(t)
	h.awaitFile(t, "opt/runner/ready")
	h.order(guest.Orders{Interrupt: true})
	h.wait(t)
	if last := h.service.last(t); *last.RunnerExit != 128+9 {
		t.Errorf("exit %d, expected 137", *last.RunnerExit)
	}
}

// TestAgentReportsLate: phases reached while the server was away are told in
// order, with how long ago they were.
func TestAgentReportsLate(t *testing.T) {
	h := newHouse(t, `touch started; until [ -e go ]; do sleep 0.05; done`)
	h.door.closed.Store(true)
	h.start(t)
	h.awaitFile(t, "opt/runner/started")
	h.door.closed.Store(false)
	h.service.await(t, "the phases", func() bool {
		n := len(h.service.beats)
		return n > 0 && h.service.beats[n-1].Phase == guest.PhaseRunner
	})
	if err := os.WriteFile(filepath.Join(h.root, "opt/runner/go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.wait(t)
	if diff := cmp.Diff([]string{"agent", "network", "runner", "exited"}, h.service.phases()); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	if first := h.service.beats[0]; first.AgoSeconds <= 0 {
		t.Errorf("the first report says %v s ago", first.AgoSeconds)
	}
}

func TestCommandMode(t *testing.T) {
	for name, c := range map[string]struct {
		command        gpuserver.Command
		stdout, stderr string
		exit           int
		verdict        string
	}{
		"both streams": {command: gpuserver.Command{Args: []string{"sh", "-c", "echo $A; echo e >&2; exit 4"}, Env: map[string]string{"A": "a"}}, stdout: "a\n", stderr: "e\n", exit: 4},
		"signal":       {command: gpuserver.Command{Args: []string{"sh", "-c", "kill -TERM $$"}}, exit: 143},
		"time-out":     {command: gpuserver.Command{Args: []string{"sleep", "1000"}, Timeout: 100 * time.Millisecond}, exit: 130, verdict: "timeout"},
		"large":        {command: gpuserver.Command{Args: []string{"sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"}}, stdout: strings.Repeat("x", 300_000)},
		"left behind":  {command: gpuserver.Command{Args: []string{"sh", "-c", "sleep 1000 & echo out"}}, stdout: "out\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, "")
			h.payload.JITConfig, h.payload.Command = "", &c.command
			h.start(t)
			h.wait(t)
			last := h.service.last(t)
			if last.RunnerExit == nil || *last.RunnerExit != c.exit || last.Verdict != c.verdict {
				t.Errorf("the last report is %+v, expected exit %d, verdict %q", last, c.exit, c.verdict)
			}
			if got := string(h.service.output["stdout"]); got != c.stdout {
				t.Errorf("stdout has %d bytes, expected %d", len(got), len(c.stdout))
			}
			if got := string(h.service.output["stderr"]); got != c.stderr {
				t.Errorf("stderr is %q, expected %q", got, c.stderr)
			}
		})
	}
}

// TestOutputHeldOpen: a process that is out of reach and keeps the command's
// output open does not keep the VM.
func TestOutputHeldOpen(t *testing.T) {
	h := newHouse(t, "")
	h.payload.JITConfig, h.payload.Command = "", &gpuserver.Command{
		Args: []string{"sh", "-c", "cd " + h.root + "; setsid sh -c 'echo $$ >held; exec sleep 1000' & until [ -s held ]; do sleep 0.05; done; exit 5"},
	}
	h.options.OutputPatience = 200 * time.Millisecond
	t.Cleanup(func() {
		if pid, err := strconv.Atoi(strings.TrimSpace(h.read(t, "held"))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	h.start(t)
	h.wait(t)
	if last := h.service.last(t); last.RunnerExit == nil || *last.RunnerExit != 5 {
		t.Errorf("the last report is %+v, expected exit 5", last)
	}
}

// TestOutputThroughCuts: pieces whose answer was lost are sent again, and none
// is there twice.
func TestOutputThroughCuts(t *testing.T) {
	h := newHouse(t, "")
	h.payload.JITConfig, h.payload.Command = "", &gpuserver.Command{Args: []string{"seq", "1", "50000"}}
	u, err := url.Parse(h.payload.Server)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.ModifyResponse = func(*http.Response) error {
		if n.Add(1)%3 == 0 {
			return io.ErrUnexpectedEOF // the server has it, the agent hears 502
		}
		return nil
	}
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	h.payload.Server = fmt.Sprintf("http://127.0.0.1:%d", serveLocal(t, proxy))
	h.start(t)
	h.wait(t)
	lines := strings.Split(strings.TrimSpace(string(h.service.output["stdout"])), "\n")
	if len(lines) != 50000 || lines[49999] != "50000" {
		t.Errorf("%d lines, expected 50000", len(lines))
	}
}

func TestAgentWithoutDrive(t *testing.T) {
	err := guest.Run(t.Context(), guest.Options{Root: t.TempDir(), ConfigDrive: t.TempDir(), Unprivileged: true, Log: slog.New(slog.DiscardHandler)})
	if gpuserver.KindOf(err) != gpuserver.KindGuest {
		t.Errorf("%v, expected an error of the guest", err)
	}
}
