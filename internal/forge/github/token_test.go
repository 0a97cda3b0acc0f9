package github

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver"
)

// TestLongWaitNeedsANewToken has calls wait for a limit past the end of their
// token: they go with a new one, and GitHub sees none that has ended.
func TestLongWaitNeedsANewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		born := make(map[string]time.Time)
		late := 0
		s := &script{}
		s.answer = func(n int, req *http.Request) (*http.Response, error) {
			token := req.Header.Get("Authorization")
			if _, ok := born[token]; !ok {
				born[token] = time.Now()
			}
			switch {
			case n == 1:
				return reply(200, goodJob, "X-RateLimit-Limit", "5000", "X-RateLimit-Remaining", "0",
					"X-RateLimit-Reset", fmt.Sprint(time.Now().Add(90*time.Minute).Unix())), nil
			case time.Since(born[token]) > time.Hour:
				late++
				return reply(401, `{"message":"Bad credentials"}`), nil
			}
			return reply(200, goodJob), nil
		}
		f := newForge(t, s, nil)
		var wg sync.WaitGroup
		for i := range 21 {
			wg.Go(func() {
				if _, err := f.Job(t.Context(), octo, 5); err != nil {
					t.Error(err)
				}
			})
			if i == 0 {
				wg.Wait()
			}
		}
		wg.Wait()
		if late != 0 || len(s.calls) != 21 || s.tokens != 2 {
			t.Errorf("%d calls with a token that had ended; %d calls, %d tokens", late, len(s.calls), s.tokens)
		}
		snap := f.Budget()
		if snap.InFlight != 0 || snap.Classes[ClassRead].Calls != 21 {
			t.Errorf("the budget tells %+v", snap)
		}
	})
}

// TestOneNewTokenForAllRefused has a token refused to many calls at once: the
// one that replaces it is not thrown away by those who hear of it later.
func TestOneNewTokenForAllRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		sent, tokens := 0, 0
		f := newForge(t, roundTrip(func(req *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if strings.HasSuffix(req.URL.Path, "/access_tokens") {
				tokens++
				return reply(201, fmt.Sprintf(`{"token":"t%d","expires_at":%q}`, tokens, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))), nil
			}
			if req.Header.Get("Authorization") != "Bearer t1" {
				return reply(200, goodJob), nil
			}
			sent++
			wait := time.Duration(sent) * time.Second
			mu.Unlock()
			time.Sleep(wait)
			mu.Lock()
			return reply(401, `{"message":"Bad credentials"}`), nil
		}), nil)
		if err := f.Prepare(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 9 {
			wg.Go(func() {
				if _, err := f.Job(t.Context(), octo, 5); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if tokens != 2 {
			t.Errorf("%d tokens, want the first and one instead of it", tokens)
		}
	})
}

// TestAppTokenRefused shows that a token of the App's own that GitHub refuses,
// as after a jump of the clock, is signed anew, for the fetch of an
// installation's token too.
func TestAppTokenRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad appToken
		f := newForge(t, roundTrip(func(req *http.Request) (*http.Response, error) {
			if !strings.HasSuffix(req.URL.Path, "/access_tokens") {
				return reply(200, goodJob), nil
			}
			if req.Header.Get("Authorization") == "Bearer "+bad.value {
				return reply(401, `{"message":"Bad credentials"}`), nil
			}
			return reply(201, fmt.Sprintf(`{"token":"t","expires_at":%q}`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))), nil
		}), nil)
		var err error
		if bad, err = f.app.token(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Job(t.Context(), octo, 5); err != nil {
			t.Errorf("%s: %v", gpuserver.KindOf(err), err)
		}
	})
}
