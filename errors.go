package gpuserver

import (
	"errors"
	"fmt"
)

// Kind says whose fault an error is and so what to do about it.
type Kind string

// The kinds of errors. Retry policy, HTTP status and exit code follow from the
// kind alone, never from an error's text.
const (
	KindInvalid     Kind = "invalid"     // the caller asked for something impossible: do not repeat
	KindNotFound    Kind = "not_found"   // the thing named does not exist (for a delete: success)
	KindConflict    Kind = "conflict"    // it exists already, or changed under us, or is busy
	KindRefused     Kind = "refused"     // policy or permission says no
	KindCapacity    Kind = "capacity"    // no room now: wait, or try the next entry
	KindUnavailable Kind = "unavailable" // the other side cannot be reached or failed: repeat later
	KindLimited     Kind = "limited"     // a rate limit: repeat after the time it names
	KindGuest       Kind = "guest"       // the VM or what runs in it failed
	KindInternal    Kind = "internal"    // our own defect
)

// Error is an error with a kind, a sentence that may be shown to people and the
// cause, which may not.
type Error struct {
	Kind   Kind
	Op     string // what we were doing, such as "libvirt: create gs-k3-12"
	Public string // a sentence for people; may be empty
	Err    error  // the cause; may be nil
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Public
	if e.Err != nil {
		if s != "" {
			s += ": "
		}
		s += e.Err.Error()
	}
	if s == "" {
		s = string(e.Kind)
	}
	if e.Op != "" {
		s = e.Op + ": " + s
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of the given kind whose public sentence is the
// formatted text. It has no cause; use an Error literal to keep one.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Public: fmt.Sprintf(format, args...)}
}

// Wrap adds what we were doing and a kind to err; nil stays nil.
func Wrap(kind Kind, op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Op: op, Err: err}
}

// KindOf gives the kind of the outermost Error in err's chain, KindInternal for
// any other error, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindInternal
}

// PublicText gives the sentence of err that may be shown to people, or a
// generic one that names the kind.
func PublicText(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Public != "" {
		return e.Public
	}
	return "the service failed (" + string(KindOf(err)) + "); its log has the cause"
}
