package runnerclient

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// MaxLogPiece is the longest piece of a log that the server takes at once, in
// bytes. Log splits what is longer.
const MaxLogPiece = 1 << 20

// ErrGone says that the registration does not exist any more: it was deleted,
// or had its one job.
var ErrGone = errors.New("the runner's registration is gone")

// StatusError is an answer other than 2xx and 401.
type StatusError struct {
	Status  int
	Message string
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Message) }

// Client is one runner's connection. Its methods may be called concurrently.
type Client struct {
	Settings Settings
	// Lease is how long the server waits for a sign of life; known once
	// connected.
	Lease time.Duration

	token string
	http  *http.Client
}

// Parse reads a JIT configuration without contacting the server.
func Parse(jit string) (*Client, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(jit))
	if err != nil {
		return nil, fmt.Errorf("the JIT configuration is not base64: %w", err)
	}
	var files map[string][]byte
	if err := json.Unmarshal(raw, &files); err != nil {
		return nil, fmt.Errorf("the JIT configuration is not an object of files: %w", err)
	}
	c := &Client{http: &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
	}}}
	if err := json.Unmarshal(files[".runner"], &c.Settings); err != nil {
		return nil, fmt.Errorf("the JIT configuration's .runner: %w", err)
	}
	var cred Credentials
	if err := json.Unmarshal(files[".credentials"], &cred); err != nil {
		return nil, fmt.Errorf("the JIT configuration's .credentials: %w", err)
	}
	c.token = cred.Data.Token
	if c.Settings.ServerURL == "" || c.token == "" {
		return nil, errors.New("the JIT configuration lacks ServerUrl or Token")
	}
	return c, nil
}

// Connect reads a JIT configuration and brings the runner online. It is tried
// once: a caller in a booting guest repeats it.
func Connect(ctx context.Context, jit string) (*Client, error) {
	c, err := Parse(jit)
	if err != nil {
		return nil, err
	}
	return c, c.Online(ctx)
}

// Online opens the runner's session.
func (c *Client) Online(ctx context.Context) error {
	var w Welcome
	_, err := c.call(ctx, "POST", "/_runner/session", Hello{Version: "test", OS: runtime.GOOS}, &w)
	if err == nil {
		c.Lease = w.Lease.Duration()
	}
	return err
}

// Offline ends the session; the registration stays.
func (c *Client) Offline(ctx context.Context) error {
	_, err := c.call(ctx, "DELETE", "/_runner/session", nil, nil)
	return err
}

// Close frees the connections; it tells the server nothing.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// UseTransport makes the client speak through t instead of its own connections,
// so that a benchmark's many runners can share a few.
func (c *Client) UseTransport(t http.RoundTripper) { c.http = &http.Client{Transport: t} }

// NextJob waits for a job until ctx ends. A connection that breaks is an error:
// the caller may call again and gets the same job if it was given one.
func (c *Client) NextJob(ctx context.Context) (*Job, error) {
	for {
		wait := 30
		if c.Lease > 0 {
			wait = max(1, min(wait, int(c.Lease.Seconds()/2)))
		}
		var j Job
		status, err := c.call(ctx, "GET", "/_runner/message?wait="+strconv.Itoa(wait), nil, &j)
		if err != nil {
			return nil, err
		}
		if status == http.StatusOK {
			return &j, nil
		}
	}
}

// Renew keeps the lease and waits at most wait for the job to be cancelled.
func (c *Client) Renew(ctx context.Context, job int64, wait time.Duration) (cancelled bool, err error) {
	var o Orders
	path := fmt.Sprintf("/_runner/jobs/%d/renew?wait=%.3f", job, wait.Seconds())
	_, err = c.call(ctx, "POST", path, nil, &o)
	return o.Cancelled, err
}

// Watch renews the lease until ctx ends, and closes the channel that it returns
// once the job was cancelled. done is closed when its goroutine has ended.
func (c *Client) Watch(ctx context.Context, job int64) (cancelled, done <-chan struct{}) {
	stop, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(end)
		wait := max(c.Lease/3, 50*time.Millisecond)
		for told := false; ctx.Err() == nil; {
			is, err := c.Renew(ctx, job, wait)
			if is && !told {
				told = true
				close(stop)
			}
			if errors.Is(err, ErrGone) {
				return
			}
			if err != nil || told {
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		}
	}()
	return stop, end
}

// Log appends text at offset to the job's log and gives the offset after it. It
// may be repeated.
func (c *Client) Log(ctx context.Context, job, offset int64, text []byte) (int64, error) {
	for len(text) > 0 {
		piece := text[:min(len(text), MaxLogPiece)]
		var p LogPosition
		path := fmt.Sprintf("/_runner/jobs/%d/log?offset=%d", job, offset)
		if _, err := c.call(ctx, "POST", path, piece, &p); err != nil {
			return offset, err
		}
		text, offset = text[len(piece):], offset+int64(len(piece))
	}
	return offset, nil
}

// Steps reports all steps so far.
func (c *Client) Steps(ctx context.Context, job int64, steps []StepState) error {
	_, err := c.call(ctx, "POST", fmt.Sprintf("/_runner/jobs/%d/steps", job), steps, nil)
	return err
}

// Complete ends the job. Repeating it is success as long as the registration
// exists; afterwards it is ErrGone.
func (c *Client) Complete(ctx context.Context, job int64, r Result) error {
	_, err := c.call(ctx, "POST", fmt.Sprintf("/_runner/jobs/%d/complete", job), r, nil)
	return err
}

// call sends in (bytes as they are, anything else as JSON) and reads out.
func (c *Client) call(ctx context.Context, method, path string, in, out any) (int, error) {
	var body io.Reader
	switch v := in.(type) {
	case nil:
	case []byte:
		body = bytes.NewReader(v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.Settings.ServerURL, "/")+path, body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, readAnswer(resp, out)
}

func readAnswer(resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusUnauthorized:
		return ErrGone
	case resp.StatusCode >= 300:
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			e.Message = http.StatusText(resp.StatusCode)
		}
		return &StatusError{Status: resp.StatusCode, Message: e.Message}
	case out == nil || resp.StatusCode == http.StatusNoContent:
		return nil
	}
	return json.Unmarshal(b, out)
}
