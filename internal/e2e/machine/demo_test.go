package machine

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// demoOutput is what scripts may rely on.
type demoOutput struct {
	Jobs []struct {
		ID         int64  `json:"id"`
		Name       string `json:"name"`
		Conclusion string `json:"conclusion"`
		VM         string `json:"vm"`
		Runner     string `json:"runner"`
		Log        string `json:"log"`
		Phases     []struct {
			Name    string  `json:"name"`
			At      string  `json:"at"`
			Seconds float64 `json:"seconds"`
		} `json:"phases"`
	} `json:"jobs"`
	Left struct {
		Domains   int `json:"domains"`
		Volumes   int `json:"volumes"`
		Leases    int `json:"leases"`
		Runners   int `json:"runners"`
		Processes int `json:"processes"`
		Links     int `json:"links"`
	} `json:"left"`
}

// TestDemo runs the demonstration as "make demo" does; what it says of itself
// is compared with what the host has.
func TestDemo(t *testing.T) {
	p := program(t, nil, "demo", "--once", "--jobs", "3", "--output", "json", "--image-dir", image)
	if status := p.ended(t); status != 0 {
		t.Fatalf("demo ended with status %d", status)
	}
	out := decodeDemo(t, p.stdout.String())
	if len(out.Jobs) != 3 {
		t.Fatalf("%d jobs, want 3", len(out.Jobs))
	}
	seen := map[any]bool{}
	for _, j := range out.Jobs {
		for _, id := range []any{j.ID, j.Name, j.VM, j.Runner} {
			if seen[id] {
				t.Errorf("two jobs have %v", id)
			}
			seen[id] = true
		}
		if j.Conclusion != "success" || j.ID == 0 || !strings.HasPrefix(j.Runner, j.VM) {
			t.Errorf("job %d %s ended as %q on runner %q of VM %q", j.ID, j.Name, j.Conclusion, j.Runner, j.VM)
		}
		if !strings.Contains(j.Log, "Linux "+j.VM+" ") {
			t.Errorf("the log of %s has no uname -a of VM %s:\n%s", j.Name, j.VM, j.Log)
		}
		var names []string
		var last time.Time
		for _, p := range j.Phases {
			names = append(names, p.Name)
			at, err := time.Parse(time.RFC3339, p.At)
			if err != nil || !strings.HasSuffix(p.At, "Z") || at.Before(last) || time.Since(at) > time.Hour {
				t.Errorf("phase %s of %s is at %q, after %v (%v)", p.Name, j.Name, p.At, last, err)
			}
			want := 0.0
			if !last.IsZero() {
				want = at.Sub(last).Seconds()
			}
			if d := p.Seconds - want; d < -0.002 || d > 0.002 {
				t.Errorf("phase %s of %s took %v s, by its times %v s", p.Name, j.Name, p.Seconds, want)
			}
			last = at
		}
		if diff := cmp.Diff(gpuserver.Phases, names); diff != "" {
			t.Errorf("phases of %s (-want +got):\n%s", j.Name, diff)
		}
	}
	if zero := (demoOutput{}).Left; out.Left != zero {
		t.Errorf("left behind: %+v", out.Left)
	}
	if left := onHost(t, "gsd"); left != "" {
		t.Errorf("the host has more than before:\n%s", left)
	}
}

// decodeDemo reads one document that has what demoOutput has, all of it and
// nothing else.
func decodeDemo(t *testing.T, text string) (out demoOutput) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&out); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		t.Errorf("there is more than one document (%v): %s", err, text)
	}
	again, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := errors.Join(json.Unmarshal(again, &want), json.Unmarshal([]byte(text), &got)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("a key is missing (-want +got):\n%s", diff)
	}
	return out
}

// TestDemoInterrupted ends the demonstration while its VM is being made, and in
// the middle of a job: it takes everything away and does not say that all was well.
func TestDemoInterrupted(t *testing.T) {
	for _, at := range []string{"create called", "job started"} {
		t.Run(at, func(t *testing.T) {
			p := program(t, nil, "demo", "--once", "--jobs", "1", "--output", "json", "--image-dir", image)
			p.says(t, &p.stderr, at)
			p.signal(syscall.SIGINT)
			if status := p.ended(t); status == 0 {
				t.Error("demo was interrupted and ended with status 0")
			}
			if left := onHost(t, "gsd"); left != "" {
				t.Errorf("the host has more than before:\n%s", left)
			}
			if !strings.Contains(p.stderr.String(), "interrupted") {
				t.Error("demo does not say that it was interrupted")
			}
		})
	}
}

// TestOnHostFinds shows that what the other tests look for would be found, and
// that a job cancelled in the middle frees all of it.
func TestOnHostFinds(t *testing.T) {
	w := newWorld(t)
	w.serve()
	run := w.dispatch("found", w.step("found"))
	w.came("found")
	var kinds []string
	for line := range strings.Lines(onHost(t, w.name)) {
		kinds = append(kinds, strings.Fields(line)[0])
	}
	slices.Sort(kinds)
	want := []string{"domain", "filter", "folder", "link", "namespace", "network", "process", "rules"}
	if diff := cmp.Diff(want, slices.Compact(kinds)); diff != "" {
		t.Errorf("what a running service has on the host (-want +got):\n%s", diff)
	}
	w.ok(w.CancelRun(w.ctx, run.ID))
	if j := w.completed(run); j.Conclusion != "cancelled" {
		t.Errorf("the cancelled job ended as %q", j.Conclusion)
	}
	w.nothingLeft()
}
