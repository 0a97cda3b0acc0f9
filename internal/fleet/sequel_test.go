package fleet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// record stores what the forge told of a job in another attempt.
func (b *bench) record(j gpuserver.Job) {
	b.t.Helper()
	j.Forge, j.Repo, j.RunID, j.Labels = "gh", "octo/hello", 7, []string{"gpu"}
	b.update(func(tx *store.Tx) error { return tx.InsertJob(&j) })
}

// Of a run that somebody ran again, a job that was run with it is not run again
// once more; one that was carried over is, under the number that it has now.
func TestRunThatSomebodyRanAgain(t *testing.T) {
	for name, c := range map[string]struct {
		tell func(b *bench, of gpuserver.Job)
		want []int64
		say  string
	}{
		"with the job": {func(b *bench, of gpuserver.Job) {
			b.record(gpuserver.Job{ForgeID: 50, RunAttempt: 2, Name: of.Name, State: gpuserver.JobReceived, ForgeState: gpuserver.ForgeQueued})
		}, nil, ranAgain},
		"without it": {func(b *bench, of gpuserver.Job) {
			b.record(gpuserver.Job{ForgeID: 50, RunAttempt: 2, Name: "other", State: gpuserver.JobReceived, ForgeState: gpuserver.ForgeQueued})
			b.record(gpuserver.Job{ForgeID: 51, RunAttempt: 2, Name: of.Name, RunnerName: of.RunnerName, State: gpuserver.JobDone, ForgeState: gpuserver.ForgeCompleted})
		}, []int64{51}, "it was run again, as attempt 3"},
		"without a word of it": {func(*bench, gpuserver.Job) {}, []int64{1}, "it was run again, as attempt 3"},
	} {
		t.Run(name, func(t *testing.T) {
			rerunBench(t, rerunFleet, func(b *bench) {
				b.setRun(func(r *forge.Run) { r.Status = "in_progress" })
				id := b.begun()
				b.dies(id, "failure")
				b.setRun(func(r *forge.Run) { r.Attempt = 2 })
				c.tell(b, b.read(id))
				b.pass(time.Hour)
				b.wantRerun() // the attempt goes on
				b.setRun(func(r *forge.Run) { r.Status = "completed" })
				b.pass(time.Hour)
				b.wantRerun(c.want...)
				if said := b.said(id); len(said) != 2 || said[1] != c.say {
					t.Errorf("its history: %q, want %q", said, c.say)
				}
			})
		})
	}
}

// A job of unknown outcome that another one's re-run carried over was not run.
func TestRerunThatAnotherOneForestalled(t *testing.T) {
	rerunBench(t, rerunFleet, func(b *bench) {
		first := true
		b.forge.fail = func(call string) error {
			if call == "rerun" && first {
				first = false
				return gpuserver.Errorf(gpuserver.KindUnavailable, "away")
			}
			return nil
		}
		id := b.begun()
		b.setRun(func(r *forge.Run) { r.Status = "in_progress" })
		b.dies(id, "failure")
		of := b.read(id)
		b.setRun(func(r *forge.Run) { r.Status = "completed" })
		for b.forge.count("rerun") == 0 {
			b.pass(time.Second)
		}
		b.setRun(func(r *forge.Run) { r.Attempt, r.Status = 2, "in_progress" })
		b.record(gpuserver.Job{ForgeID: 51, RunAttempt: 2, Name: of.Name, RunnerName: of.RunnerName, State: gpuserver.JobDone, ForgeState: gpuserver.ForgeCompleted})
		b.pass(time.Hour)
		b.setRun(func(r *forge.Run) { r.Status = "completed" })
		b.pass(time.Hour)
		b.wantRerun(51)
	})
}

// What was told of a job in later attempts of its run.
func TestSequelOf(t *testing.T) {
	const own, carried, anew = "runner-1", "runner-1", "runner-9"
	at := func(attempt int, id int64, name, runner string) gpuserver.Job {
		return gpuserver.Job{ForgeID: id, RunAttempt: attempt, Name: name, RunnerName: runner, State: gpuserver.JobDone, ForgeState: gpuserver.ForgeCompleted}
	}
	for name, c := range map[string]struct {
		told   []gpuserver.Job
		latest int
		want   sequel
	}{
		"nothing":                         {nil, 3, sequel{id: 1}},
		"carried":                         {[]gpuserver.Job{at(2, 21, "a", carried)}, 2, sequel{id: 21, carried: true}},
		"carried twice":                   {[]gpuserver.Job{at(2, 21, "a", carried), at(3, 31, "a", carried)}, 3, sequel{id: 31, carried: true}},
		"carried, then nothing":           {[]gpuserver.Job{at(2, 21, "a", carried)}, 3, sequel{id: 1}},
		"run anew":                        {[]gpuserver.Job{at(2, 21, "a", anew)}, 2, sequel{id: 1, anew: 2}},
		"carried, then run anew":          {[]gpuserver.Job{at(2, 21, "a", carried), at(3, 31, "a", "")}, 3, sequel{id: 1, anew: 3}},
		"run anew in an attempt to come":  {[]gpuserver.Job{at(2, 21, "a", anew)}, 1, sequel{id: 1}},
		"another job of the same attempt": {[]gpuserver.Job{at(1, 11, "a", anew)}, 2, sequel{id: 1}},
		"another job":                     {[]gpuserver.Job{at(2, 22, "b", anew)}, 2, sequel{id: 1}},
		"carried, beside another":         {[]gpuserver.Job{at(2, 21, "a", carried), at(2, 22, "b", "")}, 2, sequel{id: 21, carried: true}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(b *bench) {
				for _, j := range c.told {
					b.record(j)
				}
				j := at(1, 1, "a", own)
				j.Forge, j.Repo, j.RunID = "gh", "octo/hello", 7
				got, err := b.fleet.sequelOf(b.ctx, j, c.latest)
				if got != c.want || err != nil {
					t.Errorf("%+v, %v; want %+v", got, err, c.want)
				}
			})
		})
	}
}

// Of two jobs of a run the forge runs one at a time; the other one waits for the
// end of its attempt, also if it was asked at the same moment.
func TestTwoJobsOfARun(t *testing.T) {
	for _, together := range []bool{false, true} {
		t.Run(fmt.Sprint("together ", together), func(t *testing.T) {
			rerunBench(t, rerunFleet, func(b *bench) {
				first, second := b.begun(), b.begun()
				b.setRun(func(r *forge.Run) { r.Status = "in_progress" })
				b.dies(first, "failure")
				b.dies(second, "failure")
				if together { // both see a run that is over, and one comes too late
					busy := true
					b.forge.fail = func(call string) error {
						if call == "rerun" && busy {
							busy = false
							return gpuserver.Errorf(gpuserver.KindConflict, "its run goes on")
						}
						return nil
					}
				}
				b.setRun(func(r *forge.Run) { r.Status = "completed" })
				b.pass(time.Hour)
				if len(b.forge.reran) != 1 {
					t.Fatalf("%v were run again", b.forge.reran)
				}
				b.setRun(func(r *forge.Run) { r.Status = "completed" })
				b.pass(time.Hour)
				if got := slices.Sorted(slices.Values(b.forge.reran)); !slices.Equal(got, []int64{1, 2}) {
					t.Errorf("%v were run again, want each once", got)
				}
			})
		})
	}
}
