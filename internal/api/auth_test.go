package api_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
)

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func overSocket(path string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
}

var tokens = []api.Token{
	{Name: "v", Role: api.RoleViewer, Hash: api.HashToken("viewer")},
	{Name: "o", Role: api.RoleOperator, Hash: strings.ToUpper(api.HashToken("operator"))},
	{Name: "a", Role: api.RoleAdmin, Hash: api.HashToken("admin")},
}

func TestRoles(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	s := serve(t, api.Options{Tokens: tokens, Metrics: page, Pages: page})
	for _, tc := range []struct {
		method, path string
		need         api.Role
	}{
		{"GET", "/api/v1/jobs", api.RoleViewer},
		{"GET", "/api/v1/jobs/1", api.RoleViewer},
		{"GET", "/api/v1/jobs/1/explanation", api.RoleViewer},
		{"POST", "/api/v1/jobs/5/retry", api.RoleOperator},
		{"POST", "/api/v1/jobs/3/cancel", api.RoleOperator},
		{"GET", "/api/v1/vms", api.RoleViewer},
		{"GET", "/api/v1/vms/gs-2", api.RoleViewer},
		{"GET", "/api/v1/vms/gs-2/console", api.RoleOperator},
		{"DELETE", "/api/v1/vms/gs-2", api.RoleOperator},
		{"POST", "/api/v1/runs", api.RoleOperator},
		{"GET", "/api/v1/runs/1", api.RoleOperator},
		{"GET", "/api/v1/runs/1/stdout", api.RoleOperator},
		{"DELETE", "/api/v1/runs/4", api.RoleOperator},
		{"GET", "/api/v1/gpus", api.RoleViewer},
		{"GET", "/api/v1/gpus/1", api.RoleViewer},
		{"GET", "/api/v1/gpus/1/history", api.RoleViewer},
		{"POST", "/api/v1/gpus/1/cordon", api.RoleOperator},
		{"POST", "/api/v1/gpus/1/uncordon", api.RoleOperator},
		{"POST", "/api/v1/gpus/1/test", api.RoleOperator},
		{"GET", "/api/v1/status", api.RoleViewer},
		{"DELETE", "/api/v1/images/old/hold", api.RoleAdmin},
		{"GET", "/metrics", api.RoleViewer},
		{"GET", "/", api.RoleViewer},
		{"GET", "/healthz", api.RoleNone},
		{"GET", "/readyz", api.RoleNone},
	} {
		for _, role := range []api.Role{api.RoleNone, api.RoleViewer, api.RoleOperator, api.RoleAdmin} {
			var header []string
			if role != api.RoleNone {
				header = []string{"Authorization", "Bearer " + string(role)}
			}
			resp, text := request(t, tc.method, s.url+tc.path, "{}", header...)
			refused := resp.StatusCode == 401 || resp.StatusCode == 403
			if refused == role.May(tc.need) {
				t.Errorf("%s %s as %q, which needs %q: %d %s", tc.method, tc.path, role, tc.need, resp.StatusCode, text)
			}
			if role == api.RoleNone && refused && !strings.Contains(strings.Join(resp.Header.Values("WWW-Authenticate"), ","), "Bearer") {
				t.Errorf("%s %s: no challenge", tc.method, tc.path)
			}
		}
	}
}

func TestBrowsersLookWithBasicAuthentication(t *testing.T) {
	s := serve(t, api.Options{Tokens: tokens})
	basic := func(method, path string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("me", "admin")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := basic("GET", "/api/v1/status"); got != 200 {
		t.Errorf("reading: %d", got)
	}
	if got := basic("POST", "/api/v1/jobs/3/cancel"); got != 401 {
		t.Errorf("changing: %d, want 401", got)
	}
}

func TestWithoutTokensTCPOnlyLooks(t *testing.T) {
	s := serve(t, api.Options{})
	c := client(t, s.url, "")
	if _, err := c.Jobs(t.Context(), nil, "", 0); err != nil {
		t.Error(err)
	}
	if err := c.CancelJob(t.Context(), s.world.Queued.ID); gpuserver.KindOf(err) != gpuserver.KindRefused {
		t.Errorf("cancelling: %v", err)
	}
	if resp, _ := request(t, "GET", s.url+"/api/v1/jobs", "", "Authorization", "Bearer x"); resp.StatusCode != 401 {
		t.Errorf("a wrong token: %d", resp.StatusCode)
	}
	if calls := s.fleet.Calls(); len(calls) != 0 {
		t.Errorf("the fleet was asked: %q", calls)
	}
}

func TestGuessingIsSlowedDown(t *testing.T) {
	s := serve(t, api.Options{Tokens: tokens})
	var last int
	for range 11 {
		resp, _ := request(t, "GET", s.url+"/api/v1/jobs", "", "Authorization", "Bearer guess")
		last = resp.StatusCode
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("the eleventh guess: %d", last)
	}
	resp, _ := request(t, "GET", s.url+"/api/v1/jobs", "", "Authorization", "Bearer admin")
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a right guess after that: %d", resp.StatusCode)
	}
	if _, err := s.admin.Jobs(t.Context(), nil, "", 0); err != nil {
		t.Errorf("the socket suffers: %v", err)
	}
}

func TestForeignPagesMayNothing(t *testing.T) {
	s := serve(t, api.Options{Tokens: tokens})
	resp, _ := request(t, "POST", s.url+"/api/v1/jobs/3/cancel", "", "Authorization", "Bearer admin", "Sec-Fetch-Site", "cross-site")
	if resp.StatusCode != 403 {
		t.Errorf("cross-site POST: %d", resp.StatusCode)
	}
	s = serve(t, api.Options{Hosts: []string{"gpu.example.org"}})
	for host, want := range map[string]int{"evil.example": 421, "gpu.example.org:8442": 200, "GPU.example.org": 200, "localhost": 200, "[::1]:1": 200, "127.0.0.1:9": 200, "127.0.0.1.evil.example": 421} {
		if resp, _ := request(t, "GET", s.url+"/api/v1/status", "", "Host", host); resp.StatusCode != want {
			t.Errorf("as %s: %d, want %d", host, resp.StatusCode, want)
		}
	}
}

func TestTokensAreChecked(t *testing.T) {
	for name, tok := range map[string]api.Token{
		"no hash":      {Name: "x", Role: api.RoleViewer, Hash: ""},
		"not a hash":   {Name: "x", Role: api.RoleViewer, Hash: "secret"},
		"no role":      {Name: "x", Hash: api.HashToken("x")},
		"no such role": {Name: "x", Role: "root", Hash: api.HashToken("x")},
	} {
		if _, err := api.New(api.Options{Tokens: []api.Token{tok}}); gpuserver.KindOf(err) != gpuserver.KindInvalid || strings.Contains(err.Error(), tok.Hash) && tok.Hash != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
