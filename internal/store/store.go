// Package store is the only truth: jobs, VMs, leases and what happened to them,
// in SQLite, written before anything is acknowledged.
//
// All writes go through one writer that commits them in groups: each Update
// waits until the group it is in has been synced to disk, so that a thousand
// deliveries at once cost a few syncs and not a thousand. A state change is
// compare-and-set against the tables of allowed moves and is committed together
// with the event that explains it. What changed is told to the watchers right
// after the commit, so that no ticker stands between two stages.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"gpuserver"
)

//go:embed migrations/*.sql
var migrations embed.FS

// DB is an open store. Its methods may be called concurrently.
type DB struct {
	write *sql.Conn
	wdb   *sql.DB
	read  *sql.DB
	path  string
	now   func() time.Time

	queue  chan *update
	later  chan *update // of UpdateLater
	closed chan struct{}
	done   sync.WaitGroup
	once   sync.Once

	stmts map[string]*sql.Stmt // of the writer; only its goroutine touches it

	readers chan *reader // those that no View has
	opened  int          // of readers

	watchMu  sync.Mutex
	watchers []func([]Change)
}

// Change is one row that a commit changed.
type Change struct {
	Job      gpuserver.JobID
	JobState gpuserver.JobState
	Forge    string // the job's
	VM       gpuserver.VMID
	VMState  gpuserver.VMState
	GPU      gpuserver.GPUID // its row or its history
	Rerun    gpuserver.JobID // a job that is to be run again
}

type update struct {
	ctx     context.Context
	fn      func(*Tx) error
	later   bool
	err     error
	changes []Change
	done    chan struct{}
}

// maxGroup bounds how many updates share one commit: large enough that a burst
// costs few syncs, small enough that nobody waits long for strangers.
const maxGroup = 256

// maxLater bounds how many of UpdateLater do, and withOthers where somebody waits
// for the others of the group.
const (
	maxLater   = 64
	withOthers = 4
)

// Open opens (and makes or migrates) the database file at path. The folder must
// exist. Only one process may have it open; a second Open of the same file in
// another process fails with KindConflict. A folder that is missing or that cannot
// be written in is KindUnavailable.
func Open(ctx context.Context, path string) (*DB, error) {
	const op = "store: open"
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, lockError(path, err)
	}
	db := &DB{
		path: path, now: time.Now,
		queue: make(chan *update, 4*maxGroup), later: make(chan *update, 4*maxLater), closed: make(chan struct{}),
		stmts: map[string]*sql.Stmt{}, readers: make(chan *reader, readers),
	}
	if err := db.open(ctx); err != nil {
		db.closeHandles()
		lock.Close()
		return nil, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: op, Public: "the database " + filepath.Base(path) + " cannot be opened", Err: err}
	}
	db.done.Go(func() {
		defer lock.Close()
		db.writer()
	})
	return db, nil
}

func (db *DB) open(ctx context.Context) error {
	// temp_store: each request of a group has a savepoint, whose journal would else be
	// written to a file that nobody needs.
	pragmas := "?_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)&_pragma=auto_vacuum(2)" +
		"&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=cache_size(-8000)&_pragma=temp_store(MEMORY)&_pragma=journal_size_limit(67108864)"
	if err := private(db.path); err != nil {
		return err
	}
	var err error
	if db.wdb, err = sql.Open("sqlite", "file:"+db.path+pragmas); err != nil {
		return err
	}
	db.wdb.SetMaxOpenConns(1)
	if err := migrate(ctx, db.wdb); err != nil {
		return err
	}
	if db.write, err = db.wdb.Conn(ctx); err != nil {
		return err
	}
	if db.read, err = sql.Open("sqlite", "file:"+db.path+"?mode=ro&_pragma=busy_timeout(10000)&_pragma=query_only(1)&_pragma=cache_size(-2000)"); err != nil {
		return err
	}
	db.read.SetMaxOpenConns(readers)
	return db.openReaders(ctx)
}

func migrate(ctx context.Context, db *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Close waits for the updates under way and closes the file. Updates that come
// later fail with KindUnavailable.
func (db *DB) Close() error {
	var err error
	db.once.Do(func() {
		close(db.closed)
		db.done.Wait()
		err = db.closeHandles()
	})
	return err
}

// private makes the file, and one that is there already, readable for its owner
// only: it holds deliveries of private repositories. SQLite gives the files
// beside it the same mode.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chmod(0o600)
}

// closeHandles closes the writer last: the last connection to close moves what
// is in the write-ahead log into the file, so that the file alone is whole.
func (db *DB) closeHandles() error {
	errs := db.closeReaders()
	if db.read != nil {
		errs = append(errs, db.read.Close())
	}
	for _, st := range db.stmts { // an open statement keeps its connection from ending
		errs = append(errs, st.Close())
	}
	if db.write != nil {
		errs = append(errs, db.write.Close())
	}
	if db.wdb != nil {
		errs = append(errs, db.wdb.Close())
	}
	return errors.Join(errs...)
}

// Watch registers fn to be called after each commit with what it changed, in
// the order of commits, from the writer's goroutine: fn must be quick and must
// not call Update.
func (db *DB) Watch(fn func([]Change)) {
	db.watchMu.Lock()
	defer db.watchMu.Unlock()
	db.watchers = append(db.watchers, fn)
}

// Update runs fn in a transaction and returns once it is synced to disk. fn may
// share its commit with others but sees and makes its changes alone; if it
// fails, only its own changes are undone. It must not block on anything but the
// transaction, as all other writers wait for it.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	return db.update(ctx, &update{ctx: ctx, fn: fn})
}

// UpdateLater is Update for what nobody outside waits for. Under load only a few
// such share each commit, so that a forge is answered before it gives its
// delivery up, and what is to be done about the jobs is done a little later.
func (db *DB) UpdateLater(ctx context.Context, fn func(*Tx) error) error {
	return db.update(ctx, &update{ctx: ctx, fn: fn, later: true})
}

func (db *DB) update(ctx context.Context, u *update) error {
	u.done = make(chan struct{})
	queue := db.queue
	if u.later {
		queue = db.later
	}
	select {
	case <-db.closed:
		return errClosed
	default:
	}
	select {
	case queue <- u:
	case <-db.closed:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	// Once queued its outcome is the writer's; leaving early would make it unknown.
	<-u.done
	return u.err
}

var errClosed = gpuserver.Errorf(gpuserver.KindUnavailable, "the store is closed")

func (db *DB) writer() {
	for {
		select {
		case u := <-db.queue:
			db.commitGroup(u)
		case u := <-db.later:
			db.commitGroup(u)
		case <-db.closed:
			for u := db.next(0, 0); u != nil; u = db.next(0, 0) { // what was queued before
				db.commitGroup(u)
			}
			return
		}
	}
}

// commitGroup runs first and all that is queued behind it in one transaction.
// A crash before COMMIT returns loses all of them, and none was acknowledged.
func (db *DB) commitGroup(first *update) {
	ctx := context.Background()
	group := []*update{}
	fail := func(err error) {
		err = writeError(err)
		for _, u := range group {
			if u.err == nil {
				u.err, u.changes = err, nil
			}
		}
	}
	tx := &Tx{ctx: ctx, db: db, Now: db.now().UTC()}
	if err := tx.exec("BEGIN IMMEDIATE"); err != nil {
		group = append(group, first)
		fail(err)
		close(first.done)
		return
	}
	open, later := true, 0
	for u := first; u != nil; u = db.next(len(group), later) {
		group = append(group, u)
		if u.later {
			later++
		}
		if err := db.runOne(tx, u); err != nil {
			fail(err)
			open = false
			break
		}
	}
	if open {
		if err := tx.exec("COMMIT"); err != nil {
			fail(err)
			_ = tx.exec("ROLLBACK")
		}
	} else {
		_ = tx.exec("ROLLBACK")
	}
	db.tell(group)
	for _, u := range group {
		close(u.done)
	}
}

// next gives the update to add to a group of n, of which later are UpdateLater's;
// nil: the group is to be committed.
func (db *DB) next(n, later int) *update {
	if n >= maxGroup {
		return nil
	}
	select {
	case u := <-db.queue:
		return u
	default:
	}
	if later >= maxLater || later >= withOthers && n > later {
		return nil
	}
	select {
	case u := <-db.later:
		return u
	default:
		return nil
	}
}

// runOne runs one update inside the group's transaction. Its error is its own
// unless the transaction itself is broken, which the returned error says.
func (db *DB) runOne(tx *Tx, u *update) error {
	if err := u.ctx.Err(); err != nil {
		u.err = err
		return nil
	}
	if err := tx.exec("SAVEPOINT u"); err != nil {
		return err
	}
	tx.changes = nil
	u.err = u.fn(tx)
	if u.err != nil {
		u.err = writeError(u.err)
		if err := tx.exec("ROLLBACK TO u"); err != nil {
			return err
		}
	} else {
		u.changes = tx.changes
	}
	return tx.exec("RELEASE u")
}

func (db *DB) tell(group []*update) {
	var all []Change
	for _, u := range group {
		if u.err == nil {
			all = append(all, u.changes...)
		}
	}
	if len(all) == 0 {
		return
	}
	db.watchMu.Lock()
	watchers := db.watchers
	db.watchMu.Unlock()
	for _, w := range watchers {
		w(all)
	}
}

// Tx is a transaction: all of the store's reads and writes are its methods.
type Tx struct {
	// Now is the one time of this transaction, UTC.
	Now time.Time

	ctx     context.Context
	db      *DB
	reader  *reader // of a View; nil in an Update
	changes []Change
}

func (tx *Tx) stmt(q string) (*sql.Stmt, error) {
	stmts, conn := tx.db.stmts, tx.db.write
	if tx.reader != nil {
		stmts, conn = tx.reader.stmts, tx.reader.conn
	}
	if s, ok := stmts[q]; ok {
		return s, nil
	}
	s, err := conn.PrepareContext(tx.ctx, q)
	if err == nil {
		stmts[q] = s
	}
	return s, err
}

func (tx *Tx) exec(q string, args ...any) error {
	_, err := tx.execN(q, args...)
	return err
}

// execN runs q and gives the number of rows that it changed.
func (tx *Tx) execN(q string, args ...any) (int64, error) {
	s, err := tx.stmt(q)
	if err != nil {
		return 0, fmt.Errorf("%w (in %.60q)", err, q)
	}
	res, err := s.ExecContext(tx.ctx, args...)
	if err != nil {
		return 0, fmt.Errorf("%w (in %.60q)", err, q)
	}
	return res.RowsAffected()
}

func (tx *Tx) insert(q string, args ...any) (int64, error) {
	s, err := tx.stmt(q)
	if err != nil {
		return 0, fmt.Errorf("%w (in %.60q)", err, q)
	}
	res, err := s.ExecContext(tx.ctx, args...)
	if err != nil {
		return 0, fmt.Errorf("%w (in %.60q)", err, q)
	}
	return res.LastInsertId()
}

// scanner is what a row of a result can do.
type scanner interface{ Scan(dest ...any) error }

// each calls fn for every row. The rows are closed before it returns.
func (tx *Tx) each(q string, args []any, fn func(scanner) error) error {
	s, err := tx.stmt(q)
	if err != nil {
		return fmt.Errorf("%w (in %.60q)", err, q)
	}
	rows, err := s.QueryContext(tx.ctx, args...)
	if err != nil {
		return fmt.Errorf("%w (in %.60q)", err, q)
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// one scans the first row of q; what names the thing in a KindNotFound error.
func (tx *Tx) one(what, q string, args []any, fn func(scanner) error) error {
	found := false
	err := tx.each(q, args, func(r scanner) error {
		if found {
			return nil
		}
		found = true
		return fn(r)
	})
	if err == nil && !found {
		return gpuserver.Errorf(gpuserver.KindNotFound, "there is no %s", what)
	}
	return err
}

// writeError gives a failed write its kind: a full or failing disk is
// KindUnavailable, so that a delivery is answered 503 and comes again.
func writeError(err error) error {
	if _, ok := errors.AsType[*gpuserver.Error](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "store: write", Public: "the database cannot be written; is the disk full?", Err: err}
}
