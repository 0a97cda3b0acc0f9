package forgetest

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestWindowNeverLetsMoreThrough draws bursts at random times and adds up by
// hand what any window of a minute let through.
func TestWindowNeverLetsMoreThrough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(5, 60).Draw(t, "limit")
		w := window{span: time.Minute}
		type passed struct {
			at time.Time
			n  int
		}
		var all []passed
		at := time.Unix(1_800_000_000, 0)
		for range rapid.IntRange(1, 200).Draw(t, "calls") {
			at = at.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			n := rapid.SampledFrom([]int{1, 5}).Draw(t, "points")
			wait := w.wait(at, n, limit)
			sum := n
			for _, p := range all {
				if at.Sub(p.at) < time.Minute {
					sum += p.n
				}
			}
			if wait > 0 {
				if wait > time.Minute {
					t.Fatalf("refused for %s", wait)
				}
				if later := w; later.wait(at.Add(wait), n, limit) > time.Second {
					t.Fatalf("no room after the %s that were named", wait)
				}
				continue
			}
			// Steps of a second are counted from their first call, so that up to a
			// second of slack is given, never taken.
			over := 0
			for _, p := range all {
				if d := at.Sub(p.at); d >= time.Minute-time.Second && d < time.Minute {
					over += p.n
				}
			}
			if sum-over > limit {
				t.Fatalf("%d points within a minute, limit %d", sum, limit)
			}
			w.add(at, n)
			all = append(all, passed{at, n})
		}
	})
}

func TestGlobIsLikeARegexp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune("ab/*")), 0, 8, -1)
		pattern, path := text.Draw(t, "pattern"), strings.ReplaceAll(text.Draw(t, "path"), "*", "a")
		pieces := strings.Split(pattern, "*")
		for i, p := range pieces {
			pieces[i] = regexp.QuoteMeta(p)
		}
		want := pattern == "" || regexp.MustCompile("^(?s:"+strings.Join(pieces, ".*")+")$").MatchString(path)
		if got := globMatch(pattern, path); got != want {
			t.Fatalf("%q on %q: %v, want %v", pattern, path, got, want)
		}
	})
}

func TestRoundTripsCountsSequentialCallsOnly(t *testing.T) {
	at := func(from, to int) Call {
		return Call{Start: time.Unix(int64(from), 0), End: time.Unix(int64(to), 0)}
	}
	for _, c := range []struct {
		calls []Call
		want  int
	}{
		{nil, 0},
		{[]Call{at(0, 1), at(2, 3), at(4, 5)}, 3},
		{[]Call{at(0, 9), at(1, 2), at(3, 4)}, 2},
		{[]Call{at(0, 5), at(1, 6), at(2, 7)}, 1},
	} {
		if got := RoundTrips(c.calls); got != c.want {
			t.Errorf("%v: %d, want %d", c.calls, got, c.want)
		}
	}
}

func FuzzJWT(f *testing.F) {
	s := New(Config{})
	f.Cleanup(func() { _ = s.Close() })
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOjQ3MTF9.AAAA")
	f.Fuzz(func(t *testing.T, jwt string) {
		if s.checkJWT(jwt, time.Now()) == nil {
			t.Fatalf("%q was accepted without our key", jwt)
		}
	})
}
