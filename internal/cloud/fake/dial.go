package fake

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/pci"
)

// remote is a driver of a cloud that Serve runs, in this process or another.
type remote struct {
	name   string
	owner  string
	client client
	caps   atomic.Pointer[cloud.Capabilities]
	events chan cloud.Event
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Dial gives a driver, named name, of the cloud that Serve runs at address
// ("http://HOST:PORT" or "unix:///PATH"); owner is its tag, "" for all that
// have one. A cloud that is away is no error: it is asked again until Close,
// and calls are KindUnavailable meanwhile.
func Dial(name, address, owner string) cloud.Driver {
	ctx, cancel := context.WithCancel(context.Background())
	d := &remote{
		name:   cmp.Or(name, "fake"),
		owner:  owner,
		client: newClient(address),
		events: make(chan cloud.Event, eventBuffer),
		cancel: cancel,
	}
	// Until the cloud says otherwise.
	d.caps.Store(&cloud.Capabilities{Keep: true, Cards: true, Console: true, Events: true, Accelerated: true})
	greeted := make(chan struct{})
	d.done.Go(func() { d.follow(ctx, sync.OnceFunc(func() { close(greeted) })) })
	select {
	case <-greeted: // so that no event after Dial is missed
	case <-time.After(dialPatience):
	}
	return d
}

const (
	dialPatience = 2 * time.Second
	redialPause  = 200 * time.Millisecond
)

func (d *remote) Name() string { return d.name }

func (d *remote) Capabilities() cloud.Capabilities { return *d.caps.Load() }

func (d *remote) Create(ctx context.Context, spec cloud.Spec) (vm cloud.VM, err error) {
	err = d.call(ctx, "POST", "/v1/vms", spec, &vm)
	return vm, err
}

func (d *remote) Get(ctx context.Context, name string) (vm cloud.VM, err error) {
	err = d.call(ctx, "GET", vmPath(name), nil, &vm)
	return vm, err
}

func (d *remote) List(ctx context.Context) (vms []cloud.VM, err error) {
	err = d.call(ctx, "GET", "/v1/vms", nil, &vms)
	return vms, err
}

func (d *remote) Delete(ctx context.Context, name string) error {
	return d.call(ctx, "DELETE", vmPath(name), nil, nil)
}

func (d *remote) Keep(ctx context.Context, name string) error {
	return d.call(ctx, "POST", vmPath(name)+"/keep", nil, nil)
}

func (d *remote) Console(ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
	q := url.Values{"from": {strconv.FormatInt(from, 10)}, "limit": {strconv.FormatInt(limit, 10)}}
	res, err := d.client.send(ctx, d.owner, "GET", vmPath(name)+"/console?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

func (d *remote) Capacity(ctx context.Context) (hosts []gpuserver.Host, err error) {
	err = d.call(ctx, "GET", "/v1/capacity", nil, &hosts)
	for i := range hosts {
		hosts[i].Cloud = d.name
	}
	return hosts, err
}

func (d *remote) Cards(ctx context.Context, host string, addresses []string) (readings []pci.Reading, err error) {
	err = d.call(ctx, "POST", "/v1/hosts/"+url.PathEscape(host)+"/cards", addresses, &readings)
	return readings, err
}

func (d *remote) Events() <-chan cloud.Event {
	if !d.Capabilities().Events {
		return nil
	}
	return d.events
}

func (d *remote) Close() error {
	d.cancel()
	d.done.Wait()
	d.client.http.CloseIdleConnections()
	return nil
}

func (d *remote) call(ctx context.Context, method, path string, in, out any) error {
	return d.client.call(ctx, d.owner, method, path, in, out)
}

// follow reads the stream of events, again whenever it breaks, until ctx ends.
func (d *remote) follow(ctx context.Context, greet func()) {
	defer close(d.events)
	for {
		if res, err := d.client.send(ctx, d.owner, "GET", "/v1/events", nil); err == nil {
			d.listen(res.Body, greet)
			res.Body.Close()
		}
		greet() // away is an answer too
		if pause(ctx, redialPause) != nil {
			return
		}
	}
}

// listen takes notices until the stream ends.
func (d *remote) listen(body io.Reader, greet func()) {
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		var n notice
		if json.Unmarshal(lines.Bytes(), &n) != nil {
			return // not our cloud, or cut within a line
		}
		if n.Hello != nil {
			d.caps.Store(&n.Hello.Capabilities)
			greet()
		}
		if n.Event != nil {
			select {
			case d.events <- *n.Event:
			default: // events are hints
			}
		}
	}
}

func vmPath(name string) string { return "/v1/vms/" + url.PathEscape(name) }

// client speaks to a cloud that Serve runs.
type client struct {
	base string
	http *http.Client
}

func newClient(address string) client {
	t := &http.Transport{MaxIdleConnsPerHost: 256, IdleConnTimeout: 30 * time.Second}
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		address = "http://fake"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	return client{strings.TrimRight(address, "/"), &http.Client{Transport: t}}
}

// send makes a request and turns a refusal into the error that it carries.
func (c client) send(ctx context.Context, owner, method, path string, in any) (*http.Response, error) {
	op := "fake: " + method + " " + path
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, gpuserver.Wrap(gpuserver.KindInvalid, op, err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, gpuserver.Wrap(gpuserver.KindInvalid, op, err)
	}
	req.Header.Set(ownerHeader, owner)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, gpuserver.Wrap(gpuserver.KindUnavailable, op, err)
	}
	if res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	var e wireError
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&e); err != nil || e.Kind == "" {
		return nil, gpuserver.Wrap(gpuserver.KindUnavailable, op, errors.Join(errors.New(res.Status), err))
	}
	return nil, &gpuserver.Error{Kind: e.Kind, Op: cmp.Or(e.Op, op), Public: e.Text, Err: noHost(e.NoHost)}
}

// call makes a request and decodes its answer into out, unless that is nil.
func (c client) call(ctx context.Context, owner, method, path string, in, out any) error {
	res, err := c.send(ctx, owner, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out != nil {
		err = json.NewDecoder(res.Body).Decode(out)
	}
	_, drained := io.Copy(io.Discard, res.Body) // so that the connection is used again
	return gpuserver.Wrap(gpuserver.KindUnavailable, "fake: "+method+" "+path, errors.Join(err, drained))
}
