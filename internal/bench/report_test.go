package bench

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// promised are the keys that scripts rely on. One is never renamed or removed.
var promised = []string{
	"machine.cpu", "machine.cores", "machine.memory_mib", "machine.kernel", "machine.fs", "machine.fsync_ms.p50", "machine.fsync_ms.p99", "machine.pragmas", "machine.go",
	"forge_0ms.webhook_to_create_ms.p50", "forge_0ms.webhook_to_create_ms.p99", "forge_0ms.burst_1000_per_s",
	"forge_150ms.webhook_to_create_ms.p50", "forge_150ms.webhook_to_create_ms.p99", "forge_150ms.burst_1000_per_s",
	"burst_within_limits.rejected", "burst_within_limits.of_permitted",
	"intake_per_s", "intake_p99_ms", "complete_to_delete_ms.p50", "rss_idle_mib", "rss_5000_vms_mib", "points_per_job",
	"restart_to_first_create_ms",
	"week.one_address_per_group.jobs", "week.one_address_per_group.done", "week.one_address_per_group.lost",
	"week.one_address_per_group.mean_wait_s", "week.one_address_per_group.p95_wait_s",
	"week.counting_devices.done", "week.counting_devices.lost", "week.counting_devices.mean_wait_s", "week.counting_devices.p95_wait_s",
	"week.ours.done", "week.ours.lost", "week.ours.mean_wait_s", "week.ours.p95_wait_s",
}

func TestReportKeepsItsKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := (Report{}).Write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	for _, key := range promised {
		at := tree
		for _, k := range strings.Split(key, ".") {
			m, _ := at.(map[string]any)
			var ok bool
			if at, ok = m[k]; !ok {
				t.Errorf("the report has no %s", key)
				break
			}
		}
	}
}

func TestReportIsReadBack(t *testing.T) {
	want := Report{IntakePerS: 2345.6, TakenAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Parts: []Part{{"idle", 5}}}
	want.Machine.Pragmas = map[string]string{"synchronous": "2"}
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := ReadReport(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was read")
	}
}

// The table in the documentation has the rows that the program prints, so that
// it can be replaced as it is.
func TestTableInDocumentationHasTheSameRows(t *testing.T) {
	doc, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := WriteTable(&out, Report{}); err != nil {
		t.Fatal(err)
	}
	want := firstColumn(out.String())
	got := firstColumn(string(doc))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/performance.md differs from scripts/bench --table (-program +file):\n%s", d)
	}
}

// firstColumn gives the first column of the first table in a text.
func firstColumn(text string) (col []string) {
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			if len(col) > 0 {
				return col
			}
			continue
		}
		col = append(col, strings.TrimSpace(cells[1]))
	}
	return col
}

func TestQuantiles(t *testing.T) {
	var ds []time.Duration
	for i := range 100 {
		ds = append(ds, time.Duration(100-i)*time.Millisecond)
	}
	if d := cmp.Diff(Quantiles{P50: 50, P99: 99, Max: 100, N: 100}, quantiles(ds)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(Quantiles{P50: 7, P99: 7, Max: 7, N: 1}, quantiles([]time.Duration{7 * time.Millisecond})); d != "" {
		t.Error(d)
	}
	if q := quantiles(nil); q != (Quantiles{}) {
		t.Errorf("%v of nothing", q)
	}
}

// Calls that overlap are waited for once.
func TestCovered(t *testing.T) {
	t0 := time.Unix(1000, 0)
	call := func(from, to int) forgetest.Call {
		return forgetest.Call{Start: t0.Add(time.Duration(from) * time.Second), End: t0.Add(time.Duration(to) * time.Second)}
	}
	for _, c := range []struct {
		calls []forgetest.Call
		want  time.Duration
	}{
		{nil, 0},
		{[]forgetest.Call{call(0, 2), call(3, 4)}, 3 * time.Second},
		{[]forgetest.Call{call(1, 4), call(0, 2)}, 4 * time.Second},
		{[]forgetest.Call{call(0, 5), call(1, 2), call(4, 6)}, 6 * time.Second},
	} {
		if got := covered(c.calls); got != c.want {
			t.Errorf("%v: %s, want %s", c.calls, got, c.want)
		}
	}
}

// A client that bursts each minute and one that registers evenly are measured
// alike; one that loses a second of each minute, or a part of each window, shows.
func TestWithinLimits(t *testing.T) {
	const perMinute = 180
	burst := func(each time.Duration, n int) (cs []fake.Call) {
		for w := range 4 {
			for i := range n {
				cs = append(cs, fake.Call{At: (time.Duration(w)*each + time.Duration(i)*time.Millisecond).Nanoseconds()})
			}
		}
		return cs
	}
	var even []fake.Call
	for i := range 4 * perMinute {
		even = append(even, fake.Call{At: (time.Duration(i) * time.Minute / perMinute).Nanoseconds()})
	}
	for _, c := range []struct {
		name  string
		calls []fake.Call
		want  float64
	}{
		{"bursts", burst(time.Minute, perMinute), 1},
		{"even", even, 1},
		{"62 s for a minute", burst(62*time.Second, perMinute), 0.968},
		{"90 % of each window", burst(time.Minute, 162), 0.9},
	} {
		slices.SortFunc(c.calls, func(a, b fake.Call) int { return int(a.At - b.At) })
		if got := withinLimits(c.calls, 2*time.Minute); got.Permitted != c.want {
			t.Errorf("%s: %v of what is permitted, want %v", c.name, got.Permitted, c.want)
		}
	}
}

// A delivery made from the sample is the sample with other numbers.
func TestForm(t *testing.T) {
	f, err := newForm(sample{Body: `{"run_id":31,"id":57,"url":"runs/31/jobs/57"}`, Run: 31, Job: 57})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ids  ids
		want string
	}{
		{ids{Run: 44, Job: 99}, `{"run_id":44,"id":99,"url":"runs/44/jobs/99"}`},
		{ids{Run: 57, Job: 31}, `{"run_id":57,"id":31,"url":"runs/57/jobs/31"}`},
	} {
		if d := cmp.Diff(c.want, string(f.with(c.ids))); d != "" {
			t.Error(d)
		}
	}
	if _, err := newForm(sample{Body: `{}`, Run: 1, Job: 2}); err == nil {
		t.Error("a sample without the numbers was taken")
	}
}
