package github

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"gpuserver"
	"gpuserver/internal/forge"
)

// RerunJob implements forge.Forge. It costs 5 points.
//
// GitHub answers 403 to all that it will not do, and only the message tells
// which it is. Source: docs.github.com, "REST API endpoints for workflow runs",
// re-run a job from a workflow run; the messages are from answers that people
// published.
func (f *Forge) RerunJob(ctx context.Context, repo forge.Repo, id int64) error {
	n := strconv.FormatInt(id, 10)
	c := call{
		method: http.MethodPost, path: "/actions/jobs/" + n + "/rerun", class: ClassHousekeeping,
		doing: "re-run job " + n + " of " + repo.Name,
	}
	err := f.inRepo(ctx, repo, c, nil)
	re, ok := errors.AsType[*ResponseError](err)
	if !ok || gpuserver.KindOf(err) != gpuserver.KindRefused || re.Status != http.StatusForbidden {
		return err
	}
	switch message := strings.ToLower(re.Message); {
	case strings.Contains(message, "already running"):
		return &gpuserver.Error{
			Kind: gpuserver.KindConflict, Op: opName(c), Public: "GitHub re-runs job " + n + " only once its run has ended", Err: err,
		}
	case strings.Contains(message, "not accessible by integration"):
		return err // its sentence names the permission
	}
	return &gpuserver.Error{
		Kind: gpuserver.KindInvalid, Op: opName(c), Public: "GitHub does not re-run job " + n + ": " + re.Message, Err: err,
	}
}

// askedFor reports whether a run's attempt was asked for by the App itself. Only
// for another attempt of a bot's it has to know the App's name.
func (f *Forge) askedFor(ctx context.Context, r wireRun) (bool, error) {
	if r.RunAttempt < 2 || r.TriggeringActor.Type != "Bot" {
		return false, nil
	}
	slug, err := f.slug(ctx)
	return strings.EqualFold(r.TriggeringActor.Login, slug+"[bot]"), err
}

// slug gives the App's name in addresses and in the login of its own account; it
// is asked for once.
func (f *Forge) slug(ctx context.Context) (string, error) {
	if s := f.ownSlug.Load(); s != nil {
		return *s, nil
	}
	return shared(ctx, &f.flight, "app", func() (string, error) {
		var app wireApp
		c := call{method: http.MethodGet, path: "/app", class: ClassRead, doing: "read the App"}
		if _, err := f.do(ctx, c, &app); err != nil {
			return "", err
		}
		if app.Slug == "" {
			return "", unavailable(c, errors.New("the answer lacks the App's slug"))
		}
		f.ownSlug.Store(&app.Slug)
		return app.Slug, nil
	})
}
