package intake_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"gpuserver"
	"gpuserver/internal/fleet"
	"gpuserver/internal/forge"
	"gpuserver/internal/intake"
	"gpuserver/internal/store"
)

func open(t interface {
	Fatal(args ...any)
	Cleanup(func())
}, path string,
) (*store.DB, *intake.Intake) {
	db, err := store.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db, &intake.Intake{
		DB: db, Log: slog.New(slog.DiscardHandler), Redecide: fleet.Redecide,
		Ours: func(_ string, _ forge.Repo, labels []string) bool { return slices.Contains(labels, "gpu") },
	}
}

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// history is what the forge says of one job over time, each state once.
func history(id int64, began bool) []forge.Job {
	j := forge.Job{
		ID: id, RunID: 9, RunAttempt: 1, Name: fmt.Sprint("job-", id), Labels: []string{"gpu"}, HeadSHA: "abc", CreatedAt: start,
		Repo: forge.Repo{Name: "octo/hello", ID: 5, InstallationID: 6}, State: gpuserver.ForgeWaiting,
	}
	all := []forge.Job{j}
	j.State = gpuserver.ForgeQueued
	all = append(all, j)
	if began {
		j.State, j.RunnerName, j.StartedAt = gpuserver.ForgeInProgress, "t-1-1", start.Add(time.Minute)
		all = append(all, j)
	}
	j.State, j.Conclusion, j.StartedAt, j.CompletedAt = gpuserver.ForgeCompleted, "success", start.Add(time.Minute), start.Add(2*time.Minute)
	return append(all, j)
}

func delivery(guid string, j forge.Job) intake.Delivery {
	return intake.Delivery{
		Forge: "gh", GUID: guid, Event: forge.Event{Kind: forge.EventJob, Name: "workflow_job." + string(j.State), Job: j},
		Body: []byte("{}"), ReceivedAt: start.Add(time.Second),
	}
}

// TestAnyOrderEndsTheSame replays, doubles, swaps and drops a job's events in
// any way, with a decision in between at any time: the job only ever moves
// forward, and ends as the newest event says.
func TestAnyOrderEndsTheSame(t *testing.T) {
	dir := t.TempDir()
	db, in := open(t, filepath.Join(dir, "gpuserver.db"))
	next := int64(0)
	rapid.Check(t, func(rt *rapid.T) {
		next++
		events := history(next, rapid.Bool().Draw(rt, "began"))
		order := rapid.SliceOfN(rapid.IntRange(0, len(events)-1), 1, 12).Draw(rt, "order")
		decide := rapid.IntRange(0, len(order)).Draw(rt, "decide")
		var seen []gpuserver.ForgeState
		newest, runner := gpuserver.ForgeState(""), ""
		for i, n := range order {
			e := events[n]
			if _, err := in.Accept(context.Background(), delivery(fmt.Sprintf("%d-%d", next, i%(n+2)), e)); err != nil {
				rt.Fatal(err)
			}
			var j gpuserver.Job
			_ = db.View(context.Background(), func(tx *store.Tx) (err error) { j, err = tx.JobByForge("gh", next); return err })
			if j.ID == 0 {
				continue // a replay under a GUID that was used for nothing
			}
			if len(seen) > 0 && j.ForgeState.Rank() < seen[len(seen)-1].Rank() {
				rt.Fatalf("it went back from %s to %s", seen[len(seen)-1], j.ForgeState)
			}
			seen, newest, runner = append(seen, j.ForgeState), j.ForgeState, j.RunnerName
			if i == decide && j.State == gpuserver.JobReceived {
				_ = db.Update(context.Background(), func(tx *store.Tx) error { return tx.MoveJob(&j, gpuserver.JobQueued, "") })
			}
		}
		// The rest of the truth arrives last, as it does from a reconciler.
		last := events[len(events)-1]
		if err := in.Apply(context.Background(), "gh", last); err != nil {
			rt.Fatal(err)
		}
		_ = db.View(context.Background(), func(tx *store.Tx) error {
			j, err := tx.JobByForge("gh", next)
			if err != nil || j.State != gpuserver.JobDone || j.ForgeState != gpuserver.ForgeCompleted || j.Conclusion != "success" || j.RunnerName != last.RunnerName {
				rt.Fatalf("after %v it ends as %+v (%v; newest %s, runner %q)", seen, j, err, newest, runner)
			}
			return nil
		})
	})
}

// TestSwappedEventsAreAsGood compares every order of a job's events with the
// right one.
func TestSwappedEventsAreAsGood(t *testing.T) {
	end := func(order []int) (j gpuserver.Job) {
		db, in := open(t, filepath.Join(t.TempDir(), "gpuserver.db"))
		events := history(1, true)
		for i, n := range order {
			if _, err := in.Accept(t.Context(), delivery(fmt.Sprint(i), events[n])); err != nil {
				t.Fatal(err)
			}
		}
		_ = db.View(t.Context(), func(tx *store.Tx) (err error) { j, err = tx.JobByForge("gh", 1); return err })
		return j
	}
	want := end([]int{0, 1, 2, 3})
	ignore := cmpopts.IgnoreFields(gpuserver.Job{}, "CreatedAt", "UpdatedAt", "QueuedAt")
	for _, order := range [][]int{{1, 0, 2, 3}, {3, 2, 1, 0}, {2, 3, 0, 1}, {0, 3, 1, 2}, {3, 3, 3, 0}, {1, 1, 2, 2, 3, 3}} {
		if diff := cmp.Diff(want, end(order), ignore); diff != "" {
			t.Errorf("order %v (-in order +so):\n%s", order, diff)
		}
	}
}

func TestOutcomes(t *testing.T) {
	db, in := open(t, filepath.Join(t.TempDir(), "gpuserver.db"))
	queued := history(1, true)[1]
	foreign := history(2, true)[1]
	foreign.Labels = []string{"ubuntu-latest"}
	strange := history(3, true)[1]
	strange.State = "levitated"
	other := intake.Delivery{Forge: "gh", GUID: "o", Event: forge.Event{Kind: forge.EventOther, Name: "star.created"}, Body: []byte("{}")}
	for _, c := range []struct {
		d    intake.Delivery
		want intake.Outcome
	}{
		{delivery("a", queued), intake.OutcomeJob},
		{delivery("a", queued), intake.OutcomeReplay},
		{delivery("b", foreign), intake.OutcomeForeign},
		{delivery("c", strange), intake.OutcomeForeign},
		{other, intake.OutcomeOther},
		{recheck("d", "1", "octo/hello"), intake.OutcomeRecheck},
		{recheck("e", "1", "octo/other"), intake.OutcomeOther},
		{recheck("f", "77", "octo/hello"), intake.OutcomeOther},
		{recheck("g", "not ours", "octo/hello"), intake.OutcomeOther},
	} {
		if got, err := in.Accept(t.Context(), c.d); got != c.want || err != nil {
			t.Errorf("delivery %s: %s (%v), want %s", c.d.GUID, got, err, c.want)
		}
	}
	if jobs := unfinished(t, db); len(jobs) != 1 || jobs[0].State != gpuserver.JobReceived || !jobs[0].QueuedAt.Equal(start) {
		t.Errorf("the jobs are %+v", jobs)
	}
}

// TestRecheckIsAnswered has the check run written again, whatever comes of it.
func TestRecheckIsAnswered(t *testing.T) {
	for _, state := range []int{0, 1, 2, 3} { // waiting, queued, in progress, completed
		db, in := open(t, filepath.Join(t.TempDir(), "gpuserver.db"))
		if _, err := in.Accept(t.Context(), delivery("a", history(1, true)[state])); err != nil {
			t.Fatal(err)
		}
		before := store.Check{Job: 1, CheckID: 7, Text: "x", Concluded: true, WrittenAt: start}
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.SaveCheck(before) }); err != nil {
			t.Fatal(err)
		}
		woken := make(chan store.Change, 9)
		db.Watch(func(cs []store.Change) {
			for _, c := range cs {
				woken <- c
			}
		})
		if out, err := in.Accept(t.Context(), recheck("b", "1", "octo/hello")); out != intake.OutcomeRecheck || err != nil {
			t.Errorf("%s, %v", out, err)
		}
		var after store.Check
		var j gpuserver.Job
		if err := db.View(t.Context(), func(tx *store.Tx) (err error) {
			if after, err = tx.Check(1); err == nil {
				j, err = tx.Job(1)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if after.Concluded || after.CheckID != 7 || len(woken) == 0 {
			t.Errorf("state %d: the check run is %+v, %d wake-ups", state, after, len(woken))
		}
		if (j.ForgeState == gpuserver.ForgeWaiting) != (j.State == gpuserver.JobWaiting) {
			t.Errorf("a job that the forge calls %s is %s", j.ForgeState, j.State)
		}
	}
}

// TestRecheckOfACommit decides all its jobs again that were told of.
func TestRecheckOfACommit(t *testing.T) {
	db, in := open(t, filepath.Join(t.TempDir(), "gpuserver.db"))
	for id := range int64(4) {
		j := history(id+1, true)[1]
		if id == 3 {
			j.HeadSHA = "another"
		}
		if _, err := in.Accept(t.Context(), delivery(fmt.Sprint(id), j)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Update(t.Context(), func(tx *store.Tx) error {
		for _, id := range []gpuserver.JobID{1, 2, 4} { // nothing was told of job 3
			j, err := tx.Job(id)
			if err == nil {
				err = errors.Join(tx.SaveCheck(store.Check{Job: id, CheckID: int64(id), Concluded: true}), tx.MoveJob(&j, gpuserver.JobRefused, ""))
			}
			if err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	suite := func(guid, repo string) intake.Delivery {
		return intake.Delivery{Forge: "gh", GUID: guid, Event: forge.Event{Kind: forge.EventRecheck, CheckHeadSHA: "abc", Repo: forge.Repo{Name: repo}}}
	}
	for guid, want := range map[string]intake.Outcome{"octo/other": intake.OutcomeOther, "Octo/hello": intake.OutcomeRecheck} {
		if out, err := in.Accept(t.Context(), suite(guid, guid)); out != want || err != nil {
			t.Errorf("%s: %s, %v", guid, out, err)
		}
	}
	var ids []gpuserver.JobID
	for _, j := range unfinished(t, db) {
		ids = append(ids, j.ID)
	}
	slices.Sort(ids)
	if diff := cmp.Diff([]gpuserver.JobID{1, 2, 3}, ids); diff != "" {
		t.Errorf("jobs that are to be decided (-want +got):\n%s", diff)
	}
}

func recheck(guid, id, repo string) intake.Delivery {
	return intake.Delivery{Forge: "gh", GUID: guid, Event: forge.Event{Kind: forge.EventRecheck, Name: "check_run.rerequested", CheckExternalID: id, Repo: forge.Repo{Name: repo}}}
}

func unfinished(t *testing.T, db *store.DB) (jobs []gpuserver.Job) {
	t.Helper()
	if err := db.View(t.Context(), func(tx *store.Tx) (err error) { jobs, err = tx.UnfinishedJobs(""); return err }); err != nil {
		t.Fatal(err)
	}
	return jobs
}

// TestRunnerIsToldLate fills in the runner of a job that was in progress
// without one.
func TestRunnerIsToldLate(t *testing.T) {
	db, in := open(t, filepath.Join(t.TempDir(), "gpuserver.db"))
	e := history(1, true)[2]
	nameless := e
	nameless.RunnerName = ""
	for i, j := range []forge.Job{nameless, e, nameless} {
		if _, err := in.Accept(t.Context(), delivery(fmt.Sprint(i), j)); err != nil {
			t.Fatal(err)
		}
	}
	if jobs := unfinished(t, db); len(jobs) != 1 || jobs[0].RunnerName != "t-1-1" {
		t.Errorf("the jobs are %+v", jobs)
	}
}

// pastForge is a forge's memory of its deliveries.
type pastForge struct {
	mu     sync.Mutex
	past   []intake.Past
	since  []time.Time
	asked  []int64
	fetch  map[int64]intake.Delivery
	broken error
	of     map[string][]forge.Job // queued, by repository
	no     map[int64]error        // why a delivery cannot be had
	noRepo map[string]error       // why a repository cannot be listed
}

// change changes what it says while somebody may ask.
func (p *pastForge) change(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
}

func (p *pastForge) QueuedJobs(_ context.Context, repo forge.Repo) ([]forge.Job, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[repo.Name], p.noRepo[repo.Name]
}

func (p *pastForge) Past(_ context.Context, since time.Time) ([]intake.Past, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = append(p.since, since)
	var out []intake.Past
	for _, x := range p.past {
		if !x.At.Before(since) {
			out = append(out, x)
		}
	}
	return out, p.broken
}

func (p *pastForge) Fetch(_ context.Context, id int64) (intake.Delivery, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.no[id]; err != nil {
		return intake.Delivery{}, err
	}
	d, ok := p.fetch[id]
	if !ok {
		return d, gpuserver.Errorf(gpuserver.KindInvalid, "delivery %d cannot be understood", id)
	}
	return d, nil
}

func (p *pastForge) Redeliver(_ context.Context, id int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, id)
	return p.no[id]
}

// TestFailedDeliveryIsAskedForUntilItIsTaken repeats a redelivery that failed,
// too, ever more seldom and not for ever.
func TestFailedDeliveryIsAskedForUntilItIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, in := open(t, path)
		now := time.Now()
		p := &pastForge{past: []intake.Past{
			{ID: 1, GUID: "a", At: now.Add(-time.Minute), Job: true},
			{ID: 2, GUID: "b", At: now.Add(-time.Minute), Job: true, OK: true},
			{ID: 3, GUID: "star", At: now.Add(-time.Minute)},
		}}
		f := &intake.Feed{Intake: in, Name: "gh", Forge: p, RetryEvery: time.Minute}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { f.Run(ctx); close(done) }()
		for range 5 { // newer ones come in meanwhile
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			p.change(func() {
				p.past = append(p.past, intake.Past{ID: int64(10 + len(p.past)), GUID: fmt.Sprint("new-", len(p.past)), At: time.Now(), Job: true, OK: true})
			})
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		cancel()
		<-done
		if want := []int64{1, 1, 1, 1, 1, 1}; !slices.Equal(p.asked, want) {
			t.Errorf("asked for %v, want %v", p.asked, want)
		}
		if last := p.since[len(p.since)-1]; last.Before(now.Add(30 * time.Minute)) {
			t.Errorf("it still looks back to %s", last)
		}
		_ = db.Close()
	})
}

// TestPull fetches what is not stored yet, passes over what cannot be
// understood, and goes on where it was after a failure.
func TestPull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, in := open(t, path)
		at := time.Now().Add(-time.Hour)
		p := &pastForge{fetch: map[int64]intake.Delivery{}, broken: errors.New("away")}
		for i := range int64(3) {
			e := history(i+1, true)[1]
			p.past = append(p.past, intake.Past{ID: i, GUID: fmt.Sprint(i), At: at, Job: true})
			if i != 1 {
				p.fetch[i] = intake.Delivery{Event: forge.Event{Kind: forge.EventJob, Name: "workflow_job.queued", Job: e}}
			}
		}
		f := &intake.Feed{Intake: in, Name: "gh", Forge: p, Pull: true, PullEvery: 10 * time.Second}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { f.Run(ctx); close(done) }()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if jobs := unfinished(t, db); len(jobs) != 0 {
			t.Errorf("jobs came from a forge that is away: %v", jobs)
		}
		p.change(func() { p.broken = nil })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		var names []string
		for _, j := range unfinished(t, db) {
			names = append(names, j.Name)
		}
		if got := strings.Join(names, " "); got != "job-1 job-3" {
			t.Errorf("the jobs are %q", got)
		}
		cancel()
		<-done
		_ = db.Close()
	})
}
