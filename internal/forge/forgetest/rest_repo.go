package forgetest

import (
	"crypto/sha1" // git's object names
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// repoRoutes are repositories with their files and people.
func (s *Server) repoRoutes() []route {
	read := needs("contents=read")
	return []route{
		{pattern: "GET /repos/{owner}/{repo}", needs: needs("metadata=read"), handle: s.getRepo},
		{pattern: "GET /repos/{owner}/{repo}/contents/{path...}", needs: read, handle: s.getContents},
		{pattern: "GET /repos/{owner}/{repo}/commits/{ref...}", needs: read, handle: s.getCommit},
		{pattern: "GET /repos/{owner}/{repo}/git/ref/{ref...}", needs: read, handle: s.getRef},
		{pattern: "GET /repos/{owner}/{repo}/collaborators/{username}/permission", needs: needs("metadata=read"), handle: s.getPermission},
		{pattern: "GET /orgs/{org}/teams/{team_slug}/memberships/{username}", needs: needs("members=read"), handle: s.getMembership},
		{pattern: "GET /users/{username}", handle: s.getUser},
	}
}

func (s *Server) getRepo(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil {
		return 0, nil, e
	}
	return http.StatusOK, rawJSON(p.full), nil
}

// resolve finds the commit of a branch, a ref or an object name. Commits of the
// whole network of forks are reachable, as on GitHub: a fork's commit can be
// read through its parent.
func (p *repo) resolve(ref string) *commit {
	if ref == "" {
		ref = p.branch
	}
	if sha := p.branches[strings.TrimPrefix(strings.TrimPrefix(ref, "refs/"), "heads/")]; sha != "" {
		return p.commits[sha]
	}
	return p.commits[ref]
}

func (s *Server) getContents(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil {
		return 0, nil, e
	}
	ref, path := c.r.URL.Query().Get("ref"), strings.Trim(c.r.PathValue("path"), "/")
	at := p.resolve(ref)
	if at == nil {
		return 0, nil, &apiError{status: http.StatusNotFound, message: "No commit found for the ref " + ref}
	}
	if ref == "" {
		ref = p.branch
	}
	b := at.files[path]
	if b == nil {
		return s.listContents(p, at, path, ref)
	}
	if accept := c.r.Header.Get("Accept"); strings.Contains(accept, "raw") {
		return http.StatusOK, rawAnswer{"application/vnd.github.raw; charset=utf-8", b.content}, nil
	}
	o := s.entryFields(p, path, ref, "file", b)
	o["encoding"], o["content"] = "base64", wrapped(b.content)
	if len(b.content) > 1<<20 { // GitHub gives only the raw form then
		o["encoding"], o["content"] = "none", ""
	}
	return http.StatusOK, o, nil
}

// wrapped is base64 in lines of 60, as GitHub gives it.
func wrapped(b []byte) string {
	var out strings.Builder
	for text := base64.StdEncoding.EncodeToString(b); text != ""; {
		n := min(60, len(text))
		out.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return out.String()
}

func (s *Server) entryFields(p *repo, path, ref, kind string, b *blob) obj {
	u := fmt.Sprintf("%s/contents/%s?ref=%s", s.repoURL(p), path, ref)
	git := fmt.Sprintf("%s/git/blobs/%s", s.repoURL(p), b.sha)
	html := fmt.Sprintf("%s/%s/blob/%s/%s", s.cfg.BaseURL, p.name, ref, path)
	return obj{
		"type": kind, "size": len(b.content), "name": path[strings.LastIndex(path, "/")+1:], "path": path, "sha": b.sha, "url": u,
		"git_url": git, "html_url": html, "download_url": html, "_links": obj{"git": git, "html": html, "self": u},
	}
}

// listContents lists a directory.
func (s *Server) listContents(p *repo, at *commit, dir, ref string) (int, any, *apiError) {
	prefix := dir + "/"
	if dir == "" {
		prefix = ""
	}
	out, seen := []obj{}, map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(at.files)) {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		name, _, sub := strings.Cut(rest, "/")
		if seen[name] {
			continue
		}
		seen[name] = true
		if sub {
			out = append(out, s.entryFields(p, prefix+name, ref, "dir", &blob{sha: treeID(at)}))
		} else {
			out = append(out, s.entryFields(p, path, ref, "file", at.files[path]))
		}
	}
	if len(out) == 0 && dir != "" {
		return 0, nil, notFound
	}
	return http.StatusOK, out, nil
}

// treeID stands for the name of a commit's tree.
func treeID(c *commit) string {
	sum := sha1.Sum([]byte("tree " + c.sha))
	return hex.EncodeToString(sum[:])
}

func (s *Server) getCommit(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil {
		return 0, nil, e
	}
	at := p.resolve(c.r.PathValue("ref"))
	if at == nil {
		return 0, nil, &apiError{status: http.StatusUnprocessableEntity, message: "No commit found for SHA: " + c.r.PathValue("ref")}
	}
	if strings.Contains(c.r.Header.Get("Accept"), "sha") {
		return http.StatusOK, rawAnswer{"application/vnd.github.sha; charset=utf-8", []byte(at.sha)}, nil
	}
	u := s.repoURL(p)
	who := obj{"name": p.owner.login, "email": p.owner.login + "@users.invalid", "date": stamp(at.at)}
	parents := []obj{}
	if at.parent != "" {
		parents = append(parents, obj{"sha": at.parent, "url": u + "/commits/" + at.parent, "html_url": u + "/commit/" + at.parent})
	}
	return http.StatusOK, obj{
		"sha": at.sha, "node_id": nodeID("Commit", p.id), "url": u + "/commits/" + at.sha, "html_url": u + "/commit/" + at.sha,
		"comments_url": u + "/commits/" + at.sha + "/comments", "author": rawJSON(p.owner.json), "committer": rawJSON(p.owner.json),
		"parents": parents, "commit": obj{
			"url": u + "/git/commits/" + at.sha, "author": who, "committer": who, "message": at.message, "comment_count": 0,
			"tree": obj{"sha": treeID(at), "url": u + "/git/trees/" + treeID(at)},
		},
	}, nil
}

func (s *Server) getRef(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil {
		return 0, nil, e
	}
	ref := c.r.PathValue("ref")
	sha := p.branches[strings.TrimPrefix(ref, "heads/")]
	if !strings.HasPrefix(ref, "heads/") || sha == "" {
		return 0, nil, notFound
	}
	u := s.repoURL(p)
	return http.StatusOK, obj{
		"ref": "refs/" + ref, "node_id": nodeID("Ref", p.id), "url": u + "/git/refs/" + ref,
		"object": obj{"type": "commit", "sha": sha, "url": u + "/git/commits/" + sha},
	}, nil
}

// getPermission answers with the old word (admin, write, read, none) and the
// role's name, which knows maintain, triage and custom roles.
func (s *Server) getPermission(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil {
		return 0, nil, e
	}
	a := s.world.accounts[strings.ToLower(c.r.PathValue("username"))]
	if a == nil {
		return 0, nil, &apiError{status: http.StatusNotFound, message: c.r.PathValue("username") + " is not a user"}
	}
	role := p.roles[strings.ToLower(a.login)]
	if role == "" && !p.private {
		role = "read" // everybody may read a public repository
	}
	if a == p.owner {
		role = "admin"
	}
	user := obj{}
	decodeInto(a.json, &user)
	user["role_name"] = role
	user["permissions"] = obj{
		"pull": role != "", "triage": role != "" && role != "read", "push": oldWord(role) == "write" || role == "admin",
		"maintain": role == "maintain" || role == "admin", "admin": role == "admin",
	}
	return http.StatusOK, obj{"permission": oldWord(role), "role_name": role, "user": user}, nil
}

func oldWord(role string) string {
	switch role {
	case "admin":
		return "admin"
	case "maintain", "write":
		return "write"
	case "":
		return "none"
	}
	return "read" // triage, read; a custom role's base is not modelled
}

func (s *Server) getMembership(c *call) (int, any, *apiError) {
	a, e := c.org()
	if e != nil {
		return 0, nil, e
	}
	login := c.r.PathValue("username")
	t := s.world.teams[strings.ToLower(a.login+"/"+c.r.PathValue("team_slug"))]
	if t == nil {
		return 0, nil, notFound
	}
	is := func(l string) bool { return strings.EqualFold(l, login) }
	state := ""
	switch {
	case slices.ContainsFunc(t.Members, is):
		state = "active"
	case slices.ContainsFunc(t.Pending, is):
		state = "pending"
	default:
		return 0, nil, notFound
	}
	u := fmt.Sprintf("%s/orgs/%s/teams/%s/memberships/%s", s.cfg.BaseURL, a.login, t.Slug, login)
	return http.StatusOK, obj{"url": u, "role": "member", "state": state}, nil
}

func (s *Server) getUser(c *call) (int, any, *apiError) {
	a := s.world.accounts[strings.ToLower(c.r.PathValue("username"))]
	if a == nil {
		return 0, nil, notFound
	}
	o := obj{}
	decodeInto(a.json, &o)
	for _, k := range []string{"name", "company", "blog", "location", "email", "hireable", "bio"} {
		o[k] = nil
	}
	for _, k := range []string{"public_repos", "public_gists", "followers", "following"} {
		o[k] = 0
	}
	o["user_view_type"] = "public"
	o["created_at"], o["updated_at"] = stamp(a.createdAt), stamp(a.createdAt)
	return http.StatusOK, o, nil
}
