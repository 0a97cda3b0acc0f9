package metrics_test

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gpuserver"
	"gpuserver/internal/api/apitest"
	"gpuserver/internal/metrics"
	"gpuserver/internal/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("database/sql.(*DB).connectionOpener"))
}

func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatal(w.Code, err)
	}
	return string(text)
}

// await scrapes until line is there, as ended jobs are counted a moment after
// their commit.
func await(t *testing.T, m *metrics.Metrics, line string) {
	t.Helper()
	var text string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if text = scrape(t, m); strings.Contains(text, line) {
			return
		}
	}
	t.Fatalf("no %q in\n%s", line, text)
}

func TestSnapshot(t *testing.T) {
	db := apitest.OpenStore(t)
	fleet := apitest.NewFleet(t, db)
	apitest.Seed(t, db)
	m := metrics.New(db, fleet, "1.2.3")
	t.Cleanup(m.Close)
	text := scrape(t, m)
	for _, line := range []string{
		`gpuserver_build_info{version="1.2.3"} 1`,
		`gpuserver_queue_length 2`,
		`gpuserver_queue_age_seconds 48`,
		`gpuserver_jobs{state="running"} 1`,
		`gpuserver_jobs{state="starting"} 0`,
		`gpuserver_vms{cloud="local",state="busy"} 1`,
		`gpuserver_image_held{image="old"} 1`,
		`gpuserver_flavor_suspended{cloud="stack",flavor="gpu_large"} 1`,
		`gpuserver_cloud_up{cloud="local"} 1`,
		`gpuserver_host_capacity{cloud="local",host="node1",resource="vcpus"} 16`,
		`gpuserver_host_leased{cloud="local",host="node1",resource="vcpus"} 6`,
		`gpuserver_forge_calls_remaining{forge="github"} 4321`,
		`gpuserver_forge_points_total{class="register",forge="github"} 50`,
		`gpuserver_store_readable 1`,
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("no %s", line)
		}
	}
	_ = db.Close()
	if text := scrape(t, m); !strings.Contains(text, "gpuserver_store_readable 0") {
		t.Error("a store that cannot be read is not told")
	}
}

func TestCardsAndSlots(t *testing.T) {
	db := apitest.OpenStore(t)
	fleet := apitest.NewFleet(t, db)
	m := metrics.New(db, fleet, "")
	t.Cleanup(m.Close)
	if text := scrape(t, m); strings.Contains(text, "gpuserver_gpus{") || strings.Contains(text, "gpuserver_slots{") {
		t.Error("cards are told where there are none")
	}
	c := apitest.SeedGPUs(t, fleet, apitest.Seed(t, db))
	uncordon := func() {
		if err := fleet.UncordonGPU(t.Context(), c.Far.ID, "me"); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		before func()
		lines  []string
	}{
		{func() {}, []string{
			`gpuserver_gpus{cloud="local",model="tesla-v100",state="in_service"} 4`,
			`gpuserver_gpus{cloud="local",model="tesla-v100",state="cordoned"} 1`,
			`gpuserver_gpus{cloud="local",model="tesla-v100",state="quarantined"} 1`,
			`gpuserver_slots{cloud="local",state="free"} 1`,
			`gpuserver_slots{cloud="local",state="held"} 1`,
			`gpuserver_slots{cloud="local",state="out"} 3`,
		}},
		{uncordon, []string{
			`gpuserver_gpus{cloud="local",model="tesla-v100",state="in_service"} 5`,
			`gpuserver_gpus{cloud="local",model="tesla-v100",state="cordoned"} 0`,
			`gpuserver_slots{cloud="local",state="free"} 2`,
			`gpuserver_slots{cloud="local",state="out"} 2`,
		}},
	} {
		tc.before()
		text := scrape(t, m)
		for _, line := range tc.lines {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("no %s in\n%s", line, text)
			}
		}
	}
}

func TestEndsAreCountedOnce(t *testing.T) {
	db := apitest.OpenStore(t)
	m := metrics.New(db, apitest.NewFleet(t, db), "")
	t.Cleanup(m.Close)
	w := apitest.Seed(t, db)
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		if err := tx.SaveJob(&w.Done); err != nil {
			return err
		}
		return tx.SaveVM(&w.Gone)
	})
	if err != nil {
		t.Fatal(err)
	}
	// The last end: once it is counted, so are those before.
	err = db.Update(t.Context(), func(tx *store.Tx) error {
		w.Queued.Conclusion = "what a forge may invent"
		return tx.MoveJob(&w.Queued, gpuserver.JobDone, "x")
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, m, `gpuserver_jobs_ended_total{conclusion="other",state="done"} 1`)
	text := scrape(t, m)
	for _, line := range []string{
		`gpuserver_jobs_ended_total{conclusion="success",state="done"} 1`,
		`gpuserver_jobs_ended_total{conclusion="none",state="refused"} 1`,
		`gpuserver_job_phase_seconds_count{phase="kernel"} 1`,
		`gpuserver_job_phase_seconds_count{phase="job_ended"} 1`,
		`gpuserver_job_phase_seconds_count{phase="gone"} 1`,
		`gpuserver_job_phase_seconds_bucket{phase="gone",le="0.25"} 0`,
		`gpuserver_job_phase_seconds_bucket{phase="gone",le="0.5"} 1`,
		`gpuserver_job_wait_seconds_sum 5`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
}

func TestWhatPassesByIsCounted(t *testing.T) {
	db := apitest.OpenStore(t)
	m := metrics.New(db, apitest.NewFleet(t, db), "")
	t.Cleanup(m.Close)
	m.Repair("orphan_vm")
	m.Repair("orphan_vm")
	m.Delivery("github", "job")
	m.Strike(4, "xid")
	m.Strike(4, "xid")
	m.Answer("GET /api/v1/jobs/{id}", 404, 30*time.Millisecond)
	text := scrape(t, m)
	for _, line := range []string{
		`gpuserver_repairs_total{kind="orphan_vm"} 2`,
		`gpuserver_gpu_strikes_total{gpu="4",kind="xid"} 2`,
		`gpuserver_deliveries_total{forge="github",outcome="job"} 1`,
		`gpuserver_http_request_seconds_count{route="GET /api/v1/jobs/{id}",status="404"} 1`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %s", line)
		}
	}
}

// A job that failed, was tried again and failed again ended twice.
func TestEachEndOfAJobIsCounted(t *testing.T) {
	db := apitest.OpenStore(t)
	m := metrics.New(db, apitest.NewFleet(t, db), "")
	t.Cleanup(m.Close)
	w := apitest.Seed(t, db)
	move := func(to gpuserver.JobState) {
		t.Helper()
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.MoveJob(&w.Queued, to, "x") }); err != nil {
			t.Fatal(err)
		}
	}
	for _, count := range []string{"1", "2"} {
		move(gpuserver.JobFailed)
		await(t, m, `gpuserver_jobs_ended_total{conclusion="none",state="failed"} `+count)
		move(gpuserver.JobReceived)
		move(gpuserver.JobQueued)
	}
}
