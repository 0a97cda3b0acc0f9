//go:build openstack

package openstack

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What the laboratory says of its cloud: where clouds.yaml lies, and which of
// the two hypervisors it has.
var (
	cloudsFile = os.Getenv("GPUSERVER_OPENSTACK_CLOUDS")
	mode       = os.Getenv("GPUSERVER_OPENSTACK_MODE")
)

const (
	fake = "fake"
	virt = "libvirt"
)

// outside is this machine's address on the network of cloud and servers.
const outside = "198.18.0.1"

// limit is how long a test waits for what must happen: services are started on a
// busy machine, and servers are emulated.
const limit = 10 * time.Minute

func TestMain(m *testing.M) {
	if cloudsFile == "" || program == "" || (mode != fake && mode != virt) {
		fmt.Fprintln(os.Stderr, "these tests need the cloud of scripts/openstack-lab: run scripts/test-openstack")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// need skips a test that is of the other hypervisor.
func need(t *testing.T, hypervisor string) {
	t.Helper()
	if mode != hypervisor {
		t.Skip("this cloud's hypervisor is " + mode)
	}
}

// eventually repeats a check until it finds nothing to say.
func eventually(t *testing.T, what string, check func() string) {
	t.Helper()
	var last string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if last = check(); last == "" {
			return
		}
	}
	t.Fatalf("%s: not within %s: %s", what, limit, last)
}

// inside runs a command in the cloud's machine and gives what it printed.
func inside(t *testing.T, args ...string) string {
	t.Helper()
	c := exec.Command(filepath.Join("..", "..", "..", "scripts", "openstack-lab"), append([]string{"run"}, args...)...)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}
