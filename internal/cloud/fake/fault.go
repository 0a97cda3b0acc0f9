package fake

import (
	"cmp"
	"context"
	"path"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// Fault makes calls fail, stall or take longer at a point. Of several faults
// that match a call the first one acts.
type Fault struct {
	// At is the point: a call (create, get, list, delete, keep, console,
	// capacity) and either ".before" (nothing has happened) or ".after" (it has
	// happened, but the answer is not given).
	At string `json:"at"`
	// Name is a pattern of VM names, as in path.Match; "" is any.
	Name string `json:"name,omitempty"`
	// Times is how often it acts; 0 is every time.
	Times int `json:"times,omitempty"`
	// Delay is waited first; it ends early with the call's context.
	Delay time.Duration `json:"delay,omitempty"`
	// Stall waits until the call's context ends, or the faults are replaced.
	Stall bool `json:"stall,omitempty"`
	// Kind is the error's; "" is no error, the call goes on.
	Kind gpuserver.Kind `json:"kind,omitempty"`
	// Text is the error's sentence; "" names the fault.
	Text string `json:"text,omitempty"`
	// NoHost gives the error the cause cloud.ErrNoHost.
	NoHost bool `json:"no_host,omitempty"`
}

// SetFaults replaces all faults, and lets calls go on that stall at one.
func (c *Cloud) SetFaults(fs []Fault) { c.faults.set(fs) }

type faults struct {
	mu   sync.Mutex
	list []*armed
	gone chan struct{} // closed when the list is replaced
}

type armed struct {
	Fault
	left int
}

func (f *faults) set(list []Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone != nil {
		close(f.gone)
	}
	f.gone, f.list = make(chan struct{}), nil
	for _, one := range list {
		f.list = append(f.list, &armed{one, one.Times})
	}
}

// take gives the fault that acts at a point, and the channel that tells that
// the faults were replaced.
func (f *faults) take(point, name string) (Fault, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.list {
		if a.At != point || a.Times > 0 && a.left == 0 {
			continue
		}
		if ok, err := path.Match(cmp.Or(a.Name, "*"), name); err != nil || !ok {
			continue
		}
		a.left--
		return a.Fault, f.gone
	}
	return Fault{}, nil
}

// act carries out what the faults say of a point.
func (c *Cloud) act(ctx context.Context, point, name string) error {
	f, replaced := c.faults.take(point, name)
	if f.At == "" {
		return nil
	}
	if err := pause(ctx, f.Delay); err != nil {
		return cut(point, err)
	}
	if f.Stall {
		select {
		case <-replaced:
		case <-ctx.Done():
			return cut(point, ctx.Err())
		}
	}
	if f.Kind == "" {
		return nil
	}
	return &gpuserver.Error{Kind: f.Kind, Op: "fake: " + point, Public: cmp.Or(f.Text, "a fault was asked for at "+point), Err: noHost(f.NoHost)}
}

// at carries out one call between its two points. A call whose context ends
// before the effect has none; one whose context ends after it is answered with
// an error although it happened, as on a real network.
func at[T any](ctx context.Context, c *Cloud, call, name string, effect func() (T, error)) (T, error) {
	var zero T
	c.calls.add(call, name)
	if err := ctx.Err(); err != nil {
		return zero, cut(call, err)
	}
	if err := c.act(ctx, call+".before", name); err != nil {
		return zero, err
	}
	if err := pause(ctx, c.cfg.Delays[call]); err != nil {
		return zero, cut(call, err)
	}
	v, err := effect()
	if err != nil {
		return zero, err
	}
	if err := c.act(ctx, call+".after", name); err != nil {
		return zero, err
	}
	return v, nil
}

// noHost gives the cause of an error that has cloud.ErrNoHost as one, else nil.
func noHost(yes bool) error {
	if yes {
		return cloud.ErrNoHost
	}
	return nil
}

func cut(point string, err error) error {
	return gpuserver.Wrap(gpuserver.KindUnavailable, "fake: "+point, err)
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
