package admission

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/access"
	"gpuserver/internal/cirun"
	"gpuserver/internal/forge"
)

// roles is a forge of which only Role may be asked.
type roles struct {
	forge.Forge
	role  string
	asked int
}

func (r *roles) Name() string { return "github" }

func (r *roles) Role(context.Context, forge.Repo, string) (string, error) {
	r.asked++
	return r.role, nil
}

const helloAccess = `version: 1
policies:
  - id: writers
    repo: hello
    roles: [write]
access_control:
  - resource: gpu
    policies: [writers]
`

// A matrix asks for its actor's role once; a refusal is never an old answer.
func TestRolesAreRememberedButNotToRefuse(t *testing.T) {
	file, _, err := cirun.ParseAccess([]byte(helloAccess), ".access.yml")
	if err != nil {
		t.Fatal(err)
	}
	r := &roles{}
	a := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fresh: time.Hour})
	may := func() bool {
		t.Helper()
		allowed, _, _, err := a.permit(t.Context(), Forge{Forge: r}, gpuserver.Job{Forge: "github", Repo: "octo/hello"},
			forge.Run{Event: "push", HeadRepo: "octo/hello", TriggeringActor: forge.Actor{Login: "alice", ID: 7}},
			ownerFiles{access: accessFile{state: access.FileRead, file: file}}, []cirun.Runner{{Name: "gpu"}})
		if err != nil {
			t.Fatal(err)
		}
		return len(allowed) == 1
	}
	for i, step := range []struct {
		role  string
		want  bool
		asked int // in all
	}{
		{"read", false, 1},
		{"read", false, 2}, // refused again, and asked again
		{"write", true, 3}, // given the role a moment ago
		{"write", true, 3}, // remembered
		{"read", true, 3},  // taken away: seen once the answer is no longer fresh
	} {
		r.role = step.role
		if got := may(); got != step.want || r.asked != step.asked {
			t.Errorf("step %d, role %s: allowed %t after %d calls; want %t after %d", i, step.role, got, r.asked, step.want, step.asked)
		}
	}
	a.facts.fresh = 0
	if may() {
		t.Error("allowed by an answer that is no longer fresh")
	}
}

// What cannot be found out now is asked for again at the next decision.
func TestProblemsAreNotRemembered(t *testing.T) {
	s := newFacts(time.Hour)
	calls := 0
	for range 2 {
		v, err := s.get(t.Context(), "k", &asking{}, func(context.Context) (access.Value, error) {
			calls++
			return access.Value{Problem: "no such team"}, nil
		})
		if err != nil || v.Problem == "" {
			t.Errorf("%v, %v; want the problem", v, err)
		}
	}
	if calls != 2 {
		t.Errorf("asked %d times, want 2", calls)
	}
}
