package fleet

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/guest"
	"gpuserver/internal/pci"
	"gpuserver/internal/store"
)

func rerunFleet(o *Options) {
	gpuFleet(o)
	o.RerunOnGPU = true
}

// rerunBench is a bench on the seed's machine where jobs are run again, and whose
// forge has a run that is over.
func rerunBench(t *testing.T, change func(*Options), fn func(*bench)) {
	t.Helper()
	inBubble(t, change, func(b *bench) {
		b.forge.run = forge.Run{ID: 7, Attempt: 1, Status: "completed", Conclusion: "failure"}
		b.cloud.SetHosts([]gpuserver.Host{seedHost()})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		b.settle()
		fn(b)
	})
}

// setRun changes the run of all jobs.
func (b *bench) setRun(change func(*forge.Run)) {
	b.forge.mu.Lock()
	defer b.forge.mu.Unlock()
	change(&b.forge.run)
}

// begun is a job that runs on a card.
func (b *bench) begun() gpuserver.JobID {
	b.t.Helper()
	id := b.job("gpu1")
	vm := b.starting(id)
	b.gate(vm)
	b.running(id, b.vm(vm).Runner.Name)
	return id
}

// dies ends a job whose card died.
func (b *bench) dies(id gpuserver.JobID, conclusion string) {
	b.t.Helper()
	vm := b.read(id).VM
	b.cloud.SetCard(sick(func(r *pci.Reading) { r.Address, r.Dead = b.devices(vm)[0], true }))
	b.done(id, conclusion)
	b.pass(afterLimit)
	b.wantVM(vm, gpuserver.VMGone)
}

// said gives what a job's history says of its re-run.
func (b *bench) said(id gpuserver.JobID) (texts []string) {
	b.t.Helper()
	_ = b.db.View(b.ctx, func(tx *store.Tx) error {
		es, err := tx.JobEvents(id)
		for _, e := range es {
			if e.Kind == eventRerun {
				texts = append(texts, e.Text)
			}
		}
		return err
	})
	return texts
}

// wantRerun checks how often the forge carried a re-run out, and for which jobs.
func (b *bench) wantRerun(ids ...int64) {
	b.t.Helper()
	b.forge.mu.Lock()
	defer b.forge.mu.Unlock()
	if !slices.Equal(b.forge.reran, ids) {
		b.t.Errorf("jobs %v of the forge were run again, want %v", b.forge.reran, ids)
	}
}

const ranAgain = "it was run again, as attempt 2"

// A job is run again if its card failed it, it is the forge's, that is configured,
// and it was not run too often.
func TestWhichJobsAreRunAgain(t *testing.T) {
	for name, c := range map[string]struct {
		change     func(*Options)
		attempt    int
		conclusion string
		healthy    bool
		times      int
		help       string
	}{
		"a card died":          {rerunFleet, 1, "failure", false, 1, ranAgain},
		"it took too long":     {rerunFleet, 1, "timed_out", false, 1, ranAgain},
		"not configured":       {gpuFleet, 1, "failure", false, 0, rerunByHand},
		"the card is well":     {rerunFleet, 1, "failure", true, 0, ""},
		"it succeeded":         {rerunFleet, 1, "success", false, 0, ""},
		"it was cancelled":     {rerunFleet, 1, "cancelled", false, 0, ""},
		"the last attempt":     {rerunFleet, 2, "failure", false, 1, "it was run again, as attempt 3"},
		"one attempt too many": {rerunFleet, 3, "failure", false, 0, "by itself it is run again 2 times at most"},
	} {
		t.Run(name, func(t *testing.T) {
			rerunBench(t, c.change, func(b *bench) {
				id := b.begun()
				b.setRun(func(r *forge.Run) { r.Attempt = c.attempt })
				b.update(func(tx *store.Tx) error {
					j, err := tx.Job(id)
					if err != nil {
						return err
					}
					j.RunAttempt = c.attempt
					return tx.SaveJob(&j)
				})
				if c.healthy {
					b.done(id, c.conclusion)
				} else {
					b.dies(id, c.conclusion)
				}
				b.pass(time.Hour)
				b.wantRerun(slices.Repeat([]int64{1}, c.times)...)
				if j := b.read(id); !strings.Contains(j.Reason.Help, c.help) {
					t.Errorf("it says %q, want %q", j.Reason.Help, c.help)
				}
				if n := len(b.said(id)); n != 2*c.times {
					t.Errorf("its history: %q", b.said(id))
				}
			})
		})
	}
}

// A command has no forge that could run it again.
func TestCommandIsNotRunAgain(t *testing.T) {
	rerunBench(t, rerunFleet, func(b *bench) {
		id, err := b.fleet.StartRun(b.ctx, Run{Command: gpuserver.Command{Args: []string{"true"}}, Flavor: "gpu1"},
			[]gpuserver.Entry{{Cloud: "local", Flavor: "gpu1", Image: "img"}}, "alice")
		if err != nil {
			t.Fatal(err)
		}
		b.settle()
		vm := b.starting(id)
		b.gate(vm)
		b.beat(vm, guest.Heartbeat{Phase: "runner"})
		b.cloud.SetCard(sick(func(r *pci.Reading) { r.Address, r.Dead = b.devices(vm)[0], true }))
		exit := 1
		b.beat(vm, guest.Heartbeat{Phase: "exited", RunnerExit: &exit})
		b.pass(time.Hour)
		if j := b.wantJob(id, gpuserver.JobDone); j.Reason.Class != gpuserver.ReasonGPU || j.Reason.Help != rerunByHand {
			t.Errorf("%+v", j.Reason)
		}
		if n := b.forge.count("run") + b.forge.count("rerun"); n != 0 {
			t.Errorf("the forge was asked %d times", n)
		}
	})
}

// While the run goes on the forge is asked rarely how far it is, and the job is
// run again soon after its end: once, whatever happens then.
func TestRerunWaitsForTheRun(t *testing.T) {
	rerunBench(t, rerunFleet, func(b *bench) {
		b.setRun(func(r *forge.Run) { r.Status, r.Conclusion = "in_progress", "" })
		id := b.begun()
		b.dies(id, "failure")
		if j := b.read(id); j.Reason.Help != rerunSoon {
			t.Errorf("it says %q", j.Reason.Help)
		}
		b.pass(3 * time.Hour)
		if n, most := b.forge.count("run"), int(3*time.Hour/rerunPauseMost)+10; n > most || n < 10 {
			t.Errorf("the forge was asked %d times, want at most %d", n, most)
		}
		if n := b.forge.count("rerun"); n != 0 {
			t.Errorf("it was asked to run the job again %d times while its run went on", n)
		}
		asked := b.forge.count("run")
		b.stop()
		b.start(rerunFleet) // the pause goes on
		if n := b.forge.count("run"); n != asked {
			t.Errorf("after a restart the forge was asked %d times at once", n-asked)
		}
		b.setRun(func(r *forge.Run) { r.Status, r.Conclusion = "completed", "failure" })
		b.pass(rerunPauseMost)
		b.wantRerun(1)
		asked = b.forge.count("run")
		if d := b.fleet.stepRerun(b.ctx, id); d != 0 { // nobody wakes it, but whoever does has to do no harm
			t.Errorf("once that was done it is looked at again after %s", d)
		}
		for _, status := range []string{"in_progress", "completed"} {
			b.setRun(func(r *forge.Run) { r.Status = status })
			b.pass(time.Hour)
			b.stop()
			b.start(rerunFleet)
			b.pass(time.Hour)
		}
		b.wantRerun(1)
		if n := b.forge.count("run"); n != asked {
			t.Errorf("once that was done the forge was asked %d times more", n-asked)
		}
		if d := cmp.Diff([]string{rerunSoon, ranAgain}, b.said(id)); d != "" {
			t.Errorf("its history (-want +got):\n%s", d)
		}
		if j := b.read(id); j.Reason.Class != gpuserver.ReasonGPU || j.Reason.Help != ranAgain {
			t.Errorf("%+v", j.Reason)
		}
	})
}

// What is told of a card twice has its job run again once.
func TestRerunIsNotedOnce(t *testing.T) {
	rerunBench(t, rerunFleet, func(b *bench) {
		id := b.begun()
		b.dies(id, "failure")
		b.update(func(tx *store.Tx) error { // as if its reason had been lost
			j, err := tx.Job(id)
			if err != nil {
				return err
			}
			j.Reason = gpuserver.Reason{}
			return tx.SaveJob(&j)
		})
		b.pass(time.Hour)
		b.setRun(func(r *forge.Run) { r.Status = "completed" })
		b.pass(time.Hour)
		b.wantRerun(1)
		if n := len(b.said(id)); n != 2 {
			t.Errorf("its history: %q", b.said(id))
		}
	})
}

// What keeps a job from being run again is told to its user and to the operator,
// and ends it.
func TestRerunIsGivenUp(t *testing.T) {
	const noPermission = "GitHub refused to let the App re-run job 1 of octo/hello; grant it actions=write"
	answer := func(kind gpuserver.Kind, text string) func(*bench) {
		return func(b *bench) {
			b.forge.fail = func(call string) error {
				if call == "rerun" {
					return gpuserver.Errorf(kind, "%s", text)
				}
				return nil
			}
		}
	}
	for name, c := range map[string]struct {
		before func(*bench)
		after  func(*bench)
		asked  int
		say    string
	}{
		"no permission": {answer(gpuserver.KindRefused, noPermission), nil, 1, noPermission},
		"no such job":   {answer(gpuserver.KindNotFound, "no such job"), nil, 1, "no such job"},
		"too old":       {answer(gpuserver.KindInvalid, "created over a month ago"), nil, 1, "created over a month ago"},
		"cancelled":     {func(b *bench) { b.setRun(func(r *forge.Run) { r.Conclusion = "cancelled" }) }, nil, 0, "its run was cancelled"},
		"never ends": {func(b *bench) { b.setRun(func(r *forge.Run) { r.Status = "in_progress" }) }, func(b *bench) {
			b.pass(rerunFor - time.Hour)
			if n := len(b.said(1)); n != 1 {
				b.t.Errorf("an hour before: %q", b.said(1))
			}
			b.pass(time.Hour + 2*rerunPauseMost)
			b.setRun(func(r *forge.Run) { r.Status = "completed" })
		}, 0, "it could not be for 24 hours; the last: its run still goes on"},
		"switched off": {func(b *bench) { b.setRun(func(r *forge.Run) { r.Status = "in_progress" }) }, func(b *bench) {
			b.stop()
			b.start(gpuFleet)
			b.setRun(func(r *forge.Run) { r.Status = "completed" })
			b.pass(rerunPauseMost)
		}, 0, "that is not configured any more"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			logged := func(o *Options) {
				rerunFleet(o)
				o.Log = slog.New(slog.NewTextHandler(&log, nil))
			}
			rerunBench(t, logged, func(b *bench) {
				c.before(b)
				id := b.begun()
				b.dies(id, "failure")
				if c.after != nil {
					c.after(b)
				}
				b.pass(time.Hour)
				b.stop()
				b.start(logged)
				b.pass(time.Hour)
				b.wantRerun()
				if n := b.forge.count("rerun"); n != c.asked {
					t.Errorf("the forge was asked %d times, want %d", n, c.asked)
				}
				j, said := b.read(id), b.said(id)
				if len(said) != 2 || !strings.Contains(said[1], c.say) || !strings.Contains(j.Reason.Help, c.say) || !strings.HasPrefix(j.Reason.Help, rerunByHand) {
					t.Errorf("history %q; help %q; want %q", said, j.Reason.Help, c.say)
				}
				if n := strings.Count(log.String(), "level=WARN msg=\"the forge refuses to run a job again\""); n != c.asked || n > 0 && !strings.Contains(log.String(), c.say) {
					t.Errorf("the operator is warned %d times, want %d:\n%s", n, c.asked, log.String())
				}
			})
		})
	}
}

// A look at a run that shows an attempt before the job's own says nothing of the
// job: it is neither run again at that, nor taken for run again at the next look.
func TestRerunOfARunThatIsShownLate(t *testing.T) {
	rerunBench(t, rerunFleet, func(b *bench) {
		id := b.begun()
		b.update(func(tx *store.Tx) error {
			j, err := tx.Job(id)
			if err != nil {
				return err
			}
			j.RunAttempt = 2
			return tx.SaveJob(&j)
		})
		b.dies(id, "failure")
		if n := b.forge.count("run"); n == 0 {
			t.Error("the run was not looked at")
		}
		b.wantRerun()
		b.setRun(func(r *forge.Run) { r.Attempt = 2 })
		b.pass(time.Hour)
		b.wantRerun(1)
		if said := b.said(id); len(said) != 2 || said[1] != "it was run again, as attempt 3" {
			t.Errorf("its history: %q", said)
		}
	})
}

// A re-run that cannot be read from the store is looked at again.
func TestRerunThatCannotBeRead(t *testing.T) {
	rerunBench(t, rerunFleet, func(b *bench) {
		b.setRun(func(r *forge.Run) { r.Status = "in_progress" })
		id := b.begun()
		b.dies(id, "failure")
		b.stop()
		_ = b.db.Close()
		if d := b.fleet.stepRerun(b.ctx, id); d <= 0 {
			t.Error("it is forgotten until the next start")
		}
	})
}

// A call of unknown outcome is not repeated if it was carried out, and is if not.
func TestRerunOfUnknownOutcome(t *testing.T) {
	away := gpuserver.Errorf(gpuserver.KindUnavailable, "away")
	for name, c := range map[string]struct {
		happened bool // though the answer was lost
		restart  bool // before the next look
		lag      bool // the forge shows it only later
		calls    int
	}{
		"it happened":                              {true, false, false, 1},
		"it happened, and we were restarted":       {true, true, false, 1},
		"it happened, and is shown late":           {true, false, true, 2},
		"it did not happen":                        {false, false, false, 2},
		"it did not happen, and we were restarted": {false, true, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			rerunBench(t, rerunFleet, func(b *bench) {
				hook := func(call string) error {
					if call == "rerun" && !slices.Contains(b.forge.calls[:len(b.forge.calls)-1], "rerun") {
						return away
					}
					return nil
				}
				if c.happened {
					b.forge.failed = hook
				} else {
					b.forge.fail = hook
				}
				id := b.begun()
				b.dies(id, "failure")
				if c.restart {
					b.stop()
					b.start(rerunFleet)
				}
				if c.lag { // the old attempt for one more look, though another one runs
					b.setRun(func(r *forge.Run) { r.Attempt, r.Status, r.Conclusion = 1, "completed", "failure" })
					b.forge.mu.Lock()
					b.forge.fail = func(call string) error {
						if call == "rerun" {
							return gpuserver.Errorf(gpuserver.KindConflict, "its run goes on")
						}
						return nil
					}
					b.forge.mu.Unlock()
					b.pass(2 * rerunPause)
					b.setRun(func(r *forge.Run) { r.Attempt, r.Status = 2, "completed" }) // it is over already
				}
				b.pass(time.Hour)
				b.setRun(func(r *forge.Run) { r.Status = "completed" })
				b.pass(time.Hour)
				b.wantRerun(1)
				if n := b.forge.count("rerun"); n != c.calls {
					t.Errorf("the forge was asked %d times, want %d", n, c.calls)
				}
				if said := b.said(id); len(said) != 2 || said[1] != ranAgain {
					t.Errorf("its history: %q", said)
				}
			})
		})
	}
}

// The forge's limit is kept to, and the job is run again after it.
func TestRerunHeldBackByALimit(t *testing.T) {
	rerunBench(t, rerunFleet, func(b *bench) {
		until := time.Now().Add(time.Hour)
		b.forge.fail = func(call string) error {
			if call == "rerun" && time.Now().Before(until) {
				return &gpuserver.Error{Kind: gpuserver.KindLimited, Err: &forge.LimitError{Until: until}}
			}
			return nil
		}
		b.dies(b.begun(), "failure")
		b.pass(time.Hour)
		if n := b.forge.count("rerun"); n != 2 {
			t.Errorf("the forge was asked %d times, want twice", n)
		}
		b.wantRerun(1)
	})
}
