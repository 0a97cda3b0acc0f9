// Package runnerclient speaks the private protocol between the stand-in for
// GitHub (forgetest) and a test runner; it uses the standard library only, so
// that the runner's binary in a guest image stays small.
//
// The protocol. A runner is started with a JIT configuration: base64 of a JSON
// object of file names to base64 contents, as GitHub's own. ".runner" tells the
// server's URL and the runner's name, ".credentials" its token. All calls carry
// "Authorization: Bearer TOKEN"; an answer other than 2xx has a JSON body
// {"message": …}. 401 means that the registration is gone.
//
//	POST   /_runner/session                 Hello → Welcome; the runner is online
//	DELETE /_runner/session                 offline
//	GET    /_runner/message?wait=SECONDS    200 Job, or 204 if none came
//	POST   /_runner/jobs/{id}/renew?wait=S  Orders; waits up to S for a cancellation
//	POST   /_runner/jobs/{id}/log?offset=N  text; answers LogPosition; 409 on a gap
//	POST   /_runner/jobs/{id}/steps         []StepState: all steps so far
//	POST   /_runner/jobs/{id}/complete      Result; an ephemeral runner is gone then
//
// Every call renews the runner's lease. A runner that is silent for longer than
// the lease goes offline, and the job that it had fails.
package runnerclient

import "time"

// Settings is the content of ".runner" in a JIT configuration.
type Settings struct {
	AgentID    string `json:"AgentId"`
	AgentName  string `json:"AgentName"`
	PoolID     string `json:"PoolId"`
	PoolName   string `json:"PoolName"`
	ServerURL  string `json:"ServerUrl"`
	GitHubURL  string `json:"GitHubUrl"`
	WorkFolder string `json:"WorkFolder"`
	Ephemeral  string `json:"Ephemeral"` // "True", as GitHub spells it
}

// Credentials is the content of ".credentials" in a JIT configuration.
type Credentials struct {
	Scheme string          `json:"Scheme"` // "Bearer"
	Data   CredentialsData `json:"Data"`
}

// CredentialsData holds the secret of a registration.
type CredentialsData struct {
	Token string `json:"Token"`
}

// Hello is what a runner says of itself when it comes online.
type Hello struct {
	Version string `json:"version"`
	OS      string `json:"os"`
}

// Welcome answers Hello.
type Welcome struct {
	RunnerID int64   `json:"runner_id"`
	Name     string  `json:"name"`
	Lease    Seconds `json:"lease"` // contact the server more often than this
}

// Seconds is a duration that travels as a number of seconds.
type Seconds float64

// Duration gives s as a time.Duration.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// Job is what a runner is asked to do.
type Job struct {
	ID         int64             `json:"id"`
	Name       string            `json:"name"`        // shown to people
	Key        string            `json:"key"`         // GITHUB_JOB
	Repository string            `json:"repository"`  // "owner/name"
	RunID      int64             `json:"run_id"`      //
	RunAttempt int               `json:"run_attempt"` // from 1
	Env        map[string]string `json:"env"`         // GITHUB_*, RUNNER_NAME and what the workflow sets
	Steps      []Step            `json:"steps"`
	Timeout    Seconds           `json:"timeout"` // of the whole job; 0: none
}

// Step is one shell script of a job.
type Step struct {
	Name    string            `json:"name"`
	Run     string            `json:"run"` // for bash -e
	Env     map[string]string `json:"env,omitempty"`
	Timeout Seconds           `json:"timeout,omitempty"` // 0: none
	Always  bool              `json:"always,omitempty"`  // run even after a failed step
}

// StepState is how far a step is, in GitHub's words.
type StepState struct {
	Number      int       `json:"number"` // from 1
	Name        string    `json:"name"`
	Status      string    `json:"status"`               // queued, in_progress, completed
	Conclusion  string    `json:"conclusion,omitempty"` // success, failure, cancelled, skipped
	StartedAt   time.Time `json:"started_at,omitzero"`
	CompletedAt time.Time `json:"completed_at,omitzero"`
}

// Orders answers a renewal.
type Orders struct {
	Cancelled bool `json:"cancelled"` // stop, then complete as cancelled
}

// LogPosition is how much of a job's log the server has, in bytes.
type LogPosition struct {
	Offset int64 `json:"offset"`
}

// Result ends a job.
type Result struct {
	Conclusion string `json:"conclusion"` // success, failure or cancelled
	Message    string `json:"message,omitempty"`
}
