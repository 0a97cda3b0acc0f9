package openstack

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/keypairs"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// maxEncoded is Nova's bound of user data in base64, in bytes.
// Source: docs.openstack.org/api-ref/compute, "Create Server".
const maxEncoded = 65535

// Create implements cloud.Driver. Nova accepts a server first and looks for a host
// then, so it waits until the server is active: only then it is known that there
// was room. If ctx ends before the server is asked for, nothing is made; if it ends
// while it is, the answer is waited for all the same, and the server stays and is
// found by its name.
func (d *Driver) Create(ctx context.Context, spec cloud.Spec) (cloud.VM, error) {
	if err := d.checkSpec(spec); err != nil {
		return cloud.VM{}, err
	}
	if err := ctx.Err(); err != nil {
		return cloud.VM{}, d.failed("create "+spec.Name, err)
	}
	ctx, cancel := d.bind(ctx)
	defer cancel()
	end, ok := d.names.Try(spec.Name, true)
	if !ok {
		return cloud.VM{}, d.exists(spec.Name, "it is being made or deleted")
	}
	defer end()
	if err := d.vacant(ctx, spec.Name); err != nil {
		return cloud.VM{}, err
	}
	if err := d.launch.Wait(ctx); err != nil {
		return cloud.VM{}, &gpuserver.Error{
			Kind: gpuserver.KindUnavailable, Op: "openstack: create " + spec.Name, Err: err,
			Public: fmt.Sprintf("cloud %s: VM %s still waited for its turn: %d may be asked for in a minute (openstack.launches_per_minute)", d.cfg.Name, spec.Name, d.cfg.LaunchesPerMinute),
		}
	}
	id, undo, err := d.request(ctx, spec)
	if err != nil {
		return cloud.VM{}, err
	}
	return d.awaitActive(ctx, spec, id, undo)
}

func (d *Driver) checkSpec(spec cloud.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return gpuserver.Errorf(gpuserver.KindInvalid, "VM %q cannot be made on cloud %s: %s", spec.Name, d.cfg.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case spec.Owner != d.cfg.Owner:
		return bad("its owner is %q, but the cloud was opened for %q", spec.Owner, d.cfg.Owner)
	case d.cfg.Images[spec.Image] == "":
		return bad("image %q has no source there; add it to images", spec.Image)
	case base64.StdEncoding.EncodedLen(len(spec.UserData)) > maxEncoded:
		return bad("its user data has %d bytes; Nova takes %d", len(spec.UserData), maxEncoded/4*3)
	}
	return nil
}

func (d *Driver) exists(name, why string) error {
	return gpuserver.Errorf(gpuserver.KindConflict, "cloud %s: a VM %q cannot be made: %s", d.cfg.Name, name, why)
}

// vacant refuses a name that somebody has. What is known from the last list is
// enough: names of ours are used once, and what we made since then is known.
func (d *Driver) vacant(ctx context.Context, name string) error {
	if !d.watch.recent(d.cfg.times.idle + d.cfg.times.busy) {
		if err := d.refresh(ctx); err != nil {
			return err
		}
	}
	if len(d.watch.named(name, d.cfg.Owner)) > 0 {
		return d.exists(name, "a server of that name is there")
	}
	left, err := d.remains(ctx, name)
	if err == nil && len(left) > 0 {
		err = d.exists(name, "a "+left[0].kind+" of that name is left")
	}
	return err
}

// request asks for the server and what it needs, and gives its id. What it made is
// taken away again if there is no server; undo does that for what comes later.
func (d *Driver) request(ctx context.Context, spec cloud.Spec) (id string, undo func(), err error) {
	for repeated := false; ; repeated = true {
		opts, remembered, err := d.options(ctx, spec)
		if err != nil {
			return "", nil, err
		}
		ports, err := d.makePorts(ctx, spec, opts)
		undo = func() { d.removePorts(ports) }
		if err == nil {
			id, err = d.post(ctx, spec, opts)
		}
		if err == nil {
			return id, undo, nil
		}
		undo()
		kind := gpuserver.KindOf(err)
		if (kind == gpuserver.KindInvalid || kind == gpuserver.KindNotFound) && remembered && !repeated {
			d.found.forget() // an image, flavor or network may have been replaced by one of the same name
			continue
		}
		if kind == gpuserver.KindConflict { // not of the name: Nova knows no such thing
			err = &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "openstack: create " + spec.Name, Public: gpuserver.PublicText(err), Err: err}
		}
		return "", nil, err
	}
}

// request options, before gophercloud puts them into words.
type options struct {
	servers.CreateOpts
	keyPair string
	group   string   // server group's id
	nets    []string // networks' ids
}

// options puts a spec into the cloud's ids. remembered says that some of these are
// from an earlier look.
func (d *Driver) options(ctx context.Context, spec cloud.Spec) (o *options, remembered bool, err error) {
	s, err := d.session(ctx)
	if err != nil {
		return nil, false, err
	}
	id := func(t thing, name string) (id string) {
		if err == nil {
			var old bool
			id, old, err = d.resolve(ctx, t, name)
			remembered = remembered || old
		}
		return id
	}
	flavor := d.cfg.Flavors[spec.Flavor.Name]
	if flavor == "" {
		flavor = spec.Flavor.Name
	}
	yes := true
	o = &options{keyPair: d.cfg.KeyPair, CreateOpts: servers.CreateOpts{
		Name: spec.Name, FlavorRef: id(aFlavor, flavor), ImageRef: id(anImage, d.cfg.Images[spec.Image]),
		UserData:         []byte(base64.StdEncoding.EncodeToString(spec.UserData)),
		AvailabilityZone: d.cfg.AvailabilityZone, SecurityGroups: d.cfg.SecurityGroups,
		ConfigDrive: &yes, Metadata: map[string]string{},
	}}
	if len(spec.UserData) == 0 {
		o.UserData = nil
	}
	for _, n := range d.cfg.Networks {
		o.nets = append(o.nets, id(aNetwork, n))
	}
	if d.cfg.ServerGroup != "" {
		o.group = id(aServerGroup, d.cfg.ServerGroup)
	}
	if err != nil {
		return nil, remembered, err
	}
	maps.Copy(o.Metadata, spec.Metadata)
	o.Metadata[ownerKey] = spec.Owner
	if s.nova >= tagsAtPost {
		o.Tags = []string{tagOurs}
		if t := tagOwner + spec.Owner; len(t) <= maxTag {
			o.Tags = append(o.Tags, t)
		}
	}
	var nets []servers.Network
	for _, n := range o.nets {
		nets = append(nets, servers.Network{UUID: n})
	}
	o.Networks = nets
	if len(nets) == 0 && s.nova >= autoNet {
		o.Networks = "auto"
	}
	if d.cfg.BootFromVolume {
		disk := servers.BlockDevice{
			UUID: o.ImageRef, SourceType: servers.SourceImage, DestinationType: servers.DestinationVolume,
			VolumeSize: int(spec.Flavor.DiskGiB), DeleteOnTermination: true,
		}
		if s.nova >= volumeType {
			disk.VolumeType = d.cfg.VolumeType
		}
		o.BlockDevice, o.ImageRef = []servers.BlockDevice{disk}, ""
	}
	return o, remembered, nil
}

// post sends the request. If the answer is lost, the server is looked for.
func (d *Driver) post(ctx context.Context, spec cloud.Spec, o *options) (id string, err error) {
	var body servers.CreateOptsBuilder = o.CreateOpts
	if o.keyPair != "" {
		body = keypairs.CreateOptsExt{CreateOptsBuilder: body, KeyName: o.keyPair}
	}
	var hints servers.SchedulerHintOptsBuilder
	if o.group != "" {
		hints = servers.SchedulerHintOpts{Group: o.group}
	}
	var made struct {
		ID string `json:"id"`
	}
	var cause error
	asked := time.Now()
	err = d.ask(ctx, "create "+spec.Name, func(ctx context.Context, s *session) error {
		if cause = ctx.Err(); cause != nil {
			return cause
		}
		ctx, end := d.whole(ctx)
		defer end()
		cause = servers.Create(ctx, s.compute, body, hints).ExtractInto(&made)
		if cause == nil && made.ID == "" {
			cause = errors.New("the answer to a create has no server's id")
		}
		return cause
	})
	if err != nil && cause != nil && lostAnswer(cause) {
		made.ID, err = d.findCut(ctx, spec.Name, err)
	}
	if err != nil {
		return "", err
	}
	d.watch.mu.Lock()
	d.watch.made[spec.Name] = made.ID
	d.watch.mu.Unlock()
	d.watch.put(server{ID: made.ID, Name: spec.Name, Status: "BUILD", Created: asked.UTC(), Metadata: o.Metadata, Tags: o.Tags}, asked)
	return made.ID, nil
}

// lostAnswer reports whether a request that failed may have been carried out.
func lostAnswer(err error) bool {
	code := status(err)
	return code >= 500 || code == 0 && !unsent(err) || code >= 200 && code < 300
}

// findCut looks for a server whose create was not answered. It is looked for for a
// while, as Nova may still be at it.
func (d *Driver) findCut(ctx context.Context, name string, why error) (id string, err error) {
	d.log.Warn("the answer to a create was lost; its server is looked for", "vm", name, "err", why)
	deadline := time.Now().Add(d.cfg.times.settle)
	for {
		found, err := d.find(ctx, name)
		for _, s := range found {
			if s.owner() == d.cfg.Owner {
				return s.ID, nil
			}
		}
		if time.Now().After(deadline) || !sleep(ctx, d.cfg.times.look) {
			return "", errors.Join(why, err)
		}
	}
}

// awaitActive waits until the server runs. One that failed, or does not become
// active in time, is deleted.
func (d *Driver) awaitActive(ctx context.Context, spec cloud.Spec, id string, undo func()) (cloud.VM, error) {
	limit := d.cfg.BuildTimeout + time.Duration(spec.Flavor.MemoryMiB>>10)*d.cfg.times.perGiB
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var s server
	var there bool
	over := func() bool {
		s, there = d.watch.get(id)
		return !there || s.state() != cloud.StateBuilding
	}
	err := d.watch.await(wait, over)
	var unknown error
	if err != nil && ctx.Err() == nil { // the lists may have missed it; asking is the proof
		unknown = d.look(ctx, id)
		if over() {
			err = nil
		}
	}
	switch {
	case ctx.Err() != nil: // it stays, and is found by its name
		return cloud.VM{}, d.failed("wait for "+spec.Name, ctx.Err())
	case err != nil && unknown != nil:
		return cloud.VM{}, gpuserver.Errorf(gpuserver.KindUnavailable, "cloud %s: whether VM %s was made within %s is not known: its server cannot be read", d.cfg.Name, spec.Name, limit)
	case err != nil:
		return cloud.VM{}, d.giveUp(spec.Name, id, undo, gpuserver.Errorf(gpuserver.KindUnavailable,
			"cloud %s: the server of VM %s was still being built (%s) after %s; it is deleted", d.cfg.Name, spec.Name, strings.ToLower(s.Status+" "+s.Task), limit))
	case !there:
		undo()
		return cloud.VM{}, gpuserver.Errorf(gpuserver.KindUnavailable, "cloud %s: the server of VM %s was deleted while it was being built, not by us", d.cfg.Name, spec.Name)
	case s.state() == cloud.StateError:
		fault := d.faultOf(ctx, s)
		return cloud.VM{}, d.giveUp(spec.Name, id, undo, failure(fault, "cloud %s: the server of VM %s failed: %s", d.cfg.Name, spec.Name, fault))
	}
	d.nameVolumes(ctx, s)
	return s.vm(), nil
}

// faultOf gives why a server failed. Nova notes that it did before it notes why.
func (d *Driver) faultOf(ctx context.Context, s server) string {
	for range 5 {
		if s.fault() != "" || !sleep(ctx, d.cfg.times.look) || d.look(ctx, s.ID) != nil {
			break
		}
		s, _ = d.watch.get(s.ID)
	}
	return s.vm().Fault
}

// giveUp deletes a server that failed, whatever ctx of the create says, and gives
// why.
func (d *Driver) giveUp(name, id string, undo func(), why error) error {
	ctx, cancel := context.WithTimeout(d.running, d.cfg.DeleteTimeout)
	defer cancel()
	if err := d.destroy(ctx, name, []string{id}); err != nil {
		// The fleet finds it by its name, as it does a create that it did not hear of.
		d.log.Warn("a server that failed cannot be deleted yet", "vm", name, "server", id, "err", err)
	}
	undo()
	return why
}

// find asks Nova for the servers of a name.
// Source: docs.openstack.org/api-ref/compute, "List Servers": name is a regular
// expression.
func (d *Driver) find(ctx context.Context, name string) ([]server, error) {
	asked := time.Now()
	found, _, err := d.read(ctx, map[string][]string{"name": {"^" + name + "$"}})
	if err != nil {
		return nil, err
	}
	var out []server
	for _, s := range found {
		if s.Name == name && s.Status != "DELETED" {
			d.watch.put(s, asked)
			out = append(out, s)
		}
	}
	return out, nil
}

// sendDelete asks Nova to delete a server; one that is not there is success.
func (d *Driver) sendDelete(ctx context.Context, id string) error {
	err := d.ask(ctx, "delete a server", func(ctx context.Context, s *session) error {
		_, err := s.compute.Delete(ctx, s.compute.ServiceURL("servers", id), &gophercloud.RequestOpts{OkCodes: []int{http.StatusNoContent, http.StatusAccepted}})
		return err
	})
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		d.lost(id)
		d.watch.wake()
		return nil
	}
	return err
}
