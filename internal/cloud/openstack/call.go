package openstack

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
)

// wire is the present login's HTTP connections.
type wire struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error) // nil: the usual way
	mu   sync.Mutex
	now  *http.Transport
}

// open gives a transport for a new login; that of the one before ends once it is
// idle.
func (w *wire) open(conf *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = conf
	if w.dial != nil {
		t.DialContext = w.dial
	}
	t.MaxIdleConnsPerHost, t.IdleConnTimeout = 32, 30*time.Second
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now != nil {
		w.now.CloseIdleConnections()
	}
	w.now = t
	return t
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now != nil {
		w.now.CloseIdleConnections()
	}
}

// ask makes one call to the cloud: within the time that a call may take, and
// again after the pause that a 429 names. What is the driver's word for it stands
// in errors, such as "list servers".
func (d *Driver) ask(ctx context.Context, what string, call func(context.Context, *session) error) error {
	ctx, cancel := d.bind(ctx)
	defer cancel()
	for try := 0; ; try++ {
		s, err := d.session(ctx)
		if err != nil {
			return err
		}
		err = d.within(ctx, func(ctx context.Context) error { return call(ctx, s) })
		if err == nil {
			return nil
		}
		if refused(err) {
			d.login.drop(s)
		}
		pause, limited := limit(err)
		if !limited || try == maxLimited || pause > d.cfg.times.retryAfter || !sleep(ctx, pause) {
			return d.failed(what, err)
		}
	}
}

// whole gives a context for a call whose answer is worth more than a quick end: it
// ends with the driver and after the time that a call may take, but not with ctx.
func (d *Driver) whole(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.CallTimeout)
	end := context.AfterFunc(d.running, cancel)
	return ctx, func() { end(); cancel() }
}

// maxLimited is how often a call is repeated that the cloud answers with 429.
const maxLimited = 3

// within makes a call within the time that one may take.
func (d *Driver) within(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.CallTimeout)
	defer cancel()
	return call(ctx)
}

// refused reports whether not even a new token was accepted.
func refused(err error) bool {
	if e, ok := errors.AsType[*gophercloud.ErrUnableToReauthenticate](err); ok {
		return status(e.ErrReauth) != 0
	}
	return status(err) == http.StatusUnauthorized
}

// status gives the HTTP status of an error, 0 if there was no answer.
func status(err error) int {
	e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
	if !ok {
		return 0
	}
	return e.Actual
}

// limit reports whether an answer says to come back later, and when.
// Source: RFC 6585, section 4; Nova's rate limits answered 413 before 2014, and
// gateways still do.
func limit(err error) (pause time.Duration, limited bool) {
	e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
	if !ok || e.Actual != http.StatusTooManyRequests && e.Actual != http.StatusRequestEntityTooLarge {
		return 0, false
	}
	after := e.ResponseHeader.Get("Retry-After")
	if n, err := strconv.Atoi(after); err == nil && n >= 0 {
		pause = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(after); err == nil {
		pause = max(time.Until(at), 0)
	} else {
		pause = time.Second
	}
	// Cinder answers 413 with Retry-After: 0 where a quota is used up.
	return pause, e.Actual == http.StatusTooManyRequests || after != "" && pause > 0
}

// sleep waits; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
