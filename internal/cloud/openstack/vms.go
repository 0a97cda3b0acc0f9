package openstack

import (
	"context"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/tags"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// Get implements cloud.Driver. Nova is asked, not the list.
func (d *Driver) Get(ctx context.Context, name string) (cloud.VM, error) {
	for _, s := range d.watch.named(name, d.cfg.Owner) {
		err := d.look(ctx, s.ID)
		if gpuserver.KindOf(err) == gpuserver.KindNotFound {
			continue
		}
		if err != nil {
			return cloud.VM{}, err
		}
		if s, ok := d.watch.get(s.ID); ok {
			d.nameVolumes(ctx, s)
			return s.vm(), nil
		}
	}
	found, err := d.find(ctx, name)
	if err != nil {
		return cloud.VM{}, err
	}
	if len(found) > 0 {
		if known := d.watch.named(name, d.cfg.Owner); len(known) > 0 {
			d.nameVolumes(ctx, known[0])
			return known[0].vm(), nil
		}
	}
	left, err := d.remains(ctx, name)
	switch {
	case err != nil:
		return cloud.VM{}, err
	case len(left) > 0:
		return left[0].vm(d.cfg.Owner), nil
	case d.watch.blind():
		return cloud.VM{}, gpuserver.Errorf(gpuserver.KindUnavailable, "cloud %s: a cell of Nova is down, and whether VM %s is in it cannot be seen", d.cfg.Name, name)
	}
	return cloud.VM{}, gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no VM %q", d.cfg.Name, name)
}

// List implements cloud.Driver. A VM of which two servers were made is given once.
func (d *Driver) List(ctx context.Context) ([]cloud.VM, error) {
	if err := d.refresh(ctx); err != nil {
		return nil, err
	}
	left, err := d.allRemains(ctx)
	if err != nil {
		return nil, err
	}
	var vms []cloud.VM
	seen := map[string]bool{}
	for _, s := range d.watch.all() {
		if s.owner() != d.cfg.Owner || seen[s.Name] {
			continue
		}
		seen[s.Name] = true
		if first := d.watch.named(s.Name, d.cfg.Owner); len(first) > 0 && first[0].owner() == d.cfg.Owner {
			s = first[0]
		}
		vms = append(vms, s.vm())
	}
	for _, p := range left {
		if !seen[p.name] {
			seen[p.name] = true
			vms = append(vms, p.vm(d.cfg.Owner))
		}
	}
	return vms, nil
}

// own begins an operation that ends a VM, and gives the ids of its servers: none if
// only parts of it are there. KindRefused: it is somebody else's.
func (d *Driver) own(ctx context.Context, name string) (end func(), ours []server, err error) {
	end, err = d.names.Wait(ctx, name)
	if err != nil {
		return nil, nil, d.failed("wait for "+name, err)
	}
	found := d.watch.named(name, d.cfg.Owner)
	if len(found) == 0 {
		found, err = d.find(ctx, name)
	}
	for _, s := range found {
		if s.owner() == d.cfg.Owner {
			ours = append(ours, s)
		}
	}
	if err == nil && len(found) > 0 && len(ours) == 0 {
		err = gpuserver.Errorf(gpuserver.KindRefused, "cloud %s: the server named %s is not ours: it does not carry %s=%s", d.cfg.Name, name, ownerKey, d.cfg.Owner)
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	return end, ours, nil
}

// Delete implements cloud.Driver.
func (d *Driver) Delete(ctx context.Context, name string) error {
	ctx, cancel := d.bind(ctx)
	defer cancel()
	end, ours, err := d.own(ctx, name)
	if err != nil {
		return err
	}
	defer end()
	var ids []string
	for _, s := range ours {
		ids = append(ids, s.ID)
	}
	if err := d.destroy(ctx, name, ids); err != nil {
		return err
	}
	if len(ours) == 0 && d.watch.blind() {
		return gpuserver.Errorf(gpuserver.KindUnavailable, "cloud %s: a cell of Nova is down, and whether VM %s is in it cannot be seen", d.cfg.Name, name)
	}
	return d.clear(ctx, name, ours)
}

// destroy deletes servers and waits until they are gone. One that is kept for a
// while after its deletion (reclaim_instance_interval) still has its devices, so
// it is deleted for good.
func (d *Driver) destroy(ctx context.Context, name string, ids []string) error {
	for _, id := range ids {
		if err := d.sendDelete(ctx, id); err != nil {
			return err
		}
	}
	wait, cancel := context.WithTimeout(ctx, d.cfg.DeleteTimeout)
	defer cancel()
	forced := map[string]bool{}
	for {
		var soft, left string
		err := d.watch.await(wait, func() bool {
			soft, left = "", ""
			for _, id := range ids {
				s, there := d.watch.get(id)
				if there {
					left = id
				}
				if there && s.Status == stateSoftGone && !forced[id] {
					soft = id
				}
			}
			return left == "" || soft != ""
		})
		switch {
		case err == nil && soft == "":
			return nil
		case err == nil:
			forced[soft] = true
			if err := d.forceDelete(ctx, soft); err != nil {
				return err
			}
		case ctx.Err() != nil:
			return d.failed("delete "+name, ctx.Err())
		default:
			// The lists may have missed it; asking is the proof.
			if e := d.look(ctx, left); gpuserver.KindOf(e) == gpuserver.KindNotFound {
				wait, cancel = context.WithTimeout(ctx, d.cfg.DeleteTimeout)
				defer cancel()
				continue
			}
			s, _ := d.watch.get(left)
			return gpuserver.Errorf(gpuserver.KindUnavailable, "cloud %s: server %s of VM %s is not gone after %s (%s, task %q); if that stays so, its compute service is down or an administrator has to reset its state",
				d.cfg.Name, left, name, d.cfg.DeleteTimeout, s.Status, s.Task)
		}
	}
}

func (d *Driver) forceDelete(ctx context.Context, id string) error {
	err := d.ask(ctx, "delete a server for good", func(ctx context.Context, s *session) error {
		return servers.ForceDelete(ctx, s.compute, id).ExtractErr()
	})
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		d.lost(id)
		return nil
	}
	return err
}

// Keep implements cloud.Driver: it is noted first that the server is kept, then it
// is stopped. A stopped server keeps its devices.
func (d *Driver) Keep(ctx context.Context, name string) error {
	ctx, cancel := d.bind(ctx)
	defer cancel()
	end, ours, err := d.own(ctx, name)
	if err != nil {
		return err
	}
	defer end()
	if len(ours) == 0 {
		return gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no VM %q to keep", d.cfg.Name, name)
	}
	s := ours[0]
	if err := d.look(ctx, s.ID); err != nil {
		return err
	}
	s, _ = d.watch.get(s.ID)
	if !s.kept() {
		if err := d.mark(ctx, s); err != nil {
			return err
		}
	}
	if s.state() == cloud.StateStopped {
		return nil
	}
	err = d.ask(ctx, "stop "+name, func(ctx context.Context, c *session) error {
		return servers.Stop(ctx, c.compute, s.ID).ExtractErr()
	})
	if err == nil || gpuserver.KindOf(err) != gpuserver.KindConflict {
		return err
	}
	// It stopped meanwhile, or is at something that has to end first.
	if e := d.look(ctx, s.ID); e != nil {
		return e
	}
	if s, ok := d.watch.get(s.ID); ok && s.state() == cloud.StateStopped {
		return nil
	}
	return &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "openstack: keep " + name, Public: gpuserver.PublicText(err), Err: err}
}

// mark writes to a server that it is kept.
func (d *Driver) mark(ctx context.Context, s server) error {
	err := d.ask(ctx, "mark "+s.Name, func(ctx context.Context, c *session) error {
		return servers.UpdateMetadata(ctx, c.compute, s.ID, servers.MetadataOpts{keptKey: "kept"}).Err
	})
	if err != nil {
		return err
	}
	asked := time.Now()
	err = d.ask(ctx, "tag "+s.Name, func(ctx context.Context, c *session) error {
		if c.nova < tagsAtPost {
			return nil
		}
		return tags.Add(ctx, c.compute, s.ID, keptKey).Err
	})
	if err != nil {
		d.log.Warn("a kept VM cannot be tagged; its metadata says so", "vm", s.Name, "err", err)
	}
	marked := map[string]string{keptKey: "kept"}
	for k, v := range s.Metadata {
		marked[k] = v
	}
	s.Metadata = marked
	d.watch.put(s, asked)
	return nil
}
