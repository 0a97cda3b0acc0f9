package forgetest

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The stand-in shares the machine with the server that a benchmark measures:
// what a call costs here is taken from there.

func benched(tb testing.TB) (s *Server, secret string, run Run) {
	s = New(Config{})
	tb.Cleanup(func() { _ = s.Close() })
	must(s.AddRepo(Repository{Name: "octo-org/hello", Private: true}))(tb)
	run = must(s.Dispatch(RunSpec{Repo: "octo-org/hello", Jobs: []JobSpec{{Labels: []string{"x"}}}}))(tb)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.world.installed[0]
	s.world.tokens["t"] = &token{account: a, expires: now().Add(1 << 40), permissions: s.set.permissions}
	return s, "t", run
}

func BenchmarkReadRun(b *testing.B) {
	s, secret, run := benched(b)
	path := fmt.Sprintf("/repos/octo-org/hello/actions/runs/%d", run.ID)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Authorization", "Bearer "+secret)
			w := httptest.NewRecorder()
			if s.ServeHTTP(w, r); w.Code != http.StatusOK {
				b.Errorf("status %d", w.Code)
			}
		}
	})
}

func BenchmarkRegister(b *testing.B) {
	s, secret, _ := benched(b)
	var n atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			body := fmt.Sprintf(`{"name":"r%d","runner_group_id":1,"labels":["never"]}`, n.Add(1))
			r := httptest.NewRequest("POST", "/repos/octo-org/hello/actions/runners/generate-jitconfig", strings.NewReader(body))
			r.Header.Set("Authorization", "Bearer "+secret)
			w := httptest.NewRecorder()
			if s.ServeHTTP(w, r); w.Code != http.StatusCreated {
				b.Errorf("status %d: %s", w.Code, w.Body)
			}
		}
	})
}

func BenchmarkDispatchAndDeliver(b *testing.B) {
	var got atomic.Int64
	more := make(chan struct{}, 1)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Add(1)
		w.WriteHeader(http.StatusAccepted)
		select {
		case more <- struct{}{}:
		default:
		}
	}))
	defer web.Close()
	s := New(Config{WebhookURL: web.URL})
	defer func() { _ = s.Close() }()
	must(s.AddRepo(Repository{Name: "octo-org/hello"}))(b)
	specs := make([]JobSpec, 100)
	b.ReportAllocs()
	want, began := int64(0), time.Now()
	for b.Loop() {
		must(s.Dispatch(RunSpec{Repo: "octo-org/hello", Jobs: specs}))(b)
		want += int64(len(specs))
	}
	for got.Load() < want {
		<-more
	}
	must(s.Wait(context.Background(), JobFilter{}, "queued"))(b)
	b.ReportMetric(float64(want)/time.Since(began).Seconds(), "deliveries/s")
}
