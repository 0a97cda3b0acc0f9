package forgetest

import (
	"crypto/sha1" // git's object names
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

// world is what GitHub holds besides runs and runners. Keys are lower case,
// because GitHub's names are without case.
type world struct {
	nextID    int64
	accounts  map[string]*account
	byID      map[int64]*account // by installation
	installed []*account
	repos     map[string]*repo
	teams     map[string]*Team // "org/slug"
	groups    map[string][]*Group
	tokens    map[string]*token
	runs      map[int64]*run
	runOrder  []*run
	done      int // completed runs, for retention
	jobs      map[int64]*job
}

// account is a user or an organisation.
type account struct {
	login     string
	id        int64
	org       bool
	bot       bool  // of an App
	installID int64 // 0: the App is not installed
	json      []byte
	asOrg     []byte // as payloads have it under "organization"
	repos     []*repo
	createdAt time.Time
}

type repo struct {
	id        int64
	name      string // "owner/name"
	owner     *account
	private   bool
	branch    string
	parent    *repo
	commits   map[string]*commit // of the whole network of forks
	branches  map[string]string  // to commits
	roles     map[string]string  // by login
	runs      []*run
	queued    []*job
	json      []byte // as in payloads
	full      []byte // as REST answers
	createdAt time.Time
}

type commit struct {
	sha, parent, message string
	at                   time.Time
	files                map[string]*blob
}

type blob struct {
	sha     string
	content []byte
}

// token is an installation's access token.
type token struct {
	account     *account
	expires     time.Time
	repos       map[int64]bool // nil: all
	permissions map[string]string
}

func (w *world) init() {
	// Above 2³¹, as GitHub's numbers of jobs are: a client that keeps them in 32
	// bits fails here, too.
	w.nextID = 30_000_000_000
	w.accounts, w.byID, w.repos = map[string]*account{}, map[int64]*account{}, map[string]*repo{}
	w.teams, w.groups, w.tokens = map[string]*Team{}, map[string][]*Group{}, map[string]*token{}
	w.runs, w.jobs = map[int64]*run{}, map[int64]*job{}
}

func (w *world) id() int64 {
	w.nextID++
	return w.nextID
}

// AddOrg adds an organisation (or user) with the App installed. Adding it again
// gives the one that exists.
func (s *Server) AddOrg(o Org) (Org, error) {
	if o.Login == "" || strings.Contains(o.Login, "/") {
		return o, gpuserver.Errorf(gpuserver.KindInvalid, "login %q: want a name without slash", o.Login)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.account(o.Login, !o.User)
	s.install(a)
	return Org{Login: a.login, User: !a.org, ID: a.id, InstallationID: a.installID}, nil
}

// account finds or makes an account; s.mu is held.
func (s *Server) account(login string, org bool) *account {
	key := strings.ToLower(login)
	a := s.world.accounts[key]
	if a == nil {
		a = &account{login: login, id: s.world.id(), org: org, createdAt: time.Now().UTC().Truncate(time.Second)}
		s.world.accounts[key] = a
		a.json = s.accountJSON(a)
	}
	return a
}

func (s *Server) install(a *account) {
	if a.installID != 0 {
		return
	}
	a.installID = s.world.id()
	s.world.byID[a.installID] = a
	s.world.installed = append(s.world.installed, a)
	if a.org {
		s.world.groups[strings.ToLower(a.login)] = []*Group{{Org: a.login, ID: 1, Name: "Default"}}
	}
}

// Uninstall removes the App from an owner and tells so by event: its tokens stop
// working.
func (s *Server) Uninstall(o Org) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.world.accounts[strings.ToLower(o.Login)]
	if a == nil || a.installID == 0 {
		return gpuserver.Errorf(gpuserver.KindNotFound, "the App is not installed on %q", o.Login)
	}
	s.emit(event{name: "installation", action: "deleted", account: a, parts: s.installationPayload("deleted", a)})
	delete(s.world.byID, a.installID)
	s.world.installed = slices.DeleteFunc(s.world.installed, func(b *account) bool { return a == b })
	for k, t := range s.world.tokens {
		if t.account == a {
			delete(s.world.tokens, k)
		}
	}
	a.installID = 0
	return nil
}

// AddUser adds a user, or changes the number of one that was added before.
func (s *Server) AddUser(u User) (User, error) {
	if u.Login == "" {
		return u, gpuserver.Errorf(gpuserver.KindInvalid, "a user needs a login")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.account(u.Login, false)
	if u.ID != 0 {
		a.id = u.ID
		a.json = s.accountJSON(a)
	}
	return User{Login: a.login, ID: a.id}, nil
}

// AddRepo adds a repository with its files; the owner is added as an
// organisation with the App installed, unless it is known already.
func (s *Server) AddRepo(r Repository) (Repository, error) {
	owner, name, ok := strings.Cut(r.Name, "/")
	if !ok || owner == "" || name == "" || strings.Contains(name, "/") {
		return r, gpuserver.Errorf(gpuserver.KindInvalid, "repository %q: want owner/name", r.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.ToLower(r.Name)
	if s.world.repos[key] != nil {
		return r, gpuserver.Errorf(gpuserver.KindConflict, "repository %q exists already", r.Name)
	}
	parent := s.world.repos[strings.ToLower(r.ForkOf)]
	if r.ForkOf != "" && parent == nil {
		return r, gpuserver.Errorf(gpuserver.KindNotFound, "repository %q, to be forked, does not exist", r.ForkOf)
	}
	a := s.world.accounts[strings.ToLower(owner)]
	if a == nil {
		a = s.account(owner, true)
		s.install(a)
	}
	p := &repo{
		id: s.world.id(), name: a.login + "/" + name, owner: a, private: r.Private, branch: r.DefaultBranch, parent: parent,
		branches: map[string]string{}, roles: map[string]string{}, createdAt: time.Now().UTC().Truncate(time.Second),
	}
	s.fillRepo(p, r.Files)
	s.world.repos[key] = p
	a.repos = append(a.repos, p)
	return s.repository(p), nil
}

// fillRepo gives a new repository its first commit.
func (s *Server) fillRepo(p *repo, files map[string]string) {
	if p.branch == "" {
		p.branch = "main"
	}
	p.commits = map[string]*commit{}
	base := map[string]*blob{}
	if p.parent != nil {
		p.commits = p.parent.commits
		maps.Copy(p.branches, p.parent.branches)
		if c := p.commits[p.parent.branches[p.parent.branch]]; c != nil {
			maps.Copy(base, c.files)
		}
	}
	for path, text := range files {
		base[path] = newBlob([]byte(text))
	}
	if _, have := p.branches[p.branch]; !have || len(files) > 0 {
		p.commit(p.branch, "Start of "+p.name, base)
	}
	s.renderRepo(p)
}

func newBlob(b []byte) *blob {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(b))
	h.Write(b)
	return &blob{sha: hex.EncodeToString(h.Sum(nil)), content: b}
}

func (p *repo) commit(branch, message string, files map[string]*blob) *commit {
	c := &commit{parent: p.branches[branch], message: message, files: files, at: time.Now().UTC().Truncate(time.Second)}
	h := sha1.New()
	fmt.Fprintf(h, "commit %s %s %s %s %d\n", p.name, branch, c.parent, message, time.Now().UnixNano())
	for _, path := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s %s\n", path, files[path].sha)
	}
	c.sha = hex.EncodeToString(h.Sum(nil))
	p.commits[c.sha] = c
	p.branches[branch] = c.sha
	return c
}

func (s *Server) repository(p *repo) Repository {
	r := Repository{
		Name: p.name, Private: p.private, DefaultBranch: p.branch, ID: p.id,
		InstallationID: p.owner.installID, HeadSHA: p.branches[p.branch],
	}
	if p.parent != nil {
		r.ForkOf = p.parent.name
	}
	return r
}

// repo finds a repository by "owner/name"; s.mu is held.
func (s *Server) repo(name string) (*repo, error) {
	if p := s.world.repos[strings.ToLower(name)]; p != nil {
		return p, nil
	}
	return nil, gpuserver.Errorf(gpuserver.KindNotFound, "repository %q does not exist; add it first", name)
}

// SetFile commits one file and gives the repository with its new head.
func (s *Server) SetFile(f FileChange) (sha string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.repo(f.Repo)
	if err != nil {
		return "", err
	}
	branch := f.Branch
	if branch == "" {
		branch = p.branch
	}
	if p.branches[branch] == "" {
		p.branches[branch] = p.branches[p.branch]
	}
	files := maps.Clone(p.commits[p.branches[branch]].files)
	files[f.Path] = newBlob(f.Content)
	if f.Delete {
		delete(files, f.Path)
	}
	return p.commit(branch, "Change "+f.Path, files).sha, nil
}

// SetPrivate changes a repository's visibility.
func (s *Server) SetPrivate(name string, private bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.repo(name)
	if err == nil {
		p.private = private
		s.renderRepo(p)
	}
	return err
}

// SetTeam adds or replaces a team; its members become users.
func (s *Server) SetTeam(t Team) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.world.accounts[strings.ToLower(t.Org)]
	if a == nil || !a.org {
		return gpuserver.Errorf(gpuserver.KindNotFound, "organisation %q does not exist; add it first", t.Org)
	}
	for _, login := range slices.Concat(t.Members, t.Pending) {
		s.account(login, false)
	}
	s.world.teams[strings.ToLower(t.Org+"/"+t.Slug)] = &t
	return nil
}

// SetRole gives a user a role in a repository; "" takes it away.
func (s *Server) SetRole(r Role) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.repo(r.Repo)
	if err != nil {
		return err
	}
	s.account(r.Login, false)
	if r.Role == "" {
		delete(p.roles, strings.ToLower(r.Login))
	} else {
		p.roles[strings.ToLower(r.Login)] = r.Role
	}
	return nil
}

// SetGroup adds a runner group, or replaces the one of that name.
func (s *Server) SetGroup(g Group) (Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.ToLower(g.Org)
	groups := s.world.groups[key]
	if len(groups) == 0 {
		return g, gpuserver.Errorf(gpuserver.KindNotFound, "organisation %q does not exist; add it first", g.Org)
	}
	g.ID = groups[len(groups)-1].ID + 1
	for i, old := range groups {
		if old.Name == g.Name {
			g.ID = old.ID
			groups[i] = &g
			return g, nil
		}
	}
	s.world.groups[key] = append(groups, &g)
	return g, nil
}

func (s *Server) group(a *account, id int64) *Group {
	for _, g := range s.world.groups[strings.ToLower(a.login)] {
		if g.ID == id {
			return g
		}
	}
	return nil
}

// covers reports whether runners of the group may take p's jobs.
func (g *Group) covers(p *repo) bool {
	if !p.private && !g.PublicRepos {
		return false
	}
	return g.Repositories == nil || slices.ContainsFunc(g.Repositories, func(n string) bool { return strings.EqualFold(n, p.name) })
}
