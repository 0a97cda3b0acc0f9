// Package workqueue runs a function for each key that is woken, one at a time
// for a key and many keys at once.
//
// It holds no truth: what is to be done for a key is read anew from the store
// each time, so that losing the queue with the process loses nothing.
package workqueue

import (
	"context"
	"sync"
	"time"
)

// Queue runs fn for each key that is added, never twice at once for the same
// key, and again if it was added meanwhile. fn gives the time after which it
// wants to run again without being woken; 0 means never.
//
// A key at rest costs at most a timer; only keys being worked on have a
// goroutine. Calls that must not come in crowds have limits of their own.
type Queue[K comparable] struct {
	ctx  context.Context
	fn   func(context.Context, K) time.Duration
	most int // keys at once; 0: all

	mu      sync.Mutex
	items   map[K]*item
	ready   []K // woken while most were worked on, in their order
	working int
	closed  bool
	wg      sync.WaitGroup
}

type item struct {
	running bool
	ready   bool // stands in Queue.ready
	again   bool
	cancel  context.CancelFunc
	timer   *time.Timer
}

// New makes a queue that works until ctx is done.
func New[K comparable](ctx context.Context, fn func(context.Context, K) time.Duration) *Queue[K] {
	return &Queue[K]{ctx: ctx, fn: fn, items: map[K]*item{}}
}

// NewLimited is New for a queue that works on at most so many keys at once. The
// others wait for their turn in the order in which they were woken, without a
// goroutine.
func NewLimited[K comparable](ctx context.Context, most int, fn func(context.Context, K) time.Duration) *Queue[K] {
	q := New(ctx, fn)
	q.most = most
	return q
}

// Add wakes k now.
func (q *Queue[K]) Add(k K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(k)
}

// add is Add for who holds q.mu.
func (q *Queue[K]) add(k K) {
	if q.closed || q.ctx.Err() != nil {
		return
	}
	it := q.items[k]
	if it == nil {
		it = &item{}
		q.items[k] = it
	}
	if it.timer != nil {
		it.timer.Stop()
		it.timer = nil
	}
	switch {
	case it.running:
		it.again = true
	case it.ready:
	case q.most > 0 && q.working >= q.most:
		it.ready = true
		q.ready = append(q.ready, k)
	default:
		q.working++
		it.running = true
		q.wg.Go(func() { q.work(k, it) })
	}
}

// AddAfter wakes k after d, unless it has a time already. One that is being
// worked on is worked on once more: it may have missed what happened.
func (q *Queue[K]) AddAfter(k K, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.ctx.Err() != nil {
		return
	}
	if it := q.items[k]; it != nil {
		it.again = it.again || it.running
		return
	}
	q.items[k] = &item{timer: time.AfterFunc(d, func() { q.Add(k) })}
}

// Interrupt wakes k and cancels the context of what it is doing.
func (q *Queue[K]) Interrupt(k K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it := q.items[k]; it != nil && it.running {
		it.again = true
		if it.cancel != nil {
			it.cancel()
		}
		return
	}
	q.add(k) // what begins only now has nothing to be interrupted
}

// work runs fn for k, and then for the keys that wait for their turn.
func (q *Queue[K]) work(k K, it *item) {
	for more := true; more; {
		d := q.once(k, it)
		q.mu.Lock()
		it.cancel = nil
		if it.again && q.ctx.Err() == nil {
			q.mu.Unlock()
			continue
		}
		it.running = false
		if d > 0 && q.ctx.Err() == nil {
			at := k // the loop goes on with another
			it.timer = time.AfterFunc(d, func() { q.Add(at) })
		} else {
			delete(q.items, k)
		}
		if more = len(q.ready) > 0 && q.ctx.Err() == nil; more {
			k, q.ready = q.ready[0], q.ready[1:]
			it = q.items[k]
			it.ready, it.running = false, true
		} else {
			q.working--
		}
		q.mu.Unlock()
	}
}

func (q *Queue[K]) once(k K, it *item) time.Duration {
	ctx, cancel := context.WithCancel(q.ctx)
	defer cancel()
	q.mu.Lock()
	it.again, it.cancel = false, cancel
	q.mu.Unlock()
	return q.fn(ctx, k)
}

// Wait returns when no work is under way; call it once ctx is done.
func (q *Queue[K]) Wait() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wg.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		if it.timer != nil {
			it.timer.Stop()
		}
	}
}
