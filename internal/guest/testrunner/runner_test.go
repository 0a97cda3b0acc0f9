package testrunner

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/forge"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/forgetest/runnerclient"
	"gpuserver/internal/forge/github"
)

const limit = 2 * time.Minute // a net, not a measure

// TestMain lets the test program be the runner itself.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TESTRUNNER_DIR"); dir != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
		code := Main(ctx, os.Args[1:], Options{Dir: dir, Stdout: os.Stdout})
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// bench is a stand-in for GitHub with one job, and a runner's folder.
type bench struct {
	hub *forgetest.Server
	job forgetest.Job
	jit string
	dir string
	env []string
}

func newBench(t *testing.T, job forgetest.JobSpec) *bench {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	hub := forgetest.New(forgetest.Config{})
	web := httptest.NewServer(hub)
	t.Cleanup(func() { web.CloseClientConnections(); web.Close(); _ = hub.Close() })
	_, err := hub.AddOrg(forgetest.Org{Login: "octo-org"})
	must(err)
	repo, err := hub.AddRepo(forgetest.Repository{Name: "octo-org/hello"})
	must(err)
	job.Name, job.Key, job.Labels = "Build it", "build", []string{"gpu"}
	run, err := hub.Dispatch(forgetest.RunSpec{Repo: repo.Name, Jobs: []forgetest.JobSpec{job}})
	must(err)
	app := hub.App()
	f, err := github.New(t.Context(), github.Config{Name: "hub", BaseURL: web.URL + "/api/v3", AppID: fmt.Sprint(app.ID), PrivateKey: []byte(app.PrivateKeyPEM)})
	must(err)
	t.Cleanup(func() { _ = f.Close() })
	reg, err := f.RegisterRunner(t.Context(), forge.RunnerSpec{
		Scope: forge.Scope{Repo: forge.Repo{Name: repo.Name, InstallationID: repo.InstallationID}}, Name: "r1", Labels: []string{"gpu"},
	})
	must(err)
	b := &bench{hub: hub, job: hub.Jobs(forgetest.JobFilter{Run: run.ID})[0], jit: reg.JITConfig, dir: t.TempDir()}
	b.env = []string{"PATH=" + os.Getenv("PATH"), "TESTRUNNER_DIR=" + b.dir, JITVariable + "=" + b.jit}
	return b
}

func (b *bench) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts the runner; end waits for it, and gives status and output.
func (b *bench) start(t *testing.T, args ...string) (cmd *exec.Cmd, end func() (int, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = b.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, func() (int, string) {
		_ = cmd.Wait() // the status tells
		if ctx.Err() != nil {
			t.Errorf("the runner did not end: %s", out.String())
		}
		return cmd.ProcessState.ExitCode(), out.String()
	}
}

// result gives the job as the forge has it, and its log without times.
func (b *bench) result(t *testing.T) (forgetest.Job, string) {
	t.Helper()
	log, err := b.hub.Log(b.job.ID)
	if err != nil {
		t.Fatal(err)
	}
	var plain strings.Builder
	for line := range strings.Lines(log) {
		at, text, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
			t.Errorf("a line without its time: %q", line)
		}
		plain.WriteString(text)
	}
	return b.hub.Jobs(forgetest.JobFilter{Job: b.job.ID})[0], plain.String()
}

func conclusions(j forgetest.Job) []string {
	var all []string
	for _, s := range j.Steps {
		all = append(all, s.Name+": "+s.Conclusion)
	}
	return all
}

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestJobSucceeds(t *testing.T) {
	b := newBench(t, forgetest.JobSpec{Env: map[string]string{"FROM_JOB": "j"}, Steps: []runnerclient.Step{
		{Name: "env", Run: `echo "$GITHUB_REPOSITORY $GITHUB_RUN_ATTEMPT $GITHUB_JOB $RUNNER_NAME $CI $FROM_DOTENV $FROM_JOB $FROM_STEP"
pwd; cat /proc/self/oom_score_adj; echo "jit:${` + JITVariable + `-gone}"; echo "LATER=later" >>$GITHUB_ENV; echo /first/in/path >>$GITHUB_PATH; echo err >&2`, Env: map[string]string{"FROM_STEP": "s"}},
		{Name: "later", Run: `echo "$LATER ${PATH%%:*}"; printf 'no newline'`},
	}})
	b.file(t, ".env", "FROM_DOTENV=d\n")
	b.file(t, ".setup_info", `[{"group":"Operating System","detail":"Debian\n12"}]`)
	_, end := b.start(t, "run")
	if code, out := end(); code != ExitSuccess || !strings.Contains(out, "Listening for Jobs") || !strings.Contains(out, "completed with result: success") {
		t.Errorf("status %d: %s", code, out)
	}
	job, log := b.result(t)
	want := []string{"Set up job: success", "env: success", "later: success", "Complete job: success"}
	if diff := cmp.Diff(want, conclusions(job)); job.Conclusion != "success" || diff != "" {
		t.Errorf("%s (-want +got):\n%s", job.Conclusion, diff)
	}
	contains(t, log, "##[group]Operating System\nDebian\n12\n##[endgroup]\n", "octo-org/hello 1 build r1 true d j s\n",
		filepath.Join(b.dir, "_work/hello/hello")+"\n", "\n500\n", "jit:gone\n", "\nerr\n", "\nlater /first/in/path\n", "no newline\n")
	if strings.Contains(log, b.jit) {
		t.Error("the log has the JIT configuration")
	}
}

func TestJobFails(t *testing.T) {
	b := newBench(t, forgetest.JobSpec{Steps: []runnerclient.Step{
		{Name: "bad", Run: "false\necho unreached"}, {Name: "skipped", Run: "echo no"}, {Name: "always", Run: "echo yes-$((40+2))", Always: true},
	}})
	// By argument instead of the environment.
	b.env = b.env[:2]
	_, end := b.start(t, "run", "--jitconfig", b.jit)
	if code, out := end(); code != ExitSuccess {
		t.Errorf("status %d, expected 0 after a job whatever its result: %s", code, out)
	}
	job, log := b.result(t)
	want := []string{"Set up job: success", "bad: failure", "skipped: skipped", "always: success", "Complete job: success"}
	if diff := cmp.Diff(want, conclusions(job)); job.Conclusion != "failure" || diff != "" {
		t.Errorf("%s (-want +got):\n%s", job.Conclusion, diff)
	}
	contains(t, log, "##[error]Process completed with exit code 1.\n", "\nyes-42\n")
}

// TestKilledStep: a step that the kernel kills is a failed step of a job that
// is reported.
func TestKilledStep(t *testing.T) {
	b := newBench(t, forgetest.JobSpec{Steps: []runnerclient.Step{{Name: "oom", Run: "kill -KILL $$"}}})
	_, end := b.start(t, "run")
	if code, out := end(); code != ExitSuccess {
		t.Errorf("status %d: %s", code, out)
	}
	job, log := b.result(t)
	contains(t, log, "##[error]Process completed with exit code 137.\n")
	if job.Conclusion != "failure" {
		t.Errorf("conclusion %q", job.Conclusion)
	}
}

func TestHooks(t *testing.T) {
	for name, c := range map[string]struct {
		started, conclusion string
		ran                 bool
	}{
		"passes": {"echo hook of $GITHUB_RUN_ID", "success", true},
		"fails":  {"echo because; exit 1", "failure", false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, forgetest.JobSpec{Steps: []runnerclient.Step{{Run: "echo step-$((1+1))"}, {Run: "echo always-$((1+1))", Always: true}}})
			b.env = append(b.env, hookStarted+"="+b.file(t, "started.sh", c.started), hookCompleted+"="+b.file(t, "completed.sh", "echo completed-$((2+2))"))
			_, end := b.start(t, "run")
			if code, out := end(); code != ExitSuccess {
				t.Errorf("status %d: %s", code, out)
			}
			job, log := b.result(t)
			if job.Conclusion != c.conclusion || strings.Contains(log, "step-2") != c.ran {
				t.Errorf("conclusion %q, expected %q; log:\n%s", job.Conclusion, c.conclusion, log)
			}
			contains(t, log, "always-2\n", "completed-4\n") // as the real runner does
		})
	}
}

// TestInterruptWhileTheHookRuns: then no step runs at all, which is how a refused
// job is ended.
func TestInterruptWhileTheHookRuns(t *testing.T) {
	b := newBench(t, forgetest.JobSpec{Steps: []runnerclient.Step{{Name: "step", Run: "echo step-$((1+1))", Always: true}}})
	b.env = append(b.env, hookStarted+"="+b.file(t, "started.sh", "trap 'exit 1' INT; echo asking-$((1+1)); while :; do sleep 0.1; done"))
	cmd, end := b.start(t, "run")
	b.awaitLog(t, "asking-2")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code, out := end(); code != ExitSuccess {
		t.Errorf("status %d: %s", code, out)
	}
	job, _ := b.result(t)
	want := []string{"Set up job: success", "Set up runner: cancelled", "step: skipped", "Complete job: success"}
	if diff := cmp.Diff(want, conclusions(job)); job.Conclusion != "failure" || diff != "" {
		t.Errorf("%s (-want +got):\n%s", job.Conclusion, diff)
	}
}

func TestInterruptFailsTheJob(t *testing.T) {
	b := newBench(t, forgetest.JobSpec{Steps: []runnerclient.Step{
		{Name: "long", Run: "trap 'echo caught; exit 1' INT; echo waiting-$((1+1)); while :; do sleep 0.1; done"}, {Name: "after", Run: "echo never"},
	}})
	cmd, end := b.start(t, "run")
	b.awaitLog(t, "waiting-2")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code, out := end(); code != ExitSuccess {
		t.Errorf("status %d: %s", code, out)
	}
	b.brokenOff(t, "failure")
}

func TestForgeCancelsTheJob(t *testing.T) {
	b := newBench(t, forgetest.JobSpec{Steps: []runnerclient.Step{
		{Name: "long", Run: "trap 'echo caught; exit 1' INT; echo waiting-$((1+1)); while :; do sleep 0.1; done"}, {Name: "after", Run: "echo never"},
	}})
	_, end := b.start(t, "run")
	b.awaitLog(t, "waiting-2")
	if err := b.hub.CancelJob(b.job.ID); err != nil {
		t.Fatal(err)
	}
	if code, out := end(); code != ExitSuccess {
		t.Errorf("status %d: %s", code, out)
	}
	b.brokenOff(t, "cancelled")
}

func (b *bench) brokenOff(t *testing.T, conclusion string) {
	t.Helper()
	job, log := b.result(t)
	want := []string{"Set up job: success", "long: cancelled", "after: skipped", "Complete job: success"}
	if diff := cmp.Diff(want, conclusions(job)); job.Conclusion != conclusion || diff != "" {
		t.Errorf("%s (-want +got):\n%s", job.Conclusion, diff)
	}
	contains(t, log, "caught\n", "##[error]The operation was canceled.\n")
}

// awaitLog waits for a line of the live log.
func (b *bench) awaitLog(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		log, err := b.hub.Log(b.job.ID)
		if err == nil && strings.Contains(log, " "+text+"\n") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the live log lacks %q: %s (%v)", text, log, err)
		}
	}
}

func TestTimeouts(t *testing.T) {
	b := newBench(t, forgetest.JobSpec{Steps: []runnerclient.Step{
		{Name: "slow", Run: "sleep 1000", Timeout: 0.2}, {Name: "after", Run: "echo after-$((1+1))", Always: true},
	}})
	_, end := b.start(t, "run")
	end()
	job, log := b.result(t)
	contains(t, log, "##[error]The action has timed out", "after-2\n")
	if job.Conclusion != "failure" {
		t.Errorf("conclusion %q", job.Conclusion)
	}
}

func TestExitCodes(t *testing.T) {
	t.Run("version", func(t *testing.T) {
		b := newBench(t, forgetest.JobSpec{})
		_, end := b.start(t, "--version")
		if code, out := end(); code != 0 || out != Version+"\n" {
			t.Errorf("status %d: %s", code, out)
		}
	})
	t.Run("registration gone", func(t *testing.T) {
		b := newBench(t, forgetest.JobSpec{})
		_, end := b.start(t, "run")
		end() // its one job
		_, end = b.start(t, "run")
		if code, out := end(); code != ExitTerminated {
			t.Errorf("status %d: %s", code, out)
		}
	})
	t.Run("no configuration", func(t *testing.T) {
		b := newBench(t, forgetest.JobSpec{})
		b.env = b.env[:2]
		_, end := b.start(t, "run")
		if code, out := end(); code != ExitTerminated {
			t.Errorf("status %d: %s", code, out)
		}
	})
	t.Run("bad configuration", func(t *testing.T) {
		b := newBench(t, forgetest.JobSpec{})
		_, end := b.start(t, "run", "--jitconfig", "bm8=")
		if code, out := end(); code != ExitTerminated || strings.Contains(out, "bm8=") {
			t.Errorf("status %d: %s", code, out)
		}
	})
	t.Run("interrupted while idle", func(t *testing.T) {
		b := newBench(t, forgetest.JobSpec{Hold: true})
		cmd, end := b.start(t, "run")
		for stop := time.Now().Add(limit); !b.hub.Runners()[0].Online; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(stop) {
				t.Fatal("the runner never came online")
			}
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if code, out := end(); code != ExitSuccess || !strings.Contains(out, "Exiting...") {
			t.Errorf("status %d: %s", code, out)
		}
	})
}

func TestLiveLogBreaksLongLines(t *testing.T) {
	l := newLiveLog()
	fmt.Fprint(l, strings.Repeat("x", 3*maxLine))
	fmt.Fprint(l, "y\nz")
	lines := strings.Split(strings.TrimSpace(string(l.take(true))), "\n")
	total := 0
	for _, line := range lines {
		_, text, _ := strings.Cut(line, " ")
		if len(text) > maxLine {
			t.Errorf("a line of %d bytes", len(text))
		}
		total += len(text)
	}
	if total != 3*maxLine+2 {
		t.Errorf("%d bytes of %d", total, 3*maxLine+2)
	}
}
