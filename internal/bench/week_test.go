package bench

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/pci"
	"gpuserver/internal/pci/pcitest"
)

// weekSeeds are how many weeks the tests look at.
const weekSeeds = 20

// ways are all ways of a week.
func ways(seed uint64) map[string]weekWay {
	return map[string]weekWay{
		"one address": newOneAddress(seed), "counting": newCounting(seed, startTries),
		"retrying": newCounting(seed, 1000), "ours": newPlanned(),
	}
}

// Each job ends once: done or lost.
func TestWeekConservesJobs(t *testing.T) {
	for seed := range uint64(weekSeeds) {
		for name, way := range ways(seed) {
			r := newWeekRun(seed, way)
			out := r.run()
			if out.Jobs != len(r.jobs) || out.Done+out.Lost != out.Jobs || out.Done == 0 {
				t.Errorf("seed %d, %s: %d jobs, %d done, %d lost", seed, name, out.Jobs, out.Done, out.Lost)
			}
			for _, j := range r.jobs {
				if !j.over {
					t.Errorf("seed %d, %s: job %d never ended", seed, name, j.id)
				}
			}
			if len(r.waiting)+len(r.machine.held)+len(r.machine.given) > 0 {
				t.Errorf("seed %d, %s: %d jobs wait at the end, groups %v are held", seed, name, len(r.waiting), r.machine.held)
			}
		}
	}
}

// never is a way that gives nobody anything.
type never struct{ *planned }

func (never) place(time.Duration, []*weekJob, *weekMachine) ([]*weekVM, time.Duration) {
	return nil, 0
}

// The forge cancels what has waited for a day, in the queue or between two tries.
func TestWeekLosesWhatNeverStarts(t *testing.T) {
	waiting := newWeekRun(1, never{newPlanned()})
	trying := newWeekRun(1, newCounting(1, 1000))
	for _, s := range weekSlots { // by somebody who stays
		trying.machine.held[s.Group] = &weekVM{}
	}
	for name, r := range map[string]*weekRun{"waiting": waiting, "trying": trying} {
		if out := r.run(); out.LostInQueue != out.Jobs || out.Lost != out.Jobs || r.now < forgeWaits {
			t.Errorf("%s: %+v", name, out)
		}
	}
	if trying.out.FailedStarts == 0 {
		t.Error("no VM was tried")
	}
}

// The same seed gives the same week, and another one another.
func TestWeekDependsOnItsSeed(t *testing.T) {
	if d := cmp.Diff(SimulateWeek(3), SimulateWeek(3)); d != "" {
		t.Error(d)
	}
	if cmp.Equal(SimulateWeek(3).Ours, SimulateWeek(4).Ours) {
		t.Error("two seeds have the same week")
	}
}

// watched is a way whose answers are looked at.
type watched struct {
	weekWay
	t *testing.T
}

func (w watched) place(now time.Duration, waiting []*weekJob, m *weekMachine) ([]*weekVM, time.Duration) {
	starts, again := w.weekWay.place(now, waiting, m)
	by := map[int]*weekVM{}
	for _, v := range starts {
		if len(v.cards) != v.job.cards {
			w.t.Errorf("%s: job %d gets %v, and wants %d", now, v.job.id, v.cards, v.job.cards)
		}
		for _, c := range v.cards {
			g := groupOf(c)
			if other := m.held[g]; other != nil {
				w.t.Errorf("%s: group %d goes to job %d while job %d has it", now, g, v.job.id, other.job.id)
			}
			if by[g] != nil && by[g] != v {
				w.t.Errorf("%s: group %d goes to jobs %d and %d", now, g, v.job.id, by[g].job.id)
			}
			by[g] = v
		}
	}
	return starts, again
}

// No group has two VMs, and so no VM of these ways fails to start.
func TestWeekHoldsNoGroupTwice(t *testing.T) {
	for seed := range uint64(weekSeeds) {
		for _, name := range []string{"one address", "ours"} {
			if out := newWeekRun(seed, watched{ways(seed)[name], t}).run(); out.FailedStarts > 0 {
				t.Errorf("seed %d, %s: %d VMs could not be started", seed, name, out.FailedStarts)
			}
		}
	}
}

// The machine refuses what hardware refuses: that is what counting meets.
func TestWeekMachine(t *testing.T) {
	m := weekMachine{held: map[int]*weekVM{}, given: map[string]*weekVM{}}
	first, second := &weekVM{cards: []string{"0000:27:00.0"}}, &weekVM{cards: []string{"0000:44:00.0", "0000:28:00.0"}}
	if !m.hold(first) || m.hold(second) || m.held[32] != nil {
		t.Errorf("held %v, want group 19 by the first alone", m.held)
	}
	m.release(first)
	if !m.hold(second) || m.held[19] != second || m.held[32] != second {
		t.Errorf("held %v, want groups 19 and 32 by the second", m.held)
	}
	if out := newWeekRun(1, newCounting(1, startTries)).run(); out.FailedStarts == 0 || out.LostToStarts == 0 {
		t.Errorf("counting devices never met a held group: %+v", out)
	}
}

// What docs/performance.md says of other weeks than the one that it shows.
func TestWeeksCompare(t *testing.T) {
	longer, lost, retrying, spared := 0, 0, 0, 0
	for seed := range uint64(weekSeeds) {
		w := SimulateWeek(seed + 1)
		if w.Ours.Lost >= w.OneAddress.Lost || w.Ours.Lost >= w.Counting.Lost || w.Ours.Lost > 2 {
			t.Errorf("seed %d: %d jobs lost, %d with one address, %d counting", w.Seed, w.Ours.Lost, w.OneAddress.Lost, w.Counting.Lost)
		}
		lost, retrying = lost+w.Ours.Lost, retrying+w.Retrying.Lost
		spared += w.Ours.SparedByGate
		if w.Ours.LostInQueue+w.Ours.LostToStarts > 0 {
			t.Errorf("seed %d: %+v", w.Seed, w.Ours)
		}
		if w.Ours.MeanWait > w.OneAddress.MeanWait {
			longer++
			t.Logf("seed %d: mean wait %v s, %v s with one address", w.Seed, w.Ours.MeanWait, w.OneAddress.MeanWait)
		}
	}
	if lost >= retrying || spared == 0 {
		t.Errorf("%d jobs lost in all and %d spared by the gate, %d lost by counting and retrying", lost, spared, retrying)
	}
	if longer > 2 {
		t.Errorf("jobs wait longer than with one address in %d of %d weeks", longer, weekSeeds)
	}
}

// A card that failed rests, then goes into quarantine with its group, and is back
// once it is repaired.
func TestWeekQuarantine(t *testing.T) {
	p := newPlanned()
	out := func(now time.Duration) (groups []int) {
		slots, _ := p.slots(now)
		for _, s := range slots {
			if s.Out != "" {
				groups = append(groups, s.Group)
			}
		}
		return groups
	}
	p.failed(flakyCard, false, 0)
	_, back := p.slots(0)
	if len(out(0)) != 1 || back <= 0 || len(out(back-1)) != 1 || len(out(back)) != 0 {
		t.Errorf("after a strike groups %v are out until %s", out(0), back)
	}
	p.failed(flakyCard, true, back)
	if d := cmp.Diff([]int{19}, out(weekLength)); d != "" {
		t.Errorf("out of service (-want +got): %s", d)
	}
	p.repaired(flakyCard)
	if len(out(0)) != 0 {
		t.Error("a repaired card is out of service")
	}
}

// The machine of the week is the one of the fixture.
func TestWeekHasTheSeedsSlots(t *testing.T) {
	inv, err := pci.Read(os.DirFS(pcitest.Write(t, pcitest.Seed("vfio-pci"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[int][]string{}, map[int][]string{}
	for _, s := range inv.Slots {
		want[s.Group] = s.GPUs
	}
	for _, s := range weekSlots {
		for _, c := range s.Cards {
			got[s.Group] = append(got[s.Group], c.Address)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("slots (-fixture +week): %s", d)
	}
}

// A section is written where it was measured, and the others are left alone.
func TestSections(t *testing.T) {
	for _, tt := range []struct {
		section string
		parts   []Part
		want    string // it begins
	}{
		{"figures", []Part{{"idle", 1}}, "| Figure |"},
		{"figures", []Part{{"week", 1}}, ""},
		{"week", []Part{{"idle", 1}}, ""},
		{"week", []Part{{"idle", 1}, {"week", 1}}, "| Way |"},
	} {
		var b bytes.Buffer
		if err := WriteSection(&b, Report{Parts: tt.parts}, tt.section); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("section %s of %v: %q", tt.section, tt.parts, got)
		}
	}
	if err := WriteSection(&bytes.Buffer{}, Report{}, "weeks"); err == nil {
		t.Error("a section that does not exist was written")
	}
}
