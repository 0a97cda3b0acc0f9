package bench

import (
	"fmt"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// single measures jobs of which each begins once the VM of the one before was
// asked for, and not more than some a second: none waits for another, and every
// call to the forge between a delivery and its create call is for that job. Their
// guests run the job at once. Every job has a label of its own, by which its
// runner is found.
func (b *bench) single() error {
	for _, m := range []struct {
		latency time.Duration
		n       int
		to      *Forge
	}{
		{0, b.Size.Singles, &b.report.Forge0},
		{150 * time.Millisecond, b.Size.SinglesLate, &b.report.Forge150},
	} {
		s, err := b.singles(m.latency, m.n)
		if err != nil {
			return err
		}
		m.to.WebhookToCreate, m.to.Beyond = quantiles(s.raw), quantiles(s.beyond)
		if m.latency == 0 {
			b.report.CompleteToDelete = quantiles(s.deleted)
		} else {
			slices.Sort(s.trips)
			b.report.RoundTrips = s.cold
			b.report.RoundTrips.Warm, b.report.RoundTrips.WarmMax = s.trips[(len(s.trips)-1)/2], s.trips[len(s.trips)-1]
		}
		b.say("   forge %3d ms: webhook → create p50 %.1f ms, p99 %.1f ms, without the forge p50 %.1f ms, p99 %.1f ms",
			m.latency.Milliseconds(), m.to.WebhookToCreate.P50, m.to.WebhookToCreate.P99, m.to.Beyond.P50, m.to.Beyond.P99)
	}
	b.say("   completed → delete p50 %.1f ms, p99 %.1f ms; round trips warm %d, cold %d",
		b.report.CompleteToDelete.P50, b.report.CompleteToDelete.P99, b.report.RoundTrips.Warm, b.report.RoundTrips.Cold)
	return nil
}

// singleTimes are those of single jobs.
type singleTimes struct {
	raw, beyond, deleted []time.Duration
	trips                []int
	cold                 RoundTrips
}

func (b *bench) singles(latency time.Duration, n int) (s singleTimes, err error) {
	w, err := b.newWorld("single", forgeArgs{Latency: latency}, cloudArgs{MaxVMs: unlimited, Guest: "quick"})
	if err != nil {
		return s, err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return s, err
	}
	const warmUp = 5 // jobs that are not counted; the first is the cold one
	pause := time.Duration(float64(time.Second) / b.Size.SinglesPerS)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	seq := int64(0)
	for i := range n + warmUp {
		if _, err := w.dispatch(1, func(int) string { return fmt.Sprintf("cirun-bench--%d", i) }); err != nil {
			return s, err
		}
		c, err := w.cloud.WaitCall(w.ctx, seq, func(c fake.Call) bool { return c.Call == "create" })
		if err != nil {
			return s, err
		}
		seq = c.Seq
		<-tick.C
	}
	if _, err := w.calls("delete", n+warmUp, 0); err != nil {
		return s, err
	}
	return s, w.singleTimes(&s, warmUp)
}

// singleTimes puts the records of the other processes together.
func (w *world) singleTimes(s *singleTimes, warmUp int) error {
	jobs, err := w.forge.Jobs(w.ctx, forgetest.JobFilter{})
	if err != nil {
		return err
	}
	queued, err := w.sent("queued")
	if err != nil {
		return err
	}
	completed, err := w.sent("completed")
	if err != nil {
		return err
	}
	calls, err := w.forge.Calls(w.ctx, 0)
	if err != nil {
		return err
	}
	clouds, err := w.cloud.Calls(w.ctx, 0)
	if err != nil {
		return err
	}
	create, remove := firstCalls(clouds, "create"), firstCalls(clouds, "delete")
	for i, j := range jobs {
		vm := vmOf(j.RunnerName)
		from, ended := queued[j.ID], completed[j.ID]
		made, ok := create[vm]
		gone, ok2 := remove[vm]
		if !ok || !ok2 || from.IsZero() || ended.IsZero() {
			return gpuserver.Errorf(gpuserver.KindInternal, "bench: the records of job %d on runner %q do not fit together", j.ID, j.RunnerName)
		}
		own := during(calls, from, made)
		if i == 0 {
			s.cold = RoundTrips{Cold: forgetest.RoundTrips(own), ColdCalls: len(own), ColdMs: millis(made.Sub(from))}
		}
		if i < warmUp {
			continue
		}
		s.raw = append(s.raw, made.Sub(from))
		s.beyond = append(s.beyond, made.Sub(from)-covered(own))
		s.trips = append(s.trips, forgetest.RoundTrips(own))
		s.deleted = append(s.deleted, gone.Sub(ended))
	}
	return nil
}

// firstCalls gives when the first call of a kind arrived, by VM.
func firstCalls(calls []fake.Call, kind string) map[string]time.Time {
	m := map[string]time.Time{}
	for _, c := range calls {
		if _, seen := m[c.Name]; c.Call == kind && !seen {
			m[c.Name] = at(c)
		}
	}
	return m
}

// during gives the calls that began and ended between two times.
func during(calls []forgetest.Call, from, to time.Time) []forgetest.Call {
	var out []forgetest.Call
	for _, c := range calls {
		if !c.Start.Before(from) && !c.End.After(to) {
			out = append(out, c)
		}
	}
	return out
}

// covered is how long at least one of the calls was at the forge.
func covered(calls []forgetest.Call) (sum time.Duration) {
	byStart := slices.SortedFunc(slices.Values(calls), func(a, b forgetest.Call) int { return a.Start.Compare(b.Start) })
	var end time.Time
	for _, c := range byStart {
		from := c.Start
		if from.Before(end) {
			from = end
		}
		if c.End.After(from) {
			sum += c.End.Sub(from)
			end = c.End
		}
	}
	return sum
}
