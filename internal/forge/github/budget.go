package github

import (
	"context"
	"sync"
	"time"
)

// Class is how urgent a call is. A waiting call of a lower class is never sent
// before one of a higher class that could be sent.
type Class int

// The classes, the most urgent first.
const (
	ClassRegister     Class = iota // runner registrations
	ClassDelete                    // deletes of runners
	ClassRead                      // what a decision waits for: runs, jobs, files, members
	ClassHousekeeping              // check runs, lists, deliveries, diagnosis
	classes
)

// String gives the class's name in metrics.
func (c Class) String() string {
	return [...]string{"register", "delete", "read", "housekeeping"}[c]
}

// share is the part of a limit that a class may use up, in percent. What is
// held back from the lower classes is there when a burst of jobs arrives.
func (c Class) share() int { return [...]int{100, 98, 90, 60}[c] }

type classKey struct{}

// WithClass makes the calls under ctx count as class instead of their own.
func WithClass(ctx context.Context, class Class) context.Context {
	return context.WithValue(ctx, classKey{}, class)
}

// Limits are the secondary limits that we keep to, for the App as a whole; zero
// values are GitHub's documented ones.
// Source: docs.github.com, "Rate limits for the REST API", secondary rate limits.
type Limits struct {
	PointsPerMinute      int // 900; a read costs 1, any other call 5
	ContentPerMinute     int // 80 check runs made or rewritten
	ContentPerHour       int // 500
	RegistrationsPerHour int // 10000, the limit actions_runner_registration
	Concurrent           int // 100; we keep to 90
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		v    *int
		than int
	}{
		{&l.PointsPerMinute, 900},
		{&l.ContentPerMinute, 80},
		{&l.ContentPerHour, 500},
		{&l.RegistrationsPerHour, 10000},
		{&l.Concurrent, 90},
	} {
		if *d.v <= 0 {
			*d.v = d.than
		}
	}
	return l
}

const (
	pointsRead  = 1
	pointsWrite = 5
	// slack is how much longer than GitHub's own windows ours are, for a clock
	// there that counts in whole seconds.
	slack = time.Second
)

// cost is what one call takes out of the budget.
type cost struct {
	class        Class
	points       int
	content      bool
	registration bool
	installation int64 // 0: the App itself
}

// lane is a line of waiting calls that are held up by the same limits.
type lane struct {
	class                 Class
	content, registration bool
	installation          int64
}

func (c cost) lane() lane { return lane{c.class, c.content, c.registration, c.installation} }

// account is one of GitHub's primary limits: an installation's, or the App's
// own; registrations have one apart.
type account struct {
	installation int64
	registration bool
}

func (c cost) account() account { return account{c.installation, c.registration} }

type waiter struct {
	cost    cost
	seq     uint64
	granted chan struct{} // closed under budget.mu
}

// budget lets calls go so that no limit of GitHub is met. It never spends ahead:
// a call counts from before it is sent until a window after its answer, so
// GitHub's count, made somewhere between, is never above ours.
type budget struct {
	limits Limits

	mu       sync.Mutex
	points   window
	contentM window
	contentH window
	registrH window
	inFlight int
	primary  map[account]*primary
	lanes    map[lane][]*waiter
	seq      uint64
	timer    *time.Timer

	blockedUntil time.Time // by a secondary limit
	strikes      int       // secondary limits in a row without Retry-After

	spent [classes]int64
	calls [classes]int64
}

func newBudget(l Limits) *budget {
	l = l.withDefaults()
	b := &budget{
		limits:   l,
		points:   window{size: time.Minute + slack, limit: l.PointsPerMinute},
		contentM: window{size: time.Minute + slack, limit: l.ContentPerMinute},
		contentH: window{size: time.Hour + slack, limit: l.ContentPerHour},
		registrH: window{size: time.Hour + slack, limit: l.RegistrationsPerHour},
		primary:  make(map[account]*primary),
		lanes:    make(map[lane][]*waiter),
	}
	return b
}

// acquire waits until the call may be sent. Each success needs one release. The
// error is KindLimited: the context ended first, or surely will.
func (b *budget) acquire(ctx context.Context, c cost) error {
	w := &waiter{cost: c, granted: make(chan struct{})}
	b.mu.Lock()
	now := time.Now()
	b.enqueue(w)
	b.pump(now)
	if isClosed(w.granted) {
		b.mu.Unlock()
		return nil
	}
	until, secondary := b.holdsUntil(c, now)
	if deadline, ok := ctx.Deadline(); ok && until.After(deadline) {
		b.drop(w)
		b.mu.Unlock()
		return limited(until, secondary, context.DeadlineExceeded)
	}
	b.mu.Unlock()

	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if isClosed(w.granted) {
		return nil // the call itself will see that its context has ended
	}
	b.drop(w)
	until, secondary = b.holdsUntil(c, time.Now())
	return limited(until, secondary, ctx.Err())
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// giveBack undoes acquire for a call that was not made.
func (b *budget) giveBack(c cost) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inFlight--
	b.points.take(-c.points)
	if c.content {
		b.contentM.take(-1)
		b.contentH.take(-1)
	}
	if c.registration {
		b.registrH.take(-1)
	}
	b.account(c.account()).inFlight--
	b.pump(time.Now())
}

// release takes the call's answer into account.
func (b *budget) release(c cost, a verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.inFlight--
	b.points.settle(now, c.points)
	if c.content {
		b.contentM.settle(now, 1)
		b.contentH.settle(now, 1)
	}
	if c.registration {
		b.registrH.settle(now, 1)
	}
	b.account(c.account()).settle(a)
	b.spent[c.class] += int64(c.points)
	b.calls[c.class]++
	if a.secondary {
		b.block(now, a)
	} else if a.ok {
		b.strikes = 0
	}
	b.pump(now)
}

// block holds every call back after a secondary limit. Without Retry-After it
// is a minute, and twice as long each time in a row, as GitHub asks.
func (b *budget) block(now time.Time, a verdict) {
	d := a.blockFor
	if d <= 0 {
		d = min(time.Minute<<b.strikes, 16*time.Minute)
		b.strikes = min(b.strikes+1, 4)
	}
	if until := now.Add(d); until.After(b.blockedUntil) {
		b.blockedUntil = until
	}
}

func (b *budget) account(a account) *primary {
	p := b.primary[a]
	if p == nil {
		p = &primary{}
		b.primary[a] = p
	}
	return p
}

func (b *budget) enqueue(w *waiter) {
	b.seq++
	w.seq = b.seq
	l := w.cost.lane()
	b.lanes[l] = append(b.lanes[l], w)
}

// drop takes a waiter that gave up out of its lane.
func (b *budget) drop(w *waiter) {
	l := w.cost.lane()
	queue := b.lanes[l]
	for i := range queue {
		if queue[i] == w {
			b.setLane(l, append(queue[:i:i], queue[i+1:]...))
			break
		}
	}
	b.pump(time.Now())
}

func (b *budget) setLane(l lane, queue []*waiter) {
	if len(queue) == 0 {
		delete(b.lanes, l)
		return
	}
	b.lanes[l] = queue
}

// pump lets go whoever may go now, and sets the timer for the next chance.
func (b *budget) pump(now time.Time) {
	held := make(map[lane]bool)
	var next time.Time
	for {
		l, ok := b.first(held)
		if !ok {
			break
		}
		w := b.lanes[l][0]
		h := b.holds(w.cost, now)
		if h.free() {
			b.setLane(l, b.lanes[l][1:])
			b.grant(w, now)
			continue
		}
		if !h.until.IsZero() && (next.IsZero() || h.until.Before(next)) {
			next = h.until
		}
		if h.all {
			break // nobody may overtake
		}
		held[l] = true
	}
	b.wakeAt(now, next)
}

// first finds the lane whose head is most urgent and waited longest.
func (b *budget) first(held map[lane]bool) (best lane, ok bool) {
	for l, queue := range b.lanes {
		if held[l] {
			continue
		}
		if !ok || l.class < best.class || l.class == best.class && queue[0].seq < b.lanes[best][0].seq {
			best, ok = l, true
		}
	}
	return best, ok
}

func (b *budget) grant(w *waiter, now time.Time) {
	c := w.cost
	b.inFlight++
	b.points.take(c.points)
	if c.content {
		b.contentM.take(1)
		b.contentH.take(1)
	}
	if c.registration {
		b.registrH.take(1)
	}
	b.account(c.account()).take(now)
	close(w.granted)
}

// wakeAt has pump called again at the given time, or never if it is zero:
// then only an answer can change anything, and release pumps.
func (b *budget) wakeAt(now, at time.Time) {
	if b.timer != nil {
		b.timer.Stop()
	}
	if at.IsZero() {
		return
	}
	b.timer = time.AfterFunc(max(at.Sub(now), time.Millisecond), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.pump(time.Now())
	})
}

// hold is what keeps a call back; the zero hold is nothing.
type hold struct {
	held      bool
	all       bool      // it holds back everybody who is not more urgent
	until     time.Time // zero: until an answer comes
	secondary bool
}

func (h hold) free() bool { return !h.held }

// holds tells what keeps a call back now.
func (b *budget) holds(c cost, now time.Time) hold {
	if now.Before(b.blockedUntil) {
		return hold{held: true, all: true, until: b.blockedUntil, secondary: true}
	}
	if b.inFlight >= max(1, b.limits.Concurrent*c.class.share()/100) {
		return hold{held: true, all: true}
	}
	if ok, until := b.points.fits(now, c.points, c.class.share()); !ok {
		return hold{held: true, all: true, until: until}
	}
	if c.content {
		for _, w := range []*window{&b.contentM, &b.contentH} {
			if ok, until := w.fits(now, 1, 100); !ok {
				return hold{held: true, until: until}
			}
		}
	}
	if c.registration {
		if ok, until := b.registrH.fits(now, 1, 100); !ok {
			return hold{held: true, until: until}
		}
	}
	if ok, until := b.account(c.account()).fits(now, c.class); !ok {
		return hold{held: true, until: until}
	}
	return hold{}
}

// holdsUntil is the earliest time at which a call may go; zero if only an
// answer can tell.
func (b *budget) holdsUntil(c cost, now time.Time) (until time.Time, secondary bool) {
	h := b.holds(c, now)
	return h.until, h.secondary
}
