package guest

import "gpuserver/internal/gate"

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
	h.Phase = gate.Clip(h.Phase, 32)
	h.UptimeSeconds = min(max(h.UptimeSeconds, 0), 10*365*24*3600)
	h.AgoSeconds = min(max(h.AgoSeconds, 0), h.UptimeSeconds)
	h.MemPeakMiB = min(max(h.MemPeakMiB, 0), maxMiB)
	h.DiskPeakMiB = min(max(h.DiskPeakMiB, 0), maxMiB)
	h.OOMKills = min(max(h.OOMKills, 0), 1<<40)
	h.RunnerVersion = gate.Clip(h.RunnerVersion, 64)
	h.AgentVersion = gate.Clip(h.AgentVersion, 64)
	h.Kernel = gate.Clip(h.Kernel, 256)
	h.Verdict = gate.Clip(h.Verdict, 32)
	if h.RunnerExit != nil {
		status := min(max(*h.RunnerExit, 0), 255)
		h.RunnerExit = &status
	}
	if h.Gate != nil {
		h.Gate.Bound()
	}
}
