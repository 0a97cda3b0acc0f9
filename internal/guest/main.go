package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"gpuserver"
)

// usage names the arguments of Main.
const usage = "usage: agent | gate [VENDOR:DEVICE…] | hook job-started | exec USER ADJ -- PROGRAM [ARG…] | version"

// Main is the agent as a program: it does what args say and gives the exit
// status. program is how it calls itself again; nil is the path of the program.
//
//	agent [--runner-dir DIR] [--runner-user USER]
//	                      the agent itself; systemd starts it
//	gate [FLAG…] [VENDOR:DEVICE…]
//	                      checks the VM's cards by hand, those named or those there
//	hook job-started      asks the agent whether a job may run; the runner calls it
//	exec USER ADJ -- …    runs a program as USER with an oom_score_adj; the agent calls it
//	version
func Main(args, program []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch {
	case len(args) > 0 && args[0] == "agent":
		return agentMain(ctx, args[1:], program, stderr)
	case len(args) > 0 && args[0] == "gate":
		return gateMain(ctx, args[1:], stdout, stderr)
	case slices.Equal(args, []string{"hook", "job-started"}):
		return hookMain(ctx, HookSocket, stdout)
	case len(args) >= 5 && args[0] == "exec" && args[3] == "--":
		score, err := strconv.Atoi(args[2])
		if err != nil {
			break
		}
		stop()
		return Exec(args[1], score, args[4:], stderr)
	case slices.Equal(args, []string{"version"}):
		fmt.Fprintln(stdout, AgentVersion)
		return 0
	}
	fmt.Fprintln(stderr, usage)
	return 2
}

// agentMain runs the agent, which ends with the VM.
func agentMain(ctx context.Context, args, program []string, stderr io.Writer) int {
	o := Options{Program: program, Log: slog.New(slog.NewTextHandler(stderr, nil))}
	flags := flag.NewFlagSet("agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.RunnerDir, "runner-dir", "/opt/runner", "folder of the runner")
	flags.StringVar(&o.RunnerUser, "runner-user", "runner", "user that runs it")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return 2
	}
	if os.Getenv("NOTIFY_SOCKET") == "" { // systemd sets it for a unit of type notify
		fmt.Fprintln(stderr, "the agent powers its machine off at its end, so only systemd starts it, in a VM: "+
			"see gpuserver-agent.service in scripts/demo-image.d")
		return 2
	}
	if err := Run(ctx, o); err != nil {
		return 1
	}
	return 0
}

// refusalHold is how long a refused job's hook stays, at most.
const refusalHold = 2 * time.Minute

// hookMain writes a refusal as the annotation that the forge shows on the job,
// and then stays: a runner goes on after a failed hook with those steps that run
// always, but not if it was interrupted while the hook ran. The agent does that;
// the runner then ends the hook by SIGINT, which also comes from the agent and is
// ignored, and SIGTERM, which ends ctx.
// Source: actions/runner, StepsRunner and ProcessInvoker.
func hookMain(ctx context.Context, socket string, stdout io.Writer) int {
	signal.Ignore(syscall.SIGINT)
	err := Hook(context.WithoutCancel(ctx), socket, os.Getenv, stdout) // the reason is to be told
	if err == nil {
		return 0
	}
	text := err.Error()
	if e, ok := errors.AsType[*gpuserver.Error](err); ok && e.Public != "" {
		text = e.Public
	}
	fmt.Fprintf(stdout, "::error title=gpuserver::%s\n", text)
	if gpuserver.KindOf(err) == gpuserver.KindRefused {
		select {
		case <-ctx.Done():
		case <-time.After(refusalHold):
		}
	}
	return 1
}
