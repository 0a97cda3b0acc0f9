package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"gpuserver"
)

// idle measures the memory of a service that has nothing to do, some seconds
// after its start.
func (b *bench) idle() error {
	w, err := b.newWorld("idle", forgeArgs{}, cloudArgs{MaxVMs: unlimited, Guest: "none"})
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return err
	}
	m, err := w.sampleMemory(b.Size.MemorySettle / 3)
	if err != nil {
		return err
	}
	b.report.Memory.Idle, b.report.RSSIdle = m, m.RSS
	b.say("   VmRSS %.1f MiB, of that %.1f MiB anonymous", m.RSS, m.Anon)
	return nil
}

// memory measures it while many VMs are there, each of which has registered a
// runner, runs a job and reports every 10 s.
func (b *bench) memory() error {
	w, err := b.newWorld("memory", forgeArgs{}, cloudArgs{MaxVMs: unlimited, Guest: "long"})
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return err
	}
	n := b.Size.MemoryVMs
	start := time.Now()
	if err := w.live(n); err != nil {
		return err
	}
	b.say("   %d VMs run jobs after %.1f s", n, time.Since(start).Seconds())
	m, err := w.sampleMemory(b.Size.MemorySettle)
	if err != nil {
		return err
	}
	vms, err := w.cloud.VMs(w.ctx)
	if err != nil {
		return err
	}
	if len(vms) != n {
		return gpuserver.Errorf(gpuserver.KindInternal, "bench: %d VMs are live, not %d", len(vms), n)
	}
	b.report.Memory.VMs, b.report.Memory.Live, b.report.RSS5000 = m, n, m.RSS
	b.say("   VmRSS %.1f MiB at most while they run, %.1f MiB at last; highest since the start %.1f MiB", m.RSS, m.Last, m.Peak)
	return nil
}

// sampleMemory reads the service's memory twice a second.
func (w *world) sampleMemory(d time.Duration) (most Process, err error) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		select {
		case <-w.ctx.Done():
			return most, w.ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		if err := w.server.ended(); err != nil {
			return most, err
		}
		m, err := memoryOf(w.server.cmd.Process.Pid)
		if err != nil {
			return most, err
		}
		most = Process{RSS: max(most.RSS, m.RSS), Last: m.RSS, Anon: max(most.Anon, m.Anon), Peak: m.Peak}
	}
	return most, nil
}

// memoryOf reads /proc/PID/status, whose numbers are in KiB.
// Source: proc_pid_status(5).
func memoryOf(pid int) (m Process, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	for name, to := range map[string]*float64{"VmRSS": &m.RSS, "RssAnon": &m.Anon, "VmHWM": &m.Peak} {
		kib, _, _ := strings.Cut(procField(path, name), " ")
		n, err := strconv.ParseFloat(kib, 64)
		if err != nil {
			return m, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: read "+name+" in "+path, err)
		}
		*to = round(n/1024, 1)
	}
	return m, nil
}

// cpuOf is the processor time that a process has used.
// Source: proc_pid_stat(5), fields utime and stime, in clock ticks: Linux shows
// programs a hundred a second.
func cpuOf(pid int) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: read "+path, err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name before may hold spaces
	fields := strings.Fields(rest)
	const utime, stime = 14 - 3, 15 - 3 // the rest begins with field 3
	if len(fields) <= stime {
		return 0, gpuserver.Errorf(gpuserver.KindInternal, "bench: %s has only %d fields", path, len(fields))
	}
	var ticks int64
	for _, f := range []string{fields[utime], fields[stime]} {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, gpuserver.Wrap(gpuserver.KindInternal, "bench: read "+path, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
