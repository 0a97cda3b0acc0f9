package store

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"gpuserver"
)

// lockFile takes an advisory lock that dies with the process. SQLite's own
// locks would let a second server in between two transactions.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockError says what is to be done about a lock that was not got: only one
// that somebody holds means another server.
func lockError(path string, err error) *gpuserver.Error {
	e := &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "store: open", Err: err}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		e.Kind, e.Public = gpuserver.KindConflict, path+" is in use by another gpuserver; stop that one first"
		return e
	}
	e.Public = "the database cannot be opened in " + filepath.Dir(path) + "; the folder must be there, and this user must be able to write in it"
	return e
}
