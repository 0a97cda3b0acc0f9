package github

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"gpuserver/internal/testdeps"
)

// operations are all that the client calls.
var operations = []string{
	"GET /app",
	"GET /app/hook/config",
	"GET /app/hook/deliveries",
	"GET /app/hook/deliveries/{delivery_id}",
	"POST /app/hook/deliveries/{delivery_id}/attempts",
	"GET /app/installations",
	"POST /app/installations/{installation_id}/access_tokens",
	"GET /orgs/{org}/actions/runner-groups",
	"GET /orgs/{org}/actions/runners",
	"DELETE /orgs/{org}/actions/runners/{runner_id}",
	"POST /orgs/{org}/actions/runners/generate-jitconfig",
	"GET /orgs/{org}/installation",
	"GET /orgs/{org}/teams/{team_slug}/memberships/{username}",
	"GET /repos/{owner}/{repo}/actions/jobs/{job_id}",
	"POST /repos/{owner}/{repo}/actions/jobs/{job_id}/rerun",
	"GET /repos/{owner}/{repo}/actions/runners",
	"DELETE /repos/{owner}/{repo}/actions/runners/{runner_id}",
	"POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig",
	"GET /repos/{owner}/{repo}/actions/runs",
	"GET /repos/{owner}/{repo}/actions/runs/{run_id}",
	"GET /repos/{owner}/{repo}/actions/runs/{run_id}/attempts/{attempt_number}",
	"GET /repos/{owner}/{repo}/actions/runs/{run_id}/jobs",
	"POST /repos/{owner}/{repo}/check-runs",
	"PATCH /repos/{owner}/{repo}/check-runs/{check_run_id}",
	"GET /repos/{owner}/{repo}/collaborators/{username}/permission",
	"GET /repos/{owner}/{repo}/contents/{path}",
	"GET /repos/{owner}/{repo}/installation",
}

// described is a transport that holds each call, and the answer to it, against
// GitHub's description.
type described struct {
	t    testing.TB
	doc  *openapi3.T
	next http.RoundTripper // nil: answer with the description's own examples

	mu     sync.Mutex
	called map[string]bool
}

func newDescribed(t testing.TB, next http.RoundTripper) *described {
	paths := make(map[string]bool)
	for _, op := range operations {
		_, path, _ := strings.Cut(op, " ")
		paths[path] = true
	}
	doc := testdeps.GitHubAPI(t, slices.Collect(maps.Keys(paths))...)
	return &described{t: t, doc: doc, next: next, called: make(map[string]bool)}
}

// allCalled checks that nothing in operations went untested.
func (d *described) allCalled() {
	d.t.Helper()
	for _, op := range operations {
		if !d.called[op] {
			d.t.Errorf("%s was not called", op)
		}
	}
}

// RoundTrip implements http.RoundTripper.
func (d *described) RoundTrip(req *http.Request) (*http.Response, error) {
	path := strings.TrimPrefix(req.URL.Path, "/api/v3")
	route, params := d.find(req.Method, path)
	if route == nil {
		d.t.Errorf("%s %s is not in GitHub's description", req.Method, path)
		return nil, http.ErrNotSupported
	}
	op := req.Method + " " + route.Path
	d.mu.Lock()
	d.called[op] = true
	d.mu.Unlock()

	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	options := &openapi3filter.Options{
		AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true, MultiError: true,
	}
	in := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, QueryParams: req.URL.Query(), Route: route, Options: options,
	}
	if err := openapi3filter.ValidateRequest(req.Context(), in); err != nil {
		d.t.Errorf("%s: %v\n%s", op, err, body)
	}
	known := route.Operation.Parameters
	for name := range req.URL.Query() {
		if known.GetByInAndName("query", name) == nil {
			d.t.Errorf("%s has no parameter %s", op, name)
		}
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	if d.next == nil {
		return exampleAnswer(d.t, op, route.Operation, req), nil
	}
	resp, err := d.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return resp, d.checkAnswer(op, in, resp)
}

// checkAnswer holds an answer that is no fault against the description.
func (d *described) checkAnswer(op string, in *openapi3filter.RequestValidationInput, resp *http.Response) error {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if resp.StatusCode >= 300 {
		return nil
	}
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: in.Options,
	}
	out.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(in.Request.Context(), out); err != nil {
		d.t.Errorf("%s: the answer: %v\n%.1000s", op, err, body)
	}
	return nil
}

// find looks up the operation of a path: the one with the fewest parameters.
func (d *described) find(method, path string) (*routers.Route, map[string]string) {
	var best *routers.Route
	var params map[string]string
	for name, item := range d.doc.Paths.Map() {
		op := item.GetOperation(method)
		got, ok := match(name, path)
		if op == nil || !ok || best != nil && len(got) >= len(params) {
			continue
		}
		best = &routers.Route{Spec: d.doc, Path: name, PathItem: item, Method: method, Operation: op}
		params = got
	}
	return best, params
}

// match compares a path with a template; {path} takes all that is left.
func match(template, path string) (map[string]string, bool) {
	params := make(map[string]string)
	ts, ps := strings.Split(template, "/"), strings.Split(path, "/")
	for i, t := range ts {
		if i >= len(ps) {
			return nil, false
		}
		switch {
		case t == "{path}":
			params["path"] = strings.Join(ps[i:], "/")
			return params, true
		case strings.HasPrefix(t, "{"):
			params[strings.Trim(t, "{}")] = ps[i]
		case t != ps[i]:
			return nil, false
		}
	}
	return params, len(ts) == len(ps)
}

// exampleAnswer answers with an operation's example of a success.
func exampleAnswer(t testing.TB, op string, o *openapi3.Operation, req *http.Request) *http.Response {
	t.Helper()
	for _, status := range []int{200, 201, 202, 204} {
		r := o.Responses.Status(status)
		if r == nil {
			continue
		}
		resp := &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Request: req, Body: http.NoBody}
		media := r.Value.Content.Get("application/json")
		if media == nil {
			return resp
		}
		value := exampleOf(t, op, media)
		if m, ok := value.(map[string]any); ok && m["encoding"] == "base64" {
			m["content"] = "IyBI\naQo=\n" // the example's own was cut by hand
		}
		body, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return resp
	}
	t.Fatalf("%s describes no success", op)
	return nil
}

func exampleOf(t testing.TB, op string, media *openapi3.MediaType) any {
	t.Helper()
	names := slices.Sorted(maps.Keys(media.Examples))
	for _, prefer := range []string{"response-if-content-is-a-file", "default"} {
		if slices.Contains(names, prefer) {
			names = append([]string{prefer}, names...)
		}
	}
	if len(names) > 0 {
		return media.Examples[names[0]].Value.Value
	}
	if media.Example == nil {
		t.Logf("%s has no example", op)
		return map[string]any{}
	}
	return media.Example
}
