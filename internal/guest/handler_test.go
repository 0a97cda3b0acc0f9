package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// stub is a Service that answers what its fields say.
type stub struct {
	authErr error
	err     error
	verdict Verdict
	orders  Orders
	beats   []Heartbeat
	pieces  []string
}

func (s *stub) Authenticate(_ context.Context, token string) (gpuserver.VMID, error) {
	if s.authErr != nil {
		return 0, s.authErr
	}
	if token != "good" {
		return 0, gpuserver.Errorf(gpuserver.KindRefused, "no such token")
	}
	return 3, nil
}

func (s *stub) Heartbeat(_ context.Context, _ gpuserver.VMID, h Heartbeat) (Orders, error) {
	s.beats = append(s.beats, h)
	return s.orders, s.err
}

func (s *stub) JobStarted(context.Context, gpuserver.VMID, JobStarted) (Verdict, error) {
	return s.verdict, s.err
}

func (s *stub) Output(_ context.Context, _ gpuserver.VMID, stream string, _ int64, data []byte) error {
	s.pieces = append(s.pieces, stream+":"+string(data))
	return s.err
}

// ask posts body, and gives status and answer.
func ask(h http.Handler, path, token, body string) (int, map[string]any) {
	req := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	var answer map[string]any
	if json.Unmarshal(w.Body.Bytes(), &answer) != nil {
		answer = nil
	}
	return w.Code, answer
}

func TestHandlerAnswers(t *testing.T) {
	const beat, started, out = "/guest/v1/heartbeat", "/guest/v1/job-started", "/guest/v1/output/stdout?offset=0"
	for name, c := range map[string]struct {
		stub              stub
		path, token, body string
		status            int
		answer            map[string]any // nil: any error text
	}{
		"orders":        {stub{orders: Orders{Interrupt: true, Reason: "r"}}, beat, "good", `{"phase":"agent","new":1}`, 200, map[string]any{"interrupt": true, "reason": "r"}},
		"no orders":     {stub{}, beat, "good", `{}`, 200, map[string]any{}},
		"allowed":       {stub{verdict: Verdict{Allowed: true}}, started, "good", `{}`, 200, map[string]any{"allowed": true}},
		"refused":       {stub{verdict: Verdict{Text: "why"}}, started, "good", `{}`, 403, map[string]any{"allowed": false, "text": "why"}},
		"output":        {stub{}, out, "good", "x", 200, map[string]any{}},
		"no token":      {stub{}, beat, "", `{}`, 401, nil},
		"bad token":     {stub{}, beat, "bad", `{}`, 401, nil},
		"store away":    {stub{authErr: errors.New("disk")}, beat, "good", `{}`, 503, nil},
		"no JSON":       {stub{}, beat, "good", `{`, 400, nil},
		"large beat":    {stub{}, beat, "good", `"` + strings.Repeat("x", maxHeartbeat) + `"`, 413, nil},
		"large hook":    {stub{}, started, "good", `"` + strings.Repeat("x", maxJobStarted) + `"`, 413, nil},
		"large output":  {stub{}, out, "good", strings.Repeat("x", maxOutput+1), 413, nil},
		"gap":           {stub{err: gpuserver.Errorf(gpuserver.KindConflict, "gap")}, out, "good", "x", 409, map[string]any{"error": "gap"}},
		"no offset":     {stub{}, "/guest/v1/output/stdout", "good", "x", 400, nil},
		"minus offset":  {stub{}, "/guest/v1/output/stdout?offset=-1", "good", "x", 400, nil},
		"other stream":  {stub{}, "/guest/v1/output/stdlog?offset=0", "good", "x", 404, nil},
		"elsewhere":     {stub{}, "/metrics", "good", "", 404, nil},
		"internal text": {stub{err: errors.New("SELECT secret")}, beat, "good", `{}`, 503, map[string]any{"error": "the service failed (internal); its log has the cause"}},
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := ask(Handler(&c.stub, slog.New(slog.DiscardHandler)), c.path, c.token, c.body)
			if status != c.status {
				t.Errorf("status %d, expected %d: %v", status, c.status, answer)
			}
			if c.answer == nil {
				if text, _ := answer["error"].(string); text == "" {
					t.Errorf("the answer %v has no error text", answer)
				}
			} else if diff := cmp.Diff(c.answer, answer); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestHandlerLimitsRates(t *testing.T) {
	h := Handler(&stub{}, slog.New(slog.DiscardHandler))
	until := func(token string, most, want int) {
		t.Helper()
		for range most {
			if status, _ := ask(h, "/guest/v1/heartbeat", token, "{}"); status == want {
				return
			}
		}
		t.Errorf("%d requests with token %q, none answered with %d", most, token, want)
	}
	// Far above what the bucket refills meanwhile, on any machine.
	until("good", 100_000, 429)
	until("bad", 100_000, 429)
	// A neighbour's wrong tokens do not shut out a VM at another address.
	req := httptest.NewRequest(http.MethodPost, "/guest/v1/output/stdout?offset=0", strings.NewReader("x"))
	req.RemoteAddr = "192.0.2.77:1"
	req.Header.Set("Authorization", "Bearer good")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if w.Code != 200 {
		t.Errorf("status %d for the other address", w.Code)
	}
}

func TestHandlerKeepsSecretsOutOfTheLog(t *testing.T) {
	var log bytes.Buffer
	h := Handler(&stub{err: errors.New("cause")}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	ask(h, "/guest/v1/heartbeat", "good", `{"verdict":"body-secret"}`)
	ask(h, "/guest/v1/heartbeat", "wrong-secret", `{}`)
	if !strings.Contains(log.String(), "cause") {
		t.Error("the failure was not logged")
	}
	for _, secret := range []string{"good", "wrong-secret", "body-secret"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %q: %s", secret, log.String())
		}
	}
}

func FuzzHandler(f *testing.F) {
	f.Add("heartbeat", []byte(`{"phase":"agent","uptime_seconds":1e308,"ago_seconds":-4,"runner_exit":-5,"oom_kills":-1}`))
	f.Add("job-started", []byte(`{"repo":"a/b","run_id":9223372036854775807}`))
	f.Add("output/stdout?offset=9223372036854775807", []byte("x"))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		if strings.ContainsAny(path, " \t\r\n%#\x7f") || !utf8.ValidString(path) {
			t.Skip() // no request line
		}
		for _, r := range path {
			if r < 0x20 {
				t.Skip()
			}
		}
		s := &stub{}
		status, answer := ask(Handler(s, slog.New(slog.DiscardHandler)), "/guest/v1/"+path, "good", string(body))
		if status >= 500 || status != http.StatusTemporaryRedirect && status != http.StatusMovedPermanently && answer == nil {
			t.Errorf("status %d, answer %v", status, answer)
		}
		for _, b := range s.beats {
			if len(b.Phase) > 32 || len(b.Kernel) > 256 || !utf8.ValidString(b.Kernel) || b.UptimeSeconds < 0 || b.AgoSeconds < 0 ||
				b.AgoSeconds > b.UptimeSeconds || b.MemPeakMiB < 0 || b.OOMKills < 0 || b.RunnerExit != nil && (*b.RunnerExit < 0 || *b.RunnerExit > 255) {
				t.Errorf("not bounded: %+v", b)
			}
		}
	})
}
