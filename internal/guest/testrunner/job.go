package testrunner

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"gpuserver/internal/forge/forgetest/runnerclient"
)

// The names of hooks. Source: actions/runner, docs/adrs/1751-runner-job-hooks.
const (
	hookStarted   = "ACTIONS_RUNNER_HOOK_JOB_STARTED"
	hookCompleted = "ACTIONS_RUNNER_HOOK_JOB_COMPLETED"
)

// Conclusions of jobs and steps, in GitHub's words.
const (
	success   = "success"
	failure   = "failure"
	cancelled = "cancelled"
	skipped   = "skipped"
)

// job is the one job of a runner.
type job struct {
	*runnerclient.Job
	runner *runner
	life   context.Context // the runner's own: it ends when that is interrupted
	log    *liveLog
	env    map[string]string // of every step
	paths  []string          // put before PATH by steps
	work   string            // the repository's folder
	temp   string
	steps  []runnerclient.StepState
	groups []int // process groups that were started
}

// runJob runs all of a job, and gives its result once the whole log was sent.
func (r *runner) runJob(ctx context.Context, rj *runnerclient.Job) runnerclient.Result {
	j := &job{Job: rj, runner: r, life: ctx, log: newLiveLog()}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		patience, cancel := context.WithCancel(background)
		defer cancel()
		j.log.send(patience, r.client, rj.ID, ended)
	})
	jobCtx, cancel := context.WithCancel(ctx)
	if rj.Timeout > 0 {
		jobCtx, cancel = context.WithTimeout(ctx, rj.Timeout.Duration())
	}
	defer cancel()
	asked, watching := r.client.Watch(background, rj.ID)
	work.Go(func() {
		select {
		case <-asked:
			cancel()
		case <-ended:
		}
	})
	result := j.run(jobCtx)
	close(ended)
	limit := time.AfterFunc(reportPatience, stop)
	work.Wait()
	limit.Stop()
	stop()
	<-watching
	return result
}

// run carries out set-up, hook, steps and clean-up.
func (j *job) run(ctx context.Context) runnerclient.Result {
	names := []string{"Set up job"}
	if os.Getenv(hookStarted) != "" {
		names = append(names, "Set up runner")
	}
	for i, s := range j.Steps {
		names = append(names, stepName(i, s))
	}
	names = append(names, "Complete job")
	for i, name := range names {
		j.steps = append(j.steps, runnerclient.StepState{Number: i + 1, Name: name, Status: "queued"})
	}
	conclusion, next := success, 0
	step := func(always bool, do func(context.Context) string) {
		j.step(ctx, next, &conclusion, always, do)
		next++
	}
	step(true, j.setUp)
	if os.Getenv(hookStarted) != "" {
		step(false, func(ctx context.Context) string { return j.hook(ctx, hookStarted) })
	}
	// A hook that failed keeps no step from running that always runs; the end of
	// the runner does.
	for i, s := range j.Steps {
		step(s.Always && j.life.Err() == nil, func(ctx context.Context) string { return j.shell(ctx, i, s) })
	}
	step(true, func(context.Context) string { return j.cleanUp() })
	return runnerclient.Result{Conclusion: conclusion}
}

// step runs one step and reports it; it is skipped after a failure or a
// cancellation unless always is set.
func (j *job) step(ctx context.Context, i int, conclusion *string, always bool, do func(context.Context) string) {
	s := &j.steps[i]
	if ctx.Err() != nil && *conclusion == success {
		*conclusion = j.broken()
	}
	if *conclusion != success && !always {
		s.Status, s.Conclusion = "completed", skipped
		return
	}
	s.Status, s.StartedAt = "in_progress", time.Now().UTC()
	j.reportSteps(ctx)
	result := do(ctx)
	if ctx.Err() != nil && result == failure {
		result = cancelled
		if ctx.Err() == context.DeadlineExceeded {
			j.log.printf("##[error]The job has exceeded the maximum execution time of %s.", j.Timeout.Duration())
		} else {
			j.log.printf("##[error]The operation was canceled.")
		}
	}
	s.Status, s.Conclusion, s.CompletedAt = "completed", result, time.Now().UTC()
	if *conclusion == success {
		*conclusion = result
		if result == cancelled {
			*conclusion = j.broken()
		}
	}
	j.reportSteps(ctx)
}

// reportSteps tells how far the steps are; a report that is lost is replaced by
// the next.
func (j *job) reportSteps(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = j.runner.client.Steps(ctx, j.ID, j.steps)
}

// setUp makes the folders and the environment, and shows what the machine is.
func (j *job) setUp(context.Context) string {
	r := j.runner
	j.log.printf("Current runner version: '%s'", Version)
	j.showSetupInfo()
	j.log.printf("Runner name: '%s'", r.client.Settings.AgentName)
	j.log.printf("Machine name: '%s'", hostname())
	work := orDefault(r.client.Settings.WorkFolder, "_work")
	if !filepath.IsAbs(work) {
		work = filepath.Join(r.Dir, work)
	}
	name := filepath.Base(j.Repository)
	j.work, j.temp = filepath.Join(work, name, name), filepath.Join(work, "_temp")
	for _, dir := range []string{j.work, j.temp, filepath.Join(work, "_tool")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			j.log.printf("##[error]%v", err)
			return failure
		}
	}
	j.env = map[string]string{
		"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_JOB": j.Key, "GITHUB_REPOSITORY": j.Repository,
		"GITHUB_RUN_ID": strconv.FormatInt(j.RunID, 10), "GITHUB_RUN_ATTEMPT": strconv.Itoa(j.RunAttempt),
		"GITHUB_WORKSPACE": j.work, "RUNNER_TEMP": j.temp, "RUNNER_TOOL_CACHE": filepath.Join(work, "_tool"),
		"RUNNER_WORKSPACE": filepath.Dir(j.work), "RUNNER_NAME": r.client.Settings.AgentName, "RUNNER_OS": "Linux",
		"RUNNER_ARCH": map[string]string{"amd64": "X64", "arm64": "ARM64"}[runtime.GOARCH], "RUNNER_ENVIRONMENT": "self-hosted",
		"GITHUB_ENV": filepath.Join(j.temp, "set_env"), "GITHUB_PATH": filepath.Join(j.temp, "add_path"),
		"GITHUB_OUTPUT": filepath.Join(j.temp, "set_output"), "GITHUB_STEP_SUMMARY": filepath.Join(j.temp, "step_summary"),
	}
	maps.Copy(j.env, j.Env)
	j.log.printf("Complete job name: %s", j.Name)
	return success
}

// broken gives the conclusion of a job that was broken off: whose runner was
// interrupted has failed. Source: actions/runner, StepsRunner.
func (j *job) broken() string {
	if j.life.Err() != nil {
		return failure
	}
	return cancelled
}

// showSetupInfo shows the groups of .setup_info. Source: actions/runner,
// JobExtension.
func (j *job) showSetupInfo() {
	b, err := os.ReadFile(filepath.Join(j.runner.Dir, ".setup_info"))
	if err != nil {
		return
	}
	var groups []struct{ Group, Detail string }
	if err := json.Unmarshal(b, &groups); err != nil {
		j.log.printf("##[warning].setup_info: %v", err)
		return
	}
	for _, g := range groups {
		j.log.printf("##[group]%s", orDefault(g.Group, "Machine Setup Info"))
		for line := range strings.Lines(g.Detail) {
			j.log.printf("%s", line)
		}
		j.log.printf("##[endgroup]")
	}
}

// hook runs the script that the named variable points at; if it fails the job
// has failed, and only steps that always run come after it.
func (j *job) hook(ctx context.Context, variable string) string {
	path := os.Getenv(variable)
	j.log.printf("A job started hook has been configured by the self-hosted runner administrator")
	j.log.printf("##[group]Run '%s'", path)
	j.log.printf("##[endgroup]")
	if filepath.Ext(path) != ".sh" {
		j.log.printf("##[error]'%s' is not a valid path to a script. Make sure it has the extension .sh", path)
		return failure
	}
	return j.command(ctx, 0, nil, "bash", "-e", path)
}

// shell runs one step's script.
func (j *job) shell(ctx context.Context, i int, s runnerclient.Step) string {
	j.log.printf("##[group]Run %s", firstLine(s.Run))
	for line := range strings.Lines(s.Run) {
		j.log.printf("%s", line)
	}
	j.log.printf("shell: /usr/bin/bash -e {0}")
	j.log.printf("##[endgroup]")
	script := filepath.Join(j.temp, fmt.Sprintf("step-%d.sh", i))
	if err := os.WriteFile(script, []byte(s.Run), 0o600); err != nil {
		j.log.printf("##[error]%v", err)
		return failure
	}
	defer os.Remove(script)
	result := j.command(ctx, s.Timeout.Duration(), s.Env, "bash", "-e", script)
	j.takeFiles()
	return result
}

// takeFiles carries over what a step wrote to GITHUB_ENV and GITHUB_PATH.
func (j *job) takeFiles() {
	if env, err := readEnvFile(j.env["GITHUB_ENV"]); err == nil {
		maps.Copy(j.env, env)
	}
	if b, err := os.ReadFile(j.env["GITHUB_PATH"]); err == nil {
		for line := range strings.Lines(string(b)) {
			j.paths = append([]string{strings.TrimSpace(line)}, j.paths...)
		}
	}
	_ = os.Remove(j.env["GITHUB_ENV"]) // none
	_ = os.Remove(j.env["GITHUB_PATH"])
}

// cleanUp runs the job-completed hook and ends what steps left running.
func (j *job) cleanUp() string {
	result := success
	if os.Getenv(hookCompleted) != "" && j.life.Err() == nil {
		result = j.hook(context.Background(), hookCompleted)
	}
	j.log.printf("Cleaning up orphan processes")
	for _, group := range j.groups {
		_ = syscall.Kill(-group, syscall.SIGKILL) // mostly nobody
	}
	return result
}

// command runs a program with the job's environment, its output in the log.
// After limit (0: none), or when ctx ends, it is interrupted and then killed.
func (j *job) command(ctx context.Context, limit time.Duration, env map[string]string, args ...string) string {
	if limit > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	for _, file := range []string{"GITHUB_ENV", "GITHUB_PATH", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"} {
		if err := os.WriteFile(j.env[file], nil, 0o644); err != nil {
			j.log.printf("##[error]%v", err)
			return failure
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = j.work, j.environment(env)
	cmd.Stdout, cmd.Stderr = io.Writer(j.log), io.Writer(j.log)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Interrupt, and kill after the 10 s that the real runner takes.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	if err := startExposed(cmd); err != nil {
		j.log.printf("##[error]%v", err)
		return failure
	}
	j.groups = append(j.groups, cmd.Process.Pid)
	err := cmd.Wait()
	j.log.endStep()
	if err == exec.ErrWaitDelay { // it ended, but something that it started holds its output
		err = nil
	}
	if ctx.Err() != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if limit > 0 && ctx.Err() == context.DeadlineExceeded {
			j.log.printf("##[error]The action has timed out after %s.", limit)
		}
		return failure
	}
	if err != nil {
		j.log.printf("##[error]Process completed with exit code %d.", exitCode(err))
		return failure
	}
	return success
}

// startExposed starts a step with a high oom_score_adj, so that the kernel
// prefers it to the runner. A shell does it to itself before it becomes the
// program: setting it from outside would let a first child slip through.
func startExposed(cmd *exec.Cmd) error {
	score := orDefault(os.Getenv("PIPELINE_JOB_OOMSCOREADJ"), "500")
	if _, err := strconv.Atoi(score); err != nil {
		return fmt.Errorf("PIPELINE_JOB_OOMSCOREADJ is %q, expected a number", score)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		return err
	}
	cmd.Path = sh
	cmd.Args = slices.Concat([]string{"sh", "-c", "echo " + score + ` >/proc/self/oom_score_adj; exec "$@"`, "sh"}, cmd.Args)
	cmd.Err = nil
	return cmd.Start()
}

// environment gives a step's environment: the process's own with
// .env, the job's, the step's.
func (j *job) environment(step map[string]string) []string {
	all := map[string]string{}
	for _, line := range os.Environ() {
		name, value, _ := strings.Cut(line, "=")
		all[name] = value
	}
	maps.Copy(all, j.env)
	maps.Copy(all, step)
	all["PATH"] = strings.Join(append(slices.Clone(j.paths), all["PATH"]), ":")
	var env []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		env = append(env, name+"="+all[name])
	}
	return env
}

func stepName(i int, s runnerclient.Step) string {
	return orDefault(s.Name, fmt.Sprintf("Run %s", orDefault(firstLine(s.Run), strconv.Itoa(i+1))))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func hostname() string {
	name, _ := os.Hostname() // "" is as good a name as any
	return name
}

func exitCode(err error) int {
	e, ok := err.(*exec.ExitError)
	if !ok {
		return 1
	}
	if w, ok := e.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return e.ExitCode()
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
