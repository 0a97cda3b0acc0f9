// Package cloud is the contract between the fleet and a place where VMs run.
//
// A driver carries out single, named operations; it decides nothing, keeps no
// state that the cloud itself does not hold, and knows neither jobs nor forges.
// Only fleet calls it. The conformance suite in cloudtest says what a driver
// has to do, and runs against every one of them.
//
// Errors are *gpuserver.Error values whose Kind says whose fault they are:
// KindCapacity (no room; with ErrNoHost as a cause if it is no quota), KindConflict (the name exists), KindNotFound,
// KindInvalid (the spec is wrong), KindUnavailable (the cloud cannot be
// reached or failed), KindGuest (the VM itself).
package cloud

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"gpuserver"
	"gpuserver/internal/pci"
)

// Driver is one cloud. All methods may be called concurrently, obey ctx, and
// may be repeated: a second call with the same argument finds what the first
// one did.
type Driver interface {
	// Name is the cloud's name in the configuration.
	Name() string

	// Capabilities says what this cloud can do, as data; it does no I/O.
	Capabilities() Capabilities

	// Create makes and starts a VM and returns when the cloud has accepted it;
	// it does not wait for the guest. If a VM, volume or other part of that name
	// exists already the error is KindConflict and nothing was changed. A create
	// that fails leaves nothing behind; one whose outcome is unknown (the
	// connection broke) is found by Get or List under its name.
	Create(ctx context.Context, spec Spec) (VM, error)

	// Get finds one VM by its name. KindNotFound means that neither the VM nor
	// any part of it (volume, config drive, port) is there.
	Get(ctx context.Context, name string) (VM, error)

	// List gives all VMs that carry our owner tag, including leftovers of which
	// only a part is there (State is StateRemains then).
	List(ctx context.Context) ([]VM, error)

	// Delete removes a VM and all that Create made for it, and returns once that
	// is verified, or with KindUnavailable if it could not be verified yet.
	// Nothing there is success. A VM that lacks our owner tag is KindRefused.
	Delete(ctx context.Context, name string) error

	// Keep stops a VM without deleting it, so that what it holds (a faulty GPU)
	// stays claimed: no other VM gets its devices until it is deleted. It is
	// tagged gpuserver-quarantine where the cloud has tags, and VM.Kept tells so
	// from then on. Capabilities.Keep says whether it can.
	Keep(ctx context.Context, name string) error

	// Console gives the VM's serial console from byte offset from to its present
	// end, at most limit bytes. An offset past the end gives an empty reader; an
	// offset that was rotated away starts at the oldest byte kept.
	Console(ctx context.Context, name string, from, limit int64) (io.ReadCloser, error)

	// Capacity gives the hosts with their room in total: what is free now plus
	// what our own VMs use. A cloud that chooses the cards itself gives a slot
	// without an address for each card: they only count.
	Capacity(ctx context.Context) ([]gpuserver.Host, error)

	// Cards reads the state of cards from the outside, where Capabilities.Cards
	// says that it can; else the error is KindInvalid. An address at which
	// there is no card is answered as not present. It may block for long on a
	// broken card and then gives KindUnavailable at ctx's end.
	Cards(ctx context.Context, host string, addresses []string) ([]pci.Reading, error)

	// Events gives a channel on which the driver tells that a VM stopped or went
	// away by itself, at once where the cloud can tell; nil where it cannot. The
	// channel is closed by Close. Events may be lost: they are hints.
	Events() <-chan Event

	// Close ends the driver's connections and goroutines. VMs go on.
	Close() error
}

// Reserver is a Driver whose cloud can hold cards back without the VM that has them,
// which then need not be kept.
type Reserver interface {
	// Reserve holds the cards of a VM back, so that no other VM gets them once it is
	// deleted, and gives what names them, at most 4 KiB. KindInvalid, KindRefused and
	// KindNotFound: it cannot be done for this VM, which has to be kept.
	Reserve(ctx context.Context, name string) (held string, err error)
	// Remember tells a driver that was just opened what it held back before; it does
	// no I/O.
	Remember(held string)
	// Release lets cards be given away again; none there is success.
	Release(ctx context.Context, held string) error
}

// Capabilities are what differs between clouds, as data.
type Capabilities struct {
	Keep bool `json:"keep"`
	// Cards says that VMs get the cards that Spec.Devices names and that their
	// state can be read from outside. Where it is false the cloud chooses: a VM
	// whose card fails the gate has to be kept, or the next VM gets that card.
	Cards   bool `json:"cards"`
	Console bool `json:"console"`
	Events  bool `json:"events"`
	// Leavable says that Create and Delete take long, and may be left once the cloud
	// was asked: if their ctx ends then, it goes on there, and Get finds the VM.
	Leavable   bool `json:"leavable,omitempty"`
	DirectBoot bool `json:"direct_boot"` // can boot a kernel and initrd beside a root disk
	// Accelerated is false where VMs run under software emulation: boot
	// time-outs are multiplied then.
	Accelerated bool   `json:"accelerated"`
	Note        string `json:"note,omitempty"` // for people: why it is not accelerated, say
}

// Spec is what a VM is made of.
type Spec struct {
	Name     string            // letters, digits and '-', at most 60 characters; unique per cloud
	Owner    string            // tag of this installation; List gives what carries it
	Host     string            // where the ledger wants it; drivers that place VMs themselves ignore it
	Flavor   gpuserver.Flavor  //
	Image    string            // the image's name in the configuration; the driver was given its source
	UserData []byte            // handed to the guest by config drive, at most 48 KiB
	Metadata map[string]string // handed to the guest in meta_data.json ("meta"); values at most 255 bytes
	Devices  []string          // BDF addresses to pass through; ignored where the cloud chooses
}

// State is what the cloud says of a VM.
type State string

// The states of a VM on its cloud.
const (
	StateBuilding State = "building"
	StateRunning  State = "running"
	StateStopped  State = "stopped" // off: shut down, crashed or kept
	StateError    State = "error"   // the cloud failed to make it; Fault says why
	StateRemains  State = "remains" // only parts of it are there
)

// VM is a VM as its cloud sees it.
type VM struct {
	Name  string `json:"name"`
	ID    string `json:"id"` // the cloud's own identifier
	Owner string `json:"owner"`
	Host  string `json:"host"`
	State State  `json:"state"`
	Fault string `json:"fault,omitempty"`
	// FaultKind is the kind of the error that Create would have given for Fault;
	// "": not known. NoHost says that it would have had ErrNoHost as a cause.
	FaultKind gpuserver.Kind `json:"fault_kind,omitempty"`
	NoHost    bool           `json:"no_host,omitempty"`
	Kept      bool           `json:"kept,omitempty"` // Keep was called for it
	CreatedAt time.Time      `json:"created_at,omitzero"`
}

// Failure gives why the cloud failed to make a VM whose state is StateError, as
// Create would have said it had it waited; nil for any other VM.
func (v VM) Failure() error {
	if v.State != StateError {
		return nil
	}
	e := gpuserver.Errorf(cmp.Or(v.FaultKind, gpuserver.KindUnavailable), "%s", v.Fault)
	if v.NoHost {
		e.Err = ErrNoHost
	}
	return e
}

// ErrNoHost is the cause of a KindCapacity error where a cloud took the request and
// then found no host for it. A quota is something else: our ledger counts with it.
// If the ledger has room and this is the answer again and again, they disagree.
var ErrNoHost = errors.New("no valid host")

// Event is a hint from the cloud about a VM.
type Event struct {
	VM     string // its name
	State  State  // StateStopped, StateError or StateRemains
	Reason string // such as "shutdown", "crashed", "watchdog"
}
