package forgetest

import (
	"encoding/json"
	"time"

	"gpuserver/internal/forge/forgetest/runnerclient"
)

// App is the GitHub App whose identity the server under test uses.
type App struct {
	ID             int64  `json:"id"`
	ClientID       string `json:"client_id"` // may stand for ID as a token's issuer
	Slug           string `json:"slug"`
	PrivateKeyPEM  string `json:"private_key_pem"`
	WebhookSecret  string `json:"webhook_secret"`
	WebhookURL     string `json:"webhook_url"`     // "": every delivery fails, as to a site without inbound
	InstallationID int64  `json:"installation_id"` // of the first owner that was added; 0 if none
}

// Org is an organisation or, with User set, a user account, that has the App
// installed.
type Org struct {
	Login string `json:"login"`
	User  bool   `json:"user,omitempty"`
	// ID and InstallationID are given by the server.
	ID             int64 `json:"id,omitempty"`
	InstallationID int64 `json:"installation_id,omitempty"`
}

// Repository is a repository of an owner; the owner is added if need be.
type Repository struct {
	Name          string            `json:"name"` // "owner/name"
	Private       bool              `json:"private,omitempty"`
	DefaultBranch string            `json:"default_branch,omitempty"` // "" is main
	ForkOf        string            `json:"fork_of,omitempty"`        // "owner/name"; its files are shared
	Files         map[string]string `json:"files,omitempty"`          // on the default branch
	// Set by the server.
	ID             int64  `json:"id,omitempty"`
	InstallationID int64  `json:"installation_id,omitempty"`
	HeadSHA        string `json:"head_sha,omitempty"` // of the default branch
}

// FileChange writes (or, with Delete, removes) one file: a new commit on a branch.
type FileChange struct {
	Repo    string `json:"repo"`
	Branch  string `json:"branch,omitempty"` // "" is the default branch; made from it if new
	Path    string `json:"path"`
	Content []byte `json:"content"`
	Delete  bool   `json:"delete,omitempty"`
}

// Team is a team of an organisation with its members' logins.
type Team struct {
	Org     string   `json:"org"`
	Slug    string   `json:"slug"`
	Members []string `json:"members"`
	Pending []string `json:"pending,omitempty"` // invited, not yet members
}

// User is an account.
type User struct {
	Login string `json:"login"`
	ID    int64  `json:"id,omitempty"` // 0: given by the server
}

// Role is what a user may do in a repository.
type Role struct {
	Repo  string `json:"repo"`
	Login string `json:"login"`
	Role  string `json:"role"` // admin, maintain, write, triage, read, a custom role's name, "" for none
}

// Group is an organisation's runner group.
type Group struct {
	Org          string   `json:"org"`
	ID           int64    `json:"id,omitempty"` // given by the server; 1 is the default group
	Name         string   `json:"name"`
	PublicRepos  bool     `json:"public_repos"`           // allows_public_repositories
	Repositories []string `json:"repositories,omitempty"` // "owner/name"; nil: visible to all
}

// RunSpec is a workflow run to be dispatched.
type RunSpec struct {
	Repo       string    `json:"repo"`
	Workflow   string    `json:"workflow,omitempty"`    // "" is "CI"
	Event      string    `json:"event,omitempty"`       // "" is "push"
	Actor      string    `json:"actor,omitempty"`       // "" is the repository's owner
	HeadRepo   string    `json:"head_repo,omitempty"`   // "" is Repo; "-": that repository is gone
	HeadBranch string    `json:"head_branch,omitempty"` // "" is HeadRepo's default branch
	HeadSHA    string    `json:"head_sha,omitempty"`    // "" is HeadBranch's newest commit
	Jobs       []JobSpec `json:"jobs"`
}

// JobSpec is a job of a run.
type JobSpec struct {
	Name     string               `json:"name,omitempty"` // "" is "job-N"
	Key      string               `json:"key,omitempty"`  // GITHUB_JOB; "" is Name
	Labels   []string             `json:"labels"`
	Steps    []runnerclient.Step  `json:"steps,omitempty"`
	Env      map[string]string    `json:"env,omitempty"`
	Timeout  runnerclient.Seconds `json:"timeout,omitempty"`
	Waiting  bool                 `json:"waiting,omitempty"`  // held by a deployment rule until Approve
	Hold     bool                 `json:"hold,omitempty"`     // queued, but given to no runner until Release
	Priority int                  `json:"priority,omitempty"` // higher is taken first; equal: oldest first
}

// Run is one attempt of a workflow run.
type Run struct {
	ID              int64  `json:"id"`
	Attempt         int    `json:"attempt"`
	Repo            string `json:"repo"`
	Event           string `json:"event"`
	Actor           string `json:"actor"`
	TriggeringActor string `json:"triggering_actor"`
	HeadSHA         string `json:"head_sha"`
	Status          string `json:"status"`
	Conclusion      string `json:"conclusion"`
	Jobs            []Job  `json:"jobs"`
}

// Job is a job's present state.
type Job struct {
	ID          int64     `json:"id"`
	RunID       int64     `json:"run_id"`
	RunAttempt  int       `json:"run_attempt"`
	Repo        string    `json:"repo"`
	Name        string    `json:"name"`
	Labels      []string  `json:"labels"`
	Status      string    `json:"status"` // waiting, queued, in_progress, completed
	Conclusion  string    `json:"conclusion,omitempty"`
	RunnerID    int64     `json:"runner_id,omitempty"`
	RunnerName  string    `json:"runner_name,omitempty"`
	Message     string    `json:"message,omitempty"` // why it failed, if the runner or the server said
	CreatedAt   time.Time `json:"created_at"`
	QueuedAt    time.Time `json:"queued_at,omitzero"`
	StartedAt   time.Time `json:"started_at,omitzero"`
	CompletedAt time.Time `json:"completed_at,omitzero"`
	LogBytes    int64     `json:"log_bytes"`
	// Dispatched counts how often it was given to a runner: never more than 1.
	Dispatched int                      `json:"dispatched"`
	Steps      []runnerclient.StepState `json:"steps,omitempty"`
}

// Runner is a registration.
type Runner struct {
	ID        int64     `json:"id"`
	Name      string    `json:"name"`
	Scope     string    `json:"scope"` // "owner/name" or "org"
	Group     int64     `json:"group"`
	Labels    []string  `json:"labels"`
	Online    bool      `json:"online"`
	Busy      bool      `json:"busy"`
	Job       int64     `json:"job,omitempty"` // that it has or had
	CreatedAt time.Time `json:"created_at"`
}

// Check is a check run.
type Check struct {
	ID         int64     `json:"id"`
	Repo       string    `json:"repo"`
	Name       string    `json:"name"`
	HeadSHA    string    `json:"head_sha"`
	ExternalID string    `json:"external_id"`
	DetailsURL string    `json:"details_url"`
	Status     string    `json:"status"`
	Conclusion string    `json:"conclusion"`
	Title      string    `json:"title"`
	Summary    string    `json:"summary"`
	Text       string    `json:"text"`
	Writes     int       `json:"writes"` // calls that wrote it
	UpdatedAt  time.Time `json:"updated_at"`

	startedAt, completedAt time.Time
}

// JobFilter selects jobs; the zero value selects all.
type JobFilter struct {
	Run    int64  `json:"run,omitempty"`
	Job    int64  `json:"job,omitempty"`
	Repo   string `json:"repo,omitempty"`
	Status string `json:"status,omitempty"`
}

// Emission is a delivery to be made up.
type Emission struct {
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"payload"` // sent as it is
	Repo    string          `json:"repo,omitempty"`
}

// Delivery is one recorded attempt to deliver an event.
type Delivery struct {
	ID          int64     `json:"id"`
	GUID        string    `json:"guid"`
	Event       string    `json:"event"`
	Action      string    `json:"action"`
	Job         int64     `json:"job,omitempty"`
	DeliveredAt time.Time `json:"delivered_at"`
	Redelivery  bool      `json:"redelivery"`
	StatusCode  int       `json:"status_code"`
	Status      string    `json:"status"`
	Seconds     float64   `json:"seconds"` // until the answer
}

// Call is one request to GitHub's interface.
type Call struct {
	Seq     int64     `json:"seq"`   // from 1
	Route   string    `json:"route"` // "GET /repos/{owner}/{repo}/actions/runs/{run_id}"
	Path    string    `json:"path"`  // with the query
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
	Status  int       `json:"status"` // 0: the connection was cut
	Points  int       `json:"points"`
	Repo    string    `json:"repo,omitempty"`
	Run     int64     `json:"run,omitempty"`
	Job     int64     `json:"job,omitempty"`
	Runner  string    `json:"runner,omitempty"` // its name
	Fault   FaultKind `json:"fault,omitempty"`
	Limited string    `json:"limited,omitempty"` // primary, points, content, concurrent: refused for this limit
}

// Trace is the calls that named a job, its run or its runner, in order.
type Trace struct {
	Calls []Call `json:"calls"`
	// RoundTrips is the number of calls that followed one another: the longest
	// chain in which each began after the one before had ended.
	RoundTrips int `json:"round_trips"`
}

// Stats counts since the start or the last reset.
type Stats struct {
	Calls       map[string]int64 `json:"calls"`  // by route
	Points      map[string]int64 `json:"points"` // by route
	Statuses    map[int]int64    `json:"statuses"`
	Total       int64            `json:"total"`
	TotalPoints int64            `json:"total_points"`
	Rejected    map[string]int64 `json:"rejected"`  // by limit: primary, points, content, concurrent; and auth
	Faults      map[string]int64 `json:"faults"`    // injected, by kind
	NotModified int64            `json:"unchanged"` // 304 answers
	Deliveries  int64            `json:"deliveries"`
	Failed      int64            `json:"failed"` // deliveries not answered 2xx
	Jobs        map[string]int64 `json:"jobs"`   // held now, by status
	Runners     int              `json:"runners"`
	Online      int              `json:"online"`
	Since       time.Time        `json:"since"`
}

// Limits are the rate limits that are enforced; 0 means none. The windows roll.
// Source: GitHub docs, "Rate limits for the REST API".
type Limits struct {
	PrimaryPerHour       int  `json:"primary_per_hour"`       // requests per installation
	RegistrationsPerHour int  `json:"registrations_per_hour"` // the resource actions_runner_registration
	PointsPerMinute      int  `json:"points_per_minute"`      // reads 1, writes 5
	ContentPerMinute     int  `json:"content_per_minute"`     // check runs
	ContentPerHour       int  `json:"content_per_hour"`
	Concurrent           int  `json:"concurrent"`        // calls at the same time
	TooManyRequests      bool `json:"too_many_requests"` // refuse with 429 instead of 403; GitHub does either
}

// GitHubLimits are the limits that GitHub documents.
func GitHubLimits() Limits {
	return Limits{PrimaryPerHour: 5000, RegistrationsPerHour: 10000, PointsPerMinute: 900, ContentPerMinute: 80, ContentPerHour: 500, Concurrent: 100}
}

// FaultKind is what goes wrong with a call.
type FaultKind string

// The kinds of faults of calls.
const (
	FaultPrimary   FaultKind = "primary"   // 403, x-ratelimit-remaining: 0
	FaultSecondary FaultKind = "secondary" // 403, Retry-After
	Fault429       FaultKind = "429"       // 429, Retry-After
	Fault500       FaultKind = "500"
	Fault502       FaultKind = "502"
	Fault503       FaultKind = "503"
	FaultCut       FaultKind = "cut"   // the connection is closed without an answer
	FaultDelay     FaultKind = "delay" // answered normally, Delay later
)

// Fault makes calls fail.
type Fault struct {
	Kind   FaultKind `json:"kind"`
	Method string    `json:"method,omitempty"` // "": any
	Path   string    `json:"path,omitempty"`   // '*' stands for anything; "": any; without "/api/v3" and query
	// Skip lets the first calls pass, Count ends the fault after so many (0:
	// never), Probability strikes only some (0: all; drawn from Config.Seed).
	Skip        int     `json:"skip,omitempty"`
	Count       int     `json:"count,omitempty"`
	Probability float64 `json:"probability,omitempty"`
	// After carries the call out and then fails its answer.
	After bool          `json:"after,omitempty"`
	Delay time.Duration `json:"delay,omitempty"`
	// RetryAfter of 429 and secondary (0: 60 s), and until the reset of primary
	// (0: an hour). GitHub counts in whole seconds.
	RetryAfter time.Duration `json:"retry_after,omitempty"`
}

// HookFaultKind is what goes wrong with a delivery.
type HookFaultKind string

// The kinds of faults of deliveries.
const (
	HookLose      HookFaultKind = "lose"      // never created: no record, no delivery
	HookDrop      HookFaultKind = "drop"      // recorded as failed, never sent
	HookDelay     HookFaultKind = "delay"     // sent Delay later; others overtake it
	HookDuplicate HookFaultKind = "duplicate" // sent twice
	HookReorder   HookFaultKind = "reorder"   // sent after the next event of the same job
	HookCut       HookFaultKind = "cut"       // sent, the answer is not read: recorded as timed out
)

// HookFault makes deliveries fail.
type HookFault struct {
	Kind        HookFaultKind `json:"kind"`
	Event       string        `json:"event,omitempty"`  // "workflow_job"; "": any
	Action      string        `json:"action,omitempty"` // "queued"; "": any
	Skip        int           `json:"skip,omitempty"`
	Count       int           `json:"count,omitempty"` // 0: never ends
	Probability float64       `json:"probability,omitempty"`
	Delay       time.Duration `json:"delay,omitempty"`
}

// Settings are what may change while the server runs; a nil field is left as it
// is.
type Settings struct {
	WebhookURL    *string            `json:"webhook_url,omitempty"`
	RunnerURL     *string            `json:"runner_url,omitempty"` // what runners are told; "": as the caller reached us
	Latency       *time.Duration     `json:"latency,omitempty"`    // added to each call of GitHub's interface
	Limits        *Limits            `json:"limits,omitempty"`
	RunnerLease   *time.Duration     `json:"runner_lease,omitempty"`
	PauseDispatch *bool              `json:"pause_dispatch,omitempty"` // give no job to any runner
	Permissions   *map[string]string `json:"permissions,omitempty"`    // of the App, such as "checks": "write"
	Events        *[]string          `json:"events,omitempty"`         // that the App subscribes to
}
