package fake

import (
	"context"

	"gpuserver"
	"gpuserver/internal/pci"
)

// SetCard makes a card's state be read as r, until it is set again.
func (c *Cloud) SetCard(r pci.Reading) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readings == nil {
		c.readings = map[string]pci.Reading{}
	}
	c.readings[r.Address] = r
}

// Cards implements cloud.Driver: a card of a slot is well until SetCard says
// otherwise.
func (d *Driver) Cards(ctx context.Context, host string, addresses []string) ([]pci.Reading, error) {
	return at(ctx, d.cloud, "cards", host, func() ([]pci.Reading, error) { return d.cloud.cards(host, addresses) })
}

func (c *Cloud) cards(host string, addresses []string) (readings []pci.Reading, err error) {
	if !c.cfg.Capabilities.Cards {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s does not show its cards", c.cfg.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addresses {
		r, set := c.readings[a]
		if !set {
			r = c.healthy(host, a)
		}
		readings = append(readings, r)
	}
	return readings, nil
}

// healthy is a card that nothing was said of. The caller holds mu.
func (c *Cloud) healthy(host, address string) pci.Reading {
	for _, h := range c.hosts {
		for _, s := range h.total.Slots {
			if h.name == host && has(s, address) {
				return pci.Reading{Address: address, Present: true, VendorID: "10de", DeviceID: "1db4", Driver: "vfio-pci", Group: s.Group, Link: pci.Link{Width: 16, MaxWidth: 16}}
			}
		}
	}
	return pci.Reading{Address: address, Group: -1}
}
