package admission

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/cirun"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// shelf is a forge with runs and files, by "owner/name:path@ref".
type shelf struct {
	forge.Forge
	run forge.Run
	// attempts are those whose number Run is asked for; of the others run is told.
	attempts map[int]forge.Run
	// asked and answer, if set, are sent to and waited for by Run.
	asked, answer chan struct{}

	mu    sync.Mutex
	files map[string]string
	reads map[string]int
	fail  map[string]error
	read  chan string // if set, is sent each file's name once it was read
}

func (s *shelf) Name() string { return "github" }

func (s *shelf) Run(ctx context.Context, _ forge.Repo, _ int64, attempt int) (forge.Run, error) {
	if run, ok := s.attempts[attempt]; ok {
		return run, nil
	}
	if s.asked != nil {
		s.asked <- struct{}{}
		select {
		case <-s.answer:
		case <-ctx.Done():
			return forge.Run{}, ctx.Err()
		}
	}
	return s.run, nil
}

func (s *shelf) Job(context.Context, forge.Repo, int64) (forge.Job, error) {
	return forge.Job{State: gpuserver.ForgeQueued}, nil
}

func (s *shelf) Role(context.Context, forge.Repo, string) (string, error) { return "write", nil }

func (s *shelf) File(_ context.Context, repo forge.Repo, path, ref string) (forge.File, error) {
	key := repo.Name + ":" + path + "@" + ref
	if s.read != nil {
		defer func() { s.read <- key }()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads[key]++
	if err := s.fail[key]; err != nil {
		return forge.File{}, err
	}
	text, ok := s.files[key]
	if !ok {
		return forge.File{}, gpuserver.Errorf(gpuserver.KindNotFound, "no file %s", key)
	}
	return forge.File{Path: path, Ref: ref, SHA: fmt.Sprint("sha of ", text), Content: []byte(text)}, nil
}

func (s *shelf) set(key, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[key] = text
}

const (
	orgRunners = "octo/.cirun:.cirun.global.yml@"
	orgAccess  = "octo/.cirun:.access.yml@"
	ownRunners = "octo/hello:.cirun.yml@"
)

// desk is an Admission at octo's files, with a run that alice pushed.
type desk struct {
	*Admission
	*shelf
	forge Forge
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "gpuserver.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s := &shelf{
		reads: map[string]int{}, fail: map[string]error{},
		run: forge.Run{ID: 1, Attempt: 1, Event: "push", HeadRepo: "octo/hello", HeadSHA: "abc", TriggeringActor: forge.Actor{Login: "alice", ID: 7}},
		files: map[string]string{
			orgRunners: "runners:\n  - {name: gpu, cloud: here, instance_type: large, machine_image: debian, labels: [cirun-gpu]}\n",
			orgAccess:  helloAccess,
		},
	}
	d := &desk{shelf: s, forge: Forge{
		Forge: s, OrganisationRepo: ".cirun", RunnersFile: ".cirun.global.yml", AccessFile: ".access.yml", RepositoryFile: ".cirun.yml",
	}}
	d.Admission = New(Options{
		DB: db, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fresh: time.Hour,
		Mapping: cirun.Mapping{
			Clouds:  []cirun.Cloud{{Name: "here"}},
			Flavors: []cirun.Flavor{{Flavor: gpuserver.Flavor{Name: "large"}}},
			Images:  []gpuserver.Image{{Name: "debian"}},
		},
	})
	return d
}

// asks gives the answer to a job of octo/hello with a label.
func (d *desk) asks(t *testing.T, label string) answer {
	t.Helper()
	ans, err := d.ask(t.Context(), d.forge, d.job(label))
	if err != nil {
		t.Fatal(err)
	}
	return ans
}

func (d *desk) job(label string) gpuserver.Job {
	return gpuserver.Job{Forge: "github", Repo: "octo/hello", RunID: 1, RunAttempt: 1, HeadSHA: "abc", Labels: []string{label}, UpdatedAt: time.Now()}
}

// What a fork's commit holds neither counts nor keeps its job from an answer.
func TestForksFileIsNotRead(t *testing.T) {
	d := newDesk(t)
	d.run.Event, d.run.HeadRepo = "pull_request", "mallory/hello"
	d.set(orgAccess, strings.Replace(helloAccess, "    roles:", "    pull_request: true\n    roles:", 1))
	d.set(ownRunners+"abc", "runners: [\n")
	d.set(ownRunners, "runners:\n  - {name: own, cloud: here, instance_type: large, machine_image: debian, labels: [cirun-own]}\n")
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 1 || ans.note != "" {
		t.Errorf("with a fork's broken file: %+v", ans)
	}
	d.fail[ownRunners+"abc"] = gpuserver.Errorf(gpuserver.KindUnavailable, "away")
	d.Admission.files = newFiles(d.DB, time.Hour)
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 1 {
		t.Errorf("with a fork's file that cannot be had: %+v", ans)
	}
	if ans := d.asks(t, "cirun-own"); ans.resource != "own" || ans.reason.Class != gpuserver.ReasonNoAccess {
		t.Errorf("the default branch's file was not read: %+v", ans)
	}
}

// A repository's file that cannot be read at its commit never can: its runners
// are missing, the organisation's still serve.
func TestBrokenFileOfARepository(t *testing.T) {
	d := newDesk(t)
	d.set(ownRunners+"abc", "runners: [\n")
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 1 {
		t.Errorf("the organisation's runner: %+v", ans)
	}
	for _, label := range []string{"cirun-own", "custom", "cirun-here-large-debian"} {
		ans := d.asks(t, label)
		if len(ans.entries) != 0 || ans.foreign || ans.reason.Class != gpuserver.ReasonConfig || !strings.Contains(ans.reason.Text, ".cirun.yml of octo/hello cannot be read (.cirun.yml:2: ") {
			t.Errorf("%s: %+v", label, ans)
		}
	}
}

// An organisation's file that never could be read is a refusal that says so;
// nothing else may take its runners' names meanwhile.
func TestBrokenFilesOfAnOrganisation(t *testing.T) {
	d := newDesk(t)
	d.set(ownRunners+"abc", "runners:\n  - {name: gpu, cloud: here, instance_type: large, machine_image: debian, labels: [cirun-gpu]}\n")
	d.set(orgRunners, "runners: [\n")
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 0 || ans.reason.Class != gpuserver.ReasonConfig || !strings.Contains(ans.reason.Text, ".cirun.global.yml of octo/.cirun cannot be read") {
		t.Errorf("runners: %+v", ans)
	}

	d = newDesk(t)
	d.set(orgAccess, "version: [\n")
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 0 || ans.reason.Class != gpuserver.ReasonConfig || !strings.Contains(ans.reason.Text, ".access.yml") {
		t.Errorf("access: %+v", ans)
	}

	d = newDesk(t)
	d.fail[orgAccess] = gpuserver.Errorf(gpuserver.KindUnavailable, "the forge is away")
	if ans, err := d.ask(t.Context(), d.forge, d.job("cirun-gpu")); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("what will pass is no refusal: %+v, %v", ans, err)
	}
}

// The last good version of the runners is used, and both answers say so.
func TestLastGoodRunners(t *testing.T) {
	d := newDesk(t)
	d.asks(t, "cirun-gpu")
	d.set(orgRunners, "runners: [\n")
	d.Admission.files = newFiles(d.DB, time.Hour) // as after a restart
	const says = ".cirun.global.yml of octo/.cirun cannot be read now (.cirun.global.yml:2: "
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 1 || !strings.Contains(ans.note, says) || !strings.Contains(ans.note, "its last good version") {
		t.Errorf("allowed: %+v", ans)
	}
	if ans := d.asks(t, "new-label"); ans.foreign || !strings.Contains(ans.reason.Text, says) {
		t.Errorf("a label that the new version may have: %+v", ans)
	}
}

// A refusal rests on files read after the job came, so that who mends one and
// asks again hears the new answer; what is allowed costs no reading.
func TestRefusalReadsTheFilesAnew(t *testing.T) {
	d := newDesk(t)
	good := d.shelf.files[orgAccess]
	d.set(orgAccess, strings.Replace(good, "hello", "other", 1))
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 0 {
		t.Fatalf("%+v", ans)
	}
	early := d.job("cirun-gpu")
	early.UpdatedAt = time.Now().Add(-time.Hour)
	reads := d.reads[orgAccess]
	if _, err := d.ask(t.Context(), d.forge, early); err != nil || d.reads[orgAccess] != reads {
		t.Errorf("files of after the job came were read again: %v", err)
	}
	d.set(orgAccess, good)
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 1 {
		t.Errorf("granted a moment ago: %+v", ans)
	}
	reads = d.reads[orgAccess]
	if ans := d.asks(t, "cirun-gpu"); len(ans.entries) != 1 || d.reads[orgAccess] != reads {
		t.Errorf("a job that is allowed had the files read again: %+v", ans)
	}
	d.set(orgRunners, strings.Replace(d.shelf.files[orgRunners], "cirun-gpu", "cirun-new", 1))
	if ans := d.asks(t, "cirun-new"); len(ans.entries) != 1 {
		t.Errorf("a label added a moment ago: %+v", ans)
	}
	if ans := d.asks(t, "somebody-elses"); !ans.foreign || d.reads[orgAccess] != reads+1 {
		t.Errorf("a foreign job had the files read again after a moment: %+v, %d reads", ans, d.reads[orgAccess]-reads)
	}
}

// A forge that does not answer holds up its own jobs, however many, and no
// other forge's.
func TestForgesDoNotWaitForEachOther(t *testing.T) {
	d := newDesk(t)
	const many = 200
	away := &shelf{asked: make(chan struct{}, many), answer: make(chan struct{}), reads: map[string]int{}, files: map[string]string{}}
	d.Options.Forges = map[string]Forge{"github": d.forge, "away": {Forge: away}}
	d.Admission = New(d.Options)
	insert := func(forgeName string, n int) {
		t.Helper()
		if err := d.DB.Update(t.Context(), func(tx *store.Tx) error {
			for i := range n {
				j := d.job("cirun-gpu")
				j.Forge, j.ForgeID, j.State, j.ForgeState, j.QueuedAt = forgeName, int64(i+1), gpuserver.JobReceived, gpuserver.ForgeQueued, time.Now()
				if err := tx.InsertJob(&j); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	insert("away", many)
	decided := make(chan struct{}, many)
	d.DB.Watch(func(cs []store.Change) {
		for _, c := range cs {
			if c.JobState == gpuserver.JobQueued {
				decided <- struct{}{}
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Admission.Run(ctx) }()
	for range 64 { // as many as one forge's jobs are decided at once
		<-away.asked
	}
	insert("github", 1)
	select {
	case <-decided:
	case <-time.After(time.Minute):
		t.Error("a job of the other forge was not decided")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Who asks anew while a refusal is on its way gets an answer to that.
func TestAskedAnewMeanwhile(t *testing.T) {
	d := newDesk(t)
	d.shelf.asked, d.shelf.answer, d.shelf.read = make(chan struct{}, 9), make(chan struct{}), make(chan string, 99)
	d.Options.Forges = map[string]Forge{"github": d.forge}
	d.Admission = New(d.Options)
	good := d.shelf.files[orgAccess]
	d.set(orgAccess, strings.Replace(good, "hello", "other", 1))
	j := d.job("cirun-gpu")
	j.ForgeID, j.State, j.ForgeState, j.QueuedAt = 1, gpuserver.JobReceived, gpuserver.ForgeQueued, time.Now()
	update := func(fn func(tx *store.Tx) error) {
		t.Helper()
		if err := d.DB.Update(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	update(func(tx *store.Tx) error { return tx.InsertJob(&j) })
	decided := make(chan gpuserver.JobState, 9)
	d.DB.Watch(func(cs []store.Change) {
		for _, c := range cs {
			if c.JobState != gpuserver.JobReceived {
				decided <- c.JobState
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Admission.Run(ctx) }()
	<-d.shelf.asked
	for key := range d.shelf.read {
		if key == orgAccess {
			break
		}
	}
	d.set(orgAccess, good)
	update(func(tx *store.Tx) error { return tx.SaveJob(&j) })
	close(d.shelf.answer)
	if got := <-decided; got != gpuserver.JobQueued {
		t.Errorf("the job is %s", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// lists counts how it is asked for a list that changes.
type lists struct {
	users []cirun.User
	old   []cirun.User // what it remembers
	since []time.Time
}

func (l *lists) Users(_ context.Context, _ string, since time.Time) ([]cirun.User, string, error) {
	l.since = append(l.since, since)
	if since.IsZero() {
		return l.old, "", nil
	}
	return l.users, "", nil
}

func TestRefusalFetchesTheListAnew(t *testing.T) {
	d := newDesk(t)
	d.set(orgAccess, strings.Replace(helloAccess, "roles: [write]", "users_from_json: 'https://example.com/u.json'", 1))
	l := &lists{users: []cirun.User{{ID: 7}}}
	d.Admission.Users = l
	j := d.job("cirun-gpu")
	ans, err := d.ask(t.Context(), d.forge, j)
	if err != nil || len(ans.entries) != 1 || len(l.since) != 2 || !l.since[1].Equal(j.UpdatedAt) {
		t.Errorf("%+v, %v, asked for what was so at %v", ans, err, l.since)
	}
}

// Where only an organisation has runners, a job with another label is not kept,
// until the labels that are known are old: one may have been added.
func TestLabelsAreNotKnownForEver(t *testing.T) {
	d := newDesk(t)
	d.forge.RepositoryFile = ""
	d.Forges = map[string]Forge{"github": d.forge}
	ours := func(label string) bool { return d.Ours("github", forge.Repo{Name: "Octo/hello"}, []string{label}) }
	if !ours("new") {
		t.Error("before anything was read every label may be ours")
	}
	d.asks(t, "cirun-gpu")
	if ours("new") || !ours("cirun-gpu") || ours("ubuntu-latest") {
		t.Error("the labels that were read are not known")
	}
	d.Fresh = 0
	if !ours("new") || ours("ubuntu-latest") {
		t.Error("a label that was added since is never ours")
	}
}

// A file that did not change is neither parsed nor told of again, also after it
// could not be read for a while.
func TestFindingsAreLoggedOncePerVersion(t *testing.T) {
	d := newDesk(t)
	var log bytes.Buffer
	d.Log = slog.New(slog.NewTextHandler(&log, nil))
	d.Admission.files.fresh = 0
	good := strings.Replace(d.shelf.files[orgRunners], "runners:", "colour: red\nrunners:", 1)
	for i, step := range []struct {
		text string
		want int // findings in all
	}{{good, 1}, {good, 1}, {"runners: [\n", 2}, {good, 2}, {good + "# changed\n", 3}} {
		d.set(orgRunners, step.text)
		ans := d.asks(t, "cirun-gpu")
		if n := strings.Count(log.String(), "finding in"); n != step.want || len(ans.entries) != 1 {
			t.Errorf("step %d: %d findings logged, want %d; %+v", i, n, step.want, ans)
		}
		if broken := strings.Contains(ans.note, "cannot be read"); broken != (i == 2) {
			t.Errorf("step %d: the note is %q", i, ans.note)
		}
	}
}
