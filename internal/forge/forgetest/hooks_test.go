package forgetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"

	"gpuserver/internal/forge/forgetest/runnerclient"
	"gpuserver/internal/testdeps"
)

func TestDeliveriesAreSignedAndLabelled(t *testing.T) {
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL, WebhookSecret: "shh"})
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	h := k.next(t, 1)[0]
	if got, want := h.header.Get("X-Hub-Signature-256"), Sign("shh", h.body); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	want := map[string]string{
		"X-GitHub-Event": "workflow_job", "X-GitHub-Hook-Installation-Target-Type": "integration", "Content-Type": "application/json",
		"X-GitHub-Hook-Installation-Target-ID": fmt.Sprint(b.app.ID), "X-GitHub-Hook-ID": fmt.Sprint(hookID),
	}
	for name, value := range want {
		if h.header.Get(name) != value {
			t.Errorf("%s: %q, want %q", name, h.header.Get(name), value)
		}
	}
	var o struct {
		Job          struct{ ID int64 } `json:"workflow_job"`
		Installation struct{ ID int64 }
		Organization struct{ Login string }
	}
	if err := json.Unmarshal(h.body, &o); err != nil {
		t.Fatal(err)
	}
	if o.Job.ID != run.Jobs[0].ID || o.Installation.ID != b.repo.InstallationID || o.Organization.Login != "octo-org" {
		t.Errorf("payload: %+v", o)
	}
	d := b.recorded(1)[0]
	if d.StatusCode != http.StatusAccepted || d.Status != "OK" || d.GUID != h.header.Get("X-GitHub-Delivery") {
		t.Errorf("recorded: %+v", d)
	}
}

// TestSignIsGitHubs uses the example of GitHub's own documentation ("Validating
// webhook deliveries", testing the webhook payload validation).
func TestSignIsGitHubs(t *testing.T) {
	const want = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	if got := Sign("It's a Secret to Everybody", []byte("Hello, World!")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestPayloadsAreGitHubs compares each event with the schemas that Octokit keeps
// of GitHub's payloads; they refuse unknown fields.
func TestPayloadsAreGitHubs(t *testing.T) {
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	run := b.dispatch(JobSpec{Labels: []string{"x"}}, JobSpec{Labels: []string{"x"}, Waiting: true})
	c := b.online("r", "x")
	j := b.takeJob(c)
	b.check(c.Steps(t.Context(), j.ID, []runnerclient.StepState{{
		Number: 1, Name: "s", Status: "completed", Conclusion: "success", StartedAt: time.Now(), CompletedAt: time.Now(),
	}}))
	b.check(c.Complete(t.Context(), j.ID, runnerclient.Result{Conclusion: "failure"}))
	b.check(b.CancelJob(run.Jobs[1].ID))
	var check struct{ ID int64 }
	b.call("POST", "/repos/octo-org/hello/check-runs", obj{
		"name": "gpuserver", "head_sha": b.repo.HeadSHA, "conclusion": "action_required", "external_id": "1",
		"output": obj{"title": "t", "summary": "s"},
	}).into(t, &check)
	b.check(b.Rerequest(check.ID, "alice"))
	b.Ping()
	b.check(b.Uninstall(Org{Login: "octo-org"}))
	seen := map[string]bool{}
	for _, h := range k.next(t, 8) {
		name := strings.TrimSuffix(h.action(), ".")
		seen[name] = true
		if err := payloadSchema(t, name).Validate(asAny(t, h.body)); err != nil {
			t.Errorf("%s: %v\n%s", name, err, h.body)
		}
	}
	for _, name := range []string{
		"workflow_job.queued", "workflow_job.waiting", "workflow_job.in_progress", "workflow_job.completed", "check_run.rerequested", "ping",
		"installation.deleted",
	} {
		if !seen[name] {
			t.Errorf("%s was not delivered", name)
		}
	}
}

// TestPayloadSchemasRefuse shows that the comparison above can fail.
func TestPayloadSchemasRefuse(t *testing.T) {
	b := start(t, Config{})
	b.dispatch(JobSpec{Labels: []string{"x"}})
	body := b.hooks.kept[0].parts.join()
	schema := payloadSchema(t, "workflow_job.queued")
	for _, change := range []func(event, job obj){
		func(_, job obj) { delete(job, "run_attempt") },
		func(_, job obj) { job["status"] = "sleeping" },
		func(event, _ obj) { event["surprise"] = 1 },
	} {
		event := asAny(t, body).(obj)
		change(event, event["workflow_job"].(obj))
		if schema.Validate(event) == nil {
			t.Errorf("a wrong payload passes: %s", raw(event))
		}
	}
}

func asAny(t *testing.T, b []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// payloadSchema makes the schema of one event: "workflow_job.queued".
func payloadSchema(t *testing.T, name string) *jsonschema.Resolved {
	t.Helper()
	b := must(os.ReadFile(testdeps.NPM(t, "@octokit/webhooks-schemas", "7.6.1", "package/schema.json")))(t)
	var all jsonschema.Schema
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	event, action, _ := strings.Cut(name, ".")
	if action == "" {
		action = "event"
	}
	if all.Definitions[event+"$"+action] == nil {
		t.Fatalf("no schema of %s", name)
	}
	for _, d := range all.Definitions {
		d.Schema = "" // one draft for the whole: its own
	}
	return must((&jsonschema.Schema{
		Schema: "http://json-schema.org/draft-07/schema#", Definitions: all.Definitions, Ref: "#/definitions/" + event + "$" + action,
	}).Resolve(nil))(t)
}

func TestFailedDeliveriesAreRecordedAndNeverRepeated(t *testing.T) {
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	k.mu.Lock()
	k.status = http.StatusServiceUnavailable
	k.mu.Unlock()
	b.dispatch(JobSpec{Labels: []string{"x"}})
	k.next(t, 1)
	failed := b.recorded(1)[0]
	if failed.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("recorded: %+v", failed)
	}
	k.mu.Lock()
	k.status = http.StatusOK
	k.mu.Unlock()
	path := fmt.Sprintf("/app/hook/deliveries/%d", failed.ID)
	b.do("POST", path+"/attempts", b.appToken(), nil).want(t, http.StatusAccepted)
	got := k.next(t, 1)
	if len(got) != 2 || got[0].header.Get("X-GitHub-Delivery") != got[1].header.Get("X-GitHub-Delivery") {
		t.Errorf("a redelivery has another GUID, or there are %d deliveries instead of 2", len(got))
	}
	if d := b.recorded(2)[1]; !d.Redelivery || d.GUID != failed.GUID || d.StatusCode != http.StatusOK {
		t.Errorf("redelivery: %+v", d)
	}
	var one struct {
		Request struct {
			Headers map[string]string
			Payload json.RawMessage
		}
	}
	b.do("GET", path, b.appToken(), nil).into(t, &one)
	if one.Request.Headers["X-Github-Event"] != "workflow_job" {
		t.Errorf("headers of the delivery: %v", one.Request.Headers)
	}
	if diff := cmp.Diff(string(got[0].body), string(one.Request.Payload)); diff != "" {
		t.Errorf("payload by API and by delivery (-delivered +read):\n%s", diff)
	}
}

func TestDeliveriesArePagedByCursor(t *testing.T) {
	b := start(t, Config{}) // no URL: a site that nothing can reach
	for range 7 {
		b.dispatch(JobSpec{Labels: []string{"x"}})
	}
	var got []int64
	path := "/app/hook/deliveries?per_page=3&status=failure"
	for pages := 1; path != ""; pages++ {
		if pages > 3 {
			t.Fatal("more than 3 pages of 7 deliveries")
		}
		a := b.do("GET", path, b.appToken(), nil)
		var list []struct {
			ID   int64
			Code int `json:"status_code"`
		}
		a.into(t, &list)
		for _, d := range list {
			got = append(got, d.ID)
			if d.Code < 400 {
				t.Errorf("delivery %d: status %d of a site that is not reached", d.ID, d.Code)
			}
		}
		link, _, _ := strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
		path = strings.TrimPrefix(link, b.url)
		b.dispatch(JobSpec{Labels: []string{"x"}}) // newer ones do not shift the pages
	}
	var want []int64
	for _, d := range b.Deliveries()[:7] {
		want = append([]int64{d.ID}, want...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("deliveries, newest first (-want +got):\n%s", diff)
	}
	if got[0] <= 1<<53 {
		t.Errorf("a delivery's number %d fits into a float64, unlike GitHub's", got[0])
	}
}

func TestHookFaults(t *testing.T) {
	for _, c := range []struct {
		fault HookFault
		want  string // that arrives
	}{
		{HookFault{Kind: HookLose, Event: "workflow_job", Action: "queued", Count: 1}, "in_progress completed"},
		{HookFault{Kind: HookDrop, Action: "in_progress"}, "queued completed"},
		{HookFault{Kind: HookDuplicate, Action: "queued"}, "queued queued in_progress completed"},
		{HookFault{Kind: HookReorder, Action: "queued"}, "in_progress queued completed"},
		{HookFault{Kind: HookReorder, Action: "in_progress", Count: 1}, "queued completed in_progress"},
		{HookFault{Kind: HookCut, Skip: 1, Count: 1}, "queued in_progress completed"},
	} {
		t.Run(string(c.fault.Kind)+" "+c.fault.Action, func(t *testing.T) {
			k := newSink(t)
			b := start(t, Config{WebhookURL: k.URL})
			b.SetHookFaults([]HookFault{c.fault})
			run := b.dispatch(JobSpec{Labels: []string{"x"}})
			b.takeJob(b.online("r", "x"))
			b.check(b.FinishJob(run.Jobs[0].ID, "success"))
			got := actions(k.next(t, len(strings.Fields(c.want))))
			if got != c.want {
				t.Errorf("arrived: %s; want %s", got, c.want)
			}
			struck := b.Stats().Faults["hook "+string(c.fault.Kind)]
			if struck != 1 {
				t.Errorf("the fault struck %d times, want 1", struck)
			}
			switch c.fault.Kind {
			case HookDrop, HookCut:
				failed := 0
				for _, d := range b.recorded(3) {
					if d.StatusCode >= 300 {
						failed++
					}
				}
				if failed != 1 {
					t.Errorf("%d failed deliveries are recorded, want 1", failed)
				}
			case HookLose:
				if d := b.recorded(2); len(d) != 2 {
					t.Errorf("%d deliveries are recorded, want 2: the lost one never was", len(d))
				}
			}
		})
	}
}

func TestADelayedDeliveryIsOvertaken(t *testing.T) {
	t.Parallel()
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	b.SetHookFaults([]HookFault{{Kind: HookDelay, Action: "queued", Delay: 3 * time.Second}})
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	b.check(b.FinishJob(run.Jobs[0].ID, "success"))
	if got := actions(k.next(t, 2)); got != "completed queued" {
		t.Errorf("arrived: %s", got)
	}
}

func TestMadeUpEventsAndSubscriptions(t *testing.T) {
	k := newSink(t)
	b := start(t, Config{WebhookURL: k.URL})
	none := []string{}
	b.Configure(Settings{Events: &none})
	run := b.dispatch(JobSpec{Labels: []string{"x"}}) // not subscribed: no event
	b.check(b.Emit(Emission{Event: "workflow_job", Payload: json.RawMessage(`{"action":"exploded"}`), Repo: "octo-org/hello"}))
	all := []string{"workflow_job"}
	b.Configure(Settings{Events: &all})
	k.next(t, 1)
	b.check(b.EmitJob(run.Jobs[0].ID, "queued"))
	if got := actions(k.next(t, 1)); got != "exploded queued" {
		t.Errorf("arrived: %s", got)
	}
}
