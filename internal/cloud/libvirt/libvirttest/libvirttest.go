// Package libvirttest gives tests a host of their own: namespaces (mounts,
// network and processes) with a libvirtd in them, so that no rule, bridge or
// domain of the machine's is touched, and all of it is gone with the tests.
package libvirttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const (
	insideVar = "GPUSERVER_TEST_INSIDE"  // set in the namespaces
	wantedVar = "GPUSERVER_TEST_LIBVIRT" // "0" leaves the tests with libvirt out
)

// Wanted says whether tests with libvirt are to run: GPUSERVER_TEST_LIBVIRT=0
// leaves them out.
func Wanted() bool { return os.Getenv(wantedVar) != "0" }

// Inside says whether this process runs in the namespaces already.
func Inside() bool { return os.Getenv(insideVar) != "" }

// enter makes a host of the namespaces. The shell stays as the first process
// and collects what daemons leave. What the machine is configured to serve is
// not for tests to find; filters, which libvirtd keeps in /etc, and what tests
// leave in /var/tmp go with them.
const enter = `set -e
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t sysfs sysfs /sys
if [ -d /etc/gpuserver ]; then mount -t tmpfs tmpfs /etc/gpuserver; fi
cp -a /etc/libvirt /run/etc-libvirt && mount --bind /run/etc-libvirt /etc/libvirt
mount --bind "$TMPDIR" /var/tmp
export TMPDIR=/var/tmp
ip link set lo up
status=0
"$0" "$@" || status=$?
exit $status`

// Enter runs this test binary again, with its arguments and the variables env,
// in namespaces of its own, and gives its exit status. It needs root.
func Enter(env ...string) int {
	scratch, err := os.MkdirTemp("/var/tmp", "gpuserver-libvirt-")
	if err != nil {
		return refuse(err)
	}
	defer os.RemoveAll(scratch)                      // also what a test that was killed left
	if err := os.Chmod(scratch, 0o711); err != nil { // QEMU's user passes through to its disks
		return refuse(err)
	}
	args := append([]string{
		"--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "bash", "-c", enter, Self(),
	}, os.Args[1:]...)
	c := exec.Command("unshare", args...)
	c.Env = append(append(os.Environ(), insideVar+"=1", "TMPDIR="+scratch), env...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		return refuse(err)
	}
	return 0
}

func refuse(err error) int {
	_, _ = fmt.Fprintf(os.Stderr, "cannot make namespaces for the tests (root is needed): %v; %s=0 leaves these tests out\n", err, wantedVar)
	return 1
}

// Self is this test binary's path.
func Self() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// Daemons are the libvirtd and virtlogd of the namespaces.
type Daemons struct {
	State string // folder of their configuration, logs and pid files
}

// Start starts the daemons in the namespaces; Remove ends them.
func Start() (*Daemons, error) {
	state, err := os.MkdirTemp("", "gpuserver-libvirtd-")
	if err != nil {
		return nil, err
	}
	d := &Daemons{State: state}
	if err := d.Up(); err != nil {
		d.Remove()
		return nil, err
	}
	return d, nil
}

// Up makes the daemons answer: those that are missing are started.
func (d *Daemons) Up() error { return d.script("libvirt-up") }

// Down ends the daemons and waits until they are gone. VMs go on.
func (d *Daemons) Down() error { return d.script("libvirt-down") }

// Remove ends the daemons and removes their folder.
func (d *Daemons) Remove() {
	_ = d.Down() // what cannot be ended ends with the namespaces
	_ = os.RemoveAll(d.State)
}

// Libvirtd is the file with libvirtd's process id.
func (d *Daemons) Libvirtd() string { return filepath.Join(d.State, "libvirtd.pid") }

func (d *Daemons) script(name string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	c := exec.Command(filepath.Join(root, "scripts", name)) // our own scripts
	c.Env = append(os.Environ(), "GPUSERVER_LIBVIRT_STATE="+d.State)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("scripts/%s: %w\n%s", name, err, out)
	}
	return nil
}

// Root is the repository's root, found from the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("no go.mod is above the working directory")
		}
	}
	return "", err
}
