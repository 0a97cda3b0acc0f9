package fake

import (
	"context"
	"sync"
	"time"
)

// Call is one call that a driver made, noted when it arrived.
type Call struct {
	Seq  int64  `json:"seq"` // 1, 2, … since the start or the last Reset
	Call string `json:"call"`
	Name string `json:"name,omitempty"`
	At   int64  `json:"at"` // Unix time in nanoseconds
}

// keptCalls is how many calls are remembered at least, once there were as many.
const keptCalls = 100_000

// calls is the log of calls. It forgets the oldest half when it is full.
type calls struct {
	mu     sync.Mutex
	seq    int64
	log    []Call
	counts map[string]int
	more   chan struct{} // closed at the next call; nil while nobody waits
}

func (l *calls) add(call, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	if len(l.log) == 2*keptCalls {
		l.log = l.log[:copy(l.log, l.log[keptCalls:])]
	}
	l.log = append(l.log, Call{Seq: l.seq, Call: call, Name: name, At: time.Now().UnixNano()})
	if l.counts == nil {
		l.counts = map[string]int{}
	}
	l.counts[call]++
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
}

// after copies the calls later than seq, and gives a channel that is closed when
// there are more.
func (l *calls) after(seq int64) ([]Call, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == nil {
		l.more = make(chan struct{})
	}
	n := min(max(l.seq-seq, 0), int64(len(l.log)))
	return append([]Call(nil), l.log[int64(len(l.log))-n:]...), l.more
}

func (l *calls) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq, l.log, l.counts = 0, nil, nil
}

// Calls gives the calls after the one numbered seq, oldest first; 0 gives all
// that are remembered (the last 100,000 at least).
func (c *Cloud) Calls(seq int64) []Call {
	list, _ := c.calls.after(seq)
	return list
}

// Count is how often a call ("create", …) was made since the last Reset.
func (c *Cloud) Count(call string) int {
	c.calls.mu.Lock()
	defer c.calls.mu.Unlock()
	return c.calls.counts[call]
}

// WaitCall waits until a call after the one numbered seq matches, and gives it.
func (c *Cloud) WaitCall(ctx context.Context, seq int64, match func(Call) bool) (Call, error) {
	for {
		list, more := c.calls.after(seq)
		for _, one := range list {
			if match(one) {
				return one, nil
			}
			seq = one.Seq
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Call{}, ctx.Err()
		}
	}
}
