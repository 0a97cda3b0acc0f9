//go:build gpu

package guest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/gate"
)

// realHouse is a guest whose bus, kernel log and tools are this machine's, which
// has a card of NVIDIA and its driver; its runner is script. `make test-gpu` runs
// the tests that use it.
func realHouse(t *testing.T, script string) *house {
	t.Helper()
	smi, err := exec.LookPath("nvidia-smi")
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, script)
	h.write(t, "dev/console", "")
	for name, real := range map[string]string{"sys": "/sys", "dev/kmsg": "/dev/kmsg", "usr/bin/nvidia-smi": smi} {
		path := filepath.Join(h.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real, path); err != nil {
			t.Fatal(err)
		}
	}
	h.payload.Gate = &gate.Expectation{Cards: gate.Present("")}
	if len(h.payload.Gate.Cards) == 0 {
		t.Fatal("no GPU on this machine's PCI bus")
	}
	return h
}

// TestRealCard: a job on a machine with a card. The gate passes before and after
// it, tells the same card both times, and it is the one that the job sees.
func TestRealCard(t *testing.T) {
	h := realHouse(t, "nvidia-smi -L > ran")
	h.start(t)
	h.wait(t)
	reports := h.reports(t)
	if len(reports) != 2 || !h.ran() {
		t.Fatalf("%d reports, runner started %v", len(reports), h.ran())
	}
	seen := h.read(t, "opt/runner/ran")
	t.Logf("the job saw %s", seen)
	var cards [2][]gate.Card
	for i, when := range []string{gate.Before, gate.After} {
		r := reports[when]
		t.Logf("%s: %s in %.2f s: %+v", when, r.Tool, r.Seconds, r.Cards)
		if !r.Passed || !strings.HasPrefix(r.Tool, "nvidia-smi ") || len(r.Cards) != len(h.payload.Gate.Cards) {
			t.Errorf("%s: %+v", when, r)
		}
		for _, c := range r.Cards {
			if c.UUID == "" || !strings.Contains(seen, c.UUID) || c.Product == "" || c.Temperature < 5 || c.Temperature > 95 {
				t.Errorf("%s: the card is told as %+v", when, c)
			}
			c.Temperature, c.LinkWidth = 0, 0
			cards[i] = append(cards[i], c)
		}
	}
	if diff := cmp.Diff(cards[0], cards[1]); diff != "" {
		t.Errorf("the cards before and after the job differ:\n%s", diff)
	}
}

// TestRealCardIsMissing: one more card is expected than there is.
func TestRealCardIsMissing(t *testing.T) {
	h := realHouse(t, "touch ran")
	h.payload.Gate.Cards = append(h.payload.Gate.Cards, h.payload.Gate.Cards[0])
	h.start(t)
	h.wait(t)
	r := h.reports(t)[gate.Before]
	if r == nil || r.Passed || len(r.Findings) != 1 || r.Findings[0].Kind != gate.KindMissing || h.ran() {
		t.Errorf("the report is %+v, runner started %v; expected one finding: missing", r, h.ran())
	}
}
