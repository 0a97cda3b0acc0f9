package guest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver/internal/gate"
)

// jobSlice is the cgroup of runner, job and containers: systemd's
// gpuserver-job.slice lies in gpuserver.slice.
const jobSlice = "sys/fs/cgroup/gpuserver.slice/gpuserver-job.slice"

// Marks of a full disk: less than this left to the job's user.
const diskFullBytes = 4 << 20

// stepOOMScore is the oom_score_adj of all that a job starts; the real runner
// gives it to its steps, the agent to containers.
// Source: actions/runner, ProcessInvoker.
const stepOOMScore = 500

// status is what the next heartbeat says.
type status struct {
	agent *agent

	mu      sync.Mutex
	beat    Heartbeat
	pending []reachedPhase // not yet told, oldest first
}

// reachedPhase is a phase and when it was reached, on the monotonic clock.
type reachedPhase struct {
	name string
	at   time.Time
	gate *gate.Report // with the phases gate and exited
}

func newStatus(a *agent) *status {
	s := &status{agent: a}
	s.beat.AgentVersion = AgentVersion
	s.beat.Kernel = unameAll()
	return s
}

// reached notes a phase; it is told to the server at once, or as soon as that
// answers.
func (s *status) reached(phase string) { s.reachedWith(phase, nil) }

// reachedWith notes a phase, and what the gate found in it.
func (s *status) reachedWith(phase string, r *gate.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat.Phase = phase
	s.pending = append(s.pending, reachedPhase{phase, time.Now(), r})
	s.agent.log.Info("phase", "name", phase, "uptime", uptime().Seconds())
}

// ended notes how the runner ended, and why as far as the guest knows, and the
// state of the cards after it.
func (s *status) ended(exit jobExit, after *gate.Report) {
	s.look()
	s.mu.Lock()
	s.beat.RunnerExit = &exit.status
	switch {
	case exit.gated:
		s.beat.Verdict = VerdictGate
	case exit.timedOut:
		s.beat.Verdict = VerdictTimeout
	case s.beat.OOMKills > 0:
		s.beat.Verdict = VerdictMemory
	case s.beat.DiskFull:
		s.beat.Verdict = VerdictDisk
	}
	s.mu.Unlock()
	s.reachedWith(PhaseExited, after)
	s.agent.report.wake()
}

func (s *status) setRunnerVersion(v string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat.RunnerVersion = v
}

// next gives the heartbeat to send: of the oldest phase not yet told, or of now.
func (s *status) next() (beat Heartbeat, phase bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	beat = s.beat
	beat.UptimeSeconds = uptime().Seconds()
	if len(s.pending) == 0 {
		return beat, false
	}
	beat.Phase, beat.Gate = s.pending[0].name, s.pending[0].gate
	beat.AgoSeconds = time.Since(s.pending[0].at).Seconds()
	if beat.Phase != PhaseExited {
		beat.RunnerExit, beat.Verdict = nil, ""
	}
	return beat, true
}

// told drops the oldest phase, once the server has it.
func (s *status) told() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = s.pending[1:]
}

// sample looks at memory and disk until ctx ends.
func (s *status) sample(ctx context.Context) {
	tick := time.NewTicker(s.agent.SampleEvery)
	defer tick.Stop()
	for {
		s.look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look takes one sample.
func (s *status) look() {
	a := s.agent
	slice := a.path(jobSlice)
	peak := readNumber(filepath.Join(slice, "memory.peak"))
	if peak == 0 { // kernels before 5.19
		peak = readNumber(filepath.Join(slice, "memory.current"))
	}
	kills := readKey(filepath.Join(slice, "memory.events"), "oom_kill")
	used, full := diskUse(a.path("/"))

	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat.MemPeakMiB = max(s.beat.MemPeakMiB, peak>>20)
	s.beat.OOMKills = max(s.beat.OOMKills, kills)
	s.beat.DiskPeakMiB = max(s.beat.DiskPeakMiB, used>>20)
	s.beat.DiskFull = s.beat.DiskFull || full
	if !a.Unprivileged {
		exposeContainers(slice)
	}
}

// exposeContainers gives containers the same oom_score_adj as steps: Docker
// starts them with 0, beside the runner's scope in the job's slice.
func exposeContainers(slice string) {
	groups, _ := filepath.Glob(filepath.Join(slice, "*.scope", "cgroup.procs"))
	for _, group := range groups {
		if strings.HasPrefix(filepath.Base(filepath.Dir(group)), runnerScope) {
			continue
		}
		pids, _ := os.ReadFile(group) // gone meanwhile
		for pid := range strings.FieldsSeq(string(pids)) {
			file := filepath.Join("/proc", pid, "oom_score_adj")
			if readNumber(file) < stepOOMScore {
				_ = os.WriteFile(file, []byte(strconv.Itoa(stepOOMScore)), 0) // ended meanwhile
			}
		}
	}
}

// diskUse gives the bytes used on path's file system, and whether it is full
// for users other than root.
func diskUse(path string) (used int64, full bool) {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil {
		return 0, false
	}
	return int64(fs.Blocks-fs.Bfree) * fs.Bsize, int64(fs.Bavail)*fs.Bsize < diskFullBytes || fs.Ffree == 0 && fs.Files > 0
}

// limitMemory gives the job's slice all memory but the reserve.
func (a *agent) limitMemory() error {
	total := readKey(a.path("proc/meminfo"), "MemTotal:") << 10
	if total == 0 {
		return guestError("read the size of memory", os.ErrNotExist)
	}
	limit := memoryLimit(total, orDefault(a.payload.ReserveMiB, defaultReserve))
	err := run("systemctl", "set-property", "--runtime", "gpuserver-job.slice", "MemoryMax="+strconv.FormatInt(limit, 10))
	if err != nil {
		return guestError("set the memory limit of gpuserver-job.slice", err)
	}
	if got := readNumber(a.path(jobSlice, "memory.max")); got == 0 || got > limit {
		return guestError("set the memory limit of gpuserver-job.slice", os.ErrInvalid)
	}
	return nil
}

// memoryLimit gives the bytes that the job may have of total: all but the
// reserve, and never less than half.
func memoryLimit(total, reserveMiB int64) int64 {
	return max(total-reserveMiB<<20, total/2) &^ 4095
}

// readNumber reads a file that holds one number, 0 if it does not.
func readNumber(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64) // "max" and damage: 0
	return n
}

// readKey reads the number after key in a file of lines "key number …".
func readKey(path, key string) int64 {
	b, _ := os.ReadFile(path) // not there: 0
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == key {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n
		}
	}
	return 0
}

// unameAll gives what uname -a prints, but for the parts that it guesses.
func unameAll() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	var parts []string
	for _, field := range [][65]byte{u.Sysname, u.Nodename, u.Release, u.Version, u.Machine} {
		parts = append(parts, unix.ByteSliceToString(field[:]))
	}
	return strings.Join(slices.Concat(parts, []string{"GNU/Linux"}), " ")
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
