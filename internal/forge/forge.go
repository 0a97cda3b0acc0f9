// Package forge is what a forge tells us and lets us do.
//
// A Forge is reached over the network and costs: every call is counted in
// points against one budget, and registrations go before everything else.
// Errors are *gpuserver.Error values: KindNotFound, KindConflict (409, or a
// runner that is busy: 422 on delete), KindRefused (401, 403 without a limit),
// KindLimited (*LimitError as the cause), KindUnavailable (5xx, network,
// time-out: the outcome is unknown), KindInvalid.
package forge

import (
	"context"
	"time"

	"gpuserver"
)

// Forge is one forge with one identity on it (a GitHub App).
type Forge interface {
	// Name is the forge's name in the configuration.
	Name() string

	// Run reads one attempt of a workflow run; answers are cached by run and
	// attempt, because who triggered an attempt never changes.
	Run(ctx context.Context, repo Repo, runID int64, attempt int) (Run, error)
	// Job reads a job's present state.
	Job(ctx context.Context, repo Repo, id int64) (Job, error)
	// QueuedJobs lists the jobs of a repository that wait or run now.
	QueuedJobs(ctx context.Context, repo Repo) ([]Job, error)
	// RerunJob starts the run's next attempt with one job of it and those that
	// depend on it. KindConflict: the run still goes on. KindRefused: we lack the
	// permission. KindInvalid: the forge will not, now or later. KindUnavailable:
	// it may have happened; the run's attempt tells.
	RerunJob(ctx context.Context, repo Repo, id int64) error

	// RegisterRunner makes a just-in-time registration. KindConflict: the name
	// is taken. KindUnavailable: it may have happened; find it by name.
	RegisterRunner(ctx context.Context, r RunnerSpec) (Registration, error)
	// FindRunner finds a registration by its exact name, KindNotFound if none.
	FindRunner(ctx context.Context, scope Scope, name string) (Runner, error)
	// Runners lists the registrations whose name starts with prefix.
	Runners(ctx context.Context, scope Scope, prefix string) ([]Runner, error)
	// DeleteRunner removes a registration; none there is success. KindConflict:
	// it is running a job.
	DeleteRunner(ctx context.Context, scope Scope, id int64) error

	// SetCheck makes a check run (c.ID 0) or rewrites one, and gives its id.
	SetCheck(ctx context.Context, c Check) (int64, error)

	// File reads a file of a repository at a ref ("" is the default branch).
	// It is asked for conditionally and answered from the cache if unchanged.
	File(ctx context.Context, repo Repo, path, ref string) (File, error)
	// TeamMember reports whether login is an active member of org's team.
	TeamMember(ctx context.Context, repo Repo, org, team, login string) (bool, error)
	// Role gives login's role on repo: admin, maintain, write, triage, read, a
	// custom role's name, or "" for none.
	Role(ctx context.Context, repo Repo, login string) (string, error)
}

// Repo names a repository and the installation through which it is reached.
type Repo struct {
	Name           string // "owner/name"
	ID             int64
	InstallationID int64 // 0: looked up
	DefaultBranch  string
}

// Owner is the part of a repository's name before the slash.
func (r Repo) Owner() string {
	for i := range r.Name {
		if r.Name[i] == '/' {
			return r.Name[:i]
		}
	}
	return r.Name
}

// Scope is where a runner is registered.
type Scope struct {
	Repo Repo
	// Organisation registers at the level of the repository's organisation
	// instead, in the group named RunnerGroup ("" is the default group).
	Organisation bool
	RunnerGroup  string
}

// Owner gives the scope in the words of the root package.
func (s Scope) Owner() gpuserver.Owner {
	if s.Organisation {
		return gpuserver.Owner{Kind: gpuserver.OwnerOrganisation, Name: s.Repo.Owner()}
	}
	return gpuserver.Owner{Kind: gpuserver.OwnerRepository, Name: s.Repo.Name}
}

// RunnerSpec is a registration to be made.
type RunnerSpec struct {
	Scope      Scope
	Name       string   // at most 64 characters
	Labels     []string // exactly these; GitHub allows 1 to 100
	WorkFolder string   // "" is "_work"
}

// Registration is a registration that was made.
type Registration struct {
	RunnerID int64
	// JITConfig is a secret: base64 JSON that the runner is started with.
	JITConfig string
}

// Runner is a registration as the forge lists it.
type Runner struct {
	ID     int64
	Name   string
	Online bool
	Busy   bool
	Labels []string
}

// Run is one attempt of a workflow run.
type Run struct {
	ID              int64
	Attempt         int
	Event           string // "push", "pull_request", "pull_request_target", …
	TriggeringActor Actor  // who asked for this attempt
	ByUs            bool   // we did (RerunJob); never of a first attempt
	Actor           Actor  // who asked for the first one
	HeadRepo        string // "owner/name" of the head; "" if that repository is gone
	HeadSHA         string
	HeadBranch      string
	DefaultBranch   string // of the repository that the run belongs to
	Private         bool
	Status          string // in the forge's words; "completed": no job of the attempt waits or runs
	Conclusion      string // "success", "failure", "cancelled", …; "" until it is completed
}

// Actor is an account on the forge; the id outlives renames.
type Actor struct {
	Login string
	ID    int64
}

// Job is a job's present state as the forge tells it, by event or by answer.
type Job struct {
	ID           int64
	RunID        int64
	RunAttempt   int // 0: not told (old events)
	Name         string
	Workflow     string
	Labels       []string
	State        gpuserver.ForgeState
	Conclusion   string
	HeadSHA      string
	HeadBranch   string
	URL          string // for people
	RunnerID     int64
	RunnerName   string
	CreatedAt    time.Time
	StartedAt    time.Time
	CompletedAt  time.Time
	Repo         Repo
	RepoPrivate  bool
	Organisation string
}

// EventKind says what a delivery is about.
type EventKind string

// The kinds of events.
const (
	EventJob      EventKind = "job"      // a job changed: Event.Job
	EventRecheck  EventKind = "recheck"  // somebody asked to decide again: Event.CheckExternalID or Event.CheckHeadSHA
	EventOther    EventKind = "other"    // well formed, but nothing to us
	EventRepoGone EventKind = "repogone" // the app was removed, or a repository was
)

// Event is one parsed delivery.
type Event struct {
	Kind            EventKind
	Name            string // the forge's own name, "workflow_job.queued"
	Job             Job
	CheckExternalID string // our job id, as we gave it to SetCheck
	CheckHeadSHA    string // all our check runs on this commit are meant
	Repo            Repo
	// Gone are the repositories of an EventRepoGone; none means all that
	// Repo.InstallationID reached.
	Gone []Repo
}

// Check is a check run.
type Check struct {
	ID         int64 // 0: make one
	Repo       Repo
	Name       string // in the list of checks; "" is the configured one
	HeadSHA    string
	ExternalID string // our job id
	Title      string
	Summary    string // Markdown
	DetailsURL string
	Status     string // queued, in_progress, completed
	Conclusion string // action_required, neutral, … when completed
}

// File is a file's content.
type File struct {
	Path    string
	Ref     string
	SHA     string // of the blob
	Content []byte
}

// LimitError is the cause of a KindLimited error.
type LimitError struct {
	Until     time.Time // do not repeat before
	Secondary bool
}

// Error implements error.
func (e *LimitError) Error() string {
	return "rate limited until " + e.Until.UTC().Format(time.RFC3339)
}
