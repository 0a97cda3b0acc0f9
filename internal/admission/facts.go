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
