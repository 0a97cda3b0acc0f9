package apitest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/store"
)

// World are the jobs and VMs that Seed makes.
type World struct {
	Done, Running, Queued, Behind, Refused gpuserver.Job
	Gone, Busy                             gpuserver.VM
}

// Seed fills a store with a job of each kind that pages and lists show, begun
// some minutes before now.
func Seed(t testing.TB, db *store.DB) World {
	t.Helper()
	var w World
	update := func(fn func(*store.Tx) error) {
		t.Helper()
		if err := db.Update(context.Background(), fn); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now().UTC()
	update(func(tx *store.Tx) error {
		for i, j := range []*gpuserver.Job{&w.Done, &w.Running, &w.Queued, &w.Behind, &w.Refused} {
			*j = gpuserver.Job{
				Forge: "github", ForgeID: int64(100 + i), Repo: "octo/hello", RunID: 9, RunAttempt: 1, Name: fmt.Sprintf("test (%d)", i+1), Workflow: "ci",
				Labels: []string{"gpu--" + fmt.Sprint(i)}, URL: "https://github.example/octo/hello/actions/runs/9", ForgeState: gpuserver.ForgeQueued, State: gpuserver.JobReceived,
				QueuedAt: now.Add(time.Duration(i-10) * time.Minute), Resource: "gpu",
				Entries: []gpuserver.Entry{{Cloud: "local", Flavor: "small", Image: "demo", Runner: "gpu"}},
			}
			if err := tx.InsertJob(j); err != nil {
				return err
			}
		}
		w.Refused.Reason = gpuserver.Reason{
			Class: gpuserver.ReasonNoAccess, Text: "The policy “team-gpu” does not let mallory use the runner gpu.", Help: "Ask an owner of octo to add mallory to the team gpu.",
		}
		if err := tx.MoveJob(&w.Refused, gpuserver.JobRefused, "policy team-gpu"); err != nil {
			return err
		}
		w.Queued.Reason = gpuserver.Reason{
			Class: gpuserver.ReasonCapacity, Text: "It waits for 8 vCPU on cloud local: 4 of 16 are free.", Help: "It starts when VM gs-2 ends.",
		}
		for _, j := range []*gpuserver.Job{&w.Done, &w.Running, &w.Queued, &w.Behind} {
			if err := tx.MoveJob(j, gpuserver.JobQueued, "allowed"); err != nil {
				return err
			}
		}
		for range 3 {
			if _, err := tx.CountImageFailure("old", 3, "Three runners in a row ended without a job."); err != nil {
				return err
			}
		}
		return tx.SaveSuspension(store.Suspension{
			Cloud: "stack", Flavor: "gpu_large", Failures: 5, FirstAt: tx.Now, LastAt: tx.Now, SuspendedAt: tx.Now, Until: tx.Now.Add(time.Hour),
			Reason: "ledger and cloud disagree: by the ledger there is room.",
		})
	})
	update(func(tx *store.Tx) error {
		if err := seedVM(tx, &w.Done, &w.Gone); err != nil {
			return err
		}
		return seedVM(tx, &w.Running, &w.Busy)
	})
	update(func(tx *store.Tx) error { return seedEnd(tx, &w.Done, &w.Gone) })
	return w
}

func seedVM(tx *store.Tx, j *gpuserver.Job, v *gpuserver.VM, claims ...gpuserver.Claim) error {
	*v = gpuserver.VM{Forge: j.Forge, Cloud: "local", Host: "node1", Flavor: "small", Image: "demo", MadeFor: j.ID, Assigned: j.ID}
	name := func(id gpuserver.VMID) string { return fmt.Sprintf("gs-%d", id) }
	if err := tx.InsertVM(v, name, gpuserver.Lease{Cloud: "local", Host: "node1", VCPUs: 6, MemoryMiB: 8192, DiskGiB: 40, Claims: claims}); err != nil {
		return err
	}
	v.Runner = gpuserver.Runner{Name: v.Name + "-1", ID: 77, Attempt: 1, State: gpuserver.RunnerRegistered, Labels: j.Labels}
	for _, s := range []gpuserver.VMState{gpuserver.VMCreating, gpuserver.VMBooting, gpuserver.VMReady, gpuserver.VMBusy} {
		if err := tx.MoveVM(v, s, "seeded"); err != nil {
			return err
		}
	}
	j.VM, j.StartedAt, j.RunnerName = v.ID, j.QueuedAt.Add(5*time.Second), v.Runner.Name
	if err := tx.MoveJob(j, gpuserver.JobRunning, "runner "+v.Runner.Name+" has it"); err != nil {
		return err
	}
	for i, p := range gpuserver.Phases[:8] {
		vm := v.ID
		if i < 3 {
			vm = 0
		}
		if err := tx.AddPhase(j.ID, vm, p, j.QueuedAt.Add(time.Duration(i)*700*time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

func seedEnd(tx *store.Tx, j *gpuserver.Job, v *gpuserver.VM) error {
	j.Conclusion, j.ForgeState, j.EndedAt = "success", gpuserver.ForgeCompleted, j.StartedAt.Add(83*time.Second)
	if err := tx.MoveJob(j, gpuserver.JobDone, "success"); err != nil {
		return err
	}
	for _, s := range []gpuserver.VMState{gpuserver.VMDeleting, gpuserver.VMGone} {
		if err := tx.MoveVM(v, s, "its job ended"); err != nil {
			return err
		}
	}
	for i, p := range gpuserver.Phases[8:] {
		if err := tx.AddPhase(j.ID, v.ID, p, j.EndedAt.Add(time.Duration(i)*300*time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}
