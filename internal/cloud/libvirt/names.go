package libvirt

import (
	"context"
	"sync"
)

// names lets one operation at a time change a VM.
type names struct {
	mu   sync.Mutex
	busy map[string]*turn
}

// turn is an operation in progress.
type turn struct {
	building bool
	over     chan struct{}
}

func newNames() *names { return &names{busy: map[string]*turn{}} }

// try begins an operation if none is in progress, and gives what ends it.
func (n *names) try(vm string, building bool) (end func(), ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy[vm] != nil {
		return nil, false
	}
	t := &turn{building: building, over: make(chan struct{})}
	n.busy[vm] = t
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.busy, vm)
		close(t.over)
	}, true
}

// wait begins an operation once no other is in progress.
func (n *names) wait(ctx context.Context, vm string) (end func(), err error) {
	for {
		if end, ok := n.try(vm, false); ok {
			return end, nil
		}
		n.mu.Lock()
		t := n.busy[vm]
		n.mu.Unlock()
		if t == nil {
			continue
		}
		select {
		case <-t.over:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// building reports whether a create of vm is in progress.
func (n *names) building(vm string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.busy[vm] != nil && n.busy[vm].building
}

// ending reports whether a delete or keep of vm is in progress.
func (n *names) ending(vm string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.busy[vm] != nil && !n.busy[vm].building
}
