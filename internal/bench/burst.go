package bench

import (
	"fmt"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// bursts measures many jobs at once, with the forge's limits off.
func (b *bench) bursts() error {
	for _, m := range []struct {
		latency time.Duration
		to      *Forge
	}{{0, &b.report.Forge0}, {150 * time.Millisecond, &b.report.Forge150}} {
		points, err := b.burst(m.latency, m.to)
		if err != nil {
			return err
		}
		if m.latency == 0 {
			b.report.PointsPerJob = points
		}
		b.say("   forge %3d ms: %.0f VMs/s; webhook → create p50 %.0f ms, p99 %.0f ms; %.2f points a job", m.latency.Milliseconds(),
			m.to.BurstPerS, m.to.BurstWebhookToCreate.P50, m.to.BurstWebhookToCreate.P99, points)
	}
	return nil
}

// burst is one burst after one job that warms everything up.
func (b *bench) burst(latency time.Duration, to *Forge) (points float64, err error) {
	w, err := b.newWorld("burst", forgeArgs{Latency: latency}, cloudArgs{MaxVMs: unlimited, Guest: "none"})
	if err != nil {
		return 0, err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return 0, err
	}
	if _, err := w.dispatch(1, sameLabel); err != nil {
		return 0, err
	}
	if _, err := w.creates(1); err != nil {
		return 0, err
	}
	if err := w.forge.ResetStats(w.ctx); err != nil {
		return 0, err
	}
	n := b.Size.Burst
	if _, err := w.dispatch(n, sameLabel); err != nil {
		return 0, err
	}
	creates, err := w.creates(n + 1)
	if err != nil {
		return 0, err
	}
	st, err := w.forge.Stats(w.ctx)
	if err != nil {
		return 0, err
	}
	return round(float64(st.TotalPoints)/float64(n), 3), w.burstTimes(creates[1:], to)
}

func (w *world) burstTimes(creates []fake.Call, to *Forge) error {
	queued, err := w.sent("queued")
	if err != nil {
		return err
	}
	jobs, err := w.forge.Jobs(w.ctx, forgetest.JobFilter{})
	if err != nil {
		return err
	}
	// Which VM is for which job is known to the service alone: VMs of one matrix
	// are equal, and any may take any job. So the k-th delivery is held against
	// the k-th create call.
	var took []time.Duration
	first := time.Time{}
	for i, t := range sortedTimes(queued)[1:] {
		if i == 0 {
			first = t
		}
		took = append(took, at(creates[i]).Sub(t))
	}
	if len(took) != len(creates) || len(jobs) != len(creates)+1 {
		return gpuserver.Errorf(gpuserver.KindInternal, "bench: %d jobs, %d deliveries, %d create calls", len(jobs)-1, len(took), len(creates))
	}
	to.BurstPerS = round(float64(len(creates))/at(creates[len(creates)-1]).Sub(first).Seconds(), 1)
	to.BurstWebhookToCreate = quantiles(took)
	return nil
}

// limits measures a burst with the limits on that GitHub documents, for long
// enough to see the pace that follows the first minute's burst.
//
// What the limit permits: so many points a minute, five for a registration. The
// window rolls, so a client that spends all of it at once may do so again a
// minute later. The time is therefore taken from the first create call to the
// first one that comes LimitedFor or more after it, and what was created before
// that one is held against the limit's pace in just that time. A client that
// registers evenly and one that does it in bursts are measured alike.
func (b *bench) limits() error {
	w, err := b.newWorld("limits", forgeArgs{Latency: 150 * time.Millisecond, Limits: true}, cloudArgs{MaxVMs: unlimited, Guest: "none"})
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return err
	}
	if _, err := w.dispatch(b.Size.LimitedJobs, sameLabel); err != nil {
		return err
	}
	creates, err := w.watchCreates(b.Size.LimitedFor, b.Size.LimitedJobs)
	if err != nil {
		return err
	}
	st, err := w.forge.Stats(w.ctx)
	if err != nil {
		return err
	}
	l := &b.report.WithinLimits
	*l = withinLimits(creates, b.Size.LimitedFor)
	for limit, n := range st.Rejected {
		if limit != "auth" {
			l.Rejected += n
		}
	}
	b.say("   %d created in %.0f s (%.0f a minute): %.1f %% of what is permitted; %d calls rejected", l.Created, l.Seconds, l.PerMinute, 100*l.Permitted, l.Rejected)
	return nil
}

// watchCreates waits for a create call that comes at least d after the first
// one, or for all n, and says now and then how far it is.
func (w *world) watchCreates(d time.Duration, n int) (found []fake.Call, err error) {
	said := time.Now()
	err = until(w.ctx, 100*time.Millisecond, fmt.Sprintf("a create call %s after the first", d), func() (string, error) {
		if err := w.server.ended(); err != nil {
			return "", err
		}
		all, err := w.cloud.Calls(w.ctx, 0)
		if err != nil {
			return "", err
		}
		found = found[:0]
		for _, c := range all {
			if c.Call == "create" {
				found = append(found, c)
			}
		}
		if len(found) >= n || len(found) > 1 && at(found[len(found)-1]).Sub(at(found[0])) >= d {
			return "", nil
		}
		if time.Since(said) > 15*time.Second {
			said = time.Now()
			w.b.say("   %d created", len(found))
		}
		return fmt.Sprintf("%d so far", len(found)), nil
	})
	return found, err
}

// withinLimits compares creates, in order of time, with the limit's pace.
func withinLimits(creates []fake.Call, d time.Duration) (l WithinLimits) {
	const registration = 5 // points
	perMinute := float64(forgetest.GitHubLimits().PointsPerMinute) / registration
	took := d
	for _, c := range creates {
		if since := at(c).Sub(at(creates[0])); since >= d {
			took = since
			break
		}
		l.Created++
	}
	l.Seconds = round(took.Seconds(), 1)
	l.PerMinute = round(float64(l.Created)/took.Minutes(), 1)
	l.Permitted = round(float64(l.Created)/(perMinute*took.Minutes()), 3)
	return l
}
