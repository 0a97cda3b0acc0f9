package gpuserver

import "time"

// Owner is who owns repositories, runners or a share of the machine.
type Owner struct {
	Kind OwnerKind `json:"kind"`
	Name string    `json:"name"` // "octo-org", or "octo-org/hello" for a repository
}

// OwnerKind distinguishes owners.
type OwnerKind string

// The kinds of owners.
const (
	OwnerUser         OwnerKind = "user"
	OwnerOrganisation OwnerKind = "organisation"
	OwnerRepository   OwnerKind = "repository"
)

// JobID is our own number of a job; it is never reused.
type JobID int64

// VMID is our own number of a VM; it is never reused.
type VMID int64

// ForgeState is what the forge says of a job. The order of the constants is the
// only direction in which it moves.
type ForgeState string

// A job's states on the forge (the actions of GitHub's workflow_job event).
const (
	ForgeWaiting    ForgeState = "waiting" // held by a deployment rule; no VM yet
	ForgeQueued     ForgeState = "queued"
	ForgeInProgress ForgeState = "in_progress"
	ForgeCompleted  ForgeState = "completed"
)

// Rank orders forge states; a job never moves to a lower rank. Unknown states
// rank 0.
func (s ForgeState) Rank() int {
	switch s {
	case ForgeWaiting:
		return 1
	case ForgeQueued:
		return 2
	case ForgeInProgress:
		return 3
	case ForgeCompleted:
		return 4
	}
	return 0
}

// JobState is how far we are with a job.
type JobState string

// A job's states.
const (
	JobWaiting  JobState = "waiting"  // the forge holds it back; nothing to do
	JobReceived JobState = "received" // stored; may it run, and on what, is still to be decided
	JobRefused  JobState = "refused"  // access says no; the reason is in Reason
	JobQueued   JobState = "queued"   // allowed; waits for a VM
	JobStarting JobState = "starting" // a VM is being made for it
	JobRunning  JobState = "running"  // the forge says that a runner has it
	JobDone     JobState = "done"     // the forge says that it ended (any conclusion)
	JobFailed   JobState = "failed"   // we gave up making a VM for it
)

// Over reports whether nothing more will happen to a job in state s.
func (s JobState) Over() bool { return s == JobDone || s == JobFailed || s == JobRefused }

// JobMoves is the table of allowed moves between job states. A job that the
// forge reports completed may end from anywhere.
var JobMoves = map[JobState][]JobState{
	"":          {JobWaiting, JobReceived, JobRunning, JobDone},
	JobWaiting:  {JobReceived, JobRunning, JobDone},
	JobReceived: {JobRefused, JobQueued, JobRunning, JobDone, JobFailed},
	JobRefused:  {JobReceived, JobRunning, JobDone},
	JobQueued:   {JobReceived, JobStarting, JobRunning, JobDone, JobFailed},
	JobStarting: {JobReceived, JobQueued, JobRunning, JobDone, JobFailed},
	JobRunning:  {JobDone},
	JobDone:     {},
	JobFailed:   {JobReceived, JobRunning, JobDone},
}

// Job is one job of a forge (or of `gpuserver run`) as we know it.
type Job struct {
	ID      JobID  `json:"id"`
	Forge   string `json:"forge"`    // the forge's name in the configuration; "local" for gpuserver run
	ForgeID int64  `json:"forge_id"` // the forge's number of the job

	Repo           string   `json:"repo"` // "owner/name"
	RepoID         int64    `json:"repo_id"`
	InstallationID int64    `json:"installation_id,omitempty"`
	RunID          int64    `json:"run_id"`
	RunAttempt     int      `json:"run_attempt"`
	Name           string   `json:"name"`
	Workflow       string   `json:"workflow,omitempty"`
	Labels         []string `json:"labels"`
	HeadSHA        string   `json:"head_sha,omitempty"`
	HeadBranch     string   `json:"head_branch,omitempty"`
	URL            string   `json:"url,omitempty"`
	Actor          string   `json:"actor,omitempty"` // triggering actor, known once decided

	ForgeState ForgeState `json:"forge_state"`
	Conclusion string     `json:"conclusion,omitempty"` // the forge's word, once completed
	RunnerName string     `json:"runner_name,omitempty"`

	State    JobState `json:"state"`
	Reason   Reason   `json:"reason"`
	Resource string   `json:"resource,omitempty"` // the runner entry's name that matched
	Entries  []Entry  `json:"entries,omitempty"`  // where it may run, in order
	Tries    int      `json:"tries"`              // VMs that were made for it and failed
	VM       VMID     `json:"vm,omitempty"`       // the VM made for it, or the one that runs it

	CreatedAt time.Time `json:"created_at"`
	QueuedAt  time.Time `json:"queued_at,omitzero"`
	DecidedAt time.Time `json:"decided_at,omitzero"`
	StartedAt time.Time `json:"started_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	NextTryAt time.Time `json:"next_try_at,omitzero"` // not planned before this time
	UpdatedAt time.Time `json:"updated_at"`

	// Command is what a local job runs instead of a forge's runner.
	Command *Command `json:"command,omitempty"`
}

// Command is a program to run in a VM without a forge.
type Command struct {
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env,omitempty"`
	Timeout time.Duration     `json:"timeout,omitempty"`
}

// Entry is one place where a job may run: a Cirun runner entry with its lists
// zipped, mapped to our own names.
type Entry struct {
	Cloud     string            `json:"cloud"`  // our cloud's name
	Flavor    string            `json:"flavor"` // our flavor's name
	Image     string            `json:"image"`  // our image's name
	Runner    string            `json:"runner"` // the runner entry that it came from
	Env       map[string]string `json:"env,omitempty"`
	SetupInfo []SetupInfo       `json:"setup_info,omitempty"`
	// Pin is the one card that will do, also while it is out of service: the job
	// tests it. The zero value: any.
	Pin Place `json:"pin,omitzero"`
}

// SetupInfo is shown in the job's first step ("Set up job").
type SetupInfo struct {
	Group  string `json:"group"`
	Detail string `json:"detail"`
}

// Reason says why a job waits, was refused or failed, and what would change it.
// The zero Reason is "nothing to say".
type Reason struct {
	Class ReasonClass `json:"class,omitempty"`
	Text  string      `json:"text,omitempty"` // one sentence for the person who waits
	Help  string      `json:"help,omitempty"` // what would change it
}

// ReasonClass groups reasons; a check run is rewritten when the class changes.
type ReasonClass string

// The classes of reasons.
const (
	ReasonCapacity    ReasonClass = "capacity"     // no room on any cloud that could run it
	ReasonBehind      ReasonClass = "behind"       // others are first in the queue
	ReasonRetry       ReasonClass = "retry"        // a VM failed; another will be tried at NextTryAt
	ReasonForgeBudget ReasonClass = "forge_budget" // the forge's rate limit
	ReasonUnreachable ReasonClass = "unreachable"  // a cloud or the forge cannot be reached
	ReasonImageHeld   ReasonClass = "image_held"   // the image was held after repeated failures
	ReasonSuspended   ReasonClass = "suspended"    // its flavor is suspended on the cloud: the ledger has room, and the cloud found no host
	ReasonStarting    ReasonClass = "starting"     // its VM is being made
	ReasonNoAccess    ReasonClass = "no_access"    // a policy refuses it
	ReasonNoRunner    ReasonClass = "no_runner"    // no runner entry matches its labels
	ReasonNoPlace     ReasonClass = "no_place"     // the entry matches, but names nothing that we have
	ReasonConfig      ReasonClass = "config"       // a configuration file cannot be read
	ReasonGaveUp      ReasonClass = "gave_up"      // too many VMs failed
	ReasonGPU         ReasonClass = "gpu"          // a GPU failed while it ran
)
