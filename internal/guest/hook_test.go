package guest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/guest"
)

// worker does with the job-started hook what the real runner's does: after it,
// whatever came of it, run the steps that run always, unless the runner was
// interrupted meanwhile. Then it interrupts the hook, too, and terminates it later.
func worker() error {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT)
	out, err := os.Create("hook")
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("bash", "-e", os.Getenv("ACTIONS_RUNNER_HOOK_JOB_STARTED"))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // waited for below
	var news <-chan time.Time
	for stopping := false; !stopping; {
		select {
		case <-interrupted:
			news = time.After(500 * time.Millisecond) // on its way from the listener to the worker
		case <-news:
			stopping = true
		case <-ended:
			return os.WriteFile("always-step", nil, 0o644)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	<-ended
	_, err = fmt.Fprintln(out, "", cmd.ProcessState.ExitCode())
	return err
}

func TestHookRefusal(t *testing.T) {
	const ask = `GITHUB_REPOSITORY=octo-org/hello GITHUB_RUN_ID=12 GITHUB_RUN_ATTEMPT=%d $ACTIONS_RUNNER_HOOK_JOB_STARTED >>hook; echo " $?" >>hook
`
	// The runner goes on with steps that run always unless it is interrupted.
	refused := func(t *testing.T, h *house, want string) {
		t.Helper()
		h.start(t)
		h.wait(t)
		if got := h.read(t, "opt/runner/hook"); !strings.HasPrefix(got, "::error title=gpuserver::") || !strings.Contains(got, want) || !strings.HasSuffix(got, "\n 1\n") {
			t.Errorf("the hook says %q, expected %q", got, want)
		}
		if _, err := os.Stat(filepath.Join(h.root, "opt/runner/always-step")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a step of the refused job ran (%v)", err)
		}
	}
	work := "export GITHUB_REPOSITORY=octo-org/hello GITHUB_RUN_ID=12 GITHUB_RUN_ATTEMPT=1; exec " + os.Args[0] + " worker"
	t.Run("by the server", func(t *testing.T) {
		h := newHouse(t, work)
		h.service.verdict = func(guest.JobStarted) (guest.Verdict, error) { return guest.Verdict{Text: "line 3 says no"}, nil }
		refused(t, h, "line 3 says no\n")
	})
	t.Run("by a token that died", func(t *testing.T) {
		h := newHouse(t, work)
		h.service.token = "another"
		refused(t, h, "refuses the question of this VM")
	})
	t.Run("of another than the running job", func(t *testing.T) {
		// The runner's job asks about another by itself, and is not harmed.
		h := newHouse(t, fmt.Sprintf(ask, 1)+"("+fmt.Sprintf(ask, 2)+") & until grep -q maybe hook; do sleep 0.1; done; sleep 0.3; echo lives >>hook")
		h.service.verdict = func(j guest.JobStarted) (guest.Verdict, error) {
			if j.RunAttempt == 1 {
				return guest.Verdict{Allowed: true}, nil
			}
			return guest.Verdict{Text: "maybe"}, nil
		}
		h.start(t)
		h.wait(t)
		if got := h.read(t, "opt/runner/hook"); !strings.HasSuffix(got, "lives\n") {
			t.Errorf("the hook says %q", got)
		}
	})
	t.Run("too many questions", func(t *testing.T) {
		h := newHouse(t, strings.Repeat(fmt.Sprintf(ask, 1), 12))
		h.start(t)
		h.wait(t)
		if got := h.read(t, "opt/runner/hook"); strings.Count(got, " 0\n") != 8 || !strings.HasSuffix(got, "asked too often\n 1\n") {
			t.Errorf("the hook says %q", got)
		}
	})
	t.Run("server away", func(t *testing.T) {
		t.Parallel() // waits for the agent's patience
		h := newHouse(t, fmt.Sprintf(ask, 1)+"("+fmt.Sprintf(ask, 2)+") & until grep -q made hook; do sleep 0.1; done")
		h.service.verdict = func(guest.JobStarted) (guest.Verdict, error) {
			return guest.Verdict{}, gpuserver.Errorf(gpuserver.KindUnavailable, "later")
		}
		h.start(t)
		h.wait(t)
		if got := h.read(t, "opt/runner/hook"); !strings.HasPrefix(got, " 0\n") || !strings.Contains(got, "made for run 12 (attempt 1)") {
			t.Errorf("the hook says %q", got)
		}
	})
}
