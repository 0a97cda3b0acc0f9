package bench

import (
	"fmt"
	"time"

	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// restart kills the service (kill -9) while jobs wait for room, makes room for
// one more VM, and measures from the start of the new process to its first
// create call: opening and recovering the database, reading the configuration,
// a new token of the forge, a plan, a registration.
func (b *bench) restart() error {
	r := &b.report.Restarts
	for _, m := range []struct {
		latency time.Duration
		to      *Quantiles
	}{{0, &r.Forge0}, {150 * time.Millisecond, &r.Forge150}} {
		took, err := b.restarts(m.latency)
		if err != nil {
			return err
		}
		*m.to = quantiles(took)
		b.say("   forge %3d ms: start → create p50 %.0f ms, max %.0f ms", m.latency.Milliseconds(), m.to.P50, m.to.Max)
	}
	b.report.RestartToCreate = r.Forge0.P50
	return nil
}

func (b *bench) restarts(latency time.Duration) (took []time.Duration, err error) {
	w, err := b.newWorld("restart", forgeArgs{Latency: latency}, cloudArgs{Guest: "none"})
	if err != nil {
		return nil, err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return nil, err
	}
	if _, err := w.dispatch(b.Size.RestartQueued, sameLabel); err != nil {
		return nil, err
	}
	if err := w.allStored(b.Size.RestartQueued); err != nil {
		return nil, err
	}
	for i := range b.Size.Restarts {
		w.kill()
		if err := w.cloud.SetHosts(w.ctx, hosts(i+1)); err != nil {
			return nil, err
		}
		before, err := w.cloud.Calls(w.ctx, 0)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		if err := w.start(); err != nil {
			return nil, err
		}
		var seq int64
		if len(before) > 0 {
			seq = before[len(before)-1].Seq
		}
		c, err := w.cloud.WaitCall(w.ctx, seq, func(c fake.Call) bool { return c.Call == "create" })
		if err != nil {
			return nil, err
		}
		took = append(took, at(c).Sub(start))
	}
	return took, nil
}

// allStored waits until every delivery was answered and every run was read:
// then the jobs are decided, or will be after the next start.
func (w *world) allStored(n int) error {
	return until(w.ctx, 50*time.Millisecond, "all jobs are stored", func() (string, error) {
		if err := w.server.ended(); err != nil {
			return "", err
		}
		queued, err := w.sent("queued")
		if err != nil {
			return "", err
		}
		if len(queued) < n {
			return fmt.Sprintf("%d of %d so far", len(queued), n), nil
		}
		jobs, err := w.forge.Jobs(w.ctx, forgetest.JobFilter{Status: "queued"})
		if err == nil && len(jobs) != n {
			return fmt.Sprintf("%d of %d are queued", len(jobs), n), nil
		}
		return "", err
	})
}
