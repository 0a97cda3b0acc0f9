package e2e

import (
	"fmt"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// check waits until a job has a check run of which ok says that it is right.
func (w *world) check(job int64, ok func(forgetest.Check) bool) (found forgetest.Check) {
	w.t.Helper()
	id := fmt.Sprint(w.job(job).ID)
	w.eventually("the check run", func() string {
		all, err := w.forge.Checks(w.ctx, "octo/hello")
		for _, c := range all {
			if c.ExternalID == id && ok(c) {
				found = c
				return ""
			}
		}
		return fmt.Sprintf("there are %+v (%v)", all, err)
	})
	return found
}

// TestUserWithoutRights is told at once what refused the job, and what would
// satisfy it; once that is done, a re-request lets the job run.
func TestUserWithoutRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	run := w.dispatch("mallory", 1)
	id := run.Jobs[0].ID
	w.jobIs(id, gpuserver.JobRefused)
	c := w.check(id, func(c forgetest.Check) bool { return c.Conclusion == "action_required" })
	if c.HeadSHA != run.HeadSHA || !strings.Contains(c.Summary, "hello-policy") || !strings.Contains(c.Summary, "mallory") || !strings.Contains(c.Summary, "write") {
		t.Errorf("the check run does not name commit, policy, user and what would do:\n%+v", c)
	}
	if n := w.creates(); n != 0 {
		t.Errorf("%d VMs were made for a refused job", n)
	}
	w.ok(w.forge.Rerequest(w.ctx, c.ID, "alice"))
	w.eventually("it is decided again", func() string {
		if texts := w.events(id, "job.refused"); len(texts) < 2 {
			return fmt.Sprint(texts)
		}
		return ""
	})
	w.check(id, func(again forgetest.Check) bool {
		return again.ID == c.ID && again.Conclusion == "action_required" && again.Writes > c.Writes
	})
	w.ok(w.forge.SetRole(w.ctx, forgetest.Role{Repo: "octo/hello", Login: "mallory", Role: "write"}))
	w.ok(w.forge.Rerequest(w.ctx, c.ID, "alice"))
	w.ranOnce(w.succeeded(run))
	w.nothingLeft()
	w.check(id, func(c forgetest.Check) bool { return c.Conclusion == "neutral" })
}

// TestWaitIsTold tells after a while why a job waits, and concludes that when
// it starts.
func TestWaitIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.extra += "jobs: {notice_after: 1s}\n"
	w.ok(w.cloud.SetHosts(w.ctx, []gpuserver.Host{{Name: "full", VCPUs: 4, MemoryMiB: 1 << 20, DiskGiB: 1000}}))
	w.serve()
	first := w.dispatch("alice", 1, held)
	w.jobIs(first.Jobs[0].ID, gpuserver.JobStarting)
	run := w.dispatch("alice", 1, held)
	id := run.Jobs[0].ID
	c := w.check(id, func(c forgetest.Check) bool { return c.Status == "queued" })
	if !strings.Contains(c.Title, "Waiting") || !strings.Contains(c.Summary, "job-1") {
		t.Errorf("it says %+v", c)
	}
	w.release(first)
	w.release(run)
	w.ranOnce(w.succeeded(run))
	c = w.check(id, func(c forgetest.Check) bool { return c.Conclusion == "neutral" })
	if c.Writes != 2 {
		t.Errorf("the check run was written %d times, want 2", c.Writes)
	}
	w.nothingLeft()
}

// TestLabelThatMatchesNothing is refused with what it could have meant.
func TestLabelThatMatchesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	run := w.dispatch("alice", 1, func(s *forgetest.RunSpec) { s.Jobs[0].Labels = []string{"cirun-nonsense--1"} })
	id := run.Jobs[0].ID
	if got := w.jobIs(id, gpuserver.JobRefused); got.Reason.Class != gpuserver.ReasonNoRunner {
		t.Errorf("the reason is %+v", got.Reason)
	}
	typo := w.dispatch("alice", 1, func(s *forgetest.RunSpec) { s.Jobs[0].Labels = []string{"cirun-openstack-gpu-larg--1"} })
	if got := w.jobIs(typo.Jobs[0].ID, gpuserver.JobRefused); got.Reason.Class != gpuserver.ReasonNoRunner || !strings.Contains(got.Reason.Text+got.Reason.Help, "cirun-openstack-gpu-large") {
		t.Errorf("a label that only looks like a one-line runner: the reason is %+v", got.Reason)
	}
	c := w.check(id, func(c forgetest.Check) bool { return c.Conclusion == "action_required" })
	if !strings.Contains(c.Summary, "cirun-nonsense") {
		t.Errorf("the check run does not name the label:\n%s", c.Summary)
	}
	w.ok(w.forge.CancelRun(w.ctx, run.ID))
	w.jobIs(id, gpuserver.JobDone)
}

// TestJobsOfOthersAreLeftAlone dispatches a job for GitHub's own runners.
func TestJobsOfOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	w.dispatch("alice", 1, func(s *forgetest.RunSpec) { s.Jobs[0].Labels = []string{"ubuntu-latest"} })
	w.succeeded(w.dispatch("alice", 1))
	jobs, err := w.client().Jobs(w.ctx, nil, "", 10)
	w.ok(err)
	if len(jobs) != 1 || jobs[0].State == gpuserver.JobRefused {
		t.Errorf("the jobs known are %+v, want only ours", jobs)
	}
	if checks, err := w.forge.Checks(w.ctx, "octo/hello"); err != nil || len(checks) != 0 {
		t.Errorf("there are check runs: %+v (%v)", checks, err)
	}
}

// TestBrokenAccessFile breaks the access file: its last good version counts,
// also after a restart, and the history says so.
func TestBrokenAccessFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.serve()
	w.succeeded(w.dispatch("alice", 1))
	w.must(w.forge.SetFile(w.ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".access.yml", Content: []byte("version: [1\n  policies")}))
	w.kill() // it forgets when it last read the file
	w.serve()
	good, bad := w.dispatch("alice", 1), w.dispatch("mallory", 1)
	w.ranOnce(w.succeeded(good))
	w.jobIs(bad.Jobs[0].ID, gpuserver.JobRefused)
	texts := strings.Join(w.events(good.Jobs[0].ID, "job.queued"), "\n")
	if !strings.Contains(texts, ".access.yml") {
		t.Errorf("the history does not say that the last good version was used: %q", texts)
	}
	w.nothingLeft()
}

// TestForkWithoutAccessFile refuses a pull request from a fork where nothing
// grants it; the head's own files count for nothing.
func TestForkWithoutAccessFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.must(w.forge.SetFile(w.ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".access.yml", Delete: true}))
	w.must(w.forge.AddRepo(w.ctx, forgetest.Repository{Name: "mallory/hello", ForkOf: "octo/hello", Files: map[string]string{
		".cirun.yml": strings.ReplaceAll(globalFile, "cirun-openstack-gpu-large", "cirun-mine"),
	}}))
	w.serve()
	fork := func(label string) int64 {
		return w.dispatch("mallory", 1, func(s *forgetest.RunSpec) {
			s.Event, s.HeadRepo = "pull_request", "mallory/hello"
			s.Jobs[0].Labels = []string{label}
		}).Jobs[0].ID
	}
	if got := w.jobIs(fork("cirun-openstack-gpu-large--1"), gpuserver.JobRefused); got.Reason.Class != gpuserver.ReasonNoAccess || !strings.Contains(got.Reason.Text, "fork") {
		t.Errorf("the reason is %+v", got.Reason)
	}
	if got := w.jobIs(fork("cirun-mine--1"), gpuserver.JobRefused); got.Reason.Class != gpuserver.ReasonNoRunner {
		t.Errorf("a runner of the fork's own file was found: %+v", got.Reason)
	}
	w.succeeded(w.dispatch("alice", 1))
	w.nothingLeft()
	if n := w.creates(); n != 1 {
		t.Errorf("%d VMs were made, want 1", n)
	}
}
