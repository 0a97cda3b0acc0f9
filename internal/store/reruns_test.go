package store_test

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/store"
)

// A re-run is noted once, told to the watchers once, outlives the process, and is
// over for good.
func TestRerun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	db := reopen(t, path)
	var told []store.Change
	db.Watch(func(cs []store.Change) { told = append(told, cs...) })
	for i, want := range []bool{true, false} {
		update(t, db, func(tx *store.Tx) error {
			added, err := tx.AddRerun(7)
			if added != want {
				t.Errorf("time %d: added %t, want %t", i, added, want)
			}
			return err
		})
	}
	if d := cmp.Diff([]store.Change{{Rerun: 7}}, told); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
	get := func(job gpuserver.JobID) (r store.Rerun, waiting []gpuserver.JobID, err error) {
		_ = db.View(t.Context(), func(tx *store.Tx) error {
			r, err = tx.Rerun(job)
			waiting, _ = tx.WaitingReruns()
			return nil
		})
		return r, waiting, err
	}
	r, waiting, err := get(7)
	if err != nil || r.State != store.RerunWaiting || time.Since(r.Since) > time.Minute || !r.NextAt.IsZero() || len(waiting) != 1 || waiting[0] != 7 {
		t.Errorf("%+v, %v; waiting %v", r, err, waiting)
	}
	if _, _, err := get(8); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("of another job: %v", err)
	}
	r.Asked, r.Tries, r.NextAt = 3, 4, r.Since.Add(time.Hour)
	update(t, db, func(tx *store.Tx) error { return tx.SaveRerun(r) })
	_ = db.Close()
	db = reopen(t, path)
	got, _, err := get(7)
	if d := cmp.Diff(r, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	r.State = store.RerunDone
	update(t, db, func(tx *store.Tx) error { return tx.SaveRerun(r) })
	if got, waiting, _ := get(7); got.State != store.RerunDone || len(waiting) != 0 {
		t.Errorf("once it is over: %+v; waiting %v", got, waiting)
	}
	r.State = store.RerunWaiting
	err = db.Update(t.Context(), func(tx *store.Tx) error { return tx.SaveRerun(r) })
	if gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("one that is over was begun anew: %v", err)
	}
}

// A re-run goes with its job.
func TestRerunIsPruned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db := reopen(t, path)
		var ids []gpuserver.JobID
		end := func(forgeID int64) {
			j := sampleJob(forgeID)
			j.State, j.EndedAt = gpuserver.JobDone, time.Now()
			update(t, db, func(tx *store.Tx) error {
				if err := tx.InsertJob(&j); err != nil {
					return err
				}
				_, err := tx.AddRerun(j.ID)
				return err
			})
			ids = append(ids, j.ID)
		}
		end(1)
		time.Sleep(91 * 24 * time.Hour)
		end(2)
		if _, err := db.Prune(t.Context(), store.Limits{Jobs: 90 * 24 * time.Hour}); err != nil {
			t.Fatal(err)
		}
		_ = db.View(t.Context(), func(tx *store.Tx) error {
			for i, want := range []gpuserver.Kind{gpuserver.KindNotFound, ""} {
				if _, err := tx.Rerun(ids[i]); gpuserver.KindOf(err) != want {
					t.Errorf("re-run %d: %v", i, err)
				}
			}
			return nil
		})
		_ = db.Close()
	})
}
