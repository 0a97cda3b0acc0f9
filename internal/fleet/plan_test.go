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
		queueMany(b, planAtMost+1, gpuserver.Entry{Cloud: "away", Flavor: "small", Image: "img"})
		id := b.job("small")
		b.pass(time.Minute)
		b.wantJob(id, gpuserver.JobStarting)
		if j := b.read(id - 1); j.State != gpuserver.JobQueued || j.Reason.Class != gpuserver.ReasonNoPlace {
			t.Errorf("the last that cannot go is %s for %+v", j.State, j.Reason)
		}
	})
}

// TestLongQueueIsTold: at a full cloud a plan looks at the head of the queue only,
// and yet each job knows after a few seconds what it waits for.
func TestLongQueueIsTold(t *testing.T) {
	seldom := func(o *Options) { o.Every.Clouds = time.Hour } // news of the cloud would have the planner look, too
	inBubble(t, seldom, func(b *bench) {
		b.cloud.SetHosts([]gpuserver.Host{{Name: "fake", VCPUs: 1, MemoryMiB: 1024, DiskGiB: 10}})
		b.fleet.refreshCapacity(b.ctx, b.drv)
		first := b.job("small")
		b.pass(time.Second)
		b.wantJob(first, gpuserver.JobStarting) // the cloud is full
		last := queueMany(b, 4*headAtMost+1, gpuserver.Entry{Cloud: "local", Flavor: "small", Image: "img"})
		told := func(from, to gpuserver.JobID) {
			t.Helper()
			b.pass(tellEvery + 3*time.Second)
			for id := to; id >= from; id-- {
				if j := b.read(id); j.State != gpuserver.JobQueued || j.Reason.Class != gpuserver.ReasonCapacity {
					t.Fatalf("job %d of %d is %s for %+v", id, to, j.State, j.Reason)
				}
			}
		}
		told(first+1, last)
		one := queueMany(b, 1, gpuserver.Entry{Cloud: "local", Flavor: "small", Image: "img"})
		told(one, one) // although nothing is to be said to those before it
	})
}

// queueMany puts n jobs into the queue at once and gives the last.
func queueMany(b *bench, n int, entry gpuserver.Entry) (last gpuserver.JobID) {
	b.update(func(tx *store.Tx) error {
		for range n {
			b.n++
			j := gpuserver.Job{
				Forge: "gh", ForgeID: b.n, Repo: "octo/hello", RunID: 8, RunAttempt: 1, Name: fmt.Sprint("stuck-", b.n), Labels: []string{"gpu"},
				ForgeState: gpuserver.ForgeQueued, State: gpuserver.JobReceived, QueuedAt: time.Now().Add(-time.Hour), Resource: "gpu",
				Entries: []gpuserver.Entry{entry},
			}
			if err := tx.InsertJob(&j); err != nil {
				return err
			}
			if err := tx.MoveJob(&j, gpuserver.JobQueued, ""); err != nil {
				return err
			}
			last = j.ID
		}
		return nil
	})
	return last
}
