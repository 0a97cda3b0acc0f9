package forgetest

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// meter counts calls and enforces limits.
type meter struct {
	stats   Stats
	seq     int64
	calls   []Call // a ring once it is full
	faults  []*fault
	points  window
	minute  window // content
	hour    window
	primary map[string]*budget // by installation and resource
	running int                // calls that are being carried out
}

// fault is a Fault with how often it was met.
type fault struct {
	Fault
	seen, struck int
}

// window sums up what happened in the last span, in steps of a second.
type window struct {
	span  time.Duration
	items []windowItem // oldest first
	sum   int
}

type windowItem struct {
	at time.Time
	n  int
}

// budget is a primary limit: so many in an hour from the first one on.
type budget struct {
	used  int
	reset time.Time
}

func (m *meter) init(t time.Time) {
	m.points, m.minute, m.hour = window{span: time.Minute}, window{span: time.Minute}, window{span: time.Hour}
	m.primary = map[string]*budget{}
	m.reset(t)
}

func (m *meter) reset(t time.Time) {
	m.stats = Stats{
		Calls: map[string]int64{}, Points: map[string]int64{}, Statuses: map[int]int64{}, Rejected: map[string]int64{},
		Faults: map[string]int64{}, Since: t.UTC(),
	}
	m.calls = nil
}

func (w *window) expire(t time.Time) {
	for len(w.items) > 0 && t.Sub(w.items[0].at) >= w.span {
		w.sum -= w.items[0].n
		w.items = w.items[1:]
	}
}

func (w *window) add(t time.Time, n int) {
	w.sum += n
	if last := len(w.items) - 1; last >= 0 && t.Sub(w.items[last].at) < time.Second {
		w.items[last].n += n
		return
	}
	w.items = append(w.items, windowItem{t, n})
}

// wait is how long until n more fit under limit; 0 if they fit now.
func (w *window) wait(t time.Time, n, limit int) time.Duration {
	w.expire(t)
	if limit <= 0 || w.sum+n <= limit {
		return 0
	}
	over := w.sum + n - limit
	for _, it := range w.items {
		if over -= it.n; over <= 0 {
			return max(it.at.Add(w.span).Sub(t), time.Second)
		}
	}
	return w.span
}

// refusal is a limit that a call ran into.
type refusal struct {
	limit string // as in Call.Limited
	after time.Duration
}

// charge takes a call's cost, or says which limit refuses it. A refused call
// costs nothing here.
func (m *meter) charge(l Limits, c *call, t time.Time) *refusal {
	if l.Concurrent > 0 && m.running > l.Concurrent {
		return &refusal{"concurrent", time.Second}
	}
	b := m.budget(c, t)
	if limit := l.primary(c.route.resource); limit > 0 && b.used >= limit {
		return &refusal{"primary", b.reset.Sub(t)}
	}
	if d := m.points.wait(t, c.rec.Points, l.PointsPerMinute); d > 0 {
		return &refusal{"points", d}
	}
	if c.route.content {
		d := max(m.minute.wait(t, 1, l.ContentPerMinute), m.hour.wait(t, 1, l.ContentPerHour))
		if d > 0 {
			return &refusal{"content", d}
		}
		m.minute.add(t, 1)
		m.hour.add(t, 1)
	}
	m.points.add(t, c.rec.Points)
	b.used++
	return nil
}

// budget finds the primary budget that a call counts against.
func (m *meter) budget(c *call, t time.Time) *budget {
	key := c.identity() + " " + c.route.resource
	b := m.primary[key]
	if b == nil || !t.Before(b.reset) {
		b = &budget{reset: t.Add(time.Hour).Truncate(time.Second)}
		m.primary[key] = b
	}
	return b
}

func (l Limits) primary(resource string) int {
	if resource == resourceRegistration {
		return l.RegistrationsPerHour
	}
	return l.PrimaryPerHour
}

// count files a call that has ended; s.mu is held.
func (s *Server) count(c *call) {
	m := &s.meter
	m.stats.Calls[c.rec.Route]++
	m.stats.Points[c.rec.Route] += int64(c.rec.Points)
	m.stats.Statuses[c.rec.Status]++
	m.stats.Total++
	m.stats.TotalPoints += int64(c.rec.Points)
	if c.rec.Limited != "" {
		m.stats.Rejected[c.rec.Limited]++
	}
	if c.rec.Fault != "" {
		m.stats.Faults[string(c.rec.Fault)]++
	}
	if len(m.calls) < s.cfg.Retention.Calls {
		m.calls = append(m.calls, c.rec)
		return
	}
	// The ring is cut rather than turned: reading it is then simple, and the copy
	// is one for many calls.
	keep := s.cfg.Retention.Calls * 3 / 4
	copy(m.calls, m.calls[len(m.calls)-keep:])
	m.calls = append(m.calls[:keep], c.rec)
}

// Stats gives the counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.meter.stats
	st.Calls, st.Points, st.Statuses = maps.Clone(st.Calls), maps.Clone(st.Points), maps.Clone(st.Statuses)
	st.Rejected, st.Faults = maps.Clone(st.Rejected), maps.Clone(st.Faults)
	st.Jobs = map[string]int64{}
	for _, j := range s.world.jobs {
		st.Jobs[j.status]++
	}
	st.Runners = len(s.runners.byID)
	for _, r := range s.runners.byID {
		if r.online {
			st.Online++
		}
	}
	return st
}

// ResetStats sets the counts to zero and forgets the calls; limits go on.
func (s *Server) ResetStats() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter.reset(time.Now())
}

// Calls gives the kept calls that ended after the one numbered since, in the
// order in which they ended.
func (s *Server) Calls(since int64) []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Call{}
	for _, c := range s.meter.calls {
		if c.Seq > since {
			out = append(out, c)
		}
	}
	return out
}

// Trace gives the calls that named a job: itself, its run, or the runner that
// had it.
func (s *Server) Trace(id int64) (Trace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(id)
	if err != nil {
		return Trace{}, err
	}
	name := ""
	if j.runner != nil {
		name = j.runner.name
	}
	t := Trace{Calls: []Call{}}
	for _, c := range s.meter.calls {
		if c.Job == id || (c.Job == 0 && c.Run == j.attempt.run.id) || (name != "" && c.Runner == name) {
			t.Calls = append(t.Calls, c)
		}
	}
	slices.SortStableFunc(t.Calls, func(a, b Call) int { return a.Start.Compare(b.Start) })
	t.RoundTrips = RoundTrips(t.Calls)
	return t, nil
}

// RoundTrips counts the calls of the longest chain in which each began after the
// one before had ended.
func RoundTrips(calls []Call) int {
	byEnd := slices.SortedFunc(slices.Values(calls), func(a, b Call) int { return a.End.Compare(b.End) })
	n, end := 0, time.Time{}
	for _, c := range byEnd {
		if !c.Start.Before(end) {
			n, end = n+1, c.End
		}
	}
	return n
}

// SetFaults replaces all faults of calls.
func (s *Server) SetFaults(faults []Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter.faults = nil
	for _, f := range faults {
		s.meter.faults = append(s.meter.faults, &fault{Fault: f})
	}
}

// faultFor finds the fault that strikes a call; s.mu is held.
func (s *Server) faultFor(method, path string) *Fault {
	for _, f := range s.meter.faults {
		if (f.Method != "" && f.Method != method) || !globMatch(f.Path, path) || (f.Count > 0 && f.struck >= f.Count) {
			continue
		}
		if f.seen++; f.seen <= f.Skip || !s.chance(f.Probability) {
			continue
		}
		f.struck++
		one := f.Fault
		return &one
	}
	return nil
}

// globMatch reports whether path has the shape of pattern, in which '*' stands
// for any text, slashes included; an empty pattern is any path.
func globMatch(pattern, path string) bool {
	if pattern == "" {
		return true
	}
	pieces := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(path, pieces[0])
	if !ok {
		return false
	}
	if len(pieces) == 1 {
		return rest == ""
	}
	for _, p := range pieces[1 : len(pieces)-1] {
		i := strings.Index(rest, p)
		if i < 0 {
			return false
		}
		rest = rest[i+len(p):]
	}
	return strings.HasSuffix(rest, pieces[len(pieces)-1])
}
