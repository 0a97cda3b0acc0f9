package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// post sends a delivery of our own making and gives the status and the answer.
func (w *world) post(guid, event, signature string, body io.Reader, length int64) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.ctx, http.MethodPost, "http://"+w.hooks+"/webhooks/github", body)
	w.ok(err)
	req.ContentLength = length
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Delivery", guid)
	req.Header.Set("X-GitHub-Event", event)
	if signature != "" {
		req.Header.Set("X-Hub-Signature-256", signature)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil { // refused before all of it was sent
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

func (w *world) postSigned(guid, event, body string) (int, string) {
	w.t.Helper()
	return w.post(guid, event, forgetest.Sign(webhookSecret, []byte(body)), strings.NewReader(body), int64(len(body)))
}

// noise is a body that is never in memory.
type noise struct{ left int64 }

func (n *noise) Read(b []byte) (int, error) {
	if n.left <= 0 {
		return 0, io.EOF
	}
	k := int(min(int64(len(b)), n.left))
	copy(b, bytes.Repeat([]byte("x"), k))
	n.left -= int64(k)
	return k, nil
}

// memory gives the resident memory of a process in MiB.
func memory(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n / 1024
		}
	}
	t.Fatalf("no VmRSS of process %d", pid)
	return 0
}

// TestBadDeliveries sends what a forge never would; the service refuses it,
// keeps its memory, and goes on.
func TestBadDeliveries(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	valid := `{"action":"queued","workflow_job":{"id":1}}`
	wrong := forgetest.Sign("another secret", []byte(valid))
	for _, c := range []struct {
		name, event, signature, body string
		length                       int64 // more than the body: it is cut
		want                         []int
	}{
		{"unsigned", "workflow_job", "", valid, 0, []int{401}},
		{"wrongly signed", "workflow_job", wrong, valid, 0, []int{401}},
		{"not a signature", "workflow_job", "sha256=zz", valid, 0, []int{401}},
		{"not JSON", "workflow_job", "sign", "hello", 0, []int{400}},
		{"empty", "workflow_job", "sign", "", 0, []int{400}},
		{"another type", "workflow_job", "sign", `[1,2]`, 0, []int{400}},
		{"deep", "workflow_job", "sign", strings.Repeat("[", 100_000), 0, []int{400}},
		{"truncated", "workflow_job", "sign", valid, int64(len(valid)) + 10, []int{0, 400, 401}},
		{"unknown event", "stars", "sign", `{"action":"created","x":{}}`, 0, []int{200}},
		{"unknown action", "workflow_job", "sign", `{"action":"levitated","workflow_job":{"id":5,"labels":["cirun-x"],"new":[1]},"repository":{"full_name":"octo/hello"},"zz":1}`, 0, []int{200}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.signature == "sign" {
				c.signature = forgetest.Sign(webhookSecret, []byte(c.body))
			}
			var body io.Reader = strings.NewReader(c.body)
			length := int64(len(c.body))
			if c.length != 0 {
				body, length = io.MultiReader(body), c.length
			}
			status, text := w.post("bad-"+strings.ReplaceAll(c.name, " ", "-"), c.event, c.signature, body, length)
			for _, want := range c.want {
				if status == want {
					return
				}
			}
			t.Errorf("answered %d %s, want one of %v", status, text, c.want)
		})
	}
	pid := w.server.cmd.Process.Pid
	before := memory(t, pid)
	for i := range 16 {
		length := int64(100 << 20)
		if i%2 == 1 {
			length = -1 // not announced
		}
		if status, text := w.post(fmt.Sprint("large-", i), "workflow_job", wrong, &noise{100 << 20}, length); status != 413 && status != 0 {
			t.Errorf("100 MB were answered %d %s", status, text)
		}
	}
	flat := 64 + 192*len(raceFlags) // MiB; the race detector keeps shadows of all that was used
	if after := memory(t, pid); after > before+flat {
		t.Errorf("memory grew from %d to %d MiB", before, after)
	}
	w.succeeded(w.dispatch("alice", 1))
	w.nothingLeft()
	if jobs, err := w.client().Jobs(w.ctx, nil, "", 10); err != nil || len(jobs) != 1 {
		t.Errorf("%d jobs are known, want 1 (%v)", len(jobs), err)
	}
}

// TestDeliveriesInAnyOrder repeats, doubles and swaps the events of jobs.
func TestDeliveriesInAnyOrder(t *testing.T) {
	t.Parallel()
	for _, kind := range []forgetest.HookFaultKind{forgetest.HookDuplicate, forgetest.HookReorder, forgetest.HookCut} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "jobtime=50ms")
			w.extra = "reconcile: {deliveries: 1s, jobs: 1s, runs: 1s}\n" // a held back "queued" comes with its next event, or is found
			w.serve()
			w.succeeded(w.dispatch("alice", 1))
			w.ok(w.forge.SetHookFaults(w.ctx, []forgetest.HookFault{{Kind: kind, Event: "workflow_job", Probability: 0.6}}))
			run := w.dispatch("alice", 5)
			w.ranOnce(w.succeeded(run))
			w.ok(w.forge.SetHookFaults(w.ctx, nil))
			for _, j := range run.Jobs {
				for _, action := range []string{"queued", "in_progress", "waiting", "completed", "queued"} {
					w.ok(w.forge.EmitJob(w.ctx, j.ID, action))
				}
			}
			for _, j := range run.Jobs {
				w.jobIs(j.ID, gpuserver.JobDone)
			}
			w.nothingLeft()
			ds, err := w.forge.Deliveries(w.ctx)
			w.ok(err)
			for _, d := range ds[max(0, len(ds)-5):] {
				w.ok(w.forge.Redeliver(w.ctx, d.ID))
			}
			w.nothingLeft()
			for _, j := range run.Jobs {
				w.jobIs(j.ID, gpuserver.JobDone)
			}
		})
	}
}

// TestCompletedComesFirst tells of a job's end before anything else of it: no
// VM is made for it by the event that comes late.
func TestCompletedComesFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.ok(w.forge.SetHookFaults(w.ctx, []forgetest.HookFault{{Kind: forgetest.HookLose, Event: "workflow_job", Action: "queued", Count: 1}}))
	w.serve()
	run := w.dispatch("alice", 1)
	id := run.Jobs[0].ID
	w.ok(w.forge.CancelRun(w.ctx, run.ID))
	w.jobIs(id, gpuserver.JobDone)
	w.ok(w.forge.EmitJob(w.ctx, id, "queued"))
	w.succeeded(w.dispatch("alice", 1)) // what came before it has had its effect
	w.jobIs(id, gpuserver.JobDone)
	if n := w.creates(); n != 1 {
		t.Errorf("%d VMs were made, want 1", n)
	}
	w.nothingLeft()
}

// TestLostWebhooks never creates some events, as GitHub sometimes does.
func TestLostWebhooks(t *testing.T) {
	t.Parallel()
	for _, action := range []string{"queued", "in_progress", "completed"} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "jobtime=50ms")
			w.extra = "reconcile: {runs: 1s, jobs: 1s}\n"
			w.serve()
			w.succeeded(w.dispatch("alice", 1)) // the repository is known
			w.ok(w.forge.LoseNextWebhook(w.ctx, "workflow_job", action))
			run := w.dispatch("alice", 1)
			w.ranOnce(w.succeeded(run))
			w.jobIs(run.Jobs[0].ID, gpuserver.JobDone)
			w.nothingLeft()
		})
	}
}

// TestDroppedDeliveries lets deliveries fail on the way; they are asked for again.
func TestDroppedDeliveries(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "jobtime=50ms")
	w.serve()
	w.ok(w.forge.SetHookFaults(w.ctx, []forgetest.HookFault{{Kind: forgetest.HookDrop, Event: "workflow_job", Count: 5}}))
	run := w.dispatch("alice", 3)
	w.ranOnce(w.succeeded(run))
	for _, j := range run.Jobs {
		w.jobIs(j.ID, gpuserver.JobDone)
	}
	w.nothingLeft()
}

// TestSiteWithoutInbound has no webhook listener that the forge can reach.
func TestSiteWithoutInbound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.withoutInbound()
	w.serve()
	run := w.dispatch("alice", 3)
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
	for _, j := range run.Jobs {
		w.jobIs(j.ID, gpuserver.JobDone)
	}
}

// withoutInbound makes the site one that nothing reaches, and the forge one that
// has no hook to call.
func (w *world) withoutInbound() {
	w.t.Helper()
	w.configure(forgetest.Settings{WebhookURL: ptr("")})
	w.hooks = ""
	w.ofForge = "    mode: pull\n    pull_every: 1s\n"
}

// TestUnknownFieldsAreIgnored delivers an event of the future.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	run := w.dispatch("alice", 1, func(s *forgetest.RunSpec) { s.Jobs[0].Hold = true })
	id := run.Jobs[0].ID
	w.jobIs(id, gpuserver.JobStarting)
	body, err := json.Marshal(map[string]any{
		"action": "queued", "new_thing": map[string]int{"a": 1},
		"workflow_job": map[string]any{"id": id, "run_id": run.ID, "labels": []string{"cirun-openstack-gpu-large--7"}, "zone": "moon", "steps": []any{}},
		"repository":   map[string]any{"full_name": "octo/hello", "id": 1, "owner": map[string]any{"login": "octo"}},
	})
	w.ok(err)
	if status, text := w.postSigned("future", "workflow_job", string(body)); status != http.StatusAccepted {
		t.Errorf("answered %d %s", status, text)
	}
	if status, text := w.postSigned("future", "workflow_job", string(body)); status != http.StatusOK || !strings.Contains(text, "replay") {
		t.Errorf("its replay was answered %d %s", status, text)
	}
	w.release(run)
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
}

// TestWaitingJobMakesNoVM holds a job back by a deployment rule.
func TestWaitingJobMakesNoVM(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	run := w.dispatch("alice", 1, func(s *forgetest.RunSpec) { s.Jobs[0].Waiting = true })
	w.jobIs(run.Jobs[0].ID, gpuserver.JobWaiting)
	w.succeeded(w.dispatch("alice", 1)) // all that would make a VM has passed
	if n := w.creates(); n != 1 {
		t.Errorf("%d VMs were made, want 1", n)
	}
	w.ok(w.forge.Approve(w.ctx, run.Jobs[0].ID))
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
}

// TestFewCallsPerJob counts what a job costs: registration alone cannot be
// remembered, nor who triggered the run.
func TestFewCallsPerJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "jobtime=100ms")
	w.configure(forgetest.Settings{Latency: ptr(250 * time.Millisecond)})
	w.serve()
	w.ok(w.forge.ResetStats(w.ctx))
	trace := func(what string, most int) {
		before, err := w.forge.Calls(w.ctx, 0)
		w.ok(err)
		run := w.dispatch("alice", 1)
		w.succeeded(run)
		w.nothingLeft()
		calls, err := w.forge.Calls(w.ctx, 0)
		w.ok(err)
		calls = slices.DeleteFunc(calls[len(before):], func(c forgetest.Call) bool { return strings.HasPrefix(c.Route, "GET /app/hook/") }) // of no job
		var until []forgetest.Call                                                                                                          // the registration is what the create call waits for
		var text []string
		for _, c := range calls {
			text = append(text, fmt.Sprint(c.Route, " ", c.Status))
			until = append(until, c)
			if strings.Contains(c.Route, "generate-jitconfig") {
				break
			}
		}
		if n := forgetest.RoundTrips(until); n > most {
			t.Errorf("%s: %d round trips one after the other, want at most %d:\n%s", what, n, most, strings.Join(text, "\n"))
		}
		points := 0
		for _, c := range calls {
			points += c.Points
		}
		t.Logf("%s: %d calls, %d points:\n%s", what, len(calls), points, strings.Join(text, "\n"))
	}
	trace("cold", 4)
	trace("warm", 2)
}
