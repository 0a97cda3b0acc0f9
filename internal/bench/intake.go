package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/forge/forgetest"
)

// connections is how many deliveries are under way at the same time at most.
const connections = 64

// intake measures how many deliveries of new jobs of ours the service commits
// and answers: first with a cloud that is full from the start, so that no VM is
// made, then with many VMs that live, report and fill the cloud. Behind each
// answer the jobs go on as ever: they are decided and wait for room.
func (b *bench) intake() error {
	in := &b.report.Intake
	in.Live = b.Size.LiveVMs
	for _, m := range []struct {
		live int
		to   *Intake
	}{{0, &in.NoVMs}, {b.Size.LiveVMs, &in.LiveVMs}} {
		if err := b.intakeWith(m.live, m.to); err != nil {
			return err
		}
		b.say("   %4d VMs: %.0f deliveries/s (p99 %.1f ms); at %.0f/s p50 %.1f ms, p99 %.1f ms, %.2f ms of CPU each, decided %.1f s later; %d failed", m.live,
			m.to.PerS, m.to.Saturated.P99, m.to.FixedPerS, m.to.Fixed.P50, m.to.Fixed.P99, m.to.CPU, m.to.Behind, m.to.Failed)
	}
	b.report.IntakePerS, b.report.IntakeP99 = in.NoVMs.PerS, in.NoVMs.Fixed.P99
	return nil
}

func (b *bench) intakeWith(live int, to *Intake) error {
	w, err := b.newWorld("intake", forgeArgs{}, cloudArgs{MaxVMs: live, Guest: "long"})
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return err
	}
	if err := w.live(live); err != nil {
		return err
	}
	s, err := w.sample()
	if err != nil {
		return err
	}
	b.report.Intake.BodySize = len(s.Body)
	before, err := cpuOf(w.server.cmd.Process.Pid)
	if err != nil {
		return err
	}
	n := b.Size.IntakePerS * int(b.Size.IntakeFor/time.Second)
	fixed, err := w.load(s, load{PerS: b.Size.IntakePerS}, n)
	if err != nil {
		return err
	}
	answered := time.Now()
	if err := w.decided(); err != nil {
		return err
	}
	behind := time.Since(answered)
	after, err := cpuOf(w.server.cmd.Process.Pid)
	if err != nil {
		return err
	}
	// More than a machine of this size can take in the time.
	full, err := w.load(s, load{}, 8000*int(b.Size.IntakeFor/time.Second))
	if err != nil {
		return err
	}
	if full.Ended {
		b.say("   the deliveries ran out before the time did")
	}
	*to = Intake{Behind: round(behind.Seconds(), 2), CPU: round(millis(after-before)/float64(n), 3), PerS: full.PerS, Saturated: full.Took, FixedPerS: fixed.PerS, Fixed: fixed.Took, Failed: full.Failed + fixed.Failed}
	if to.Failed > 0 {
		b.say("   %d deliveries failed, the first: %s%s", to.Failed, fixed.Why, full.Why)
	}
	return nil
}

// decided waits until the service has decided about every job that it has.
func (w *world) decided() error {
	c, err := api.NewClient("unix://"+w.path("api.sock"), "")
	if err != nil {
		return err
	}
	defer c.Close()
	return until(w.ctx, 200*time.Millisecond, "all jobs are decided", func() (string, error) {
		st, err := c.Status(w.ctx)
		if n := st.Jobs[gpuserver.JobReceived]; n > 0 {
			return fmt.Sprintf("%d are not", n), err
		}
		return "", err
	})
}

// live makes n VMs and waits until each runs a job.
func (w *world) live(n int) error {
	if n == 0 {
		return nil
	}
	if _, err := w.dispatch(n, sameLabel); err != nil {
		return err
	}
	return until(w.ctx, 500*time.Millisecond, fmt.Sprintf("%d VMs run jobs", n), func() (string, error) {
		if err := w.server.ended(); err != nil {
			return "", err
		}
		st, err := w.forge.Stats(w.ctx)
		if running := st.Jobs["in_progress"]; err != nil || running < int64(n) {
			return fmt.Sprintf("%d so far", running), err
		}
		told, err := w.sent("in_progress") // and the service knows it
		if len(told) < n {
			return fmt.Sprintf("%d were told so far", len(told)), err
		}
		return "", err
	})
}

// sampleLabel marks the sample among events that are still on their way. Its
// suffix is the only difference to the labels of the others.
const sampleLabel = "cirun-bench--sample"

// sample has the stand-in for GitHub deliver one job to us instead.
func (w *world) sample() (s sample, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return s, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: listen", err)
	}
	got := make(chan sample, 1)
	srv := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && strings.Contains(string(body), sampleLabel) {
			select {
			case got <- sample{Header: r.Header, Body: string(body)}:
			default:
			}
		}
		rw.WriteHeader(http.StatusAccepted)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(ln) }()
	defer func() { srv.Close(); <-served }()
	if err := w.deliverTo("http://" + ln.Addr().String()); err != nil {
		return s, err
	}
	runs, err := w.dispatch(1, func(int) string { return sampleLabel })
	if err != nil {
		return s, err
	}
	select {
	case s = <-got:
	case <-time.After(patience):
		return s, gpuserver.Errorf(gpuserver.KindUnavailable, "bench: the stand-in for GitHub delivered nothing")
	}
	s.Run, s.Job = runs[0].ID, runs[0].Jobs[0].ID
	// From here on the load's process sends the deliveries, not the forge.
	none := []string{"check_run"}
	return s, w.forge.Configure(w.ctx, forgetest.Settings{Events: &none})
}

// load dispatches n jobs that the forge tells nobody of and has a process of
// its own deliver them.
func (w *world) load(s sample, l load, n int) (out loaded, err error) {
	l.URL, l.Sample, l.For, l.Connections = "http://"+w.hooks+"/webhooks/github", s, w.b.Size.IntakeFor, connections
	runs, err := w.dispatch(n, sameLabel)
	if err != nil {
		return out, err
	}
	for _, r := range runs {
		for _, j := range r.Jobs {
			l.Jobs = append(l.Jobs, ids{r.ID, j.ID})
		}
	}
	toLoad, fromUs := io.Pipe()
	defer fromUs.Close()
	p, err := start(w.path("load.log"), []string{RoleVariable + "=load"}, toLoad, true, w.b.Self)
	if err != nil {
		return out, err
	}
	defer func() { toLoad.Close(); _ = p.cmd.Process.Signal(syscall.SIGKILL); p.reap() }()
	return drive(p, fromUs, l)
}

// drive tells the process what to send, starts it when it is ready and reads
// its figures.
func drive(p *process, to io.Writer, l load) (out loaded, err error) {
	fail := func(err error) (loaded, error) {
		return out, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: the load, "+tail(p.log.Name()), err)
	}
	if _, err := io.WriteString(to, text(l)+"\n"); err != nil {
		return fail(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready") {
		return fail(fmt.Errorf("%q: %w", line, err))
	}
	if _, err := io.WriteString(to, "go\n"); err != nil {
		return fail(err)
	}
	if err := json.NewDecoder(bufio.NewReader(p.out)).Decode(&out); err != nil {
		return fail(err)
	}
	return out, nil
}
