// Package guesttest plays the guest of a VM without a VM: it reads the user
// data, reports like the agent and runs a job of forgetest like the runner. It
// is for tests and benchmarks on the fake cloud.
package guesttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"gpuserver/internal/cloud"
	"gpuserver/internal/forge/forgetest/runnerclient"
	"gpuserver/internal/gate"
	"gpuserver/internal/guest"
)

// Player plays guests. The zero value is a guest that does everything right and
// at once.
type Player struct {
	// Silent sends no heartbeats: the forge's events are enough for correctness.
	Silent bool
	// NoRunner ends without ever connecting a runner, with this status.
	NoRunner *int
	// JobTime is how long each job takes, whatever its steps say.
	JobTime time.Duration
	// SkipHook does not ask the job-started hook.
	SkipHook bool
	// Dead are the addresses of cards that a guest finds dead, whatever VM has
	// them: its gate says so, and nothing is started.
	Dead []string
}

// client is shared: thousands of guests in one process must not each keep
// connections of their own.
var client = &http.Client{
	Timeout:   30 * time.Second,
	Transport: &http.Transport{MaxIdleConnsPerHost: 64, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext},
}

// Play plays one VM until its runner ended or ctx is done. It fits
// fake.Config.Guest.
func (p *Player) Play(ctx context.Context, spec cloud.Spec, console io.Writer) {
	payload, err := guest.ParseUserData(spec.UserData)
	if err != nil {
		_, _ = fmt.Fprintln(console, "user data:", err)
		return
	}
	g := &played{p: p, payload: payload, devices: spec.Devices, console: console, start: time.Now()}
	g.beat(ctx, "agent", nil)
	status := g.run(ctx)
	if ctx.Err() == nil {
		g.beat(ctx, "exited", &status)
	}
}

// played is one guest.
type played struct {
	p       *Player
	payload guest.Payload
	devices []string // where its cards are
	console io.Writer
	start   time.Time
	untold  []guest.Heartbeat // phases that did not reach the server yet, in order
}

// gated is the status of a guest whose cards failed their check.
const gated = 126

func (g *played) run(ctx context.Context) int {
	if g.payload.Gate != nil {
		g.beat(ctx, guest.PhaseGate, nil)
		if !g.gate(guest.PhaseGate).Passed {
			return gated
		}
	}
	g.beat(ctx, "runner", nil)
	if g.p.NoRunner != nil {
		return *g.p.NoRunner
	}
	if g.payload.Command != nil {
		return g.command(ctx)
	}
	rc, err := runnerclient.Connect(ctx, g.payload.JITConfig)
	if err != nil {
		_, _ = fmt.Fprintln(g.console, "runner:", err)
		return 1
	}
	defer rc.Close()
	rc.UseTransport(client.Transport)
	var job *runnerclient.Job
	err = g.insist(ctx, "next job", func() (err error) { job, err = rc.NextJob(ctx); return err })
	if err != nil || job == nil {
		_, _ = fmt.Fprintln(g.console, "no job:", err)
		return 1
	}
	return g.job(ctx, rc, job)
}

// job runs one job: the hook decides, then it takes its time and succeeds.
func (g *played) job(ctx context.Context, rc *runnerclient.Client, job *runnerclient.Job) int {
	conclusion := "success"
	if !g.p.SkipHook {
		ok, text := g.hook(ctx, job)
		if ok {
			g.beat(ctx, guest.PhaseJobStarted, nil)
		} else {
			conclusion = "failure"
			_, _ = rc.Log(ctx, job.ID, 0, []byte("job-started hook: "+text+"\n"))
		}
	}
	cancelled, gone := rc.Watch(ctx, job.ID)
	if conclusion == "success" {
		_, _ = rc.Log(ctx, job.ID, 0, []byte("played by "+g.payload.VM+"\n"))
		select {
		case <-ctx.Done():
			return 1
		case <-cancelled:
			conclusion = "cancelled"
		case <-gone: // the forge ended the job, and took the runner's registration away
			return 1
		case <-time.After(g.p.JobTime):
		}
	}
	tries := 0
	err := g.insist(ctx, "complete", func() error {
		tries++
		return rc.Complete(ctx, job.ID, runnerclient.Result{Conclusion: conclusion})
	})
	if err != nil && !(errors.Is(err, runnerclient.ErrGone) && tries > 1) { // else an earlier answer was lost
		return 1
	}
	return 0
}

// insist repeats a call to the forge whose connection broke, as the real runner
// does, until ctx ends.
func (g *played) insist(ctx context.Context, what string, call func() error) error {
	for {
		err := call()
		if err == nil || errors.Is(err, runnerclient.ErrGone) || ctx.Err() != nil {
			return err
		}
		_, _ = fmt.Fprintf(g.console, "%s: %v\n", what, err)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// command plays a command: its arguments are its output, one a line.
func (g *played) command(ctx context.Context) int {
	var out bytes.Buffer
	for _, a := range g.payload.Command.Args {
		out.WriteString(a + "\n")
	}
	g.post(ctx, "/guest/v1/output/stdout?offset=0", out.Bytes(), "application/octet-stream", nil)
	select {
	case <-ctx.Done():
	case <-time.After(g.p.JobTime):
	}
	return 0
}

func (g *played) hook(ctx context.Context, job *runnerclient.Job) (bool, string) {
	q := guest.JobStarted{Repo: job.Env["GITHUB_REPOSITORY"], Job: job.Env["GITHUB_JOB"]}
	_, _ = fmt.Sscan(job.Env["GITHUB_RUN_ID"], &q.RunID)
	_, _ = fmt.Sscan(job.Env["GITHUB_RUN_ATTEMPT"], &q.RunAttempt)
	var v guest.Verdict
	status := g.post(ctx, "/guest/v1/job-started", must(q), "application/json", &v)
	if status == 0 || status >= 500 { // unreachable: only the run that the VM was made for
		return q.Repo == g.payload.Repo && q.RunID == g.payload.RunID && q.RunAttempt == g.payload.RunAttempt, "the server cannot be reached"
	}
	return v.Allowed, v.Text
}

func (g *played) beat(ctx context.Context, phase string, exit *int) {
	if g.p.Silent {
		return
	}
	g.untold = append(g.untold, guest.Heartbeat{Phase: phase, RunnerExit: exit, AgentVersion: "played", Gate: g.gate(phase)})
	for len(g.untold) > 0 {
		h := g.untold[0]
		h.UptimeSeconds = time.Since(g.start).Seconds()
		if g.post(ctx, "/guest/v1/heartbeat", must(h), "application/json", nil) == 0 {
			return // told with the next phase, before that, as the agent does
		}
		g.untold = g.untold[1:]
	}
}

// gate finds all cards that the VM was given, each with a UUID of its own where
// the cloud says which they are, and finds them well but for those that are Dead.
// It is nil in a phase that has no look at the cards.
func (g *played) gate(phase string) *gate.Report {
	if g.payload.Gate == nil || phase != guest.PhaseGate && phase != guest.PhaseExited {
		return nil
	}
	r := &gate.Report{When: gate.Before, Passed: true}
	if phase == guest.PhaseExited {
		r.When = gate.After
	}
	for i, c := range g.payload.Gate.Cards {
		card := gate.Card{VendorID: c.VendorID, DeviceID: c.DeviceID, Host: c.Host}
		if i < len(g.devices) {
			card.UUID = "GPU-" + g.devices[i]
			if slices.Contains(g.p.Dead, g.devices[i]) {
				r.Passed = false
				r.Findings = append(r.Findings, gate.Finding{Host: c.Host, Kind: gate.KindDead, Text: "it does not answer"})
			}
		}
		r.Cards = append(r.Cards, card)
	}
	return r
}

func must(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// post sends one request and gives the status, 0 if there was none.
func (g *played) post(ctx context.Context, path string, body []byte, kind string, out any) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.payload.Server+path, bytes.NewReader(body))
	if err != nil {
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+g.payload.Token)
	req.Header.Set("Content-Type", kind)
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if out != nil {
		_ = json.Unmarshal(data, out)
	}
	return resp.StatusCode
}
