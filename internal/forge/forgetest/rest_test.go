package forgetest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWhoMayCall(t *testing.T) {
	b := start(t, Config{TokenLife: time.Hour})
	stranger := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	now := time.Now().Unix()
	for _, c := range []struct {
		name, path, token string
		want              int
	}{
		{"the App", "/app", b.appToken(), 200},
		{"under /api/v3", "/api/v3/app", b.appToken(), 200},
		{"nobody", "/app", "", 401},
		{"another key", "/app", b.jwt(stranger, nil), 401},
		{"expired", "/app", b.jwt(b.cfg.PrivateKey, obj{"exp": now - 10}), 401},
		{"valid for too long", "/app", b.jwt(b.cfg.PrivateKey, obj{"exp": now + 900}), 401},
		{"issued in the future", "/app", b.jwt(b.cfg.PrivateKey, obj{"iat": now + 300}), 401},
		{"another App", "/app", b.jwt(b.cfg.PrivateKey, obj{"iss": "1"}), 404},
		{"client id as issuer", "/app", b.jwt(b.cfg.PrivateKey, obj{"iss": b.app.ClientID}), 200},
		{"number as issuer", "/app", b.jwt(b.cfg.PrivateKey, obj{"iss": b.app.ID}), 200},
		{"installation's token at the App", "/app", b.token(b.repo.InstallationID), 401},
		{"App's token at a repository", "/repos/octo-org/hello", b.appToken(), 401},
		{"made-up token", "/repos/octo-org/hello", "ghs_x", 401},
		{"unknown path", "/nonsense", b.token(b.repo.InstallationID), 404},
	} {
		if a := b.do("GET", c.path, c.token, nil); a.status != c.want || (a.status != 200 && a.str("message") == "") {
			t.Errorf("%s: status %d, want %d: %s", c.name, a.status, c.want, a.body)
		}
	}
}

func TestTokensExpireAndAreLimited(t *testing.T) {
	b := start(t, Config{TokenLife: time.Nanosecond})
	b.call("GET", "/repos/octo-org/hello", nil).want(t, http.StatusUnauthorized)
	b = start(t, Config{})
	must(b.AddRepo(Repository{Name: "octo-org/second", Private: true}))(t)
	must(b.AddRepo(Repository{Name: "else/private", Private: true}))(t)
	must(b.AddRepo(Repository{Name: "else/public"}))(t)
	path := "/app/installations/" + raw64(b.repo.InstallationID) + "/access_tokens"
	a := b.do("POST", path, b.appToken(), obj{"repositories": []string{"second"}, "permissions": obj{"contents": "read", "metadata": "read"}})
	a.want(t, http.StatusCreated)
	token := a.str("token")
	for path, want := range map[string]int{
		"/repos/octo-org/second": 200, "/repos/octo-org/hello": 404, "/repos/else/private": 404, "/repos/else/public": 200,
		"/repos/octo-org/second/actions/runs": 403,
	} {
		b.do("GET", path, token, nil).want(t, want)
	}
	b.do("POST", path, b.appToken(), obj{"permissions": obj{"contents": "write"}}).want(t, http.StatusUnprocessableEntity)
	b.do("POST", path, b.appToken(), obj{"repositories": []string{"none"}}).want(t, http.StatusUnprocessableEntity)
	fewer := defaultPermissions()
	delete(fewer, "checks")
	b.Configure(Settings{Permissions: &fewer})
	a = b.call("POST", "/repos/octo-org/hello/check-runs", obj{"name": "n", "head_sha": b.repo.HeadSHA})
	a.want(t, http.StatusForbidden)
	if got := a.header.Get("X-Accepted-GitHub-Permissions"); got != "checks=write" {
		t.Errorf("X-Accepted-GitHub-Permissions: %q", got)
	}
}

func TestContents(t *testing.T) {
	b := start(t, Config{})
	const path = "/repos/octo-org/hello/contents/.cirun.yml"
	read := func(query string) string {
		a := b.call("GET", path+query, nil)
		a.want(t, 200)
		text, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(a.str("content"), "\n", ""))
		b.check(err)
		return string(text)
	}
	old := b.repo.HeadSHA
	etag := b.call("GET", path, nil).header.Get("ETag")
	used := func() int {
		a := b.call("GET", "/rate_limit", nil)
		var o struct {
			Resources struct{ Core struct{ Used int } }
		}
		a.into(t, &o)
		return o.Resources.Core.Used
	}
	limits := Limits{PrimaryPerHour: 100}
	b.Configure(Settings{Limits: &limits})
	before := used()
	a := b.call("GET", path, nil, "If-None-Match", etag)
	a.want(t, http.StatusNotModified)
	if len(a.body) > 0 || used() != before {
		t.Errorf("an unchanged answer has %d bytes and cost %d", len(a.body), used()-before)
	}
	must(b.SetFile(FileChange{Repo: "octo-org/hello", Path: ".cirun.yml", Content: []byte("new\n")}))(t)
	b.call("GET", path, nil, "If-None-Match", etag).want(t, 200)
	must(b.SetFile(FileChange{Repo: "octo-org/hello", Branch: "topic", Path: ".cirun.yml", Content: []byte("topic\n")}))(t)
	got := []string{read(""), read("?ref=" + old), read("?ref=topic"), read("?ref=refs/heads/main")}
	if diff := cmp.Diff([]string{"new\n", "runners: []\n", "topic\n", "new\n"}, got); diff != "" {
		t.Errorf("file by ref (-want +got):\n%s", diff)
	}
	if a := b.call("GET", path, nil, "Accept", "application/vnd.github.raw+json"); string(a.body) != "new\n" {
		t.Errorf("raw: %q", a.body)
	}
	b.call("GET", path+"?ref=none", nil).want(t, http.StatusNotFound)
	b.call("GET", "/repos/octo-org/hello/contents/none", nil).want(t, http.StatusNotFound)
	must(b.AddRepo(Repository{Name: "mallory/fork", ForkOf: "octo-org/hello"}))(t)
	evil := must(b.SetFile(FileChange{Repo: "mallory/fork", Path: ".cirun.yml", Content: []byte("evil\n")}))(t)
	if got := read("?ref=" + evil); got != "evil\n" {
		t.Errorf("a fork's commit through its parent: %q; GitHub gives the fork's file", got)
	}
	if got := read(""); got != "new\n" {
		t.Errorf("the parent's default branch changed with the fork: %q", got)
	}
}

func TestAnUnchangedRunIsNotSentAgain(t *testing.T) {
	b := start(t, Config{})
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	path := "/repos/octo-org/hello/actions/runs/" + raw64(run.ID)
	etag := b.call("GET", path, nil).header.Get("ETag")
	b.call("GET", path, nil, "If-None-Match", etag).want(t, http.StatusNotModified)
	b.check(b.FinishJob(run.Jobs[0].ID, "success"))
	b.call("GET", path, nil, "If-None-Match", etag).want(t, http.StatusOK)
}

func TestCallFaults(t *testing.T) {
	b := start(t, Config{})
	b.token(b.repo.InstallationID)
	const path = "/repos/octo-org/hello"
	for _, c := range []struct {
		kind   FaultKind
		want   int
		header string
	}{
		{FaultPrimary, 403, "X-Ratelimit-Reset"},
		{FaultSecondary, 403, "Retry-After"},
		{Fault429, 429, "Retry-After"},
		{Fault500, 500, ""},
		{Fault502, 502, ""},
		{Fault503, 503, ""},
	} {
		b.SetFaults([]Fault{{Kind: c.kind, Method: "GET", Path: "/repos/*/hello", Skip: 1, Count: 1, RetryAfter: 7 * time.Second}})
		var got []int
		for range 3 {
			a := b.call("GET", path, nil)
			got = append(got, a.status)
			if c.header != "" && a.status != 200 && a.header.Get(c.header) == "" {
				t.Errorf("%s without %s", c.kind, c.header)
			}
			if v := a.header.Get("Retry-After"); v != "" && v != "7" {
				t.Errorf("%s: Retry-After %s, want 7", c.kind, v)
			}
			if r := a.header.Get("X-RateLimit-Remaining"); (c.kind == FaultPrimary && a.status == 403) != (r == "0") {
				t.Errorf("%s: status %d with %s remaining", c.kind, a.status, r)
			}
		}
		if diff := cmp.Diff([]int{200, c.want, 200}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.kind, diff)
		}
	}
	if b.Stats().Faults["429"] != 1 {
		t.Errorf("faults: %v", b.Stats().Faults)
	}
}

func TestACutBeforeAndAfterTheEffect(t *testing.T) {
	b := start(t, Config{})
	token := b.token(b.repo.InstallationID)
	for _, after := range []bool{false, true} {
		b.SetFaults([]Fault{{Kind: FaultCut, Path: "*/generate-jitconfig", After: after}})
		_, err := b.try("POST", "/repos/octo-org/hello/actions/runners/generate-jitconfig", token, obj{
			"name": "r", "runner_group_id": 1, "labels": []string{"x"},
		})
		if !errors.Is(err, io.EOF) {
			t.Errorf("a cut gave %v, want an EOF", err)
		}
		if got := len(b.Runners()) == 1; got != after {
			t.Errorf("cut after the effect: %v; registered: %v", after, got)
		}
	}
}

func TestLatencyAndDelay(t *testing.T) {
	b := start(t, Config{Latency: 30 * time.Millisecond})
	b.token(b.repo.InstallationID)
	b.SetFaults([]Fault{{Kind: FaultDelay, Delay: 40 * time.Millisecond}})
	began := time.Now()
	b.call("GET", "/repos/octo-org/hello", nil).want(t, 200)
	if took := time.Since(began); took < 70*time.Millisecond {
		t.Errorf("took %s, want at least latency and delay: 70ms", took)
	}
}

func TestLimitsAreEnforcedAndCounted(t *testing.T) {
	for _, c := range []struct {
		name   string
		limits Limits
		passes int // of 12 calls
		as     string
	}{
		{"none", Limits{}, 12, ""},
		{"points", Limits{PointsPerMinute: 5 + 5*4}, 4, "points"}, // the token's call costs 5, too
		{"content", Limits{ContentPerMinute: 3}, 3, "content"},
		{"content per hour", Limits{ContentPerHour: 2}, 2, "content"},
		{"primary", Limits{PrimaryPerHour: 6}, 6, "primary"},
		{"429", Limits{PrimaryPerHour: 6, TooManyRequests: true}, 6, "primary"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, Config{Limits: c.limits})
			refused := 0
			for range 12 {
				a := b.call("POST", "/repos/octo-org/hello/check-runs", obj{"name": "n", "head_sha": b.repo.HeadSHA})
				if a.status == http.StatusCreated {
					continue
				}
				refused++
				if want := map[bool]int{false: 403, true: 429}[c.limits.TooManyRequests]; a.status != want {
					t.Errorf("refused with %d, want %d", a.status, want)
				}
				wait, _ := strconv.Atoi(a.header.Get("Retry-After"))
				if c.as != "primary" && (wait < 1 || wait > 3600) {
					t.Errorf("Retry-After: %q", a.header.Get("Retry-After"))
				}
			}
			if refused != 12-c.passes || b.Stats().Rejected[c.as] != int64(refused) {
				t.Errorf("%d refused, want %d; counted: %v", refused, 12-c.passes, b.Stats().Rejected)
			}
		})
	}
}

func TestTooManyCallsAtOnceAreRefused(t *testing.T) {
	b := start(t, Config{})
	b.token(b.repo.InstallationID)
	limits := Limits{Concurrent: 2}
	b.Configure(Settings{Limits: &limits})
	b.SetFaults([]Fault{{Kind: FaultDelay, Path: "*/contents/*", Delay: time.Hour}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 2 { // stay under way until the test ends
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, "GET", b.url+"/repos/octo-org/hello/contents/a", nil)
			if err == nil {
				_, err = b.http.Do(req)
			}
			if err == nil {
				t.Error("a call that waits for an hour was answered")
			}
		})
	}
	for end := time.Now().Add(generous); b.call("GET", "/repos/octo-org/hello", nil).status == http.StatusOK; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no call was refused beside two under way, limit 2")
		}
	}
	if b.Stats().Rejected["concurrent"] == 0 {
		t.Errorf("rejected: %v", b.Stats().Rejected)
	}
}

func TestCallsAreTracedToTheirJob(t *testing.T) {
	b := start(t, Config{})
	run := b.dispatch(JobSpec{Labels: []string{"x"}}, JobSpec{Labels: []string{"y"}})
	b.call("GET", "/repos/octo-org/hello/actions/runs/"+raw64(run.ID), nil)
	b.call("GET", "/repos/octo-org/hello/contents/.cirun.yml", nil)
	b.takeJob(b.online("r", "x"))
	b.call("GET", "/repos/octo-org/hello/actions/jobs/"+raw64(run.Jobs[0].ID), nil)
	b.call("GET", "/repos/octo-org/hello/actions/jobs/"+raw64(run.Jobs[1].ID), nil)
	tr := must(b.Trace(run.Jobs[0].ID))(t)
	var got []string
	for _, c := range tr.Calls {
		got = append(got, c.Route[strings.LastIndex(c.Route, "/"):])
	}
	if diff := cmp.Diff([]string{"/{run_id}", "/generate-jitconfig", "/{job_id}"}, got); diff != "" {
		t.Errorf("calls of the job (-want +got):\n%s", diff)
	}
	if tr.RoundTrips != 3 {
		t.Errorf("%d round trips, want 3", tr.RoundTrips)
	}
	if st := b.Stats(); st.Total != 6 || st.TotalPoints != 5+1+1+5+1+1 {
		t.Errorf("stats: %d calls, %d points", st.Total, st.TotalPoints)
	}
	b.ResetStats()
	if st := b.Stats(); st.Total != 0 || len(b.Calls(0)) != 0 {
		t.Errorf("after a reset: %+v", st)
	}
}

func TestJobLog(t *testing.T) {
	b := start(t, Config{})
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	c := b.online("r", "x")
	j := b.takeJob(c)
	must(c.Log(t.Context(), j.ID, 0, []byte("text")))(t)
	path := "/repos/octo-org/hello/actions/jobs/" + raw64(run.Jobs[0].ID) + "/logs"
	b.call("GET", path, nil).want(t, http.StatusNotFound)
	b.check(b.FinishJob(j.ID, "success"))
	a := b.call("GET", path, nil)
	a.want(t, http.StatusFound)
	at := strings.TrimPrefix(a.header.Get("Location"), b.url)
	if a := b.do("GET", at, "", nil); string(a.body) != "text" {
		t.Errorf("log: %d %q", a.status, a.body)
	}
	b.do("GET", at+"0", "", nil).want(t, http.StatusNotFound)
}
