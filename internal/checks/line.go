package checks

import (
	"context"
	"sync"
	"time"

	"gpuserver"
)

// line is the jobs whose check run is to be written: refusals first, as a person
// can do something about those, else first come, first served. A job in it costs
// a few bytes and no goroutine: there may be thousands, of which the forge takes
// 80 a minute.
type line struct {
	mu     sync.Mutex
	urgent []gpuserver.JobID
	rest   []gpuserver.JobID
	in     map[gpuserver.JobID]bool // the value: urgent
	after  map[gpuserver.JobID]time.Time
	more   chan struct{} // holds one
}

func (l *line) init() {
	l.in, l.after, l.more = map[gpuserver.JobID]bool{}, map[gpuserver.JobID]time.Time{}, make(chan struct{}, 1)
}

// add puts a job into line. One that became urgent goes to the front; its old
// place is passed over.
func (l *line) add(id gpuserver.JobID, urgent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was, in := l.in[id]
	if in && (was || !urgent) {
		return
	}
	l.in[id] = urgent
	if urgent {
		l.urgent = append(l.urgent, id)
	} else {
		l.rest = append(l.rest, id)
	}
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// next takes the first of the line; it waits for one until ctx is done.
func (l *line) next(ctx context.Context) (gpuserver.JobID, bool) {
	for ctx.Err() == nil {
		if id, ok := l.take(); ok {
			return id, true
		}
		select {
		case <-l.more:
		case <-ctx.Done():
		}
	}
	return 0, false
}

func (l *line) take() (gpuserver.JobID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range []*[]gpuserver.JobID{&l.urgent, &l.rest} {
		for len(*q) > 0 {
			id := (*q)[0]
			*q = (*q)[1:]
			if urgent, in := l.in[id]; in && urgent == (q == &l.urgent) {
				delete(l.in, id)
				return id, true
			}
		}
	}
	return 0, false
}

// holdBack keeps a job out of the line until a time.
func (l *line) holdBack(id gpuserver.JobID, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.after[id] = until
}

// until gives how long a job is held back; it forgets times that are past.
func (l *line) until(id gpuserver.JobID, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.after[id].Sub(now)
	if d <= 0 {
		delete(l.after, id)
		return 0
	}
	return d
}
