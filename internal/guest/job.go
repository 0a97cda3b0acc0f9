package guest

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"gpuserver/internal/gate"
)

// runnerScope starts the name of the runner's systemd scope in the job's slice;
// the number of the start follows.
const runnerScope = "gpuserver-runner"

// runnerOOMScore protects the runner, so that it lives to report a step that
// was killed for memory.
const runnerOOMScore = -500

// Exit codes of the runner after which it is started again.
// Source: actions/runner, Constants.Runner.ReturnCode and run-helper.sh.
const (
	runnerRetryable    = 2
	runnerUpdating     = 3
	runnerOnceUpdating = 4
)

// jobExit is how the runner or the command ended.
type jobExit struct {
	status   int // 128+n for a signal
	timedOut bool
	gated    bool // nothing was started: the gate did not let it
}

// versionWait is how long the runner may take to say its version.
const versionWait = 20 * time.Second

// startFailed is the status if nothing could be started at all, as a shell's.
const startFailed = 126

// runJob runs the runner or the command to its end.
func (a *agent) runJob(ctx context.Context) jobExit {
	if a.payload.Command != nil {
		return a.runCommand(ctx)
	}
	for {
		exit, group := a.runOnce(ctx)
		if ctx.Err() == nil && a.again(ctx, exit.status) {
			continue
		}
		a.killJob(group)
		return exit
	}
}

// again reports whether the runner is to be started again, after the wait that
// its exit code asks for. Nothing is killed meanwhile: a runner that updates
// itself leaves a script behind, which puts the new version in place once the old
// one has ended.
// Source: actions/runner, update.sh.template.
func (a *agent) again(ctx context.Context, status int) bool {
	switch status {
	case runnerRetryable:
		a.log.Warn("the runner asks to be started again")
	case runnerUpdating, runnerOnceUpdating:
		a.log.Warn("the runner updates itself")
	default:
		return false
	}
	updated := a.path(a.RunnerDir, "update.finished")
	deadline := time.After(30 * time.Second)
	if status == runnerRetryable {
		deadline = time.After(5 * time.Second)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case reason := <-a.interrupts:
			a.interrupt(reason) // for the next start, which ends at once
			return true
		case <-deadline:
			return true
		case <-tick.C:
			if os.Remove(updated) == nil {
				return true
			}
		}
	}
}

// runOnce starts the runner and waits for its end; group is its process group, 0
// if it was not started.
func (a *agent) runOnce(ctx context.Context) (exit jobExit, group int) {
	program := filepath.Join(a.RunnerDir, "bin", "Runner.Listener")
	args := []string{a.path(program), "run"}
	if _, err := os.Stat(a.path(program)); err != nil {
		args = []string{a.path(a.RunnerDir, "run.sh")}
	}
	env := a.environment()
	env[jitEnv] = a.payload.JITConfig
	env["ACTIONS_RUNNER_HOOK_JOB_STARTED"] = filepath.Join(a.runDir(), hookScript)
	// Its own exit code for a version that the forge refuses, instead of 1.
	env["ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE"] = "1"
	cmd := a.command(runnerOOMScore, a.path(a.RunnerDir), args, env)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr // what the listener says of itself; no job's output
	if err := cmd.Start(); err != nil {
		a.log.Error("cannot start the runner", "err", err)
		return jobExit{status: startFailed}, 0
	}
	if a.starts == 1 {
		a.status.reached(PhaseRunner)
		a.report.wake()
		asking, done := context.WithCancel(context.WithoutCancel(ctx))
		defer done()
		a.work.Go(func() { a.askVersion(asking, args[0]) })
	}
	return a.await(ctx, cmd, 0), cmd.Process.Pid
}

// askVersion notes the runner's version. A runner that does not say it soon is
// not waited for.
func (a *agent) askVersion(ctx context.Context, program string) {
	ctx, cancel := context.WithTimeout(ctx, versionWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Dir, cmd.Env, cmd.WaitDelay = "/", []string{"HOME=/tmp"}, time.Second
	if !a.Unprivileged {
		acc, err := lookupAccount(a.RunnerUser)
		if err != nil {
			return
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(acc.uid), Gid: uint32(acc.gid)}}
	}
	if out, err := cmd.Output(); err == nil {
		a.status.setRunnerVersion(gate.Clip(string(out), 64))
	}
}

// command makes a process of the runner's user in the job's slice and in a
// process group of its own. Its environment is not on any command line.
func (a *agent) command(oomScore int, dir string, args []string, env map[string]string) *exec.Cmd {
	a.starts++ // what an earlier start left behind keeps its scope's name
	if !a.Unprivileged {
		args = slices.Concat([]string{
			"systemd-run", "--scope", "--quiet", "--collect", "--slice=gpuserver-job.slice",
			"--unit=" + runnerScope + "-" + strconv.Itoa(a.starts), "--property=Delegate=yes", "--",
		}, a.program(), []string{"exec", a.RunnerUser, strconv.Itoa(oomScore), "--"}, args)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	return cmd
}

// environment gives what every program of the job starts with.
func (a *agent) environment() map[string]string {
	env := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG": "C.UTF-8",
	}
	if a.Unprivileged {
		env["PATH"] = os.Getenv("PATH")
	}
	maps.Copy(env, a.payload.Env)
	return env
}

// await waits for cmd's end, and carries out interrupts: SIGINT, the grace
// period, then everything in the slice is killed. What cmd left behind is the
// caller's. limit 0 is none.
func (a *agent) await(ctx context.Context, cmd *exec.Cmd, limit time.Duration) jobExit {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with cmd, which is waited for below
	var exit jobExit
	var timeUp, kill <-chan time.Time
	if limit > 0 {
		timeUp = time.After(limit)
	}
	done := ctx.Done()
	interrupt := func(reason string) {
		if kill == nil {
			a.log.Warn("interrupting the runner", "why", reason)
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // ended meanwhile
			kill = time.After(a.grace())
		}
	}
	for {
		select {
		case err := <-ended:
			exit.status = exitStatus(err)
			return exit
		case reason := <-a.interrupts:
			interrupt(reason)
		case <-timeUp:
			exit.timedOut = true
			interrupt("the command's time limit " + limit.String())
		case <-done:
			done = nil
			interrupt("the agent was asked to stop")
		case <-kill:
			a.killJob(cmd.Process.Pid)
		}
	}
}

// killJob ends all that the job started: the process group (0: none) and the
// slice.
func (a *agent) killJob(group int) {
	if group != 0 { // which would be our own
		_ = syscall.Kill(-group, syscall.SIGKILL) // nobody there is fine
	}
	if !a.Unprivileged {
		_ = os.WriteFile(a.path(jobSlice, "cgroup.kill"), []byte("1"), 0) // kernels before 5.14 lack it
	}
}

// exitStatus gives the status of an ended process as a shell does.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return startFailed
	}
	if w, ok := e.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return e.ExitCode()
}

// Exec becomes args as another user: oom_score_adj, groups, user, home, then
// the program itself. It returns only an error, with the status that a shell
// would give it. root calls it, inside the scope of the job.
func Exec(userName string, oomScore int, args []string, stderr io.Writer) int {
	fail := func(err error) int {
		_, _ = io.WriteString(stderr, "gpuserver-guest: "+err.Error()+"\n")
		return startFailed
	}
	acc, err := lookupAccount(userName)
	if err != nil {
		return fail(err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(oomScore)), 0); err != nil {
		return fail(err)
	}
	err = errors.Join(syscall.Setgroups(acc.groups), syscall.Setgid(acc.gid), syscall.Setuid(acc.uid))
	if err != nil {
		return fail(err)
	}
	for name, value := range map[string]string{"HOME": acc.home, "USER": acc.name, "LOGNAME": acc.name, "SHELL": "/bin/bash"} {
		if err := os.Setenv(name, value); err != nil {
			return fail(err)
		}
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		fail(err)
		return 127
	}
	return fail(syscall.Exec(program, args, os.Environ()))
}
