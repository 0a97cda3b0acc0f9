package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The exit statuses that all commands share. A command with others says so in
// its help.
const (
	exitFailed = 1 // it could not be done
	exitUsage  = 2 // the arguments, or a file that they name, are wrong
)

// exitError ends the program with a status. An err of nil prints nothing: the
// command has said everything already.
type exitError struct {
	code int
	err  error
}

// Error implements error.
func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

// Unwrap gives the cause.
func (e *exitError) Unwrap() error { return e.err }

// exitStatus prints a command's error, if it has something to say, and gives
// the exit status for it.
func exitStatus(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code, say := exitFailed, err
	if e, ok := errors.AsType[*exitError](err); ok {
		code, say = e.code, e.err
	}
	if errors.Is(say, context.Canceled) {
		say = errors.New("interrupted")
	}
	if say != nil {
		_, _ = fmt.Fprintf(w, "gpuserver: %v\n", say)
	}
	return code
}
