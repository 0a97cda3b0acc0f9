package github

import (
	"cmp"
	"slices"
	"time"
)

// Snapshot is the state of the budget at one time.
type Snapshot struct {
	PointsPerMinute int
	// Remaining is how many points a registration could spend now.
	Remaining int
	// Until is when a call of the least urgent class that waits may go, zero if
	// none is held back by a limit.
	Until time.Time
	// Secondary tells that GitHub itself holds us back, until Until.
	Secondary bool
	InFlight  int
	Classes   []ClassSnapshot
	Primary   []PrimarySnapshot
}

// ClassSnapshot is one class's part of a Snapshot.
type ClassSnapshot struct {
	Class   Class
	Waiting int
	Calls   int64 // since the start
	Points  int64 // since the start
}

// PrimarySnapshot is one of GitHub's hourly limits as last told.
type PrimarySnapshot struct {
	Installation  int64 // 0: the App's own
	Registrations bool  // the limit of runner registrations
	Limit         int
	Remaining     int
	Reset         time.Time
}

func (b *budget) snapshot() Snapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.points.expire(now)
	s := Snapshot{
		PointsPerMinute: b.limits.PointsPerMinute,
		Remaining:       max(0, b.limits.PointsPerMinute-b.points.busy),
		InFlight:        b.inFlight,
	}
	if now.Before(b.blockedUntil) {
		s.Remaining, s.Until, s.Secondary = 0, b.blockedUntil, true
	}
	for c := range classes {
		s.Classes = append(s.Classes, ClassSnapshot{Class: c, Calls: b.calls[c], Points: b.spent[c]})
	}
	for l, queue := range b.lanes {
		s.Classes[l.class].Waiting += len(queue)
		if until, _ := b.holdsUntil(queue[0].cost, now); until.After(s.Until) {
			s.Until = until
		}
	}
	for a, p := range b.primary {
		if p.reset.After(now) {
			s.Primary = append(s.Primary, PrimarySnapshot{a.installation, a.registration, p.limit, p.remaining, p.reset})
		}
	}
	slices.SortFunc(s.Primary, func(x, y PrimarySnapshot) int {
		return cmp.Or(cmp.Compare(x.Installation, y.Installation), cmp.Compare(x.Reset.Unix(), y.Reset.Unix()))
	})
	return s
}
