package intake_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/intake"
)

// reads gives a handler the same delivery or error for every request.
type reads struct {
	guid string
	e    forge.Event
	err  error
}

func (r reads) Read(*http.Request) (string, forge.Event, []byte, error) {
	return r.guid, r.e, []byte("{}"), r.err
}

func deliver(in *intake.Intake, method string, v intake.Verifier) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	in.Handler("gh", v).ServeHTTP(w, httptest.NewRequest(method, "/webhooks/gh", strings.NewReader("{}")))
	return w
}

// TestAnswers: 2xx only for what is stored or nothing to us.
func TestAnswers(t *testing.T) {
	db, in := open(t, filepath.Join(t.TempDir(), "gpuserver.db"))
	var seen []intake.Outcome
	in.Observe = func(_ string, out intake.Outcome) { seen = append(seen, out) }
	queued, foreign := delivery("a", history(1, true)[1]).Event, delivery("b", history(2, true)[1]).Event
	foreign.Job.Labels = []string{"ubuntu-latest"}
	bad := func(k gpuserver.Kind) reads { return reads{guid: "x", err: gpuserver.Errorf(k, "no")} }
	for _, c := range []struct {
		method string
		v      reads
		want   int
	}{
		{"GET", reads{}, 405},
		{"POST", bad(gpuserver.KindRefused), 401},
		{"POST", bad(gpuserver.KindInvalid), 400},
		{"POST", bad(gpuserver.KindCapacity), 413},
		{"POST", bad(gpuserver.KindUnavailable), 400},
		{"POST", reads{guid: "a", e: queued}, 202},
		{"POST", reads{guid: "a", e: queued}, 200},
		{"POST", reads{guid: "b", e: foreign}, 200},
	} {
		if w := deliver(in, c.method, c.v); w.Code != c.want {
			t.Errorf("%s of %+v: answered %d %s, want %d", c.method, c.v, w.Code, w.Body, c.want)
		}
	}
	if n := len(unfinished(t, db)); n != 1 || len(seen) != 7 {
		t.Errorf("%d jobs, observed %v", n, seen)
	}
	_ = db.Close()
	if w := deliver(in, "POST", reads{guid: "c", e: queued}); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("with the store closed: answered %d %s", w.Code, w.Body)
	}
}

// TestNearlyFullDisk refuses whatever is new, from the webhook and in pull mode,
// and says so once; with room again the same is taken.
func TestNearlyFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, in := open(t, path)
		var log bytes.Buffer
		in.Disk = &intake.DiskGuard{Dir: filepath.Dir(path), MinFree: 1 << 62, Log: slog.New(slog.NewTextHandler(&log, nil))}
		hook := reads{guid: "a", e: delivery("a", history(1, true)[1]).Event}
		pulled, listed := history(2, true)[1], history(3, true)[1]
		see(t, db, listed.Repo.Name, 6)
		p := &pastForge{
			past:  []intake.Past{{ID: 1, GUID: "b", At: time.Now(), Job: true}},
			fetch: map[int64]intake.Delivery{1: {Event: forge.Event{Kind: forge.EventJob, Name: "workflow_job.queued", Job: pulled}}},
			of:    map[string][]forge.Job{listed.Repo.Name: {listed}},
		}
		stop := runFeed(t, db, &intake.Feed{
			Intake: in, Name: "gh", Forge: p, Pull: true, PullEvery: 10 * time.Second, RunsEvery: 10 * time.Second, RunsFor: time.Hour,
		})
		for range 3 {
			after(15 * time.Second)
			if w := deliver(in, "POST", hook); w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "nearly full") {
				t.Errorf("answered %d %s", w.Code, w.Body)
			}
		}
		if got := jobNames(t, db); got != "" {
			t.Errorf("the jobs are %q", got)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("it was said %d times:\n%s", n, log.String())
		}
		stop()

		db, fresh := open(t, path)
		in.DB = fresh.DB
		in.Disk.MinFree = 1
		time.Sleep(2 * time.Second)
		stop = runFeed(t, db, &intake.Feed{
			Intake: in, Name: "gh", Forge: p, Pull: true, PullEvery: 10 * time.Second, RunsEvery: 10 * time.Second, RunsFor: time.Hour,
		})
		if w := deliver(in, "POST", hook); w.Code != 202 {
			t.Errorf("with room again: answered %d %s", w.Code, w.Body)
		}
		after(15 * time.Second)
		if got := jobNames(t, db); got != "job-1 job-2 job-3" {
			t.Errorf("with room again the jobs are %q", got)
		}
		if !strings.Contains(log.String(), "room again: deliveries are accepted") {
			t.Errorf("it was not said:\n%s", log.String())
		}
		stop()
	})
}

// TestDiskGuardAtOnce: nobody slips past while the first asks the file system.
func TestDiskGuardAtOnce(t *testing.T) {
	for range 200 {
		g := &intake.DiskGuard{Dir: t.TempDir(), MinFree: 1 << 62}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if g.Room() {
					t.Error("there was room")
				}
			})
		}
		wg.Wait()
	}
}
