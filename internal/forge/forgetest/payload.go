package forgetest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// obj is a JSON object whose keys the standard library sorts.
type obj = map[string]any

// raw encodes what cannot fail: our own values.
func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("forgetest: encoding %T: %v", v, err))
	}
	return b
}

// nodeID makes GitHub's opaque global identifier.
func nodeID(kind string, id int64) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%03d:%s%d", len(kind), kind, id))
}

// rawJSON marks what is encoded already.
func rawJSON(b []byte) json.RawMessage { return b }

// decodeInto reads back what we encoded ourselves.
func decodeInto(b []byte, out any) {
	if err := json.Unmarshal(b, out); err != nil {
		panic(fmt.Sprintf("forgetest: decoding our own JSON: %v", err))
	}
}

func stamp(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Truncate(time.Second).Format(time.RFC3339)
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func (s *Server) accountJSON(a *account) []byte {
	u := s.cfg.BaseURL + "/users/" + url.PathEscape(a.login)
	kind := "User"
	switch {
	case a.org:
		kind = "Organization"
	case a.bot:
		kind = "Bot"
	}
	return raw(obj{
		"login": a.login, "id": a.id, "node_id": nodeID(kind, a.id), "avatar_url": s.cfg.BaseURL + "/avatars/" + url.PathEscape(a.login),
		"gravatar_id": "", "url": u, "html_url": s.cfg.BaseURL + "/" + url.PathEscape(a.login), "followers_url": u + "/followers",
		"following_url": u + "/following{/other_user}", "gists_url": u + "/gists{/gist_id}",
		"starred_url": u + "/starred{/owner}{/repo}", "subscriptions_url": u + "/subscriptions",
		"organizations_url": u + "/orgs", "repos_url": u + "/repos", "events_url": u + "/events{/privacy}",
		"received_events_url": u + "/received_events", "type": kind, "site_admin": false,
	})
}

// organizationJSON is what payloads carry as "organization".
func (s *Server) organizationJSON(a *account) json.RawMessage {
	if a.asOrg != nil {
		return a.asOrg
	}
	u := s.cfg.BaseURL + "/orgs/" + a.login
	a.asOrg = raw(obj{
		"login": a.login, "id": a.id, "node_id": nodeID("Organization", a.id), "url": u, "repos_url": u + "/repos",
		"events_url": u + "/events", "hooks_url": u + "/hooks", "issues_url": u + "/issues",
		"members_url": u + "/members{/member}", "public_members_url": u + "/public_members{/member}",
		"avatar_url": s.cfg.BaseURL + "/avatars/" + a.login, "description": "",
	})
	return a.asOrg
}

// repoLinks are the URL fields of a repository with their paths below it.
var repoLinks = strings.Fields(`
archive_url=/{archive_format}{/ref} assignees_url=/assignees{/user} blobs_url=/git/blobs{/sha}
branches_url=/branches{/branch} collaborators_url=/collaborators{/collaborator} comments_url=/comments{/number}
commits_url=/commits{/sha} compare_url=/compare/{base}...{head} contents_url=/contents/{+path}
contributors_url=/contributors deployments_url=/deployments downloads_url=/downloads events_url=/events
forks_url=/forks git_commits_url=/git/commits{/sha} git_refs_url=/git/refs{/sha} git_tags_url=/git/tags{/sha}
hooks_url=/hooks issue_comment_url=/issues/comments{/number} issue_events_url=/issues/events{/number}
issues_url=/issues{/number} keys_url=/keys{/key_id} labels_url=/labels{/name} languages_url=/languages
merges_url=/merges milestones_url=/milestones{/number} notifications_url=/notifications{?since,all,participating}
pulls_url=/pulls{/number} releases_url=/releases{/id} stargazers_url=/stargazers statuses_url=/statuses/{sha}
subscribers_url=/subscribers subscription_url=/subscription tags_url=/tags teams_url=/teams trees_url=/git/trees{/sha}`)

// renderRepo encodes a repository once: it is part of every payload.
func (s *Server) renderRepo(p *repo) {
	_, name, _ := strings.Cut(p.name, "/")
	u, html := s.repoURL(p), s.cfg.BaseURL+"/"+p.name
	visibility := "public"
	if p.private {
		visibility = "private"
	}
	o := obj{
		"id": p.id, "node_id": nodeID("Repository", p.id), "name": name, "full_name": p.name, "private": p.private,
		"owner": json.RawMessage(p.owner.json), "html_url": html, "description": nil, "fork": p.parent != nil, "url": u,
		"created_at": stamp(p.createdAt), "updated_at": stamp(p.createdAt), "pushed_at": stamp(p.createdAt),
		"git_url": html + ".git", "ssh_url": html + ".git", "clone_url": html + ".git", "svn_url": html,
		"homepage": nil, "size": 1, "stargazers_count": 0, "watchers_count": 0, "language": nil, "has_issues": true,
		"has_projects": true, "has_downloads": true, "has_wiki": true, "has_pages": false, "has_discussions": false,
		"forks_count": 0, "mirror_url": nil, "archived": false, "disabled": false, "open_issues_count": 0, "license": nil,
		"allow_forking": true, "is_template": false, "web_commit_signoff_required": false, "topics": []string{},
		"visibility": visibility, "forks": 0, "open_issues": 0, "watchers": 0, "default_branch": p.branch,
		"custom_properties": obj{},
	}
	for _, l := range repoLinks {
		k, path, _ := strings.Cut(l, "=")
		o[k] = u + path
	}
	p.json = raw(o)
	o["subscribers_count"], o["network_count"] = 0, 0
	if p.parent != nil {
		o["parent"], o["source"] = json.RawMessage(p.parent.full), json.RawMessage(p.parent.full)
	}
	p.full = raw(o)
}

func (s *Server) repoURL(p *repo) string { return s.cfg.BaseURL + "/repos/" + p.name }

// jobFields is a job as REST and payloads have it.
type jobFields struct {
	ID              int64     `json:"id"`
	RunID           int64     `json:"run_id"`
	WorkflowName    string    `json:"workflow_name"`
	HeadBranch      string    `json:"head_branch"`
	RunURL          string    `json:"run_url"`
	RunAttempt      int       `json:"run_attempt"`
	NodeID          string    `json:"node_id"`
	HeadSHA         string    `json:"head_sha"`
	URL             string    `json:"url"`
	HTMLURL         string    `json:"html_url"`
	Status          string    `json:"status"`
	Conclusion      any       `json:"conclusion"`
	CreatedAt       any       `json:"created_at"`
	StartedAt       any       `json:"started_at"`
	CompletedAt     any       `json:"completed_at"`
	Name            string    `json:"name"`
	Steps           []stepObj `json:"steps"`
	CheckRunURL     string    `json:"check_run_url"`
	Labels          []string  `json:"labels"`
	RunnerID        any       `json:"runner_id"`
	RunnerName      any       `json:"runner_name"`
	RunnerGroupID   any       `json:"runner_group_id"`
	RunnerGroupName any       `json:"runner_group_name"`
}

type stepObj struct {
	Name        string `json:"name"`
	Status      string `json:"status"`
	Conclusion  any    `json:"conclusion"`
	Number      int    `json:"number"`
	StartedAt   any    `json:"started_at"`
	CompletedAt any    `json:"completed_at"`
}

func (s *Server) jobFields(j *job) jobFields {
	a, r := j.attempt, j.attempt.run
	u := s.repoURL(r.repo)
	f := jobFields{
		ID: j.id, RunID: r.id, WorkflowName: r.workflow, HeadBranch: r.headBranch,
		RunURL: fmt.Sprintf("%s/actions/runs/%d", u, r.id), RunAttempt: a.n, NodeID: nodeID("CheckRun", j.id),
		HeadSHA: r.headID, URL: fmt.Sprintf("%s/actions/jobs/%d", u, j.id),
		HTMLURL: fmt.Sprintf("%s/%s/actions/runs/%d/job/%d", s.cfg.BaseURL, r.repo.name, r.id, j.id),
		Status:  j.status, Conclusion: orNull(j.conclusion), CreatedAt: stamp(j.createdAt), StartedAt: stamp(j.startedAt),
		CompletedAt: stamp(j.endedAt), Name: j.spec.Name, Steps: []stepObj{},
		CheckRunURL: fmt.Sprintf("%s/check-runs/%d", u, j.id), Labels: j.spec.Labels,
	}
	if f.Labels == nil {
		f.Labels = []string{}
	}
	if f.StartedAt == nil {
		f.StartedAt = f.CreatedAt // as GitHub does while a job is queued
	}
	for _, st := range j.steps {
		f.Steps = append(f.Steps, stepObj{st.Name, st.Status, orNull(st.Conclusion), st.Number, stamp(st.StartedAt), stamp(st.CompletedAt)})
	}
	if j.runner != nil {
		f.RunnerID, f.RunnerName, f.RunnerGroupID, f.RunnerGroupName = j.runner.id, j.runner.name, 1, "Default"
		if g := j.runner.group; g != nil {
			f.RunnerGroupID, f.RunnerGroupName = g.ID, g.Name
		}
	}
	return f
}

// parts are pieces of a JSON text. A payload shares the encoding of repository
// and accounts with all others, so that a kept delivery costs a kilobyte.
type parts [][]byte

func (p parts) join() []byte {
	n := 0
	for _, b := range p {
		n += len(b)
	}
	out := make([]byte, 0, n)
	for _, b := range p {
		out = append(out, b...)
	}
	return out
}

// payload closes an object that begin left open with what all payloads carry.
func (s *Server) payload(begin []byte, p *repo, a, sender *account) parts {
	out := parts{begin}
	if p != nil {
		out = append(out, []byte(`,"repository":`), p.json)
	}
	if a != nil && a.org {
		out = append(out, []byte(`,"organization":`), s.organizationJSON(a))
	}
	if a != nil && a.installID != 0 && p != nil {
		out = append(out, fmt.Appendf(nil, `,"installation":{"id":%d,"node_id":%q}`, a.installID, nodeID("Integration", a.installID)))
	}
	return append(out, []byte(`,"sender":`), sender.json, []byte("}"))
}

func (s *Server) jobPayload(j *job, action string) parts {
	r := j.attempt.run
	begin := append(fmt.Appendf(nil, `{"action":%q,"workflow_job":`, action), raw(s.jobFields(j))...)
	// The sender is who the event is about in GitHub's eyes: not proof of who
	// asked for the attempt.
	return s.payload(begin, r.repo, r.repo.owner, r.actor)
}

func (s *Server) checkPayload(c *Check, p *repo, action string, sender *account) parts {
	f := s.checkFields(c, p)
	suite := obj{
		"id": p.id, "head_branch": p.branch, "head_sha": c.HeadSHA, "status": c.Status, "conclusion": orNull(c.Conclusion),
		"url": s.repoURL(p) + "/check-suites/" + fmt.Sprint(p.id), "before": c.HeadSHA, "after": c.HeadSHA,
		"pull_requests": []any{}, "app": f["app"], "created_at": stamp(c.startedAt), "updated_at": stamp(c.UpdatedAt),
	}
	f["check_suite"] = suite
	begin := append(fmt.Appendf(nil, `{"action":%q,"check_run":`, action), raw(f)...)
	return s.payload(begin, p, p.owner, sender)
}

func (s *Server) appFields() obj {
	owner := s.cfg.BaseURL + "/users/apps"
	u := obj{"login": "apps", "id": 1, "node_id": nodeID("User", 1), "type": "Organization", "site_admin": false, "gravatar_id": ""}
	for _, k := range []string{
		"avatar_url", "url", "html_url", "followers_url", "following_url", "gists_url", "starred_url", "subscriptions_url",
		"organizations_url", "repos_url", "events_url", "received_events_url",
	} {
		u[k] = owner
	}
	return obj{
		"id": s.cfg.AppID, "slug": s.cfg.AppSlug, "node_id": nodeID("Integration", s.cfg.AppID), "owner": u,
		"name": s.cfg.AppSlug, "description": nil, "external_url": s.cfg.BaseURL, "html_url": s.cfg.BaseURL + "/apps/" + s.cfg.AppSlug,
		"created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-01T00:00:00Z",
		"permissions": s.set.permissions, "events": s.set.events,
	}
}

func (s *Server) installationFields(a *account) obj {
	u := fmt.Sprintf("%s/app/installations/%d", s.cfg.BaseURL, a.installID)
	kind := "User"
	if a.org {
		kind = "Organization"
	}
	return obj{
		"id": a.installID, "account": json.RawMessage(a.json), "repository_selection": "all",
		"access_tokens_url": u + "/access_tokens", "repositories_url": s.cfg.BaseURL + "/installation/repositories",
		"html_url": u, "app_id": s.cfg.AppID, "app_slug": s.cfg.AppSlug, "target_id": a.id, "target_type": kind,
		"permissions": s.set.permissions, "events": s.set.events, "created_at": stamp(a.createdAt),
		"updated_at": stamp(a.createdAt), "single_file_name": nil, "suspended_by": nil, "suspended_at": nil,
	}
}

func (s *Server) installationPayload(action string, a *account) parts {
	repos := []obj{}
	for _, p := range a.repos {
		_, name, _ := strings.Cut(p.name, "/")
		repos = append(repos, obj{"id": p.id, "node_id": nodeID("Repository", p.id), "name": name, "full_name": p.name, "private": p.private})
	}
	begin := raw(obj{"action": action, "installation": s.installationFields(a), "repositories": repos})
	return s.payload(begin[:len(begin)-1], nil, nil, a)
}

func (s *Server) pingPayload() parts {
	u := s.cfg.BaseURL + "/app/hook"
	return parts{raw(obj{
		"zen": "Keep it logically awesome.", "hook_id": hookID,
		"hook": obj{
			"type": "App", "id": hookID, "name": "web", "active": true, "events": s.set.events, "app_id": s.cfg.AppID,
			"config":     obj{"content_type": "json", "insecure_ssl": "0", "secret": "********", "url": s.set.webhookURL},
			"updated_at": "2024-01-01T00:00:00Z", "created_at": "2024-01-01T00:00:00Z", "url": u,
			"deliveries_url": u + "/deliveries", "ping_url": u + "/pings",
		},
	})}
}
