package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
)

// clouds checks the clouds and fills in the options of their types.
func (k *checker) clouds() {
	names := map[string]string{}
	for i := range k.c.Clouds {
		c, path := &k.c.Clouds[i], index("clouds", i)
		k.unique(names, c.Name, path+".name", nameRE, nameWords)
		k.options(c, path)
		for j, s := range c.Serves {
			at := path + index(".serves", j)
			if s.Cloud == "" {
				k.bad(at+".cloud", "a cloud in Cirun's words is needed, such as openstack")
			}
			if slices.Contains(c.Serves[:j], s) {
				k.bad(at, "this cloud and region stands here twice")
			}
		}
		if c.Libvirt != nil {
			k.libvirt(c.Libvirt, path+".libvirt")
		}
		if c.OpenStack != nil {
			k.openStack(c.OpenStack, path+".openstack")
		}
	}
	if len(k.c.Clouds) == 0 {
		k.bad("clouds", "at least one cloud is needed")
	}
	k.apart()
}

// options refuses a block of another type, and gives a cloud without a block
// the defaults of its own.
func (k *checker) options(c *Cloud, path string) {
	for _, t := range cloudTypes() {
		b := block(c, t)
		if t == c.Type && b.IsNil() {
			b.Set(reflect.New(b.Type().Elem()))
			k.setDefault(b.Elem())
		}
		if t != c.Type && !b.IsNil() {
			k.bad(path+"."+t, "options of type %s at a cloud of type %s", t, c.Type)
		}
	}
}

func (k *checker) libvirt(l *Libvirt, path string) {
	if l.Dir == "" {
		l.Dir = Path(filepath.Join(string(k.c.Server.DataDir), "libvirt"))
	}
	if l.URI == "" {
		k.bad(path+".uri", "the path of libvirtd's socket is needed")
	}
	n, path := &l.Network, path+".network"
	k.form(n.Name, path+".name", nameRE, nameWords)
	k.form(n.Bridge, path+".bridge", linkRE, "a network interface's name of at most 15 letters, digits, '.', '_' and '-'")
	if !n.CIDR.Addr().Is4() || n.CIDR.Bits() < 8 || n.CIDR.Bits() > 29 {
		k.bad(path+".cidr", "give an IPv4 range of /8 to /29, such as 192.168.77.0/24")
	}
	if n.CIDR6.IsValid() && (!n.CIDR6.Addr().Is6() || n.CIDR6.Addr().Is4In6() || n.CIDR6.Bits() != 64) {
		k.bad(path+".cidr6", "give an IPv6 range of /64, such as fd77:1::/64")
	}
	k.masked(n.CIDR, path+".cidr")
	k.masked(n.CIDR6, path+".cidr6")
	for i, r := range n.OpenRanges {
		k.masked(r, path+index(".open_ranges", i))
	}
}

func (k *checker) masked(p netip.Prefix, path string) {
	if m, ok := canonical(p); p.IsValid() && !ok {
		k.bad(path, "%s has bits of a host set; did you mean %s?", p, m)
	}
}

// apart refuses clouds of this machine that would share what each needs for
// itself.
func (k *checker) apart() {
	seen := map[string]string{}
	once := func(what, value, path string) {
		if other, twice := seen[what+value]; twice {
			k.bad(path, "%s is the %s of %s too; give each cloud its own", value, what, other)
		}
		seen[what+value] = path
	}
	for i := range k.c.Clouds {
		l, path := k.c.Clouds[i].Libvirt, index("clouds", i)+".libvirt"
		if l == nil {
			continue
		}
		once("folder", string(l.Dir), path+".dir")
		once("network", l.Network.Name, path+".network.name")
		once("bridge", l.Network.Bridge, path+".network.bridge")
		for j := range i {
			if o := k.c.Clouds[j].Libvirt; o != nil && overlap(o.Network, l.Network) {
				k.bad(path+".network.cidr", "its ranges overlap those of %s", index("clouds", j))
			}
		}
	}
}

// agents checks that the guests of libvirt's networks reach the agent listener:
// of the host they reach nothing but the first address of their network, and a
// VM whose agent cannot report is given up after minutes, without a word of why.
func (k *checker) agents() {
	s := &k.c.Server
	host, port, err := net.SplitHostPort(string(s.Listen.Agent))
	if err != nil || s.AgentURL != "" { // none, or they are told another way
		return
	}
	ip, _ := netip.ParseAddr(host)
	served := "" // the cloud whose guests reach it
	for i := range k.c.Clouds {
		l, path := k.c.Clouds[i].Libvirt, index("clouds", i)
		if l == nil || !l.Network.CIDR.IsValid() {
			continue
		}
		first := hostOf(l.Network.CIDR)
		switch {
		case ip.IsValid() && (ip == first || ip == hostOf(l.Network.CIDR6)):
			served = path
			if port == "0" {
				k.bad("server.listen.agent", "guests are let through to a fixed port; give one, such as %s", net.JoinHostPort(host, "8441"))
			}
		case served != "":
			k.bad(path+".libvirt.network.cidr", "one agent listener serves the guests of one libvirt cloud, which is %s; give server.agent_url if those of this one reach it another way", served)
		default:
			k.bad(path+".libvirt.network.cidr", "its guests reach the agent listener at %s only, and server.listen.agent is %s; make it %s, or give server.agent_url if they reach it another way",
				first, s.Listen.Agent, net.JoinHostPort(first.String(), port))
		}
	}
}

// hostOf gives the host's address on a network: its first.
func hostOf(p netip.Prefix) netip.Addr {
	if !p.IsValid() {
		return netip.Addr{}
	}
	return p.Masked().Addr().Next()
}

func overlap(a, b Network) bool {
	return a.CIDR.Overlaps(b.CIDR) || a.CIDR6.IsValid() && b.CIDR6.IsValid() && a.CIDR6.Overlaps(b.CIDR6)
}
