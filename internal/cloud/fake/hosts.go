package fake

import (
	"slices"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// host is a host with what is used of it; guarded by Cloud.mu.
type host struct {
	name  string
	total gpuserver.Host
	used  use
}

type use struct {
	vcpus, vms       int
	memoryMiB, diskG int64
}

func (u *use) add(f gpuserver.Flavor) {
	u.vms, u.vcpus = u.vms+1, u.vcpus+f.VCPUs
	u.memoryMiB, u.diskG = u.memoryMiB+f.MemoryMiB, u.diskG+f.DiskGiB
}

func (u *use) sub(f gpuserver.Flavor) {
	u.vms, u.vcpus = u.vms-1, u.vcpus-f.VCPUs
	u.memoryMiB, u.diskG = u.memoryMiB-f.MemoryMiB, u.diskG-f.DiskGiB
}

// SetHosts changes the hosts' room, also to less than is used. Hosts that are
// not named keep their VMs and have no more room.
func (c *Cloud) SetHosts(hosts []gpuserver.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := map[string]*host{}
	for _, h := range c.hosts {
		h.total = gpuserver.Host{Cloud: c.cfg.Name, Name: h.name}
		known[h.name] = h
	}
	for _, total := range hosts {
		h := known[total.Name]
		if h == nil {
			h = &host{name: total.Name}
			known[h.name] = h
			c.hosts = append(c.hosts, h)
		}
		total.Cloud = c.cfg.Name
		h.total = total
	}
}

// capacity gives each host's room: what was configured, but never less than
// what VMs use.
func (c *Cloud) capacity() []gpuserver.Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	hosts := make([]gpuserver.Host, len(c.hosts))
	for i, h := range c.hosts {
		t := h.total
		t.VCPUs = max(t.VCPUs, h.used.vcpus)
		t.MemoryMiB = max(t.MemoryMiB, h.used.memoryMiB)
		t.DiskGiB = max(t.DiskGiB, h.used.diskG)
		if t.MaxVMs > 0 {
			t.MaxVMs = max(t.MaxVMs, h.used.vms)
		}
		if !c.cfg.Capabilities.Cards {
			t.Slots = counted(t.Slots)
		}
		hosts[i] = t
	}
	return hosts
}

// counted gives a slot without an address for each card, as a cloud does that
// chooses the cards itself.
func counted(slots []gpuserver.Slot) (all []gpuserver.Slot) {
	for _, s := range slots {
		for _, card := range s.Cards {
			all = append(all, gpuserver.Slot{Group: len(all), NUMANode: -1, Cards: []gpuserver.Card{{Model: card.Model}}})
		}
	}
	return all
}

// chooseCards gives the cards of a VM where the cloud chooses them: those with
// the lowest addresses that no other VM has, whatever their state. The caller
// holds mu.
func (c *Cloud) chooseCards(h *host, spec cloud.Spec) (chosen []string, err error) {
	var free []string
	for _, s := range h.total.Slots {
		for _, card := range s.Cards {
			if card.Model == spec.Flavor.GPUs.Model && !c.reserved[card.Address] && !c.inUse(h, card.Address) {
				free = append(free, card.Address)
			}
		}
	}
	slices.Sort(free)
	if n := spec.Flavor.GPUs.Count; len(free) >= n {
		return free[:n], nil
	}
	e := gpuserver.Errorf(gpuserver.KindCapacity, "host %s has %d free cards of model %s; VM %s needs %d", h.name, len(free), spec.Flavor.GPUs.Model, spec.Name, spec.Flavor.GPUs.Count)
	e.Err = cloud.ErrNoHost
	return nil, e
}

func (c *Cloud) inUse(h *host, address string) bool {
	for _, m := range c.machines {
		if m.host == h && slices.Contains(m.spec.Devices, address) {
			return true
		}
	}
	return false
}

// hostFor gives the host that the spec names, or the first one with room if it
// names none. The caller holds mu.
func (c *Cloud) hostFor(spec cloud.Spec) (*host, error) {
	named := spec.Host == ""
	for _, h := range c.hosts {
		if spec.Host != "" && spec.Host != h.name {
			continue
		}
		if named = true; h.fits(spec.Flavor) {
			return h, nil
		}
	}
	if !named {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s has no host named %q", c.cfg.Name, spec.Host)
	}
	return nil, gpuserver.Errorf(gpuserver.KindCapacity, "cloud %s has no room for VM %s of flavor %s", c.cfg.Name, spec.Name, spec.Flavor.Name)
}

func (h *host) fits(f gpuserver.Flavor) bool {
	return h.used.vcpus+f.VCPUs <= h.total.VCPUs &&
		h.used.memoryMiB+f.MemoryMiB <= h.total.MemoryMiB &&
		h.used.diskG+f.DiskGiB <= h.total.DiskGiB &&
		(h.total.MaxVMs == 0 || h.used.vms < h.total.MaxVMs)
}

// devicesFree refuses devices that the host has not, and those whose group
// another VM has, as VFIO does. The caller holds mu.
func (c *Cloud) devicesFree(h *host, spec cloud.Spec) error {
	for _, d := range spec.Devices {
		i := slices.IndexFunc(h.total.Slots, func(s gpuserver.Slot) bool { return has(s, d) })
		if i < 0 {
			return gpuserver.Errorf(gpuserver.KindCapacity, "host %s has no device %s", h.name, d)
		}
		for name, m := range c.machines {
			if m.host == h && slices.ContainsFunc(m.spec.Devices, func(o string) bool { return has(h.total.Slots[i], o) }) {
				return gpuserver.Errorf(gpuserver.KindCapacity, "device %s cannot be given to VM %s: group %d is held by VM %s", d, spec.Name, h.total.Slots[i].Group, name)
			}
		}
	}
	return nil
}

// has reports whether a slot has a card at an address.
func has(s gpuserver.Slot, address string) bool {
	return slices.ContainsFunc(s.Cards, func(c gpuserver.Card) bool { return c.Address == address })
}
