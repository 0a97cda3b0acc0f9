package openstack

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// part is a port or volume that belongs to a VM.
type part struct {
	kind    string // "port" or "volume"
	id      string
	name    string // of the VM
	created time.Time
	gib     int64 // of a volume
}

// vm describes a VM of which this is what is left.
func (p part) vm(owner string) cloud.VM {
	return cloud.VM{Name: p.name, ID: p.id, Owner: owner, State: cloud.StateRemains, CreatedAt: p.created}
}

// parts are our ports and volumes, from lists that all callers share. Where the
// configuration leaves both to Nova nothing is asked.
type parts struct {
	turns
	mu    sync.Mutex
	there []part
}

func newParts() *parts { return &parts{turns: newTurns()} }

// volumesGiB is the size of all our volumes, as of the last list.
func (p *parts) volumesGiB() (n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.there {
		n += v.gib
	}
	return n
}

// partMark is the description of ports that are ours; volumes have metadata.
func (d *Driver) partMark() string { return ownerKey + "=" + d.cfg.Owner }

// allRemains lists what is left of VMs whose server is gone.
func (d *Driver) allRemains(ctx context.Context) (left []part, err error) {
	if !d.cfg.Ports && !d.cfg.BootFromVolume {
		return nil, nil
	}
	err = d.parts.do(ctx, func(ctx context.Context) error {
		ports, err := d.listPorts(ctx)
		if err != nil {
			return err
		}
		volumes, err := d.listVolumes(ctx)
		if err != nil {
			return err
		}
		d.parts.mu.Lock()
		defer d.parts.mu.Unlock()
		d.parts.there = append(ports, volumes...)
		return nil
	})
	if err != nil {
		return nil, d.failed("list ports and volumes", err)
	}
	d.parts.mu.Lock()
	defer d.parts.mu.Unlock()
	for _, p := range d.parts.there {
		if len(d.watch.named(p.name, d.cfg.Owner)) == 0 {
			left = append(left, p)
		}
	}
	return left, nil
}

// remains gives what is left of one VM.
func (d *Driver) remains(ctx context.Context, name string) (left []part, err error) {
	all, err := d.allRemains(ctx)
	for _, p := range all {
		if p.name == name {
			left = append(left, p)
		}
	}
	return left, err
}

func (d *Driver) listPorts(ctx context.Context) (out []part, err error) {
	if !d.cfg.Ports {
		return nil, nil
	}
	var answer struct {
		Ports []struct {
			ID          string    `json:"id"`
			Name        string    `json:"name"`
			Description string    `json:"description"`
			Created     time.Time `json:"created_at"`
		} `json:"ports"`
	}
	err = d.ask(ctx, "list ports", func(ctx context.Context, s *session) error {
		query := url.Values{"description": {d.partMark()}, "project_id": {s.project}}
		_, err := s.network.Get(ctx, s.network.ServiceURL("ports")+"?"+query.Encode(), &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
		return err
	})
	for _, p := range answer.Ports {
		if p.Description == d.partMark() {
			out = append(out, part{kind: "port", id: p.ID, name: p.Name, created: p.Created})
		}
	}
	return out, err
}

func (d *Driver) listVolumes(ctx context.Context) (out []part, err error) {
	if !d.cfg.BootFromVolume {
		return nil, nil
	}
	var answer struct {
		Volumes []struct {
			ID       string            `json:"id"`
			Name     string            `json:"name"`
			Size     int64             `json:"size"` // GiB
			Metadata map[string]string `json:"metadata"`
		} `json:"volumes"`
	}
	err = d.ask(ctx, "list volumes", func(ctx context.Context, s *session) error {
		query := url.Values{"metadata": {"{'" + ownerKey + "': '" + d.cfg.Owner + "'}"}}
		_, err := s.volume.Get(ctx, s.volume.ServiceURL("volumes", "detail")+"?"+query.Encode(), &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
		return err
	})
	for _, v := range answer.Volumes {
		if v.Metadata[ownerKey] == d.cfg.Owner {
			out = append(out, part{kind: "volume", id: v.ID, name: v.Name, gib: v.Size})
		}
	}
	return out, err
}

// makePorts makes a VM's ports, where they are ours to make, and puts them into
// the request.
func (d *Driver) makePorts(ctx context.Context, spec cloud.Spec, o *options) (ids []string, err error) {
	if !d.cfg.Ports {
		return nil, nil
	}
	port := map[string]any{"name": spec.Name, "description": d.partMark()}
	if len(d.cfg.SecurityGroups) > 0 {
		var groups []string
		for _, g := range d.cfg.SecurityGroups {
			id, _, err := d.resolve(ctx, aGroup, g)
			if err != nil {
				return nil, err
			}
			groups = append(groups, id)
		}
		port["security_groups"] = groups
	}
	var nets []servers.Network
	for _, n := range o.nets {
		port["network_id"] = n
		var made struct {
			Port named `json:"port"`
		}
		err := d.ask(ctx, "make a port for "+spec.Name, func(ctx context.Context, s *session) error {
			_, err := s.network.Post(ctx, s.network.ServiceURL("ports"), map[string]any{"port": port}, &made, &gophercloud.RequestOpts{OkCodes: []int{http.StatusCreated}})
			return err
		})
		if err != nil {
			return ids, err
		}
		ids = append(ids, made.Port.ID)
		nets = append(nets, servers.Network{Port: made.Port.ID})
	}
	// Groups belong to the ports now; Nova ignores those of a server whose ports are given.
	o.Networks, o.SecurityGroups = nets, nil
	o.Metadata[portsKey] = strings.Join(ids, ",")
	return ids, nil
}

// removePorts deletes the ports of a VM that did not come to be.
func (d *Driver) removePorts(ids []string) {
	ctx, cancel := context.WithTimeout(d.running, d.cfg.CallTimeout)
	defer cancel()
	for _, id := range ids {
		if err := d.removePart(ctx, part{kind: "port", id: id}); err != nil {
			d.log.Warn("a port cannot be deleted; it is found again by its description", "port", id, "err", err)
		}
	}
}

// nameVolumes marks the volumes that Nova made for a server, so that one which Nova
// leaves behind is found. It is done once for a server, by whoever sees it run first:
// the create that waited for it or, if that was left, the next who asks.
func (d *Driver) nameVolumes(ctx context.Context, s server) {
	if !d.cfg.BootFromVolume || s.owner() != d.cfg.Owner || s.state() != cloud.StateRunning {
		return
	}
	if _, done := d.volumesNamed.LoadOrStore(s.ID, true); done {
		return
	}
	for _, v := range s.Volumes {
		err := d.ask(ctx, "name the volume of "+s.Name, func(ctx context.Context, c *session) error {
			body := map[string]any{"volume": map[string]any{"name": s.Name, "metadata": map[string]string{ownerKey: d.cfg.Owner}}}
			var answer map[string]any
			_, err := c.volume.Put(ctx, c.volume.ServiceURL("volumes", v.ID), body, &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
			return err
		})
		if err != nil {
			d.log.Warn("a volume cannot be named; Nova deletes it with its server", "vm", s.Name, "volume", v.ID, "err", err)
		}
	}
}

// clear takes away the parts of a VM whose servers are gone.
func (d *Driver) clear(ctx context.Context, name string, gone []server) error {
	done := map[string]bool{}
	for _, s := range gone {
		for id := range strings.SplitSeq(s.Metadata[portsKey], ",") {
			if id == "" || done[id] {
				continue
			}
			done[id] = true
			if err := d.removePart(ctx, part{kind: "port", id: id}); err != nil {
				return err
			}
		}
	}
	if len(gone) > 0 && !d.cfg.BootFromVolume {
		return nil // nothing else was made
	}
	left, err := d.remains(ctx, name)
	if err != nil {
		return err
	}
	for _, p := range left {
		if done[p.id] {
			continue
		}
		if err := d.removePart(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// removePart deletes a port or volume; nothing there is success.
func (d *Driver) removePart(ctx context.Context, p part) error {
	err := d.ask(ctx, "delete a "+p.kind, func(ctx context.Context, s *session) error {
		client, path := s.network, "ports"
		if p.kind == "volume" {
			client, path = s.volume, "volumes"
		}
		_, err := client.Delete(ctx, client.ServiceURL(path, p.id), &gophercloud.RequestOpts{OkCodes: []int{http.StatusNoContent, http.StatusAccepted}})
		return err
	})
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		return nil
	}
	if gpuserver.KindOf(err) == gpuserver.KindInvalid && p.kind == "volume" {
		// Cinder says 400 of a volume that is being detached or deleted.
		return &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "openstack: delete a volume", Public: gpuserver.PublicText(err), Err: err}
	}
	return err
}
