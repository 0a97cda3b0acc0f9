package github

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
)

var newKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func testKey(t testing.TB) []byte {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

// script answers calls without a network, and remembers them.
type script struct {
	mu     sync.Mutex
	calls  []string
	answer func(n int, req *http.Request) (*http.Response, error) // n counts calls but those for tokens
	tokens int
	life   time.Duration // of tokens; 0: an hour
}

// RoundTrip implements http.RoundTripper.
func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasSuffix(req.URL.Path, "/access_tokens") {
		s.tokens++
		life := s.life
		if life == 0 {
			life = time.Hour
		}
		return reply(201, fmt.Sprintf(`{"token":"t%d","expires_at":%q}`, s.tokens, time.Now().Add(life).UTC().Format(time.RFC3339))), nil
	}
	s.calls = append(s.calls, req.Method+" "+req.URL.Path+" "+req.Header.Get("Authorization"))
	return s.answer(len(s.calls), req)
}

// reply is an answer with headers in pairs.
func reply(status int, body string, headers ...string) *http.Response {
	h := http.Header{"Date": {time.Now().UTC().Format(http.TimeFormat)}}
	for i := 0; i+1 < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}
}

var (
	octo     = forge.Repo{Name: "octo/hello", InstallationID: 3}
	octoSpec = forge.RunnerSpec{Scope: forge.Scope{Repo: octo}, Name: "gs-1-1", Labels: []string{"x"}}
)

const (
	goodJob = `{"id":5,"run_id":6,"status":"queued"}`
	goodJIT = `{"runner":{"id":23},"encoded_jit_config":"c2VjcmV0"}`
)

// TestAnswers gives each kind of answer to a read, a registration and a delete,
// and looks at the error and at how often the call was made.
func TestAnswers(t *testing.T) {
	const secondary = `{"message":"You have exceeded a secondary rate limit."}`
	cut := errors.New("connection reset by peer")
	for _, c := range []struct {
		name                string
		answer              func() (*http.Response, error)
		get, post, del      gpuserver.Kind
		getCalls, postCalls int
		wantText            string
	}{
		{
			"bad gateway", func() (*http.Response, error) { return reply(502, "<html>"), nil },
			gpuserver.KindUnavailable, gpuserver.KindUnavailable, gpuserver.KindUnavailable, 3, 1, "tried again",
		},
		{
			"cut", func() (*http.Response, error) { return nil, cut },
			gpuserver.KindUnavailable, gpuserver.KindUnavailable, gpuserver.KindUnavailable, 3, 1, "cannot be reached",
		},
		{"cut in the answer", func() (*http.Response, error) {
			r := reply(201, "")
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader(goodJIT[:20]), failing{cut}))
			return r, nil
		}, gpuserver.KindUnavailable, gpuserver.KindUnavailable, gpuserver.KindUnavailable, 3, 1, "cannot be reached"},
		{
			"not JSON", func() (*http.Response, error) { return reply(200, "<html>"), nil },
			gpuserver.KindUnavailable, gpuserver.KindUnavailable, "", 3, 1, "cannot be reached",
		},
		{
			"empty", func() (*http.Response, error) { return reply(201, "{}"), nil },
			"", gpuserver.KindUnavailable, "", 1, 1, "",
		},
		{"forbidden", func() (*http.Response, error) {
			return reply(403, `{"message":"Resource not accessible by integration"}`,
				"X-Accepted-GitHub-Permissions", "administration=write", "X-RateLimit-Remaining", "10", "X-RateLimit-Limit", "5000"), nil
		}, gpuserver.KindRefused, gpuserver.KindRefused, gpuserver.KindRefused, 1, 1, "administration=write"},
		{
			"not found", func() (*http.Response, error) { return reply(404, `{"message":"Not Found"}`), nil },
			gpuserver.KindNotFound, gpuserver.KindNotFound, "", 1, 1, "no such thing",
		},
		{
			"conflict", func() (*http.Response, error) { return reply(409, `{"message":"Already exists"}`), nil },
			gpuserver.KindConflict, gpuserver.KindConflict, gpuserver.KindConflict, 1, 1, "exists already",
		},
		{
			"unprocessable", func() (*http.Response, error) { return reply(422, `{"message":"Bad"}`), nil },
			gpuserver.KindInvalid, gpuserver.KindInvalid, gpuserver.KindConflict, 1, 1, "wrong",
		},
		{
			"unauthorised, also with a new token", func() (*http.Response, error) { return reply(401, `{"message":"Bad credentials"}`), nil },
			gpuserver.KindRefused, gpuserver.KindRefused, gpuserver.KindRefused, 2, 2, "private key",
		},
		{"moved", func() (*http.Response, error) {
			return reply(307, "{}", "Location", "https://elsewhere.example.org/"), nil
		}, gpuserver.KindNotFound, gpuserver.KindNotFound, gpuserver.KindNotFound, 1, 1, "moved"},
		{
			"secondary limit", func() (*http.Response, error) { return reply(403, secondary, "Retry-After", "30"), nil },
			gpuserver.KindLimited, gpuserver.KindLimited, gpuserver.KindLimited, 1, 1, "rate limit",
		},
		{
			"429", func() (*http.Response, error) { return reply(429, "{}", "Retry-After", "30"), nil },
			gpuserver.KindLimited, gpuserver.KindLimited, gpuserver.KindLimited, 1, 1, "rate limit",
		},
		{"primary limit", func() (*http.Response, error) {
			return reply(403, `{"message":"API rate limit exceeded"}`, "X-RateLimit-Limit", "5000", "X-RateLimit-Remaining", "0",
				"X-RateLimit-Reset", fmt.Sprint(time.Now().Add(time.Minute).Unix())), nil
		}, gpuserver.KindLimited, gpuserver.KindLimited, gpuserver.KindLimited, 1, 1, "rate limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for method, do := range map[string]func(context.Context, *Forge) error{
				"GET":    func(ctx context.Context, f *Forge) error { _, err := f.Job(ctx, octo, 5); return err },
				"POST":   func(ctx context.Context, f *Forge) error { _, err := f.RegisterRunner(ctx, octoSpec); return err },
				"DELETE": func(ctx context.Context, f *Forge) error { return f.DeleteRunner(ctx, octoSpec.Scope, 23) },
			} {
				kind, calls := c.post, c.postCalls
				switch method {
				case "GET":
					kind, calls = c.get, c.getCalls
				case "DELETE":
					kind = c.del
				}
				synctest.Test(t, func(t *testing.T) {
					s := &script{answer: func(int, *http.Request) (*http.Response, error) { return c.answer() }}
					err := do(t.Context(), newForge(t, s, nil))
					if gpuserver.KindOf(err) != kind || len(s.calls) != calls {
						t.Errorf("%s: %d calls, %v; want %d, %s", method, len(s.calls), err, calls, kind)
					}
					if err != nil && method != "DELETE" && !strings.Contains(gpuserver.PublicText(err), c.wantText) {
						t.Errorf("%s: the text is %q, want %q in it", method, gpuserver.PublicText(err), c.wantText)
					}
					if limit, ok := errors.AsType[*forge.LimitError](err); ok != (kind == gpuserver.KindLimited) || ok && !limit.Until.After(time.Now()) {
						t.Errorf("%s: limit %v", method, limit)
					}
				})
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestReadRecovers shows that a read is made again, a bit later each time.
func TestReadRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(n int, _ *http.Request) (*http.Response, error) {
			if n < 3 {
				return reply(500, "{}"), nil
			}
			return reply(200, goodJob), nil
		}}
		start := time.Now()
		if job, err := newForge(t, s, nil).Job(t.Context(), octo, 5); err != nil || job.ID != 5 {
			t.Errorf("%+v, %v", job, err)
		}
		if d := time.Since(start); d < retryPause+2*retryPause || d > 2*3*retryPause {
			t.Errorf("the pauses took %v", d)
		}
	})
}

// TestSilentServer shows that a call ends though no answer ever comes, with an
// unknown outcome, and gives its place in the budget back.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := roundTrip(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		f := newForge(t, s, func(c *Config) { c.CallTimeout = 7 * time.Second })
		f.tokens.m = map[int64]*installationToken{3: {value: "t", until: time.Now().Add(time.Hour)}}
		start := time.Now()
		if _, err := f.RegisterRunner(t.Context(), octoSpec); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("it took %v", d)
		}
		if n := f.Budget().InFlight; n != 0 {
			t.Errorf("%d calls are still counted as in flight", n)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (r roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return r(req) }

// TestLimitHoldsBack shows that after a limit nothing is sent until its end.
func TestLimitHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(n int, _ *http.Request) (*http.Response, error) {
			if n == 1 {
				return reply(429, "{}", "Retry-After", "30"), nil
			}
			return reply(200, goodJob), nil
		}}
		f := newForge(t, s, nil)
		start := time.Now()
		if _, err := f.Job(t.Context(), octo, 5); gpuserver.KindOf(err) != gpuserver.KindLimited {
			t.Errorf("got %v", err)
		}
		if snap := f.Budget(); !snap.Secondary || snap.Until.Sub(start) < 30*time.Second {
			t.Errorf("the snapshot tells %+v", snap)
		}
		if _, err := f.Job(t.Context(), octo, 5); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d < 30*time.Second || d > 32*time.Second {
			t.Errorf("the second call went after %v", d)
		}
	})
}

// TestTokens looks at which token each call carries over some hours.
func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(int, *http.Request) (*http.Response, error) { return reply(200, goodJob), nil }}
		f := newForge(t, s, nil)
		var wg sync.WaitGroup
		for range 20 { // one token for all
			wg.Go(func() {
				if _, err := f.Job(t.Context(), octo, 5); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s.tokens != 1 {
			t.Errorf("%d tokens for calls at the same time", s.tokens)
		}
		for range 16 * 4 {
			time.Sleep(14*time.Minute + 30*time.Second)
			start := time.Now()
			if _, err := f.Job(t.Context(), octo, 5); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("a call waited %v", d)
			}
			synctest.Wait() // for the renewal
		}
		if hours := 15; s.tokens < hours || s.tokens > 2*hours {
			t.Errorf("%d tokens in %d hours", s.tokens, hours)
		}
		for _, c := range s.calls {
			if !strings.Contains(c, "Bearer t") {
				t.Errorf("%s carries no token", c)
			}
		}
	})
}

// TestTokenRenewedAfter401 shows that a token that GitHub no longer takes is
// replaced, and the call made again, a POST too: it was not carried out.
func TestTokenRenewedAfter401(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(n int, req *http.Request) (*http.Response, error) {
			if req.Header.Get("Authorization") == "Bearer t1" {
				return reply(401, `{"message":"Bad credentials"}`), nil
			}
			return reply(201, goodJIT), nil
		}}
		if _, err := newForge(t, s, nil).RegisterRunner(t.Context(), octoSpec); err != nil {
			t.Error(err)
		}
		if s.tokens != 2 || len(s.calls) != 2 {
			t.Errorf("%d tokens, %d calls", s.tokens, len(s.calls))
		}
	})
}

// TestLeaderGivesUp shows that callers who share a call outlive the one who
// happened to make it.
func TestLeaderGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := make(chan struct{})
		var once sync.Once
		f := newForge(t, roundTrip(func(req *http.Request) (*http.Response, error) {
			leads := false
			once.Do(func() { leads = true })
			if leads {
				close(first)
				<-req.Context().Done()
				return nil, req.Context().Err()
			}
			return reply(200, `{"id":6,"run_attempt":1}`), nil
		}), nil)
		f.tokens.m = map[int64]*installationToken{3: {value: "t", until: time.Now().Add(time.Hour)}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := f.Run(ctx, octo, 6, 1); !errors.Is(err, context.Canceled) {
				t.Errorf("the one who gave up: %v", err)
			}
		})
		<-first
		wg.Go(func() {
			if run, err := f.Run(t.Context(), octo, 6, 1); err != nil || run.ID != 6 {
				t.Errorf("the one who did not: %+v, %v", run, err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

// TestFollowerLeaves shows that who waits for another's call waits no longer
// than it has time for, though the other is patient.
func TestFollowerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(n int, _ *http.Request) (*http.Response, error) {
			if n == 1 {
				return reply(429, "{}", "Retry-After", "600"), nil
			}
			return reply(200, `{"id":6,"run_attempt":1}`), nil
		}}
		f := newForge(t, s, nil)
		if _, err := f.Job(t.Context(), octo, 5); gpuserver.KindOf(err) != gpuserver.KindLimited {
			t.Fatalf("got %v", err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if run, err := f.Run(t.Context(), octo, 6, 1); err != nil || run.ID != 6 {
				t.Errorf("the patient one: %+v, %v", run, err)
			}
		})
		synctest.Wait()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := f.Run(ctx, octo, 6, 1); !errors.Is(err, context.DeadlineExceeded) || gpuserver.KindOf(err) != gpuserver.KindUnavailable {
			t.Errorf("the other: %v", err)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("it waited %v", d)
		}
		wg.Wait()
	})
}

// TestRunCached shows that an attempt is asked for once, and a latest one anew.
func TestRunCached(t *testing.T) {
	s := &script{answer: func(int, *http.Request) (*http.Response, error) { return reply(200, `{"id":6,"run_attempt":1}`), nil }}
	f := newForge(t, s, nil)
	for _, attempt := range []int{1, 1, 2, 0, 0, 1} {
		if _, err := f.Run(t.Context(), octo, 6, attempt); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Run(t.Context(), forge.Repo{Name: "octo/other", InstallationID: 3}, 6, 1); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GET /repos/octo/hello/actions/runs/6/attempts/1 Bearer t1", "GET /repos/octo/hello/actions/runs/6/attempts/2 Bearer t1",
		"GET /repos/octo/hello/actions/runs/6 Bearer t1", "GET /repos/octo/hello/actions/runs/6 Bearer t1",
		"GET /repos/octo/other/actions/runs/6/attempts/1 Bearer t1",
	}
	if diff := cmp.Diff(want, s.calls); diff != "" {
		t.Error(diff)
	}
}

// TestRedirects shows that a read follows a renamed repository on the same host
// and nothing follows to another one.
func TestRedirects(t *testing.T) {
	s := &script{answer: func(n int, req *http.Request) (*http.Response, error) {
		if n == 1 {
			return reply(301, "{}", "Location", "http://127.0.0.1:1/repositories/7/actions/jobs/5"), nil
		}
		return reply(200, goodJob), nil
	}}
	if job, err := newForge(t, s, nil).Job(t.Context(), octo, 5); err != nil || job.ID != 5 {
		t.Errorf("%+v, %v", job, err)
	}
	want := []string{"GET /repos/octo/hello/actions/jobs/5 Bearer t1", "GET /repositories/7/actions/jobs/5 Bearer t1"}
	if diff := cmp.Diff(want, s.calls); diff != "" {
		t.Error(diff)
	}
}

func TestRegisterRunnerRefuses(t *testing.T) {
	s := &script{}
	f := newForge(t, s, nil)
	for name, spec := range map[string]forge.RunnerSpec{
		"no name":    {Scope: octoSpec.Scope, Labels: []string{"x"}},
		"long name":  {Scope: octoSpec.Scope, Name: strings.Repeat("n", 65), Labels: []string{"x"}},
		"no label":   {Scope: octoSpec.Scope, Name: "n"},
		"101 labels": {Scope: octoSpec.Scope, Name: "n", Labels: make([]string, 101)},
		"odd owner":  {Scope: forge.Scope{Repo: forge.Repo{Name: "../x"}}, Name: "n", Labels: []string{"x"}},
	} {
		if _, err := f.RegisterRunner(t.Context(), spec); gpuserver.KindOf(err) != gpuserver.KindInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if len(s.calls) != 0 {
		t.Errorf("GitHub was asked: %v", s.calls)
	}
}
