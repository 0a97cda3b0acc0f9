// Package testrunner is a runner for tests and demo that keeps what a VM relies
// on of the real runner's contract, and takes its jobs from forgetest: the
// just-in-time configuration by environment, .env, .setup_info, hooks, shell
// steps with a live log, oom_score_adj of steps, interrupt and exit codes.
package testrunner

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gpuserver/internal/forge/forgetest/runnerclient"
)

// Version is what the runner says of itself.
const Version = "2.999.0-test"

// JITVariable is how a runner takes its configuration without a command line.
const JITVariable = "ACTIONS_RUNNER_INPUT_JITCONFIG"

// Exit codes. Source: actions/runner, Constants.Runner.ReturnCode.
const (
	ExitSuccess         = 0 // had its job, whatever came of it, or was interrupted
	ExitTerminated      = 1 // cannot go on: no or bad configuration, registration gone
	ExitRetryable       = 2 // start it again
	ExitSessionConflict = 5 // another runner has this registration's session
)

// reportPatience is how long a job's end is told to a server that is away.
const reportPatience = 5 * time.Minute

// Options are where a runner lives.
type Options struct {
	Dir    string    // the runner's folder, with .env and .setup_info
	Stdout io.Writer // what the listener says
}

// Main is the program: "run [--jitconfig CONFIG]", or "--version". ctx ends by
// an interrupt: the job is cancelled and reported then.
func Main(ctx context.Context, args []string, o Options) int {
	jit := os.Getenv(JITVariable)
	_ = os.Unsetenv(JITVariable) // the job's processes do not inherit it
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "--version":
			fmt.Fprintln(o.Stdout, Version)
			return ExitSuccess
		case args[i] == "--jitconfig" && i+1 < len(args):
			i++
			jit = args[i]
		case args[i] == "run":
		default:
			fmt.Fprintf(o.Stdout, "Unrecognized command-line input argument: %q\n", args[i])
			return ExitTerminated
		}
	}
	if jit == "" {
		fmt.Fprintln(o.Stdout, "Not configured: give --jitconfig or "+JITVariable)
		return ExitTerminated
	}
	r := &runner{Options: o}
	return r.run(ctx, jit)
}

// runner is one run of the listener.
type runner struct {
	Options
	client *runnerclient.Client
}

func (r *runner) run(ctx context.Context, jit string) int {
	client, err := runnerclient.Parse(jit)
	if err != nil {
		fmt.Fprintln(r.Stdout, "An error occurred:", err)
		return ExitTerminated
	}
	defer client.Close()
	r.client = client
	if err := r.loadEnv(); err != nil {
		fmt.Fprintln(r.Stdout, "An error occurred:", err)
		return ExitTerminated
	}
	if code, ok := r.connect(ctx); !ok {
		return code
	}
	fmt.Fprintf(r.Stdout, "√ Connected to GitHub\n\nCurrent runner version: '%s'\n%s: Listening for Jobs\n", Version, stamp())
	return r.serve(ctx)
}

// loadEnv takes over the variables of .env, and .path as the search path.
func (r *runner) loadEnv() error {
	env, err := readEnvFile(filepath.Join(r.Dir, ".env"))
	if err != nil {
		return err
	}
	if path, err := os.ReadFile(filepath.Join(r.Dir, ".path")); err == nil {
		env["PATH"] = strings.TrimSpace(string(path))
	}
	for name, value := range env {
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf(".env: %s: %w", name, err)
		}
	}
	return nil
}

// connect opens the session, again and again while nobody answers: a guest's
// network comes up beside it.
func (r *runner) connect(ctx context.Context) (code int, ok bool) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := r.client.Online(ctx)
		status, answered := errors.AsType[*runnerclient.StatusError](err)
		switch {
		case err == nil:
			return 0, true
		case ctx.Err() != nil:
			return ExitSuccess, false
		case errors.Is(err, runnerclient.ErrGone):
			fmt.Fprintln(r.Stdout, "The runner registration has been deleted from the server.")
			return ExitTerminated, false
		case answered && status.Status == 409:
			fmt.Fprintln(r.Stdout, "A session for this runner already exists.")
			return ExitSessionConflict, false
		}
		fmt.Fprintln(r.Stdout, "Cannot connect yet:", err)
		select {
		case <-ctx.Done():
			return ExitSuccess, false
		case <-time.After(wait):
		}
	}
}

// serve waits for the one job and runs it.
func (r *runner) serve(ctx context.Context) int {
	for {
		job, err := r.client.NextJob(ctx)
		switch {
		case err == nil:
			fmt.Fprintf(r.Stdout, "%s: Running job: %s\n", stamp(), job.Name)
			result := r.runJob(ctx, job)
			fmt.Fprintf(r.Stdout, "%s: Job %s completed with result: %s\n", stamp(), job.Name, result.Conclusion)
			return r.complete(ctx, job.ID, result)
		case ctx.Err() != nil:
			offline, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = r.client.Offline(offline) // the lease ends by itself
			fmt.Fprintln(r.Stdout, "Exiting...")
			return ExitSuccess
		case errors.Is(err, runnerclient.ErrGone):
			fmt.Fprintln(r.Stdout, "The runner registration has been deleted from the server.")
			return ExitTerminated
		}
		fmt.Fprintln(r.Stdout, "Runner connect error:", err)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// complete tells the job's end, also after an interrupt, and to a server that
// is away for a while.
func (r *runner) complete(ctx context.Context, job int64, result runnerclient.Result) int {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportPatience)
	defer cancel()
	err := retry(ctx, func() error { return r.client.Complete(ctx, job, result) })
	if err != nil && !errors.Is(err, runnerclient.ErrGone) {
		fmt.Fprintln(r.Stdout, "Cannot complete the job:", err)
		return ExitRetryable
	}
	return ExitSuccess
}

// retry repeats do until it succeeds, is answered with a refusal, or ctx ends.
func retry(ctx context.Context, do func() error) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := do()
		status, answered := errors.AsType[*runnerclient.StatusError](err)
		if err == nil || errors.Is(err, runnerclient.ErrGone) || answered && status.Status/100 == 4 && status.Status != 429 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// readEnvFile reads lines NAME=VALUE; a file that is not there is empty.
// Source: actions/runner, Runner.Listener/Program.cs, LoadAndSetEnv.
func readEnvFile(path string) (map[string]string, error) {
	env := map[string]string{}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return env, nil
	}
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && name != "" && name[0] != '#' {
			env[name] = value
		}
	}
	return env, lines.Err()
}

func stamp() string { return time.Now().UTC().Format("2006-01-02 15:04:05Z") }
