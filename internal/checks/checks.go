// Package checks tells people on the forge why their job waits or was refused,
// by one check run for each job, written sparingly: the forge limits what may
// be written, and registrations need the same budget.
//
// A refusal is told at once. A wait is told after a while, told anew when the
// class of its reason changes and at most once a minute, and concluded as
// neutral when the job starts. What changes faster stands behind the link.
package checks

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
	"gpuserver/internal/workqueue"
)

// Writer writes check runs. Fill it in, then Run it.
type Writer struct {
	DB     *store.DB
	Forges map[string]forge.Forge
	// PublicURL is where people reach our pages; "" is nowhere, then there is no
	// link.
	PublicURL string
	After     time.Duration // a job that waits for so long is told why
	Every     time.Duration // at most one change in so long; 0 is a minute
	Log       *slog.Logger

	queue *workqueue.Queue[gpuserver.JobID]
	lines map[string]*line // by forge: each has limits of its own
	told  sync.Map         // JobID → struct{}: those of which something stands on the forge
}

// Run writes until ctx is done.
func (w *Writer) Run(ctx context.Context) error {
	if w.Every == 0 {
		w.Every = time.Minute
	}
	w.lines = map[string]*line{}
	for name := range w.Forges {
		w.lines[name] = &line{}
		w.lines[name].init()
	}
	w.queue = workqueue.New(ctx, w.look)
	w.DB.Watch(w.changed)
	err := w.DB.View(ctx, func(tx *store.Tx) error {
		open, err := tx.OpenChecks()
		if err != nil {
			return err
		}
		for _, c := range open {
			w.queue.Add(c.Job)
		}
		jobs, err := tx.UnfinishedJobs("")
		for _, j := range jobs {
			w.queue.Add(j.ID)
		}
		return err
	})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for name, f := range w.Forges {
		wg.Go(func() { w.writeAll(ctx, f, w.lines[name]) })
	}
	<-ctx.Done()
	wg.Wait()
	w.queue.Wait()
	return nil
}

// changed runs after each commit: it only wakes. A job that waits and of which
// nothing was told needs no look before it has waited long enough, whatever
// happens to it; most never need one.
func (w *Writer) changed(cs []store.Change) {
	for _, c := range cs {
		switch c.JobState {
		case "":
		case gpuserver.JobReceived, gpuserver.JobQueued, gpuserver.JobStarting:
			if _, told := w.told.Load(c.Job); !told {
				w.queue.AddAfter(c.Job, w.After)
				continue
			}
			fallthrough
		default:
			w.queue.Add(c.Job)
		}
	}
}

// look compares what should stand on the forge with what does, and says when
// to look again. What is to be written gets into line.
func (w *Writer) look(ctx context.Context, id gpuserver.JobID) time.Duration {
	j, c, err := w.load(ctx, id)
	line, ok := w.lines[j.Forge]
	if err != nil || !ok || j.HeadSHA == "" {
		return 0
	}
	if !c.WrittenAt.IsZero() {
		w.told.Store(id, struct{}{})
	}
	if j.State == gpuserver.JobDone {
		w.told.Delete(id)
	}
	if d := line.until(id, time.Now()); d > 0 {
		return d
	}
	want, wait := w.want(j, c, time.Now())
	if want != nil {
		line.add(id, want.Conclusion == "action_required")
	}
	return wait
}

func (w *Writer) load(ctx context.Context, id gpuserver.JobID) (j gpuserver.Job, c store.Check, err error) {
	err = w.DB.View(ctx, func(tx *store.Tx) (err error) {
		if j, err = tx.Job(id); err == nil {
			c, err = tx.Check(id)
		}
		return err
	})
	return j, c, err
}

// writeAll writes what is in a forge's line, one at a time, until ctx is done. All of it
// yields to registrations, so a line may be long and wait for minutes: what is
// written is decided only when its turn comes.
func (w *Writer) writeAll(ctx context.Context, f forge.Forge, line *line) {
	for {
		id, ok := line.next(ctx)
		if !ok {
			return
		}
		j, c, err := w.load(ctx, id)
		if err != nil {
			continue
		}
		want, _ := w.want(j, c, time.Now())
		if want == nil {
			w.queue.Add(id) // it may be wanted later
			continue
		}
		want.ID, want.Repo, want.HeadSHA, want.ExternalID = c.CheckID, forge.Repo{Name: j.Repo, ID: j.RepoID, InstallationID: j.InstallationID}, j.HeadSHA, fmt.Sprint(j.ID)
		if w.PublicURL != "" {
			want.DetailsURL = fmt.Sprintf("%s/jobs/%d", strings.TrimSuffix(w.PublicURL, "/"), j.ID)
		}
		if pause := w.write(ctx, f, j, c, *want); pause > 0 {
			line.holdBack(id, time.Now().Add(pause))
		}
		w.queue.Add(id) // it may have changed meanwhile
	}
}

// write writes one check run and gives the time after which to try again.
func (w *Writer) write(ctx context.Context, f forge.Forge, j gpuserver.Job, c store.Check, want forge.Check) time.Duration {
	id, err := f.SetCheck(ctx, want)
	switch gpuserver.KindOf(err) {
	case "":
	case gpuserver.KindNotFound, gpuserver.KindRefused, gpuserver.KindInvalid:
		// The App may not write checks, or the commit is gone: nothing to mend by
		// repeating. It is remembered as written, so that it is not tried again.
		w.Log.Warn("check run cannot be written", "job", j.ID, "err", err)
	default:
		w.Log.Warn("check run cannot be written yet", "job", j.ID, "err", err)
		return time.Minute
	}
	if id != 0 {
		c.CheckID = id
	}
	c.Job, c.Class, c.Text, c.Concluded, c.WrittenAt = j.ID, j.Reason.Class, want.Title+want.Summary, want.Status == "completed", time.Now().UTC()
	if err := w.DB.Update(ctx, func(tx *store.Tx) error { return tx.SaveCheck(c) }); err != nil {
		return time.Second
	}
	return 0
}

// want gives the check run that should be written now; nil if nothing is to be
// written, with the time after which to look again (0: when the job changes).
func (w *Writer) want(j gpuserver.Job, c store.Check, now time.Time) (*forge.Check, time.Duration) {
	var k *forge.Check
	switch j.State {
	case gpuserver.JobRefused:
		if j.Reason.Class == "" {
			return nil, 0 // nothing to us: its labels only looked like ours
		}
		k = told(j, "completed", "action_required", "Refused")
	case gpuserver.JobFailed:
		k = told(j, "completed", "action_required", "Given up")
	case gpuserver.JobReceived, gpuserver.JobQueued, gpuserver.JobStarting:
		return w.wantWait(j, c, now)
	case gpuserver.JobRunning, gpuserver.JobDone:
		if j.State == gpuserver.JobDone && j.Reason.Class == gpuserver.ReasonGPU {
			k = told(j, "completed", "neutral", "A GPU failed")
			break
		}
		if c.CheckID == 0 || c.Concluded && c.Class == j.Reason.Class {
			return nil, 0
		}
		k = &forge.Check{Status: "completed", Conclusion: "neutral", Title: "The job started", Summary: fmt.Sprintf("It waited %s.", began(j, now).Sub(j.QueuedAt).Round(time.Second))}
		if j.State == gpuserver.JobDone && j.StartedAt.IsZero() {
			k.Title, k.Summary = "The job ended", "It ended before it started: "+j.Conclusion+"."
		}
	default:
		return nil, 0
	}
	if c.Concluded && c.Text == k.Title+k.Summary {
		return nil, 0
	}
	return k, 0
}

// began gives when a job started; what is told may be told late.
func began(j gpuserver.Job, now time.Time) time.Time {
	if j.StartedAt.Before(j.QueuedAt) {
		return now
	}
	return j.StartedAt
}

// wantWait tells why a job waits, once it has waited long enough.
func (w *Writer) wantWait(j gpuserver.Job, c store.Check, now time.Time) (*forge.Check, time.Duration) {
	if j.Reason.Class == "" && c.CheckID == 0 {
		return nil, 0
	}
	if d := j.QueuedAt.Add(w.After).Sub(now); d > 0 && c.CheckID == 0 {
		return nil, d
	}
	if !c.WrittenAt.IsZero() && !c.Concluded && c.Class == j.Reason.Class {
		return nil, 0
	}
	if d := c.WrittenAt.Add(w.Every).Sub(now); d > 0 && !c.WrittenAt.IsZero() {
		return nil, d
	}
	return told(j, "queued", "", "Waiting"), 0
}

func told(j gpuserver.Job, status, conclusion, title string) *forge.Check {
	if j.Reason.Text == "" {
		j.Reason.Text = "it is being decided what it may have"
	}
	text := j.Reason.Text
	if j.Reason.Help != "" {
		text += "\n\n**What would change it:** " + j.Reason.Help
	}
	summary := fmt.Sprintf("Job `%s`, labels `%s`.\n\n%s", j.Name, strings.Join(j.Labels, "`, `"), text)
	return &forge.Check{Status: status, Conclusion: conclusion, Title: title + ": " + firstLine(j.Reason.Text, 120), Summary: summary}
}

func firstLine(s string, most int) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > most {
		s = string(r[:most-1]) + "…"
	}
	return s
}
