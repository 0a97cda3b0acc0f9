package admission

import (
	"context"
	"testing"

	"gpuserver"
	"gpuserver/internal/forge"
)

// loginRoles is a forge where one login may write.
type loginRoles struct{ *shelf }

func (l loginRoles) Role(_ context.Context, _ forge.Repo, login string) (string, error) {
	if login == "alice" {
		return "write", nil
	}
	return "read", nil
}

// An attempt that we asked for has the rights of the one before it, and no other
// attempt has: neither another App's, nor ours of what somebody else began.
func TestAttemptThatWeAskedFor(t *testing.T) {
	by := func(n int, login string, ours bool) forge.Run {
		return forge.Run{
			ID: 1, Attempt: n, Event: "push", HeadRepo: "octo/hello", HeadSHA: "abc", ByUs: ours,
			TriggeringActor: forge.Actor{Login: login, ID: int64(len(login))},
		}
	}
	for name, c := range map[string]struct {
		attempts []forge.Run // the job's is the last
		actor    string
		allowed  bool
	}{
		"ours":               {[]forge.Run{by(1, "alice", false), by(2, "us[bot]", true)}, "alice", true},
		"ours, twice":        {[]forge.Run{by(1, "alice", false), by(2, "us[bot]", true), by(3, "us[bot]", true)}, "alice", true},
		"another App's":      {[]forge.Run{by(1, "alice", false), by(2, "them[bot]", false)}, "them[bot]", false},
		"somebody else's":    {[]forge.Run{by(1, "alice", false), by(2, "mallory", false)}, "mallory", false},
		"ours, of another's": {[]forge.Run{by(1, "alice", false), by(2, "mallory", false), by(3, "us[bot]", true)}, "mallory", false},
		"ours, from nothing": {[]forge.Run{by(1, "us[bot]", true)}, "us[bot]", false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.forge.Forge = loginRoles{d.shelf}
			d.attempts = map[int]forge.Run{}
			for _, r := range c.attempts {
				d.attempts[r.Attempt] = r
			}
			j := d.job("cirun-gpu")
			j.RunAttempt = len(c.attempts)
			ans, err := d.ask(t.Context(), d.forge, j)
			if err != nil || ans.actor != c.actor || (len(ans.entries) > 0) != c.allowed {
				t.Errorf("%s: %d entries, %+v (%v); want %s, allowed %t", ans.actor, len(ans.entries), ans.reason, err, c.actor, c.allowed)
			}
		})
	}
}

// If the attempt before ours cannot be read, nothing is decided yet.
func TestAttemptBeforeOursCannotBeRead(t *testing.T) {
	d := newDesk(t)
	d.forge.Forge = noFirst{d.shelf}
	d.attempts = map[int]forge.Run{2: {ID: 1, Attempt: 2, ByUs: true, TriggeringActor: forge.Actor{Login: "us[bot]"}}}
	j := d.job("cirun-gpu")
	j.RunAttempt = 2
	if ans, err := d.ask(t.Context(), d.forge, j); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("%+v, %v", ans, err)
	}
}

type noFirst struct{ *shelf }

func (n noFirst) Run(ctx context.Context, repo forge.Repo, id int64, attempt int) (forge.Run, error) {
	if attempt == 1 {
		return forge.Run{}, gpuserver.Errorf(gpuserver.KindUnavailable, "away")
	}
	return n.shelf.Run(ctx, repo, id, attempt)
}
