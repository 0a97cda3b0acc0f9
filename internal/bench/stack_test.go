package bench

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gpuserver"
)

// The proxy passes calls on as they are, counts them for whoever makes them, and
// notes the first answer that says that a server is active.
func TestStackProxy(t *testing.T) {
	status := atomic.Value{}
	status.Store("BUILD")
	cloud := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Saw", r.Method+" "+r.URL.String()+" "+string(body)+" "+r.Header.Get("X-Auth-Token"))
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusForbidden)
		}
		_, _ = io.WriteString(w, `{"servers": [{"id": "1", "name": "bench-1", "status": "`+status.Load().(string)+`"}, {"id": "2", "name": "x", "status": "ERROR"}]}`)
	}))
	defer cloud.Close()
	p, err := newStackProxy(proxyArgs{Targets: map[string]string{"nova": cloud.URL + "/v2.1/"}})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(p)
	defer front.Close()
	addr := strings.TrimPrefix(front.URL, "http://")
	call := func(method, from, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, proxyURL(addr, from, "nova")+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Auth-Token", "tok")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), "bench-1") {
			t.Errorf("the answer is %q, %v", text, err)
		}
		return resp.StatusCode, resp.Header.Get("X-Saw")
	}
	if code, saw := call("POST", "bare", "/servers", "hello"); code != 403 || saw != "POST /v2.1/servers hello tok" {
		t.Errorf("%d, and the cloud saw %q", code, saw)
	}
	if code, saw := call("GET", "ours", "/servers/detail?limit=7", ""); code != 200 || saw != "GET /v2.1/servers/detail?limit=7  tok" {
		t.Errorf("%d, and the cloud saw %q", code, saw)
	}
	began := time.Now()
	status.Store("ACTIVE")
	call("GET", "ours", "/servers/detail", "")
	between := time.Now()
	call("GET", "ours", "/servers/detail", "")
	w := &stackWorld{world: &world{ctx: t.Context()}, addr: addr, owners: "bench-"}
	at, failed, err := w.active("ours")
	if err != nil || failed != 0 || len(at) != 1 || at["1"].Before(began) || at["1"].After(between) {
		t.Errorf("active at %v, %d failed, %v; want 1 between %v and %v", at, failed, err, began, between)
	}
	if at, _, err := w.active("bare"); err != nil || len(at) != 0 {
		t.Errorf("who was told nothing knows %v, %v", at, err)
	}
	calls, err := w.callsSince(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	want := stackCall{From: "ours", Service: "nova", Method: "GET", Path: "/servers/detail", Status: 200}
	first := want
	first.Query = "limit=7"
	if d := cmp.Diff([]stackCall{first, want, want}, calls, cmpopts.IgnoreFields(stackCall{}, "At", "End")); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
	if calls, err := w.callsSince(time.Unix(0, calls[1].At)); err != nil || len(calls) != 2 {
		t.Errorf("%d calls since the second, %v", len(calls), err)
	}
}

func TestStackCalls(t *testing.T) {
	const id = "/0f3ee2a1-0000-4000-8000-00000000abcd"
	calls := []stackCall{
		{Service: "keystone", Method: "POST", Path: "/v3/auth/tokens"},
		{Service: "nova", Method: "POST", Path: "/servers"},
		{Service: "nova", Method: "DELETE", Path: "/servers" + id},
		{Service: "nova", Method: "GET", Path: "/servers/detail", Query: "name=%5Evm%24&limit=1000"},
		{Service: "nova", Method: "GET", Path: "/servers/detail", Query: "changes-since=x"},
		{Service: "nova", Method: "GET", Path: "/limits"},
		{Service: "neutron", Method: "POST", Path: "/v2.0/ports"},
		{Service: "neutron", Method: "GET", Path: "/v2.0/ports"},
		{Service: "keystone", Method: "GET", Path: "/v3/registered_limits"},
		{Service: "placement", Method: "GET", Path: "/allocation_candidates"},
	}
	if d := cmp.Diff(CallsByService{Keystone: 1, Nova: 2.5, Neutron: 1, Placement: 0.5}, perVM(calls, 2)); d != "" {
		t.Errorf("all (-want +got):\n%s", d)
	}
	own := map[string]float64{
		"keystone POST /v3/auth/tokens": 0.5, "nova POST /servers": 0.5, "nova DELETE /servers/ID": 0.5, "nova GET /servers/detail": 0.5, "neutron POST /v2.0/ports": 0.5,
	}
	if d := cmp.Diff(own, byKind(slices.DeleteFunc(calls, stackCall.shared), 2)); d != "" {
		t.Errorf("own (-want +got):\n%s", d)
	}
	for _, tt := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{5, 1, 3}, 3}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(tt.of); got != tt.want {
			t.Errorf("median of %v is %v, want %v", tt.of, got, tt.want)
		}
	}
}

func TestEach(t *testing.T) {
	var sum, now, most atomic.Int64
	err := each(3, []int64{1, 2, 3, 4, 5, 6, 7}, func(n int64) error {
		for k := now.Add(1); k > most.Load(); {
			most.Store(k)
		}
		defer now.Add(-1)
		sum.Add(n)
		if n == 4 {
			return errors.New("four")
		}
		return nil
	})
	if err == nil || err.Error() != "four" || sum.Load() != 28 || most.Load() > 3 {
		t.Errorf("%v, sum %d, %d at once", err, sum.Load(), most.Load())
	}
}

// What scripts rely on stands at the top of the report, if it was measured.
func TestStackReport(t *testing.T) {
	r := Report{OpenStack: &OpenStack{
		CallsPerVM: CallsByService{Nova: 2, Keystone: 0.05}, Overhead1: 1.02, Overhead100: 0.9, IdleCalls: 12.5,
		Detail: StackDetail{OwnCalls: map[string]float64{"nova POST /servers": 1}, Burst: StackBurst{N: 100, Workers: 64, Ours: []float64{90, 91}, Bare: []float64{100, 101}}, Idle: []StackIdle{{VMs: 500, Ours: 50, PerMinute: 12.5}}},
	}, Parts: []Part{{"machine", 1}, {"openstack-single", 2}}}
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(text, &top); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"overhead_1": "1.02", "overhead_100": "0.9", "idle_calls_per_min_500": "12.5"} {
		if got := string(top[key]); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	var calls map[string]float64
	if err := json.Unmarshal(top["calls_per_vm"], &calls); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]float64{"keystone": 0.05, "nova": 2, "glance": 0, "neutron": 0, "placement": 0}, calls); d != "" {
		t.Errorf("calls_per_vm (-want +got):\n%s", d)
	}
	got, err := ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, got); d != "" {
		t.Errorf("read back (-want +got):\n%s", d)
	}
	for section, want := range map[string]string{
		"figures": "", "week": "", "openstack": "| calls a minute, 500 VMs alive, 50 of them ours | 12.5 | not per VM |",
	} {
		var out strings.Builder
		if err := WriteSection(&out, got, section); err != nil || !strings.Contains(out.String(), want) || (want == "") != (out.Len() == 0) {
			t.Errorf("section %s: %v\n%s", section, err, &out)
		}
	}
}

// A part that needs a cloud is run only when it is asked for, and says what it needs.
func TestStackPartsAreAskedFor(t *testing.T) {
	all, err := choose(nil)
	if err != nil || slices.ContainsFunc(all, func(p part) bool { return strings.HasPrefix(p.name, stackSection) }) {
		t.Errorf("by default %v, %v", all, err)
	}
	err = stack(nil)(&bench{})
	if gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(gpuserver.PublicText(err), "--clouds") {
		t.Errorf("without a cloud: %v", err)
	}
}
