package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gpuserver"
)

// Client asks a running server. Its methods may be called concurrently; errors
// are *gpuserver.Error values of the server's kind, or KindUnavailable if it
// cannot be reached.
type Client struct {
	base  string
	where string // for people
	token string
	http  *http.Client
}

// socketBase is what stands before paths where a socket is spoken to.
const socketBase = "http://localhost"

// NewClient makes a client of the server at an URL ("http://127.0.0.1:8442") or
// a unix socket ("/run/gpuserver/api.sock", "unix:///…"). token may be empty.
func NewClient(server, token string) (*Client, error) {
	c := &Client{where: server, token: token}
	transport := &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true}
	c.http = &http.Client{Transport: transport}
	if path, ok := strings.CutPrefix(server, "unix://"); ok || strings.HasPrefix(server, "/") {
		c.where, c.base = path, socketBase
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		return c, nil
	}
	transport.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	transport.Proxy = http.ProxyFromEnvironment
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "%q is not a server: give an URL such as https://gpu.example.org or the path of a socket", server)
	}
	if u.User != nil {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "a server's URL holds no user name or password; give a token instead")
	}
	c.base = strings.TrimRight(u.String(), "/")
	return c, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Jobs lists jobs, newest first. states empty: any; repo "": any; limit 0: 100.
func (c *Client) Jobs(ctx context.Context, states []string, repo string, limit int) ([]gpuserver.Job, error) {
	q := url.Values{}
	if len(states) > 0 {
		q.Set("state", strings.Join(states, ","))
	}
	if repo != "" {
		q.Set("repo", repo)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	l, err := get[JobList](ctx, c, "/jobs?"+q.Encode())
	return l.Jobs, err
}

// Job gives a job with its VM, phases and history.
func (c *Client) Job(ctx context.Context, id gpuserver.JobID) (JobDetail, error) {
	return get[JobDetail](ctx, c, fmt.Sprintf("/jobs/%d", id))
}

// Explain says why a job is where it is.
func (c *Client) Explain(ctx context.Context, id gpuserver.JobID) (Explanation, error) {
	return get[Explanation](ctx, c, fmt.Sprintf("/jobs/%d/explanation", id))
}

// CancelJob ends a job on our side.
func (c *Client) CancelJob(ctx context.Context, id gpuserver.JobID) error {
	return c.do(ctx, http.MethodPost, fmt.Sprintf("/jobs/%d/cancel", id))
}

// RetryJob decides a job again.
func (c *Client) RetryJob(ctx context.Context, id gpuserver.JobID) error {
	return c.do(ctx, http.MethodPost, fmt.Sprintf("/jobs/%d/retry", id))
}

// VMs lists VMs, newest first; the gone ones too if all is set.
func (c *Client) VMs(ctx context.Context, all bool, limit int) ([]gpuserver.VM, error) {
	q := url.Values{"all": {strconv.FormatBool(all)}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	l, err := get[VMList](ctx, c, "/vms?"+q.Encode())
	return l.VMs, err
}

// VM gives a VM, by number or name, with its history.
func (c *Client) VM(ctx context.Context, ref string) (VMDetail, error) {
	return get[VMDetail](ctx, c, "/vms/"+url.PathEscape(ref))
}

// DeleteVM takes a VM down, by number or name.
func (c *Client) DeleteVM(ctx context.Context, ref string) error {
	return c.do(ctx, http.MethodDelete, "/vms/"+url.PathEscape(ref))
}

// Console reads a VM's console from a byte offset; followed, it goes on until
// the VM is gone or ctx ends. limit 0 is the server's default.
func (c *Client) Console(ctx context.Context, ref string, from, limit int64, follow bool) (io.ReadCloser, error) {
	q := url.Values{"from": {strconv.FormatInt(from, 10)}, "follow": {strconv.FormatBool(follow)}}
	if limit > 0 {
		q.Set("limit", strconv.FormatInt(limit, 10))
	}
	resp, err := c.send(ctx, http.MethodGet, "/vms/"+url.PathEscape(ref)+"/console?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// GPUs lists cards by cloud, host and address. states empty: any; cloud and host
// "": any.
func (c *Client) GPUs(ctx context.Context, states []string, cloud, host string) ([]GPUInfo, error) {
	q := url.Values{}
	for name, value := range map[string]string{"state": strings.Join(states, ","), "cloud": cloud, "host": host} {
		if value != "" {
			q.Set(name, value)
		}
	}
	l, err := get[GPUList](ctx, c, "/gpus?"+q.Encode())
	return l.GPUs, err
}

// GPU gives a card, by number, UUID, serial number or address.
func (c *Client) GPU(ctx context.Context, ref string) (GPUDetail, error) {
	return get[GPUDetail](ctx, c, "/gpus/"+url.PathEscape(ref))
}

// GPUHistory gives what happened to a card, newest first; limit 0: 100.
func (c *Client) GPUHistory(ctx context.Context, ref string, limit int) ([]gpuserver.GPUEvent, error) {
	q := ""
	if limit > 0 {
		q = "?limit=" + strconv.Itoa(limit)
	}
	h, err := get[GPUHistory](ctx, c, "/gpus/"+url.PathEscape(ref)+"/history"+q)
	return h.Events, err
}

// CordonGPU takes a card out of service and gives it as it is then.
func (c *Client) CordonGPU(ctx context.Context, ref, reason string) (GPUDetail, error) {
	return post[GPUDetail](ctx, c, "/gpus/"+url.PathEscape(ref)+"/cordon", CordonRequest{Reason: reason})
}

// UncordonGPU puts a card back into service and gives it as it is then.
func (c *Client) UncordonGPU(ctx context.Context, ref string) (GPUDetail, error) {
	return post[GPUDetail](ctx, c, "/gpus/"+url.PathEscape(ref)+"/uncordon", nil)
}

// TestGPU starts a job on just this card. It is sent once: if the answer is
// lost, the job may run.
func (c *Client) TestGPU(ctx context.Context, ref string) (gpuserver.JobID, error) {
	s, err := post[Started](ctx, c, "/gpus/"+url.PathEscape(ref)+"/test", nil)
	return s.Job, err
}

// Status gives the server at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) { return get[Status](ctx, c, "/status") }

// Flavors lists the sizes of VM.
func (c *Client) Flavors(ctx context.Context) ([]FlavorInfo, error) {
	l, err := get[FlavorList](ctx, c, "/flavors")
	return l.Flavors, err
}

// Images lists what VMs boot.
func (c *Client) Images(ctx context.Context) ([]gpuserver.Image, error) {
	l, err := get[ImageList](ctx, c, "/images")
	return l.Images, err
}

// ReleaseImage ends the hold of an image.
func (c *Client) ReleaseImage(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/images/"+url.PathEscape(name)+"/hold")
}

// ResumeFlavor ends the suspension of a flavor on a cloud.
func (c *Client) ResumeFlavor(ctx context.Context, cloud, flavor string) error {
	return c.do(ctx, http.MethodDelete, "/clouds/"+url.PathEscape(cloud)+"/flavors/"+url.PathEscape(flavor)+"/suspension")
}

// StartRun runs a command in a fresh VM. It is sent once: if the answer is
// lost, the command may run.
func (c *Client) StartRun(ctx context.Context, r RunRequest) (gpuserver.JobID, error) {
	s, err := post[Started](ctx, c, "/runs", r)
	return s.Job, err
}

// Run says how a command stands.
func (c *Client) Run(ctx context.Context, id gpuserver.JobID) (RunStatus, error) {
	return get[RunStatus](ctx, c, fmt.Sprintf("/runs/%d", id))
}

// Output gives what a command wrote to stream ("stdout" or "stderr") from a
// byte offset, waiting up to wait (whole seconds, at most 60) for it.
func (c *Client) Output(ctx context.Context, id gpuserver.JobID, stream string, from int64, wait time.Duration) (Output, error) {
	return get[Output](ctx, c, fmt.Sprintf("/runs/%d/%s?from=%d&wait=%d", id, stream, from, int(wait.Seconds())))
}

// CancelRun ends a command; one that is over already is left as it is.
func (c *Client) CancelRun(ctx context.Context, id gpuserver.JobID) error {
	return c.do(ctx, http.MethodDelete, fmt.Sprintf("/runs/%d", id))
}

func (c *Client) do(ctx context.Context, method, path string) error {
	resp, err := c.send(ctx, method, path, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func get[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return v, err
	}
	return decode[T](c, resp)
}

// post sends v as JSON, no body if it is nil.
func post[T any](ctx context.Context, c *Client, path string, v any) (out T, err error) {
	var body []byte
	if v != nil {
		if body, err = json.Marshal(v); err != nil {
			return out, gpuserver.Wrap(gpuserver.KindInternal, "encode what is sent to "+path, err)
		}
	}
	resp, err := c.send(ctx, http.MethodPost, path, body)
	if err != nil {
		return out, err
	}
	return decode[T](c, resp)
}

// maxAnswer bounds what is read of an answer: the longest list is far below.
const maxAnswer = 64 << 20

func decode[T any](c *Client, resp *http.Response) (v T, err error) {
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&v); err != nil {
		return v, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Public: "the server at " + c.where + " did not answer in our form; is it a gpuserver?", Err: err}
	}
	return v, nil
}

// send gives an answer that is a success; any other becomes its error.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+prefix+path, r)
	if err != nil {
		return nil, gpuserver.Wrap(gpuserver.KindInternal, "ask the server", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var op *net.OpError
		if errors.As(err, &op) {
			err = op
		}
		return nil, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Public: "no server answers at " + c.where + c.hint(err), Err: err}
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	return nil, c.refusal(resp)
}

// hint says what to do about a server that does not answer.
func (c *Client) hint(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return " for this user: only root may open the socket; become root, or give --server URL and a token"
	case c.base == socketBase:
		return "; is it started (systemctl status gpuserver)? Another one is named by --server"
	}
	return "; --server or GPUSERVER_SERVER named it"
}

// refusal makes an error of an answer that is not a success.
func (c *Client) refusal(resp *http.Response) error {
	defer resp.Body.Close()
	var p Problem
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(text, &p) != nil || p.Detail == "" {
		kind := kindOf(resp.StatusCode)
		if kind == gpuserver.KindInternal || kind == gpuserver.KindNotFound {
			kind = gpuserver.KindUnavailable // not our form: something in between, or not a gpuserver
		}
		return gpuserver.Errorf(kind, "%s answered %s; is it a gpuserver?", c.where, resp.Status)
	}
	detail := p.Detail
	for _, e := range p.Errors {
		detail += fmt.Sprintf("; %s: %s", e.Location, e.Message)
	}
	return gpuserver.Errorf(p.Kind, "%s", detail)
}
