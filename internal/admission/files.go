package admission

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"gpuserver"
	"gpuserver/internal/access"
	"gpuserver/internal/cirun"
	"gpuserver/internal/forge"
	"gpuserver/internal/store"
)

// ownerFiles are the files that count for one job.
type ownerFiles struct {
	organisation *cirun.File
	repository   *cirun.File
	access       accessFile
	// unread says of a runner file that it is there and cannot be read, nor is an
	// earlier version known; "" is none such.
	unread string
	// blind: that file is the organisation's, so that nobody can say which names
	// are taken and no other foreign file may define a runner.
	blind bool
	notes []string // of runner files whose last good version is used
	// readAt is when the oldest of the default branches' files was asked for.
	readAt time.Time
}

// runnerFile is a file of runner entries as it was read.
type runnerFile struct {
	file   *cirun.File // nil: there is none, or none that can be read
	unread string      // why it cannot be read
	note   string      // that file is its last good version
	readAt time.Time
	err    error
}

type accessFile struct {
	state   access.FileState
	file    *cirun.Access
	problem string
	version string
	readAt  time.Time
}

// read reads the run and the files at once. If the head is another repository
// the repository's file comes from the default branch, whatever the head's
// version says: a fork never changes who may run what, nor keeps a job from
// being decided.
func (a *Admission) read(ctx context.Context, f Forge, j gpuserver.Job, since time.Time) (run forge.Run, fs ownerFiles, err error) {
	repo := repoOf(j)
	var organisation, repository runnerFile
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { run, err = readRun(gctx, f, j); return err })
	org := forge.Repo{Name: repo.Owner() + "/" + f.OrganisationRepo, InstallationID: repo.InstallationID}
	g.Go(func() error {
		organisation = a.runners(gctx, f, org, f.RunnersFile, "", since)
		return organisation.err
	})
	g.Go(func() (err error) { fs.access, err = a.access(gctx, f, org, since); return err })
	if f.RepositoryFile != "" && j.HeadSHA != "" {
		g.Go(func() error { // what it says, and whether it can be read, counts only if it is the run's
			repository = a.runners(gctx, f, repo, f.RepositoryFile, j.HeadSHA, since)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return run, fs, err
	}
	fs.organisation, fs.readAt = organisation.file, earlier(organisation.readAt, fs.access.readAt)
	if fs.access.state == access.FileAbsent && organisation.file == nil && organisation.unread == "" {
		a.missOrganisation(ctx, f, org, &fs)
	}
	if f.RepositoryFile != "" {
		if ref := access.FileRef(j.Repo, run.HeadRepo, run.HeadSHA); ref != j.HeadSHA || j.HeadSHA == "" {
			if repository = a.runners(ctx, f, repo, f.RepositoryFile, ref, since); ref == "" {
				fs.readAt = earlier(fs.readAt, repository.readAt)
			}
		}
		if repository.err != nil {
			return run, fs, repository.err
		}
		fs.repository = repository.file
	}
	fs.tell(organisation, repository)
	a.learn(f, j, fs)
	return run, fs, nil
}

// readRun reads a job's run. An attempt that we asked for, because a GPU failed,
// is judged as the one before it: the commit is the same, and nobody's right is
// greater than that of whom it was begun for.
func readRun(ctx context.Context, f Forge, j gpuserver.Job) (forge.Run, error) {
	run, err := f.Run(ctx, repoOf(j), j.RunID, j.RunAttempt)
	for n := run.Attempt - 1; err == nil && run.ByUs && n > 0; n-- {
		var before forge.Run
		before, err = f.Run(ctx, repoOf(j), j.RunID, n)
		run.TriggeringActor, run.ByUs = before.TriggeringActor, before.ByUs
	}
	return run, err
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// tell notes what of the runner files cannot be read.
func (fs *ownerFiles) tell(organisation, repository runnerFile) {
	fs.blind = organisation.unread != ""
	fs.unread = cmp.Or(organisation.unread, repository.unread)
	for _, f := range []runnerFile{organisation, repository} {
		if f.note != "" {
			fs.notes = append(fs.notes, f.note)
		}
	}
	if fs.blind {
		fs.repository = nil
	}
}

// learn remembers which labels an owner uses. Where repositories define runners
// of their own, only reading each one's file can tell.
func (a *Admission) learn(f Forge, j gpuserver.Job, fs ownerFiles) {
	k := cirun.NewKnown(f.LabelPrefixes, a.Runners, fs.organisation)
	k.Unread = f.RepositoryFile != "" || fs.unread != ""
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known[ownerKey{j.Forge, strings.ToLower(repoOf(j).Owner())}] = known{k, fs.readAt}
}

// runners reads a file of runner entries. One that cannot be parsed is replaced
// by its last good version.
func (a *Admission) runners(ctx context.Context, f Forge, repo forge.Repo, path, ref string, since time.Time) (r runnerFile) {
	got, err := a.files.get(ctx, f, repo, path, ref, since, func(b []byte) (any, error) {
		file, findings, err := cirun.Parse(b, path)
		for _, x := range findings {
			a.Log.Warn("finding in "+path, "repo", repo.Name, "finding", x.String())
		}
		return file, err
	})
	if err != nil {
		r.err = err
		return r
	}
	r.readAt = got.checked
	r.file, _ = got.value.(*cirun.File)
	why := path + " of " + repo.Name + " cannot be read"
	switch {
	case got.problem == "":
	case r.file == nil:
		r.unread = why + " (" + strings.TrimSuffix(got.problem, ".") + "), and no earlier version of it is known"
	default:
		r.note = why + " now (" + strings.TrimSuffix(got.problem, ".") + "); its last good version (" + got.at.UTC().Format(time.RFC3339) + ") was used"
	}
	return r
}

// access reads an organisation's access control.
func (a *Admission) access(ctx context.Context, f Forge, org forge.Repo, since time.Time) (accessFile, error) {
	got, err := a.files.get(ctx, f, org, f.AccessFile, "", since, func(b []byte) (any, error) {
		file, findings, err := cirun.ParseAccess(b, f.AccessFile)
		for _, x := range findings {
			a.Log.Warn("finding in "+f.AccessFile, "repo", org.Name, "finding", x.String())
		}
		return file, err
	})
	if err != nil {
		return accessFile{}, err
	}
	file, _ := got.value.(*cirun.Access)
	switch {
	case got.problem == "" && file == nil:
		return accessFile{readAt: got.checked, state: access.FileAbsent}, nil
	case got.problem == "":
		return accessFile{readAt: got.checked, state: access.FileRead, file: file}, nil
	case file == nil:
		return accessFile{readAt: got.checked, state: access.FileUnreadable, problem: got.problem}, nil
	}
	return accessFile{readAt: got.checked, state: access.FileLastGood, file: file, problem: got.problem, version: got.at.UTC().Format(time.RFC3339)}, nil
}

// missOrganisation keeps an organisation's last access control in force where
// none of its files can be seen any more: GitHub answers the same whether they
// were deleted or the App lost its access to them, and the latter must not open
// every runner. To lift it, let the repository hold its runners file again.
func (a *Admission) missOrganisation(ctx context.Context, f Forge, org forge.Repo, fs *ownerFiles) {
	last := a.files.lastGood(ctx, fileKey(f, org, f.AccessFile, ""), parsed{}, func(b []byte) (any, error) {
		file, _, err := cirun.ParseAccess(b, f.AccessFile)
		return file, err
	})
	if file, ok := last.value.(*cirun.Access); ok {
		fs.access = accessFile{
			readAt: fs.access.readAt, state: access.FileLastGood, file: file, version: last.at.UTC().Format(time.RFC3339),
			problem: "neither it nor " + f.RunnersFile + " can be seen in " + org.Name + " any more",
		}
	}
}

// fileKey names a file of a repository at a ref.
func fileKey(f Forge, repo forge.Repo, path, ref string) string {
	return strings.Join([]string{f.Name(), strings.ToLower(repo.Name), path, ref}, "\x00")
}

// files keeps parsed files: those of a commit as long as there is room, those
// of a branch until they are to be asked for again, and the last good version
// of every branch's file in the store.
type files struct {
	db     *store.DB
	fresh  time.Duration
	flight singleflight.Group

	mu sync.Mutex
	m  map[string]parsed
}

// parsed is a file as it was last read.
type parsed struct {
	value   any       // nil: there is none
	sha     string    // of the version that value is
	problem string    // why it cannot be read now; value is the last good version then
	at      time.Time // when the forge last confirmed the version that value is
	checked time.Time // when it was last asked for
}

// maxFiles bounds the parsed files in memory.
const maxFiles = 4096

func newFiles(db *store.DB, fresh time.Duration) *files {
	return &files{db: db, fresh: fresh, m: map[string]parsed{}}
}

// get gives a file, parsed; one of a branch as it was at since or later. An
// error means that the forge cannot be asked and no version is known; a file
// that is not there is a nil value.
func (s *files) get(ctx context.Context, f Forge, repo forge.Repo, path, ref string, since time.Time, parse func([]byte) (any, error)) (parsed, error) {
	key := fileKey(f, repo, path, ref)
	s.mu.Lock()
	p, ok := s.m[key]
	s.mu.Unlock()
	if ok && (ref != "" && p.problem == "" || time.Since(p.checked) < s.fresh && !p.checked.Before(since)) {
		return p, nil
	}
	for range 2 { // the first may join a call that began before since
		v, err, _ := s.flight.Do(key, func() (any, error) {
			// Several jobs share the answer: one that gives up must not take it from
			// the others.
			fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return s.fetch(fctx, f, repo, path, ref, key, p, parse)
		})
		if err != nil {
			return parsed{}, err
		}
		if p = v.(parsed); !p.checked.Before(since) {
			break
		}
	}
	return p, nil
}

func (s *files) fetch(ctx context.Context, f Forge, repo forge.Repo, path, ref, key string, before parsed, parse func([]byte) (any, error)) (parsed, error) {
	now := time.Now()
	file, err := f.File(ctx, repo, path, ref)
	switch {
	case gpuserver.KindOf(err) == gpuserver.KindNotFound:
		return s.keep(key, parsed{at: now, checked: now}), nil
	case err == nil && file.SHA != "" && file.SHA == before.sha && before.value != nil:
		// The same again: nothing to parse, to tell or to keep.
		before.problem, before.at, before.checked = "", now, now
		return s.keep(key, before), nil
	case err == nil:
		value, perr := parse(file.Content)
		if perr == nil {
			if ref == "" {
				s.save(ctx, key, file.Content, now)
			}
			return s.keep(key, parsed{value: value, sha: file.SHA, at: now, checked: now}), nil
		}
		err = perr
	case ctx.Err() != nil:
		return parsed{}, ctx.Err()
	}
	if ref != "" {
		if gpuserver.KindOf(err) == gpuserver.KindUnavailable || gpuserver.KindOf(err) == gpuserver.KindLimited {
			return parsed{}, err
		}
		return s.keep(key, parsed{problem: gpuserver.PublicText(err), checked: now}), nil
	}
	last := s.lastGood(ctx, key, before, parse)
	if last.value == nil && (gpuserver.KindOf(err) == gpuserver.KindUnavailable || gpuserver.KindOf(err) == gpuserver.KindLimited) {
		return parsed{}, err // try again later rather than refuse
	}
	last.problem, last.checked = gpuserver.PublicText(err), now
	return s.keep(key, last), nil
}

func (s *files) keep(key string, p parsed) parsed {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.m) >= maxFiles {
		clear(s.m)
	}
	s.m[key] = p
	return p
}

func (s *files) save(ctx context.Context, key string, body []byte, at time.Time) {
	_ = s.db.Update(ctx, func(tx *store.Tx) error {
		return tx.SaveCopy(store.Copy{Key: key, Body: body, FetchedAt: at})
	})
}

func (s *files) lastGood(ctx context.Context, key string, before parsed, parse func([]byte) (any, error)) parsed {
	if before.value != nil {
		return before
	}
	var c store.Copy
	if err := s.db.View(ctx, func(tx *store.Tx) (err error) { c, err = tx.Copy(key); return err }); err != nil {
		return parsed{}
	}
	value, err := parse(c.Body)
	if err != nil {
		return parsed{}
	}
	return parsed{value: value, at: c.FetchedAt}
}
