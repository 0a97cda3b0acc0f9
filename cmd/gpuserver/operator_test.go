package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/api/apitest"
)

// operated is a served API with a played fleet, and the program beside it.
type operated struct {
	fleet       *apitest.Fleet
	world       apitest.World
	url, socket string
}

func operate(t *testing.T, o api.Options) *operated {
	t.Helper()
	db := apitest.OpenStore(t)
	s := &operated{fleet: apitest.NewFleet(t, db), world: apitest.Seed(t, db)}
	o.DB, o.Actions, o.Version = db, s.fleet, "1.2.3"
	s.url, s.socket = apitest.Serve(t, o)
	t.Setenv(envServer, s.socket)
	t.Setenv(envToken, "")
	return s
}

func program(ctx context.Context, stdout, stderr io.Writer, args ...string) int {
	return (&Main{Args: args, Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr}).Run(ctx)
}

func gpuserverOK(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if status := program(t.Context(), &stdout, &stderr, args...); status != 0 {
		t.Fatalf("gpuserver %s: status %d: %s", strings.Join(args, " "), status, stderr.String())
	}
	return stdout.String()
}

// TestOperatorScripts runs testdata/operator/*.txt against a served API. A
// script's gpuserver is this process, so that nothing needs to be built.
func TestOperatorScripts(t *testing.T) {
	tokens := []api.Token{
		{Name: "view", Role: api.RoleViewer, Hash: api.HashToken("look")},
		{Name: "op", Role: api.RoleOperator, Hash: api.HashToken("act")},
	}
	for _, file := range globbed(t, "testdata/operator/*.txt") {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			s := operate(t, api.Options{Tokens: tokens})
			if name == "gpus" {
				apitest.SeedGPUs(t, s.fleet, s.world)
			}
			s.fleet.WriteConsole(s.world.Busy.ID, "Linux version 6.1\nlogin: \x1b[2J\n")
			testscript.Run(t, testscript.Params{
				Files: []string{file},
				Setup: func(e *testscript.Env) error {
					e.Setenv("URL", s.url)
					e.Setenv("SOCKET", s.socket)
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"gpuserver": scripted},
			})
			for _, call := range s.fleet.Calls() {
				t.Log(call)
			}
		})
	}
}

func globbed(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	return files
}

// scripted runs a script's gpuserver; "?N" first is the exit status expected.
func scripted(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("say the status that is expected: gpuserver ?1 …")
	}
	want := "?0"
	if len(args) > 0 && strings.HasPrefix(args[0], "?") {
		want, args = args[0], args[1:]
	}
	for _, name := range []string{envServer, envToken} {
		os.Setenv(name, ts.Getenv(name))
	}
	status := program(context.Background(), ts.Stdout(), ts.Stderr(), args...)
	if got := "?" + strconv.Itoa(status); got != want {
		ts.Fatalf("exit status %s, want %s", got[1:], want[1:])
	}
}

// lines is a writer that tells when a text was written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	want string
	seen chan struct{}
}

func awaitText(want string) *lines { return &lines{want: want, seen: make(chan struct{})} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := strings.Contains(l.text.String(), l.want)
	l.text.Write(p)
	if !before && strings.Contains(l.text.String(), l.want) {
		close(l.seen)
	}
	return len(p), nil
}

// play makes a command's VM that writes and ends as told.
func (s *operated) play(t *testing.T, status int) {
	s.fleet.OnRun = func(ctx context.Context, id gpuserver.JobID, _ api.RunRequest) {
		v, err := s.fleet.StartVM(ctx, id)
		if err != nil {
			t.Error(err)
			return
		}
		s.fleet.Write(id, "stdout", "to out\n")
		s.fleet.Write(id, "stderr", "to err\n")
		s.fleet.Write(id, "stdout", "more\n")
		if err := s.fleet.Exit(ctx, id, v, status); err != nil {
			t.Error(err)
		}
	}
}

func TestRunGivesTheCommandsOutputAndStatus(t *testing.T) {
	for _, status := range []int{0, 3, 137, 255} {
		s := operate(t, api.Options{})
		s.play(t, status)
		var stdout, stderr bytes.Buffer
		got := program(t.Context(), &stdout, &stderr, "run", "--env", "A=b=c", "--timeout", "90s", "--flavor", "f", "--", "sh", "-c", "exit")
		if got != status || stdout.String() != "to out\nmore\n" || stderr.String() != "to err\n" {
			t.Errorf("status %d (want %d), stdout %q, stderr %q", got, status, stdout.String(), stderr.String())
		}
	}
}

func TestRunEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		conclusion string
		status     int
		stderr     string
	}{
		"out of time":         {"timed_out", exitTimeout, "It ended: timed_out."},
		"cancelled elsewhere": {"cancelled", exitService, "It ended: cancelled."},
		"without a status":    {"failure", exitService, "It ended: failure."},
	} {
		t.Run(name, func(t *testing.T) {
			s := operate(t, api.Options{})
			s.fleet.OnRun = func(ctx context.Context, id gpuserver.JobID, _ api.RunRequest) {
				if err := s.fleet.End(ctx, id, tc.conclusion); err != nil {
					t.Error(err)
				}
			}
			var stdout, stderr bytes.Buffer
			if got := program(t.Context(), &stdout, &stderr, "run", "true"); got != tc.status || !strings.Contains(stderr.String(), tc.stderr) {
				t.Errorf("status %d, %q", got, stderr.String())
			}
		})
	}
}

func TestRunMistakes(t *testing.T) {
	s := operate(t, api.Options{})
	for name, args := range map[string][]string{
		"no command":     {"run"},
		"unknown flag":   {"run", "--flavour", "x", "true"},
		"bad time":       {"run", "--timeout", "-1s", "true"},
		"no such value":  {"run", "--env", "GPUSERVER_TEST_UNSET", "true"},
		"no name":        {"run", "--env", "=x", "true"},
		"no such server": {"run", "--server", s.socket + ".not", "true"},
		"bad server":     {"run", "--server", "ftp://x", "true"},
	} {
		var stdout, stderr bytes.Buffer
		if got := program(t.Context(), &stdout, &stderr, args...); got != exitService || !strings.HasPrefix(stderr.String(), "gpuserver: ") {
			t.Errorf("%s: status %d, %q", name, got, stderr.String())
		}
	}
	if calls := s.fleet.Calls(); len(calls) != 0 {
		t.Errorf("the fleet was asked: %q", calls)
	}
	s.fleet.Fail = gpuserver.Errorf(gpuserver.KindInvalid, "There is no flavor x.")
	var stdout, stderr bytes.Buffer
	if got := program(t.Context(), &stdout, &stderr, "run", "--flavor", "x", "true"); got != exitService || stderr.String() != "gpuserver: There is no flavor x.\n" {
		t.Errorf("status %d, %q", got, stderr.String())
	}
}

func TestInterruptCancelsTheCommand(t *testing.T) {
	s := operate(t, api.Options{})
	s.fleet.OnRun = func(ctx context.Context, id gpuserver.JobID, _ api.RunRequest) {
		if _, err := s.fleet.StartVM(ctx, id); err != nil {
			t.Error(err)
		}
		s.fleet.Write(id, "stdout", "started\n")
	}
	ctx, interrupt := context.WithCancel(t.Context())
	stdout, stderr := awaitText("started"), &bytes.Buffer{}
	status := make(chan int)
	go func() { status <- program(ctx, stdout, stderr, "run", "sleep", "1000") }()
	select {
	case <-stdout.seen:
	case got := <-status:
		t.Fatalf("ended with %d before: %s", got, stderr)
	}
	interrupt()
	if got := <-status; got != exitInterrupted {
		t.Errorf("status %d: %s", got, stderr)
	}
	if diff := cmp.Diff([]string{`run ["sleep" "1000"] by socket`, "cancel 6 by socket"}, s.fleet.Calls()); diff != "" {
		t.Error(diff)
	}
}

func TestRunWithoutAReaderIsCancelled(t *testing.T) {
	s := operate(t, api.Options{})
	s.fleet.OnRun = func(_ context.Context, id gpuserver.JobID, _ api.RunRequest) { s.fleet.Write(id, "stdout", "yes\n") }
	var stderr bytes.Buffer
	if got := program(t.Context(), brokenPipe{}, &stderr, "run", "yes"); got != exitPipe {
		t.Errorf("status %d: %s", got, stderr.String())
	}
	if calls := s.fleet.Calls(); len(calls) != 2 || calls[1] != "cancel 6 by socket" {
		t.Errorf("calls: %q", calls)
	}
}

func TestRunStartsATemporaryServer(t *testing.T) {
	s := operate(t, api.Options{})
	s.play(t, 7)
	t.Setenv(envServer, "")
	stopped := false
	old := startTemporary
	t.Cleanup(func() { startTemporary = old })
	startTemporary = func(context.Context, io.Writer) (*api.Client, func() error, error) {
		c, err := api.NewClient(s.socket, "")
		return c, func() error { stopped = true; c.Close(); return nil }, err
	}
	if _, err := os.Stat(defaultSocket); err == nil {
		t.Skip("a server runs on this machine")
	}
	var stdout, stderr bytes.Buffer
	if got := program(t.Context(), &stdout, &stderr, "run", "true"); got != 7 || !stopped {
		t.Errorf("status %d, stopped %v: %s", got, stopped, stderr.String())
	}
}

// TestRunOutlivesARestartOfTheServer: a server that is away for a while is
// waited for; what it refuses is not asked again.
func TestRunOutlivesARestartOfTheServer(t *testing.T) {
	calls := 0
	got, err := persist(t.Context(), &commandRun{}, func() (int, error) {
		if calls++; calls < 3 {
			return 0, gpuserver.Errorf(gpuserver.KindUnavailable, "away")
		}
		return 7, nil
	})
	if got != 7 || err != nil || calls != 3 {
		t.Errorf("%d, %v after %d calls", got, err, calls)
	}
	calls = 0
	_, err = persist(t.Context(), &commandRun{}, func() (int, error) {
		calls++
		return 0, gpuserver.Errorf(gpuserver.KindNotFound, "no")
	})
	if gpuserver.KindOf(err) != gpuserver.KindNotFound || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = persist(ctx, &commandRun{}, func() (int, error) { return 0, gpuserver.Errorf(gpuserver.KindUnavailable, "away") })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestCompletions(t *testing.T) {
	operate(t, api.Options{})
	for args, want := range map[string]string{
		"job show \x00":          "3\tqueued octo/hello test (3)\n",
		"vm console \x00":        "gs-2\tbusy on local/node1\n",
		"image release \x00":     "old\n",
		"cloud resume \x00":      "stack\n",
		"job list --state \x00q": "queued\n",
	} {
		words := append([]string{"__complete"}, strings.Split(strings.TrimSuffix(args, " "), " ")...)
		words[len(words)-1] = strings.TrimPrefix(words[len(words)-1], "\x00")
		if got := gpuserverOK(t, words...); !strings.Contains(got, want) {
			t.Errorf("%q: %q lacks %q", args, got, want)
		}
	}
}

func TestDurationsAreReadable(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1234567 * time.Microsecond: "1.235s", 83*time.Second + 4*time.Millisecond: "1m23s",
		3*time.Hour + 5*time.Minute + 7*time.Second: "3h5m", 72 * time.Hour: "3 days",
	} {
		if got := duration(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}

func TestTerminalsAreSafe(t *testing.T) {
	if got := printable("a\x1b[31mb\nc\u202ed\u009b"); got != "a?[31mb?c?d?" {
		t.Errorf("%q", got)
	}
	var b bytes.Buffer
	if _, err := (&harmless{&b}).Write([]byte("ü\x1b]0;x\x07\tz\r\n")); err != nil || b.String() != "ü?]0;x?\tz\r\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

// The shell completes what the running server has, and no file names.
func TestRunCompletesFlagValues(t *testing.T) {
	operate(t, api.Options{})
	for flag, want := range map[string]string{
		"--flavor":  "small\t2 vCPU, 2.0 GiB\n:4\n",
		"--image":   "demo\n:4\n",
		"--timeout": ":4\n",
	} {
		var stdout, stderr bytes.Buffer
		if got := program(t.Context(), &stdout, &stderr, "__complete", "run", flag, ""); got != 0 || stdout.String() != want {
			t.Errorf("%s: status %d, %q, want %q", flag, got, stdout.String(), want)
		}
	}
}
