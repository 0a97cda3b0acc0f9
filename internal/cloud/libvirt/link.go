package libvirt

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver"
)

// callLimit bounds one RPC. libvirtd answers look-ups at once; a start or an end
// of a domain waits for QEMU. One that takes longer hangs, and its connection is
// dropped, since a call cannot be withdrawn.
const callLimit = 2 * time.Minute

const connectLimit = 15 * time.Second

// link is a connection to libvirtd that is made when needed, and made anew (a
// new object: one cannot be connected twice) when it broke.
type link struct {
	path   string
	mu     sync.Mutex // guards what follows; held while connecting
	now    *session
	closed bool
	shut   chan struct{} // closed by close
}

// session is one connection.
type session struct {
	*lv.Libvirt
	conn net.Conn
}

func newLink(path string) *link { return &link{path: path, shut: make(chan struct{})} }

// drop ends the session: every pending call on it returns with an error.
func (s *session) drop() { s.conn.Close() }

// Dial implements socket.Dialer: the connection is ours, so that we can end it.
func (s *session) Dial() (net.Conn, error) { return s.conn, nil }

// get gives the present connection or makes one.
func (k *link) get(ctx context.Context) (*session, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errClosed
	}
	if k.now != nil && k.now.IsConnected() {
		return k.now, nil
	}
	if k.now != nil {
		k.now.drop()
		k.now = nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", k.path)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn}
	s.Libvirt = lv.NewWithDialer(s)
	over := make(chan struct{})
	go func() { // ends with this function
		select {
		case <-ctx.Done():
			conn.Close()
		case <-k.shut:
			conn.Close()
		case <-over:
		}
	}()
	err = s.ConnectToURI(lv.QEMUSystem)
	if err == nil {
		// The library notes the end of a connection without a lock; an answer
		// after its last word orders the two, if it was ended at once.
		_, err = s.ConnectGetLibVersion()
	}
	close(over)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	k.now = s
	return s, nil
}

// lost forgets a session on which a call failed below libvirt itself.
func (k *link) lost(s *session) {
	s.drop()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now == s {
		k.now = nil
	}
}

func (k *link) close() {
	select {
	case <-k.shut:
		return
	default:
	}
	close(k.shut)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.now != nil {
		k.now.drop()
	}
}

var errClosed = errors.New("the driver is closed")

// ask makes a call and waits for its answer, for ctx's end, or for callLimit. A
// call whose caller left goes on; Close waits for it. op names the call.
func ask[T any](ctx context.Context, d *Driver, op string, call func(*lv.Libvirt) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	if err := ctx.Err(); err != nil {
		return none, unavailable(op, err)
	}
	answers := make(chan answer, 1)
	started := d.start(func() {
		s, err := d.calls.get(ctx)
		if err != nil {
			answers <- answer{err: away(d.cfg, op, err)}
			return
		}
		hung := time.AfterFunc(callLimit, s.drop)
		defer hung.Stop()
		v, err := call(s.Libvirt)
		if err != nil {
			if _, told := errors.AsType[lv.Error](err); told {
				err = refusal(op, err)
			} else {
				d.calls.lost(s)
				err = away(d.cfg, op, err)
			}
		}
		answers <- answer{v, err}
	})
	if !started {
		return none, unavailable(op, errClosed)
	}
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		return none, unavailable(op, ctx.Err())
	}
}

// do is ask for calls without an answer.
func do(ctx context.Context, d *Driver, op string, call func(*lv.Libvirt) error) error {
	_, err := ask(ctx, d, op, func(l *lv.Libvirt) (struct{}, error) { return struct{}{}, call(l) })
	return err
}

func unavailable(op string, err error) error {
	return &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "libvirt: " + op, Err: err}
}

// away is the error of a call that libvirtd did not answer.
func away(c Config, op string, err error) error {
	return &gpuserver.Error{
		Kind: gpuserver.KindUnavailable, Op: "libvirt: " + op, Err: err,
		Public: "libvirtd of cloud " + c.Name + " cannot be reached at " + c.Socket + "; start it (systemctl start libvirtd, or scripts/libvirt-up)",
	}
}

// refusal is the error of a call that libvirtd answered with an error.
func refusal(op string, err error) error {
	kind := gpuserver.KindUnavailable
	switch code(err) {
	case lv.ErrNoDomain, lv.ErrNoNetwork, lv.ErrNoNwfilter:
		kind = gpuserver.KindNotFound
	case lv.ErrDomExist, lv.ErrNetworkExist:
		kind = gpuserver.KindConflict
	case lv.ErrXMLError, lv.ErrXMLDetail, lv.ErrConfigUnsupported, lv.ErrXMLInvalidSchema:
		kind = gpuserver.KindInvalid
	case lv.ErrAuthFailed, lv.ErrAccessDenied:
		kind = gpuserver.KindRefused
	}
	return &gpuserver.Error{Kind: kind, Op: "libvirt: " + op, Err: err}
}

// code is libvirt's number of an error, 0 if it is not one of libvirt's.
func code(err error) lv.ErrorNumber {
	if e, ok := errors.AsType[lv.Error](err); ok {
		return lv.ErrorNumber(e.Code)
	}
	return 0
}
