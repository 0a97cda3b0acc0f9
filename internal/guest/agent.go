package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/gate"
)

// AgentVersion is what the agent reports of itself.
const AgentVersion = "0.1.0"

// jitEnv is the variable by which the runner takes its just-in-time
// configuration, so that it is never on a command line.
// Source: actions/runner, CommandSettings: every argument may be given as
// ACTIONS_RUNNER_INPUT_<NAME>.
const jitEnv = "ACTIONS_RUNNER_INPUT_JITCONFIG"

// Defaults of Payload's zero values.
const (
	defaultReserve   = 256 // MiB
	defaultGrace     = 30 * time.Second
	defaultBeatEvery = 10 * time.Second
)

// Limits of the agent's own waits.
const (
	driveWait    = 2 * time.Minute  // for the config drive to appear
	networkWait  = time.Minute      // for an address, before the runner is started anyway
	resolverWait = 20 * time.Second // for name servers, after the address
	flushWait    = 30 * time.Second // for the last report to get through
	outputWait   = time.Minute      // for a command's last output to get through
)

// Options say where the agent finds things. The zero value is a real VM of an
// image of ours.
type Options struct {
	Root        string        // prefix of all system paths; "" is "/"
	ConfigDrive string        // folder of a mounted config drive; "" finds the drive by its label
	RunnerDir   string        // "" is /opt/runner
	RunnerUser  string        // "" is runner
	Log         *slog.Logger  // nil is slog.Default
	SampleEvery time.Duration // how often memory and disk are looked at; 0 is a second

	// HookPatience is how long the server may be unreachable before the agent
	// answers the job-started hook by itself; 0 is 15 s.
	HookPatience time.Duration

	// OutputPatience is how long a command's last output may take to get through;
	// 0 is a minute.
	OutputPatience time.Duration

	// Program is how the agent calls itself, for the hook and to start the
	// runner; nil is the path of its own program.
	Program []string

	// Unprivileged leaves out what only root in a VM of its own can do: memory
	// limits, other users, clock, watchdog, network, power-off. For tests.
	Unprivileged bool
}

// Run is the agent's whole life: it reads the config drive, sets the guest up,
// starts the runner (or the command), reports until that ended, and powers the
// VM off, whatever happened. It returns only in tests, or if power-off fails.
func Run(ctx context.Context, o Options) error {
	a := newAgent(o)
	err := a.live(ctx)
	if err != nil {
		a.log.Error("the agent failed", "err", err)
	}
	if o.Unprivileged {
		return err
	}
	return errors.Join(err, powerOff())
}

// agent is what the parts of the agent share.
type agent struct {
	Options
	log     *slog.Logger
	payload Payload
	status  *status
	report  *reporter
	servers []netip.Addr // for DNS, as the config drive tells
	starts  int          // of runner or command so far

	interrupts chan string // reasons to interrupt the runner
	work       sync.WaitGroup
	online     chan struct{} // closed once there is a network, or waiting for it ended
}

func newAgent(o Options) *agent {
	if o.RunnerDir == "" {
		o.RunnerDir = "/opt/runner"
	}
	if o.RunnerUser == "" {
		o.RunnerUser = "runner"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.SampleEvery == 0 {
		o.SampleEvery = time.Second
	}
	o.HookPatience = orDefault(o.HookPatience, hookPatience)
	o.OutputPatience = orDefault(o.OutputPatience, outputWait)
	return &agent{Options: o, log: o.Log, interrupts: make(chan string, 4), online: make(chan struct{})}
}

// path gives a system path below Root.
func (a *agent) path(elements ...string) string {
	return filepath.Join(append([]string{"/", a.Root}, elements...)...)
}

// runDir is the agent's folder in memory: hook script and socket.
func (a *agent) runDir() string { return a.path("run/gpuserver") }

// live does all that comes before the power-off.
func (a *agent) live(ctx context.Context) error {
	drive, err := a.readDrive(ctx)
	notifyReady() // the network may come up now, with what setUp wrote or without
	if err != nil {
		return err
	}
	a.payload = drive.payload
	a.status = newStatus(a)
	a.report = newReporter(a)
	a.status.reached(PhaseAgent)

	// Reports go on while the agent is asked to stop: the last one matters most.
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer a.work.Wait()
	defer cancel()
	a.work.Go(func() { a.feedWatchdog(background) })
	a.work.Go(func() { a.status.sample(background) })
	a.work.Go(func() { a.report.run(background) })
	a.work.Go(func() { a.awaitNetwork(background) })

	exit := jobExit{status: startFailed}
	var after *gate.Report
	hook, err := a.listenHook()
	if err == nil {
		defer hook.Close()
		a.setUpLate() // while the network comes up
		<-a.online
		exit, after = a.runGated(ctx)
	}
	a.log.Info("the runner ended", "status", exit.status, "timed_out", exit.timedOut, "gated", exit.gated)
	a.status.ended(exit, after)
	a.report.flush(background, flushWait)
	return err
}

// grace is how long the runner may take from interrupt to its end.
func (a *agent) grace() time.Duration { return orDefault(a.payload.Grace, defaultGrace) }

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// interrupt asks for the runner's end; it never blocks.
func (a *agent) interrupt(reason string) {
	select {
	case a.interrupts <- reason:
	default: // several are waiting already
	}
}

// httpClient is the agent's way to the server: no proxy, because the agent port
// is on the next bridge, and no redirects, because they would carry the token
// elsewhere.
func httpClient() *http.Client {
	return &http.Client{
		Timeout:       10 * time.Second,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// writeFile writes a file below Root, with its folders.
func (a *agent) writeFile(name string, content []byte, mode os.FileMode) error {
	path := a.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return guestError("write "+name, err)
	}
	if err := os.WriteFile(path, content, mode); err != nil {
		return guestError("write "+name, err)
	}
	return nil
}

func guestError(op string, err error) error {
	return &gpuserver.Error{Kind: gpuserver.KindGuest, Op: "guest agent: " + op, Public: fmt.Sprintf("the guest's agent could not %s", op), Err: err}
}
