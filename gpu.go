package gpuserver

import "time"

// GPUID numbers the cards that we ever met.
type GPUID int64

// GPUState says whether a card may be given to VMs.
type GPUState string

// The states of a card.
const (
	GPUInService   GPUState = "in_service"
	GPUCordoned    GPUState = "cordoned"    // an operator took it out; the VM that has it runs to its end
	GPUQuarantined GPUState = "quarantined" // its strikes took it out, until an operator puts it back
)

// GPU is one physical card and what we remember of it. A card is its UUID and
// serial number, learnt by the gate from inside the first VM that has it; until
// then it is the place where we attach it. A card that moves to another slot
// keeps its history.
type GPU struct {
	ID       GPUID    `json:"id"`
	Cloud    string   `json:"cloud"`
	Host     string   `json:"host"`
	Address  string   `json:"address"` // BDF on its host, such as 0000:27:00.0; "" where the cloud does not tell
	Model    string   `json:"model"`   // our own name of the model
	VendorID string   `json:"vendor_id,omitempty"`
	DeviceID string   `json:"device_id,omitempty"`
	UUID     string   `json:"uuid,omitempty"`
	Serial   string   `json:"serial,omitempty"`
	State    GPUState `json:"state"`
	Reason   string   `json:"reason,omitempty"` // why it is not in service, or rests
	// Strikes are its failures, in points, as of StruckAt; they fade with time
	// (see internal/health).
	Strikes   float64   `json:"strikes"`
	StruckAt  time.Time `json:"struck_at,omitzero"`
	RestUntil time.Time `json:"rest_until,omitzero"` // no VM gets it before, though it is in service
	// LinkWidth is the widest link that was ever seen, in lanes: the baseline. 0:
	// not known.
	LinkWidth int       `json:"link_width,omitempty"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
	StateAt   time.Time `json:"state_at"`
}

// GPUEvent is one line of a card's history.
type GPUEvent struct {
	ID     int64     `json:"id"`
	At     time.Time `json:"at"`
	GPU    GPUID     `json:"gpu"`
	VM     VMID      `json:"vm,omitempty"`
	Job    JobID     `json:"job,omitempty"`
	Kind   string    `json:"kind"` // seen, moved, gate_passed, strike, rest, quarantined, cordoned, uncordoned, tested, kept
	Text   string    `json:"text"`
	Points float64   `json:"points,omitempty"` // of a strike
}
