package guest

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"gpuserver/internal/gate"
)

// runGated runs the job between two looks at the VM's cards, if it has any. A job
// whose cards failed the first one is not started; the second one is told with
// the job's end.
func (a *agent) runGated(ctx context.Context) (exit jobExit, after *gate.Report) {
	if a.payload.Gate == nil {
		return a.runJob(ctx), nil
	}
	before := a.checkCards(ctx, gate.Before)
	if before == nil {
		return jobExit{status: startFailed}, nil
	}
	a.status.reachedWith(PhaseGate, before)
	a.report.wake()
	if !before.Passed {
		return jobExit{status: startFailed, gated: true}, nil
	}
	exit = a.runJob(ctx)
	return exit, a.checkCards(ctx, gate.After)
}

// checkCards looks at the VM's cards and writes the report on the console, in
// case that no heartbeat comes through. It gives nil if the agent was asked to
// stop meanwhile: then nothing is known of the cards.
func (a *agent) checkCards(ctx context.Context, when string) *gate.Report {
	r := gate.Check(ctx, gate.Options{Root: a.Root}, *a.payload.Gate, when)
	if ctx.Err() != nil {
		return nil
	}
	a.log.Info("gate", "when", when, "passed", r.Passed, "cards", len(r.Cards), "tool", r.Tool, "seconds", r.Seconds)
	for _, f := range r.Findings {
		a.log.Error("gate", "when", when, "kind", string(f.Kind), "host", f.Host, "text", f.Text)
	}
	a.console(r.Line())
	return &r
}

// console writes a line of its own to the VM's console, where the server reads
// it. It goes there directly: what passes through the agent's log begins with
// that log's words.
func (a *agent) console(line string) {
	f, err := os.OpenFile(a.path("dev/console"), os.O_WRONLY|os.O_APPEND|unix.O_NOCTTY, 0)
	if err == nil {
		_, err = f.WriteString("\n" + line + "\n")
		f.Close()
	}
	if err != nil {
		a.log.Error("cannot write to the console", "err", err)
	}
}
