package forgetest

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"gpuserver/internal/forge/forgetest/runnerclient"
)

// poolRoutes are the registrations of runners, at both levels.
func (s *Server) poolRoutes() []route {
	var out []route
	for _, level := range []struct{ path, perm string }{
		{"/repos/{owner}/{repo}", "administration"}, {"/orgs/{org}", "organization_self_hosted_runners"},
	} {
		read, write := needs(level.perm+"=read"), needs(level.perm+"=write")
		at := level.path + "/actions/runners"
		out = append(out,
			route{pattern: "POST " + at + "/generate-jitconfig", needs: write, resource: resourceRegistration, handle: s.generateJIT},
			route{pattern: "GET " + at, needs: read, handle: s.listRunners},
			route{pattern: "GET " + at + "/{runner_id}", needs: read, handle: s.getRunner},
			route{pattern: "DELETE " + at + "/{runner_id}", needs: write, handle: s.deleteRunner},
		)
	}
	read := needs("organization_self_hosted_runners=read")
	return append(out,
		route{pattern: "GET /orgs/{org}/actions/runner-groups", needs: read, handle: s.listGroups},
		route{pattern: "GET /orgs/{org}/actions/runner-groups/{runner_group_id}", needs: read, handle: s.getGroup},
		route{pattern: "GET /orgs/{org}/actions/runner-groups/{runner_group_id}/repositories", needs: read, handle: s.listGroupRepos},
	)
}

// poolScope is where the path's runners are registered.
type poolScope struct {
	key  string
	repo *repo
	org  *account
	url  string
}

func (c *call) poolScope() (poolScope, *apiError) {
	if c.r.PathValue("org") != "" {
		a, e := c.org()
		if e != nil {
			return poolScope{}, e
		}
		return poolScope{key: strings.ToLower(a.login), org: a, url: c.s.cfg.BaseURL + "/" + a.login}, nil
	}
	p, e := c.repo()
	if e != nil {
		return poolScope{}, e
	}
	return poolScope{key: strings.ToLower(p.name), repo: p, url: c.s.cfg.BaseURL + "/" + p.name}, nil
}

// jitRequest is the body of generate-jitconfig.
type jitRequest struct {
	Name       string   `json:"name"`
	GroupID    int64    `json:"runner_group_id"`
	Labels     []string `json:"labels"`
	WorkFolder string   `json:"work_folder"`
}

func (j jitRequest) check() *apiError {
	switch {
	case j.Name == "" || len(j.Name) > 64:
		return invalid("Runner", "name", "invalid")
	case j.GroupID == 0:
		return invalid("Runner", "runner_group_id", "missing_field")
	case len(j.Labels) == 0 || len(j.Labels) > 100:
		return invalid("Runner", "labels", "invalid")
	}
	for _, l := range j.Labels {
		if l == "" || len(l) > 256 {
			return invalid("Runner", "labels", "invalid")
		}
	}
	return nil
}

func (s *Server) generateJIT(c *call) (int, any, *apiError) {
	scope, e := c.poolScope()
	if e != nil {
		return 0, nil, e
	}
	var ask jitRequest
	if e := c.decode(&ask); e != nil {
		return 0, nil, e
	}
	c.rec.Runner = ask.Name
	if e := ask.check(); e != nil {
		return 0, nil, e
	}
	r := &runner{
		id: s.world.id(), name: ask.Name, scope: scope.key, repo: scope.repo, org: scope.org, labels: ask.Labels,
		has: map[string]bool{}, token: rand.Text(), createdAt: now(), wake: make(chan struct{}, 1),
	}
	if scope.org != nil {
		if r.group = s.group(scope.org, ask.GroupID); r.group == nil {
			return 0, nil, notFound
		}
	}
	if s.runners.byName[r.key()] != nil {
		return 0, nil, &apiError{
			status: http.StatusConflict, message: "Already exists - A runner with the name *" + ask.Name + "* already exists.",
		}
	}
	for _, l := range ask.Labels {
		r.has[strings.ToLower(l)] = true
	}
	s.runners.add(r)
	return http.StatusCreated, obj{"runner": runnerFields(r), "encoded_jit_config": s.jitConfig(c, r, scope, ask.WorkFolder)}, nil
}

// jitConfig is what the test runner starts with: an object of files, as GitHub's
// own is.
func (s *Server) jitConfig(c *call, r *runner, scope poolScope, work string) string {
	server := s.set.runnerURL
	if server == "" {
		server = c.base()
	}
	if work == "" {
		work = "_work"
	}
	files := map[string][]byte{
		".runner": raw(runnerclient.Settings{
			AgentID: strconv.FormatInt(r.id, 10), AgentName: r.name, PoolID: "1", PoolName: "Default", ServerURL: server,
			GitHubURL: scope.url, WorkFolder: work, Ephemeral: "True",
		}),
		".credentials": raw(runnerclient.Credentials{Scheme: "Bearer", Data: runnerclient.CredentialsData{Token: r.token}}),
	}
	return base64.StdEncoding.EncodeToString(raw(files))
}

func runnerFields(r *runner) obj {
	status, labels := "offline", []obj{}
	if r.online {
		status = "online"
	}
	for i, l := range r.labels {
		labels = append(labels, obj{"id": i + 1, "name": l, "type": "custom"})
	}
	group := int64(1)
	if r.group != nil {
		group = r.group.ID
	}
	return obj{
		"id": r.id, "name": r.name, "os": "unknown", "status": status, "busy": r.isBusy(), "ephemeral": true,
		"runner_group_id": group, "labels": labels,
	}
}

func (s *Server) listRunners(c *call) (int, any, *apiError) {
	scope, e := c.poolScope()
	if e != nil {
		return 0, nil, e
	}
	name := c.r.URL.Query().Get("name")
	c.rec.Runner = name
	var found []*runner
	for _, r := range s.runners.byScope[scope.key] {
		if name == "" || strings.EqualFold(r.name, name) {
			found = append(found, r)
		}
	}
	from, to := c.page(len(found))
	out := []obj{}
	for _, r := range found[from:to] {
		out = append(out, runnerFields(r))
	}
	return http.StatusOK, obj{"total_count": len(found), "runners": out}, nil
}

func (s *Server) runnerOfPath(c *call) (*runner, *apiError) {
	scope, e := c.poolScope()
	if e != nil {
		return nil, e
	}
	r := s.runners.byID[c.number("runner_id")]
	if r == nil || r.scope != scope.key {
		return nil, notFound
	}
	c.rec.Runner = r.name
	return r, nil
}

func (s *Server) getRunner(c *call) (int, any, *apiError) {
	r, e := s.runnerOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	return http.StatusOK, runnerFields(r), nil
}

func (s *Server) deleteRunner(c *call) (int, any, *apiError) {
	r, e := s.runnerOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	if r.isBusy() {
		return 0, nil, &apiError{
			status:  http.StatusUnprocessableEntity,
			message: fmt.Sprintf("Runner %q is currently running a job and cannot be deleted.", r.name),
		}
	}
	s.runners.remove(r)
	s.jobsChanged()
	return http.StatusNoContent, nil, nil
}

func (s *Server) groupFields(a *account, g *Group) obj {
	u := fmt.Sprintf("%s/orgs/%s/actions/runner-groups/%d", s.cfg.BaseURL, a.login, g.ID)
	visibility := "all"
	if g.Repositories != nil {
		visibility = "selected"
	}
	return obj{
		"id": g.ID, "name": g.Name, "visibility": visibility, "default": g.ID == 1, "runners_url": u + "/runners",
		"selected_repositories_url": u + "/repositories", "inherited": false, "allows_public_repositories": g.PublicRepos,
		"restricted_to_workflows": false, "selected_workflows": []string{}, "workflow_restrictions_read_only": false,
	}
}

func (s *Server) listGroups(c *call) (int, any, *apiError) {
	a, e := c.org()
	if e != nil {
		return 0, nil, e
	}
	all := s.world.groups[strings.ToLower(a.login)]
	from, to := c.page(len(all))
	out := []obj{}
	for _, g := range all[from:to] {
		out = append(out, s.groupFields(a, g))
	}
	return http.StatusOK, obj{"total_count": len(all), "runner_groups": out}, nil
}

func (s *Server) getGroup(c *call) (int, any, *apiError) {
	a, e := c.org()
	if e != nil {
		return 0, nil, e
	}
	g := s.group(a, c.number("runner_group_id"))
	if g == nil {
		return 0, nil, notFound
	}
	return http.StatusOK, s.groupFields(a, g), nil
}

func (s *Server) listGroupRepos(c *call) (int, any, *apiError) {
	a, e := c.org()
	if e != nil {
		return 0, nil, e
	}
	g := s.group(a, c.number("runner_group_id"))
	if g == nil {
		return 0, nil, notFound
	}
	var seen []*repo
	for _, p := range a.repos {
		if slices.ContainsFunc(g.Repositories, func(n string) bool { return strings.EqualFold(n, p.name) }) {
			seen = append(seen, p)
		}
	}
	from, to := c.page(len(seen))
	out := []any{}
	for _, p := range seen[from:to] {
		out = append(out, rawJSON(p.json))
	}
	return http.StatusOK, obj{"total_count": len(seen), "repositories": out}, nil
}
