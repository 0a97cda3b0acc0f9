package store

import (
	"context"
	"database/sql"

	"gpuserver"
)

// readers is how many Views run at once; more wait for one to end.
const readers = 4

// reader is a connection for reading, with its statements. We hand out the
// connections ourselves: a statement of database/sql's pool wants a connection
// of the pool to be prepared on, which waits for ever once every connection is
// held by a View that wants one.
type reader struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
}

// openReaders fills the pool.
func (db *DB) openReaders(ctx context.Context) error {
	for range cap(db.readers) {
		c, err := db.read.Conn(ctx)
		if err != nil {
			return err
		}
		db.readers <- &reader{c, map[string]*sql.Stmt{}}
		db.opened++
	}
	return nil
}

// closeReaders waits for the Views under way.
func (db *DB) closeReaders() (errs []error) {
	for ; db.opened > 0; db.opened-- {
		r := <-db.readers
		errs = append(errs, r.conn.Close())
	}
	return errs
}

// View runs fn on a consistent snapshot. It never waits for writers. fn must not
// call View, and must be quick: only a few run at once. ctx ends the wait for
// a connection, not a query.
func (db *DB) View(ctx context.Context, fn func(*Tx) error) error {
	var r *reader
	select {
	case <-db.closed:
		return errClosed
	default:
	}
	select {
	case r = <-db.readers:
	case <-db.closed:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { db.readers <- r }()
	if err := ctx.Err(); err != nil {
		return err
	}
	tx := &Tx{ctx: context.WithoutCancel(ctx), db: db, Now: db.now().UTC(), reader: r}
	if err := tx.exec("BEGIN"); err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "store: read", err)
	}
	defer func() { _ = tx.exec("ROLLBACK") }()
	return fn(tx)
}
