package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/store"
)

// demoOptions are the flags of "demo".
type demoOptions struct {
	jobs     int
	once     bool
	imageDir string
	debug    bool
	output   outputFormat
}

func newDemoCommand() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole service on this machine, with a stand-in for GitHub",
		Long: `Runs the service on a temporary data folder, with this machine's libvirt and a
stand-in for GitHub. Jobs arrive as signed deliveries; each one gets a fresh VM,
runs in it and is gone. Phases and logs are shown as they happen, a table at the
end. Everything that it made is taken away again: VMs, network, namespace, files.

Needs root, libvirtd, and an image as scripts/demo-image makes it; "make demo"
sees to all of that.

Exit status: 0 if every job succeeded and nothing is left, else 1.`,
		Example: `  make demo
  gpuserver demo --image-dir "$(scripts/demo-image)" --jobs 5
  gpuserver demo --image-dir "$(scripts/demo-image)" --once --output json`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().IntVar(&o.jobs, "jobs", 3, "how many jobs to run")
	cmd.Flags().BoolVar(&o.once, "once", true, "end when the jobs have ended; with --once=false it serves on until Ctrl-C")
	cmd.Flags().StringVar(&o.imageDir, "image-dir", "", "folder with vmlinuz, initrd.img and root.qcow2")
	cmd.Flags().BoolVar(&o.debug, "debug", false, "show the service's log")
	addOutputFlag(cmd, &o.output)
	return cmd
}

// demoResult is what "demo --output json" prints.
type demoResult struct {
	Jobs []demoJob `json:"jobs"`
	Left leftovers `json:"left"`
}

// demoJob is one job with the way that it went.
type demoJob struct {
	ID         gpuserver.JobID `json:"id"`
	Name       string          `json:"name"`
	Conclusion string          `json:"conclusion"` // GitHub's word
	VM         string          `json:"vm"`         // the domain's name
	Runner     string          `json:"runner"`
	Log        string          `json:"log"`
	Phases     []demoPhase     `json:"phases"`
}

// demoPhase is a phase with the time since the one before.
type demoPhase struct {
	Name    string  `json:"name"`
	At      string  `json:"at"` // RFC 3339, UTC
	Seconds float64 `json:"seconds"`
}

// demo runs the demonstration and says how it went.
func demo(ctx context.Context, o demoOptions, stdout, stderr io.Writer) error {
	if o.jobs < 1 || o.jobs > 256 {
		return &exitError{exitUsage, fmt.Errorf("--jobs must be 1 to 256, as many as a matrix may have")}
	}
	m, err := newMachine("gsd"+strings.ToLower(rand.Text()[:4]), o.imageDir)
	if err != nil {
		return err
	}
	defer m.remove()
	m.debug = o.debug
	d := &demonstration{options: o, machine: m, view: newView(stderr)}
	result, err := d.run(ctx)
	if err != nil {
		return err
	}
	if err := printDemo(stdout, o.output, result); err != nil {
		return err
	}
	for _, j := range result.Jobs {
		if j.Conclusion != "success" {
			return fmt.Errorf("job %s ended as %q", j.Name, cmp.Or(j.Conclusion, "unfinished"))
		}
	}
	if len(result.Jobs) < o.jobs {
		return fmt.Errorf("%d of %d jobs were run", len(result.Jobs), o.jobs)
	}
	if result.Left != (leftovers{}) {
		return fmt.Errorf("something is left: %+v", result.Left)
	}
	return nil
}

// demonstration is one demo under way.
type demonstration struct {
	options demoOptions
	machine *thisMachine
	forge   *demoForge
	server  *runningServer
	view    *view
}

func (d *demonstration) run(ctx context.Context) (result demoResult, err error) {
	d.view.say("starting the stand-in for GitHub in a network namespace")
	if d.forge, err = startForge(ctx, d.machine.name); err != nil {
		return result, err
	}
	stopForge := func() { d.forge.end() }
	defer func() { stopForge() }()
	d.machine.webhooks = net.JoinHostPort(d.forge.host.String(), "8440")
	if err := d.forge.populate(ctx, "http://"+d.machine.webhooks+"/webhook"); err != nil {
		return result, err
	}
	if d.machine.forges, err = d.forge.identity(ctx, d.machine.dir); err != nil {
		return result, err
	}
	cfg, err := d.machine.config()
	if err != nil {
		return result, err
	}
	d.view.say("starting the service: one libvirt cloud on %s, data in %s", d.machine.network, d.machine.dir)
	if d.server, err = startServer(ctx, cfg, d.view); err != nil {
		return result, err
	}
	result.Jobs, err = d.jobs(ctx)
	left, leftErr := d.takeDown(ctx)
	result.Left = left
	stopForge()
	stopForge = func() {}
	result.Left.Links, result.Left.Processes = countLinks(d.machine.name), countProcesses(d.machine.dir, d.machine.name, d.forge.address)
	return result, errors.Join(err, leftErr)
}

// jobs dispatches the run and follows it to its end.
func (d *demonstration) jobs(ctx context.Context) ([]demoJob, error) {
	run, err := d.forge.dispatch(ctx, d.options.jobs)
	if err != nil {
		return nil, err
	}
	d.view.say("dispatched a run with %d jobs; each gets a VM of its own", d.options.jobs)
	follow, stop := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() { defer close(followed); d.follow(follow, run) }()
	err = d.awaitEnd(ctx, d.options.jobs)
	if err == nil && !d.options.once {
		d.view.say("all jobs ended; the API and the page are on %s; Ctrl-C ends the demonstration", d.server.address("api"))
		<-ctx.Done()
	}
	stop()
	<-followed
	if ctx.Err() != nil && d.options.once {
		d.view.say("interrupted: cancelling the run")
		ctx = context.WithoutCancel(ctx)
		_ = d.forge.CancelRun(ctx, run.ID)
		limited, stop := context.WithTimeout(ctx, goneLimit)
		defer stop()
		return nil, errors.Join(errInterrupted, d.awaitEnd(limited, 0))
	}
	if err != nil && d.options.once {
		return nil, err
	}
	return d.collect(context.WithoutCancel(ctx), run)
}

// goneLimit bounds the wait for the last VM's end after an interrupt.
const goneLimit = 3 * time.Minute

var errInterrupted = errors.New("interrupted")

// awaitEnd waits until at least n jobs have arrived, none is unfinished and no
// VM is left.
func (d *demonstration) awaitEnd(ctx context.Context, n int) error {
	return d.server.await(ctx, func(tx *store.Tx) (bool, error) {
		alive, err := tx.AliveVMs()
		if err != nil {
			return false, err
		}
		open, err := tx.UnfinishedJobs("")
		if err != nil {
			return false, err
		}
		jobs, err := tx.ListJobs(store.JobFilter{Limit: max(1, n)})
		return len(alive)+len(open) == 0 && len(jobs) >= n, err
	})
}

// collect reads what became of the jobs: conclusions and logs from the forge,
// phases from the service.
func (d *demonstration) collect(ctx context.Context, run forgetest.Run) (out []demoJob, err error) {
	jobs, err := d.forge.Jobs(ctx, forgetest.JobFilter{Run: run.ID})
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		one := demoJob{Name: j.Name, Conclusion: j.Conclusion, Runner: j.RunnerName}
		if one.Log, err = d.forge.Log(ctx, j.ID); err != nil {
			return nil, err
		}
		err = d.server.db.View(ctx, func(tx *store.Tx) error {
			mine, err := tx.JobByForge("github", j.ID)
			if err != nil {
				return err
			}
			one.ID = mine.ID
			if vm, err := tx.VM(mine.VM); err == nil {
				one.VM = vm.Name
			}
			events, err := tx.JobEvents(mine.ID)
			one.Phases = phasesOf(events, mine.VM)
			return err
		})
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// phasesOf gives the phases of a job's last VM, in their order.
func phasesOf(events []gpuserver.Event, vm gpuserver.VMID) (out []demoPhase) {
	at := map[string]time.Time{}
	for _, e := range events {
		if slices.Contains(gpuserver.Phases, e.Kind) && (e.VM == 0 || e.VM == vm) {
			at[e.Kind] = e.At
		}
	}
	var last time.Time
	for _, p := range gpuserver.Phases {
		t, ok := at[p]
		if !ok {
			continue
		}
		if t.Before(last) {
			t = last
		}
		one := demoPhase{Name: p, At: t.UTC().Format(time.RFC3339Nano)}
		if !last.IsZero() {
			one.Seconds = t.Sub(last).Round(time.Millisecond).Seconds()
		}
		out, last = append(out, one), t
	}
	return out
}

// takeDown ends the service and takes the network away, then counts what is
// left, each from where it would be.
func (d *demonstration) takeDown(ctx context.Context) (left leftovers, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	runners, err := d.forge.Runners(ctx)
	left.Runners = len(runners)
	d.view.say("ending the service")
	err = errors.Join(err, d.server.end())
	lc := libvirtConfig(d.server.cfg, &d.server.cfg.Clouds[0], d.server.fleet.ID())
	return left, errors.Join(err, d.countLeft(ctx, lc, &left))
}

// printDemo prints the result: a table for people or one JSON document.
func printDemo(w io.Writer, format outputFormat, r demoResult) error {
	if format == outputJSON {
		return printJSON(w, r)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "JOB\tCONCLUSION\tVM\tTO CREATE\tBOOT\tRUNNER\tJOB TIME\tTO GONE\tTOTAL")
	for _, j := range r.Jobs {
		at := map[string]time.Time{}
		for _, p := range j.Phases {
			at[p.Name], _ = time.Parse(time.RFC3339Nano, p.At)
		}
		span := func(from, to string) string {
			if at[from].IsZero() || at[to].IsZero() {
				return "-"
			}
			return at[to].Sub(at[from]).Round(time.Millisecond).String()
		}
		_, _ = fmt.Fprintln(tw, strings.Join([]string{
			j.Name, j.Conclusion, j.VM, span(gpuserver.PhaseDelivered, gpuserver.PhaseCreateCalled), span(gpuserver.PhaseCreateCalled, gpuserver.PhaseAgent),
			span(gpuserver.PhaseAgent, gpuserver.PhaseJobStarted), span(gpuserver.PhaseJobStarted, gpuserver.PhaseJobEnded),
			span(gpuserver.PhaseJobEnded, gpuserver.PhaseGone), span(gpuserver.PhaseDelivered, gpuserver.PhaseGone),
		}, "\t"))
	}
	_, _ = fmt.Fprintf(tw, "\nLeft behind: %d domains, %d volumes, %d leases, %d runners, %d processes, %d links\n",
		r.Left.Domains, r.Left.Volumes, r.Left.Leases, r.Left.Runners, r.Left.Processes, r.Left.Links)
	return tw.Flush()
}
