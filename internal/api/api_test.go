package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/api/apitest"
	"gpuserver/internal/store"
)

// served is an API with its store, fleet and a client over the socket.
type served struct {
	db          *store.DB
	fleet       *apitest.Fleet
	world       apitest.World
	url, socket string
	admin       *api.Client
}

func serve(t *testing.T, o api.Options) *served {
	t.Helper()
	s := &served{db: apitest.OpenStore(t)}
	s.fleet = apitest.NewFleet(t, s.db)
	s.world = apitest.Seed(t, s.db)
	o.DB, o.Actions = s.db, s.fleet
	s.url, s.socket = apitest.Serve(t, o)
	s.admin = client(t, s.socket, "")
	return s
}

func client(t *testing.T, server, token string) *api.Client {
	t.Helper()
	c, err := api.NewClient(server, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func request(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestJobsAreListedNewestFirst(t *testing.T) {
	s := serve(t, api.Options{})
	for name, tc := range map[string]struct {
		states []string
		repo   string
		limit  int
		want   []gpuserver.JobID
	}{
		"all":          {want: []gpuserver.JobID{5, 4, 3, 2, 1}},
		"by state":     {states: []string{"queued", "refused"}, want: []gpuserver.JobID{5, 4, 3}},
		"by repo":      {repo: "octo/other", want: nil},
		"with a bound": {limit: 2, want: []gpuserver.JobID{5, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			jobs, err := s.admin.Jobs(t.Context(), tc.states, tc.repo, tc.limit)
			if err != nil {
				t.Fatal(err)
			}
			var got []gpuserver.JobID
			for _, j := range jobs {
				got = append(got, j.ID)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestJobHasItsPhases(t *testing.T) {
	s := serve(t, api.Options{})
	d, err := s.admin.Job(t.Context(), s.world.Done.ID)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, p := range d.Phases {
		names = append(names, p.Name)
		if i > 0 && d.Phases[i-1].At.Add(seconds(p.Seconds)).Sub(p.At).Abs() > 1000 {
			t.Errorf("phase %s: %v s after %v is not %v", p.Name, p.Seconds, d.Phases[i-1].At, p.At)
		}
	}
	if diff := cmp.Diff(gpuserver.Phases, names); diff != "" {
		t.Error(diff)
	}
	if d.VM == nil || d.VM.Name != s.world.Gone.Name {
		t.Errorf("the VM is %+v", d.VM)
	}
}

// TestSiblingsVMCounts: a runner took another job than the one its VM was made
// for; how that VM came to be is part of the way of the job that it ran.
func TestSiblingsVMCounts(t *testing.T) {
	s := serve(t, api.Options{})
	err := s.db.Update(t.Context(), func(tx *store.Tx) error {
		j := s.world.Queued
		j.VM = s.world.Busy.ID
		if err := tx.MoveJob(&j, gpuserver.JobRunning, "took the VM of its sibling"); err != nil {
			return err
		}
		return tx.AddPhase(j.ID, j.VM, gpuserver.PhaseJobStarted, tx.Now)
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.admin.Job(t.Context(), s.world.Queued.ID)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range d.Phases {
		names = append(names, p.Name)
		if p.Name == gpuserver.PhaseJobStarted && !p.At.After(s.world.Running.QueuedAt.Add(seconds(100))) {
			t.Errorf("the job's start is its sibling's: %v", p.At)
		}
	}
	want := []string{"create_called", "kernel", "agent", "runner", "job_started"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}

func TestExplanations(t *testing.T) {
	s := serve(t, api.Options{})
	for name, tc := range map[string]struct {
		job  gpuserver.JobID
		want api.Explanation
	}{
		"refused": {s.world.Refused.ID, api.Explanation{
			State: gpuserver.JobRefused, Class: gpuserver.ReasonNoAccess,
			Sentence: "The policy “team-gpu” does not let mallory use the runner gpu.", Help: "Ask an owner of octo to add mallory to the team gpu.",
		}},
		"queued": {s.world.Queued.ID, api.Explanation{
			State: gpuserver.JobQueued, Class: gpuserver.ReasonCapacity, Position: 1, Waiting: 2,
			Sentence: "It waits for 8 vCPU on cloud local: 4 of 16 are free.", Help: "It starts when VM gs-2 ends.",
		}},
		"without a reason": {s.world.Behind.ID, api.Explanation{
			State: gpuserver.JobQueued, Position: 2, Waiting: 2, Sentence: "It may run and waits for a VM; its place in the queue is 2.",
		}},
		"running": {s.world.Running.ID, api.Explanation{State: gpuserver.JobRunning, Sentence: "It runs on VM gs-2."}},
		"done":    {s.world.Done.ID, api.Explanation{State: gpuserver.JobDone, Sentence: "It ended: success."}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.admin.Explain(t.Context(), tc.job)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.History) == 0 {
				t.Error("no history")
			}
			tc.want.Job, tc.want.History = tc.job, got.History
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestActionsNameTheCaller(t *testing.T) {
	s := serve(t, api.Options{Tokens: []api.Token{{Name: "alice", Role: api.RoleAdmin, Hash: api.HashToken("secret")}}})
	alice := client(t, s.url, "secret")
	for _, err := range []error{
		alice.CancelJob(t.Context(), s.world.Queued.ID),
		s.admin.RetryJob(t.Context(), s.world.Refused.ID),
		alice.DeleteVM(t.Context(), "gs-2"),
		s.admin.DeleteVM(t.Context(), "2"),
		alice.ReleaseImage(t.Context(), "old"),
		alice.ResumeFlavor(t.Context(), "stack", "gpu_large"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{"cancel 3 by alice", "retry 5 by socket", "delete 2 by alice", "delete 2 by socket", "release old by alice", "resume gpu_large on stack by alice"}
	if diff := cmp.Diff(want, s.fleet.Calls()); diff != "" {
		t.Error(diff)
	}
}

func TestStatusAtAGlance(t *testing.T) {
	s := serve(t, api.Options{Version: "1.2.3"})
	got, err := s.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Ready || got.Version != "1.2.3" || got.Queue.Length != 2 || got.Queue.AgeSeconds < 7*60 {
		t.Errorf("got %+v", got)
	}
	if diff := cmp.Diff([]api.VMCount{{Cloud: "local", State: gpuserver.VMBusy, Count: 1}}, got.VMs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]api.HostStatus{{Host: s.fleet.HostList[0], Used: api.Used{VMs: 1, VCPUs: 6, MemoryMiB: 8192, DiskGiB: 40}}}, got.Hosts); diff != "" {
		t.Error(diff)
	}
	if len(got.Images) != 1 || !got.Images[0].Held || got.Images[0].Name != "old" {
		t.Errorf("images: %+v", got.Images)
	}
	if len(got.Suspended) != 1 || got.Suspended[0].Flavor != "gpu_large" || got.Suspended[0].Cloud != "stack" || got.Suspended[0].Failures != 5 || got.Suspended[0].Until.Sub(got.Suspended[0].Since) != time.Hour {
		t.Errorf("suspended flavors: %+v", got.Suspended)
	}
	if diff := cmp.Diff(s.fleet.ForgeList, got.Forges); diff != "" {
		t.Error(diff)
	}
}

// A flavor with cards that no host has is warned about once all hosts are known.
func TestStatusWarnsOfFlavorsWithoutCards(t *testing.T) {
	s := serve(t, api.Options{})
	for _, f := range []string{"gpu", "gpu_2x"} {
		s.fleet.MoreFlavors = append(s.fleet.MoreFlavors, api.FlavorInfo{Flavor: gpuserver.Flavor{Name: f, GPUs: gpuserver.GPUs{Model: "tesla-v100", Count: 1}}})
	}
	s.fleet.CloudList = []api.CloudStatus{{Name: "local", Up: true, Known: true}}
	warnings := func() []string {
		st, err := s.admin.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Warnings
	}
	if got := warnings(); len(got) != 1 || !strings.Contains(got[0], "model tesla-v100") || !strings.Contains(got[0], "gpu and gpu_2x") {
		t.Errorf("no host has a card: warnings %q", got)
	}
	s.fleet.HostList[0].Slots = []gpuserver.Slot{{Group: 19, Cards: []gpuserver.Card{{Address: "0000:27:00.0", Model: "tesla-v100"}}}}
	if got := warnings(); len(got) != 0 {
		t.Errorf("a host has one: warnings %q", got)
	}
	s.fleet.HostList[0].Slots = nil
	s.fleet.CloudList = append(s.fleet.CloudList, api.CloudStatus{Name: "other"})
	if got := warnings(); len(got) != 0 {
		t.Errorf("a cloud has not told its hosts: warnings %q", got)
	}
}

// TestErrorsByKind: the kind gives the status, the public sentence the text,
// and the cause stays inside.
func TestErrorsByKind(t *testing.T) {
	s := serve(t, api.Options{})
	for kind, status := range map[gpuserver.Kind]int{
		gpuserver.KindInvalid: 422, gpuserver.KindNotFound: 404, gpuserver.KindConflict: 409, gpuserver.KindRefused: 403, gpuserver.KindCapacity: 503,
		gpuserver.KindUnavailable: 503, gpuserver.KindLimited: 429, gpuserver.KindGuest: 502, gpuserver.KindInternal: 500,
	} {
		t.Run(string(kind), func(t *testing.T) {
			s.fleet.Fail = &gpuserver.Error{Kind: kind, Op: "secret op", Public: "A sentence.", Err: errors.New("secret cause")}
			err := s.admin.RetryJob(t.Context(), 1)
			if gpuserver.KindOf(err) != kind || gpuserver.PublicText(err) != "A sentence." {
				t.Errorf("the client got %v (%s)", err, gpuserver.KindOf(err))
			}
			h := &http.Client{Transport: overSocket(s.socket)}
			resp, err := h.Post("http://x/api/v1/jobs/1/retry", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != status || strings.Contains(string(text), "secret") || resp.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("answer %d %s %s", resp.StatusCode, resp.Header.Get("Content-Type"), text)
			}
		})
	}
	s.fleet.Fail = errors.New("secret of a foreign error")
	if err := s.admin.RetryJob(t.Context(), 1); gpuserver.KindOf(err) != gpuserver.KindInternal || strings.Contains(err.Error(), "secret") {
		t.Errorf("a foreign error came out as %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	s := serve(t, api.Options{Tokens: []api.Token{{Name: "a", Role: api.RoleAdmin, Hash: api.HashToken("a")}}})
	big := `{"args":["` + strings.Repeat("x", 2<<20) + `"]}`
	for name, tc := range map[string]struct {
		method, path, body string
		status             int
		kind               gpuserver.Kind
	}{
		"unknown path":          {"GET", "/api/v1/nothing", "", 404, gpuserver.KindNotFound},
		"unknown job":           {"GET", "/api/v1/jobs/99", "", 404, gpuserver.KindNotFound},
		"unknown VM":            {"GET", "/api/v1/vms/gs-99", "", 404, gpuserver.KindNotFound},
		"job that is no number": {"GET", "/api/v1/jobs/x", "", 422, gpuserver.KindInvalid},
		"unknown state":         {"GET", "/api/v1/jobs?state=happy", "", 422, gpuserver.KindInvalid},
		"unknown parameter":     {"GET", "/api/v1/jobs?stat=done", "", 422, gpuserver.KindInvalid},
		"limit too large":       {"GET", "/api/v1/jobs?limit=100000", "", 422, gpuserver.KindInvalid},
		"not JSON":              {"POST", "/api/v1/runs", "{", 400, gpuserver.KindInvalid},
		"unknown field":         {"POST", "/api/v1/runs", `{"args":["a"],"arg":1}`, 422, gpuserver.KindInvalid},
		"no command":            {"POST", "/api/v1/runs", `{"args":[]}`, 422, gpuserver.KindInvalid},
		"zero byte":             {"POST", "/api/v1/runs", `{"args":["a\u0000b"]}`, 422, gpuserver.KindInvalid},
		"bad variable":          {"POST", "/api/v1/runs", `{"args":["a"],"env":{"A=B":"c"}}`, 422, gpuserver.KindInvalid},
		"too large":             {"POST", "/api/v1/runs", big, 413, gpuserver.KindInvalid},
		"run that is a job":     {"GET", "/api/v1/runs/1", "", 404, gpuserver.KindNotFound},
		"unknown GPU":           {"GET", "/api/v1/gpus/99", "", 404, gpuserver.KindNotFound},
		"unknown GPU's history": {"GET", "/api/v1/gpus/node1%2F27:00.0/history", "", 404, gpuserver.KindNotFound},
		"unknown GPU's test":    {"POST", "/api/v1/gpus/99/test", "", 404, gpuserver.KindNotFound},
		"unknown state of GPUs": {"GET", "/api/v1/gpus?state=broken", "", 422, gpuserver.KindInvalid},
		"too long a reason":     {"POST", "/api/v1/gpus/1/cordon", `{"reason":"` + strings.Repeat("x", 501) + `"}`, 422, gpuserver.KindInvalid},
		"unknown stream":        {"GET", "/api/v1/runs/1/stdin", "", 422, gpuserver.KindInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			resp, text := request(t, tc.method, s.url+tc.path, tc.body, "Authorization", "Bearer a")
			var p api.Problem
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				t.Fatalf("%d %q is not a problem: %v", resp.StatusCode, text, err)
			}
			if resp.StatusCode != tc.status || p.Kind != tc.kind || p.Status != tc.status || p.Detail == "" {
				t.Errorf("got %d %+v, want %d %s", resp.StatusCode, p, tc.status, tc.kind)
			}
		})
	}
	if calls := s.fleet.Calls(); len(calls) != 0 {
		t.Errorf("bad requests reached the fleet: %q", calls)
	}
}

func TestCommandsEnvironmentIsHidden(t *testing.T) {
	s := serve(t, api.Options{})
	id, err := s.admin.StartRun(t.Context(), api.RunRequest{Args: []string{"true"}, Env: map[string]string{"TOKEN": "hunter2"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/v1/jobs", fmt.Sprintf("/api/v1/jobs/%d", id)} {
		_, text := request(t, "GET", s.url+path, "")
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "TOKEN") {
			t.Errorf("%s shows %s", path, text)
		}
	}
}

func TestReady(t *testing.T) {
	s := serve(t, api.Options{})
	if resp, text := request(t, "GET", s.url+"/readyz", ""); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	s.fleet.CloudList[0].Up, s.fleet.CloudList[0].Reason = false, "libvirtd does not answer"
	if resp, text := request(t, "GET", s.url+"/readyz", ""); resp.StatusCode != 503 || !strings.Contains(text, "Cloud local cannot be used now: libvirtd does not answer.") {
		t.Errorf("with a cloud that went away: %d %s", resp.StatusCode, text)
	}
	s.fleet.CloudList[0].Known, s.fleet.CloudList[0].Reason = false, ""
	resp, text := request(t, "GET", s.url+"/readyz", "")
	if resp.StatusCode != 503 || !strings.Contains(text, "Cloud local has not told its capacity yet.") {
		t.Errorf("with an unknown cloud: %d %s", resp.StatusCode, text)
	}
	if resp, _ := request(t, "GET", s.url+"/healthz", ""); resp.StatusCode != 200 {
		t.Errorf("healthz: %d", resp.StatusCode)
	}
}

func TestNotReadyWithoutAStore(t *testing.T) {
	s := serve(t, api.Options{})
	_ = s.db.Close()
	resp, text := request(t, "GET", s.url+"/readyz", "")
	if resp.StatusCode != 503 || !strings.Contains(text, "the store is closed") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	if resp, _ := request(t, "GET", s.url+"/healthz", ""); resp.StatusCode != 200 {
		t.Errorf("healthz: %d", resp.StatusCode)
	}
}

func TestAnswersAreObservedByPattern(t *testing.T) {
	seen := make(chan string, 10)
	s := serve(t, api.Options{Observe: func(pattern string, status int, _ time.Duration) { seen <- fmt.Sprint(pattern, " ", status) }})
	_, _ = request(t, "GET", s.url+"/api/v1/jobs/1", "")
	_, _ = request(t, "GET", s.url+"/api/v1/jobs/99", "")
	got := []string{<-seen, <-seen}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"GET /api/v1/jobs/{id} 200", "GET /api/v1/jobs/{id} 404"}, got); diff != "" {
		t.Error(diff)
	}
}
