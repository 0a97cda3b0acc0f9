package provision

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
)

// Export reads what a project has, as a declaration of it. User, credentials and key
// pairs are left out: secrets cannot be read. What a declaration cannot say is in its
// notes, and so is what could not be looked at. Network is the name of the one that is
// meant, "" for the only one.
func Export(ctx context.Context, api *openstack.API, project Principal, network string) (Declaration, error) {
	s := New(api, Declaration{Project: project, Network: &Network{Name: network, External: "x"}})
	own, err := api.ProjectID(ctx)
	if err != nil {
		return Declaration{}, err
	}
	l := &look{Site: s, f: Found{Unknown: map[Kind]string{}}, all: true}
	if err := l.project(ctx, own); err != nil {
		return Declaration{}, err
	}
	if l.f.Project == "" {
		return Declaration{}, gpuserver.Errorf(gpuserver.KindNotFound, "Keystone has no project %q in domain %q", project.Name, project.Domain)
	}
	e := &exporter{look: l, out: Declaration{Project: project, FlavorsPublic: true}}
	for kind, read := range map[Kind]func(context.Context) error{
		KindFlavor: e.flavors, KindNetwork: e.network, KindGroup: e.groups,
		KindCompute: func(ctx context.Context) error {
			return e.quotas(ctx, KindCompute, openstack.Compute, "os-quota-sets/"+l.f.Project, &e.out.ComputeQuotas, "instances", "cores", "ram")
		},
		KindNetworkQuota: func(ctx context.Context) error {
			return e.quotas(ctx, KindNetworkQuota, openstack.Network, "quotas/"+l.f.Project, &e.out.NetworkQuotas, "port")
		},
		KindVolume: func(ctx context.Context) error {
			return e.quotas(ctx, KindVolume, openstack.Volume, "os-quota-sets/"+l.f.Project, &e.out.VolumeQuotas, "volumes", "gigabytes")
		},
		KindDefaults: func(ctx context.Context) error {
			return e.quotas(ctx, KindDefaults, openstack.Compute, "os-quota-class-sets/default", &e.out.DefaultQuotas, "instances", "cores", "ram")
		},
	} {
		if err := read(ctx); err != nil {
			e.note("%s could not be looked at: %s", kind, gpuserver.PublicText(err))
		}
	}
	slices.Sort(e.out.Notes)
	return e.out, ctx.Err()
}

type exporter struct {
	*look
	out Declaration
}

func (e *exporter) note(format string, args ...any) {
	e.out.Notes = append(e.out.Notes, fmt.Sprintf(format, args...))
}

func (e *exporter) quotas(ctx context.Context, kind Kind, service openstack.Service, path string, into *map[string]int64, names ...string) error {
	set, err := e.quotaSet(ctx, kind, service, path)
	*into = map[string]int64{}
	for _, name := range names {
		if n, ok := set[name]; ok {
			(*into)[name] = n
		}
	}
	return err
}

// flavors takes those that the project may use.
func (e *exporter) flavors(ctx context.Context) error {
	if err := e.look.flavors(ctx); err != nil {
		return err
	}
	for _, f := range e.f.Flavors {
		switch {
		case !f.Public && !slices.Contains(f.Access, e.f.Project):
			continue
		case !f.Public:
			e.note("flavor %s is for some projects only; give flavors: project if all are to be", f.Name)
		}
		if strings.Contains(f.Alias, ",") {
			e.note("flavor %s has cards of two aliases (%s), which cannot be declared", f.Name, f.Alias)
			continue
		}
		e.out.Flavors = append(e.out.Flavors, f.Flavor)
	}
	return nil
}

// network takes the one that is meant, with the subnet of IPv4 and the router on it.
func (e *exporter) network(ctx context.Context) error {
	name := e.d.Network.Name
	for _, read := range []func(context.Context) error{e.networkList, e.subnets} {
		if err := read(ctx); err != nil {
			return err
		}
	}
	n, count := one(e.f.Networks, func(n FoundNetwork) bool { return name == "" || n.Name == name || n.ID == name })
	if count != 1 {
		e.note("the project has %d networks that may be meant; give the name of one in networks of the cloud", count)
		return nil
	}
	s, count := e.f.subnetOf(n.ID)
	if count != 1 {
		e.note("network %s has %d subnets of IPv4, and a declaration has one", n.Name, count)
		return nil
	}
	e.out.Network = &Network{Name: n.Name, MTU: n.MTU, CIDR: s.CIDR, DNS: s.DNS}
	if err := e.routers(ctx); err != nil {
		e.note("routers could not be looked at: %s", gpuserver.PublicText(err))
		return nil
	}
	r, _ := e.f.routerOf(n.Name, s.ID)
	if r.External == "" {
		return nil
	}
	var answer struct {
		Network named `json:"network"`
	}
	err := e.get(ctx, "read the external network", openstack.Network, "networks/"+r.External, nil, &answer)
	e.out.Network.External = answer.Network.Name
	return err
}

func (e *exporter) groups(ctx context.Context) error {
	if err := e.look.groups(ctx); err != nil {
		return err
	}
	for _, g := range e.f.Groups {
		if g.Name == "default" {
			continue
		}
		out := Group{Name: g.Name}
		for _, r := range g.Rules {
			if !r.declarable() {
				e.note("security group %s: a rule cannot be declared, and apply would delete it: %s", g.Name, r)
				continue
			}
			out.Rules = append(out.Rules, r)
		}
		e.out.Groups = append(e.out.Groups, out)
	}
	return nil
}

// declarable reports whether a declaration can say a rule.
func (r Rule) declarable() bool {
	switch r.Protocol {
	case "", "tcp", "udp":
	case "icmp", "ipv6-icmp":
		if r.First > 0 { // a type, not a port
			return false
		}
	default:
		return false
	}
	return r.Direction == "egress" && r.Group == ""
}
