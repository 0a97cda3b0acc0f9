package github

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"gpuserver"
	"gpuserver/internal/forge"
)

type wireRunner struct {
	ID     int64  `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
	Busy   bool   `json:"busy"`
	Labels []struct {
		Name string `json:"name"`
	} `json:"labels"`
}

func (r *wireRunner) runner() forge.Runner {
	out := forge.Runner{ID: r.ID, Name: r.Name, Online: r.Status == "online", Busy: r.Busy}
	for _, l := range r.Labels {
		out.Labels = append(out.Labels, l.Name)
	}
	return out
}

// registration is the body of generate-jitconfig.
type registration struct {
	Name          string   `json:"name"`
	RunnerGroupID int64    `json:"runner_group_id"`
	Labels        []string `json:"labels"`
	WorkFolder    string   `json:"work_folder,omitempty"`
}

// RegisterRunner implements forge.Forge. It costs 5 points.
func (f *Forge) RegisterRunner(ctx context.Context, r forge.RunnerSpec) (forge.Registration, error) {
	if r.Name == "" || len(r.Name) > 64 {
		return forge.Registration{}, invalid("the runner's name %q must have 1 to 64 characters", r.Name)
	}
	if len(r.Labels) < 1 || len(r.Labels) > 100 {
		return forge.Registration{}, invalid("runner %s has %d labels; GitHub takes 1 to 100", r.Name, len(r.Labels))
	}
	group, err := f.groupID(ctx, r.Scope)
	if err != nil {
		return forge.Registration{}, err
	}
	body := registration{Name: r.Name, RunnerGroupID: group, Labels: r.Labels, WorkFolder: r.WorkFolder}
	var out struct {
		Runner wireRunner `json:"runner"`
		JIT    string     `json:"encoded_jit_config"`
	}
	c := call{
		method: http.MethodPost, path: "/generate-jitconfig", body: body,
		class: ClassRegister, registration: true, doing: "register runner " + r.Name,
	}
	if _, err := f.atScope(ctx, r.Scope, c, &out); err != nil {
		return forge.Registration{}, err
	}
	if out.Runner.ID == 0 || out.JIT == "" {
		return forge.Registration{}, unavailable(c, errors.New("the answer lacks the runner or its configuration"))
	}
	return forge.Registration{RunnerID: out.Runner.ID, JITConfig: out.JIT}, nil
}

// FindRunner implements forge.Forge. It costs 1 point, because GitHub filters.
func (f *Forge) FindRunner(ctx context.Context, scope forge.Scope, name string) (forge.Runner, error) {
	var found *forge.Runner
	c := call{
		method: http.MethodGet, query: url.Values{"name": {name}}, class: ClassRegister,
		doing: "find runner " + name,
	}
	err := f.listRunners(ctx, scope, c, func(r *wireRunner) bool {
		if r.Name == name { // the filter may be loose
			one := r.runner()
			found = &one
		}
		return found == nil
	})
	if err != nil {
		return forge.Runner{}, err
	}
	if found == nil {
		return forge.Runner{}, gpuserver.Errorf(gpuserver.KindNotFound, "GitHub has no runner %s", name)
	}
	return *found, nil
}

// Runners implements forge.Forge. It costs 1 point for each 100 runners of the
// scope, ours or not.
func (f *Forge) Runners(ctx context.Context, scope forge.Scope, prefix string) ([]forge.Runner, error) {
	var runners []forge.Runner
	c := call{method: http.MethodGet, class: ClassHousekeeping, doing: "list runners of " + scope.Owner().Name}
	err := f.listRunners(ctx, scope, c, func(r *wireRunner) bool {
		if strings.HasPrefix(r.Name, prefix) {
			runners = append(runners, r.runner())
		}
		return true
	})
	return runners, err
}

// listRunners goes through the runners of a scope until each gives false.
func (f *Forge) listRunners(ctx context.Context, scope forge.Scope, c call, each func(*wireRunner) bool) error {
	query := url.Values{"per_page": {strconv.Itoa(pageSize)}}
	for k, v := range c.query {
		query[k] = v
	}
	c.query = query
	for page := 1; page <= pagesMost; page++ {
		if page > 1 {
			query.Set("page", strconv.Itoa(page))
		}
		var out struct {
			Runners []wireRunner `json:"runners"`
		}
		a, err := f.atScope(ctx, scope, c, &out)
		if err != nil {
			return err
		}
		for i := range out.Runners {
			if !each(&out.Runners[i]) {
				return nil
			}
		}
		if len(out.Runners) == 0 || nextLink(a.header) == "" {
			return nil
		}
	}
	return nil
}

// DeleteRunner implements forge.Forge. It costs 5 points.
func (f *Forge) DeleteRunner(ctx context.Context, scope forge.Scope, id int64) error {
	n := strconv.FormatInt(id, 10)
	c := call{method: http.MethodDelete, path: "/" + n, class: ClassDelete, doing: "delete runner " + n}
	_, err := f.atScope(ctx, scope, c, nil)
	if notFound(err) {
		return nil
	}
	if re, ok := errors.AsType[*ResponseError](err); ok && re.Status == http.StatusUnprocessableEntity {
		return &gpuserver.Error{
			Kind: gpuserver.KindConflict, Op: opName(c),
			Public: "runner " + n + " is running a job", Err: err,
		}
	}
	return err
}

// atScope makes a call whose path starts at a scope's runners.
func (f *Forge) atScope(ctx context.Context, scope forge.Scope, c call, out any) (answer, error) {
	prefix, err := repoPath(scope.Repo.Name)
	if err != nil {
		return answer{}, err
	}
	if scope.Organisation {
		prefix = "/orgs/" + url.PathEscape(scope.Repo.Owner())
	}
	if c.installation, err = f.installation(ctx, scope.Repo); err != nil {
		return answer{}, err
	}
	c.path = prefix + "/actions/runners" + c.path
	return f.do(ctx, c, out)
}
