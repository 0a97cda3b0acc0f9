package fleet

import (
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/store"
)

// slowly are delays of every call to a cloud.
func slowly(d time.Duration) map[string]time.Duration {
	m := map[string]time.Duration{}
	for _, call := range []string{"create", "get", "list", "delete", "keep", "console", "capacity"} {
		m[call] = d
	}
	return m
}

// jobOn queues a job that may run on the given clouds, in this order.
func (b *bench) jobOn(clouds ...string) gpuserver.JobID {
	b.t.Helper()
	id := b.job()
	b.update(func(tx *store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		for _, c := range clouds {
			j.Entries = append(j.Entries, gpuserver.Entry{Cloud: c, Flavor: "small", Image: "img", Runner: "gpu"})
		}
		return tx.SaveJob(&j)
	})
	return id
}

// A cloud that takes 29 seconds for each call is used, and one that takes longer is
// down with the reason; the other cloud's jobs do not wait for either, not even for a
// second, nor do those that may go to both.
func TestSlowCloudHoldsNoOtherUp(t *testing.T) {
	for _, tt := range []struct {
		delay time.Duration
		used  bool
	}{{29 * time.Second, true}, {31 * time.Second, false}} {
		t.Run(tt.delay.String(), func(t *testing.T) {
			var slow *fake.Cloud
			inBubble(t, func(o *Options) {
				slow = fake.NewCloud(fake.Config{Name: "slow", Delays: slowly(tt.delay)})
				o.Clouds = append(o.Clouds, slow.Open(""))
				o.Every.Clouds = 30 * time.Second
			}, func(b *bench) {
				defer slow.Close()
				waits := b.jobOn("slow")
				for range 20 { // the slow one is asked all the time
					began := time.Now()
					either := b.jobOn("local", "slow")
					quick := b.jobOn("local")
					for _, id := range []gpuserver.JobID{quick, either} {
						vm := b.wantJob(id, gpuserver.JobStarting).VM
						b.wantVM(vm, gpuserver.VMBooting)
						b.done(id, "success")
						b.wantVM(vm, gpuserver.VMGone)
					}
					if d := time.Since(began); d != 0 {
						t.Fatalf("jobs of the quick cloud took %s", d)
					}
					b.pass(7 * time.Second)
				}
				if tt.used {
					b.wantVM(b.wantJob(waits, gpuserver.JobStarting).VM, gpuserver.VMBooting)
					return
				}
				if j := b.wantJob(waits, gpuserver.JobQueued); j.Reason.Class != gpuserver.ReasonUnreachable {
					t.Errorf("the slow cloud's job waits because %+v", j.Reason)
				}
			})
		})
	}
}
