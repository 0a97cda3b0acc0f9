package github

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"gpuserver"
	"gpuserver/internal/forge"
)

// TeamMember implements forge.Forge. The team is named by its slug; a name with
// spaces or capitals is turned into one. Who was invited but has not accepted
// is no member. A team that does not exist, or that the App may not see, has
// none.
func (f *Forge) TeamMember(ctx context.Context, repo forge.Repo, org, team, login string) (bool, error) {
	slug := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(team)), " ", "-")
	for _, s := range []string{org, slug, login} {
		if !segment(s) {
			return false, invalid("%q is no name of an organisation, team or user", s)
		}
	}
	install, err := f.orgInstallation(ctx, repo, org)
	if err != nil {
		return false, err
	}
	var out struct {
		State string `json:"state"`
	}
	c := call{
		method: http.MethodGet, class: ClassRead, installation: install,
		path:  "/orgs/" + url.PathEscape(org) + "/teams/" + url.PathEscape(slug) + "/memberships/" + url.PathEscape(login),
		doing: "ask whether " + login + " is in team " + org + "/" + slug,
	}
	if _, err := f.do(ctx, c, &out); err != nil {
		if notFound(err) {
			return false, nil
		}
		return false, err
	}
	return out.State == "active", nil
}

// orgInstallation is the installation that reaches an organisation's teams.
func (f *Forge) orgInstallation(ctx context.Context, repo forge.Repo, org string) (int64, error) {
	if strings.EqualFold(org, repo.Owner()) {
		return f.installation(ctx, repo)
	}
	return f.lookUp(ctx, "/orgs/"+url.PathEscape(org), "find the App's installation on "+org)
}

// Role implements forge.Forge.
func (f *Forge) Role(ctx context.Context, repo forge.Repo, login string) (string, error) {
	if !segment(login) {
		return "", invalid("%q is no user's name", login)
	}
	var out struct {
		Permission string `json:"permission"`
		RoleName   string `json:"role_name"`
	}
	c := call{
		method: http.MethodGet, path: "/collaborators/" + url.PathEscape(login) + "/permission",
		class: ClassRead, doing: "read the role of " + login + " on " + repo.Name,
	}
	if err := f.inRepo(ctx, repo, c, &out); err != nil {
		if notFound(err) {
			return "", nil
		}
		return "", err
	}
	role := out.RoleName
	if role == "" { // older Enterprise Servers
		role = out.Permission
	}
	if role == "none" || out.Permission == "none" {
		return "", nil
	}
	return role, nil
}

// notFound reports whether GitHub answered 404 to the call itself.
func notFound(err error) bool {
	re, ok := errors.AsType[*ResponseError](err)
	return ok && re.Status == http.StatusNotFound && gpuserver.KindOf(err) == gpuserver.KindNotFound
}
