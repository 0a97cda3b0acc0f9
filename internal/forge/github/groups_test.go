package github

import (
	"testing"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/forgetest"
)

// TestNamedRunnerGroup registers in a group by its name, which costs a look-up
// once, and says clearly when there is none of that name.
func TestNamedRunnerGroup(t *testing.T) {
	s := newSite(t, forgetest.Config{}, nil, nil)
	g, err := s.hub.SetGroup(forgetest.Group{Org: s.repo.Owner(), Name: "gpus", PublicRepos: true})
	if err != nil {
		t.Fatal(err)
	}
	scope := forge.Scope{Repo: s.repo, Organisation: true, RunnerGroup: "GPUs"}
	for _, name := range []string{"one", "two"} {
		if _, err := s.RegisterRunner(t.Context(), forge.RunnerSpec{Scope: scope, Name: name, Labels: []string{"x"}}); err != nil {
			t.Fatal(err)
		}
	}
	runners := s.hub.Runners()
	if len(runners) != 2 || runners[0].Group != g.ID || runners[1].Group != g.ID {
		t.Errorf("runners %+v; want both in group %d", runners, g.ID)
	}
	looked := 0
	for route, n := range s.hub.Stats().Calls {
		if route == "GET /orgs/{org}/actions/runner-groups" {
			looked = int(n)
		}
	}
	if looked != 1 {
		t.Errorf("the group was looked up %d times, want once", looked)
	}
	scope.RunnerGroup = "nobody"
	if _, err := s.RegisterRunner(t.Context(), forge.RunnerSpec{Scope: scope, Name: "three", Labels: []string{"x"}}); gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Errorf("an unknown group: %v, want invalid", err)
	}
}
