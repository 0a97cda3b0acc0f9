package workqueue_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver/internal/workqueue"
)

func TestOneAtATimeAndNothingLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var running, most, runs atomic.Int32
		q := workqueue.New(ctx, func(context.Context, string) time.Duration {
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(time.Second)
			running.Add(-1)
			runs.Add(1)
			return 0
		})
		q.Add("a")
		time.Sleep(500 * time.Millisecond)
		q.Add("a") // while it runs: once more afterwards
		q.Add("a")
		time.Sleep(10 * time.Second)
		if runs.Load() != 2 || most.Load() != 1 {
			t.Errorf("%d runs, %d at once; want 2, 1 at once", runs.Load(), most.Load())
		}
		cancel()
		q.Wait()
	})
}

func TestRunsAgainAfterItsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var at []time.Duration
		start := time.Now()
		q := workqueue.New(ctx, func(context.Context, int) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(start))
			if len(at) == 3 {
				return 0
			}
			return time.Minute
		})
		q.Add(1)
		time.Sleep(30 * time.Second)
		q.Add(1) // woken early: the pause begins anew
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(at) != 3 || at[1] != 30*time.Second || at[2] != 90*time.Second {
			t.Errorf("ran at %v; want 0s, 30s, 1m30s", at)
		}
		cancel()
		q.Wait()
	})
}

func TestInterruptCancelsWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var runs atomic.Int32
		q := workqueue.New(ctx, func(ctx context.Context, _ int) time.Duration {
			if runs.Add(1) == 1 {
				<-ctx.Done()
			}
			return 0
		})
		q.Add(1)
		synctest.Wait()
		q.Interrupt(1)
		synctest.Wait()
		if runs.Load() != 2 {
			t.Errorf("%d runs, want the interrupted one and one more", runs.Load())
		}
		cancel()
		q.Wait()
	})
}

func TestAddAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ran []time.Duration
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		q := workqueue.New(ctx, func(context.Context, string) time.Duration {
			ran = append(ran, time.Since(start))
			return 0
		})
		q.AddAfter("k", time.Minute)
		q.AddAfter("k", time.Second) // it has a time already
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(ran) != 1 || ran[0] != time.Minute {
			t.Errorf("ran at %v, want once after a minute", ran)
		}
		q.AddAfter("k", time.Minute)
		q.Add("k") // sooner
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(ran) != 2 || ran[1] != 2*time.Minute {
			t.Errorf("ran at %v, want a second time at once", ran)
		}
		cancel()
		q.Wait()
	})
}

// TestInterruptSparesWhatItWakes: the context of work that begins because of
// the interrupt is not cancelled, or what it had to do would be forgotten.
func TestInterruptSparesWhatItWakes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	woken, ended := make(chan struct{}), make(chan error)
	q := workqueue.New(ctx, func(ctx context.Context, _ int) time.Duration {
		<-woken
		ended <- ctx.Err()
		return 0
	})
	for i := range 20000 {
		q.Interrupt(i)
		woken <- struct{}{}
		if err := <-ended; err != nil {
			t.Fatalf("the work that interrupt %d woke was cancelled", i)
		}
	}
	cancel()
	q.Wait()
}

// TestLimited: no more than so many at once, in the order in which they were
// woken; a key that is woken while it waits for its turn runs once, and one that
// wants to run again later does so.
func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var order []int
		now, most := 0, 0
		q := workqueue.NewLimited(ctx, 2, func(_ context.Context, k int) time.Duration {
			mu.Lock()
			order = append(order, k)
			again := k == 3 && len(order) < 6
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			if again {
				return time.Hour
			}
			return 0
		})
		for k := range 6 {
			q.Add(k)
			synctest.Wait() // goroutines that begin at the same time have no order
		}
		q.Add(4)       // waits for its turn
		q.Interrupt(5) // as well
		q.Add(0)       // is worked on: once more, before others
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		if most != 2 || len(order) != 7 {
			t.Errorf("%v, %d at once; want seven runs, two at once", order, most)
		}
		mu.Unlock()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		mu.Lock()
		if last := order[len(order)-1]; len(order) != 8 || last != 3 {
			t.Errorf("%v; want 3 once more after its pause", order)
		}
		mu.Unlock()
		for k := range 6 { // what waits when the work ends is not begun
			q.Add(k)
		}
		cancel()
		q.Wait()
		if len(order) > 10 {
			t.Errorf("%d runs; those that waited for their turn were begun after the end", len(order))
		}
	})
}
