package github

import (
	"context"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// TestTrouble has GitHub fail, answer and refuse, and looks at what is told of it.
func TestTrouble(t *testing.T) {
	s := newSite(t, forgetest.Config{}, nil, nil)
	run := s.dispatch(t, forgetest.RunSpec{Jobs: []forgetest.JobSpec{{Labels: []string{"gpu"}}}})
	read := func(id int64) error { _, err := s.Run(t.Context(), s.repo, id, 1); return err }
	if err := s.Trouble(); err != nil {
		t.Fatalf("before the first call: %v", err)
	}
	s.hub.SetFaults([]forgetest.Fault{{Kind: forgetest.Fault502, Path: "*/actions/runs/*"}})
	if err := read(run.ID); gpuserver.KindOf(err) != gpuserver.KindUnavailable || s.Trouble() == nil {
		t.Fatalf("with 502: %v, trouble %v", err, s.Trouble())
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	s.hub.SetFaults(nil)
	_, _ = s.Run(gone, s.repo, run.ID, 1)
	if s.Trouble() == nil {
		t.Error("a caller who left ended the trouble")
	}
	// That something is not there is an answer.
	if err := read(run.ID + 1000); gpuserver.KindOf(err) != gpuserver.KindNotFound || s.Trouble() != nil {
		t.Errorf("unknown run: %v, trouble %v", err, s.Trouble())
	}
	_, _ = s.Run(gone, s.repo, run.ID, 1)
	if err := s.Trouble(); err != nil {
		t.Errorf("a caller who left made trouble: %v", err)
	}
}

// TestTroubleWithTheKey has GitHub not accept the App's key.
func TestTroubleWithTheKey(t *testing.T) {
	s := newSite(t, forgetest.Config{}, nil, func(c *Config) { c.PrivateKey = testKey(t) })
	if err := s.Prepare(t.Context(), s.repo.InstallationID); gpuserver.KindOf(err) != gpuserver.KindRefused {
		t.Fatalf("got %v", err)
	}
	if got := gpuserver.PublicText(s.Trouble()); !strings.Contains(got, "App's key") {
		t.Errorf("told: %q", got)
	}
}
