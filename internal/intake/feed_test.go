package intake_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
	"gpuserver/internal/intake"
	"gpuserver/internal/store"
)

// away is what a forge says that fails.
var away = gpuserver.Errorf(gpuserver.KindUnavailable, "502")

// runFeed runs a feed until the test is over.
func runFeed(t *testing.T, db *store.DB, f *intake.Feed) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.Run(ctx); close(done) }()
	return func() {
		cancel()
		<-done
		_ = db.Close()
	}
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func jobNames(t *testing.T, db *store.DB) string {
	t.Helper()
	var names []string
	for _, j := range unfinished(t, db) {
		names = append(names, j.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// TestPullPassesOverWhatFails lets one delivery fail for an hour: those behind
// it are taken at once, and it is had when the forge gives it, also after a
// restart.
func TestPullPassesOverWhatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, in := open(t, path)
		p := &pastForge{fetch: map[int64]intake.Delivery{}, no: map[int64]error{1: away}}
		add := func(id int64) {
			p.change(func() {
				p.past = append(p.past, intake.Past{ID: id, GUID: fmt.Sprint(id), At: time.Now(), Job: true})
				p.fetch[id] = intake.Delivery{Event: forge.Event{Kind: forge.EventJob, Name: "workflow_job.queued", Job: history(id, true)[1]}}
			})
		}
		feed := func() *intake.Feed {
			return &intake.Feed{Intake: in, Name: "gh", Forge: p, Pull: true, PullEvery: 10 * time.Second}
		}
		add(1)
		add(2)
		stop := runFeed(t, db, feed())
		after(5 * time.Second)
		if got := jobNames(t, db); got != "job-2" {
			t.Errorf("behind a delivery that cannot be read the jobs are %q", got)
		}
		after(time.Hour) // longer than each look reaches back by itself
		add(3)
		after(10 * time.Second)
		stop()
		db, in = open(t, path)
		p.change(func() { p.no = nil })
		stop = runFeed(t, db, feed())
		after(5 * time.Second)
		if got := jobNames(t, db); got != "job-1 job-2 job-3" {
			t.Errorf("once it can be read the jobs are %q", got)
		}
		stop()
	})
}

// TestRedeliveryThatIsRefused asks for a delivery that the forge has no more:
// those behind it are asked for all the same.
func TestRedeliveryThatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db, in := open(t, path)
		at := time.Now().Add(-time.Minute)
		p := &pastForge{
			past: []intake.Past{{ID: 1, GUID: "a", At: at, Job: true}, {ID: 2, GUID: "b", At: at, Job: true}, {ID: 3, GUID: "c", At: at, Job: true}},
			no:   map[int64]error{1: gpuserver.Errorf(gpuserver.KindNotFound, "404"), 2: away},
		}
		stop := runFeed(t, db, &intake.Feed{Intake: in, Name: "gh", Forge: p, RetryEvery: time.Minute})
		after(time.Second)
		stop()
		if want := []int64{1, 2, 3}; !slices.Equal(p.asked, want) {
			t.Errorf("asked for %v, want %v", p.asked, want)
		}
	})
}

// TestListingPassesOverWhatFails looks at every repository, whatever the forge
// says of the others.
func TestListingPassesOverWhatFails(t *testing.T) {
	for name, no := range map[string]error{"refused": gpuserver.Errorf(gpuserver.KindRefused, "403"), "failing": away} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "gpuserver.db")
			synctest.Test(t, func(t *testing.T) {
				db, in := open(t, path)
				p := &pastForge{of: map[string][]forge.Job{}, noRepo: map[string]error{}}
				for i, repo := range []string{"octo/first", "octo/second"} {
					see(t, db, repo, int64(i))
					j := history(int64(i+1), true)[1]
					j.Repo.Name = repo
					p.of[repo] = []forge.Job{j}
					time.Sleep(time.Second)
				}
				p.noRepo["octo/second"] = no // the latest, so that it is the first to be looked at
				var repaired []string
				stop := runFeed(t, db, &intake.Feed{
					Intake: in, Name: "gh", Forge: p, RunsEvery: time.Minute, RunsFor: time.Hour,
					Repaired: func(kind string) { repaired = append(repaired, kind) },
				})
				after(time.Second)
				if got := jobNames(t, db); got != "job-1" {
					t.Errorf("the jobs are %q", got)
				}
				stop()
				if !slices.Equal(repaired, []string{"missing_event"}) {
					t.Errorf("the repairs are %q", repaired)
				}
			})
		})
	}
}

func see(t *testing.T, db *store.DB, repo string, installation int64) {
	t.Helper()
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		return tx.SeeRepo(store.SeenRepo{Forge: "gh", Name: repo, InstallationID: installation})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRepositoriesThatAreGone forgets those that an event names, or all of an
// installation if it names none: each would else cost calls for days.
func TestRepositoriesThatAreGone(t *testing.T) {
	db, in := open(t, filepath.Join(t.TempDir(), "gpuserver.db"))
	see(t, db, "octo/one", 1)
	see(t, db, "octo/two", 1)
	see(t, db, "cat/three", 2)
	see(t, db, "cat/four", 2)
	left := func() string {
		var names []string
		_ = db.View(t.Context(), func(tx *store.Tx) error {
			rs, err := tx.SeenRepos("gh", time.Time{})
			for _, r := range rs {
				names = append(names, r.Name)
			}
			return err
		})
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	for i, c := range []struct {
		gone []forge.Repo
		of   int64
		want string
	}{
		{nil, 0, "cat/four cat/three octo/one octo/two"},
		{[]forge.Repo{{Name: "cat/three"}}, 2, "cat/four octo/one octo/two"},
		{nil, 1, "cat/four"},
	} {
		e := forge.Event{Kind: forge.EventRepoGone, Name: "installation.deleted", Gone: c.gone, Repo: forge.Repo{InstallationID: c.of}}
		if out, err := in.Accept(t.Context(), intake.Delivery{Forge: "gh", GUID: fmt.Sprint(i), Event: e}); out != intake.OutcomeOther || err != nil {
			t.Errorf("%s (%v)", out, err)
		}
		if got := left(); got != c.want {
			t.Errorf("left are %q, want %q", got, c.want)
		}
	}
}
