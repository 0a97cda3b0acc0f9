package intake

import (
	"context"
	"errors"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// Feed asks a forge for what its webhook did not bring: in pull mode for every
// delivery, else for failed ones again, and now and then for the queued jobs of
// repositories seen recently, because a forge sometimes never makes an event.
type Feed struct {
	Intake *Intake
	Name   string // the forge's
	Forge  interface {
		QueuedJobs(ctx context.Context, repo forge.Repo) ([]forge.Job, error)
		// Past lists deliveries made since a time, oldest first.
		Past(ctx context.Context, since time.Time) ([]Past, error)
		// Fetch reads one delivery with its event.
		Fetch(ctx context.Context, id int64) (Delivery, error)
		// Redeliver asks for one again.
		Redeliver(ctx context.Context, id int64) error
	}
	Pull       bool
	PullEvery  time.Duration // in pull mode
	RetryEvery time.Duration // between looks for failed deliveries, otherwise
	RunsEvery  time.Duration // between lists of queued jobs; 0: never
	RunsFor    time.Duration // how long ago a repository was seen recently
	Repaired   func(kind string)

	asked map[string]asked // redeliveries asked for, by GUID
}

// asked is how often a delivery was asked for again, and when next.
type asked struct {
	times int
	next  time.Time
}

// askAtMost is how often a delivery is asked for again: one that we ourselves
// refuse (it cannot be understood) comes as often.
const askAtMost = 6

// Past is a delivery that the forge made or tried.
type Past struct {
	ID   int64
	GUID string
	At   time.Time
	OK   bool // our side took it
	Job  bool // it is about a job or a check run
}

// keepsDeliveries is how long GitHub can be asked for a delivery.
const keepsDeliveries = 3 * 24 * time.Hour

// overlap is how far back each look goes before the newest delivery seen:
// deliveries are not listed in the order in which they were made.
const overlap = 2 * time.Minute

// Run asks until ctx is done.
func (f *Feed) Run(ctx context.Context) {
	f.asked = map[string]asked{}
	var wg sync.WaitGroup
	wg.Go(func() {
		look, pause := f.redeliver, f.RetryEvery
		if f.Pull {
			look, pause = f.pull, f.PullEvery
		}
		repeat(ctx, pause, func() { f.lookSince(ctx, look) })
	})
	wg.Go(func() { repeat(ctx, f.RunsEvery, func() { f.listRuns(ctx) }) })
	wg.Wait()
}

func repeat(ctx context.Context, d time.Duration, fn func()) {
	if d <= 0 {
		return
	}
	for ctx.Err() == nil {
		fn()
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
}

// lookSince gives the deliveries since the last look to fn, and remembers how
// far it came, or the time of the oldest that is still open: the next look, also
// after a restart, goes on there.
func (f *Feed) lookSince(ctx context.Context, fn func(context.Context, []Past) (open time.Time, err error)) {
	key := "deliveries of " + f.Name
	var last string
	_ = f.Intake.DB.View(ctx, func(tx *store.Tx) (err error) { last, err = tx.Setting(key); return err })
	since := time.Now().Add(-keepsDeliveries)
	if t, err := time.Parse(time.RFC3339Nano, last); err == nil && t.Add(-overlap).After(since) {
		since = t.Add(-overlap)
	} else if err != nil && !f.Pull {
		since = time.Now().Add(-time.Hour) // a new installation: nothing older is ours
	}
	past, err := f.Forge.Past(ctx, since)
	if err == nil && len(past) > 0 {
		var open time.Time
		if open, err = fn(ctx, past); err == nil {
			newest := past[len(past)-1].At
			if !open.IsZero() && open.Before(newest) {
				newest = open
			}
			err = f.Intake.DB.Update(ctx, func(tx *store.Tx) error { return tx.SetSetting(key, newest.UTC().Format(time.RFC3339Nano)) })
		}
	}
	if err != nil && ctx.Err() == nil {
		f.Intake.Log.Warn("deliveries cannot be read", "forge", f.Name, "err", err)
	}
}

// seen reports whether a delivery is stored already. A store that cannot be read
// is an error: taken for either answer, the look would go on past the delivery,
// or pay for it again.
func (f *Feed) seen(ctx context.Context, guid string) (seen bool, err error) {
	err = f.Intake.DB.View(ctx, func(tx *store.Tx) (err error) { seen, err = tx.SeenDelivery(f.Name, guid); return err })
	return seen, err
}

// failuresInARow is how many deliveries or repositories in a row may fail until
// the forge, and not one of them, is taken to be at fault.
const failuresInARow = 3

// pull fetches and accepts the deliveries that are not stored yet. One that the
// forge cannot give now keeps no other waiting: it stays open, and is asked for
// again after ever longer pauses.
func (f *Feed) pull(ctx context.Context, past []Past) (open time.Time, err error) {
	f.forget()
	failed := 0
	for _, p := range past {
		if !p.Job {
			continue
		}
		if seen, err := f.seen(ctx, p.GUID); err != nil {
			return open, err
		} else if seen {
			continue
		}
		a := f.asked[p.GUID]
		if time.Now().Before(a.next) {
			open = earlier(open, p.At)
			continue
		}
		switch err := f.fetch(ctx, p); {
		case err == nil:
			delete(f.asked, p.GUID)
			failed = 0
		case !isOne(err) || ctx.Err() != nil:
			return open, err
		default:
			open = earlier(open, p.At)
			f.asked[p.GUID] = asked{a.times + 1, time.Now().Add(min(f.PullEvery<<min(a.times, 10), time.Hour))}
			if failed++; failed == failuresInARow {
				return open, err
			}
			f.Intake.Log.Warn("delivery cannot be read yet", "forge", f.Name, "guid", p.GUID, "err", err)
		}
	}
	return open, nil
}

// notStored is an error of ours, not of the forge.
type notStored struct{ error }

// Unwrap gives the cause.
func (n notStored) Unwrap() error { return n.error }

// isOne reports whether an error of the forge may be about one delivery or
// repository alone.
func isOne(err error) bool {
	_, ours := errors.AsType[notStored](err)
	return !ours && gpuserver.KindOf(err) != gpuserver.KindLimited
}

// fetch reads and accepts one delivery. One that can never be used is done.
func (f *Feed) fetch(ctx context.Context, p Past) error {
	d, err := f.Forge.Fetch(ctx, p.ID)
	if gone(err) {
		f.Intake.Log.Warn("delivery cannot be used", "forge", f.Name, "guid", p.GUID, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	d.Forge, d.GUID = f.Name, p.GUID
	if d.ReceivedAt.IsZero() {
		d.ReceivedAt = time.Now().UTC()
	}
	if _, err := f.Intake.Accept(ctx, d); err != nil {
		return notStored{err}
	}
	return nil
}

// gone reports whether the forge will never answer otherwise.
func gone(err error) bool {
	k := gpuserver.KindOf(err)
	return k == gpuserver.KindInvalid || k == gpuserver.KindNotFound
}

// earlier gives the earlier of two times, of which the first may be none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// forget drops what was asked for so long ago that the forge has it no more.
func (f *Feed) forget() {
	for guid, a := range f.asked {
		if time.Since(a.next) > keepsDeliveries {
			delete(f.asked, guid)
		}
	}
}

// redeliver asks for failed deliveries again, each after twice the pause of the
// time before. A GUID of which any attempt was taken is done.
func (f *Feed) redeliver(ctx context.Context, past []Past) (open time.Time, err error) {
	taken := map[string]bool{}
	for _, p := range past {
		taken[p.GUID] = taken[p.GUID] || p.OK
	}
	f.forget()
	failed := 0
	for _, p := range past {
		a := f.asked[p.GUID]
		if !p.Job || taken[p.GUID] || a.times >= askAtMost {
			continue
		}
		if seen, err := f.seen(ctx, p.GUID); err != nil {
			return open, err
		} else if seen {
			continue
		}
		open = earlier(open, p.At)
		if time.Now().Before(a.next) {
			continue
		}
		err := f.Forge.Redeliver(ctx, p.ID)
		switch {
		case err == nil:
			failed = 0
			f.repaired("redelivery")
			f.Intake.Log.Warn("failed delivery asked for again", "forge", f.Name, "guid", p.GUID)
		case !isOne(err) || ctx.Err() != nil:
			return open, err
		default: // this one; the others may be had
			f.Intake.Log.Warn("failed delivery cannot be had again", "forge", f.Name, "guid", p.GUID, "err", err)
		}
		if err == nil || gone(err) || gpuserver.KindOf(err) == gpuserver.KindConflict {
			f.asked[p.GUID] = asked{a.times + 1, time.Now().Add(f.RetryEvery << a.times)}
		} else if failed++; failed == failuresInARow {
			return open, err
		}
	}
	return open, nil
}

func (f *Feed) repaired(kind string) {
	if f.Repaired != nil {
		f.Repaired(kind)
	}
}

// listRuns applies the queued jobs of repositories seen recently. One that the
// forge does not answer for (its installation is suspended, say) keeps no other
// from being looked at.
func (f *Feed) listRuns(ctx context.Context) {
	if !f.Intake.Disk.Room() {
		return // what would be found could not be stored
	}
	var repos []store.SeenRepo
	_ = f.Intake.DB.View(ctx, func(tx *store.Tx) (err error) {
		repos, err = tx.SeenRepos(f.Name, tx.Now.Add(-f.RunsFor))
		return err
	})
	failed := 0
	for _, r := range repos {
		repo := forge.Repo{Name: r.Name, ID: r.RepoID, InstallationID: r.InstallationID}
		jobs, err := f.Forge.QueuedJobs(ctx, repo)
		switch {
		case ctx.Err() != nil:
			return
		case gpuserver.KindOf(err) == gpuserver.KindNotFound:
			_ = f.Intake.DB.Update(ctx, func(tx *store.Tx) error { return tx.ForgetRepo(f.Name, r.Name) })
			continue
		case err != nil:
			f.Intake.Log.Warn("queued jobs cannot be listed", "forge", f.Name, "repo", r.Name, "err", err)
			if gone(err) || gpuserver.KindOf(err) == gpuserver.KindRefused {
				continue
			}
			if failed++; failed == failuresInARow || !isOne(err) {
				return
			}
			continue
		}
		failed = 0
		for _, j := range jobs {
			f.applyListed(ctx, repo, j)
		}
	}
}

func (f *Feed) applyListed(ctx context.Context, repo forge.Repo, j forge.Job) {
	known := false
	_ = f.Intake.DB.View(ctx, func(tx *store.Tx) error {
		_, err := tx.JobByForge(f.Name, j.ID)
		known = err == nil
		return nil
	})
	if j.Repo.Name == "" {
		j.Repo = repo
	}
	ours := f.Intake.Ours(f.Name, j.Repo, j.Labels)
	if err := f.Intake.Apply(ctx, f.Name, j); err != nil && ctx.Err() == nil {
		f.Intake.Log.Error("listed job cannot be applied", "forge", f.Name, "err", err)
		return
	}
	if !known && ours {
		f.Intake.Log.Warn("job without an event found", "forge", f.Name, "repo", repo.Name, "forge_job", j.ID)
		f.repaired("missing_event")
	}
}
