package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver"
	"gpuserver/internal/store"
)

// Machine is where the figures were taken.
type Machine struct {
	CPU       string            `json:"cpu"`
	Cores     int               `json:"cores"`
	MemoryMiB int64             `json:"memory_mib"`
	Kernel    string            `json:"kernel"`
	FS        string            `json:"fs"`       // type of the file system with the database
	Fsync     Quantiles         `json:"fsync_ms"` // of 4 KiB appended to a file there
	Pragmas   map[string]string `json:"pragmas"`  // of the store's writing connection
	Go        string            `json:"go"`
	// Load is the load average over a minute before the start: above the number
	// of cores the figures are those of a busy machine.
	Load float64 `json:"load_before"`
}

const fsyncs = 300

func (b *bench) machine() error {
	m := &b.report.Machine
	m.Cores, m.Go = runtime.NumCPU(), runtime.Version()
	m.CPU = procField("/proc/cpuinfo", "model name")
	if kib, _, ok := strings.Cut(procField("/proc/meminfo", "MemTotal"), " "); ok {
		n, _ := strconv.ParseInt(kib, 10, 64)
		m.MemoryMiB = n >> 10
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(text), &m.Load)
	}
	var err error
	if m.FS, err = fileSystem(b.dir); err != nil {
		return err
	}
	if m.Fsync, err = fsyncLatency(filepath.Join(b.dir, "fsync")); err != nil {
		return err
	}
	m.Pragmas, err = pragmas(b.ctx, filepath.Join(b.dir, "pragmas.db"))
	b.say("   %s, %d cores, %d MiB, %s, %s; fsync p50 %.2f ms, p99 %.2f ms; load %.1f", m.CPU, m.Cores, m.MemoryMiB, m.Kernel, m.FS, m.Fsync.P50, m.Fsync.P99, m.Load)
	return err
}

// procField gives the value of the first "key: value" line of a file in /proc.
func procField(path, key string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if k, v, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// fileSystem gives the type of the file system that a path is on, in the
// kernel's words.
func fileSystem(path string) (string, error) {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return "", gpuserver.Wrap(gpuserver.KindUnavailable, "bench: look at "+path, err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", gpuserver.Wrap(gpuserver.KindUnavailable, "bench: read the mounts", err)
	}
	defer f.Close()
	found := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Source: proc(5), mountinfo: field 3 is MAJOR:MINOR, the type follows "-".
		fields := strings.Fields(lines.Text())
		dash := slices.Index(fields, "-")
		if dash < 0 || dash+1 >= len(fields) {
			continue
		}
		if fields[2] == fmt.Sprintf("%d:%d", unix.Major(want.Dev), unix.Minor(want.Dev)) {
			found = fields[dash+1]
		}
	}
	if found == "" { // btrfs and others give files a device of their own
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			return "", gpuserver.Wrap(gpuserver.KindUnavailable, "bench: look at "+path, err)
		}
		found = fmt.Sprintf("type 0x%x", st.Type)
	}
	return found, nil
}

// realDisk makes dir and refuses one in memory: there a commit costs nothing.
func realDisk(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "bench: make "+dir, err)
	}
	fs, err := fileSystem(dir)
	if err == nil && (fs == "tmpfs" || fs == "ramfs") {
		return gpuserver.Errorf(gpuserver.KindInvalid, "bench: %s is on %s, in memory; name a folder on a disk with --dir", dir, fs)
	}
	return err
}

// fsyncLatency is how long it takes to have 4 KiB more on disk.
func fsyncLatency(path string) (Quantiles, error) {
	fail := func(err error) (Quantiles, error) {
		return Quantiles{}, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: measure fsync", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fail(err)
	}
	defer os.Remove(path)
	defer f.Close()
	page, took := make([]byte, 4096), make([]time.Duration, 0, fsyncs)
	for range fsyncs {
		start := time.Now()
		if _, err := f.Write(page); err != nil {
			return fail(err)
		}
		if err := f.Sync(); err != nil {
			return fail(err)
		}
		took = append(took, time.Since(start))
	}
	return quantiles(took), nil
}

// pragmas asks the store itself: some of them are of the connection, not of the
// file.
func pragmas(ctx context.Context, path string) (map[string]string, error) {
	db, err := store.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return db.Pragmas(ctx)
}
