package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/store"
)

// view prints what happens, a line each, with the time since the start. Lines
// of several jobs interleave, so each names its job.
type view struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

func newView(w io.Writer) *view { return &view{w: w, start: time.Now()} }

// Write lets the service's log through, so that lines never mix.
func (v *view) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.w.Write(b)
}

func (v *view) say(format string, args ...any) {
	_, _ = fmt.Fprintf(v, "%7.1fs  %s\n", time.Since(v.start).Seconds(), fmt.Sprintf(format, args...))
}

// follow prints phases as they are committed and logs as they grow, until ctx
// is done.
func (d *demonstration) follow(ctx context.Context, run forgetest.Run) {
	f := &follower{d: d, run: run, seen: map[gpuserver.JobID]int{}, logs: map[int64]int{}}
	changed := make(chan struct{}, 1)
	d.server.db.Watch(func([]store.Change) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	tick := time.NewTicker(500 * time.Millisecond) // logs grow without a commit of ours
	defer tick.Stop()
	for {
		f.phases(context.WithoutCancel(ctx))
		f.growth(context.WithoutCancel(ctx))
		select {
		case <-ctx.Done():
			f.phases(context.WithoutCancel(ctx))
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// follower remembers what was printed already.
type follower struct {
	d    *demonstration
	run  forgetest.Run
	seen map[gpuserver.JobID]int // events
	logs map[int64]int           // bytes, by the forge's job
}

func (f *follower) phases(ctx context.Context) {
	_ = f.d.server.db.View(ctx, func(tx *store.Tx) error {
		jobs, err := tx.ListJobs(store.JobFilter{})
		if err != nil {
			return err
		}
		slices.Reverse(jobs)
		for _, j := range jobs {
			events, err := tx.JobEvents(j.ID)
			if err != nil {
				return err
			}
			for _, e := range events[min(f.seen[j.ID], len(events)):] {
				f.event(j, e)
			}
			f.seen[j.ID] = len(events)
		}
		return nil
	})
}

func (f *follower) event(j gpuserver.Job, e gpuserver.Event) {
	switch {
	case slices.Contains(gpuserver.Phases, e.Kind):
		f.d.view.say("%-10s %s", j.Name, strings.ReplaceAll(e.Kind, "_", " "))
	case e.Kind == "repair" || e.Kind == "verdict" || e.Kind == "time_limit" || e.Kind == "image_held":
		f.d.view.say("%-10s %s: %s", j.Name, e.Kind, e.Text)
	}
}

func (f *follower) growth(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, j := range f.run.Jobs {
		log, err := f.d.forge.Log(ctx, j.ID)
		if err != nil || len(log) <= f.logs[j.ID] {
			continue
		}
		end := strings.LastIndexByte(log, '\n') + 1 // whole lines only
		if end <= f.logs[j.ID] {
			continue
		}
		for line := range strings.Lines(log[f.logs[j.ID]:end]) {
			f.d.view.say("%-10s | %s", j.Name, strings.TrimRight(line, "\r\n"))
		}
		f.logs[j.ID] = end
	}
}
