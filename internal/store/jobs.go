package store

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

// What of a job is ever written again stands last: a row's indexes are written
// for each column that an UPDATE names, changed or not.
const (
	jobFixed   = `forge, forge_id, repo, repo_id, installation_id, run_id, name, workflow, labels, head_sha, head_branch, url, created_at`
	jobMoved   = `state, queued_at` // only with a move
	jobSaved   = `run_attempt, actor, forge_state, conclusion, runner_name, reason, resource, entries, command, tries, vm, decided_at, started_at, ended_at, next_try_at, updated_at`
	jobColumns = `id, ` + jobFixed + `, ` + jobMoved + `, ` + jobSaved
)

// marks gives a question mark for each of columns.
func marks(columns string) string { return "?" + strings.Repeat(",?", strings.Count(columns, ",")) }

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// text encodes a small value; our own types always encode.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("store: " + err.Error())
	}
	return string(b)
}

// empty are the texts of values that are not set.
var empty = map[string]bool{"null": true, text(gpuserver.Reason{}): true}

func scanJob(r scanner) (gpuserver.Job, error) {
	var j gpuserver.Job
	var labels, reason, entries, command string
	var created, queued, decided, started, ended, next, updated int64
	err := r.Scan(&j.ID,
		&j.Forge, &j.ForgeID, &j.Repo, &j.RepoID, &j.InstallationID, &j.RunID, &j.Name, &j.Workflow, &labels, &j.HeadSHA, &j.HeadBranch, &j.URL, &created,
		&j.State, &queued,
		&j.RunAttempt, &j.Actor, &j.ForgeState, &j.Conclusion, &j.RunnerName, &reason, &j.Resource, &entries, &command, &j.Tries, &j.VM, &decided, &started, &ended, &next, &updated)
	if err != nil {
		return j, err
	}
	for _, f := range []struct {
		s string
		v any
	}{{labels, &j.Labels}, {reason, &j.Reason}, {entries, &j.Entries}, {command, &j.Command}} {
		if empty[f.s] { // most are, and a plan reads thousands
			continue
		}
		if err := json.Unmarshal([]byte(f.s), f.v); err != nil {
			return j, err
		}
	}
	j.CreatedAt, j.QueuedAt, j.DecidedAt = fromNanos(created), fromNanos(queued), fromNanos(decided)
	j.StartedAt, j.EndedAt, j.NextTryAt, j.UpdatedAt = fromNanos(started), fromNanos(ended), fromNanos(next), fromNanos(updated)
	return j, nil
}

func fixedArgs(j *gpuserver.Job) []any {
	return []any{
		j.Forge, j.ForgeID, j.Repo, j.RepoID, j.InstallationID, j.RunID, j.Name, j.Workflow, text(j.Labels), j.HeadSHA, j.HeadBranch, j.URL, nanos(j.CreatedAt),
	}
}

func movedArgs(j *gpuserver.Job) []any { return []any{j.State, nanos(j.QueuedAt)} }

func savedArgs(j *gpuserver.Job) []any {
	return []any{
		j.RunAttempt, j.Actor, j.ForgeState, j.Conclusion, j.RunnerName, text(j.Reason), j.Resource, text(j.Entries), text(j.Command), j.Tries, j.VM,
		nanos(j.DecidedAt), nanos(j.StartedAt), nanos(j.EndedAt), nanos(j.NextTryAt), nanos(j.UpdatedAt),
	}
}

var (
	insertJob = `INSERT INTO jobs (` + jobFixed + `, ` + jobMoved + `, ` + jobSaved + `) VALUES (` + marks(jobFixed+`,`+jobMoved+`,`+jobSaved) + `)`
	saveJob   = `UPDATE jobs SET (` + jobSaved + `) = (` + marks(jobSaved) + `) WHERE id = ? AND state = ?`
	moveJob   = `UPDATE jobs SET (` + jobMoved + `, ` + jobSaved + `) = (` + marks(jobMoved+`,`+jobSaved) + `) WHERE id = ? AND state = ?`
)

// InsertJob stores a new job and sets its ID and times. Its state must be one
// that a job may begin with.
func (tx *Tx) InsertJob(j *gpuserver.Job) error {
	if !slices.Contains(gpuserver.JobMoves[""], j.State) {
		return gpuserver.Errorf(gpuserver.KindInternal, "a job cannot begin as %q", j.State)
	}
	if j.CreatedAt.IsZero() {
		j.CreatedAt = tx.Now
	}
	j.UpdatedAt = tx.Now
	id, err := tx.insert(insertJob, slices.Concat(fixedArgs(j), movedArgs(j), savedArgs(j))...)
	if err != nil {
		return err
	}
	j.ID = gpuserver.JobID(id)
	tx.changes = append(tx.changes, Change{Job: j.ID, JobState: j.State, Forge: j.Forge})
	return nil
}

// SaveJob writes what may change of j without moving its state; when it was
// queued changes only with a move. KindConflict: the job is in another state by
// now.
func (tx *Tx) SaveJob(j *gpuserver.Job) error {
	j.UpdatedAt = tx.Now
	return tx.updateJob(j, j.State, saveJob, savedArgs(j))
}

// MoveJob moves j to state to, with the event that explains it. A move that the
// table does not allow, or from a state that the job has left, is KindConflict
// and changes nothing.
func (tx *Tx) MoveJob(j *gpuserver.Job, to gpuserver.JobState, why string) error {
	from := j.State
	if !slices.Contains(gpuserver.JobMoves[from], to) {
		return gpuserver.Errorf(gpuserver.KindConflict, "job %d cannot go from %s to %s", j.ID, from, to)
	}
	j.State, j.UpdatedAt = to, tx.Now
	if err := tx.updateJob(j, from, moveJob, append(movedArgs(j), savedArgs(j)...)); err != nil {
		j.State = from
		return err
	}
	return tx.AddEvent(gpuserver.Event{Job: j.ID, VM: j.VM, Kind: "job." + string(to), Text: why})
}

func (tx *Tx) updateJob(j *gpuserver.Job, from gpuserver.JobState, query string, args []any) error {
	n, err := tx.execN(query, append(args, j.ID, from)...)
	if err != nil {
		return err
	}
	if n == 0 {
		return gpuserver.Errorf(gpuserver.KindConflict, "job %d is no longer %s", j.ID, from)
	}
	tx.changes = append(tx.changes, Change{Job: j.ID, JobState: j.State, Forge: j.Forge})
	return nil
}

func (tx *Tx) oneJob(what, where string, args ...any) (j gpuserver.Job, err error) {
	err = tx.one(what, `SELECT `+jobColumns+` FROM jobs WHERE `+where, args, func(r scanner) (err error) {
		j, err = scanJob(r)
		return err
	})
	return j, err
}

func (tx *Tx) jobs(where string, args ...any) (js []gpuserver.Job, err error) {
	err = tx.each(`SELECT `+jobColumns+` FROM jobs WHERE `+where, args, func(r scanner) error {
		j, err := scanJob(r)
		js = append(js, j)
		return err
	})
	return js, err
}

// Job gives one job, KindNotFound if there is none.
func (tx *Tx) Job(id gpuserver.JobID) (gpuserver.Job, error) {
	return tx.oneJob("such job", `id = ?`, id)
}

// JobByForge finds a job by the forge's number.
func (tx *Tx) JobByForge(forge string, id int64) (gpuserver.Job, error) {
	return tx.oneJob("such job", `forge = ? AND forge_id = ?`, forge, id)
}

// JobsIn gives at most limit jobs in state s, oldest in the queue first.
func (tx *Tx) JobsIn(s gpuserver.JobState, limit int) ([]gpuserver.Job, error) {
	return tx.jobs(`state = ? AND state NOT IN ('done', 'failed', 'refused') ORDER BY queued_at, id LIMIT ?`, s, limit)
}

// QueuedAfter gives at most limit jobs in state queued that come after last in
// the queue, oldest first; nil: from its head.
func (tx *Tx) QueuedAfter(last *gpuserver.Job, limit int) ([]gpuserver.Job, error) {
	if last == nil {
		return tx.JobsIn(gpuserver.JobQueued, limit)
	}
	return tx.jobs(`state = 'queued' AND state NOT IN ('done', 'failed', 'refused') AND (queued_at, id) > (?, ?) ORDER BY queued_at, id LIMIT ?`,
		nanos(last.QueuedAt), last.ID, limit)
}

// UnfinishedJobs gives all jobs of a forge that are not over, oldest update
// first. forge "" means all.
func (tx *Tx) UnfinishedJobs(forge string) ([]gpuserver.Job, error) {
	return tx.jobs(`state NOT IN ('done', 'failed', 'refused') AND (? = '' OR forge = ?) ORDER BY updated_at, id`, forge, forge)
}

// UnfinishedBefore gives the jobs of a forge that are not over, of which it told
// nothing new since t: that they are there, queued or running. When they were
// written last says nothing: the reason of one that waits is written all the time.
func (tx *Tx) UnfinishedBefore(forge string, t time.Time) ([]gpuserver.Job, error) {
	return tx.jobs(`state NOT IN ('done', 'failed', 'refused') AND forge = ? AND max(created_at, queued_at, started_at) <= ? ORDER BY updated_at, id`, forge, nanos(t))
}

// JobsOfRun gives the jobs of one attempt of a run.
func (tx *Tx) JobsOfRun(forge, repo string, run int64, attempt int) ([]gpuserver.Job, error) {
	return tx.jobs(`forge = ? AND repo = ? AND run_id = ? AND run_attempt = ? ORDER BY id`, forge, repo, run, attempt)
}

// CheckedJobs gives the newest jobs at a commit that have a check run.
func (tx *Tx) CheckedJobs(forge, repo, sha string, most int) ([]gpuserver.Job, error) {
	return tx.jobs(`id IN (SELECT job FROM checks WHERE check_id <> 0) AND forge = ? AND repo = ? COLLATE NOCASE AND head_sha = ? ORDER BY id DESC LIMIT ?`,
		forge, repo, sha, most)
}

// JobFilter selects jobs for a list.
type JobFilter struct {
	States []gpuserver.JobState // empty: any
	Repo   string               // "": any
	Limit  int                  // 0: 100
}

// ListJobs gives jobs, newest first.
func (tx *Tx) ListJobs(f JobFilter) ([]gpuserver.Job, error) {
	where, args := `1`, []any{}
	if len(f.States) > 0 {
		where += ` AND state IN (?` + strings.Repeat(",?", len(f.States)-1) + `)`
		for _, s := range f.States {
			args = append(args, s)
		}
	}
	if f.Repo != "" {
		where += ` AND repo = ?`
		args = append(args, f.Repo)
	}
	if f.Limit <= 0 {
		f.Limit = 100
	}
	return tx.jobs(where+` ORDER BY id DESC LIMIT ?`, append(args, f.Limit)...)
}

// QueuePosition gives how many queued jobs are before j.
func (tx *Tx) QueuePosition(j gpuserver.Job) (n int, err error) {
	err = tx.one("queue", `SELECT count(*) FROM jobs WHERE state = 'queued' AND state NOT IN ('done', 'failed', 'refused') AND (queued_at, id) < (?, ?)`,
		[]any{nanos(j.QueuedAt), j.ID}, func(r scanner) error { return r.Scan(&n) })
	return n, err
}

// JobCounts gives the number of unfinished jobs by state.
func (tx *Tx) JobCounts() (map[gpuserver.JobState]int, error) {
	m := map[gpuserver.JobState]int{}
	err := tx.each(`SELECT state, count(*) FROM jobs WHERE state NOT IN ('done', 'failed', 'refused') GROUP BY state`, nil, func(r scanner) error {
		var s gpuserver.JobState
		var n int
		err := r.Scan(&s, &n)
		m[s] = n
		return err
	})
	return m, err
}

// OldestQueued gives when the job at the head of the queue was queued; zero if
// none waits.
func (tx *Tx) OldestQueued() (time.Time, error) {
	var n int64
	err := tx.one("queue", `SELECT coalesce(min(queued_at), 0) FROM jobs WHERE state = 'queued' AND state NOT IN ('done', 'failed', 'refused')`, nil,
		func(r scanner) error { return r.Scan(&n) })
	return fromNanos(n), err
}
