package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/api"
)

// The exit statuses of gpuserver run that are not the command's own.
const (
	exitTimeout     = 124
	exitService     = 125
	exitInterrupted = 130
	exitPipe        = 128 + int(syscall.SIGPIPE)
)

// startTemporary starts a server for one command, where none runs: it says what
// it does on w, and gives a client and what ends the server and all that it
// made. It is nil where that is not built in.
var startTemporary func(ctx context.Context, w io.Writer) (c *api.Client, stop func() error, err error)

// runFlags are the flags of gpuserver run.
type runFlags struct {
	server  serverFlags
	flavor  string
	image   string
	timeout time.Duration
	env     []string
	quiet   bool
}

func newRunCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARGUMENT...]",
		Short: "Run a command in a fresh VM",
		Long: `Runs a command in a fresh VM that is gone afterwards: the way of a CI job, without
a forge. Its output is shown as it comes, standard output and standard error kept
apart. Nothing of this machine but the variables given by --env is in the VM.

Ctrl-C cancels the command and waits until that is done; a second one leaves at
once. Without a running server a temporary one is started for this command.

Exit status: the command's own (128+n if signal n ended it); 124 it ran out of
time; 125 the service failed or the arguments are wrong, with the reason on
standard error; 130 interrupted.
` + serverHelp,
		Example: `  gpuserver run -- uname -a
  gpuserver run --flavor gpu_large --timeout 30m -- nvidia-smi
  gpuserver run --env CI=true --env TOKEN -- sh -c 'make test'`,
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(args)
			if err != nil {
				return &exitError{exitService, &usage{cmd.CommandPath(), err}}
			}
			return f.run(cmd.Context(), r, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &exitError{exitService, &usage{cmd.CommandPath(), err}}
	})
	f.server.add(cmd)
	fl := cmd.Flags()
	fl.SetInterspersed(false) // what follows COMMAND is its own
	fl.StringVar(&f.flavor, "flavor", "", "size of the VM, by name or alias (default the smallest by memory)")
	fl.StringVar(&f.image, "image", "", "image of the VM, by name or alias (default the configuration's first)")
	fl.DurationVar(&f.timeout, "timeout", 0, "time limit of the command, such as 90s or 2h (default the flavor's)")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE for the command, or NAME to hand on this shell's value; may be repeated")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "do not tell on a terminal where the command is")
	f.complete(cmd)
	return cmd
}

// complete completes the values of flags with what the running server has.
func (f *runFlags) complete(cmd *cobra.Command) {
	list := map[string]func(context.Context, *api.Client) ([]cobra.Completion, error){
		"flavor": func(ctx context.Context, c *api.Client) (cs []cobra.Completion, err error) {
			flavors, err := c.Flavors(ctx)
			for _, x := range flavors {
				cs = append(cs, cobra.CompletionWithDesc(x.Name, fmt.Sprintf("%d vCPU, %s", x.VCPUs, humanize.IBytes(uint64(x.MemoryMiB)<<20))))
			}
			return cs, err
		},
		"image": func(ctx context.Context, c *api.Client) (cs []cobra.Completion, err error) {
			images, err := c.Images(ctx)
			for _, x := range images {
				cs = append(cs, x.Name)
			}
			return cs, err
		},
	}
	for name, fn := range list {
		if err := cmd.RegisterFlagCompletionFunc(name, f.server.complete(true, fn)); err != nil {
			panic(err) // the flags were added before
		}
	}
	for _, name := range []string{"timeout", "env"} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions); err != nil {
			panic(err) // the flags were added before
		}
	}
}

// request makes a request of flags and arguments.
func (f *runFlags) request(args []string) (r api.RunRequest, err error) {
	if len(args) == 0 {
		return r, errors.New("no command is given")
	}
	if f.timeout < 0 {
		return r, fmt.Errorf("--timeout %s is negative", f.timeout)
	}
	r = api.RunRequest{Args: args, Flavor: f.flavor, Image: f.image, TimeoutSeconds: int64(math.Ceil(f.timeout.Seconds()))}
	for _, e := range f.env {
		name, value, given := strings.Cut(e, "=")
		if name == "" {
			return r, fmt.Errorf("--env %q has no name", e)
		}
		if !given {
			if value, given = os.LookupEnv(name); !given {
				return r, fmt.Errorf("--env %s: this shell has no such variable", name)
			}
		}
		if r.Env == nil {
			r.Env = map[string]string{}
		}
		r.Env[name] = value
	}
	return r, nil
}

// find gives a client of the running server, else of a temporary one.
func (f *runFlags) find(ctx context.Context, stderr io.Writer) (c *api.Client, stop func() error, err error) {
	if c, err = f.server.dial(); err != nil {
		return nil, nil, err
	}
	_, err = c.Status(ctx)
	if err == nil {
		return c, func() error { c.Close(); return nil }, nil
	}
	c.Close()
	if f.server.named() || startTemporary == nil || gpuserver.KindOf(err) != gpuserver.KindUnavailable || ctx.Err() != nil {
		return nil, nil, err
	}
	return startTemporary(ctx, stderr)
}

// run runs a command and gives its end as an exitError, nil for status 0.
func (f *runFlags) run(ctx context.Context, r api.RunRequest, stdout, stderr io.Writer) (err error) {
	// A reader that went away must not end us before the VM is cancelled.
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	c, stop, err := f.find(ctx, stderr)
	if err != nil {
		return serviceFailed(ctx, err)
	}
	defer func() {
		switch serr := stop(); {
		case serr != nil && err == nil:
			err = &exitError{exitService, serr}
		case serr != nil: // the status is the command's, yet something may be left
			_, _ = fmt.Fprintf(stderr, "gpuserver: %v\n", serr)
		}
	}()
	// The request is not cut off by Ctrl-C: its answer says what to cancel.
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	id, err := c.StartRun(starting, r)
	cancel()
	if err != nil {
		return serviceFailed(ctx, err)
	}
	run := &commandRun{client: c, id: id, out: map[string]io.Writer{"stdout": stdout, "stderr": stderr}}
	if !f.quiet && isTerminal(stderr) {
		run.progress = stderr
	}
	return run.end(run.follow(ctx))
}

// callLimit bounds one call that does not wait for anything.
const callLimit = 30 * time.Second

func serviceFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &exitError{code: exitInterrupted}
	}
	return &exitError{exitService, err}
}

// end makes the exit status of how a command ended.
func (r *commandRun) end(s api.RunStatus, err error) error {
	switch {
	case r.unread.Load():
		return &exitError{exitPipe, err}
	case r.interrupted.Load():
		return &exitError{exitInterrupted, err}
	case err != nil:
		return &exitError{exitService, err}
	case s.Conclusion == "timed_out":
		return &exitError{exitTimeout, errors.New(cmp.Or(printable(s.Sentence), "the command ran out of time"))}
	case s.State == gpuserver.JobDone && s.Conclusion != "cancelled" && s.Exit != nil:
		if *s.Exit == 0 {
			return nil
		}
		return &exitError{code: min(max(*s.Exit, 1), 255)}
	}
	return &exitError{exitService, fmt.Errorf("the command did not run to its end: %s", printable(s.Sentence))}
}
