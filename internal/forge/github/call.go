package github

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"gpuserver"
)

const (
	// maxAnswer bounds an answer, in bytes: a page of 100 runs is about 2 MiB.
	maxAnswer = 16 << 20
	// readTries is how often a read is sent at most.
	readTries  = 3
	retryPause = 200 * time.Millisecond
)

// call is one request to be made.
type call struct {
	method string
	path   string     // escaped, from the base URL on
	query  url.Values // may be nil
	body   any        // nil: none
	etag   string

	doing        string // in errors: "read run 12 of octo/hello"
	class        Class
	content      bool
	registration bool
	installation int64 // 0: as the App
	repeatable   bool  // no read, but doing it twice does no harm
}

func (c call) cost(ctx context.Context) cost {
	k := cost{
		class: c.class, points: pointsWrite, content: c.content,
		registration: c.registration, installation: c.installation,
	}
	if c.method == http.MethodGet {
		k.points = pointsRead
	}
	if class, ok := ctx.Value(classKey{}).(Class); ok && 0 <= class && class < classes {
		k.class = class
	}
	return k
}

// answer is what came back, of any status below 300, or 304.
type answer struct {
	status int
	header http.Header
}

// do makes a call and decodes the answer into out, which may be nil. Reads that
// failed for no fault of ours are made again; nothing else ever is (net/http
// repeats a POST only if no byte of it was sent), except after a 401, which says
// that the call was not made.
func (f *Forge) do(ctx context.Context, c call, out any) (_ answer, err error) {
	defer func() { f.health.note(ctx, err) }()
	renewed := false
	for try := 1; ; try++ {
		a, err := f.once(ctx, c, out)
		if err == nil {
			return a, nil
		}
		if a.status == http.StatusUnauthorized && !renewed {
			renewed = true // once has forgotten the token
			continue
		}
		if c.method != http.MethodGet && !c.repeatable || gpuserver.KindOf(err) != gpuserver.KindUnavailable || try >= readTries {
			return a, err
		}
		if sleep(ctx, backoff(try)) != nil {
			return a, err
		}
	}
}

// backoff doubles from retryPause, plus up to half.
func backoff(try int) time.Duration {
	d := retryPause << (try - 1)
	return d + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// once makes a call a single time, with a token and within the budget.
func (f *Forge) once(ctx context.Context, c call, out any) (answer, error) {
	k := c.cost(ctx)
	token, err := f.ready(ctx, c, k)
	if err != nil {
		return answer{}, err
	}
	var v verdict
	defer func() { f.budget.release(k, v) }()

	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	req, err := f.request(ctx, c, token)
	if err != nil {
		return answer{}, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return answer{}, unavailable(c, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	v = judge(resp, body, time.Now())
	if resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified {
		if err != nil {
			return answer{}, unavailable(c, fmt.Errorf("the answer was cut: %w", err))
		}
		a := answer{resp.StatusCode, resp.Header}
		return a, decode(c, resp.StatusCode, body, out)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		f.forgetToken(c, token)
	}
	return answer{resp.StatusCode, resp.Header}, statusError(c, resp, body, v)
}

func (f *Forge) request(ctx context.Context, c call, token string) (*http.Request, error) {
	var body io.Reader
	if c.body != nil {
		b, err := json.Marshal(c.body)
		if err != nil {
			return nil, gpuserver.Wrap(gpuserver.KindInternal, opName(c), err)
		}
		body = bytes.NewReader(b)
	}
	target := f.base.Scheme + "://" + f.base.Host + f.base.EscapedPath() + c.path
	if len(c.query) > 0 {
		target += "?" + c.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, c.method, target, body)
	if err != nil {
		return nil, gpuserver.Wrap(gpuserver.KindInvalid, opName(c), err)
	}
	h := req.Header
	h.Set("Authorization", "Bearer "+token)
	h.Set("Accept", "application/vnd.github+json")
	h.Set("X-GitHub-Api-Version", "2022-11-28")
	h.Set("User-Agent", "gpuserver")
	if c.body != nil {
		h.Set("Content-Type", "application/json")
	}
	if c.etag != "" {
		h.Set("If-None-Match", c.etag)
	}
	return req, nil
}

func decode(c call, status int, body []byte, out any) error {
	if len(body) > maxAnswer {
		return unavailable(c, fmt.Errorf("the answer is longer than %d bytes", maxAnswer))
	}
	if out == nil || status == http.StatusNotModified || status == http.StatusNoContent {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return unavailable(c, fmt.Errorf("the answer is not what was expected: %w", err))
	}
	return nil
}

// newClient copies a client and lets it follow redirects only where that keeps
// the call the same: GitHub redirects calls for a repository that was renamed.
func newClient(given *http.Client) *http.Client {
	client := &http.Client{}
	if given != nil {
		*client = *given
	}
	if client.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 100
		t.MaxIdleConns = 200
		client.Transport = t
	}
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		first := via[0]
		if len(via) > 3 || first.Method != http.MethodGet || req.Method != http.MethodGet ||
			req.URL.Host != first.URL.Host || req.URL.Scheme != first.URL.Scheme {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return client
}

// repoPath gives "/repos/OWNER/NAME", or an error for a name of another form.
func repoPath(name string) (string, error) {
	owner, repo, ok := strings.Cut(name, "/")
	if !ok || !segment(owner) || !segment(repo) || strings.Contains(repo, "/") {
		return "", invalid("%q is not a repository's name, owner/name", name)
	}
	return "/repos/" + url.PathEscape(owner) + "/" + url.PathEscape(repo), nil
}

// segment reports whether s can be one segment of a path and stays one.
func segment(s string) bool { return s != "" && s != "." && s != ".." }
