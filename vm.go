package gpuserver

import "time"

// VMState is the step of its life that a VM is in. Each step may be run twice;
// a restart goes on with the step that it finds.
type VMState string

// The states of a VM, in the order of its life.
const (
	VMLeased   VMState = "leased"   // capacity is taken and the names are committed; the runner is being registered
	VMCreating VMState = "creating" // the cloud is asked to create it
	VMBooting  VMState = "booting"  // created; its agent has not reported yet
	VMReady    VMState = "ready"    // the runner is up and has no job
	VMBusy     VMState = "busy"     // the forge says that its runner has a job
	VMDraining VMState = "draining" // the runner is being deleted, so that no job can start any more
	VMDeleting VMState = "deleting" // the cloud is asked to delete it
	VMKeeping  VMState = "keeping"  // its cards failed, and the cloud chose them: it is being stopped, to hold them
	VMKept     VMState = "kept"     // off, and holds its cards until they may be used again
	VMGone     VMState = "gone"     // verified gone; its lease is released in the same commit
)

// Alive reports whether a VM in state s still holds its lease.
func (s VMState) Alive() bool { return s != VMGone }

// VMMoves is the table of allowed moves between VM states.
var VMMoves = map[VMState][]VMState{
	"":         {VMLeased},
	VMLeased:   {VMCreating, VMDraining},
	VMCreating: {VMLeased, VMBooting, VMReady, VMBusy, VMDraining},
	VMBooting:  {VMReady, VMBusy, VMDraining, VMDeleting},
	VMReady:    {VMBusy, VMDraining, VMDeleting},
	VMBusy:     {VMDraining, VMDeleting},
	VMDraining: {VMBusy, VMDeleting, VMKeeping},
	VMKeeping:  {VMKept, VMDeleting},
	VMKept:     {VMDeleting},
	VMDeleting: {VMGone},
	VMGone:     {},
}

// VM is one virtual machine: made for one job, gone after one job.
type VM struct {
	ID     VMID    `json:"id"`
	Name   string  `json:"name"`  // its name on the cloud; from our own id, committed before any call
	Forge  string  `json:"forge"` // of the job that it was made for
	Cloud  string  `json:"cloud"`
	Host   string  `json:"host"`
	Flavor string  `json:"flavor"`
	Image  string  `json:"image"`
	State  VMState `json:"state"`
	Reason string  `json:"reason,omitempty"` // why it is being taken down

	MadeFor  JobID  `json:"made_for,omitempty"` // the job that it was made for (may be re-pointed to a sibling)
	Assigned JobID  `json:"assigned,omitempty"` // the job that the forge says it runs
	CloudID  string `json:"cloud_id,omitempty"`
	// Reserved is what the cloud calls the cards of a kept VM, if it holds them back
	// in the VM's place; "": the VM itself holds them.
	Reserved string `json:"reserved,omitempty"`
	Resource string `json:"resource,omitempty"`
	// Claims are the slots that its lease takes, with the cards that it has. They
	// are the lease's, and change no more.
	Claims []Claim `json:"claims,omitempty"`
	Entry  Entry   `json:"entry"`

	Runner Runner `json:"runner"`

	TokenHash string `json:"-"` // SHA-256 of its agent token, hex

	CreatedAt     time.Time `json:"created_at"`
	StateAt       time.Time `json:"state_at"`
	BootDeadline  time.Time `json:"boot_deadline,omitzero"`
	JobDeadline   time.Time `json:"job_deadline,omitzero"`
	HeartbeatAt   time.Time `json:"heartbeat_at,omitzero"`
	NextTryAt     time.Time `json:"next_try_at,omitzero"`
	Tries         int       `json:"tries"` // of the current step
	InterruptedAt time.Time `json:"interrupted_at,omitzero"`

	Guest GuestReport `json:"guest"`
}

// Runner is the forge's side of a VM: a registration that takes one job.
type Runner struct {
	Name    string      `json:"name,omitempty"` // VM name + attempt; at most 64 characters
	ID      int64       `json:"id,omitempty"`   // the forge's number
	Attempt int         `json:"attempt,omitempty"`
	State   RunnerState `json:"state,omitempty"`
	Scope   Owner       `json:"scope,omitzero"` // where it is registered
	Labels  []string    `json:"labels,omitempty"`
}

// RunnerState is what we know of a registration.
type RunnerState string

// The states of a runner.
const (
	RunnerNone       RunnerState = ""
	RunnerNamed      RunnerState = "named"      // the name is committed; the call may have happened
	RunnerRegistered RunnerState = "registered" // the forge has it
	RunnerDeleted    RunnerState = "deleted"    // deleted by us, or removed by the forge after its job
)

// GuestReport is what the agent in a VM last said of it. It comes from a
// hostile place: bounded, informative, never a proof.
type GuestReport struct {
	Phase         string    `json:"phase,omitempty"`
	JobStarted    bool      `json:"job_started,omitempty"` // a job began in it: its hook asked, or the agent says so
	BootAt        time.Time `json:"boot_at,omitzero"`      // now − uptime, on our own clock
	MemPeakMiB    int64     `json:"mem_peak_mib,omitempty"`
	DiskPeakMiB   int64     `json:"disk_peak_mib,omitempty"`
	OOMKills      int64     `json:"oom_kills,omitempty"`
	Gate          string    `json:"gate,omitempty"`       // of its cards before the runner: "passed" or "failed"; "": not told
	GateAfter     string    `json:"gate_after,omitempty"` // and after the job
	DiskFull      bool      `json:"disk_full,omitempty"`
	RunnerVersion string    `json:"runner_version,omitempty"`
	RunnerExit    *int      `json:"runner_exit,omitempty"`
	AgentVersion  string    `json:"agent_version,omitempty"`
	Kernel        string    `json:"kernel,omitempty"`
}

// Flavor is a size of VM, in OpenStack's sense.
type Flavor struct {
	Name      string        `json:"name"`
	VCPUs     int           `json:"vcpus"`
	MemoryMiB int64         `json:"memory_mib"`
	DiskGiB   int64         `json:"disk_gib"`
	TimeLimit time.Duration `json:"time_limit"` // for a job on it; 0 is the configuration's default
	GPUs      GPUs          `json:"gpus,omitzero"`
}

// GPUs are the cards that a flavor has: so many of one model; none if Count is 0.
type GPUs struct {
	Model string `json:"model"` // our own name of the model
	Count int    `json:"count"`
}

// Image is what a VM boots.
type Image struct {
	Name    string   `json:"name"`
	Aliases []string `json:"aliases,omitempty"` // foreign machine_image names that mean it
}

// Host is a machine that VMs run on, with its room.
type Host struct {
	Cloud     string `json:"cloud"`
	Name      string `json:"name"`
	VCPUs     int    `json:"vcpus"`      // usable for VMs in total, over-commit included
	MemoryMiB int64  `json:"memory_mib"` // usable for VMs in total
	DiskGiB   int64  `json:"disk_gib"`   // usable for VMs in total: really free now + already leased
	MaxVMs    int    `json:"max_vms"`    // 0: no limit
	// Bound is what its room is bounded by where that is no machine's size, such as
	// "the project's quotas"; "" is a machine.
	Bound string `json:"bound,omitempty"`
	Slots []Slot `json:"slots,omitempty"`
}

// Slot is one IOMMU group with the devices in it: the unit in which GPUs are
// leased, because two VMs can never share a group.
// Source: Linux Documentation/driver-api/vfio.rst, "Groups, Devices, and IOMMUs".
type Slot struct {
	Group    int    `json:"group"`
	Cards    []Card `json:"cards"`         // the GPUs in it, by address
	NUMANode int    `json:"numa_node"`     // -1: none, or not known
	Out      string `json:"out,omitempty"` // why no VM may have it now; "": one may
	// Testable says that Out is our own word for its cards (cordoned, quarantined,
	// resting), not its host's: a job that is pinned to one of them may have it.
	Testable bool `json:"testable,omitempty"`
}

// Card is one GPU of a slot.
type Card struct {
	Address string `json:"address"` // BDF, such as 0000:27:00.0
	Model   string `json:"model"`   // our own name of the model
}

// Place is where a card is: on a host, at an address.
type Place struct {
	Host    string `json:"host"`
	Address string `json:"address"` // BDF
}

// Claim is a slot that a lease takes. It takes the slot whole, whether it uses
// all of its cards or not.
type Claim struct {
	Group int      `json:"group"`
	Cards []string `json:"cards"` // addresses of the cards that the VM gets
}

// Lease is capacity of a host taken for one VM. It is held from the commit that
// names the VM to the commit that verifies it gone.
type Lease struct {
	VM         VMID      `json:"vm"`
	Cloud      string    `json:"cloud"`
	Host       string    `json:"host"`
	VCPUs      int       `json:"vcpus"`
	MemoryMiB  int64     `json:"memory_mib"`
	DiskGiB    int64     `json:"disk_gib"`
	Claims     []Claim   `json:"claims,omitempty"`
	TakenAt    time.Time `json:"taken_at"`
	ReleasedAt time.Time `json:"released_at,omitzero"`
}

// Event is one line of a job's or VM's history. Every state change is committed
// together with the event that explains it.
type Event struct {
	ID   int64     `json:"id"`
	At   time.Time `json:"at"`
	Job  JobID     `json:"job,omitempty"`
	VM   VMID      `json:"vm,omitempty"`
	Kind string    `json:"kind"` // a phase (delivered, stored, …), a state change or a repair
	Text string    `json:"text,omitempty"`
}

// The phases of a job, in order; each is an event of this kind.
const (
	PhaseDelivered    = "delivered"     // the forge's time of the delivery reaching us
	PhaseStored       = "stored"        // committed
	PhaseDecided      = "decided"       // may run, and on what
	PhaseCreateCalled = "create_called" // the cloud was asked
	PhaseKernel       = "kernel"        // the guest's kernel started
	PhaseAgent        = "agent"         // the guest's agent started
	PhaseRunner       = "runner"        // the runner was started
	PhaseJobStarted   = "job_started"   // the forge says that the job runs
	PhaseJobEnded     = "job_ended"     // the forge says that the job ended
	PhaseDeleteCalled = "delete_called" // the cloud was asked to delete the VM
	PhaseGone         = "gone"          // the VM was verified gone
)

// Phases lists the phases in the order in which a job passes them.
var Phases = []string{
	PhaseDelivered, PhaseStored, PhaseDecided, PhaseCreateCalled, PhaseKernel, PhaseAgent,
	PhaseRunner, PhaseJobStarted, PhaseJobEnded, PhaseDeleteCalled, PhaseGone,
}
