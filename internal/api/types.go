package api

import (
	"time"

	"gpuserver"
)

// JobDetail is a job with all that is known of its way.
type JobDetail struct {
	Job    gpuserver.Job     `json:"job"`
	VM     *gpuserver.VM     `json:"vm,omitempty" doc:"The VM made for it, or the one that runs it."`
	GPUs   []gpuserver.GPU   `json:"gpus,omitempty" doc:"The cards that its VMs have or had."`
	Phases []PhaseAt         `json:"phases" doc:"The phases passed by the last attempt, in order."`
	Events []gpuserver.Event `json:"events" doc:"Its history, oldest first."`
}

// PhaseAt is a phase that a job passed.
type PhaseAt struct {
	Name    string    `json:"name"`
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds" doc:"Since the phase before."`
}

// Explanation says why a job is where it is, and what would change that.
type Explanation struct {
	Job      gpuserver.JobID       `json:"job"`
	State    gpuserver.JobState    `json:"state"`
	Class    gpuserver.ReasonClass `json:"class,omitempty" doc:"The reason's class."`
	Sentence string                `json:"sentence" doc:"One sentence for the person who waits."`
	Help     string                `json:"help,omitempty" doc:"What would change it."`
	Position int                   `json:"position,omitempty" doc:"The place in the queue, from 1; 0 if it is not in the queue."`
	Waiting  int                   `json:"waiting,omitempty" doc:"How many jobs are in the queue."`
	NextTry  time.Time             `json:"next_try_at,omitzero" doc:"When it is tried again."`
	GPUs     []gpuserver.GPU       `json:"gpus,omitempty" doc:"The cards that its VMs have or had."`
	History  []gpuserver.Event     `json:"history" doc:"What led here, oldest first."`
}

// VMDetail is a VM with its history.
type VMDetail struct {
	VM     gpuserver.VM      `json:"vm"`
	GPUs   []gpuserver.GPU   `json:"gpus,omitempty" doc:"The cards that it has or had."`
	Events []gpuserver.Event `json:"events" doc:"Its history, oldest first."`
}

// Status is the server at a glance.
type Status struct {
	Version  string                     `json:"version"`
	Now      time.Time                  `json:"now" doc:"The server's clock."`
	Ready    bool                       `json:"ready" doc:"Whether jobs can be taken and VMs made."`
	NotReady []string                   `json:"not_ready,omitempty" doc:"What is missing, one sentence each."`
	Warnings []string                   `json:"warnings,omitempty" doc:"What is probably not meant, one sentence each: flavors with cards that no host has."`
	Queue    QueueStatus                `json:"queue"`
	Jobs     map[gpuserver.JobState]int `json:"jobs" doc:"Unfinished jobs by state."`
	VMs      []VMCount                  `json:"vms" doc:"VMs alive by cloud and state."`
	Hosts    []HostStatus               `json:"hosts"`
	Clouds   []CloudStatus              `json:"clouds"`
	Forges   []ForgeStatus              `json:"forges"`
	Images   []HeldImage                `json:"images" doc:"Images with failures in a row, held or not."`
	// Suspended are alarms: somebody has to look.
	Suspended []SuspendedFlavor `json:"suspended" doc:"Flavors of which no VM is made on a cloud: it finds no host for them, although it has room by the ledger."`
	GPUs      GPUSummary        `json:"gpus"`
	Slots     []SlotCount       `json:"slots" doc:"IOMMU groups with GPUs by cloud: free, held by a VM, or out of service."`
}

// FlavorInfo is a size of VM with its other names.
type FlavorInfo struct {
	gpuserver.Flavor
	Aliases []string `json:"aliases,omitempty"`
}

// FlavorList are the sizes of VM.
type FlavorList struct {
	Flavors []FlavorInfo `json:"flavors"`
}

// ImageList is what VMs boot.
type ImageList struct {
	Images []gpuserver.Image `json:"images"`
}

// QueueStatus is the queue at a glance.
type QueueStatus struct {
	Length     int       `json:"length" doc:"Jobs that may run and wait for a VM."`
	Oldest     time.Time `json:"oldest,omitzero" doc:"When the first of them was queued."`
	AgeSeconds float64   `json:"age_seconds" doc:"How long the first of them has waited."`
}

// VMCount is a number of VMs.
type VMCount struct {
	Cloud string            `json:"cloud"`
	State gpuserver.VMState `json:"state"`
	Count int               `json:"count"`
}

// HostStatus is a host with its room and what the leases take of it.
type HostStatus struct {
	gpuserver.Host
	Used Used `json:"used"`
}

// Used is what the leases held on one host take.
type Used struct {
	VMs       int   `json:"vms"`
	VCPUs     int   `json:"vcpus"`
	MemoryMiB int64 `json:"memory_mib"`
	DiskGiB   int64 `json:"disk_gib"`
}

// HeldImage is an image whose runners kept ending without a job.
type HeldImage struct {
	Name     string    `json:"name"`
	Failures int       `json:"failures" doc:"In a row."`
	Held     bool      `json:"held" doc:"Whether no VM is made from it."`
	HeldAt   time.Time `json:"held_at,omitzero"`
	Reason   string    `json:"reason,omitempty"`
}

// SuspendedFlavor is a flavor of which a cloud found no host for VMs in a row,
// although it has room by the ledger.
type SuspendedFlavor struct {
	Cloud    string    `json:"cloud"`
	Flavor   string    `json:"flavor"`
	Failures int       `json:"failures" doc:"In a row."`
	Since    time.Time `json:"since" doc:"When it was suspended."`
	Until    time.Time `json:"until" doc:"From then on one VM is made to try it."`
	Reason   string    `json:"reason"`
}

// RunStatus is how a command job stands.
type RunStatus struct {
	Job        gpuserver.JobID    `json:"job"`
	State      gpuserver.JobState `json:"state"`
	Sentence   string             `json:"sentence" doc:"One sentence on where it is and why."`
	VM         string             `json:"vm,omitempty"`
	Done       bool               `json:"done" doc:"Whether nothing more will happen to it."`
	Conclusion string             `json:"conclusion,omitempty" doc:"success, failure, timed_out or cancelled; empty if the service failed."`
	Exit       *int               `json:"exit,omitempty" doc:"The command's exit status (128+n for signal n), if it ended by itself."`
}
