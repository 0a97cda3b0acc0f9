package checks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// memForge notes what is written, and when.
type memForge struct {
	forge.Forge // what is not needed here panics

	mu      sync.Mutex
	started time.Time
	writes  []string
	last    forge.Check
	err     error

	again func() // somebody presses Re-run on the check
}

func (m *memForge) SetCheck(_ context.Context, c forge.Check) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = c
	m.writes = append(m.writes, fmt.Sprintf("%s %s%s %d", time.Since(m.started).Round(time.Second), c.Status, c.Conclusion, c.ID))
	if m.err != nil {
		return 0, m.err
	}
	return 7, nil
}

func (m *memForge) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// inBubble runs fn beside a Writer, with a job that was just received, and
// compares what was written in the end.
func inBubble(t *testing.T, want []string, fn func(f *memForge, move func(to gpuserver.JobState, class gpuserver.ReasonClass))) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		f := &memForge{started: time.Now()}
		w := &Writer{DB: db, Forges: map[string]forge.Forge{"gh": f}, After: 30 * time.Second, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		j := gpuserver.Job{Forge: "gh", ForgeID: 1, Repo: "octo/hello", HeadSHA: "abc", State: gpuserver.JobReceived, ForgeState: gpuserver.ForgeQueued, QueuedAt: time.Now()}
		update := func(fn func(*store.Tx) error) {
			if err := db.Update(t.Context(), fn); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		update(func(tx *store.Tx) error { return tx.InsertJob(&j) })
		f.again = func() {
			update(func(tx *store.Tx) error {
				c, err := tx.Check(j.ID)
				c.Concluded = false
				return errors.Join(err, tx.SaveCheck(c))
			})
		}
		fn(f, func(to gpuserver.JobState, class gpuserver.ReasonClass) {
			j.Reason = gpuserver.Reason{Class: class, Text: "because of " + string(class)}
			update(func(tx *store.Tx) error {
				if to == j.State {
					return tx.SaveJob(&j)
				}
				if to == gpuserver.JobRunning {
					j.StartedAt = tx.Now
				}
				return tx.MoveJob(&j, to, "")
			})
		})
		time.Sleep(time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, f.writes); diff != "" {
			t.Errorf("check runs (-want +written):\n%s", diff)
		}
		_ = db.Close()
	})
}

func TestRefusalIsToldAtOnce(t *testing.T) {
	inBubble(t, []string{"0s completedaction_required 0"}, func(_ *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobRefused, gpuserver.ReasonNoAccess)
	})
}

// TestSameRefusalIsToldAgain answers who pressed Re-run, though nothing changed.
func TestSameRefusalIsToldAgain(t *testing.T) {
	want := []string{"0s completedaction_required 0", "10m0s queued 7", "10m0s completedaction_required 7"}
	inBubble(t, want, func(f *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobRefused, gpuserver.ReasonNoAccess)
		time.Sleep(10 * time.Minute)
		f.again()
		move(gpuserver.JobReceived, "")
		move(gpuserver.JobRefused, gpuserver.ReasonNoAccess)
	})
}

// TestTimeWaitedEndsWithTheStart though the forge takes what is told late.
func TestTimeWaitedEndsWithTheStart(t *testing.T) {
	want := []string{"30s queued 0", "1m0s completedneutral 7", "2m0s completedneutral 7"}
	inBubble(t, want, func(f *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobQueued, gpuserver.ReasonCapacity)
		time.Sleep(time.Minute)
		f.fail(gpuserver.Errorf(gpuserver.KindUnavailable, "away"))
		move(gpuserver.JobStarting, gpuserver.ReasonStarting)
		move(gpuserver.JobRunning, "")
		f.fail(nil)
		time.Sleep(10 * time.Minute)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.last.Summary != "It waited 1m0s." {
			t.Errorf("it says %q", f.last.Summary)
		}
	})
}

// A GPU that failed is named on the job that it failed, once, also where nothing
// was told of the job before; and after the word that the job started.
func TestGPUThatFailedIsTold(t *testing.T) {
	done := func(f *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobStarting, gpuserver.ReasonStarting)
		move(gpuserver.JobRunning, "")
		time.Sleep(time.Minute)
		move(gpuserver.JobDone, "")
		time.Sleep(time.Second)
		for range 2 {
			move(gpuserver.JobDone, gpuserver.ReasonGPU)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.last.Title != "A GPU failed: because of gpu" {
			t.Errorf("it says %q", f.last.Title)
		}
	}
	inBubble(t, []string{"1m1s completedneutral 0"}, func(f *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobQueued, gpuserver.ReasonCapacity)
		done(f, move)
	})
	inBubble(t, []string{"30s queued 0", "1m0s completedneutral 7", "2m1s completedneutral 7"}, func(f *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobQueued, gpuserver.ReasonCapacity)
		time.Sleep(time.Minute)
		done(f, move)
	})
}

func TestForeignJobIsNotTold(t *testing.T) {
	inBubble(t, nil, func(_ *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobRefused, "")
	})
}

func TestQuickJobIsNotTold(t *testing.T) {
	inBubble(t, nil, func(_ *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		move(gpuserver.JobQueued, gpuserver.ReasonCapacity)
		time.Sleep(29 * time.Second)
		move(gpuserver.JobStarting, gpuserver.ReasonStarting)
		move(gpuserver.JobRunning, "")
	})
}

// TestWaitIsToldSparingly changes the class of the reason every 21 seconds, which
// never falls on the second in which the next word is due.
func TestWaitIsToldSparingly(t *testing.T) {
	want := []string{"30s queued 0", "1m45s queued 7", "2m45s queued 7", "3m30s completedneutral 7"}
	inBubble(t, want, func(_ *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		for i := range 10 {
			move(gpuserver.JobQueued, []gpuserver.ReasonClass{gpuserver.ReasonCapacity, gpuserver.ReasonBehind, gpuserver.ReasonRetry}[i%3])
			time.Sleep(21 * time.Second)
		}
		move(gpuserver.JobStarting, gpuserver.ReasonStarting)
		move(gpuserver.JobRunning, "")
	})
}

// TestSameClassIsNotToldAgain lets only the numbers in a reason change.
func TestSameClassIsNotToldAgain(t *testing.T) {
	inBubble(t, []string{"30s queued 0"}, func(_ *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		for range 30 {
			move(gpuserver.JobQueued, gpuserver.ReasonCapacity)
			time.Sleep(20 * time.Second)
		}
	})
}

// TestForgeThatRefusesChecks is not asked again and again.
func TestForgeThatRefusesChecks(t *testing.T) {
	inBubble(t, []string{"30s queued 0"}, func(f *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		f.fail(gpuserver.Errorf(gpuserver.KindRefused, "the App may not write checks"))
		move(gpuserver.JobQueued, gpuserver.ReasonCapacity)
		time.Sleep(10 * time.Minute)
		move(gpuserver.JobQueued, gpuserver.ReasonCapacity)
	})
}

// TestForgeAway writes once it is back.
func TestForgeAway(t *testing.T) {
	inBubble(t, []string{"0s completedaction_required 0", "1m0s completedaction_required 0"}, func(f *memForge, move func(gpuserver.JobState, gpuserver.ReasonClass)) {
		f.fail(gpuserver.Errorf(gpuserver.KindUnavailable, "away"))
		move(gpuserver.JobRefused, gpuserver.ReasonNoAccess)
		time.Sleep(30 * time.Second)
		f.fail(nil)
	})
}

// TestForgesDoNotWaitForEachOther writes to one forge while another takes nothing.
func TestForgesDoNotWaitForEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		f := &memForge{started: time.Now()}
		w := &Writer{DB: db, Forges: map[string]forge.Forge{"gh": f, "busy": stuck{}}, After: 30 * time.Second, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		for _, name := range []string{"busy", "gh"} {
			j := gpuserver.Job{Forge: name, ForgeID: 1, Repo: "octo/hello", HeadSHA: "abc", State: gpuserver.JobReceived, ForgeState: gpuserver.ForgeQueued, QueuedAt: time.Now()}
			if err := db.Update(t.Context(), func(tx *store.Tx) error {
				j.Reason = gpuserver.Reason{Class: gpuserver.ReasonNoAccess, Text: "no"}
				return errors.Join(tx.InsertJob(&j), tx.MoveJob(&j, gpuserver.JobRefused, ""))
			}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if diff := cmp.Diff([]string{"0s completedaction_required 0"}, f.writes); diff != "" {
			t.Errorf("check runs (-want +written):\n%s", diff)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = db.Close()
	})
}

// stuck is a forge whose limits are used up.
type stuck struct{ forge.Forge }

func (stuck) SetCheck(ctx context.Context, _ forge.Check) (int64, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}
