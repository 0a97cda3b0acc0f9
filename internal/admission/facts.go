package admission

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"gpuserver"
	"gpuserver/internal/access"
)

// facts remembers who has which role and is in which team, for as long as the
// files are taken for fresh. Without it each job of a matrix would ask the forge
// for the same, one round trip before its runner can be registered.
type facts struct {
	fresh  time.Duration
	flight singleflight.Group

	mu sync.Mutex
	m  map[string]fact
}

type fact struct {
	value access.Value
	at    time.Time // when it was asked for
}

// maxFacts bounds the facts in memory.
const maxFacts = 4096

// asking is one decision's use of facts.
type asking struct {
	afresh     bool      // nothing remembered will do
	remembered bool      // something remembered was used
	lists      bool      // a list of users was used
	since      time.Time // lists of users of before will not do
}

func newFacts(fresh time.Duration) *facts { return &facts{fresh: fresh, m: map[string]fact{}} }

// factKey names a fact about an actor: an id outlives a renamed login, but only
// the login is what the forge is asked for.
func factKey(j gpuserver.Job, q access.Request, n access.Fact) string {
	return strings.Join([]string{
		j.Forge, strings.ToLower(j.Repo), string(n.Kind), strings.ToLower(n.Key), strings.ToLower(q.Actor.Login), strconv.FormatInt(q.Actor.ID, 10),
	}, "\x00")
}

// get gives a fact; jobs that ask at once share one call. What fetch cannot
// find out is not remembered.
func (s *facts) get(ctx context.Context, key string, how *asking, fetch func(context.Context) (access.Value, error)) (access.Value, error) {
	s.mu.Lock()
	known, ok := s.m[key]
	s.mu.Unlock()
	if ok && !how.afresh && time.Since(known.at) < s.fresh {
		how.remembered = true
		return known.value, nil
	}
	at := time.Now()
	v, err, shared := s.flight.Do(key, func() (any, error) {
		// Several jobs share the answer: one that gives up must not take it from
		// the others.
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		v, err := fetch(fctx)
		if err == nil && v.Problem == "" {
			s.keep(key, fact{v, at})
		}
		return v, err
	})
	if err != nil {
		return access.Value{}, err
	}
	how.remembered = how.remembered || shared && !how.afresh
	return v.(access.Value), ctx.Err()
}

func (s *facts) keep(key string, f fact) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.m) >= maxFacts {
		clear(s.m)
	}
	s.m[key] = f
}

// gather fetches the facts that a decision needs, one at a time.
func (a *Admission) gather(ctx context.Context, f Forge, j gpuserver.Job, q *access.Request, how *asking) error {
	for range 1000 { // more than any file has conditions about one repository
		needs := access.Needs(*q)
		if len(needs) == 0 {
			return nil
		}
		v, err := a.fact(ctx, f, j, *q, needs[0], how) // the cheapest; it may settle the others
		if err != nil {
			return err
		}
		q.Facts[needs[0]] = v
	}
	return nil
}

// fact gives one fact, remembered or asked for. Lists of users are remembered
// where they are fetched.
func (a *Admission) fact(ctx context.Context, f Forge, j gpuserver.Job, q access.Request, n access.Fact, how *asking) (access.Value, error) {
	if n.Kind == access.FactUsers {
		how.lists = true
		return a.fetchFact(ctx, f, j, q, n, how.since)
	}
	return a.facts.get(ctx, factKey(j, q, n), how, func(ctx context.Context) (access.Value, error) {
		return a.fetchFact(ctx, f, j, q, n, time.Time{})
	})
}

// fetchFact fetches one fact. What a person could mend (a team that does not exist,
// a list that cannot be read) becomes a Problem; what will pass is an error.
func (a *Admission) fetchFact(ctx context.Context, f Forge, j gpuserver.Job, q access.Request, n access.Fact, since time.Time) (v access.Value, err error) {
	switch n.Kind {
	case access.FactRole:
		v.Role, err = f.Role(ctx, repoOf(j), q.Actor.Login)
	case access.FactTeam:
		org, team, _ := strings.Cut(n.Key, "/")
		v.Member, err = f.TeamMember(ctx, repoOf(j), org, team, q.Actor.Login)
	case access.FactUsers:
		if a.Users == nil {
			return access.Value{Problem: "lists of users are not read"}, nil
		}
		v.Users, v.Note, err = a.Users.Users(ctx, n.Key, since)
		if err != nil {
			return access.Value{Problem: gpuserver.PublicText(err)}, ctx.Err()
		}
	}
	switch gpuserver.KindOf(err) {
	case "":
		return v, nil
	case gpuserver.KindNotFound, gpuserver.KindRefused, gpuserver.KindInvalid:
		return access.Value{Problem: gpuserver.PublicText(err)}, nil
	}
	return v, err
}
