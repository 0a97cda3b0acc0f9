package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/store"
)

func open(t testing.TB) *store.DB {
	t.Helper()
	return reopen(t, filepath.Join(t.TempDir(), "gpuserver.db"))
}

func reopen(t testing.TB, path string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func update(t testing.TB, db *store.DB, fn func(*store.Tx) error) {
	t.Helper()
	if err := db.Update(context.WithoutCancel(t.Context()), fn); err != nil {
		t.Fatal(err)
	}
}

func sampleJob(id int64) gpuserver.Job {
	return gpuserver.Job{
		Forge: "gh", ForgeID: id, Repo: "octo/hello", RepoID: 7, InstallationID: 8, RunID: 9, RunAttempt: 1, Name: "build", Workflow: "ci",
		Labels: []string{"gpu--1"}, HeadSHA: "abc", HeadBranch: "main", URL: "https://example.org/1", ForgeState: gpuserver.ForgeQueued,
		State: gpuserver.JobReceived, QueuedAt: time.Unix(100, 5).UTC(), Entries: []gpuserver.Entry{{Cloud: "local", Env: map[string]string{"A": "b"}}},
		Command: &gpuserver.Command{Args: []string{"true"}, Timeout: time.Minute},
	}
}

func TestJobRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	db := reopen(t, path)
	j := sampleJob(1)
	update(t, db, func(tx *store.Tx) error { return tx.InsertJob(&j) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = reopen(t, path)
	err := db.View(t.Context(), func(tx *store.Tx) error {
		got, err := tx.JobByForge("gh", 1)
		if diff := cmp.Diff(j, got); diff != "" {
			t.Errorf("after a restart the job differs (-stored +read):\n%s", diff)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMovesAreCompareAndSet(t *testing.T) {
	db := open(t)
	j := sampleJob(1)
	update(t, db, func(tx *store.Tx) error { return tx.InsertJob(&j) })
	stale := j
	update(t, db, func(tx *store.Tx) error { return tx.MoveJob(&j, gpuserver.JobQueued, "allowed") })

	for name, move := range map[string]func(tx *store.Tx) error{
		"from a state that it left": func(tx *store.Tx) error { return tx.MoveJob(&stale, gpuserver.JobRefused, "late") },
		"not in the table":          func(tx *store.Tx) error { return tx.MoveJob(&j, gpuserver.JobWaiting, "backwards") },
	} {
		if err := db.Update(t.Context(), move); gpuserver.KindOf(err) != gpuserver.KindConflict {
			t.Errorf("a move %s: got %v, want a conflict", name, err)
		}
	}
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		got, _ := tx.Job(j.ID)
		es, _ := tx.JobEvents(j.ID)
		if got.State != gpuserver.JobQueued || len(es) != 1 || es[0].Kind != "job.queued" {
			t.Errorf("state %s with events %v; want queued with its one event", got.State, es)
		}
		return nil
	})
}

func TestVMHoldsItsLeaseUntilGone(t *testing.T) {
	db := open(t)
	v := gpuserver.VM{Forge: "gh", Cloud: "local", Host: "h", MadeFor: 3, Runner: gpuserver.Runner{Labels: []string{"x"}}}
	name := func(id gpuserver.VMID) string { return fmt.Sprintf("gs-%d", id) }
	update(t, db, func(tx *store.Tx) error {
		return tx.InsertVM(&v, name, gpuserver.Lease{Cloud: "local", Host: "h", VCPUs: 2, MemoryMiB: 1024, DiskGiB: 5})
	})
	usages := func() (us []store.Usage) {
		_ = db.View(t.Context(), func(tx *store.Tx) (err error) { us, err = tx.Usages(); return err })
		return us
	}
	want := []store.Usage{{Cloud: "local", Host: "h", VMs: 1, VCPUs: 2, MemoryMiB: 1024, DiskGiB: 5}}
	if diff := cmp.Diff(want, usages()); diff != "" {
		t.Fatal(diff)
	}
	for _, s := range []gpuserver.VMState{gpuserver.VMDraining, gpuserver.VMDeleting, gpuserver.VMGone} {
		if len(usages()) != 1 {
			t.Fatalf("the lease was released before %s", s)
		}
		update(t, db, func(tx *store.Tx) error { return tx.MoveVM(&v, s, "test") })
	}
	if len(usages()) != 0 {
		t.Error("the lease outlives the VM")
	}
	var got gpuserver.VM
	_ = db.View(t.Context(), func(tx *store.Tx) (err error) { got, err = tx.VMByName("gs-1"); return err })
	if diff := cmp.Diff(v, got); diff != "" {
		t.Errorf("the VM differs (-memory +stored):\n%s", diff)
	}
}

// A slot is of one lease, or of none, whatever the planner thought.
func TestSlotIsHeldByOneLease(t *testing.T) {
	db := open(t)
	name := func(id gpuserver.VMID) string { return fmt.Sprintf("gs-%d", id) }
	take := func(host string, claims ...gpuserver.Claim) (v gpuserver.VM, err error) {
		v = gpuserver.VM{Forge: "gh", Cloud: "local", Host: host, Runner: gpuserver.Runner{Labels: []string{"x"}}}
		return v, db.Update(t.Context(), func(tx *store.Tx) error {
			return tx.InsertVM(&v, name, gpuserver.Lease{Cloud: "local", Host: host, VCPUs: 4, Claims: claims})
		})
	}
	pair := gpuserver.Claim{Group: 19, Cards: []string{"0000:27:00.0", "0000:28:00.0"}}
	single := gpuserver.Claim{Group: 32, Cards: []string{"0000:44:00.0"}}
	first, err := take("h", pair)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := take("h", single, pair); gpuserver.KindOf(err) != gpuserver.KindConflict || !strings.Contains(err.Error(), "group 19 of local/h") {
		t.Errorf("a second lease of the group: %v, want a conflict that names it", err)
	}
	second, err := take("h", single)
	if err != nil {
		t.Errorf("the other slot of a lease that failed: %v", err)
	}
	if _, err := take("another", pair); err != nil {
		t.Errorf("a group of that number on another host: %v", err)
	}
	until := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	update(t, db, func(tx *store.Tx) error { first.JobDeadline = until; return tx.SaveVM(&first) })
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		us, _ := tx.Usages()
		want := []store.HeldSlot{{Group: 19, VM: first.Name, Until: until, VCPUs: 4}, {Group: 32, VM: second.Name, VCPUs: 4}}
		if d := cmp.Diff(want, us[1].Slots); d != "" {
			t.Errorf("held slots (-want +got):\n%s", d)
		}
		v, _ := tx.VM(first.ID)
		l, err := tx.Lease(first.ID)
		if d := cmp.Diff([]gpuserver.Claim{pair}, v.Claims); d != "" || cmp.Diff(v.Claims, l.Claims) != "" {
			t.Errorf("claims of the VM (-want +got):\n%s\nand of its lease: %v", d, l.Claims)
		}
		return err
	})
	for _, s := range []gpuserver.VMState{gpuserver.VMDraining, gpuserver.VMDeleting, gpuserver.VMGone} {
		if _, err := take("h", pair); gpuserver.KindOf(err) != gpuserver.KindConflict {
			t.Fatalf("the slot was free before %s: %v", s, err)
		}
		update(t, db, func(tx *store.Tx) error { return tx.MoveVM(&first, s, "test") })
	}
	if _, err := take("h", pair); err != nil {
		t.Errorf("the slot is not free after its VM's end: %v", err)
	}
}

// The history of a VM names its cards as far as they are known.
func TestHistoryNamesCards(t *testing.T) {
	db := open(t)
	for host, c := range map[string]struct {
		claims []gpuserver.Claim
		want   string
	}{
		"none":  {nil, "gs-none on local/none"},
		"named": {[]gpuserver.Claim{{Group: 19, Cards: []string{"0000:27:00.0", "0000:28:00.0"}}, {Group: 32, Cards: []string{"0000:44:00.0"}}}, "gs-named on local/named with GPU 0000:27:00.0 and 0000:28:00.0 of group 19, 0000:44:00.0 of group 32"},
		"one":   {[]gpuserver.Claim{{Group: 0, Cards: []string{""}}}, "gs-one on local/one with a GPU of the cloud's choice"},
		"two":   {[]gpuserver.Claim{{Group: 0, Cards: []string{""}}, {Group: 1, Cards: []string{""}}}, "gs-two on local/two with 2 GPUs of the cloud's choice"},
	} {
		v := gpuserver.VM{Forge: "gh", Cloud: "local", Host: host}
		update(t, db, func(tx *store.Tx) error {
			return tx.InsertVM(&v, func(gpuserver.VMID) string { return "gs-" + host }, gpuserver.Lease{Cloud: "local", Host: host, Claims: c.claims})
		})
		_ = db.View(t.Context(), func(tx *store.Tx) error {
			events, err := tx.VMEvents(v.ID)
			if err != nil || len(events) != 1 || events[0].Text != c.want {
				t.Errorf("%s: %+v, %v, want the text %q", host, events, err, c.want)
			}
			return nil
		})
	}
}

func TestGroupedUpdatesFailAlone(t *testing.T) {
	db := open(t)
	boom := errors.New("boom")
	var wg sync.WaitGroup
	errs := make([]error, 200)
	for i := range errs {
		wg.Go(func() {
			errs[i] = db.Update(t.Context(), func(tx *store.Tx) error {
				j := sampleJob(int64(i + 1))
				if err := tx.InsertJob(&j); err != nil {
					return err
				}
				if i%3 == 0 {
					return boom
				}
				return nil
			})
		})
	}
	wg.Wait()
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		for i, err := range errs {
			_, found := tx.JobByForge("gh", int64(i+1))
			if failed := i%3 == 0; failed != (err != nil) || failed != (found != nil) {
				t.Errorf("update %d: error %v, row: %v", i, err, found)
			}
		}
		return nil
	})
}

func TestWatchersSeeCommittedChangesOnly(t *testing.T) {
	db := open(t)
	var got []store.Change
	db.Watch(func(cs []store.Change) { got = append(got, cs...) })
	_ = db.Update(t.Context(), func(tx *store.Tx) error {
		j := sampleJob(1)
		_ = tx.InsertJob(&j)
		return errors.New("undone")
	})
	j := sampleJob(2)
	update(t, db, func(tx *store.Tx) error { return tx.InsertJob(&j) })
	if diff := cmp.Diff([]store.Change{{Job: j.ID, JobState: gpuserver.JobReceived, Forge: j.Forge}}, got); diff != "" {
		t.Error(diff)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	reopen(t, path)
	if _, err := store.Open(t.Context(), path); gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("got %v, want a conflict", err)
	}
}

// A folder that cannot be used is no second server: who is told to stop another
// one looks for it in vain.
func TestFolderThatCannotBeUsed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	_, err := store.Open(t.Context(), filepath.Join(dir, "gpuserver.db"))
	if gpuserver.KindOf(err) != gpuserver.KindUnavailable || !strings.Contains(gpuserver.PublicText(err), dir) || strings.Contains(err.Error(), "another gpuserver") {
		t.Errorf("got %s: %v", gpuserver.KindOf(err), err)
	}
}

func TestUpdateAfterClose(t *testing.T) {
	db := open(t)
	_ = db.Close()
	if err := db.Update(t.Context(), func(*store.Tx) error { return nil }); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("got %v, want unavailable", err)
	}
}

func TestReplayedDeliveryIsSeen(t *testing.T) {
	db := open(t)
	d := store.Delivery{Forge: "gh", GUID: "g1", Name: "workflow_job.queued", Outcome: "job", ReceivedAt: time.Now(), Body: []byte("{}")}
	for range 2 {
		update(t, db, func(tx *store.Tx) error { return tx.AddDelivery(d) })
	}
	_ = db.View(t.Context(), func(tx *store.Tx) error {
		for guid, want := range map[string]bool{"g1": true, "g2": false} {
			if seen, err := tx.SeenDelivery("gh", guid); seen != want || err != nil {
				t.Errorf("delivery %s: seen %v (%v), want %v", guid, seen, err, want)
			}
		}
		return nil
	})
}

// TestFileStaysBounded writes many times more than the limits allow and looks
// at the file: it must not grow with the number of deliveries. The full million
// runs with GPUSERVER_TEST_FULL=1.
func TestFileStaysBounded(t *testing.T) {
	total, keep := 24_000, 2_000
	if os.Getenv("GPUSERVER_TEST_FULL") == "1" {
		total = 1_000_000
	}
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	db := reopen(t, path)
	limits := store.Limits{Deliveries: 72 * time.Hour, Jobs: 24 * time.Hour, MaxDeliveries: keep, MaxBodies: keep / 2}
	body := make([]byte, 2000)
	var sizeEarly, size int64
	for n := 0; n < total; n += 1000 {
		update(t, db, func(tx *store.Tx) error {
			for i := range 1000 {
				if err := tx.AddDelivery(store.Delivery{Forge: "gh", GUID: fmt.Sprint(n + i), Name: "x", Outcome: "job", ReceivedAt: tx.Now, Body: body}); err != nil {
					return err
				}
			}
			return nil
		})
		for {
			deleted, err := db.Prune(t.Context(), limits)
			if err != nil {
				t.Fatal(err)
			}
			if deleted == 0 {
				break
			}
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size = fi.Size()
		if n == 9000 {
			sizeEarly = size
		}
	}
	if size > 2*sizeEarly {
		t.Errorf("%d bytes after 10,000 deliveries, %d after %d: the file grows", sizeEarly, size, total)
	}
}

func BenchmarkUpdate(b *testing.B) {
	db := open(b)
	var n int64
	var mu sync.Mutex
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			id := n
			mu.Unlock()
			_ = db.Update(context.Background(), func(tx *store.Tx) error {
				j := sampleJob(id)
				if err := tx.InsertJob(&j); err != nil {
					return err
				}
				if err := tx.AddDelivery(store.Delivery{Forge: "gh", GUID: fmt.Sprint(id), Name: "x", Outcome: "job", Job: j.ID, ReceivedAt: tx.Now, Body: make([]byte, 6000)}); err != nil {
					return err
				}
				return tx.AddEvent(gpuserver.Event{Job: j.ID, Kind: "stored"})
			})
		}
	})
}

// TestFileIsWholeAndPrivate: after a clean stop the file alone is a backup, and
// nobody but its owner may read it.
func TestFileIsWholeAndPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuserver.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // one that was made before
		t.Fatal(err)
	}
	db := reopen(t, path)
	j := sampleJob(1)
	update(t, db, func(tx *store.Tx) error { return tx.InsertJob(&j) })
	for _, f := range []string{path, path + "-wal"} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v (%v), want 0600", f, info.Mode().Perm(), err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); !os.IsNotExist(err) {
		t.Errorf("the write-ahead log is left after a clean stop: %v", err)
	}
}
