package github

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
)

// ResponseError is the cause of an error that GitHub answered.
type ResponseError struct {
	Status  int
	Message string // GitHub's own
	Request string // X-GitHub-Request-Id, for GitHub's support
}

// Error implements error.
func (e *ResponseError) Error() string {
	s := "GitHub answered " + strconv.Itoa(e.Status)
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Request != "" {
		s += " (request " + e.Request + ")"
	}
	return s
}

// verdict is what an answer means for the budget.
type verdict struct {
	ok        bool // below 400
	secondary bool
	blockFor  time.Duration // of a secondary limit; 0: not told
	exhausted bool          // a primary limit was met

	limit, remaining int
	reset            time.Time // on our clock; zero: not told
}

func (v verdict) limited() bool { return v.secondary || v.exhausted }

// judge reads the headers of an answer for the budget.
// Source: docs.github.com, "Rate limits for the REST API", exceeding the rate limit.
func judge(resp *http.Response, body []byte, now time.Time) verdict {
	v := verdict{ok: resp.StatusCode < 400}
	h := resp.Header
	remaining, err := strconv.Atoi(h.Get("X-Ratelimit-Remaining"))
	if limit, lerr := strconv.Atoi(h.Get("X-Ratelimit-Limit")); err == nil && lerr == nil {
		v.limit, v.remaining, v.reset = limit, remaining, resetTime(h, now)
	}
	if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusTooManyRequests {
		return v
	}
	after, told := retryAfter(h, now)
	message := strings.ToLower(messageOf(body))
	switch {
	case told || strings.Contains(message, "secondary rate limit") || strings.Contains(message, "abuse detection"):
		v.secondary, v.blockFor = true, after
	case err == nil && remaining == 0 || strings.Contains(message, "rate limit exceeded"):
		v.exhausted = true
		if v.reset.IsZero() {
			v.reset = now.Add(time.Minute)
		}
	case resp.StatusCode == http.StatusTooManyRequests:
		v.secondary = true
	}
	return v
}

// resetTime is X-RateLimit-Reset on our clock. The Date beside it says what
// GitHub's clock shows, so a wrong one of ours does no harm.
func resetTime(h http.Header, now time.Time) time.Time {
	sec, err := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64)
	if err != nil || sec <= 0 {
		return time.Time{}
	}
	reset := time.Unix(sec, 0)
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		reset = now.Add(reset.Sub(date))
	}
	// Limits are hourly: what lies beyond a day is nonsense to wait for.
	if reset.After(now.Add(24 * time.Hour)) {
		return time.Time{}
	}
	return reset.Add(slack)
}

// retryAfter reads Retry-After, in seconds or as a date; at most an hour.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	s := h.Get("Retry-After")
	if s == "" {
		return 0, false
	}
	if sec, err := strconv.Atoi(s); err == nil && sec >= 0 {
		return min(time.Duration(min(sec, 3600))*time.Second+slack, time.Hour), true
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(at.Sub(now), 0)+slack, time.Hour), true
	}
	return 0, true
}

func messageOf(body []byte) string {
	var m struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &m) != nil {
		return ""
	}
	if len(m.Message) > 500 {
		return m.Message[:500]
	}
	return m.Message
}

func opName(c call) string { return "github: " + c.doing }

// opError says what we were doing to an error of ours that does not.
func opError(c call, err error) error {
	return &gpuserver.Error{Kind: gpuserver.KindOf(err), Op: opName(c), Public: gpuserver.PublicText(err), Err: err}
}

// unavailable is an error after which nobody knows whether the call was made.
func unavailable(c call, err error) error {
	return &gpuserver.Error{
		Kind: gpuserver.KindUnavailable, Op: opName(c),
		Public: "GitHub cannot be reached; it is tried again", Err: err,
	}
}

// limited is the error of a call that was not made, because of a limit.
func limited(until time.Time, secondary bool, cause error) error {
	public := "GitHub's rate limit holds the call back"
	if !until.IsZero() {
		public += " until " + until.UTC().Format(time.RFC3339)
	}
	limit := &forge.LimitError{Until: until, Secondary: secondary}
	var err error = limit
	if cause != nil {
		err = fmt.Errorf("%w: %w", limit, cause)
	}
	return &gpuserver.Error{Kind: gpuserver.KindLimited, Public: public, Err: err}
}

// statusError turns an answer that is no success into an error.
func statusError(c call, resp *http.Response, body []byte, v verdict) error {
	cause := &ResponseError{Status: resp.StatusCode, Message: messageOf(body), Request: resp.Header.Get("X-Github-Request-Id")}
	if v.limited() {
		until := v.reset
		if v.secondary {
			until = time.Now().Add(cmp.Or(v.blockFor, time.Minute))
		}
		return opError(c, limited(until, v.secondary, cause))
	}
	kind, public := sentence(c, resp)
	return &gpuserver.Error{Kind: kind, Op: opName(c), Public: public, Err: cause}
}

func sentence(c call, resp *http.Response) (gpuserver.Kind, string) {
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized:
		return gpuserver.KindRefused, "GitHub does not accept the App's key; compare app id and private key, and the clock"
	case code == http.StatusForbidden || code == http.StatusUnavailableForLegalReasons:
		public := "GitHub refused to let the App " + c.doing
		if need := resp.Header.Get("X-Accepted-Github-Permissions"); need != "" {
			public += "; grant it " + need
		}
		return gpuserver.KindRefused, public
	case code == http.StatusNotFound || code == http.StatusGone:
		return gpuserver.KindNotFound, "GitHub could not " + c.doing + ": no such thing, or the App may not see it"
	case code == http.StatusConflict:
		return gpuserver.KindConflict, "GitHub could not " + c.doing + ": it exists already or is in use"
	case code >= 500 || code == http.StatusRequestTimeout:
		return gpuserver.KindUnavailable, "GitHub failed to " + c.doing + " (" + strconv.Itoa(code) + "); it is tried again"
	case code >= 300 && code < 400:
		return gpuserver.KindNotFound, "GitHub could not " + c.doing + ": it was moved"
	default:
		return gpuserver.KindInvalid, "GitHub found it wrong to " + c.doing + " (" + strconv.Itoa(code) + ")"
	}
}
