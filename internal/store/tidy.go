package store

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Tidier keeps the store within limits: it deletes now and then, and in between
// when many deliveries have come. A flood would else be held to the limits only
// after it has filled the disk.
type Tidier struct {
	DB     *DB
	Limits Limits
	Every  time.Duration
	After  int64  // deliveries
	Also   func() // what else is to be deleted now and then
	Log    *slog.Logger

	came atomic.Int64 // deliveries since it deleted last
	once sync.Once
	soon chan struct{}
}

// Came counts a delivery.
func (t *Tidier) Came() {
	if t.came.Add(1) < t.After {
		return
	}
	select {
	case t.wake() <- struct{}{}:
	default: // it has been told
	}
}

func (t *Tidier) wake() chan struct{} {
	t.once.Do(func() { t.soon = make(chan struct{}, 1) })
	return t.soon
}

// Run deletes until ctx is done.
func (t *Tidier) Run(ctx context.Context) error {
	every := time.NewTicker(t.Every)
	defer every.Stop()
	t.Also()
	for {
		t.tidy(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake():
		case <-every.C:
			t.Also()
		}
	}
}

// tidy deletes until nothing is too old or too much.
func (t *Tidier) tidy(ctx context.Context) {
	t.came.Store(0)
	for ctx.Err() == nil {
		n, err := t.DB.Prune(ctx, t.Limits)
		if err != nil && ctx.Err() == nil {
			t.Log.Warn("old rows cannot be deleted", "err", err)
		}
		if n == 0 || err != nil {
			return
		}
	}
}
