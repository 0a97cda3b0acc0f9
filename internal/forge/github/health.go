package github

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"gpuserver"
)

// health remembers whether the last call that got an answer, or ought to have,
// found GitHub there and the App accepted.
type health struct {
	mu   sync.Mutex
	down error // nil: all is well
}

// note takes the outcome of a call into account. What GitHub refuses or does not
// have is an answer too; limits and callers who leave say nothing.
func (h *health) note(ctx context.Context, err error) {
	re, answered := errors.AsType[*ResponseError](err)
	kind := gpuserver.KindOf(err)
	bad := kind == gpuserver.KindUnavailable || answered && re.Status == http.StatusUnauthorized
	switch {
	case err == nil, answered && !bad && kind != gpuserver.KindLimited:
		err = nil
	case !bad, errors.Is(ctx.Err(), context.Canceled):
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = err
}

// Trouble is why GitHub cannot be used at present: the error of the last call,
// if GitHub could not be reached, failed, or did not accept the App's key.
func (f *Forge) Trouble() error {
	f.health.mu.Lock()
	defer f.health.mu.Unlock()
	return f.health.down
}
