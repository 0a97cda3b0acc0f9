package provision

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// network compares the network with its subnet and router.
func (x *differ) network() {
	want := x.d.Network
	if want == nil || !x.known(KindNetwork) {
		return
	}
	have, n := one(x.f.Networks, func(f FoundNetwork) bool { return f.Name == want.Name })
	mtu := Field{"mtu", strconv.Itoa(have.MTU), strconv.Itoa(want.MTU)}
	if want.MTU == 0 {
		mtu.New = mtu.Old
	}
	up := Field{"admin_state_up", strconv.FormatBool(have.Up), "true"}
	switch fields := changed(mtu, up); {
	case n == 0:
		var fields []Field
		if want.MTU != 0 {
			fields = []Field{{Name: "mtu", New: strconv.Itoa(want.MTU)}}
		}
		x.add(Create, KindNetwork, want.Name, fields...)
	case n > 1:
		x.twice(KindNetwork, want.Name, n)
		return
	case len(fields) > 0:
		x.add(Update, KindNetwork, want.Name, fields...)
	}
	x.subnet(want, have)
	x.router(want, have)
}

// subnetOf finds the subnet that is meant: the one of IPv4 on the network, whatever
// it is called.
func (f *Found) subnetOf(network string) (FoundSubnet, int) {
	return one(f.Subnets, func(s FoundSubnet) bool { return s.Network == network && s.CIDR.Addr().Is4() })
}

// routerOf finds the router that is meant: the one that joins the subnet, whatever it
// is called, or else the one of the name.
func (f *Found) routerOf(name, subnet string) (FoundRouter, int) {
	if r, n := one(f.Routers, func(r FoundRouter) bool { return subnet != "" && slices.Contains(r.Subnets, subnet) }); n > 0 {
		return r, 1
	}
	return one(f.Routers, func(r FoundRouter) bool { return r.Name == name })
}

func (x *differ) subnet(want *Network, network FoundNetwork) {
	if !x.known(KindSubnet) {
		return
	}
	have, n := FoundSubnet{}, 0
	if network.ID != "" {
		have, n = x.f.subnetOf(network.ID)
	}
	dns := Field{"dns", addresses(have.DNS), addresses(want.DNS)}
	switch {
	case n == 0:
		x.add(Create, KindSubnet, want.Name, changed(Field{Name: "cidr", New: want.CIDR.String()}, Field{Name: "dns", New: dns.New})...)
	case n > 1:
		x.byHand(KindSubnet, want.Name, "the network has %d subnets of IPv4, and one is declared; delete those that are not meant", n)
	case have.CIDR != want.CIDR:
		x.byHand(KindSubnet, want.Name, "its range is %s, and %s is declared. A range cannot be changed: let the jobs end, delete the subnet, then apply", have.CIDR, want.CIDR)
	default:
		if fields := changed(dns, Field{"dhcp", strconv.FormatBool(have.DHCP), "true"}); len(fields) > 0 {
			x.add(Update, KindSubnet, want.Name, fields...)
		}
	}
}

func addresses(list []netip.Addr) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = a.String()
	}
	return strings.Join(words, " ")
}

func (x *differ) router(want *Network, network FoundNetwork) {
	if want.External == "" || !x.known(KindRouter) {
		return
	}
	if x.f.External == "" {
		x.byHand(KindRouter, want.Name, "there is no external network %q that it could lead to; an administrator has to make it, or its name has to be corrected", want.External)
		return
	}
	subnet, _ := x.f.subnetOf(network.ID)
	have, n := x.f.routerOf(want.Name, subnet.ID)
	if n > 1 {
		x.twice(KindRouter, want.Name, n)
		return
	}
	leads := Field{Name: "leads to", New: want.External}
	switch have.External {
	case x.f.External:
		leads.Old = want.External
	case "":
	default:
		leads.Old = fmt.Sprintf("network %s", have.External)
	}
	joins := Field{Name: "joins", New: want.Name}
	if subnet.ID != "" && slices.Contains(have.Subnets, subnet.ID) {
		joins.Old = want.Name
	}
	switch fields := changed(leads, joins); {
	case n == 0:
		x.add(Create, KindRouter, want.Name, fields...)
	case len(fields) > 0 || !have.Up:
		if !have.Up {
			fields = append(fields, Field{"admin_state_up", "false", "true"})
		}
		x.add(Update, KindRouter, want.Name, fields...)
	}
}
