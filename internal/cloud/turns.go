package cloud

import (
	"context"
	"sync"
)

// Turns lets one operation at a time change a VM of a driver. The zero value is
// ready; its methods may be called concurrently.
type Turns struct {
	mu   sync.Mutex
	busy map[string]*turn
}

// turn is an operation in progress.
type turn struct {
	making bool // else it deletes or keeps the VM
	over   chan struct{}
}

// Try begins an operation on a VM if none is in progress, and gives what ends it.
// making: it makes the VM; else it deletes or keeps it.
func (t *Turns) Try(vm string, making bool) (end func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy[vm] != nil {
		return nil, false
	}
	if t.busy == nil {
		t.busy = map[string]*turn{}
	}
	now := &turn{making: making, over: make(chan struct{})}
	t.busy[vm] = now
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.busy, vm)
		close(now.over)
	}, true
}

// Wait begins an operation that ends a VM once no other is in progress. An error is
// ctx's.
func (t *Turns) Wait(ctx context.Context, vm string) (end func(), err error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if end, ok := t.Try(vm, false); ok {
			return end, nil
		}
		t.mu.Lock()
		now := t.busy[vm]
		t.mu.Unlock()
		if now == nil {
			continue
		}
		select {
		case <-now.over:
		case <-ctx.Done():
		}
	}
}

// Making reports whether a VM is being made.
func (t *Turns) Making(vm string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.busy[vm] != nil && t.busy[vm].making
}

// Ending reports whether a VM is being deleted or kept.
func (t *Turns) Ending(vm string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.busy[vm] != nil && !t.busy[vm].making
}
