package main

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"gpuserver"
	"gpuserver/internal/access/userlist"
	"gpuserver/internal/cirun"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/cloud/libvirt"
	"gpuserver/internal/cloud/openstack"
	"gpuserver/internal/config"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/github"
	"gpuserver/internal/intake"
	"gpuserver/internal/store"
)

// openCloud makes the driver of a cloud. A cloud that is away is opened all
// the same: the driver reaches it once it is back.
func openCloud(ctx context.Context, cfg *config.Config, c *config.Cloud, owner string, log *slog.Logger) (cloud.Driver, error) {
	switch c.Type {
	case "libvirt":
		return libvirt.Open(ctx, libvirtConfig(cfg, c, owner), log)
	case "openstack":
		return openstack.Open(openStackConfig(cfg, c, owner), log)
	case "fake":
		if c.Fake != nil && c.Fake.URL != "" {
			return fake.Dial(c.Name, string(c.Fake.URL), owner), nil
		}
		return fake.New(fake.Config{Name: c.Name}), nil
	}
	return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s has the unknown type %q", c.Name, c.Type)
}

func libvirtConfig(cfg *config.Config, c *config.Cloud, owner string) libvirt.Config {
	l := c.Libvirt
	out := libvirt.Config{
		Name: c.Name, Owner: owner, Socket: l.URI, Dir: string(l.Dir), Images: map[string]libvirt.ImageSource{},
		Accel: libvirt.Accel(l.Accel), Overcommit: l.Overcommit, MemoryReserveMiB: l.MemoryReserve.MiB(), DiskReserveGiB: l.DiskReserve.GiB(),
		Models: cfg.Models(), ROMs: cfg.ROMs(), HugePages: l.HugePages, MaxVMs: l.MaxVMs, KeepConsoles: cfg.Retention.Consoles,
		Network: libvirt.Network{
			Name: l.Network.Name, Bridge: l.Network.Bridge, CIDR: l.Network.CIDR, CIDR6: l.Network.CIDR6, MTU: l.Network.MTU,
			DNS: l.Network.DNS, OpenRanges: l.Network.OpenRanges, AgentPort: cfg.AgentPort(),
		},
	}
	for _, im := range cfg.Images {
		if s := im.Libvirt; s != nil {
			out.Images[im.Name] = libvirt.ImageSource{Disk: string(s.Disk), Format: s.Format, Kernel: string(s.Kernel), Initrd: string(s.Initrd), Cmdline: s.Cmdline}
		}
	}
	return out
}

func openStackConfig(cfg *config.Config, c *config.Cloud, owner string) openstack.Config {
	o := c.OpenStack
	e := o.Endpoints
	out := openstack.Config{
		Name: c.Name, Owner: owner,
		Credentials: openstack.Credentials{CloudsFile: string(o.CloudsFile), Cloud: o.Cloud, Region: o.Region, Interface: o.Interface, CAFile: string(o.CAFile)},
		Endpoints: openstack.Endpoints{
			Identity: string(e.Identity), Compute: string(e.Compute), Image: string(e.Image),
			Network: string(e.Network), Volume: string(e.Volume), Placement: string(e.Placement),
		},
		Flavors: map[string]string{}, Images: map[string]string{},
		Networks: o.Networks, Ports: o.MakePorts, SecurityGroups: o.SecurityGroups, AvailabilityZone: o.AvailabilityZone,
		ServerGroup: o.ServerGroup, KeyPair: o.KeyPair, BootFromVolume: o.BootFromVolume, VolumeType: o.VolumeType,
		MaxVMs: o.MaxVMs, LaunchesPerMinute: o.LaunchRate, Emulated: o.Emulated, BuildTimeout: o.BuildTimeout, CallTimeout: o.Call,
	}
	if p := o.Placement; p != nil {
		as := out.Credentials
		as.CloudsFile, as.Cloud = string(p.CloudsFile), p.Cloud
		out.Placement = &as
	}
	for _, f := range o.Flavors {
		out.Flavors[f.Name] = f.Flavor
	}
	for _, im := range cfg.Images {
		if im.OpenStack != nil {
			out.Images[im.Name] = im.OpenStack.Image
		}
	}
	for _, g := range o.GPUs {
		model, _ := cfg.ModelFor(g.Model) // known: it was checked
		out.GPUs = append(out.GPUs, openstack.GPUs{Model: model, Alias: g.Alias, Count: g.Count, Class: g.ResourceClass})
	}
	return out
}

// openForge makes the client of a forge.
func openForge(ctx context.Context, f *config.Forge) (*github.Forge, error) {
	key, err := f.PrivateKey.Read()
	if err != nil {
		return nil, err
	}
	var secrets []string
	for _, s := range f.WebhookSecrets {
		r, err := s.Read()
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, r.Text())
	}
	return github.New(ctx, github.Config{
		Name: f.Name, BaseURL: string(f.BaseURL), AppID: strconv.FormatInt(f.AppID, 10), PrivateKey: key.Bytes(), WebhookSecrets: secrets,
		RunnerScope: f.RunnerScope, RunnerGroup: f.RunnerGroup, CheckName: f.CheckName,
		Limits: github.Limits{PointsPerMinute: f.Budget.PointsPerMinute, ContentPerMinute: f.Budget.ContentPerMinute, ContentPerHour: f.Budget.ContentPerHour, RegistrationsPerHour: f.Budget.RegistrationsPerHour},
	})
}

// hookReader reads, verifies and parses the deliveries of a GitHub App.
type hookReader struct{ f *github.Forge }

// maxDelivery is GitHub's own bound on a delivery's body, in bytes.
// Source: docs.github.com, "Webhook events and payloads", payload cap.
const maxDelivery = 25 << 20

// Read implements intake.Verifier.
func (h hookReader) Read(r *http.Request) (guid string, e forge.Event, body []byte, err error) {
	head, err := github.ParseHeaders(r.Header)
	if err != nil {
		return "", e, nil, err
	}
	if head.Signature == "" { // not even a claim: the body is not worth reading
		return head.Delivery, e, nil, h.f.Verify(nil, "")
	}
	if body, err = github.ReadBody(r, maxDelivery); err != nil {
		return head.Delivery, e, nil, err
	}
	if err = h.f.Verify(body, head.Signature); err != nil {
		return head.Delivery, e, nil, err
	}
	e, err = github.Parse(head.Event, body)
	return head.Delivery, e, body, err
}

// deliveries is what a feed asks of a GitHub App.
type deliveries struct{ *github.Forge }

// Past implements what intake.Feed needs; oldest first.
func (d deliveries) Past(ctx context.Context, since time.Time) ([]intake.Past, error) {
	var out []intake.Past
	for cursor := ""; ; {
		page, next, err := d.Deliveries(ctx, since, cursor)
		if err != nil {
			return nil, err
		}
		for _, p := range page {
			out = append(out, intake.Past{
				ID: p.ID, GUID: p.GUID, At: p.DeliveredAt, OK: p.OK(), Job: slices.Contains([]string{"workflow_job", "check_run"}, p.Event),
			})
		}
		if next == "" {
			break
		}
		cursor = next
	}
	slices.Reverse(out)
	return out, nil
}

// Fetch reads one delivery with its event. That it comes from GitHub is known
// from the connection.
func (d deliveries) Fetch(ctx context.Context, id int64) (intake.Delivery, error) {
	got, err := d.Delivery(ctx, id)
	if err != nil {
		return intake.Delivery{}, err
	}
	e, err := github.Parse(got.Event, got.Payload)
	return intake.Delivery{GUID: got.GUID, Event: e, Body: got.Payload, ReceivedAt: got.DeliveredAt}, err
}

// userLists gives admission the lists of users that policies name.
type userLists struct{ *userlist.Fetcher }

// Users implements what admission needs.
func (u userLists) Users(ctx context.Context, address string, since time.Time) ([]cirun.User, string, error) {
	l, err := u.GetSince(ctx, address, since)
	return l.Users, l.Stale, err
}

// listKeeper keeps the last good copies of lists of users in the store.
type listKeeper struct{ db *store.DB }

func userListKey(address string) string { return "users\x00" + address }

// LoadUserList implements userlist.Keeper.
func (k listKeeper) LoadUserList(ctx context.Context, address string) (out userlist.Copy, err error) {
	err = k.db.View(ctx, func(tx *store.Tx) error {
		c, err := tx.Copy(userListKey(address))
		out = userlist.Copy{Body: c.Body, ETag: c.ETag, FetchedAt: c.FetchedAt}
		return err
	})
	return out, err
}

// SaveUserList implements userlist.Keeper.
func (k listKeeper) SaveUserList(ctx context.Context, address string, c userlist.Copy) error {
	return k.db.Update(ctx, func(tx *store.Tx) error {
		return tx.SaveCopy(store.Copy{Key: userListKey(address), ETag: c.ETag, Body: c.Body, FetchedAt: c.FetchedAt})
	})
}
