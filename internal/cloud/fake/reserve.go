package fake

import (
	"context"
	"maps"
	"slices"
	"strings"

	"gpuserver"
	"gpuserver/internal/cloud"
)

var _ cloud.Reserver = (*Driver)(nil)

// Reserved gives the addresses of the cards that are held back.
func (c *Cloud) Reserved() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.reserved))
}

// Reserve implements cloud.Reserver.
func (d *Driver) Reserve(ctx context.Context, name string) (string, error) {
	return at(ctx, d.cloud, "reserve", name, func() (string, error) { return d.cloud.reserve(name) })
}

// Remember implements cloud.Reserver: it is noted, for a test to see.
func (d *Driver) Remember(held string) {
	d.cloud.mu.Lock()
	defer d.cloud.mu.Unlock()
	d.cloud.remembered = append(d.cloud.remembered, held)
}

// Remembered gives what drivers were told that they held back before.
func (c *Cloud) Remembered() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.remembered)
}

// Release implements cloud.Reserver.
func (d *Driver) Release(ctx context.Context, held string) error {
	_, err := at(ctx, d.cloud, "release", held, func() (struct{}, error) { d.cloud.release(held); return struct{}{}, nil })
	return err
}

func (c *Cloud) reserve(name string) (string, error) {
	if !c.cfg.Reserves {
		return "", gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s holds no cards back", c.cfg.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.find(name)
	if err != nil {
		return "", err
	}
	if c.reserved == nil {
		c.reserved = map[string]bool{}
	}
	for _, a := range m.spec.Devices {
		c.reserved[a] = true
	}
	return strings.Join(m.spec.Devices, ","), nil
}

func (c *Cloud) release(held string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for a := range strings.SplitSeq(held, ",") {
		delete(c.reserved, a)
	}
}
