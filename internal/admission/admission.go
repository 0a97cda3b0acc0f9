// Package admission finds out what each received job may have: it reads the
// run and the owner's files from the forge, asks cirun which runners serve the
// labels and access whether the actor may have them, and commits the answer
// with its reason.
//
// cirun and access decide without doing; this package does their reading. When
// warm, one round trip to the forge (the run) is all that a decision costs.
package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/access"
	"gpuserver/internal/cirun"
	"gpuserver/internal/crashpoint"
	"gpuserver/internal/forge"
	"gpuserver/internal/guest"
	"gpuserver/internal/store"
	"gpuserver/internal/workqueue"
)

// Forge is a forge with where owners keep their files on it.
type Forge struct {
	forge.Forge
	OrganisationRepo string   // ".cirun"
	RunnersFile      string   // ".cirun.global.yml"
	AccessFile       string   // ".access.yml"
	RepositoryFile   string   // ".cirun.yml"; "": repositories define no runners
	AllowForks       bool     // pull requests from forks, where no access file exists
	LabelPrefixes    []string // labels that are ours without standing in a file
	Owners           []string // whose jobs are run; none: everybody's
}

// Options are what an Admission is made of.
type Options struct {
	DB      *store.DB
	Forges  map[string]Forge
	Mapping cirun.Mapping
	Runners *cirun.File   // of our own configuration; may be nil
	Access  *cirun.Access // of our own configuration; may be nil
	Users   interface {
		// Users gives the list at an address, as it was at the earliest at since.
		Users(ctx context.Context, address string, since time.Time) (users []cirun.User, note string, err error)
	}
	// Reread applies what the forge says of a job now; asked in doubt.
	Reread func(ctx context.Context, forgeName string, j forge.Job) error
	// Fresh is how long an owner's files are used without asking the forge
	// whether they changed; 0 is a minute.
	Fresh time.Duration
	Log   *slog.Logger
}

// Admission decides about jobs. Make it with New, then Run it.
type Admission struct {
	Options
	queues map[string]*workqueue.Queue[gpuserver.JobID] // by forge; "" has the jobs of forges that are gone
	files  *files
	facts  *facts

	mu    sync.Mutex
	known map[ownerKey]known
}

type ownerKey struct{ forge, owner string }

// known are an owner's labels, as they were at a time.
type known struct {
	cirun.Known
	at time.Time
}

// New makes an Admission.
func New(o Options) *Admission {
	if o.Fresh == 0 {
		o.Fresh = time.Minute
	}
	return &Admission{Options: o, files: newFiles(o.DB, o.Fresh), facts: newFacts(o.Fresh), known: map[ownerKey]known{}}
}

// atOnce is how many jobs of a forge are decided at the same time: a forge that
// does not answer holds up its own jobs only.
const atOnce = 64

// Run decides about every received job until ctx is done.
func (a *Admission) Run(ctx context.Context) error {
	a.queues = map[string]*workqueue.Queue[gpuserver.JobID]{"": workqueue.NewLimited(ctx, atOnce, a.decide)}
	for name := range a.Forges {
		a.queues[name] = workqueue.NewLimited(ctx, atOnce, a.decide)
	}
	a.DB.Watch(func(cs []store.Change) {
		for _, c := range cs {
			if c.JobState == gpuserver.JobReceived {
				a.wake(c.Forge, c.Job)
			}
		}
	})
	var jobs []gpuserver.Job
	err := a.DB.View(ctx, func(tx *store.Tx) (err error) {
		jobs, err = tx.JobsIn(gpuserver.JobReceived, 1<<20)
		return err
	})
	for _, j := range jobs {
		a.wake(j.Forge, j.ID)
	}
	if err != nil {
		return err
	}
	<-ctx.Done()
	for _, q := range a.queues {
		q.Wait()
	}
	return nil
}

func (a *Admission) wake(forgeName string, id gpuserver.JobID) {
	q, ok := a.queues[forgeName]
	if !ok {
		q = a.queues[""]
	}
	q.Add(id)
}

// Ours reports whether a job with these labels could be ours, before anything
// is read for it.
func (a *Admission) Ours(forgeName string, repo forge.Repo, labels []string) bool {
	f, ok := a.Forges[forgeName]
	if !ok || len(f.Owners) > 0 && !slices.ContainsFunc(f.Owners, func(o string) bool { return strings.EqualFold(o, repo.Owner()) }) {
		return false
	}
	a.mu.Lock()
	k, ok := a.known[ownerKey{forgeName, strings.ToLower(repo.Owner())}]
	a.mu.Unlock()
	if !ok {
		k.Known = cirun.NewKnown(f.LabelPrefixes, a.Runners)
	}
	// What was read a while ago does not know the labels added since: one job is
	// kept then, and its decision reads them.
	k.Unread = k.Unread || time.Since(k.at) >= a.Fresh
	return k.Ours(labels)
}

// old is from which age on a received job is read again before a VM is made for
// it: its event may be a late replay.
const old = 10 * time.Minute

// decide decides about one job and says when to try again.
func (a *Admission) decide(ctx context.Context, id gpuserver.JobID) time.Duration {
	j, err := a.received(ctx, id)
	if err != nil {
		return 0
	}
	f, ok := a.Forges[j.Forge]
	if !ok {
		return a.commit(ctx, j, answer{reason: gpuserver.Reason{Class: gpuserver.ReasonConfig, Text: fmt.Sprintf("the forge %q is not in the configuration", j.Forge)}})
	}
	if d := time.Until(j.NextTryAt); d > 0 {
		return d
	}
	if stale, d := a.stale(ctx, f, j); stale {
		return d
	}
	ans, err := a.ask(ctx, f, j)
	if err != nil {
		return a.later(ctx, j, err)
	}
	crashpoint.At("decide.before")
	d := a.commit(ctx, j, ans)
	crashpoint.At("decide.commit")
	return d
}

// received gives a job that is to be decided; an error if it is not.
func (a *Admission) received(ctx context.Context, id gpuserver.JobID) (j gpuserver.Job, err error) {
	err = a.DB.View(ctx, func(tx *store.Tx) (err error) { j, err = tx.Job(id); return err })
	if err == nil && j.State != gpuserver.JobReceived {
		err = gpuserver.Errorf(gpuserver.KindConflict, "job %d is %s", id, j.State)
	}
	return j, err
}

// stale reads an old job from the forge; if that moved it on there is nothing
// to decide any more.
func (a *Admission) stale(ctx context.Context, f Forge, j gpuserver.Job) (bool, time.Duration) {
	if time.Since(j.QueuedAt) < old || a.Reread == nil {
		return false, 0
	}
	now, err := f.Job(ctx, repoOf(j), j.ForgeID)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		now, err = forge.Job{ID: j.ForgeID, State: gpuserver.ForgeCompleted, Conclusion: "not_found", Repo: repoOf(j), Labels: j.Labels}, nil
	}
	if err == nil && now.State.Rank() > j.ForgeState.Rank() {
		if err = a.Reread(ctx, j.Forge, now); err == nil {
			return true, 0
		}
	}
	if err != nil {
		return true, a.later(ctx, j, err)
	}
	return false, 0
}

func repoOf(j gpuserver.Job) forge.Repo {
	return forge.Repo{Name: j.Repo, ID: j.RepoID, InstallationID: j.InstallationID}
}

// later keeps the job and its place while the forge cannot be asked.
func (a *Admission) later(ctx context.Context, j gpuserver.Job, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	class := gpuserver.ReasonUnreachable
	pause := min(time.Minute, time.Second<<min(j.Tries, 6))
	if limit, ok := errors.AsType[*forge.LimitError](err); ok {
		class, pause = gpuserver.ReasonForgeBudget, max(time.Until(limit.Until), time.Second)
	}
	a.Log.Warn("job cannot be decided yet", "job", j.ID, "pause", pause, "err", err)
	_ = a.DB.UpdateLater(ctx, func(tx *store.Tx) error {
		j, err2 := tx.Job(j.ID)
		if err2 != nil || j.State != gpuserver.JobReceived {
			return err2
		}
		j.Tries++
		j.NextTryAt = tx.Now.Add(pause)
		j.Reason = gpuserver.Reason{Class: class, Text: "it cannot be decided yet whether it may run: " + gpuserver.PublicText(err), Help: "it is tried again by itself"}
		return tx.SaveJob(&j)
	})
	return pause
}

// answer is what was found out about a job.
type answer struct {
	entries  []gpuserver.Entry
	resource string
	actor    string
	reason   gpuserver.Reason // why not; zero if there are entries
	note     string
	foreign  bool // no runner of ours has anything to do with its labels
}

// commit stores the answer; the job may have moved on meanwhile.
func (a *Admission) commit(ctx context.Context, asked gpuserver.Job, ans answer) time.Duration {
	again := false
	j := asked
	err := a.DB.UpdateLater(ctx, func(tx *store.Tx) error {
		j, err := tx.Job(asked.ID)
		if err != nil || j.State != gpuserver.JobReceived {
			return err
		}
		if len(ans.entries) == 0 && !j.UpdatedAt.Equal(asked.UpdatedAt) {
			again = true // somebody asked anew meanwhile; a refusal of before is no answer to that
			return nil
		}
		j.Actor, j.Resource, j.Entries, j.Reason = ans.actor, ans.resource, ans.entries, ans.reason
		j.DecidedAt, j.NextTryAt, j.Tries = tx.Now, time.Time{}, 0
		if err := tx.AddPhase(j.ID, 0, gpuserver.PhaseDecided, tx.Now); err != nil {
			return err
		}
		if len(ans.entries) == 0 {
			j.EndedAt = tx.Now
			if ans.foreign {
				j.Reason.Class = ""
			}
			return tx.MoveJob(&j, gpuserver.JobRefused, ans.reason.Text)
		}
		return tx.MoveJob(&j, gpuserver.JobQueued, strings.TrimPrefix(ans.note+"; "+fmt.Sprintf("%s may have %s", ans.actor, ans.resource), "; "))
	})
	switch {
	case err != nil && ctx.Err() == nil:
		a.Log.Error("decision cannot be stored", "job", j.ID, "err", err)
		return time.Second
	case again:
		return time.Millisecond
	case err == nil:
		a.Log.Info("job decided", "job", j.ID, "repo", j.Repo, "actor", ans.actor, "resource", ans.resource, "allowed", len(ans.entries) > 0, "reason", ans.reason.Text, "note", ans.note)
	}
	return 0
}

// foreignPause is how long after its files were read an owner's jobs are told
// apart from others by them: those may be many.
const foreignPause = 10 * time.Second

// ask finds out what a job may have. A refusal rests on files read after the job
// came: who mends a file and runs the job again must not hear the old answer.
func (a *Admission) ask(ctx context.Context, f Forge, j gpuserver.Job) (answer, error) {
	ans, readAt, err := a.askSince(ctx, f, j, time.Time{})
	since := j.UpdatedAt
	if ans.foreign {
		since = since.Add(-foreignPause)
	}
	if err != nil || len(ans.entries) > 0 || !readAt.Before(since) {
		return ans, err
	}
	ans, _, err = a.askSince(ctx, f, j, since)
	return ans, err
}

// askSince is ask once, with the default branches' files as they were at since
// or later. readAt is when the oldest of those was asked for.
func (a *Admission) askSince(ctx context.Context, f Forge, j gpuserver.Job, since time.Time) (ans answer, readAt time.Time, err error) {
	run, fs, err := a.read(ctx, f, j, since)
	if err != nil {
		return answer{}, readAt, err
	}
	ans, err = a.match(ctx, f, j, run, fs)
	if notes := strings.Join(fs.notes, "; "); notes != "" && err == nil {
		if ans.note = strings.TrimSuffix(notes+"; "+ans.note, "; "); ans.reason.Text != "" {
			ans.reason.Text += " (" + notes + ".)"
		}
	}
	return ans, fs.readAt, err
}

// match finds out what the files that were read give a job.
func (a *Admission) match(ctx context.Context, f Forge, j gpuserver.Job, run forge.Run, fs ownerFiles) (answer, error) {
	ans := answer{actor: run.TriggeringActor.Login}
	m := cirun.Match(cirun.Files{Configuration: a.Runners, Repository: fs.repository, Organisation: fs.organisation}, j.Labels)
	if fs.unread != "" && (len(m.Runners) == 0 || m.Runners[0].Origin == cirun.FromLabel) { // its runner may stand in that file
		ans.reason = unreadFile(fs.unread)
		return ans, nil
	}
	if len(m.Runners) == 0 { // of a file's last good version nobody knows what the new one has
		ans.reason, ans.foreign = m.Reason, len(fs.notes) == 0 && !a.pointsAtUs(f, fs, j.Labels)
		return ans, nil
	}
	if m.Otherwise.Class != "" {
		if places, _ := cirun.ResolveAll(m.Runners, a.Mapping); len(places) == 0 {
			ans.reason = m.Otherwise
			return ans, nil
		}
	}
	allowed, refusal, note, err := a.permit(ctx, f, j, run, fs, m.Runners)
	if err != nil {
		return ans, err
	}
	if len(allowed) == 0 {
		ans.reason, ans.resource = refusal, m.Runners[0].Name
		return ans, nil
	}
	entries, lack := cirun.ResolveAll(allowed, a.Mapping)
	ans.entries, ans.resource, ans.note = entries, allowed[0].Name, note
	if len(entries) == 0 {
		ans.reason = lack
	}
	return ans, nil
}

// unreadFile is the refusal where a file of runners cannot be read.
func unreadFile(why string) gpuserver.Reason {
	return gpuserver.Reason{
		Class: gpuserver.ReasonConfig, Text: why + ".",
		Help: "Somebody who can write to it mends the file; `gpuserver cirun lint` finds what is wrong. Then re-run the check.",
	}
}

// pointsAtUs reports whether labels that match nothing were meant for us, so
// that somebody should be told.
func (a *Admission) pointsAtUs(f Forge, fs ownerFiles, labels []string) bool {
	k := cirun.NewKnown(f.LabelPrefixes, a.Runners, fs.organisation, fs.repository)
	return k.Ours(slices.DeleteFunc(slices.Clone(labels), func(l string) bool { return strings.EqualFold(l, "self-hosted") }))
}

// permit gives the runners that the actor may have, in order, or the refusal. A
// refusal rests on facts asked for just now: who was given a role a moment ago
// and runs the job again must not hear the old answer.
func (a *Admission) permit(ctx context.Context, f Forge, j gpuserver.Job, run forge.Run, fs ownerFiles, runners []cirun.Runner) (allowed []cirun.Runner, refusal gpuserver.Reason, note string, err error) {
	how := &asking{}
	allowed, refusal, note, err = a.permitBy(ctx, f, j, run, fs, runners, how)
	if (how.remembered || how.lists) && len(allowed) < len(runners) {
		return a.permitBy(ctx, f, j, run, fs, runners, &asking{afresh: how.remembered, since: j.UpdatedAt})
	}
	return allowed, refusal, note, err
}

// permitBy is permit once.
func (a *Admission) permitBy(ctx context.Context, f Forge, j gpuserver.Job, run forge.Run, fs ownerFiles, runners []cirun.Runner, how *asking) (allowed []cirun.Runner, refusal gpuserver.Reason, note string, err error) {
	facts, unclear := access.Facts{}, ""
	for _, r := range runners {
		q := a.request(f, j, run, fs, r)
		q.Facts = facts
		if err := a.gather(ctx, f, j, &q, how); err != nil {
			return nil, refusal, note, err
		}
		d := access.Decide(q)
		switch {
		case d.Allowed:
			allowed = append(allowed, r)
			note = d.Note
		case d.Retry:
			unclear = d.Reason.Text
		case refusal.Class == "":
			refusal = d.Reason
		}
	}
	if len(allowed) == 0 && unclear != "" { // what could not be fetched may allow it: ask again rather than refuse
		return nil, refusal, note, gpuserver.Errorf(gpuserver.KindUnavailable, "%s", unclear)
	}
	return allowed, refusal, note, nil
}

// request is what access decides about: our own access section for runners of
// our configuration, else the organisation's file.
func (a *Admission) request(f Forge, j gpuserver.Job, run forge.Run, fs ownerFiles, r cirun.Runner) access.Request {
	q := access.Request{
		Repo: j.Repo, Resource: r.Name, Event: run.Event, HeadRepo: run.HeadRepo, AllowForks: f.AllowForks,
		Actor: access.Actor{Login: run.TriggeringActor.Login, ID: run.TriggeringActor.ID},
	}
	if r.Origin == cirun.FromConfiguration { // without an access section they are for everybody who may run workflows
		q.State, q.File = access.FileAbsent, a.Access
		if a.Access != nil {
			q.State = access.FileRead
		}
		return q
	}
	q.Org = repoOf(j).Owner()
	q.State, q.File, q.Problem, q.Version = fs.access.state, fs.access.file, fs.access.problem, fs.access.version
	return q
}

// Admit decides about a run that a runner of ours was given before its job was
// known to us.
func (a *Admission) Admit(ctx context.Context, v gpuserver.VM, js guest.JobStarted) (guest.Verdict, error) {
	f, ok := a.Forges[v.Forge]
	if !ok {
		return guest.Verdict{Text: "the forge is not in the configuration"}, nil
	}
	var made gpuserver.Job
	err := a.DB.View(ctx, func(tx *store.Tx) (err error) { made, err = tx.Job(v.MadeFor); return err })
	if err != nil {
		return guest.Verdict{}, err
	}
	j := gpuserver.Job{Forge: v.Forge, Repo: js.Repo, RunID: js.RunID, RunAttempt: js.RunAttempt, Labels: v.Runner.Labels}
	if strings.EqualFold(js.Repo, made.Repo) {
		j.RepoID, j.InstallationID = made.RepoID, made.InstallationID
	}
	ans, err := a.ask(ctx, f, j)
	switch {
	case gpuserver.KindOf(err) == gpuserver.KindNotFound:
		return guest.Verdict{Text: fmt.Sprintf("the forge knows no run %d in %s", js.RunID, js.Repo)}, nil
	case err != nil:
		return guest.Verdict{}, err
	case len(ans.entries) == 0:
		return guest.Verdict{Text: ans.reason.Text}, nil
	case ans.resource != v.Resource:
		return guest.Verdict{Text: fmt.Sprintf("this VM is for %s, the run may have %s", v.Resource, ans.resource)}, nil
	}
	return guest.Verdict{Allowed: true}, nil
}
