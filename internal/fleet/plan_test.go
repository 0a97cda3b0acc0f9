package fleet

import (
	"fmt"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/store"
)

// TestLongQueueThatCannotGo queues more jobs than one read of the queue gives,
// none of which can run now: those behind them, which can, do not wait for them.
func TestLongQueueThatCannotGo(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.update(func(tx *store.Tx) error {
			for i := range planAtMost + 1 {
				j := gpuserver.Job{
					Forge: "gh", ForgeID: int64(1000 + i), Repo: "octo/hello", RunID: 8, RunAttempt: 1, Name: fmt.Sprint("stuck-", i), Labels: []string{"gpu"},
					ForgeState: gpuserver.ForgeQueued, State: gpuserver.JobReceived, QueuedAt: time.Now().Add(-time.Hour), Resource: "gpu",
					Entries: []gpuserver.Entry{{Cloud: "away", Flavor: "small", Image: "img"}},
				}
				if err := tx.InsertJob(&j); err != nil {
					return err
				}
				if err := tx.MoveJob(&j, gpuserver.JobQueued, ""); err != nil {
					return err
				}
			}
			return nil
		})
		id := b.job("small")
		b.pass(time.Minute)
		b.wantJob(id, gpuserver.JobStarting)
		if j := b.read(id - 1); j.State != gpuserver.JobQueued || j.Reason.Class != gpuserver.ReasonNoPlace {
			t.Errorf("the last that cannot go is %s for %+v", j.State, j.Reason)
		}
	})
}
