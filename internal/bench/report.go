package bench

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"time"

	"gpuserver"
)

// Report is what `make bench` writes. The keys of the first block are promised
// to scripts; more may come, none goes.
type Report struct {
	Machine          Machine      `json:"machine"`
	Forge0           Forge        `json:"forge_0ms"`
	Forge150         Forge        `json:"forge_150ms"`
	WithinLimits     WithinLimits `json:"burst_within_limits"`
	IntakePerS       float64      `json:"intake_per_s"`          // as many as it takes, by 64 connections that wait for each answer
	IntakeP99        float64      `json:"intake_p99_ms"`         // at a fixed 2,000/s, from when each was due
	CompleteToDelete Quantiles    `json:"complete_to_delete_ms"` // completed delivery sent → delete call arrived
	RSSIdle          float64      `json:"rss_idle_mib"`          // VmRSS of the server's process alone
	RSS5000          float64      `json:"rss_5000_vms_mib"`      // the highest VmRSS while 5,000 VMs run jobs and report
	PointsPerJob     float64      `json:"points_per_job"`        // all calls of a burst, by GitHub's points, per job
	RestartToCreate  float64      `json:"restart_to_first_create_ms"`

	Intake     Intakes    `json:"intake"`
	Memory     Memory     `json:"memory"`
	Restarts   Restarts   `json:"restarts"`
	RoundTrips RoundTrips `json:"round_trips"`
	Week       Week       `json:"week"`
	*OpenStack            // nil: not measured
	Parts      []Part     `json:"parts"`
	TakenAt    time.Time  `json:"taken_at"`
}

// Forge is measured with a forge of a certain latency, its limits off.
type Forge struct {
	// WebhookToCreate is from the delivery being sent to the create call's
	// arrival at the cloud, the forge's round trips included.
	WebhookToCreate Quantiles `json:"webhook_to_create_ms"`
	// Beyond is the same without the time in which a call of the job was at the
	// forge: what we ourselves need.
	Beyond Quantiles `json:"beyond_forge_ms"`
	// BurstPerS is created VMs per second, from the first delivery to the last
	// create call.
	BurstPerS float64 `json:"burst_1000_per_s"`
	// BurstWebhookToCreate is how long each job of the burst waited.
	BurstWebhookToCreate Quantiles `json:"burst_webhook_to_create_ms"`
}

// WithinLimits is a burst with the limits on that GitHub documents.
type WithinLimits struct {
	Rejected  int64   `json:"rejected"`     // calls answered 403 or 429 for a limit
	Permitted float64 `json:"of_permitted"` // registrations made ÷ registrations that the limit permits in that time
	Created   int     `json:"created"`
	Seconds   float64 `json:"seconds"` // from the first create call to the one that ended the measurement
	PerMinute float64 `json:"per_minute"`
}

// Intakes are deliveries of jobs that are ours.
type Intakes struct {
	NoVMs    Intake `json:"no_vms"`
	LiveVMs  Intake `json:"live_vms"`
	Live     int    `json:"live"` // VMs that were live in the second
	BodySize int    `json:"body_bytes"`
}

// Intake is one measurement.
type Intake struct {
	PerS      float64   `json:"per_s"`        // with every connection busy
	Saturated Quantiles `json:"saturated_ms"` // time to answer meanwhile
	FixedPerS float64   `json:"fixed_per_s"`  // really sent a second at the fixed rate
	Fixed     Quantiles `json:"fixed_ms"`     // time to answer from when each was due
	Failed    int       `json:"failed"`       // not answered 202
	// Behind is how many seconds after the last answer at the fixed rate all jobs
	// were decided.
	Behind float64 `json:"behind_s"`
	// CPU is the service's processor time per delivery at the fixed rate, with
	// all that follows from it until its end; it hardly depends on how busy the
	// machine is with other things.
	CPU float64 `json:"cpu_ms"`
}

// Memory is of the server's process alone.
type Memory struct {
	Idle Process `json:"idle"`
	VMs  Process `json:"vms"`
	Live int     `json:"live"` // VMs that ran a job
}

// Process is what /proc/PID/status says, in MiB.
type Process struct {
	RSS  float64 `json:"rss_mib"`  // VmRSS, the highest of the samples
	Last float64 `json:"last_mib"` // VmRSS, the last sample
	Anon float64 `json:"anon_mib"` // RssAnon: without the program's own file
	Peak float64 `json:"peak_mib"` // VmHWM, since the process started
}

// Restarts are kill -9 with jobs waiting, from the start of the new process to
// the first create call.
type Restarts struct {
	Forge0   Quantiles `json:"forge_0ms"`
	Forge150 Quantiles `json:"forge_150ms"`
}

// RoundTrips are calls to the forge that follow one another, between a delivery
// and its create call, as the forge counts them.
type RoundTrips struct {
	Warm      int     `json:"warm"`       // median of single jobs
	WarmMax   int     `json:"warm_max"`   // the most
	Cold      int     `json:"cold"`       // the first job after a start
	ColdMs    float64 `json:"cold_ms"`    // how long it waited, at 150 ms a call
	ColdCalls int     `json:"cold_calls"` // all calls meanwhile, at the same time or not
}

// Part says how long a part took.
type Part struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Write writes the report to a file, or to standard output for "-". A file is
// there whole or not at all.
func (r Report) Write(path string) error {
	if path == "-" {
		return r.encode(os.Stdout)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".bench-*")
	if err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "bench: write "+path, err)
	}
	defer os.Remove(f.Name())
	err = r.encode(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return gpuserver.Wrap(gpuserver.KindUnavailable, "bench: write "+path, err)
}

func (r Report) encode(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// ReadReport reads what Write wrote.
func ReadReport(path string) (r Report, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, &gpuserver.Error{Kind: gpuserver.KindInvalid, Op: "bench", Public: path + " is not a report of the benchmark; make one with: make bench BENCH_OUT=" + path, Err: err}
	}
	return r, nil
}
