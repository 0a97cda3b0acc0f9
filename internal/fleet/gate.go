package fleet

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/health"
	"gpuserver/internal/store"
)

// gateLimit is how long a guest may check its cards, on an accelerated cloud.
const gateLimit = 2 * time.Minute

// What a guest's report of its cards said, in GuestReport.
const (
	gatePassed = "passed"
	gateFailed = "failed"
)

func (f *Fleet) gateTimeout(v gpuserver.VM) time.Duration {
	if drv, ok := f.clouds[v.Cloud]; ok && !drv.Capabilities().Accelerated {
		return gateLimit * time.Duration(max(1, f.Limits.EmulationFactor))
	}
	return gateLimit
}

// awaitsGate reports whether nothing of a VM's cards is known yet that has to be
// known before its runner counts.
func awaitsGate(v gpuserver.VM) bool {
	return len(v.Claims) > 0 && v.Guest.Gate == "" && (v.State == gpuserver.VMCreating || v.State == gpuserver.VMBooting)
}

// gateBefore takes what a guest found before its runner. If its cards are not as
// they should be, the VM is taken down and its job goes to other cards, in the
// same commit as the strikes; its runner is never started by the guest.
func (f *Fleet) gateBefore(tx *store.Tx, v *gpuserver.VM, r gate.Report) error {
	r.When = gate.Before
	attached, err := f.attached(tx, *v)
	if err != nil {
		return err
	}
	cards, err := f.cardsOf(tx, *v)
	if err != nil {
		return err
	}
	verdict := health.Guest(r, attached)
	l, err := f.learn(tx, *v, cards, attached, r)
	if err != nil {
		return err
	}
	if l.lie != "" {
		verdict.Passed, verdict.Why = false, l.lie
		for i := range verdict.Seen {
			verdict.Seen[i] = append(verdict.Seen[i], health.Evidence{Kind: gate.KindLie, Text: l.lie})
		}
	}
	if why := f.unwanted(tx.Now, *v, l); verdict.Passed && why != "" {
		verdict.Passed, verdict.Why = false, why
	}
	if verdict.Passed {
		v.Guest.Gate = gatePassed
		for _, g := range l.cards {
			if err := tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, VM: v.ID, Job: v.MadeFor, Kind: gpuPassed, Text: passedWords(r)}); err != nil {
				return err
			}
		}
		return tx.SaveVM(v)
	}
	v.Guest.Gate = gateFailed
	for i, g := range l.cards {
		if _, err := f.strike(tx, g, *v, verdict.Seen[i]); err != nil {
			return err
		}
	}
	return f.failCards(tx, v, l.cards, "failed its check before the job: "+verdict.Why, imagesFault(verdict))
}

func passedWords(r gate.Report) string {
	if r.Tool == "" {
		return "it is there, by its PCI numbers"
	}
	return "it is well, by " + r.Tool
}

// unwanted says why a VM may not go on with cards that are well: the cloud chose
// one that is out of service, or one that is has moved here.
func (f *Fleet) unwanted(now time.Time, v gpuserver.VM, l learned) string {
	for i, g := range l.cards {
		if why, _ := health.Out(g, now); why != "" && v.Entry.Pin == (gpuserver.Place{}) && (l.moved[i] || f.choosesCards(v)) {
			return why
		}
	}
	return ""
}

// imagesFault reports whether all that is wrong may be the image's: a tool or a
// driver that fails.
func imagesFault(v health.Verdict) bool {
	found := false
	for _, es := range v.Seen {
		for _, e := range es {
			if !slices.Contains([]gate.Kind{gate.KindTool, gate.KindDriver, gate.KindTimeout, gate.KindNoReport}, e.Kind) {
				return false
			}
			found = true
		}
	}
	return found
}

// failCards takes a VM down whose cards are not well. Its job is not charged: it
// goes to other cards. One that was there to test the card ends.
func (f *Fleet) failCards(tx *store.Tx, v *gpuserver.VM, cards []gpuserver.GPU, what string, image bool) error {
	v.Reason = "the " + cardNames(cards) + " " + what
	if err := tx.MoveVM(v, gpuserver.VMDraining, v.Reason); err != nil {
		return err
	}
	if image {
		if err := f.countImage(tx, *v, v.Reason); err != nil {
			return err
		}
	}
	if v.Entry.Pin != (gpuserver.Place{}) {
		return f.endLocal(tx, *v, "failure", v.Reason)
	}
	return f.requeue(tx, *v, failure{why: v.Reason})
}

// gateAfter takes what a guest found after its job. It comes from the job's own
// hands, and is weighed like that.
func (f *Fleet) gateAfter(tx *store.Tx, v *gpuserver.VM, r gate.Report) error {
	r.When = gate.After
	attached, err := f.attached(tx, *v)
	if err != nil {
		return err
	}
	cards, err := f.cardsOf(tx, *v)
	if err != nil {
		return err
	}
	verdict := health.Guest(r, attached)
	v.Guest.GateAfter = gatePassed
	if verdict.Passed {
		return nil
	}
	v.Guest.GateAfter = gateFailed
	for i, g := range cards {
		if i >= len(verdict.Seen) {
			break
		}
		if _, err := f.strike(tx, g, *v, verdict.Seen[i]); err != nil {
			return err
		}
	}
	return nil
}

// noReport holds it against a VM's cards that nothing was ever told of them. It
// may as well be the image's fault.
func (f *Fleet) noReport(tx *store.Tx, v gpuserver.VM) error {
	if len(v.Claims) == 0 || v.Guest.Gate != "" {
		return nil
	}
	cards, err := f.cardsOf(tx, v)
	for _, g := range cards {
		if _, err := f.strike(tx, g, v, []health.Evidence{{Kind: gate.KindNoReport, Text: "a VM that had it never said how it is: neither over the network nor on its console"}}); err != nil {
			return err
		}
	}
	return err
}

// maxConsole is how much of a console is read for a report.
const maxConsole = 8 << 20

// fromConsole gives the report that a guest wrote to its console.
func (f *Fleet) fromConsole(ctx context.Context, v gpuserver.VM, when string) (r gate.Report, found bool) {
	drv, ok := f.clouds[v.Cloud]
	if !ok || !drv.Capabilities().Console {
		return r, false
	}
	ctx, cancel := context.WithTimeout(ctx, endsWithin)
	defer cancel()
	console, err := drv.Console(ctx, v.Name, 0, maxConsole)
	if err != nil {
		if gpuserver.KindOf(err) != gpuserver.KindNotFound {
			f.Log.Warn("console cannot be read", "vm", v.Name, "err", err)
		}
		return r, false
	}
	defer console.Close()
	text, err := io.ReadAll(io.LimitReader(console, maxConsole))
	if err != nil {
		f.Log.Warn("console cannot be read", "vm", v.Name, "err", err)
	}
	return gate.FromConsole(text, when)
}

// readGate looks for the report of a VM that did not report in time on its
// console, and takes it as if it had come. failed says that its cards are not
// well, and that all that follows is done.
func (f *Fleet) readGate(ctx context.Context, v gpuserver.VM) (failed bool) {
	if !awaitsGate(v) {
		return false
	}
	r, found := f.fromConsole(ctx, v, gate.Before)
	if !found {
		return false
	}
	err := f.change(ctx, &v, func(tx *store.Tx) error {
		if !awaitsGate(v) {
			return nil
		}
		return f.gateBefore(tx, &v, r)
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindConflict {
		f.Log.Error("a check of GPUs cannot be committed", "vm", v.Name, "err", err)
	}
	return v.Guest.Gate == gateFailed
}

// afterLimit is how long a VM with cards stays once its job is over, for its guest
// to look at them again: the forge's word comes sooner than the guest's.
const afterLimit = 20 * time.Second

// awaitAfter gives how much longer a VM that is to be deleted may take to say how
// its cards are after the job. Only one is waited for that said so before it, and
// whose job ended as jobs do.
func (f *Fleet) awaitAfter(ctx context.Context, v gpuserver.VM) time.Duration {
	if v.Guest.Gate != gatePassed || v.Guest.GateAfter != "" || v.Assigned == 0 {
		return 0
	}
	d := time.Until(v.StateAt.Add(afterLimit))
	if d <= 0 {
		return 0
	}
	switch j, err := f.jobOf(ctx, v); gpuserver.KindOf(err) {
	case "":
		if !j.State.Over() {
			return 0
		}
		return d
	case gpuserver.KindNotFound:
		return 0
	default: // not known; the VM is no sooner deleted for that
		return min(d, time.Second)
	}
}

// readAfter looks for what a guest found after its job on the console of a VM
// that is about to be deleted, if that was not told over the network.
func (f *Fleet) readAfter(ctx context.Context, v gpuserver.VM) {
	if len(v.Claims) == 0 || v.Assigned == 0 || v.Guest.GateAfter != "" {
		return
	}
	r, found := f.fromConsole(ctx, v, gate.After)
	if !found {
		return
	}
	err := f.change(ctx, &v, func(tx *store.Tx) error {
		if v.Guest.GateAfter != "" {
			return nil
		}
		if err := f.gateAfter(tx, &v, r); err != nil {
			return err
		}
		return tx.SaveVM(&v)
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindConflict {
		f.Log.Error("a check of GPUs cannot be committed", "vm", v.Name, "err", err)
	}
}

// noteGPU names the cards that failed while a job ran, if the job failed. It is
// asked when the job ends and when its VM is released, whichever is the later.
func (f *Fleet) noteGPU(tx *store.Tx, id gpuserver.JobID, v gpuserver.VM) error {
	if len(v.Claims) == 0 || id == 0 || v.Assigned != id {
		return nil
	}
	j, err := tx.Job(id)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		return nil
	}
	if err != nil || j.Reason.Class == gpuserver.ReasonGPU || !slices.Contains([]string{"failure", "timed_out"}, j.Conclusion) {
		return err
	}
	cards, err := tx.GPUsOfVM(v.ID)
	if err != nil {
		return err
	}
	for _, g := range cards {
		es, err := tx.GPUEvents(g.ID, 50)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(es, func(e gpuserver.GPUEvent) bool { return e.VM == v.ID && e.Job == id && e.Kind == gpuStrike })
		if i < 0 {
			continue
		}
		j.Reason = gpuserver.Reason{
			Class: gpuserver.ReasonGPU, Text: fmt.Sprintf("the %s failed during the job: %s", cardName(g), es[i].Text), Help: rerunByHand,
		}
		if err := tx.AddEvent(gpuserver.Event{Job: id, VM: v.ID, Kind: "gpu_failed", Text: j.Reason.Text}); err != nil {
			return err
		}
		if err := f.noteRerun(tx, &j); err != nil {
			return err
		}
		return tx.SaveJob(&j)
	}
	return nil
}
