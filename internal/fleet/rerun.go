package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gpuserver"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

const (
	// rerunFor is how long we try to have a job run again. Its forge does so only
	// once all jobs of the run have ended, and a matrix may take hours.
	rerunFor = 24 * time.Hour
	// rerunPause is the pause after the first look in vain; it doubles to
	// rerunPauseMost. A look costs one point of the forge's budget.
	rerunPause     = 5 * time.Second
	rerunPauseMost = 2 * time.Minute
)

// The kind of event that tells of a re-run, and what is told to who reads why a
// job failed.
const (
	eventRerun  = "rerun"
	rerunByHand = "re-run the job: it gets another card, as this one rests or is out of service"
	rerunSoon   = "it is run again by itself, on another card, once all jobs of its run have ended"
)

// noteRerun has a job whose GPU failed run again, if that is configured and this
// is not one attempt too many. Who calls it saves the job.
func (f *Fleet) noteRerun(tx *store.Tx, j *gpuserver.Job) error {
	if _, ok := f.Forges[j.Forge]; !ok || !f.RerunOnGPU {
		return nil
	}
	if j.RunAttempt > f.Limits.Retries {
		j.Reason.Help = fmt.Sprintf("%s; by itself it is run again %d times at most (jobs.retries)", rerunByHand, f.Limits.Retries)
		return nil
	}
	added, err := tx.AddRerun(j.ID)
	if err != nil || !added {
		return err
	}
	j.Reason.Help = rerunSoon
	return tx.AddEvent(gpuserver.Event{Job: j.ID, Kind: eventRerun, Text: rerunSoon})
}

// stepRerun asks a job's forge to run it again, once its run has ended.
//
// That the forge is asked, and at which of the run's attempts, is committed before
// the call. So after a crash, or if the call's outcome is unknown, a later attempt
// tells that it was carried out, and nobody asks twice.
func (f *Fleet) stepRerun(ctx context.Context, id gpuserver.JobID) time.Duration {
	var r store.Rerun
	var j gpuserver.Job
	err := f.DB.View(ctx, func(tx *store.Tx) (err error) {
		if r, err = tx.Rerun(id); err == nil {
			j, err = tx.Job(id)
		}
		return err
	})
	switch {
	case err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound:
		if ctx.Err() != nil {
			return 0
		}
		f.Log.Error("a re-run cannot be read", "job", id, "err", err)
		return time.Second
	case err != nil || r.State != store.RerunWaiting:
		return 0
	}
	if d := time.Until(r.NextAt); d > 0 {
		return d
	}
	fg, ok := f.Forges[j.Forge]
	if !ok || !f.RerunOnGPU {
		return f.dropRerun(ctx, r, "that is not configured any more (jobs.rerun_on_gpu_failure)")
	}
	run, err := fg.Run(ctx, repoOf(j), j.RunID, 0)
	if err != nil {
		return f.rerunLater(ctx, r, err)
	}
	if run.Attempt < max(j.RunAttempt, r.Asked) { // else its next look would take the job's own attempt for a later one
		return f.rerunLater(ctx, r, gpuserver.Errorf(gpuserver.KindUnavailable, "the forge does not show the latest attempt of its run yet"))
	}
	then, err := f.sequelOf(ctx, j, run.Attempt)
	switch {
	case err != nil:
		return f.rerunLater(ctx, r, err)
	case then.anew > 0:
		return f.reran(ctx, r, then.anew)
	case r.Asked > 0 && run.Attempt > r.Asked && !then.carried:
		return f.reran(ctx, r, run.Attempt)
	case run.Status != string(gpuserver.ForgeCompleted):
		return f.rerunLater(ctx, r, gpuserver.Errorf(gpuserver.KindConflict, "its run still goes on"))
	case run.Conclusion == "cancelled": // by somebody, or by a newer run that takes its place
		return f.dropRerun(ctx, r, "its run was cancelled")
	}
	return f.askRerun(ctx, fg, j, r, run.Attempt, then.id)
}

// askRerun makes the call, at a completed attempt of the run, and commits what
// came of it.
func (f *Fleet) askRerun(ctx context.Context, fg Forge, j gpuserver.Job, r store.Rerun, attempt int, forgeID int64) time.Duration {
	unsure := r.Asked == attempt // what came of the last call
	r.Asked = attempt
	if err := f.DB.Update(ctx, func(tx *store.Tx) error { return tx.SaveRerun(r) }); err != nil {
		return time.Second
	}
	crashpoint.At("rerun.before")
	err := fg.RerunJob(ctx, repoOf(j), forgeID)
	crashpoint.At("rerun.effect")
	defer crashpoint.At("rerun.commit")
	switch gpuserver.KindOf(err) {
	case "":
		return f.reran(ctx, r, r.Asked+1)
	case gpuserver.KindConflict, gpuserver.KindLimited:
		if !unsure {
			r.Asked = 0 // another attempt is somebody else's
		}
	case gpuserver.KindRefused, gpuserver.KindNotFound, gpuserver.KindInvalid:
		f.Log.Warn("the forge refuses to run a job again", "job", r.Job, "forge", j.Forge, "err", err)
		return f.dropRerun(ctx, r, gpuserver.PublicText(err))
	}
	return f.rerunLater(ctx, r, err)
}

// sequel is what was told of a job in the attempts of its run after its own.
type sequel struct {
	id      int64 // the forge's number of it in the latest attempt, as far as we were told
	anew    int   // the attempt in which it was run again, whoever asked for that; 0: none
	carried bool  // the latest attempt has it as it was: another job's re-run
}

// sequelOf looks for a job in the later attempts of its run. There, a forge has a
// job that is not run again under a new number, with its old runner.
func (f *Fleet) sequelOf(ctx context.Context, j gpuserver.Job, latest int) (s sequel, err error) {
	s.id = j.ForgeID
	err = f.DB.View(ctx, func(tx *store.Tx) error {
		for n := j.RunAttempt + 1; n <= latest; n++ {
			jobs, err := tx.JobsOfRun(j.Forge, j.Repo, j.RunID, n)
			if err != nil {
				return err
			}
			s.id, s.carried = j.ForgeID, false
			for _, k := range jobs {
				switch {
				case k.RunnerName == j.RunnerName: // it has one, or no card would have failed it
					s.id, s.carried = k.ForgeID, true
				case k.Name == j.Name:
					s.anew = n
				}
			}
		}
		return nil
	})
	return s, err
}

// rerunLater waits for another look, or gives up after rerunFor.
func (f *Fleet) rerunLater(ctx context.Context, r store.Rerun, why error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	if time.Since(r.Since) >= rerunFor {
		return f.dropRerun(ctx, r, fmt.Sprintf("it could not be for %.0f hours; the last: %s", rerunFor.Hours(), gpuserver.PublicText(why)))
	}
	pause := min(rerunPauseMost, rerunPause<<min(r.Tries, 10))
	if limit, ok := errors.AsType[*forge.LimitError](why); ok {
		pause = max(pause, time.Until(limit.Until))
	}
	f.Log.Debug("job cannot be run again yet", "job", r.Job, "try", r.Tries+1, "pause", pause, "err", why)
	r.Tries++
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		r.NextAt = tx.Now.Add(pause)
		return tx.SaveRerun(r)
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindConflict {
		return time.Second
	}
	return pause
}

// reran commits that the forge runs a job again.
func (f *Fleet) reran(ctx context.Context, r store.Rerun, attempt int) time.Duration {
	r.State = store.RerunDone
	what := fmt.Sprintf("it was run again, as attempt %d", attempt)
	return f.endRerun(ctx, r, what, what)
}

// dropRerun commits that a job is not run again by us, and why.
func (f *Fleet) dropRerun(ctx context.Context, r store.Rerun, why string) time.Duration {
	r.State = store.RerunGivenUp
	return f.endRerun(ctx, r, "it is not run again by itself: "+why, fmt.Sprintf("%s. It is not run again by itself: %s", rerunByHand, why))
}

func (f *Fleet) endRerun(ctx context.Context, r store.Rerun, text, help string) time.Duration {
	err := f.DB.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		if err := tx.SaveRerun(r); err != nil {
			return err
		}
		j, err := tx.Job(r.Job)
		if err != nil {
			return err
		}
		if j.Reason.Class == gpuserver.ReasonGPU {
			j.Reason.Help = help
			if err := tx.SaveJob(&j); err != nil {
				return err
			}
		}
		return tx.AddEvent(gpuserver.Event{Job: r.Job, Kind: eventRerun, Text: text})
	})
	switch gpuserver.KindOf(err) {
	case "":
		f.Log.Info("re-run is over", "job", r.Job, "state", r.State, "what", text)
	case gpuserver.KindConflict, gpuserver.KindNotFound: // over already, or the job's row is gone
	default:
		f.Log.Error("a re-run cannot be committed", "job", r.Job, "err", err)
		return time.Second
	}
	return 0
}
