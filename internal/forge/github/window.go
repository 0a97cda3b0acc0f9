package github

import "time"

// window counts what was spent in the last size of time. What was taken counts
// until it is settled, and then for size longer.
type window struct {
	size  time.Duration
	limit int
	busy  int
	past  []spending // in the order of at
}

type spending struct {
	from, at time.Time // when it began and when it stops to count
	n        int
}

func (w *window) expire(now time.Time) {
	i := 0
	for i < len(w.past) && !w.past[i].at.After(now) {
		w.busy -= w.past[i].n
		i++
	}
	w.past = w.past[i:]
}

// fits tells whether n more fit under the given percentage of the limit, and if
// not, from when they may; a zero time means not before something is settled.
func (w *window) fits(now time.Time, n, percent int) (bool, time.Time) {
	w.expire(now)
	limit := max(w.limit*percent/100, n) // a tiny limit must not shut a class out for ever
	over := w.busy + n - limit
	if over <= 0 {
		return true, time.Time{}
	}
	for _, p := range w.past {
		if over -= p.n; over <= 0 {
			return false, p.at
		}
	}
	return false, time.Time{}
}

func (w *window) take(n int) { w.busy += n }

// settle starts the time after which n no longer count.
func (w *window) settle(now time.Time, n int) {
	at := now.Add(w.size)
	if last := len(w.past) - 1; last >= 0 && now.Sub(w.past[last].from) < w.size/1000 {
		// Spendings close together are one: the list stays short, and the
		// earlier of them count a thousandth longer.
		w.past[last].at = at
		w.past[last].n += n
		return
	}
	w.past = append(w.past, spending{now, at, n})
}

// primary is one of GitHub's hourly limits, as its answers tell it.
type primary struct {
	limit, remaining int
	reset            time.Time // our clock; zero: not known
	inFlight         int
	cooling          bool // an answer said that nothing is left
}

// fits tells whether one more call of a class fits, and if not, from when.
func (p *primary) fits(now time.Time, c Class) (bool, time.Time) {
	if p.reset.IsZero() || !now.Before(p.reset) {
		return true, time.Time{}
	}
	reserve := p.limit * (100 - c.share()) / 200
	if p.cooling || p.remaining-p.inFlight <= reserve {
		return false, p.reset
	}
	return true, time.Time{}
}

func (p *primary) take(now time.Time) {
	if !p.reset.IsZero() && !now.Before(p.reset) {
		p.reset, p.cooling = time.Time{}, false // a new hour; its answers will tell
	}
	p.inFlight++
}

// settle takes an answer's numbers. Answers arrive in any order: of the same
// hour the lowest number counts.
func (p *primary) settle(a verdict) {
	p.inFlight--
	if a.reset.IsZero() {
		return
	}
	switch d := a.reset.Sub(p.reset); {
	case p.reset.IsZero() || d > 5*time.Second:
		p.limit, p.remaining, p.reset, p.cooling = a.limit, a.remaining, a.reset, a.exhausted
	case d >= -5*time.Second: // the same hour, but for rounding
		p.remaining = min(p.remaining, a.remaining)
		p.cooling = p.cooling || a.exhausted
	}
}
