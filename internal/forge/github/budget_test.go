package github

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuserver"
	"gpuserver/internal/forge"
)

var (
	costRegister = cost{class: ClassRegister, points: 5, registration: true, installation: 1}
	costRead     = cost{class: ClassRead, points: 1, installation: 1}
	costCheck    = cost{class: ClassHousekeeping, points: 5, content: true, installation: 1}
	fine         = verdict{ok: true}
)

// spend makes a call that takes d. Its error is the budget's.
func spend(ctx context.Context, b *budget, c cost, d time.Duration, v verdict) error {
	if err := b.acquire(ctx, c); err != nil {
		return err
	}
	time.Sleep(d)
	b.release(c, v)
	return nil
}

// TestBudgetSustained has 1000 registrations arrive at once and looks at the
// calls from GitHub's side, where each is counted somewhere between its sending
// and its answer: no minute may hold more than is permitted, and each must hold
// nearly as much.
func TestBudgetSustained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{})
		start := time.Now()
		var mu sync.Mutex
		var sent, answered []time.Duration
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if err := b.acquire(t.Context(), costRegister); err != nil {
					t.Error(err)
					return
				}
				at := time.Since(start)
				time.Sleep(150 * time.Millisecond)
				mu.Lock()
				sent, answered = append(sent, at), append(answered, time.Since(start))
				mu.Unlock()
				b.release(costRegister, fine)
			})
		}
		wg.Wait()
		slices.Sort(sent)
		slices.Sort(answered)
		for i := range sent {
			// 180 registrations are a minute's points: the call 180 later must
			// be sent a minute after this one was surely counted.
			if j := i + 180; j < len(sent) && sent[j]-answered[i] < time.Minute {
				t.Fatalf("call %d was sent %v after call %d was answered", j, sent[j]-answered[i], i)
			}
		}
		if took, best := time.Since(start), 5*time.Minute; float64(took) > float64(best)/0.95 {
			t.Errorf("1000 registrations took %v, more than 95%% of the permitted rate needs", took)
		}
	})
}

// TestBudgetClasses fills the window and looks at who goes first when it opens.
func TestBudgetClasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{PointsPerMinute: 100, Concurrent: 1})
		if err := b.acquire(t.Context(), costRead); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		for _, class := range []Class{ClassHousekeeping, ClassRead, ClassDelete, ClassRegister} {
			for i := range 2 {
				wg.Go(func() {
					c := cost{class: class, points: 1, installation: int64(i)}
					if err := b.acquire(t.Context(), c); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					order = append(order, fmt.Sprint(class, i))
					mu.Unlock()
					b.release(c, fine)
				})
				synctest.Wait() // so that they wait in this order
			}
		}
		var waiting []int
		for _, c := range b.snapshot().Classes {
			waiting = append(waiting, c.Waiting)
		}
		if diff := cmp.Diff([]int{2, 2, 2, 2}, waiting); diff != "" {
			t.Error(diff)
		}
		b.release(costRead, fine)
		wg.Wait()
		want := []string{
			"register 0", "register 1", "delete 0", "delete 1", "read 0", "read 1", "housekeeping 0", "housekeeping 1",
		}
		if diff := cmp.Diff(want, order); diff != "" {
			t.Error(diff)
		}
	})
}

// TestBudgetReserve shows that housekeeping cannot use up what a burst of
// registrations needs.
func TestBudgetReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{PointsPerMinute: 100})
		list := cost{class: ClassHousekeeping, points: 1, installation: 1}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { _ = spend(ctx, b, list, 0, fine) }) // the last ones are cancelled
		}
		synctest.Wait()
		if got := b.snapshot().Classes[ClassHousekeeping].Points; got != 60 {
			t.Errorf("housekeeping spent %d points, want 60", got)
		}
		start := time.Now()
		for range 8 {
			if err := spend(ctx, b, costRegister, 0, fine); err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("registrations waited %v", d)
		}
		cancel()
		wg.Wait()
	})
}

func TestBudgetContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{})
		start := time.Now()
		for i := range 600 {
			if err := spend(t.Context(), b, costCheck, 0, fine); err != nil {
				t.Fatal(err)
			}
			switch d := time.Since(start); {
			case i == 80 && d < time.Minute:
				t.Errorf("81 checks in %v", d)
			case i == 500 && d < time.Hour:
				t.Errorf("501 checks in %v", d)
			}
		}
	})
}

// TestBudgetContentLetsOthersPass shows that a full limit of check runs holds
// back check runs only.
func TestBudgetContentLetsOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{ContentPerMinute: 1})
		if err := spend(t.Context(), b, costCheck, 0, fine); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := spend(t.Context(), b, costCheck, 0, fine); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		start := time.Now()
		if err := spend(t.Context(), b, cost{class: ClassHousekeeping, points: 1}, 0, fine); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("another call waited %v", d)
		}
		wg.Wait()
		if d := time.Since(start); d < time.Minute {
			t.Errorf("the second check waited %v only", d)
		}
	})
}

func TestBudgetPrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{})
		start := time.Now()
		gone := verdict{ok: true, limit: 5000, remaining: 0, reset: start.Add(10 * time.Minute)}
		if err := spend(t.Context(), b, costRead, 0, gone); err != nil {
			t.Fatal(err)
		}
		other := costRead
		other.installation = 2
		if err := spend(t.Context(), b, other, 0, fine); err != nil || time.Since(start) != 0 {
			t.Errorf("another installation was held back: %v, %v", err, time.Since(start))
		}
		if err := spend(t.Context(), b, costRegister, 0, fine); err != nil || time.Since(start) != 0 {
			t.Errorf("registrations, which have a limit of their own, were held back: %v, %v", err, time.Since(start))
		}
		if s := b.snapshot(); len(s.Primary) != 1 || s.Primary[0].Remaining != 0 {
			t.Errorf("the snapshot tells %+v", s.Primary)
		}
		if err := spend(t.Context(), b, costRead, 0, fine); err != nil || time.Since(start) != 10*time.Minute {
			t.Errorf("went after %v (%v), want at the reset", time.Since(start), err)
		}
	})
}

func TestBudgetSecondary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{})
		wait := func(v verdict) time.Duration {
			t.Helper()
			if err := spend(t.Context(), b, costRead, 0, v); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if s := b.snapshot(); v.secondary && (!s.Secondary || s.Remaining != 0) {
				t.Errorf("the snapshot does not tell: %+v", s)
			}
			if err := spend(t.Context(), b, costRegister, 0, verdict{}); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		told := verdict{secondary: true, blockFor: 17 * time.Second}
		untold := verdict{secondary: true}
		got := []time.Duration{wait(told), wait(untold), wait(untold), wait(untold), wait(fine), wait(untold)}
		want := []time.Duration{17 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 0, time.Minute}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestBudgetGivesUp shows that nobody waits for what cannot come in time.
func TestBudgetGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Limits{})
		if err := spend(t.Context(), b, costRead, 0, verdict{secondary: true, blockFor: time.Minute}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := b.acquire(ctx, costRead)
		limit, ok := errors.AsType[*forge.LimitError](err)
		if gpuserver.KindOf(err) != gpuserver.KindLimited || !ok || !limit.Secondary || !limit.Until.Equal(start.Add(time.Minute)) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("it took %v to say so", d)
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := b.acquire(ctx, costRead); !errors.Is(err, context.Canceled) || gpuserver.KindOf(err) != gpuserver.KindLimited {
			t.Errorf("got %v", err)
		}
		for _, c := range b.snapshot().Classes {
			if c.Waiting != 0 {
				t.Errorf("%d of class %s still wait", c.Waiting, c.Class)
			}
		}
	})
}

// TestBudgetProperty makes calls of all kinds at random times, some cancelled,
// and checks that no limit is passed and nobody is forgotten.
func TestBudgetProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limits := Limits{
			PointsPerMinute: rapid.IntRange(5, 60).Draw(rt, "points"), ContentPerMinute: rapid.IntRange(1, 5).Draw(rt, "content"),
			ContentPerHour: 500, RegistrationsPerHour: 10000, Concurrent: rapid.IntRange(1, 5).Draw(rt, "concurrent"),
		}
		type step struct {
			After, Takes, Patience int // seconds
			Kind                   int
		}
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{
				rapid.IntRange(0, 40).Draw(rt, "after"), rapid.IntRange(0, 5).Draw(rt, "takes"),
				rapid.IntRange(1, 4000).Draw(rt, "patience"), rapid.IntRange(0, 2).Draw(rt, "kind"),
			}
		}), 1, 40).Draw(rt, "steps")
		var problem string
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(limits)
			seen := window{size: time.Minute, limit: b.limits.PointsPerMinute} // as GitHub counts
			checks := window{size: time.Minute, limit: b.limits.ContentPerMinute}
			var mu sync.Mutex
			running := 0
			var wg sync.WaitGroup
			for _, s := range steps {
				time.Sleep(time.Duration(s.After) * time.Second)
				wg.Go(func() {
					c := []cost{costRegister, costRead, costCheck}[s.Kind]
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(s.Patience)*time.Second)
					defer cancel()
					if b.acquire(ctx, c) != nil {
						return
					}
					mu.Lock()
					running++
					now := time.Now()
					seen.expire(now)
					checks.expire(now)
					seen.take(c.points)
					seen.settle(now, c.points)
					if c.content {
						checks.take(1)
						checks.settle(now, 1)
					}
					if seen.busy > seen.limit || checks.busy > checks.limit || running > limits.Concurrent {
						problem = fmt.Sprintf("points %d/%d, checks %d/%d, at once %d/%d", seen.busy, seen.limit,
							checks.busy, checks.limit, running, limits.Concurrent)
					}
					mu.Unlock()
					time.Sleep(time.Duration(s.Takes) * time.Second)
					mu.Lock()
					running--
					mu.Unlock()
					b.release(c, fine)
				})
			}
			wg.Wait()
			time.Sleep(2 * time.Minute)
			if s := b.snapshot(); s.InFlight != 0 || s.Remaining != b.limits.PointsPerMinute || len(b.lanes) != 0 {
				problem = fmt.Sprintf("afterwards: %+v, %d lanes", s, len(b.lanes))
			}
		})
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}
