package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver/internal/cloud/libvirt"
	"gpuserver/internal/config"
	"gpuserver/internal/hostprep"
)

// liveMachine asks this machine. cfg may be nil.
func liveMachine(cfg *config.Config) *hostprep.Live {
	lc := libvirt.Config{Name: "check", Owner: "check"}
	forge := "https://api.github.com"
	if cfg != nil {
		for i := range cfg.Clouds {
			if c := &cfg.Clouds[i]; c.Libvirt != nil {
				lc = libvirtConfig(cfg, c, "check")
				break
			}
		}
		if len(cfg.Forges) > 0 {
			forge = cmp.Or(string(cfg.Forges[0].BaseURL), forge)
		}
	}
	return &hostprep.Live{
		Log:     kernelLog,
		Libvirt: func(ctx context.Context) (string, error) { return libvirt.Version(ctx, lc) },
		KVM:     func(ctx context.Context) (string, error) { return libvirt.TryKVM(ctx, lc) },
		Free:    freeBytes,
		PathMTU: func(ctx context.Context) (string, int, error) { return pathMTU(ctx, forge) },
		Clock:   clockState,
	}
}

// runCommand runs a command and gives what it printed.
func runCommand(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	return out.String(), err
}

// kernelLog reads the kernel's log: the journal has it whole, the kernel's own
// buffer only the newest part.
func kernelLog(ctx context.Context) ([]string, error) {
	out, err := runCommand(ctx, "journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager", "--quiet")
	if err != nil || strings.TrimSpace(out) == "" {
		if out, err = runCommand(ctx, "dmesg"); err != nil {
			return nil, err
		}
	}
	return strings.Split(strings.TrimSpace(out), "\n"), nil
}

// freeBytes gives the room of the file system on which dir is, or will be.
func freeBytes(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
			dir = parent
			continue
		}
		return 0, err
	}
}

// pathMTU opens a connection to a forge and asks the kernel what it has learnt of
// the path: its MTU, or what follows from the segments that the other side, or
// a tunnel on the way, lets us send. Nothing is sent.
func pathMTU(ctx context.Context, forge string) (to string, mtu int, err error) {
	u, err := url.Parse(forge)
	if err != nil {
		return forge, 0, err
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80"}[u.Scheme], "443")
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return u.Hostname(), 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return u.Hostname(), 0, err
	}
	headers := 20 + 20 // IPv4 and TCP
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok && a.IP.To4() == nil {
		headers = 40 + 20
	}
	var info *unix.TCPInfo
	var failed error
	if err := raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return u.Hostname(), 0, err
	}
	if failed != nil {
		return u.Hostname(), 0, failed
	}
	const withTimestamps, timestamps = 1, 12 // Source: Linux include/uapi/linux/tcp.h, TCPI_OPT_TIMESTAMPS
	if info.Options&withTimestamps != 0 {
		headers += timestamps
	}
	return u.Hostname(), min(int(info.Pmtu), int(info.Snd_mss)+headers), nil
}

// clockState asks the kernel whether a time service keeps the clock.
// Source: adjtimex(2).
func clockState() (synced bool, within time.Duration, err error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, 0, fmt.Errorf("adjtimex: %w", err)
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, time.Duration(t.Maxerror) * time.Microsecond, nil
}
