package checks

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

func TestLineServesRefusalsFirst(t *testing.T) {
	var l line
	l.init()
	for _, x := range []struct {
		id     gpuserver.JobID
		urgent bool
	}{{1, false}, {2, false}, {3, true}, {1, false}, {2, true}, {3, false}} {
		l.add(x.id, x.urgent)
	}
	var got []gpuserver.JobID
	for id, ok := l.take(); ok; id, ok = l.take() {
		got = append(got, id)
	}
	if d := cmp.Diff([]gpuserver.JobID{3, 2, 1}, got); d != "" {
		t.Error(d)
	}
}

func TestLineWaitsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l line
		l.init()
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan gpuserver.JobID, 1)
		go func() {
			defer close(got)
			for {
				id, ok := l.next(ctx)
				if !ok {
					return
				}
				got <- id
			}
		}()
		synctest.Wait()
		l.add(7, false)
		if id := <-got; id != 7 {
			t.Errorf("job %d, want 7", id)
		}
		cancel()
		if _, ok := <-got; ok {
			t.Error("goes on after its end")
		}
	})
}

func TestLineHoldsBack(t *testing.T) {
	var l line
	l.init()
	now := time.Now()
	l.holdBack(1, now.Add(time.Minute))
	if d := l.until(1, now); d != time.Minute {
		t.Errorf("held back for %s, want a minute", d)
	}
	if d := l.until(1, now.Add(2*time.Minute)); d != 0 || len(l.after) != 0 {
		t.Errorf("held back for %s after its time, %d times kept", d, len(l.after))
	}
}
