package machine

import (
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// TestRun runs commands through a running service: their ends are the
// program's exit statuses, their outputs its own.
func TestRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve()
	run := func(t *testing.T, args ...string) *process {
		t.Helper()
		return program(t, []string{"GPUSERVER_SERVER=" + w.socket(), "GREETING=hello"}, append([]string{"run"}, args...)...)
	}
	t.Run("commands", func(t *testing.T) {
		for _, tt := range []struct {
			name           string
			args           []string
			status         int
			stdout, stderr string // stderr is contained
		}{
			{"status and outputs", []string{"-e", "GREETING", "--", "sh", "-c", "echo $GREETING; echo bad >&2; exit 3"}, 3, "hello\n", "bad\n"},
			{"time-out", []string{"--timeout", "1s", "--", "sleep", "100000"}, 124, "", "time"},
			{"signal", []string{"--", "sh", "-c", "echo begun; kill -KILL $$"}, 137, "begun\n", ""},
		} {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				p := run(t, tt.args...)
				if status := p.ended(t); status != tt.status || p.stdout.String() != tt.stdout || !strings.Contains(p.stderr.String(), tt.stderr) {
					t.Errorf("status %d, output %q, standard error %q; want %+v", status, p.stdout.String(), p.stderr.String(), tt)
				}
			})
		}
		t.Run("interrupted", func(t *testing.T) {
			t.Parallel()
			p := run(t, "--", "sh", "-c", "echo begun; sleep 100000")
			p.says(t, &p.stdout, "begun\n")
			p.signal(syscall.SIGINT)
			if status := p.ended(t); status != 130 {
				t.Errorf("status %d, want 130", status)
			}
		})
		t.Run("time limit of the flavor", func(t *testing.T) {
			t.Parallel()
			w.forTest(t).hitsTimeLimit()
		})
	})
	w.nothingLeft()
}

// hitsTimeLimit runs a job of a forge that does not end within its flavor's
// time limit.
func (w *world) hitsTimeLimit() {
	t := w.t
	run := w.dispatch("brief", "sleep 100000; echo survived", func(j *forgetest.JobSpec) {
		j.Labels = []string{"cirun-openstack-brief"}
	})
	j := w.completed(run)
	log, err := w.Log(w.ctx, j.ID)
	w.ok(err)
	if j.Conclusion != "cancelled" && j.Conclusion != "failure" || strings.Contains(log, "Z survived") {
		t.Errorf("the job ended as %q:\n%s", j.Conclusion, log)
	}
	if v := w.vm(run, gpuserver.VMGone); v.Flavor != "ci_brief" || v.InterruptedAt.IsZero() {
		t.Errorf("VM %s of flavor %s was interrupted at %v", v.Name, v.Flavor, v.InterruptedAt)
	}
	d, err := w.client.Job(w.ctx, w.job(run).ID)
	w.ok(err)
	if !slices.ContainsFunc(d.Events, func(e gpuserver.Event) bool { return e.Kind == "time_limit" }) {
		t.Errorf("the job's history does not say that it ran out of time: %+v", d.Events)
	}
}

// TestRunWithoutServer runs commands where no service runs: a temporary one is
// made and leaves nothing.
func TestRunWithoutServer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, script string
		interrupt    syscall.Signal // 0: none
		status       int
		stdout       string
	}{
		{"status and outputs", "echo out; echo err >&2; exit 5", 0, 5, "out\n"},
		{"interrupted", "echo err >&2; echo out; sleep 100000", syscall.SIGINT, 130, "out\n"},
		{"its terminal is closed", "echo err >&2; echo out; sleep 100000", syscall.SIGHUP, 130, "out\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.interrupt == syscall.SIGHUP && signal.Ignored(syscall.SIGHUP) { // below nohup; a child would ignore it, too
				signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
			}
			p := program(t, []string{"GPUSERVER_IMAGE_DIR=" + image}, "run", "--", "sh", "-c", tt.script)
			if tt.interrupt != 0 {
				// Each stream comes on its own, and what a guest has not sent yet ends with it.
				p.says(t, &p.stdout, tt.stdout)
				p.says(t, &p.stderr, "\nerr\n")
				p.signal(tt.interrupt)
			}
			if status := p.ended(t); status != tt.status || p.stdout.String() != tt.stdout || !strings.Contains(p.stderr.String(), "\nerr\n") {
				t.Errorf("status %d, output %q, standard error %q", status, p.stdout.String(), p.stderr.String())
			}
			if !strings.Contains(p.stderr.String(), "no server runs") {
				t.Error("it does not say that it starts a server of its own")
			}
			if left := onHost(t, "gsr"); left != "" {
				t.Errorf("the host has more than before:\n%s", left)
			}
		})
	}
}

// TestRunThatServiceFails shows the status of a service that cannot run the
// command, apart from all of the command's own.
func TestRunThatServiceFails(t *testing.T) {
	t.Parallel()
	p := program(t, []string{"GPUSERVER_IMAGE_DIR=" + t.TempDir()}, "run", "--", "true")
	if status := p.ended(t); status != 125 || p.stdout.String() != "" || !strings.Contains(p.stderr.String(), "vmlinuz") {
		t.Errorf("status %d, output %q, standard error %q; want 125 and the file that is missing", status, p.stdout.String(), p.stderr.String())
	}
}
