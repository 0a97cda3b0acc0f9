package openstack

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"gpuserver"
)

// Nova gives the end of a console, at most 100 KiB, and does not say how much came
// before. What was seen of it last tells how far it moved on. After a restart of
// the server offsets count from the oldest byte that Nova still has.
// Source: nova/virt/libvirt/driver.py, MAX_CONSOLE_BYTES.

// consoles remember, by server, where the text that Nova gave last began.
type consoles struct {
	mu   sync.Mutex
	last map[string]spool
}

// spool is the last text of a console.
type spool struct {
	base int64  // offset of its first byte
	size int64  // its length
	head string // its first bytes
	tail string // its last bytes
	at   time.Time
}

// The pieces by which a text is known again, in bytes.
const (
	headBytes = 1 << 10
	tailBytes = 4 << 10
	shortest  = 64 // of the tail, where the text moved on nearly as far as that
)

func newConsoles() *consoles { return &consoles{last: map[string]spool{}} }

// maxSpools bounds how many consoles are remembered.
const maxSpools = 4096

// place says at which offset a text begins, from what was seen before.
func (c *consoles) place(id, text string) (base int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, seen := c.last[id]; seen {
		base = old.follow(text)
	} else if len(c.last) >= maxSpools {
		c.dropOldest()
	}
	c.last[id] = spool{
		base: base, size: int64(len(text)), head: text[:min(len(text), headBytes)], tail: text[max(0, len(text)-tailBytes):], at: time.Now(),
	}
	return base
}

// follow gives the offset at which the text after s begins.
func (s spool) follow(text string) int64 {
	if int64(len(text)) >= s.size && strings.HasPrefix(text, s.head) {
		return s.base // grown, or the same
	}
	for tail := s.tail; len(tail) >= shortest; tail = tail[len(tail)/2:] {
		if i := strings.LastIndex(text, tail); i >= 0 {
			return max(s.base+s.size-int64(i+len(tail)), s.base)
		}
	}
	return s.base + s.size // moved on by more than Nova gives: offsets never go back
}

func (c *consoles) dropOldest() {
	oldest := ""
	for id, s := range c.last {
		if oldest == "" || s.at.Before(c.last[oldest].at) {
			oldest = id
		}
	}
	delete(c.last, oldest)
}

func (c *consoles) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.last, id)
}

// Console implements cloud.Driver.
func (d *Driver) Console(ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
	found := d.watch.named(name, d.cfg.Owner)
	if len(found) == 0 {
		var err error
		if found, err = d.find(ctx, name); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no VM %q, and Nova keeps no console of a server that is gone", d.cfg.Name, name)
	}
	id := found[0].ID
	var text string
	err := d.ask(ctx, "read the console of "+name, func(ctx context.Context, s *session) (err error) {
		text, err = servers.ShowConsoleOutput(ctx, s.compute, id, servers.ShowConsoleOutputOpts{}).Extract()
		return err
	})
	switch gpuserver.KindOf(err) {
	case "":
	case gpuserver.KindConflict: // not built yet
		return io.NopCloser(strings.NewReader("")), nil
	case gpuserver.KindNotFound: // the server, or its console alone
		if err := d.look(ctx, id); err != nil {
			return nil, err
		}
		return io.NopCloser(strings.NewReader("")), nil
	default:
		return nil, err
	}
	base := d.spools.place(id, text)
	start := min(max(from-base, 0), int64(len(text)))
	rest := text[start:]
	return io.NopCloser(strings.NewReader(rest[:min(max(limit, 0), int64(len(rest)))])), nil
}
