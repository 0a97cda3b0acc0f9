package guest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gpuserver/internal/gate"
)

// Times of the hardware watchdog (the i6300esb of QEMU). Generous, because a
// machine that emulates many VMs may leave one without a turn for long.
const (
	watchdogTimeout = 180 * time.Second
	watchdogFeed    = 20 * time.Second
)

// run carries out a program, and gives what it said if it failed.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, gate.Clip(string(out), 512))
	}
	return nil
}

// ioctlPointer carries out an ioctl whose argument is a pointer to v.
func ioctlPointer[T any](fd, request uintptr, v *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(v))); errno != 0 {
		return errno
	}
	return nil
}

// feedWatchdog feeds the watchdog until ctx ends. It is not disarmed then: a
// guest that hangs while it powers off is ended by it.
// Source: Linux Documentation/watchdog/watchdog-api.rst.
func (a *agent) feedWatchdog(ctx context.Context) {
	if a.Unprivileged {
		return
	}
	f, err := os.OpenFile(a.path("dev/watchdog"), os.O_WRONLY, 0)
	if err != nil {
		a.log.Warn("no watchdog", "err", err)
		return
	}
	defer f.Close()
	seconds := int32(watchdogTimeout / time.Second)
	if err := ioctlPointer(f.Fd(), unix.WDIOC_SETTIMEOUT, &seconds); err != nil {
		a.log.Warn("the watchdog keeps its own time-out", "err", err)
	}
	tick := time.NewTicker(watchdogFeed)
	defer tick.Stop()
	for {
		if _, err := f.Write([]byte{0}); err != nil {
			a.log.Warn("cannot feed the watchdog", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// notifyReady tells systemd that the agent is up, so that the network may start.
// Source: sd_notify(3).
func notifyReady() {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if rest, ok := strings.CutPrefix(name, "@"); ok {
		name = "\x00" + rest
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("READY=1")) // systemd times out and says so
}

// powerOff ends the VM: what was written is synced, nothing else of it is
// needed any more.
func powerOff() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return guestError("power off", err)
	}
	return nil
}
