// Package machine tests the whole service on a real libvirt: the program as a
// process, VMs of the real image, the stand-in for GitHub in a network namespace
// where VMs reach it as they would the internet.
package machine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gpuserver/internal/cloud/libvirt/libvirttest"
)

const (
	roleVar   = "GPUSERVER_E2E_ROLE"   // "site": this binary is the stand-in for GitHub
	binaryVar = "GPUSERVER_E2E_BINARY" // the program
	imageVar  = "GPUSERVER_E2E_IMAGE"  // folder of scripts/demo-image
)

var (
	binary = os.Getenv(binaryVar)
	image  = os.Getenv(imageVar)
	lab    *libvirttest.Daemons
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(roleVar) == "site":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err := serveSite(ctx, os.Args[1])
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case !libvirttest.Wanted():
		fmt.Println("GPUSERVER_TEST_LIBVIRT=0: left out")
	case !libvirttest.Inside():
		os.Exit(outside())
	default:
		os.Exit(inside(m))
	}
}

// outside builds the program, with the places at which it can be killed, and
// the image, both with the machine's own caches.
func outside() int {
	dir, err := os.MkdirTemp("", "gpuserver-e2e-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "gpuserver")
	build := exec.Command("go", "build", "-tags", "crashpoints", "-o", path, "gpuserver/cmd/gpuserver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "the program cannot be built: %v\n%s", err, out)
		return 1
	}
	root, err := libvirttest.Root()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	script := exec.Command(filepath.Join(root, "scripts", "demo-image"))
	script.Stderr = os.Stderr
	folder, err := script.Output()
	if err != nil {
		fmt.Fprintf(os.Stderr, "scripts/demo-image: %v; GPUSERVER_TEST_LIBVIRT=0 leaves these tests out\n", err)
		return 1
	}
	return libvirttest.Enter(binaryVar+"="+path, imageVar+"="+strings.TrimSpace(string(folder)))
}

func inside(m *testing.M) int {
	var err error
	if lab, err = libvirttest.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer lab.Remove()
	return m.Run()
}
