package github

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
)

// Installation is one place where the App is installed.
type Installation struct {
	ID          int64
	Account     string // login of the user or organisation
	AccountType string // "User" or "Organization"
	AllRepos    bool
	Permissions map[string]string // "actions": "read"; what was granted, not what is asked
	Events      []string
	SuspendedAt time.Time
}

type wireInstallation struct {
	ID      int64 `json:"id"`
	Account struct {
		Login string `json:"login"`
		Type  string `json:"type"`
	} `json:"account"`
	RepositorySelection string            `json:"repository_selection"`
	Permissions         map[string]string `json:"permissions"`
	Events              []string          `json:"events"`
	SuspendedAt         stamp             `json:"suspended_at"`
}

// Installations lists where the App is installed.
func (f *Forge) Installations(ctx context.Context) ([]Installation, error) {
	var all []Installation
	for page := 1; page <= pagesMost; page++ {
		query := url.Values{"per_page": {strconv.Itoa(pageSize)}, "page": {strconv.Itoa(page)}}
		var out []wireInstallation
		c := call{
			method: http.MethodGet, path: "/app/installations", query: query,
			class: ClassHousekeeping, doing: "list the App's installations",
		}
		a, err := f.do(ctx, c, &out)
		if err != nil {
			return nil, err
		}
		for _, i := range out {
			all = append(all, Installation{
				ID: i.ID, Account: i.Account.Login, AccountType: i.Account.Type,
				AllRepos: i.RepositorySelection == "all", Permissions: i.Permissions, Events: i.Events,
				SuspendedAt: i.SuspendedAt.Time,
			})
		}
		if len(out) == 0 || nextLink(a.header) == "" {
			break
		}
	}
	return all, nil
}

// installationCache remembers which installation reaches what.
type installationCache struct {
	mu sync.Mutex
	m  map[string]knownInstallation // by "repos/owner/name" or "orgs/name", lower case
}

type knownInstallation struct {
	id    int64
	until time.Time
}

// An App can be removed and installed anew, under another number; the old one is
// forgotten as soon as no token can be had for it.
const installationKept = time.Hour

func (c *installationCache) forget(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.m, func(_ string, k knownInstallation) bool { return k.id == id })
}

// installation is the number of the installation that reaches repo.
func (f *Forge) installation(ctx context.Context, repo forge.Repo) (int64, error) {
	if repo.InstallationID != 0 {
		return repo.InstallationID, nil
	}
	path, err := repoPath(repo.Name)
	if err != nil {
		return 0, err
	}
	return f.lookUp(ctx, path, "find the App's installation on "+repo.Name)
}

func (f *Forge) lookUp(ctx context.Context, path, doing string) (int64, error) {
	key := strings.ToLower(path)
	f.installations.mu.Lock()
	known, ok := f.installations.m[key]
	f.installations.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return known.id, nil
	}
	return shared(ctx, &f.flight, "installation"+key, func() (int64, error) {
		var out wireInstallation
		c := call{method: http.MethodGet, path: path + "/installation", class: ClassRead, doing: doing}
		if _, err := f.do(ctx, c, &out); err != nil {
			return 0, notInstalled(c, err)
		}
		f.installations.mu.Lock()
		defer f.installations.mu.Unlock()
		if f.installations.m == nil || len(f.installations.m) > 10_000 {
			f.installations.m = make(map[string]knownInstallation)
		}
		f.installations.m[key] = knownInstallation{out.ID, time.Now().Add(installationKept)}
		return out.ID, nil
	})
}

// notInstalled makes a 404 about an installation a refusal: it does not say that
// what the caller wants to reach through it does not exist.
func notInstalled(c call, err error) error {
	if !notFound(err) {
		return err
	}
	return &gpuserver.Error{
		Kind: gpuserver.KindRefused, Op: opName(c),
		Public: "the App is not installed there, or no longer; install it on the repository's owner", Err: err,
	}
}
