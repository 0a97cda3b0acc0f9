package store

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"gpuserver"
)

// Many Views at once, each with statements that none had before: at the start
// of a service all of them come together.
func TestViewsDoNotWaitForEachOther(t *testing.T) {
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var begun, all sync.WaitGroup
	begun.Add(readers)
	for i := range 10 * readers {
		all.Go(func() {
			err := db.View(t.Context(), func(tx *Tx) error {
				if i < readers { // the first few hold every connection
					begun.Done()
					begun.Wait()
				}
				return tx.one("row", fmt.Sprintf("SELECT %d", i), nil, func(r scanner) error {
					var n int
					return r.Scan(&n)
				})
			})
			if err != nil {
				t.Error(err)
			}
		})
		if i == readers-1 {
			begun.Wait()
		}
	}
	all.Wait()
}

func TestViewAfterClose(t *testing.T) {
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.View(t.Context(), func(*Tx) error { return nil }); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("%v; want unavailable", err)
	}
}
