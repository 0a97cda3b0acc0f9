package store

import (
	"path/filepath"
	"testing"
)

// A commit must survive a power cut: what is acknowledged is never lost.
func TestPragmasPromiseDurability(t *testing.T) {
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m, err := db.Pragmas(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// 2 is FULL. Source: https://sqlite.org/pragma.html#pragma_synchronous
	if m["journal_mode"] != "wal" || m["synchronous"] != "2" || m["foreign_keys"] != "1" {
		t.Errorf("%v; want WAL with synchronous FULL and foreign keys", m)
	}
}
