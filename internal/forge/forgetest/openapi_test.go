package forgetest

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"gpuserver/internal/testdeps"
)

// describedPath is the path of a route as the description writes it.
func describedPath(pattern string) string {
	_, path, _ := strings.Cut(pattern, " ")
	return strings.ReplaceAll(path, "...}", "}")
}

// loadDescription reads the description of all routes.
func loadDescription(t *testing.T, routes []route) *openapi3.T {
	t.Helper()
	paths := map[string]bool{}
	for _, rt := range routes {
		paths[describedPath(rt.pattern)] = true
	}
	return testdeps.GitHubAPI(t, slices.Collect(maps.Keys(paths))...)
}

var validationOptions = &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true}

// validate compares one answer with the description of its route.
func validate(t *testing.T, doc *openapi3.T, pattern string, a reply, url string) error {
	t.Helper()
	method, _, _ := strings.Cut(pattern, " ")
	path := describedPath(pattern)
	item := doc.Paths.Value(path)
	if item == nil || item.GetOperation(method) == nil {
		return errors.New("not in GitHub's description")
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: must(http.NewRequest(method, url, nil))(t), Options: validationOptions,
			Route: &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: item.GetOperation(method)},
		},
		Status: a.status, Header: a.header, Options: validationOptions,
	}
	return openapi3filter.ValidateResponse(t.Context(), in.SetBodyBytes(a.body))
}

// TestTheDescriptionRefuses shows that the comparison can fail.
func TestTheDescriptionRefuses(t *testing.T) {
	b := start(t, Config{})
	doc := loadDescription(t, b.allRoutes())
	run := b.dispatch(JobSpec{Labels: []string{"x"}})
	a := b.call("GET", fmt.Sprintf("/repos/octo-org/hello/actions/jobs/%d", run.Jobs[0].ID), nil)
	const pattern = "GET /repos/{owner}/{repo}/actions/jobs/{job_id}"
	if err := validate(t, doc, pattern, a, b.url); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(obj){
		func(o obj) { delete(o, "head_sha") }, func(o obj) { o["status"] = "sleeping" }, func(o obj) { o["labels"] = "x" },
	} {
		var o obj
		a.into(t, &o)
		change(o)
		if validate(t, doc, pattern, reply{a.status, a.header, raw(o)}, b.url) == nil {
			t.Errorf("a wrong answer passes: %s", raw(o))
		}
	}
	if validate(t, doc, pattern, reply{http.StatusTeapot, a.header, a.body}, b.url) == nil {
		t.Error("an undocumented status passes")
	}
}

func (s *Server) allRoutes() []route {
	var all []route
	for _, group := range [][]route{s.appRoutes(), s.actionsRoutes(), s.poolRoutes(), s.repoRoutes(), s.checkRoutes()} {
		all = append(all, group...)
	}
	return all
}

// TestAnswersAreGitHubs calls every route and compares each normal answer with
// GitHub's own description; a route that is not called fails the test.
func TestAnswersAreGitHubs(t *testing.T) {
	b := start(t, Config{})
	doc := loadDescription(t, b.allRoutes())
	called := map[string]bool{}
	for _, step := range describedCalls(b) {
		path, token, in := step.path(), "", any(nil)
		if step.body != nil {
			in = step.body()
		}
		pattern := step.pattern
		method, _, _ := strings.Cut(pattern, " ")
		for _, rt := range b.allRoutes() {
			if rt.pattern != pattern {
				continue
			}
			if rt.auth == authApp {
				token = b.appToken()
			} else {
				token = b.token(b.repo.InstallationID)
			}
		}
		if !pathRoutesTo(b, method, path, pattern) {
			t.Errorf("%s %s does not lead to %s", method, path, pattern)
		}
		a := b.do(method, path, token, in)
		if a.status != step.status {
			t.Errorf("%s (%s): status %d, want %d: %s", pattern, path, a.status, step.status, a.body)
			continue
		}
		if err := validate(t, doc, pattern, a, b.url+path); err != nil {
			t.Errorf("%s answered %d: %v\n%.2000s", pattern, a.status, err, a.body)
		}
		called[pattern] = true
		if step.then != nil {
			step.then(a)
		}
	}
	for _, rt := range b.allRoutes() {
		if !called[rt.pattern] {
			t.Errorf("%s was not compared with the description: add a call", rt.pattern)
		}
	}
}

func pathRoutesTo(b *bench, method, path, pattern string) bool {
	r, err := http.NewRequest(method, b.url+path, nil)
	b.check(err)
	_, got := b.github.Handler(r)
	return got == pattern
}

// described is one call to be compared; its path and body are made when it is
// its turn, because they name what earlier calls gave.
type described struct {
	pattern string
	path    func() string
	status  int
	body    func() any
	then    func(reply)
}

// The paths that the described calls are made to.
const (
	aRepo, anOrg = "/repos/octo-org/hello", "/orgs/octo-org"
	pRepo, pOrg  = "/repos/{owner}/{repo}", "/orgs/{org}"
)

func describedCalls(b *bench) []described {
	granted := defaultPermissions()
	granted["actions"] = "write"
	b.Configure(Settings{Permissions: &granted})
	b.check(b.SetTeam(Team{Org: "octo-org", Slug: "core", Members: []string{"alice"}, Pending: []string{"bob"}}))
	b.check(b.SetRole(Role{Repo: "octo-org/hello", Login: "alice", Role: "maintain"}))
	must(b.AddRepo(Repository{Name: "mallory/hello", ForkOf: "octo-org/hello"}))(b.t)
	must(b.SetGroup(Group{Org: "octo-org", Name: "gpus", Repositories: []string{"octo-org/hello"}}))(b.t)
	run := must(b.Dispatch(RunSpec{Repo: "octo-org/hello", Event: "pull_request", Actor: "mallory", HeadRepo: "mallory/hello", Jobs: []JobSpec{
		{Labels: []string{"x"}}, {Labels: []string{"never"}}, {Labels: []string{"w"}, Waiting: true},
	}}))(b.t)
	c := b.online("busy", "x")
	job := b.takeJob(c)
	must(c.Log(b.t.Context(), job.ID, 0, []byte("log")))(b.t)
	calls := slices.Concat(appCalls(b), readActionsCalls(run))
	calls = append(calls, poolCalls(b, pRepo, aRepo)...)
	calls = append(calls, poolCalls(b, pOrg, anOrg)...)
	calls = append(calls,
		described{pattern: "DELETE " + pRepo + "/actions/runners/{runner_id}", path: at("%s/actions/runners/%s", aRepo, c.Settings.AgentID), status: 422},
		get(pOrg+"/actions/runner-groups", anOrg+"/actions/runner-groups"),
		get(pOrg+"/actions/runner-groups/{runner_group_id}", anOrg+"/actions/runner-groups/1"),
		get(pOrg+"/actions/runner-groups/{runner_group_id}/repositories", anOrg+"/actions/runner-groups/2/repositories"),
	)
	return slices.Concat(calls, checkCalls(b), repoCalls(), writeActionsCalls(b, run))
}

func at(format string, args ...any) func() string {
	return func() string { return fmt.Sprintf(format, args...) }
}

// late is at for a number that an earlier call will give.
func late(format string, id *int64) func() string {
	return func() string { return fmt.Sprintf(format, *id) }
}

func get(pattern, path string) described {
	return described{pattern: "GET " + pattern, path: at("%s", path), status: 200}
}

func appCalls(b *bench) []described {
	var delivery int64
	in := b.repo.InstallationID
	return []described{
		get("/app", "/app"), get("/app/installations", "/app/installations"),
		get("/app/installations/{installation_id}", fmt.Sprintf("/app/installations/%d", in)),
		{
			pattern: "POST /app/installations/{installation_id}/access_tokens", path: at("/app/installations/%d/access_tokens", in), status: 201,
			body: func() any { return obj{"repositories": []string{"hello"}, "permissions": obj{"checks": "write"}} },
		},
		get(pRepo+"/installation", aRepo+"/installation"), get(pOrg+"/installation", anOrg+"/installation"),
		get("/users/{username}/installation", "/users/octo-org/installation"), get("/app/hook/config", "/app/hook/config"),
		{
			pattern: "GET /app/hook/deliveries", path: at("/app/hook/deliveries"), status: 200, then: func(a reply) {
				var list []struct{ ID int64 }
				a.into(b.t, &list)
				delivery = list[0].ID
			},
		},
		{pattern: "GET /app/hook/deliveries/{delivery_id}", path: late("/app/hook/deliveries/%d", &delivery), status: 200},
		{pattern: "POST /app/hook/deliveries/{delivery_id}/attempts", path: late("/app/hook/deliveries/%d/attempts", &delivery), status: 202},
		get("/rate_limit", "/rate_limit"), get("/installation/repositories", "/installation/repositories"),
	}
}

func readActionsCalls(run Run) []described {
	one := fmt.Sprintf("%s/actions/runs/%d", aRepo, run.ID)
	return []described{
		get(pRepo+"/actions/runs", aRepo+"/actions/runs?status=in_progress"),
		get(pRepo+"/actions/runs/{run_id}", one),
		get(pRepo+"/actions/runs/{run_id}/attempts/{attempt_number}", one+"/attempts/1"),
		get(pRepo+"/actions/runs/{run_id}/jobs", one+"/jobs"),
		get(pRepo+"/actions/runs/{run_id}/attempts/{attempt_number}/jobs", one+"/attempts/1/jobs"),
		get(pRepo+"/actions/jobs/{job_id}", fmt.Sprintf(aRepo+"/actions/jobs/%d", run.Jobs[0].ID)),
		get(pRepo+"/actions/runners", aRepo+"/actions/runners?per_page=100"),
	}
}

// poolCalls are the registrations of one level.
func poolCalls(b *bench, pattern, path string) []described {
	var runner int64
	jit := func() any { return obj{"name": "new", "runner_group_id": 1, "labels": []string{"z"}} }
	pattern += "/actions/runners"
	path += "/actions/runners"
	return []described{
		{pattern: "POST " + pattern + "/generate-jitconfig", path: at("%s/generate-jitconfig", path), status: 201, body: jit, then: func(a reply) {
			var out struct{ Runner struct{ ID int64 } }
			a.into(b.t, &out)
			runner = out.Runner.ID
		}},
		{pattern: "POST " + pattern + "/generate-jitconfig", path: at("%s/generate-jitconfig", path), status: 409, body: jit},
		get(pattern, path),
		{pattern: "GET " + pattern + "/{runner_id}", path: late(path+"/%d", &runner), status: 200},
		{pattern: "DELETE " + pattern + "/{runner_id}", path: late(path+"/%d", &runner), status: 204},
	}
}

func checkCalls(b *bench) []described {
	var check int64
	const pattern, path = pRepo + "/check-runs", aRepo + "/check-runs"
	return []described{
		{
			pattern: "POST " + pattern, path: at(path), status: 201,
			body: func() any {
				return obj{
					"name": "gpuserver", "head_sha": b.repo.HeadSHA, "external_id": "12", "status": "queued",
					"output": obj{"title": "Waits", "summary": "place 3"},
				}
			},
			then: func(a reply) {
				var one struct{ ID int64 }
				a.into(b.t, &one)
				check = one.ID
			},
		},
		{
			pattern: "PATCH " + pattern + "/{check_run_id}", path: late(path+"/%d", &check), status: 200,
			body: func() any { return obj{"conclusion": "action_required", "details_url": "https://ci.invalid/jobs/12"} },
		},
		{pattern: "GET " + pattern + "/{check_run_id}", path: late(path+"/%d", &check), status: 200},
	}
}

func repoCalls() []described {
	const role, member = "/collaborators/{username}/permission", "/teams/{team_slug}/memberships/{username}"
	return []described{
		get(pRepo, aRepo), get(pRepo, "/repos/mallory/hello"),
		get(pRepo+"/contents/{path...}", aRepo+"/contents/.cirun.yml"), get(pRepo+"/contents/{path...}", aRepo+"/contents/src"),
		get(pRepo+"/commits/{ref...}", aRepo+"/commits/main"), get(pRepo+"/git/ref/{ref...}", aRepo+"/git/ref/heads/main"),
		get(pRepo+role, aRepo+"/collaborators/alice/permission"), get(pRepo+role, aRepo+"/collaborators/mallory/permission"),
		get(pOrg+member, anOrg+"/teams/core/memberships/alice"), get(pOrg+member, anOrg+"/teams/core/memberships/bob"),
		get("/users/{username}", "/users/alice"),
	}
}

func writeActionsCalls(b *bench, run Run) []described {
	const rerun = pRepo + "/actions/jobs/{job_id}/rerun"
	j := run.Jobs[0].ID
	last := func() int64 {
		jobs := b.Jobs(JobFilter{Run: run.ID})
		return jobs[len(jobs)-1].ID
	}
	return []described{
		{
			pattern: "POST " + pRepo + "/actions/runs/{run_id}/cancel", path: at(aRepo+"/actions/runs/%d/cancel", run.ID), status: 202,
			then: func(reply) { b.check(b.FinishJob(j, "success")) },
		},
		{pattern: "GET " + pRepo + "/actions/jobs/{job_id}/logs", path: at(aRepo+"/actions/jobs/%d/logs", j), status: 302},
		get(pRepo+"/actions/jobs/{job_id}", fmt.Sprintf(aRepo+"/actions/jobs/%d", j)),
		{pattern: "POST " + pRepo + "/actions/runs/{run_id}/rerun", path: at(aRepo+"/actions/runs/%d/rerun", run.ID), status: 201},
		{
			pattern: "POST " + rerun, path: func() string { return fmt.Sprintf(aRepo+"/actions/jobs/%d/rerun", last()) }, status: 403,
			then: func(reply) { b.check(b.CancelRun(run.ID)) },
		},
		{pattern: "POST " + rerun, path: func() string { return fmt.Sprintf(aRepo+"/actions/jobs/%d/rerun", last()) }, status: 201},
		get(pRepo+"/actions/runs/{run_id}", fmt.Sprintf(aRepo+"/actions/runs/%d", run.ID)),
		get(pRepo+"/actions/runs", aRepo+"/actions/runs"),
	}
}
