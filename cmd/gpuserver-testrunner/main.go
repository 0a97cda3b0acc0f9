// Command gpuserver-testrunner is the runner of the demo image: it keeps the
// real runner's contract and takes its job from forgetest.
//
//	gpuserver-testrunner run [--jitconfig CONFIG]
//	gpuserver-testrunner --version
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"gpuserver/internal/guest/testrunner"
)

func main() { os.Exit(run()) }

// run has the layout of the real runner's folder: the program is in its bin.
func run() int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return testrunner.ExitTerminated
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return testrunner.Main(ctx, os.Args[1:], testrunner.Options{
		Dir: filepath.Dir(filepath.Dir(self)), Stdout: os.Stdout,
	})
}
