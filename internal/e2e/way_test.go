package e2e

import (
	"strings"
	"testing"

	"gpuserver"
)

func TestJobBecomesVMAndIsGone(t *testing.T) {
	w := newWorld(t, "")
	w.serve()
	run := w.dispatch("alice", 3)
	seen := map[string]bool{}
	for _, j := range w.succeeded(run) {
		if seen[j.RunnerName] || !strings.HasPrefix(j.RunnerName, "e2e-") {
			t.Errorf("job %s ran on %q; want a runner of its own", j.Name, j.RunnerName)
		}
		seen[j.RunnerName] = true
	}
	w.nothingLeft()
	jobs, err := w.client().Jobs(w.ctx, nil, "", 10)
	w.ok(err)
	if len(jobs) != 3 {
		t.Fatalf("%d jobs are known, want 3", len(jobs))
	}
	for _, j := range jobs {
		d, err := w.client().Job(w.ctx, j.ID)
		w.ok(err)
		passed := map[string]bool{}
		for _, p := range d.Phases {
			passed[p.Name] = true
		}
		for _, p := range gpuserver.Phases {
			if !passed[p] {
				t.Errorf("job %d never passed phase %s: %v", j.ID, p, d.Phases)
			}
		}
	}
}
