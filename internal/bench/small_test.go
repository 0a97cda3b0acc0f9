package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The test binary is also the other processes, by role.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	is, err := ServeRole(ctx)
	stop()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case !is:
		os.Exit(m.Run())
	}
}

// Every part runs with few jobs and finds something. Nothing is said of how
// much: that would be a test of the machine.
func TestAllPartsMeasure(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program and starts some thirty processes")
	}
	dir, program := diskDir(t), buildServer(t)
	r, err := Run(t.Context(), Options{Server: program, Self: os.Args[0], Dir: dir, Size: SmallSize(), Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	measuresAll(t, r)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v", dir, left, err)
	}
	t.Run("openstack", func(t *testing.T) { measuresStack(t, dir, program) })
}

// diskDir is a folder on a disk.
func diskDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if fs, err := fileSystem(dir); err != nil || fs == "tmpfs" || fs == "ramfs" {
		dir = filepath.Join(os.Getenv("HOME"), ".cache", "gpuserver", "bench-test")
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	return dir
}

// buildServer builds the program.
func buildServer(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "gpuserver")
	build := exec.Command("go", "build", "-o", program, "gpuserver/cmd/gpuserver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func measuresAll(t *testing.T, r Report) {
	t.Helper()
	for name, v := range map[string]float64{
		"cores": float64(r.Machine.Cores), "fsync": r.Machine.Fsync.P50,
		"webhook to create": r.Forge0.WebhookToCreate.P50, "beyond the forge": r.Forge150.Beyond.P50,
		"burst": r.Forge0.BurstPerS, "burst at 150 ms": r.Forge150.BurstPerS, "points": r.PointsPerJob,
		"within limits": r.WithinLimits.Permitted, "intake": r.IntakePerS, "intake p99": r.IntakeP99,
		"intake with VMs": r.Intake.LiveVMs.PerS, "body": float64(r.Intake.BodySize), "complete to delete": r.CompleteToDelete.P50,
		"idle": r.RSSIdle, "with VMs": r.RSS5000, "restart": r.RestartToCreate, "round trips": float64(r.RoundTrips.Warm),
		"week": float64(r.Week.Ours.Done),
	} {
		if v <= 0 {
			t.Errorf("%s: nothing was measured", name)
		}
	}
	if r.WithinLimits.Rejected != 0 || r.Intake.NoVMs.Failed+r.Intake.LiveVMs.Failed != 0 {
		t.Errorf("%d calls were rejected, %d and %d deliveries failed", r.WithinLimits.Rejected, r.Intake.NoVMs.Failed, r.Intake.LiveVMs.Failed)
	}
	// At 150 ms a call, what we wait for the forge is what its own records say.
	if w := r.Forge150.WebhookToCreate.P50; w < 150*float64(r.RoundTrips.Warm) {
		t.Errorf("%v ms for %d round trips of 150 ms", w, r.RoundTrips.Warm)
	}
}

func TestUnknownPart(t *testing.T) {
	if _, err := Run(t.Context(), Options{Parts: []string{"idle", "idel"}, Dir: t.TempDir()}); err == nil {
		t.Error("a part that is not there was run")
	}
}

func TestMemoryIsNoDisk(t *testing.T) {
	fs, err := fileSystem("/dev/shm")
	if err != nil || fs != "tmpfs" {
		t.Skipf("/dev/shm is %s, %v", fs, err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "bench-")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	if err := realDisk(dir); err == nil {
		t.Error("a folder in memory was taken for a disk")
	}
}

func TestPartsHaveNames(t *testing.T) {
	names, what := Parts()
	if d := cmp.Diff([]string{"machine", "idle", "single", "burst", "limits", "intake", "memory", "restart", "week", "openstack-single", "openstack-burst", "openstack-idle"}, names); d != "" || len(what) != len(names) {
		t.Error(d)
	}
}
