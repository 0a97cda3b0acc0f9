package api

import (
	"context"
	"io"
	"time"

	"gpuserver"
	"gpuserver/internal/health"
)

// Actions is what the API asks of the fleet: all that is not a plain read of
// the store. Methods may be called concurrently; errors are *gpuserver.Error
// values whose public sentence is shown to the caller. by names who asked (a
// token's name, or "socket"), for the history.
type Actions interface {
	// CancelJob ends a job on our side: its VM, if it has one, is taken down.
	// KindNotFound: no such job. KindConflict: it is over already.
	CancelJob(ctx context.Context, id gpuserver.JobID, by string) error
	// RetryJob decides a job again, from the start, without waiting for
	// NextTryAt. KindConflict: it runs, or the forge says that it is completed.
	RetryJob(ctx context.Context, id gpuserver.JobID, by string) error
	// DeleteVM takes a VM down whatever it does. It returns once that is
	// committed, not once the VM is gone. KindConflict: it is gone already.
	DeleteVM(ctx context.Context, id gpuserver.VMID, by string) error
	// ReleaseImage ends the hold of an image and forgets its failures.
	// KindNotFound: it is not held.
	ReleaseImage(ctx context.Context, name, by string) error

	// ResumeFlavor ends the suspension of a flavor on a cloud and forgets its
	// failures. KindNotFound: it is not suspended.
	ResumeFlavor(ctx context.Context, cloud, flavor, by string) error

	// Console gives a VM's serial console from byte offset from to its present
	// end, at most limit bytes, as cloud.Driver does; consoles of VMs that are
	// gone are given as long as they are kept.
	Console(ctx context.Context, id gpuserver.VMID, from, limit int64) (io.ReadCloser, error)

	// StartRun stores a job of the forge "local" that runs a command in a VM.
	// KindInvalid: no such flavor or image.
	StartRun(ctx context.Context, r RunRequest, by string) (gpuserver.JobID, error)
	// Output gives what a command wrote to stream ("stdout" or "stderr") from
	// byte offset from, at most 256 KiB. With nothing there yet it waits up to
	// wait for some, or for the end. An offset past the end gives nothing.
	Output(ctx context.Context, id gpuserver.JobID, stream string, from int64, wait time.Duration) (Output, error)

	GPUActions
	Surroundings
}

// Surroundings are what is known of hosts, clouds, forges and rules without asking
// them: none of these methods does I/O.
type Surroundings interface {
	// Hosts gives the hosts of all clouds as last read.
	Hosts(ctx context.Context) []gpuserver.Host
	// Clouds says of each configured cloud whether it can be used.
	Clouds(ctx context.Context) []CloudStatus
	// Flavors gives the sizes of VM, and Images what VMs boot, with their other
	// names.
	Flavors(ctx context.Context) []FlavorInfo
	Images(ctx context.Context) []gpuserver.Image
	// Forges says of each configured forge how its budget stands.
	Forges(ctx context.Context) []ForgeStatus
	// HealthPolicy says how a card's strikes fade: the same that strikes it.
	HealthPolicy(ctx context.Context) health.Policy
}

// RunRequest is a command to be run in a fresh VM.
type RunRequest struct {
	Args           []string          `json:"args" minItems:"1" maxItems:"4096" doc:"The program and its arguments."`
	Env            map[string]string `json:"env,omitempty" doc:"Environment variables added to the command's."`
	Flavor         string            `json:"flavor,omitempty" maxLength:"200" doc:"The flavor's name; empty is the configuration's default."`
	Image          string            `json:"image,omitempty" maxLength:"200" doc:"The image's name; empty is the configuration's default."`
	TimeoutSeconds int64             `json:"timeout_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"Time limit of the command; 0 is the flavor's."`
}

// Timeout gives the time limit as a duration; 0 is the flavor's.
func (r RunRequest) Timeout() time.Duration { return time.Duration(r.TimeoutSeconds) * time.Second }

// Output is a piece of what a command wrote.
type Output struct {
	Data []byte `json:"data" doc:"The bytes, in base64."`
	Next int64  `json:"next" doc:"The offset to ask for next."`
	Done bool   `json:"done" doc:"Whether nothing will come after Next."`
}

// CloudStatus is how a cloud stands.
type CloudStatus struct {
	Name        string    `json:"name"`
	Type        string    `json:"type" doc:"libvirt, openstack or fake."`
	Up          bool      `json:"up" doc:"Whether its last answer was good."`
	Known       bool      `json:"known" doc:"Whether its capacity was read since the server started."`
	Since       time.Time `json:"since,omitzero" doc:"When it went up or down."`
	Reason      string    `json:"reason,omitempty" doc:"Why it is down."`
	Cards       bool      `json:"cards" doc:"Whether VMs get the GPUs that we choose; else the cloud chooses, and tells no addresses."`
	Accelerated bool      `json:"accelerated" doc:"False where VMs run under software emulation."`
	Note        string    `json:"note,omitempty"`
}

// ForgeStatus is how a forge and our budget of calls to it stand.
type ForgeStatus struct {
	Name         string           `json:"name"`
	Type         string           `json:"type" doc:"github."`
	Up           bool             `json:"up" doc:"Whether its last answer was good."`
	Reason       string           `json:"reason,omitempty" doc:"Why it is down or what it waits for."`
	Limit        int64            `json:"limit,omitempty" doc:"Calls per hour that the forge allows."`
	Remaining    int64            `json:"remaining,omitempty" doc:"Calls left of Limit until ResetAt."`
	ResetAt      time.Time        `json:"reset_at,omitzero"`
	LimitedUntil time.Time        `json:"limited_until,omitzero" doc:"The forge told us to make no call before."`
	Spent        map[string]int64 `json:"spent,omitempty" doc:"Points spent since the start, by class of call."`
}
