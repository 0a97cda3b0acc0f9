// Package e2e tests the whole service: the real program as a process, with the
// stand-in for GitHub and the cloud as processes of their own, so that either
// can be killed while the others live on.
package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/guest/guesttest"
)

// The test binary is also the other processes, by role.
const roleVar = "GPUSERVER_E2E_ROLE"

var binary string // the program, built with crash points

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var err error
	switch os.Getenv(roleVar) {
	case "":
		os.Exit(run(m))
	case "forge":
		err = serveForge(ctx)
	case "cloud":
		err = serveCloud(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gpuserver-e2e-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "gpuserver")
	args := append([]string{"build", "-tags", "crashpoints", "-o", binary}, raceFlags...)
	build := exec.Command("go", append(args, "gpuserver/cmd/gpuserver")...)
	if raceFlags == nil {
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "the program cannot be built: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func serveForge(ctx context.Context) error {
	return forgetest.Serve(ctx, forgetest.Options{
		Config: forgetest.Config{WebhookSecret: webhookSecret, RunnerLease: 20 * time.Second},
		Listen: "127.0.0.1:0",
		Ready:  func(addr, _ string) { fmt.Println("ready", addr) },
	})
}

// serveCloud runs a fake cloud that does, as its guests do, what the settings in
// the environment say.
func serveCloud(ctx context.Context) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("ready", ln.Addr())
	p := &guesttest.Player{}
	cfg := fake.Config{Name: "local", Guest: p.Play}
	for _, kv := range strings.Split(os.Getenv("GPUSERVER_E2E_GUEST"), ",") {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "silent":
			p.Silent = true
		case "norunner":
			status := 1
			p.NoRunner = &status
		case "jobtime":
			if p.JobTime, err = time.ParseDuration(v); err != nil {
				return err
			}
		case "dead": // a card, by its address
			p.Dead = append(p.Dead, v)
		case "leavable": // while it makes or deletes a VM
			cfg.Capabilities = &cloud.Capabilities{Keep: true, Cards: true, Console: true, Events: true, Leavable: true, Accelerated: true}
		case "chooses": // which cards a VM gets
			cfg.Capabilities = &cloud.Capabilities{Keep: true, Console: true, Events: true, Accelerated: true}
		}
	}
	return fake.Serve(ctx, ln, cfg)
}
