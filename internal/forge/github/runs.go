package github

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	lru "github.com/hashicorp/golang-lru/v2"

	"gpuserver/internal/forge"
)

const (
	runsKept = 4096 // attempts of runs, some 500 bytes each
	pageSize = 100  // the most that GitHub gives
	// pagesMost bounds a list: GitHub itself ends lists of runs after 1000, and
	// an organisation may have 10,000 runners.
	pagesMost = 120
)

type runKey struct {
	repo    string
	id      int64
	attempt int
}

type runCache struct{ *lru.Cache[runKey, forge.Run] }

func newRunCache() runCache {
	c, err := lru.New[runKey, forge.Run](runsKept)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return runCache{c}
}

// wireRun is a workflow run.
type wireRun struct {
	ID              int64           `json:"id"`
	RunAttempt      int             `json:"run_attempt"`
	Event           string          `json:"event"`
	Status          string          `json:"status"`
	Conclusion      string          `json:"conclusion"`
	HeadSHA         string          `json:"head_sha"`
	HeadBranch      string          `json:"head_branch"`
	Actor           wireActor       `json:"actor"`
	TriggeringActor wireActor       `json:"triggering_actor"`
	Repository      wireRepository  `json:"repository"`
	HeadRepository  *wireRepository `json:"head_repository"`
}

func (r *wireRun) run(repo forge.Repo) forge.Run {
	run := forge.Run{
		ID: r.ID, Attempt: r.RunAttempt, Event: r.Event, Status: r.Status, Conclusion: r.Conclusion,
		TriggeringActor: r.TriggeringActor.actor(), Actor: r.Actor.actor(),
		HeadSHA: r.HeadSHA, HeadBranch: r.HeadBranch,
		DefaultBranch: r.Repository.DefaultBranch, Private: r.Repository.Private,
	}
	if run.DefaultBranch == "" { // GitHub's short form of a repository lacks it
		run.DefaultBranch = repo.DefaultBranch
	}
	if r.HeadRepository != nil {
		run.HeadRepo = r.HeadRepository.FullName
	}
	return run
}

// Run implements forge.Forge. Attempt 0 is the latest, and never cached. The
// Status of a cached answer is what it was when it was asked for.
func (f *Forge) Run(ctx context.Context, repo forge.Repo, runID int64, attempt int) (forge.Run, error) {
	key := runKey{repo.Name, runID, attempt}
	if run, ok := f.runs.Get(key); ok && attempt > 0 {
		return run, nil
	}
	id, n := strconv.FormatInt(runID, 10), strconv.Itoa(attempt)
	return shared(ctx, &f.flight, "run/"+repo.Name+"/"+id+"/"+n, func() (forge.Run, error) {
		path := "/actions/runs/" + id
		if attempt > 0 {
			path += "/attempts/" + n
		}
		var out wireRun
		c := call{
			method: http.MethodGet, path: path, class: ClassRead,
			query: url.Values{"exclude_pull_requests": {"true"}},
			doing: "read run " + id + " of " + repo.Name,
		}
		if err := f.inRepo(ctx, repo, c, &out); err != nil {
			return forge.Run{}, err
		}
		run := out.run(repo)
		var err error
		if run.ByUs, err = f.askedFor(ctx, out); err != nil {
			return forge.Run{}, err
		}
		if attempt > 0 {
			f.runs.Add(key, run)
		}
		return run, nil
	})
}

// Job implements forge.Forge.
func (f *Forge) Job(ctx context.Context, repo forge.Repo, id int64) (forge.Job, error) {
	n := strconv.FormatInt(id, 10)
	var out wireJob
	c := call{
		method: http.MethodGet, path: "/actions/jobs/" + n, class: ClassRead,
		doing: "read job " + n + " of " + repo.Name,
	}
	if err := f.inRepo(ctx, repo, c, &out); err != nil {
		return forge.Job{}, err
	}
	return out.job(repo), nil
}

// QueuedJobs implements forge.Forge. It costs two points and one for each run
// that is queued or in progress. Jobs that a deployment rule holds back are in
// the answer only beside others of their run.
func (f *Forge) QueuedJobs(ctx context.Context, repo forge.Repo) ([]forge.Job, error) {
	var runs []int64
	seen := make(map[int64]bool) // a run may move on between the two lists
	for _, status := range []string{"in_progress", "queued"} {
		c := call{
			method: http.MethodGet, path: "/actions/runs", class: ClassHousekeeping,
			query: url.Values{"status": {status}, "exclude_pull_requests": {"true"}},
			doing: "list runs of " + repo.Name,
		}
		err := pages(ctx, f, repo, c, func(p struct {
			Runs []wireRun `json:"workflow_runs"`
		},
		) int {
			for _, r := range p.Runs {
				if !seen[r.ID] {
					seen[r.ID] = true
					runs = append(runs, r.ID)
				}
			}
			return len(p.Runs)
		})
		if err != nil {
			return nil, err
		}
	}
	var jobs []forge.Job
	for _, id := range runs {
		more, err := f.unfinishedJobs(ctx, repo, id)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, more...)
	}
	return jobs, nil
}

// unfinishedJobs lists the jobs of a run's latest attempt that have not ended.
func (f *Forge) unfinishedJobs(ctx context.Context, repo forge.Repo, run int64) ([]forge.Job, error) {
	id := strconv.FormatInt(run, 10)
	var jobs []forge.Job
	c := call{
		method: http.MethodGet, path: "/actions/runs/" + id + "/jobs", class: ClassHousekeeping,
		query: url.Values{"filter": {"latest"}}, doing: "list jobs of run " + id + " of " + repo.Name,
	}
	err := pages(ctx, f, repo, c, func(p struct {
		Jobs []wireJob `json:"jobs"`
	},
	) int {
		for _, j := range p.Jobs {
			if j.Status != "completed" {
				jobs = append(jobs, j.job(repo))
			}
		}
		return len(p.Jobs)
	})
	return jobs, err
}

// inRepo makes a call whose path starts at a repository.
func (f *Forge) inRepo(ctx context.Context, repo forge.Repo, c call, out any) error {
	_, err := f.answerInRepo(ctx, repo, c, out)
	return err
}

func (f *Forge) answerInRepo(ctx context.Context, repo forge.Repo, c call, out any) (answer, error) {
	prefix, err := repoPath(repo.Name)
	if err != nil {
		return answer{}, err
	}
	if c.installation, err = f.installation(ctx, repo); err != nil {
		return answer{}, err
	}
	c.path = prefix + c.path
	return f.do(ctx, c, out)
}

// pages asks for one page of a list after the other. each takes a page and
// gives the number of its items.
func pages[P any](ctx context.Context, f *Forge, repo forge.Repo, c call, each func(P) int) error {
	query := url.Values{"per_page": {strconv.Itoa(pageSize)}}
	for k, v := range c.query {
		query[k] = v
	}
	c.query = query
	for page := 1; page <= pagesMost; page++ {
		if page > 1 {
			query.Set("page", strconv.Itoa(page))
		}
		var out P
		a, err := f.answerInRepo(ctx, repo, c, &out)
		if err != nil {
			return err
		}
		if each(out) == 0 || nextLink(a.header) == "" {
			return nil
		}
	}
	return nil
}
