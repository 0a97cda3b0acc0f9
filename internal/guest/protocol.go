// Package guest is what a VM is handed and the agent inside it.
//
// A VM gets one config drive in OpenStack's layout. Its user data carries a
// Payload; the agent in an image of ours reads it and starts the runner before
// cloud-init would have, a stock image's cloud-init carries out its
// cloud-config. The agent reports over HTTP to the agent listener with a token
// that speaks for its own VM only.
//
// The guest is hostile: everything that it sends is bounded here, and nothing
// that it says frees another VM's lease or ends another VM's job.
package guest

import (
	"context"
	"time"

	"gpuserver"
	"gpuserver/internal/gate"
)

// Protocol is the version of Payload and of the agent's HTTP interface. The
// server supports images whose agent is a year old.
const Protocol = 1

// Payload is what the agent is told. It travels in the user data and is removed
// from the guest's disk once read.
type Payload struct {
	Protocol int    `json:"protocol"`
	VM       string `json:"vm"`     // the VM's name
	Server   string `json:"server"` // base URL of the agent listener, "http://192.168.77.1:8441"
	Token    string `json:"token"`  // bearer token for it; a secret

	// Exactly one of JITConfig and Command is set.
	JITConfig string             `json:"jit_config,omitempty"` // a secret: what the runner is started with
	Command   *gpuserver.Command `json:"command,omitempty"`    // run instead of a runner

	Repo       string `json:"repo,omitempty"` // what the VM was made for: the only run that may start with the server unreachable
	RunID      int64  `json:"run_id,omitempty"`
	RunAttempt int    `json:"run_attempt,omitempty"`

	// Gate is what the cards are checked against before the runner's process
	// starts, and after the job; nil: the VM has none.
	Gate *gate.Expectation `json:"gate,omitempty"`

	Env        map[string]string     `json:"env,omitempty"` // system-wide environment, not secret
	SetupInfo  []gpuserver.SetupInfo `json:"setup_info,omitempty"`
	MTU        int                   `json:"mtu,omitempty"`         // of the guest's network; 0: as it is
	ReserveMiB int64                 `json:"reserve_mib,omitempty"` // memory kept for agent and system; 0: 256
	Grace      time.Duration         `json:"grace,omitempty"`       // between interrupt and kill of the runner; 0: 30 s
	BeatEvery  time.Duration         `json:"beat_every,omitempty"`  // heartbeat interval; 0: 10 s
}

// Heartbeat is what the agent reports: at each phase at once, else every
// BeatEvery. POST /guest/v1/heartbeat, at most 16 KiB.
type Heartbeat struct {
	Phase         string  `json:"phase"`          // the phase reached: agent, network, gate, runner, job_started, exited
	UptimeSeconds float64 `json:"uptime_seconds"` // of the guest's kernel, now
	// AgoSeconds is how long ago Phase was reached: a report waits until there
	// is a network, and until the server answers.
	AgoSeconds    float64 `json:"ago_seconds,omitempty"`
	MemPeakMiB    int64   `json:"mem_peak_mib"`  // of the job's slice
	DiskPeakMiB   int64   `json:"disk_peak_mib"` // used on the root file system
	DiskFull      bool    `json:"disk_full"`
	OOMKills      int64   `json:"oom_kills"` // in the job's slice
	RunnerVersion string  `json:"runner_version,omitempty"`
	AgentVersion  string  `json:"agent_version,omitempty"`
	Kernel        string  `json:"kernel,omitempty"` // uname -a
	// RunnerExit is set once, in the report of phase exited: the status of the
	// runner or the command (128+n for a signal).
	RunnerExit *int   `json:"runner_exit,omitempty"`
	Verdict    string `json:"verdict,omitempty"` // "memory", "disk", "timeout", "gate" or ""
	// Gate is what the gate found: with phase gate before the runner, with phase
	// exited after the job.
	Gate *gate.Report `json:"gate,omitempty"`
}

// Orders is the server's answer to a heartbeat.
type Orders struct {
	// Interrupt asks the agent to interrupt the runner (time limit, or cancelled
	// locally): SIGINT, Grace, then kill.
	Interrupt bool   `json:"interrupt,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// JobStarted is what the runner's job-started hook asks.
// POST /guest/v1/job-started.
type JobStarted struct {
	Repo       string `json:"repo"`
	RunID      int64  `json:"run_id"`
	RunAttempt int    `json:"run_attempt"`
	Job        string `json:"job"` // the workflow's key of the job (GITHUB_JOB)
}

// Verdict answers JobStarted: 200 with Allowed true, or 403 with Text.
type Verdict struct {
	Allowed bool   `json:"allowed"`
	Text    string `json:"text,omitempty"` // shown in the job's log
}

// Service is what the agent listener's handler needs of the server.
type Service interface {
	// Authenticate gives the VM that a bearer token speaks for; KindRefused if
	// there is none or it is gone.
	Authenticate(ctx context.Context, token string) (gpuserver.VMID, error)
	Heartbeat(ctx context.Context, vm gpuserver.VMID, h Heartbeat) (Orders, error)
	JobStarted(ctx context.Context, vm gpuserver.VMID, j JobStarted) (Verdict, error)
	// Output takes a piece of a command's output. POST /guest/v1/output/{stream}
	// with ?offset=N, at most 64 KiB; stream is "stdout" or "stderr". A piece
	// that was seen before is success; KindConflict if it would leave a gap.
	Output(ctx context.Context, vm gpuserver.VMID, stream string, offset int64, data []byte) error
}
