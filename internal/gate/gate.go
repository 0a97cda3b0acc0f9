// Package gate checks a VM's cards from inside the guest, before its runner
// starts and after its job: are all of them there, and are they well?
//
// It is run by the agent, and reads files below a root and the vendor's own
// tools; it decides only what a guest can see. What follows for a card (strikes,
// quarantine) is decided by package health, on the server. A guest is hostile:
// the server takes a report for a hint about cards, and never for the end of a
// lease.
package gate

import "time"

// Expectation is what the server attached: the guest is told with its payload.
type Expectation struct {
	// Cards are in the order in which they were attached, which is the order of
	// their addresses in the guest.
	Cards []ExpectedCard `json:"cards"`
	// Timeout bounds the whole check; 0 is 2 minutes.
	Timeout time.Duration `json:"timeout,omitempty"`
	// DCGM asks for dcgmi's short diagnosis as well, where the image has it.
	DCGM bool `json:"dcgm,omitempty"`
}

// ExpectedCard is one card that the VM was given.
type ExpectedCard struct {
	VendorID string `json:"vendor_id"` // four hexadecimal digits: 10de
	DeviceID string `json:"device_id"` // 1db4
	Host     string `json:"host"`      // its BDF on the host; only echoed
}

// Moments at which the gate looks.
const (
	Before = "before" // the runner's process starts
	After  = "after"  // the job
)

// ConsolePrefix starts the line on the console that carries a Report as JSON,
// for a server that no report reached.
const ConsolePrefix = "GPUSERVER-GATE "

// Bounds of a Report: as JSON in bytes, and of its lists.
const (
	MaxReport   = 8 << 10
	MaxCards    = 32
	MaxFindings = 64
)

// Report is what the gate found. Passed is the guest's own verdict; the server
// compares the cards with what it attached, whatever Passed says.
type Report struct {
	When     string    `json:"when"` // Before or After
	Passed   bool      `json:"passed"`
	Cards    []Card    `json:"cards"`              // by guest address
	Findings []Finding `json:"findings,omitempty"` // what is wrong; none if Passed
	Tool     string    `json:"tool,omitempty"`     // what was asked: "nvidia-smi 550.90.07"; "": PCI ids only
	Seconds  float64   `json:"seconds"`            // how long the check took
}

// Card is one card as the guest sees it. What could not be read is the zero
// value and stands in no finding.
type Card struct {
	Address     string `json:"address"` // in the guest: virtual
	VendorID    string `json:"vendor_id"`
	DeviceID    string `json:"device_id"`
	Host        string `json:"host,omitempty"` // where the server attached it: the expectation's, by order
	UUID        string `json:"uuid,omitempty"`
	Serial      string `json:"serial,omitempty"`
	Product     string `json:"product,omitempty"`
	Temperature int    `json:"temperature,omitempty"` // degrees Celsius
	LinkWidth   int    `json:"link_width,omitempty"`  // lanes; 0: not told
}

// Finding is one thing that is wrong. Host is the card's address on the host;
// "" is the VM as a whole (a card is missing and it is not known which).
type Finding struct {
	Host string `json:"host,omitempty"`
	Kind Kind   `json:"kind"`
	Text string `json:"text"` // for people: what was seen and where
}

// Kind names what is wrong with a card; health gives each its weight.
type Kind string

// The kinds of findings.
const (
	KindMissing     Kind = "missing"     // fewer cards of the model than were attached
	KindDead        Kind = "dead"        // its configuration space reads all ones
	KindDriver      Kind = "driver"      // the vendor's tool does not list a card that is on the bus
	KindECC         Kind = "ecc"         // uncorrectable memory errors, volatile
	KindRemap       Kind = "remap"       // a row cannot be remapped, or pages wait to be retired
	KindRecovery    Kind = "recovery"    // the driver says that the card needs a reset, or the machine a new start
	KindXid         Kind = "xid"         // the driver's log names an error of the hardware
	KindTemperature Kind = "temperature" // above the card's own slow-down limit
	KindThrottle    Kind = "throttle"    // slowed by hardware: power brake, thermal
	KindLink        Kind = "link"        // fewer lanes under load than it can have
	KindTool        Kind = "tool"        // the vendor's tool failed or hung
	KindDiagnosis   Kind = "diagnosis"   // dcgmi's short run failed
	KindTimeout     Kind = "timeout"     // the check did not end in time
	KindNoReport    Kind = "no_report"   // no report came, neither by the network nor on the console (server only)
	KindLie         Kind = "lie"         // the report does not fit what was attached (server only)
)
