// Package intake turns events of a forge into jobs: once per delivery, and
// right in any order.
//
// A delivery, the job that it changes and the history line are one commit, and
// only then is the delivery acknowledged. Of each job only the latest state
// that the forge ever told counts (waiting < queued < in_progress < completed):
// a replayed or late event changes nothing.
package intake

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// Outcome says what became of a delivery.
type Outcome string

// The outcomes of deliveries.
const (
	OutcomeJob     Outcome = "job"     // it is about a job of ours
	OutcomeRecheck Outcome = "recheck" // somebody asked to decide again
	OutcomeForeign Outcome = "foreign" // a job that is not ours; its body is not kept
	OutcomeOther   Outcome = "other"   // nothing to us
	OutcomeReplay  Outcome = "replay"  // stored before
	OutcomeBad     Outcome = "bad"     // it cannot be understood
)

// Intake applies events. Its methods may be called concurrently.
type Intake struct {
	DB *store.DB
	// Ours reports whether a job with these labels could be ours.
	Ours func(forgeName string, repo forge.Repo, labels []string) bool
	// Redecide sends a job back to the decision (see fleet.Redecide).
	Redecide func(tx *store.Tx, j *gpuserver.Job, why string) error
	// Observe is told what became of each delivery; nil: nobody is.
	Observe func(forgeName string, out Outcome)
	// Disk refuses what is new while the disk is nearly full; nil: never.
	Disk *DiskGuard
	Log  *slog.Logger
}

// Delivery is an event with the delivery that brought it.
type Delivery struct {
	Forge      string
	GUID       string
	Event      forge.Event
	Body       []byte
	ReceivedAt time.Time
}

// Accept stores a delivery and what it changes, and returns once both are
// synced to disk. An error means that nothing was stored: answer 503, so that
// the forge counts it as failed and it can be asked for again.
func (in *Intake) Accept(ctx context.Context, d Delivery) (out Outcome, err error) {
	if !in.Disk.Room() {
		return out, errDiskFull
	}
	ours := d.Event.Kind != forge.EventJob || in.Ours(d.Forge, d.Event.Job.Repo, d.Event.Job.Labels)
	crashpoint.At("delivery.before")
	err = in.DB.Update(ctx, func(tx *store.Tx) error {
		seen, err := tx.SeenDelivery(d.Forge, d.GUID)
		if err != nil || seen {
			out = OutcomeReplay
			return err
		}
		var job gpuserver.JobID
		out, job, err = in.apply(tx, d, ours)
		if err != nil {
			return err
		}
		row := store.Delivery{Forge: d.Forge, GUID: d.GUID, Name: d.Event.Name, Outcome: string(out), Job: job, ReceivedAt: d.ReceivedAt}
		if out == OutcomeJob || out == OutcomeRecheck {
			row.Body = d.Body
		}
		defer crashpoint.At("delivery.effect")
		return tx.AddDelivery(row)
	})
	crashpoint.At("delivery.commit")
	if err == nil {
		in.observe(d.Forge, out)
	}
	return out, err
}

func (in *Intake) observe(forgeName string, out Outcome) {
	if in.Observe != nil {
		in.Observe(forgeName, out)
	}
}

func (in *Intake) apply(tx *store.Tx, d Delivery, ours bool) (Outcome, gpuserver.JobID, error) {
	switch d.Event.Kind {
	case forge.EventJob:
		id, err := in.applyJob(tx, d.Forge, d.Event.Job, ours, d.ReceivedAt)
		if id == 0 {
			return OutcomeForeign, 0, err
		}
		return OutcomeJob, id, err
	case forge.EventRecheck:
		id, err := in.recheck(tx, d.Forge, d.Event)
		if id == 0 {
			return OutcomeOther, 0, err
		}
		return OutcomeRecheck, id, err
	case forge.EventRepoGone:
		if id := d.Event.Repo.InstallationID; len(d.Event.Gone) == 0 && id != 0 {
			return OutcomeOther, 0, tx.ForgetInstallation(d.Forge, id)
		}
		for _, r := range d.Event.Gone {
			if err := tx.ForgetRepo(d.Forge, r.Name); err != nil {
				return OutcomeOther, 0, err
			}
		}
	}
	return OutcomeOther, 0, nil
}

// Apply takes a job's state as the forge answered it to a question of ours.
func (in *Intake) Apply(ctx context.Context, forgeName string, j forge.Job) error {
	ours := in.Ours(forgeName, j.Repo, j.Labels)
	return in.DB.Update(ctx, func(tx *store.Tx) error {
		_, err := in.applyJob(tx, forgeName, j, ours, tx.Now)
		return err
	})
}

// applyJob moves a job forward to what the forge says; 0 means that it is not
// ours.
func (in *Intake) applyJob(tx *store.Tx, forgeName string, e forge.Job, ours bool, at time.Time) (gpuserver.JobID, error) {
	if e.State.Rank() == 0 || e.ID == 0 {
		return 0, nil
	}
	j, err := tx.JobByForge(forgeName, e.ID)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		if !ours {
			return 0, nil
		}
		return in.newJob(tx, forgeName, e, at)
	}
	if err != nil {
		return 0, err
	}
	return j.ID, in.advance(tx, &j, e)
}

func (in *Intake) newJob(tx *store.Tx, forgeName string, e forge.Job, at time.Time) (gpuserver.JobID, error) {
	j := gpuserver.Job{
		Forge: forgeName, ForgeID: e.ID, Repo: e.Repo.Name, RepoID: e.Repo.ID, InstallationID: e.Repo.InstallationID,
		RunID: e.RunID, RunAttempt: max(1, e.RunAttempt), Name: e.Name, Workflow: e.Workflow, Labels: e.Labels,
		HeadSHA: e.HeadSHA, HeadBranch: e.HeadBranch, URL: e.URL, ForgeState: e.State,
	}
	switch e.State {
	case gpuserver.ForgeWaiting:
		j.State = gpuserver.JobWaiting
	case gpuserver.ForgeInProgress:
		j.State, j.RunnerName, j.StartedAt = gpuserver.JobRunning, e.RunnerName, e.StartedAt
	case gpuserver.ForgeCompleted:
		// Over before we heard of it: kept, so that an event that comes late does
		// not begin it anew, and its VM, if a runner of ours had it, goes.
		j.State, j.RunnerName, j.Conclusion = gpuserver.JobDone, e.RunnerName, e.Conclusion
		j.StartedAt, j.EndedAt = e.StartedAt, cmp.Or(e.CompletedAt, tx.Now)
	default:
		j.State, j.QueuedAt = gpuserver.JobReceived, queuedAt(e.CreatedAt, at, tx.Now)
	}
	if err := tx.InsertJob(&j); err != nil {
		return 0, err
	}
	if err := tx.SeeRepo(store.SeenRepo{Forge: forgeName, Name: j.Repo, RepoID: j.RepoID, InstallationID: j.InstallationID}); err != nil {
		return 0, err
	}
	// Its first phases: there is nothing yet that they could repeat.
	if err := tx.AddEvent(gpuserver.Event{Job: j.ID, Kind: gpuserver.PhaseDelivered, At: at}); err != nil {
		return 0, err
	}
	return j.ID, tx.AddEvent(gpuserver.Event{Job: j.ID, Kind: gpuserver.PhaseStored, At: tx.Now})
}

// queuedAt is when a job was queued: by the forge's word if that is credible,
// else when we heard of it.
func queuedAt(created, received, now time.Time) time.Time {
	if received.IsZero() || received.After(now) {
		received = now
	}
	if !created.IsZero() && created.Before(received) {
		return created
	}
	return received
}

// advance moves a known job forward; what is not newer changes nothing.
func (in *Intake) advance(tx *store.Tx, j *gpuserver.Job, e forge.Job) error {
	if e.State == j.ForgeState && j.RunnerName == "" && e.RunnerName != "" {
		j.RunnerName = e.RunnerName // told late; the fleet looks again
		return tx.SaveJob(j)
	}
	if e.State.Rank() <= j.ForgeState.Rank() {
		return nil
	}
	j.ForgeState = e.State
	if e.RunnerName != "" {
		j.RunnerName = e.RunnerName
	}
	switch e.State {
	case gpuserver.ForgeQueued:
		if j.State != gpuserver.JobWaiting {
			return tx.SaveJob(j)
		}
		j.QueuedAt = tx.Now
		return tx.MoveJob(j, gpuserver.JobReceived, "no longer held back by the forge")
	case gpuserver.ForgeInProgress:
		j.StartedAt = e.StartedAt
		if j.StartedAt.IsZero() {
			j.StartedAt = tx.Now
		}
		if j.State == gpuserver.JobDone {
			return tx.SaveJob(j)
		}
		if len(j.Entries) > 0 { // a refused job that found a runner keeps its reason: the hook asks for it
			j.Reason = gpuserver.Reason{}
		}
		return tx.MoveJob(j, gpuserver.JobRunning, "on runner "+j.RunnerName)
	case gpuserver.ForgeCompleted:
		return in.complete(tx, j, e)
	}
	return nil
}

func (in *Intake) complete(tx *store.Tx, j *gpuserver.Job, e forge.Job) error {
	j.Conclusion, j.EndedAt = e.Conclusion, e.CompletedAt
	if j.EndedAt.IsZero() {
		j.EndedAt = tx.Now
	}
	if j.StartedAt.IsZero() && j.RunnerName != "" {
		j.StartedAt = e.StartedAt
	}
	if j.State == gpuserver.JobDone {
		return tx.SaveJob(j)
	}
	if len(j.Entries) > 0 {
		j.Reason = gpuserver.Reason{}
	}
	return tx.MoveJob(j, gpuserver.JobDone, "the forge says "+e.Conclusion)
}

// tellAgain has a job's check run written even if it says what it said before:
// with the request GitHub opened the check suite again, and somebody waits for
// an answer.
func tellAgain(tx *store.Tx, id gpuserver.JobID) error {
	c, err := tx.Check(id)
	if err != nil || c.CheckID == 0 {
		return err
	}
	c.Concluded = false
	return tx.SaveCheck(c)
}

// recheckMost bounds what one request for all check runs of a commit has done.
const recheckMost = 1000

// recheck sends jobs back to the decision because somebody asked for it on a
// check run, or on all of a commit. It gives the (newest) job; 0 is none.
func (in *Intake) recheck(tx *store.Tx, forgeName string, e forge.Event) (gpuserver.JobID, error) {
	if e.CheckHeadSHA != "" {
		js, err := tx.CheckedJobs(forgeName, e.Repo.Name, e.CheckHeadSHA, recheckMost)
		for i := range js {
			err = errors.Join(err, in.recheckJob(tx, &js[i]))
		}
		if len(js) == 0 {
			return 0, err
		}
		return js[0].ID, err
	}
	id, err := strconv.ParseInt(e.CheckExternalID, 10, 64)
	if err != nil {
		return 0, nil // not a check run of ours
	}
	j, err := tx.Job(gpuserver.JobID(id))
	if gpuserver.KindOf(err) == gpuserver.KindNotFound || err == nil && (j.Forge != forgeName || !strings.EqualFold(j.Repo, e.Repo.Name)) {
		return 0, nil
	}
	if err != nil {
		return j.ID, err
	}
	return j.ID, in.recheckJob(tx, &j)
}

func (in *Intake) recheckJob(tx *store.Tx, j *gpuserver.Job) error {
	if err := tellAgain(tx, j.ID); err != nil {
		return err
	}
	if j.State == gpuserver.JobDone || j.State == gpuserver.JobRunning || j.State == gpuserver.JobWaiting || j.ForgeState == gpuserver.ForgeCompleted {
		return tx.SaveJob(j) // nothing to decide; this wakes who tells
	}
	return in.Redecide(tx, j, "somebody asked on the check run to decide again")
}
