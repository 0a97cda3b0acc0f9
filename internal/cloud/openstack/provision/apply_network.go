package provision

import (
	"context"
	"net/url"
	"slices"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
)

func escape(name string) string { return url.PathEscape(name) }

// ours is the body of a thing of Neutron's that is made for the project.
func (a *applier) ours(name string) object {
	return object{"name": name, "project_id": a.f.Project, "description": a.d.Mark}
}

func (a *applier) network(ctx context.Context, c Change) error {
	i := slices.IndexFunc(a.f.Networks, func(n FoundNetwork) bool { return n.Name == c.Name })
	what := "network " + c.Name
	switch c.Action {
	case Delete: // its subnets go with it
		i = slices.IndexFunc(a.f.Networks, func(n FoundNetwork) bool { return n.Name == c.Name && n.Description == a.d.Mark })
		return a.remove(ctx, what, openstack.Network, "networks/"+a.f.Networks[i].ID)
	case Update:
		body := object{"admin_state_up": true}
		if a.d.Network.MTU != 0 {
			body["mtu"] = a.d.Network.MTU
		}
		return a.send(ctx, "change "+what, openstack.Network, "PUT", "networks/"+a.f.Networks[i].ID, object{"network": body})
	}
	body := a.ours(c.Name)
	if a.d.Network.MTU != 0 {
		body["mtu"] = a.d.Network.MTU
	}
	id, err := a.make(ctx, what, openstack.Network, "networks", "network", body)
	if err == nil {
		a.f.Networks = append(a.f.Networks, FoundNetwork{ID: id, Name: c.Name, Description: a.d.Mark})
	}
	return err
}

// networkID gives the declared network's id.
func (a *applier) networkID() (string, error) {
	n, count := one(a.f.Networks, func(n FoundNetwork) bool { return n.Name == a.d.Network.Name })
	if count == 0 {
		return "", gpuserver.Errorf(gpuserver.KindNotFound, "network %s is not there, which it belongs to", a.d.Network.Name)
	}
	return n.ID, nil
}

func (a *applier) subnet(ctx context.Context, c Change) error {
	network, err := a.networkID()
	if err != nil {
		return err
	}
	dns := []string{}
	for _, d := range a.d.Network.DNS {
		dns = append(dns, d.String())
	}
	if c.Action == Update {
		have, _ := a.f.subnetOf(network)
		return a.send(ctx, "change subnet "+c.Name, openstack.Network, "PUT", "subnets/"+have.ID, object{"subnet": object{"dns_nameservers": dns, "enable_dhcp": true}})
	}
	body := a.ours(c.Name)
	body["network_id"], body["ip_version"], body["cidr"], body["dns_nameservers"], body["enable_dhcp"] = network, 4, a.d.Network.CIDR.String(), dns, true
	id, err := a.make(ctx, "subnet "+c.Name, openstack.Network, "subnets", "subnet", body)
	if err == nil {
		a.f.Subnets = append(a.f.Subnets, FoundSubnet{ID: id, Name: c.Name, Network: network, CIDR: a.d.Network.CIDR})
	}
	return err
}

func (a *applier) router(ctx context.Context, c Change) error {
	what := "router " + c.Name
	if c.Action == Delete {
		have, _ := one(a.f.Routers, func(r FoundRouter) bool { return r.Name == c.Name && r.Description == a.d.Mark })
		return a.removeRouter(ctx, have)
	}
	network, err := a.networkID()
	if err != nil {
		return err
	}
	subnet, n := a.f.subnetOf(network)
	if n == 0 {
		return gpuserver.Errorf(gpuserver.KindNotFound, "the subnet is not there that %s is to join", what)
	}
	gateway := object{"network_id": a.f.External}
	have, n := a.f.routerOf(c.Name, subnet.ID)
	if n == 0 {
		body := a.ours(c.Name)
		body["external_gateway_info"] = gateway
		id, err := a.make(ctx, what, openstack.Network, "routers", "router", body)
		if err != nil {
			return err
		}
		have = FoundRouter{ID: id, External: a.f.External, Up: true}
	}
	if have.External != a.f.External || !have.Up {
		err := a.send(ctx, "change "+what, openstack.Network, "PUT", "routers/"+have.ID, object{"router": object{"external_gateway_info": gateway, "admin_state_up": true}})
		if err != nil {
			return err
		}
	}
	if slices.Contains(have.Subnets, subnet.ID) {
		return nil
	}
	return a.send(ctx, "join "+what+" with its subnet", openstack.Network, "PUT", "routers/"+have.ID+"/add_router_interface", object{"subnet_id": subnet.ID})
}

// removeRouter takes a router off its subnets first, else Neutron keeps it.
func (a *applier) removeRouter(ctx context.Context, r FoundRouter) error {
	what := "router " + r.Name
	for _, s := range r.Subnets {
		err := a.send(ctx, "take "+what+" off its subnet", openstack.Network, "PUT", "routers/"+r.ID+"/remove_router_interface", object{"subnet_id": s})
		if err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
			return err
		}
	}
	return a.remove(ctx, what, openstack.Network, "routers/"+r.ID)
}

// group makes a security group what is declared. What is missing is let through
// before what is surplus is shut, so that nothing that may pass is cut off.
func (a *applier) group(ctx context.Context, c Change) error {
	what := "security group " + c.Name
	have, n := one(a.f.Groups, func(g FoundGroup) bool { return g.Name == c.Name })
	if c.Action == Delete {
		return a.remove(ctx, what, openstack.Network, "security-groups/"+have.ID)
	}
	if n == 0 { // a new one lets everything out
		var answer struct {
			Group apiGroup `json:"security_group"`
		}
		err := a.api.Call(ctx, "create "+what, openstack.Network, "POST", "security-groups", object{"security_group": a.ours(c.Name)}, &answer)
		if err != nil {
			return err
		}
		have = answer.Group.found()
	}
	i := slices.IndexFunc(a.d.Groups, func(g Group) bool { return g.Name == c.Name })
	missing, surplus := rules(a.d.Groups[i].Rules, have.Rules)
	for _, r := range missing {
		if err := a.send(ctx, "add a rule to "+what, openstack.Network, "POST", "security-group-rules", object{"security_group_rule": a.rule(r, have.ID)}); err != nil {
			return err
		}
	}
	for _, r := range surplus {
		if err := a.remove(ctx, "a rule of "+what, openstack.Network, "security-group-rules/"+r.ID); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) rule(r Rule, group string) object {
	body := object{"security_group_id": group, "project_id": a.f.Project, "direction": r.Direction, "ethertype": r.Ethertype}
	if r.Protocol != "" {
		body["protocol"] = r.Protocol
	}
	if r.First > 0 {
		body["port_range_min"], body["port_range_max"] = r.First, r.Last
	}
	if r.CIDR != "" {
		body["remote_ip_prefix"] = r.CIDR
	}
	return body
}
