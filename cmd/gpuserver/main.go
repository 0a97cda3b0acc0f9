// Command gpuserver makes a machine, or a cloud of them, a CI service: each job
// becomes a fresh VM that runs it and is gone.
//
// One file per sub-command; they parse arguments, wire packages together and
// print. What they do is in the packages under internal/.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first signal ends the context, so that a command can clean up; the
	// second one ends the program.
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // a terminal that is closed; nohup ignores it
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop)
	m := &Main{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	os.Exit(m.Run(ctx))
}

// Main is the program with what it reads and writes, so that tests run the very
// same.
type Main struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Run runs the command that the arguments name and gives the exit status.
func (m *Main) Run(ctx context.Context) int {
	root := newRootCommand()
	root.SetArgs(m.Args)
	root.SetIn(m.Stdin)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	return exitStatus(m.Stderr, root.ExecuteContext(ctx))
}
