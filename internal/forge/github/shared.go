package github

import (
	"context"
	"errors"
	"sync"

	"gpuserver"
)

// flights are calls that several callers share: one makes it, the others wait.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

// flight is a call that is being made; value and err are set before done is
// closed.
type flight struct {
	done  chan struct{}
	value any
	err   error
}

// join gives the flight of a key, and whether the caller is the one to make it.
func (g *flights) join(key string) (fl *flight, own bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fl := g.m[key]; fl != nil {
		return fl, false
	}
	if g.m == nil {
		g.m = make(map[string]*flight)
	}
	fl = &flight{done: make(chan struct{})}
	g.m[key] = fl
	return fl, true
}

func (g *flights) land(key string, fl *flight) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.m, key)
	close(fl.done)
}

// shared runs fn once for all who ask for key at the same time. If the one who
// ran it gave up, another of them runs it. Nobody waits longer than its own
// context lasts: the one who runs it may be patient, and held back by a limit.
func shared[T any](ctx context.Context, g *flights, key string, fn func() (T, error)) (T, error) {
	var zero T
	for {
		fl, own := g.join(key)
		if own {
			fl.err = errors.New("the call that was shared panicked")
			defer g.land(key, fl)
			v, err := fn()
			fl.value, fl.err = v, err
			return v, err
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return zero, &gpuserver.Error{
				Kind: gpuserver.KindUnavailable, Op: "github: wait for a call that another makes",
				Public: "GitHub has not answered in time; it is tried again", Err: ctx.Err(),
			}
		}
		if fl.err == nil {
			return fl.value.(T), nil
		}
		gaveUp := errors.Is(fl.err, context.Canceled) || errors.Is(fl.err, context.DeadlineExceeded)
		if !gaveUp || ctx.Err() != nil {
			return zero, fl.err
		}
	}
}
