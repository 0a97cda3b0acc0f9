package github

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/forgetest"
)

// TestCallsOfAJob looks at the calls on a job's way. With nothing known they are
// four, one after the other: token, run, file, registration. Later no token is
// needed, and the file, whose name is known, can be asked for beside the run.
func TestCallsOfAJob(t *testing.T) {
	const inRepo = "/repos/{owner}/{repo}/"
	s := newSite(t, forgetest.Config{}, nil, nil)
	later := []string{
		"GET " + inRepo + "actions/runs/{run_id}/attempts/{attempt_number}", "GET " + inRepo + "contents/{path...}",
		"POST " + inRepo + "actions/runners/generate-jitconfig",
	}
	cold := append([]string{"POST /app/installations/{installation_id}/access_tokens"}, later...)
	for i, want := range [][]string{cold, later} {
		run := s.dispatch(t, forgetest.RunSpec{Jobs: []forgetest.JobSpec{{Labels: []string{"gpu"}}}})
		s.hub.ResetStats()
		if _, err := s.Run(t.Context(), s.repo, run.ID, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.File(t.Context(), s.repo, ".cirun.yml", ""); err != nil {
			t.Fatal(err)
		}
		spec := forge.RunnerSpec{Scope: s.Scope(s.repo), Name: fmt.Sprintf("gs-%d-1", i), Labels: []string{"gpu"}}
		if _, err := s.RegisterRunner(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range s.hub.Calls(0) {
			got = append(got, c.Route)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("time %d: %s", i, diff)
		}
	}
}

// TestUnknownOutcome has registrations carried out whose answer is lost: they
// are not repeated, and can be found by name.
func TestUnknownOutcome(t *testing.T) {
	for _, kind := range []forgetest.FaultKind{forgetest.Fault502, forgetest.FaultCut} {
		t.Run(string(kind), func(t *testing.T) {
			s := newSite(t, forgetest.Config{}, nil, nil)
			s.hub.SetFaults([]forgetest.Fault{{Kind: kind, Method: "POST", Path: "*/generate-jitconfig", After: true, Count: 1}})
			spec := forge.RunnerSpec{Scope: s.Scope(s.repo), Name: "gs-1-1", Labels: []string{"gpu"}}
			if _, err := s.RegisterRunner(t.Context(), spec); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
				t.Fatalf("got %v", err)
			}
			if n := s.hub.Stats().Calls["POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig"]; n != 1 {
				t.Errorf("it was asked for %d times", n)
			}
			r, err := s.FindRunner(t.Context(), spec.Scope, spec.Name)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.DeleteRunner(t.Context(), spec.Scope, r.ID); err != nil {
				t.Fatal(err)
			}
			spec.Name = "gs-1-2"
			if _, err := s.RegisterRunner(t.Context(), spec); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFaultyReads has reads and tokens fail at random and expects every call to
// come through in the end.
func TestFaultyReads(t *testing.T) {
	s := newSite(t, forgetest.Config{Seed: 1}, nil, nil)
	run := s.dispatch(t, forgetest.RunSpec{Jobs: []forgetest.JobSpec{{Labels: []string{"gpu"}}}})
	s.hub.SetFaults([]forgetest.Fault{
		{Kind: forgetest.Fault502, Path: "*/access_tokens", Count: 1},
		{Kind: forgetest.Fault500, Method: "GET", Count: 1, Skip: 1},
		{Kind: forgetest.FaultCut, Method: "GET", Count: 1, Skip: 3},
	})
	for range 5 {
		if _, err := s.Job(t.Context(), s.repo, run.Jobs[0].ID); err != nil {
			t.Error(err)
		}
	}
	if n := len(s.hub.Stats().Faults); n != 3 {
		t.Errorf("%d kinds of faults were met, want 3", n)
	}
}

// TestLimitsOfTheHub has the stand-in refuse calls the ways that GitHub does.
func TestLimitsOfTheHub(t *testing.T) {
	for _, kind := range []forgetest.FaultKind{forgetest.FaultPrimary, forgetest.FaultSecondary, forgetest.Fault429} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // each waits for some seconds
			s := newSite(t, forgetest.Config{}, nil, nil)
			run := s.dispatch(t, forgetest.RunSpec{Jobs: []forgetest.JobSpec{{Labels: []string{"gpu"}}}})
			s.hub.SetFaults([]forgetest.Fault{{Kind: kind, Path: "*/jobs/*", Count: 1, RetryAfter: time.Second}})
			start := time.Now()
			if _, err := s.Job(t.Context(), s.repo, run.Jobs[0].ID); gpuserver.KindOf(err) != gpuserver.KindLimited {
				t.Fatalf("got %v", err)
			}
			if _, err := s.Job(t.Context(), s.repo, run.Jobs[0].ID); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d < time.Second {
				t.Errorf("it was asked again after %v", d)
			}
		})
	}
}

// TestBurst sends more than a (small) minute's points at once through GitHub's
// limits as the stand-in enforces them: nothing may be refused.
func TestBurst(t *testing.T) {
	s := newSite(t, forgetest.Config{Limits: forgetest.Limits{PointsPerMinute: 300, PrimaryPerHour: 5000, RegistrationsPerHour: 10000}},
		nil, func(c *Config) { c.Limits.PointsPerMinute = 300 })
	var wg sync.WaitGroup
	for i := range 55 {
		wg.Go(func() {
			spec := forge.RunnerSpec{Scope: s.Scope(s.repo), Name: fmt.Sprintf("gs-%d-1", i), Labels: []string{"gpu"}}
			if _, err := s.RegisterRunner(t.Context(), spec); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.hub.Stats().Rejected; len(n) != 0 {
		t.Errorf("refused: %v", n)
	}
	if got := s.Budget(); got.Remaining != 300-55*5-5 || len(got.Primary) == 0 {
		t.Errorf("the budget tells %+v", got)
	}
}

// TestDiagnose takes one thing after the other away and looks for the finding.
func TestDiagnose(t *testing.T) {
	hooked := forgetest.Config{WebhookURL: "https://ci.example.org/hook"}
	level := func(found []Finding, check string) Level {
		for _, f := range found {
			if f.Check == check {
				return f.Level
			}
		}
		return ""
	}
	permissions := func(change func(map[string]string)) forgetest.Settings {
		m := map[string]string{
			"actions": "read", "administration": "write", "checks": "write", "contents": "read", "members": "read", "metadata": "read",
		}
		change(m)
		return forgetest.Settings{Permissions: &m}
	}
	for name, c := range map[string]struct {
		set   forgetest.Settings
		check string
		want  Level
	}{
		"all well": {permissions(func(map[string]string) {}), "permission checks: write of the App", Pass},
		"checks read only": {
			permissions(func(m map[string]string) { m["checks"] = "read" }),
			"permission checks: write of the App", Fail,
		},
		"no contents": {permissions(func(m map[string]string) { delete(m, "contents") }), "permission contents: read of the App", Fail},
		"no administration": {
			permissions(func(m map[string]string) { delete(m, "administration") }),
			"permission administration: write of the App", Fail,
		},
		"no members, and no teams": {
			permissions(func(m map[string]string) { delete(m, "members") }),
			"permission members: read of the App", Warn,
		},
		"more than needed": {permissions(func(m map[string]string) { m["actions"] = "write" }), "permission actions: read of the App", Pass},
		"write, of no use": {permissions(func(m map[string]string) { m["actions"] = "write" }), "permission actions: write of the App", ""},
		"no job events":    {forgetest.Settings{Events: &[]string{"check_run"}}, "event workflow_job", Fail},
		"no check events":  {forgetest.Settings{Events: &[]string{"workflow_job"}}, "event check_run", Warn},
		"no webhook":       {forgetest.Settings{WebhookURL: new(string)}, "webhook", Fail},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, hooked, nil, nil)
			s.hub.Configure(c.set)
			found := s.Diagnose(t.Context(), DiagnoseOptions{Checks: true})
			if got := level(found, c.check); got != c.want {
				t.Errorf("%s: %q, want %q in %+v", c.check, got, c.want, found)
			}
			for _, f := range found {
				if f.Level != Pass && (f.Mend == "" || f.Why == "" || f.Text == "") {
					t.Errorf("%+v does not say enough", f)
				}
			}
		})
	}
	t.Run("pull", func(t *testing.T) {
		s := newSite(t, forgetest.Config{WebhookURL: "http://ci.example.org"}, nil, nil)
		if got := level(s.Diagnose(t.Context(), DiagnoseOptions{Pull: true}), "webhook"); got != Pass {
			t.Errorf("got %q", got)
		}
		s.hub.Configure(forgetest.Settings{WebhookURL: new(string)})
		if got := level(s.Diagnose(t.Context(), DiagnoseOptions{Pull: true}), "webhook"); got != Fail {
			t.Errorf("without an address: %q", got)
		}
	})
	t.Run("jobs are run again", func(t *testing.T) {
		s := newSite(t, hooked, nil, nil)
		for granted, want := range map[string]Level{"read": Fail, "write": Pass} {
			s.hub.Configure(permissions(func(m map[string]string) { m["actions"] = granted }))
			found := s.Diagnose(t.Context(), DiagnoseOptions{Checks: true, Rerun: true})
			for _, who := range []string{"the App", "the installation on octo-org"} {
				if got := level(found, "permission actions: write of "+who); got != want {
					t.Errorf("with %s, %s: %q, want %q in %+v", granted, who, got, want, found)
				}
			}
		}
	})
	t.Run("another key", func(t *testing.T) {
		s := newSite(t, hooked, nil, func(c *Config) { c.PrivateKey = testKey(t) })
		if found := s.Diagnose(t.Context(), DiagnoseOptions{}); len(found) != 1 || found[0].Level != Fail {
			t.Errorf("got %+v", found)
		}
	})
	t.Run("runner group", func(t *testing.T) {
		s := newSite(t, hooked, nil, func(c *Config) { c.RunnerScope, c.RunnerGroup = ScopeOrganisation, "nobody" })
		if got := level(s.Diagnose(t.Context(), DiagnoseOptions{}), "runner group nobody of octo-org"); got != Fail {
			t.Errorf("got %q", got)
		}
	})
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for off, want := range map[time.Duration]Level{
		0: Pass, 5 * time.Second: Pass, -5 * time.Second: Pass, 2 * time.Minute: Fail, -2 * time.Minute: Fail,
	} {
		h := reply(200, "", "Date", now.Add(-off).Format("Mon, 02 Jan 2006 15:04:05 GMT")).Header
		if got := clock(h, now, now.Add(time.Second)); got.Level != want {
			t.Errorf("%v off: %+v", off, got)
		}
	}
	if got := clock(reply(200, "", "Date", "").Header, now, now); got.Level != Warn {
		t.Errorf("without a date: %+v", got)
	}
}
