package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// TestDrain stops the service while jobs run: it ends soon, the jobs go on, and
// the next start takes them up.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "jobtime=1h")
	w.serve()
	run := w.dispatch("alice", 2)
	for _, j := range run.Jobs {
		w.jobIs(j.ID, gpuserver.JobRunning)
	}
	w.terminate()
	for _, j := range w.wait(run, "in_progress") {
		if j.Status != "in_progress" {
			t.Errorf("job %s is %s: the drain ended it", j.Name, j.Status)
		}
	}
	w.ok(w.forge.CancelRun(w.ctx, run.ID)) // nobody listens
	w.wait(run, "completed")
	w.serve()
	for _, j := range run.Jobs {
		w.jobIs(j.ID, gpuserver.JobDone)
	}
	w.nothingLeft()
	if n := w.creates(); n != 2 {
		t.Errorf("%d VMs were made for 2 jobs", n)
	}
}

// drainWithin is what SIGTERM promises.
const drainWithin = 10 * time.Second

// terminate asks the service to end and checks that it keeps its promise.
func (w *world) terminate() {
	w.t.Helper()
	begin := time.Now()
	w.server.signal(syscall.SIGTERM)
	w.server.ended(w.t)
	if took := time.Since(begin); took > drainWithin {
		w.t.Errorf("it ended %s after SIGTERM, want at most %s", took, drainWithin)
	}
	if code := w.server.cmd.ProcessState.ExitCode(); code != 0 {
		w.t.Errorf("it ended with status %d", code)
	}
}

// TestDrainWhileCallsStall stops the service while a cloud and the forge answer
// nothing.
func TestDrainWhileCallsStall(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.ok(w.cloud.SetFaults(w.ctx, []fake.Fault{{At: "create.after", Stall: true, Times: 1}}))
	w.ok(w.forge.SetFaults(w.ctx, []forgetest.Fault{{Kind: forgetest.FaultDelay, Path: "*generate-jitconfig", Delay: time.Minute, Skip: 1, Count: 1}}))
	w.serve()
	run := w.dispatch("alice", 2)
	w.eventually("the cloud is asked", func() string {
		if w.creates() == 0 {
			return "not yet"
		}
		return ""
	})
	w.terminate()
	w.ok(w.cloud.SetFaults(w.ctx, nil))
	w.ok(w.forge.SetFaults(w.ctx, nil))
	w.serve()
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
}

// TestRestartWhileACloudBuilds stops the service while a cloud makes a VM that it was
// asked for, and will for long. Nobody waits for it: the service ends before its drain
// time-out, and the next start takes that VM up.
func TestRestartWhileACloudBuilds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "leavable")
	w.ok(w.cloud.SetFaults(w.ctx, []fake.Fault{{At: "create.after", Stall: true, Times: 1}}))
	w.serve()
	run := w.dispatch("alice", 1)
	w.eventually("the cloud is asked", func() string {
		if w.creates() == 0 {
			return "not yet"
		}
		return ""
	})
	w.terminate()
	if strings.Contains(w.server.text(), "not everything ended in time") {
		t.Error("its end waited for the cloud")
	}
	w.serve()
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
	if n := w.creates(); n != 1 {
		t.Errorf("%d create calls for 1 job", n)
	}
}

// TestDiskFull fills the file system of the database: deliveries are answered
// 503 and nothing is hurt; with room again all goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	w := newWorld(t, "jobtime=1h")
	w.ok(os.Mkdir(w.data, 0o700))
	if err := syscall.Mount("tmpfs", w.data, "tmpfs", 0, "size=128m"); err != nil {
		t.Skip("a small file system cannot be mounted:", err)
	}
	t.Cleanup(func() {
		w.kill()
		if err := syscall.Unmount(w.data, 0); err != nil {
			t.Error(err)
		}
	})
	w.serve()
	running := w.dispatch("alice", 1)
	w.jobIs(running.Jobs[0].ID, gpuserver.JobRunning)

	filler := filepath.Join(w.data, "filler")
	for _, left := range []uint64{16 << 20, 0} {
		w.fill(filler, left)
		w.eventually(fmt.Sprintf("503 with %d bytes left", left), func() string {
			if status, text := w.postSigned(fmt.Sprint("full-", left), "workflow_job", `{"action":"queued","workflow_job":{"id":1,"run_id":2,"status":"queued","labels":["cirun-x"]},"repository":{"id":3,"full_name":"octo/hello"}}`); status != http.StatusServiceUnavailable {
				return fmt.Sprint(status, text)
			}
			return ""
		})
	}
	lost := w.dispatch("alice", 1) // its delivery is refused
	w.eventually("its delivery failed", func() string {
		ds, err := w.forge.Deliveries(w.ctx)
		for _, d := range ds {
			if d.Job == lost.Jobs[0].ID && d.StatusCode == http.StatusServiceUnavailable {
				return ""
			}
		}
		return fmt.Sprint(len(ds), err)
	})
	w.ok(w.forge.CancelRun(w.ctx, running.ID))
	w.wait(running, "completed")

	w.ok(os.Remove(filler))
	w.jobIs(lost.Jobs[0].ID, gpuserver.JobRunning) // asked for again
	w.jobIs(running.Jobs[0].ID, gpuserver.JobDone)
	w.ok(w.forge.CancelRun(w.ctx, lost.ID))
	w.nothingLeft()
	w.kill()
	w.serve() // the database can be opened, and knows all
	w.jobIs(lost.Jobs[0].ID, gpuserver.JobDone)
	if strings.Contains(w.server.text(), "corrupt") || strings.Contains(w.server.text(), "malformed") {
		t.Error("the database was hurt")
	}
}

// fill writes a file until only left bytes are free.
func (w *world) fill(path string, left uint64) {
	w.t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	w.ok(err)
	defer f.Close()
	chunk := make([]byte, 256<<10)
	for {
		var st syscall.Statfs_t
		w.ok(syscall.Statfs(filepath.Dir(path), &st))
		free := st.Bavail * uint64(st.Bsize)
		if free <= left {
			return
		}
		if _, err := f.Write(chunk[:min(uint64(len(chunk)), free-left)]); err != nil {
			return // full, which was wanted
		}
	}
}
