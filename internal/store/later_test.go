package store_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"gpuserver"
	"gpuserver/internal/store"
)

// TestUpdatesGoBeforeLaterOnes: what was queued with Update while the writer was
// busy is committed with its next group, and only a few of UpdateLater's are.
func TestUpdatesGoBeforeLaterOnes(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// Each commit is told at once, so that the calls of the watcher are the groups.
	var mu sync.Mutex
	var groups [][]string
	db.Watch(func(cs []store.Change) {
		mu.Lock()
		defer mu.Unlock()
		var names []string
		for _, c := range cs {
			names = append(names, c.Forge)
		}
		groups = append(groups, names)
	})
	const many = 40
	insert := func(name string, n int) func(*store.Tx) error {
		return func(tx *store.Tx) error {
			return tx.InsertJob(&gpuserver.Job{Forge: name, ForgeID: int64(n), State: gpuserver.JobReceived})
		}
	}
	busy, free := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = db.Update(context.Background(), func(tx *store.Tx) error {
			close(busy)
			<-free
			return insert("first", 0)(tx)
		})
	})
	<-busy
	for i := range many {
		wg.Go(func() {
			if err := db.UpdateLater(context.Background(), insert("later", i)); err != nil {
				t.Errorf("later %d: %v", i, err)
			}
		})
	}
	for i := range many {
		wg.Go(func() {
			if err := db.Update(context.Background(), insert("now", i)); err != nil {
				t.Errorf("now %d: %v", i, err)
			}
		})
	}
	store.WaitQueued(db, many, many)
	close(free)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	count := map[string]int{}
	for i, g := range groups {
		later, others := 0, 0
		for _, name := range g {
			count[name]++
			if name == "later" {
				later++
			} else {
				others++
			}
		}
		if others > 0 && later > store.WithOthers {
			t.Errorf("group %d has %d of UpdateLater's beside others, more than %d", i, later, store.WithOthers)
		}
	}
	if want := fmt.Sprint(map[string]int{"first": 1, "now": many, "later": many}); fmt.Sprint(count) != want {
		t.Errorf("committed %v, want %s", count, want)
	}
	if n := len(groups[0]); n != 1+many+store.WithOthers {
		t.Errorf("the first group has %d, want the first, %d now and %d later", n, many, store.WithOthers)
	}
}

// TestLaterOnesAreNotLostAtTheEnd: Close commits what was queued, of both kinds.
func TestLaterOnesAreNotLostAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	const many = 40
	busy, free := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = db.Update(context.Background(), func(*store.Tx) error { close(busy); <-free; return nil })
	})
	<-busy
	for i := range many {
		wg.Go(func() {
			err := db.UpdateLater(context.Background(), func(tx *store.Tx) error {
				return tx.InsertJob(&gpuserver.Job{Forge: "gh", ForgeID: int64(i), State: gpuserver.JobReceived})
			})
			if err != nil {
				t.Errorf("later %d: %v", i, err)
			}
		})
	}
	store.WaitQueued(db, 0, many)
	wg.Go(func() { _ = db.Close() })
	close(free)
	wg.Wait()
	db, err = store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(t.Context(), func(tx *store.Tx) error {
		js, err := tx.JobsIn(gpuserver.JobReceived, 1000)
		if len(js) != many {
			t.Errorf("%d of %d are stored", len(js), many)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
