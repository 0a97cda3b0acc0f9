package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver/internal/store"
)

// A flood between two looks is held to the limits while it lasts; what has not
// grown too old or too many stays.
func TestFloodIsTidiedUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	synctest.Test(t, func(t *testing.T) {
		db := reopen(t, path)
		also := 0
		tidier := &store.Tidier{
			DB: db, Limits: store.Limits{Deliveries: 72 * time.Hour, Jobs: 72 * time.Hour, MaxDeliveries: 100, MaxBodies: 10},
			Every: time.Hour, After: 50, Also: func() { also++ }, Log: slog.New(slog.DiscardHandler),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = tidier.Run(ctx); close(done) }()
		n := 0
		come := func(k int) {
			for range k {
				n++
				update(t, db, func(tx *store.Tx) error {
					return tx.AddDelivery(store.Delivery{Forge: "gh", GUID: fmt.Sprint(n), Name: "x", Outcome: "job", ReceivedAt: tx.Now})
				})
				tidier.Came()
			}
			synctest.Wait()
		}
		seen := func(guid int) (seen bool) {
			_ = db.View(t.Context(), func(tx *store.Tx) (err error) { seen, err = tx.SeenDelivery("gh", fmt.Sprint(guid)); return err })
			return seen
		}
		come(90)
		if !seen(1) || !seen(90) {
			t.Error("deleted before there were too many")
		}
		come(210)
		if seen(150) || !seen(201) || !seen(300) { // it looks after each 50, at the latest
			t.Errorf("of 300, of which 100 are kept: 150 %v, 201 %v, 300 %v", seen(150), seen(201), seen(300))
		}
		time.Sleep(73 * time.Hour)
		synctest.Wait()
		if seen(300) {
			t.Error("what is too old is kept")
		}
		if also != 74 { // at the start and each hour, not for the flood
			t.Errorf("the rest was tidied up %d times", also)
		}
		cancel()
		<-done
		_ = db.Close()
	})
}

// What is deleted is given back to the file system, all of it.
func TestFileShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	db := reopen(t, path)
	update(t, db, func(tx *store.Tx) error {
		for i := range 2000 {
			d := store.Delivery{Forge: "gh", GUID: fmt.Sprint(i), Name: "x", Outcome: "job", ReceivedAt: tx.Now, Body: make([]byte, 15_000)}
			if err := tx.AddDelivery(d); err != nil {
				return err
			}
		}
		return nil
	})
	for {
		n, err := db.Prune(t.Context(), store.Limits{Deliveries: 72 * time.Hour, Jobs: time.Hour, MaxDeliveries: 1000, MaxBodies: 100})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 8<<20 {
		t.Errorf("100 bodies of 15 KB are left in a file of %d KiB (%v)", info.Size()>>10, err)
	}
}
