package provision

import (
	"cmp"
	"context"
	"net/netip"
	"net/url"
	"regexp"
	"slices"

	"gpuserver/internal/cloud/openstack"
)

var uuidRE = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// networks reads what Neutron has in the project. Routers may be missing whole: they
// are an extension.
func (l *look) networks(ctx context.Context) {
	if l.d.Network != nil {
		l.within(KindNetwork, func() error { return l.networkList(ctx) })
		l.within(KindSubnet, func() error { return l.subnets(ctx) }, KindNetwork)
	}
	if l.d.Network != nil && l.d.Network.External != "" {
		l.within(KindRouter, func() error { return l.routers(ctx) }, KindSubnet)
	}
	if len(l.d.Groups) > 0 {
		l.within(KindGroup, func() error { return l.groups(ctx) })
	}
}

// list reads what the project has of a kind in Neutron. It has nothing of any while it
// is not there itself.
func (l *look) list(ctx context.Context, what, path string, more url.Values, out any) error {
	if l.f.Project == "" {
		return nil
	}
	query := url.Values{"project_id": {l.f.Project}}
	for k, v := range more {
		query[k] = v
	}
	return l.get(ctx, "list "+what, openstack.Network, path, query, out)
}

func (l *look) networkList(ctx context.Context) error {
	var answer struct {
		Networks []struct {
			named
			Description string `json:"description"`
			MTU         int    `json:"mtu"`
			Up          bool   `json:"admin_state_up"`
		} `json:"networks"`
	}
	err := l.list(ctx, "networks", "networks", nil, &answer)
	for _, n := range answer.Networks {
		if l.all || n.Name == l.d.Network.Name || n.Description == l.d.Mark {
			l.f.Networks = append(l.f.Networks, FoundNetwork{n.ID, n.Name, n.Description, n.MTU, n.Up})
		}
	}
	return err
}

func (l *look) subnets(ctx context.Context) error {
	var answer struct {
		Subnets []struct {
			named
			Description string       `json:"description"`
			Network     string       `json:"network_id"`
			CIDR        netip.Prefix `json:"cidr"`
			DNS         []netip.Addr `json:"dns_nameservers"`
			DHCP        bool         `json:"enable_dhcp"`
		} `json:"subnets"`
	}
	err := l.list(ctx, "subnets", "subnets", nil, &answer)
	for _, s := range answer.Subnets {
		l.f.Subnets = append(l.f.Subnets, FoundSubnet{s.ID, s.Name, s.Description, s.Network, s.CIDR, s.DNS, s.DHCP})
	}
	return err
}

func (l *look) routers(ctx context.Context) error {
	var outside struct {
		Networks []named `json:"networks"`
	}
	err := l.get(ctx, "list external networks", openstack.Network, "networks", url.Values{"router:external": {"true"}, "name": {l.d.Network.External}}, &outside)
	if err != nil {
		return err
	}
	if len(outside.Networks) > 0 {
		l.f.External = outside.Networks[0].ID
	}
	var answer struct {
		Routers []struct {
			named
			Description string `json:"description"`
			Up          bool   `json:"admin_state_up"`
			Gateway     *struct {
				Network string `json:"network_id"`
			} `json:"external_gateway_info"`
		} `json:"routers"`
	}
	if err := l.list(ctx, "routers", "routers", nil, &answer); err != nil {
		return err
	}
	for _, r := range answer.Routers {
		f := FoundRouter{ID: r.ID, Name: r.Name, Description: r.Description, Up: r.Up}
		if r.Gateway != nil {
			f.External = r.Gateway.Network
		}
		if f.Subnets, err = l.joined(ctx, r.ID); err != nil {
			return err
		}
		l.f.Routers = append(l.f.Routers, f)
	}
	return nil
}

// joined gives the subnets that a router joins. Neutron has several sorts of port for
// them; the gateway's is not one.
func (l *look) joined(ctx context.Context, router string) (subnets []string, err error) {
	var answer struct {
		Ports []struct {
			Owner string `json:"device_owner"`
			IPs   []struct {
				Subnet string `json:"subnet_id"`
			} `json:"fixed_ips"`
		} `json:"ports"`
	}
	err = l.get(ctx, "list the ports of routers", openstack.Network, "ports", url.Values{"device_id": {router}}, &answer)
	for _, p := range answer.Ports {
		if p.Owner == "network:router_gateway" {
			continue
		}
		for _, ip := range p.IPs {
			if !slices.Contains(subnets, ip.Subnet) {
				subnets = append(subnets, ip.Subnet)
			}
		}
	}
	return subnets, err
}

func (l *look) groups(ctx context.Context) error {
	var answer struct {
		Groups []apiGroup `json:"security_groups"`
	}
	err := l.list(ctx, "security groups", "security-groups", nil, &answer)
	for _, g := range answer.Groups {
		declared := slices.ContainsFunc(l.d.Groups, func(o Group) bool { return o.Name == g.Name })
		if l.all || declared || g.Description == l.d.Mark {
			l.f.Groups = append(l.f.Groups, g.found())
		}
	}
	return err
}

// apiGroup is a security group as Neutron shows it.
type apiGroup struct {
	named
	Description string `json:"description"`
	Rules       []struct {
		ID        string `json:"id"`
		Direction string `json:"direction"`
		Ethertype string `json:"ethertype"`
		Protocol  string `json:"protocol"`
		First     int    `json:"port_range_min"`
		Last      int    `json:"port_range_max"`
		CIDR      string `json:"remote_ip_prefix"`
		Group     string `json:"remote_group_id"`
	} `json:"security_group_rules"`
}

func (g apiGroup) found() FoundGroup {
	f := FoundGroup{ID: g.ID, Name: g.Name, Description: g.Description}
	for _, r := range g.Rules {
		f.Rules = append(f.Rules, Rule{r.ID, r.Direction, cmp.Or(r.Ethertype, "IPv4"), r.Protocol, r.First, r.Last, r.CIDR, r.Group}.plain())
	}
	return f
}
