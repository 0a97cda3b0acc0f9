package forgetest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

// checkStore is the check runs.
type checkStore struct {
	byID  map[int64]*Check
	order []*Check
}

func (k *checkStore) init() { k.byID = map[int64]*Check{} }

func (s *Server) checkRoutes() []route {
	read, write := needs("checks=read"), needs("checks=write")
	return []route{
		{pattern: "POST /repos/{owner}/{repo}/check-runs", needs: write, content: true, handle: s.createCheck},
		{pattern: "PATCH /repos/{owner}/{repo}/check-runs/{check_run_id}", needs: write, content: true, handle: s.updateCheck},
		{pattern: "GET /repos/{owner}/{repo}/check-runs/{check_run_id}", needs: read, handle: s.getCheck},
	}
}

// checkRequest is the body of both writes; a nil field is left as it is.
type checkRequest struct {
	Name        *string    `json:"name"`
	HeadSHA     string     `json:"head_sha"`
	ExternalID  *string    `json:"external_id"`
	DetailsURL  *string    `json:"details_url"`
	Status      *string    `json:"status"`
	Conclusion  *string    `json:"conclusion"`
	StartedAt   *time.Time `json:"started_at"`
	CompletedAt *time.Time `json:"completed_at"`
	Output      *struct {
		Title   string  `json:"title"`
		Summary *string `json:"summary"`
		Text    string  `json:"text"`
	} `json:"output"`
}

var (
	checkStatuses    = []string{"queued", "in_progress", "completed", "waiting", "requested", "pending"}
	checkConclusions = []string{"success", "failure", "neutral", "cancelled", "skipped", "timed_out", "action_required"}
)

func (q *checkRequest) check() *apiError {
	switch {
	case q.Status != nil && !slices.Contains(checkStatuses, *q.Status):
		return invalid("CheckRun", "status", "invalid")
	case q.Conclusion != nil && !slices.Contains(checkConclusions, *q.Conclusion):
		return invalid("CheckRun", "conclusion", "invalid")
	case q.Status != nil && *q.Status == "completed" && q.Conclusion == nil:
		return invalid("CheckRun", "conclusion", "missing_field")
	case q.Output != nil && (q.Output.Title == "" || q.Output.Summary == nil):
		return invalid("CheckRun", "output", "missing_field")
	case q.Output != nil && (len(*q.Output.Summary) > 65535 || len(q.Output.Text) > 65535):
		return invalid("CheckRun", "output", "invalid")
	case q.Name != nil && *q.Name == "":
		return invalid("CheckRun", "name", "missing_field")
	}
	return nil
}

func (q *checkRequest) apply(k *Check) {
	put(&k.Name, q.Name)
	put(&k.ExternalID, q.ExternalID)
	put(&k.DetailsURL, q.DetailsURL)
	put(&k.Status, q.Status)
	put(&k.startedAt, q.StartedAt)
	if q.Status != nil && *q.Status != "completed" {
		k.Conclusion, k.completedAt = "", time.Time{}
	}
	if q.Conclusion != nil {
		k.Status, k.Conclusion, k.completedAt = "completed", *q.Conclusion, now()
	}
	put(&k.completedAt, q.CompletedAt)
	if o := q.Output; o != nil {
		k.Title, k.Summary, k.Text = o.Title, *o.Summary, o.Text
	}
	k.Writes++
	k.UpdatedAt = now()
}

func (s *Server) createCheck(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil {
		return 0, nil, e
	}
	var q checkRequest
	if e := c.decode(&q); e != nil {
		return 0, nil, e
	}
	if e := q.check(); e != nil {
		return 0, nil, e
	}
	if q.Name == nil || q.HeadSHA == "" {
		return 0, nil, invalid("CheckRun", "name or head_sha", "missing_field")
	}
	if p.commits[q.HeadSHA] == nil && !s.hasRunAt(p, q.HeadSHA) {
		return 0, nil, &apiError{status: http.StatusUnprocessableEntity, message: "No commit found for SHA: " + q.HeadSHA}
	}
	k := &Check{ID: s.world.id(), Repo: p.name, HeadSHA: q.HeadSHA, Status: "queued", startedAt: now()}
	q.apply(k)
	s.checks.byID[k.ID] = k
	s.checks.order = append(s.checks.order, k)
	if len(s.checks.order) > s.cfg.Retention.Checks {
		delete(s.checks.byID, s.checks.order[0].ID)
		s.checks.order = s.checks.order[1:]
	}
	return http.StatusCreated, s.checkFields(k, p), nil
}

// hasRunAt reports whether a run of p has that head; tests may make heads up.
func (s *Server) hasRunAt(p *repo, sha string) bool {
	return slices.ContainsFunc(p.runs, func(r *run) bool { return r.headID == sha })
}

func (s *Server) checkOfPath(c *call) (*Check, *repo, *apiError) {
	p, e := c.repo()
	if e != nil {
		return nil, nil, e
	}
	k := s.checks.byID[c.number("check_run_id")]
	if k == nil || k.Repo != p.name {
		return nil, nil, notFound
	}
	return k, p, nil
}

func (s *Server) updateCheck(c *call) (int, any, *apiError) {
	k, p, e := s.checkOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	var q checkRequest
	if e := c.decode(&q); e != nil {
		return 0, nil, e
	}
	if e := q.check(); e != nil {
		return 0, nil, e
	}
	q.apply(k)
	return http.StatusOK, s.checkFields(k, p), nil
}

func (s *Server) getCheck(c *call) (int, any, *apiError) {
	k, p, e := s.checkOfPath(c)
	if e != nil {
		return 0, nil, e
	}
	return http.StatusOK, s.checkFields(k, p), nil
}

func (s *Server) checkFields(k *Check, p *repo) obj {
	u := fmt.Sprintf("%s/check-runs/%d", s.repoURL(p), k.ID)
	html := fmt.Sprintf("%s/%s/runs/%d", s.cfg.BaseURL, p.name, k.ID)
	details := k.DetailsURL
	if details == "" {
		details = html
	}
	return obj{
		"id": k.ID, "name": k.Name, "node_id": nodeID("CheckRun", k.ID), "head_sha": k.HeadSHA, "external_id": k.ExternalID,
		"url": u, "html_url": html, "details_url": details, "status": k.Status, "conclusion": orNull(k.Conclusion),
		"started_at": stamp(k.startedAt), "completed_at": stamp(k.completedAt),
		"output": obj{
			"title": orNull(k.Title), "summary": orNull(k.Summary), "text": orNull(k.Text), "annotations_count": 0,
			"annotations_url": u + "/annotations",
		},
		"check_suite": obj{"id": p.id}, "app": s.appFields(), "pull_requests": []any{},
	}
}

// Checks lists the check runs of a repository ("": all), oldest first.
func (s *Server) Checks(repo string) []Check {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Check{}
	for _, k := range s.checks.order {
		if repo == "" || strings.EqualFold(repo, k.Repo) {
			out = append(out, *k)
		}
	}
	return out
}

// Rerequest presses "Re-run" on a check run: an event, and nothing else.
func (s *Server) Rerequest(id int64, by string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.checks.byID[id]
	if k == nil {
		return gpuserver.Errorf(gpuserver.KindNotFound, "check run %d does not exist", id)
	}
	p, err := s.repo(k.Repo)
	if err != nil {
		return err
	}
	sender := p.owner
	if by != "" {
		sender = s.account(by, false)
	}
	s.emit(event{name: "check_run", action: "rerequested", repo: p, account: p.owner, parts: s.checkPayload(k, p, "rerequested", sender)})
	return nil
}
