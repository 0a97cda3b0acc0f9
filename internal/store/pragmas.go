package store

import "context"

// Pragmas gives the settings of the writing connection that decide what a
// commit costs and what it survives, in SQLite's words. A benchmark's report
// names them: a figure without them says little.
func (db *DB) Pragmas(ctx context.Context) (map[string]string, error) {
	m := map[string]string{}
	err := db.Update(ctx, func(tx *Tx) error {
		for _, name := range []string{
			"auto_vacuum", "busy_timeout", "cache_size", "foreign_keys", "journal_mode", "journal_size_limit",
			"page_size", "synchronous", "temp_store", "wal_autocheckpoint",
		} {
			err := tx.one("pragma "+name, "PRAGMA "+name, nil, func(r scanner) error {
				var v string
				err := r.Scan(&v)
				m[name] = v
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return m, err
}
