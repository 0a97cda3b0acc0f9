package github

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
)

// defaultGroup is the number of the group that every organisation has, and the
// only one of a repository.
const defaultGroup = 1

// groupsFresh is how long a group's number is believed: a group that was
// deleted and made again has another.
const groupsFresh = time.Hour

// groupCache keeps the numbers of runner groups, by organisation and name.
type groupCache struct {
	mu sync.Mutex
	m  map[string]knownGroup
}

type knownGroup struct {
	id int64
	at time.Time
}

// wireGroup is a runner group as GitHub describes it.
type wireGroup struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	Default    bool   `json:"default"`
	Visibility string `json:"visibility"`
	Public     bool   `json:"allows_public_repositories"`
	Restricted bool   `json:"restricted_to_workflows"`
}

// groupID gives the number of the group that a scope names. The default group
// needs no call.
func (f *Forge) groupID(ctx context.Context, scope forge.Scope) (int64, error) {
	name := scope.RunnerGroup
	if !scope.Organisation || name == "" || strings.EqualFold(name, "Default") {
		return defaultGroup, nil
	}
	key := strings.ToLower(scope.Repo.Owner()) + "\x00" + name
	f.groups.mu.Lock()
	known, ok := f.groups.m[key]
	f.groups.mu.Unlock()
	if ok && time.Since(known.at) < groupsFresh {
		return known.id, nil
	}
	installation, err := f.installation(ctx, scope.Repo)
	if err != nil {
		return 0, err
	}
	g, err := f.findGroup(ctx, installation, scope.Repo.Owner(), name, ClassRegister)
	if err != nil {
		return 0, err
	}
	f.groups.mu.Lock()
	defer f.groups.mu.Unlock()
	if f.groups.m == nil {
		f.groups.m = map[string]knownGroup{}
	}
	f.groups.m[key] = knownGroup{g.ID, time.Now()}
	return g.ID, nil
}

// findGroup finds a runner group of an organisation by its name ("": the
// default one). Every page is read: names are not filtered by GitHub.
func (f *Forge) findGroup(ctx context.Context, installation int64, org, name string, class Class) (wireGroup, error) {
	for page := 1; page <= pagesMost; page++ {
		var out struct {
			Groups []wireGroup `json:"runner_groups"`
		}
		c := call{
			method: http.MethodGet, installation: installation, path: "/orgs/" + url.PathEscape(org) + "/actions/runner-groups",
			query: url.Values{"per_page": {strconv.Itoa(pageSize)}, "page": {strconv.Itoa(page)}},
			class: class, doing: "list the runner groups of " + org,
		}
		a, err := f.do(ctx, c, &out)
		if err != nil {
			return wireGroup{}, err
		}
		for _, g := range out.Groups {
			if strings.EqualFold(g.Name, name) || g.Default && (name == "" || strings.EqualFold(name, "Default")) {
				return g, nil
			}
		}
		if len(out.Groups) == 0 || nextLink(a.header) == "" {
			break
		}
	}
	return wireGroup{}, gpuserver.Errorf(gpuserver.KindInvalid, "the organisation %s has no runner group %q; see runner_group in the configuration", org, name)
}
