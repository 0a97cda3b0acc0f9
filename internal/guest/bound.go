package guest

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Phases that an agent reports, in order.
const (
	PhaseAgent      = "agent"       // the agent has read its payload
	PhaseNetwork    = "network"     // the guest has an address
	PhaseGate       = "gate"        // the VM's cards were checked; only of a VM with cards
	PhaseRunner     = "runner"      // the runner, or the command, was started
	PhaseJobStarted = "job_started" // the job-started hook was answered with yes
	PhaseExited     = "exited"      // the runner, or the command, ended
)

// Verdicts on how a runner or command ended.
const (
	VerdictMemory  = "memory"  // the kernel killed processes of the job for memory
	VerdictDisk    = "disk"    // the root file system had no room left
	VerdictTimeout = "timeout" // the command ran longer than its own limit
	VerdictGate    = "gate"    // nothing was started: the VM's cards failed their check
)

// maxMiB bounds amounts of memory and disk: a pebibyte.
const maxMiB = 1 << 30

// bound brings what a hostile guest reported into the ranges that people and
// the store can bear.
func (h *Heartbeat) bound() {
	h.Phase = boundText(h.Phase, 32)
	h.UptimeSeconds = min(max(h.UptimeSeconds, 0), 10*365*24*3600)
	h.AgoSeconds = min(max(h.AgoSeconds, 0), h.UptimeSeconds)
	h.MemPeakMiB = min(max(h.MemPeakMiB, 0), maxMiB)
	h.DiskPeakMiB = min(max(h.DiskPeakMiB, 0), maxMiB)
	h.OOMKills = min(max(h.OOMKills, 0), 1<<40)
	h.RunnerVersion = boundText(h.RunnerVersion, 64)
	h.AgentVersion = boundText(h.AgentVersion, 64)
	h.Kernel = boundText(h.Kernel, 256)
	h.Verdict = boundText(h.Verdict, 32)
	if h.RunnerExit != nil {
		status := min(max(*h.RunnerExit, 0), 255)
		h.RunnerExit = &status
	}
	if h.Gate != nil {
		h.Gate.Bound()
	}
}

// boundText gives s without control characters, as valid UTF-8 of at most n
// bytes.
func boundText(s string, n int) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
	for len(clean) > n {
		_, size := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-size]
	}
	return clean
}
