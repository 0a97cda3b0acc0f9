package libvirt

import (
	"encoding/xml"
	"fmt"
)

// networkXML is the part of libvirt's network format that we write.
// Source: https://libvirt.org/formatnetwork.html
type networkXML struct {
	XMLName xml.Name `xml:"network"`
	// Options of dnsmasq need libvirt's name space for them.
	DnsmasqSpace string     `xml:"xmlns:dnsmasq,attr"`
	Name         string     `xml:"name"`
	Tag          tag        `xml:"metadata>gpuserver"`
	Forward      forwardXML `xml:"forward"`
	Bridge       bridgeXML  `xml:"bridge"`
	MTU          mtuXML     `xml:"mtu"`
	DNS          dnsXML     `xml:"dns"`
	IPs          []ipXML    `xml:"ip"`
	Port         portXML    `xml:"port"`
	Options      []valueXML `xml:"dnsmasq:options>dnsmasq:option"`
}

type forwardXML struct {
	Mode string `xml:"mode,attr"`
}

type bridgeXML struct {
	Name  string `xml:"name,attr"`
	STP   string `xml:"stp,attr"`
	Delay int    `xml:"delay,attr"`
}

type dnsXML struct {
	Forwarders []forwarderXML `xml:"forwarder"`
}

type forwarderXML struct {
	Addr string `xml:"addr,attr"`
}

type ipXML struct {
	Family  string    `xml:"family,attr"`
	Address string    `xml:"address,attr"`
	Prefix  int       `xml:"prefix,attr"`
	Hosts   []hostXML `xml:"dhcp>host"`
}

type hostXML struct {
	MAC string `xml:"mac,attr"`
	IP  string `xml:"ip,attr"`
}

type valueXML struct {
	Value string `xml:"value,attr"`
}

// describeNetwork describes the network to libvirt: a bridge with DHCP and DNS.
// libvirt sets no firewall rules for mode "open"; translation and filters are in
// our own tables, which are applied and repaired as one.
func describeNetwork(p pool, owner string) networkXML {
	n := p.net
	x := networkXML{
		DnsmasqSpace: "http://libvirt.org/schemas/network/dnsmasq/1.0",
		Name:         n.Name, Forward: forwardXML{"open"}, Bridge: bridgeXML{n.Bridge, "off", 0},
		MTU: mtuXML{n.MTU}, Port: portXML{"yes"},
		Options: []valueXML{
			{fmt.Sprintf("dhcp-option-force=option:mtu,%d", n.MTU)},
			{"no-ping"},           // addresses are ours alone: no need to wait for an answer
			{"dhcp-ignore-names"}, // else a guest's name for itself is told to the others
		},
	}
	for _, a := range n.DNS {
		x.DNS.Forwarders = append(x.DNS.Forwarders, forwarderXML{a.String()})
	}
	ip4 := ipXML{Family: "ipv4", Address: n.Gateway().String(), Prefix: n.CIDR.Bits()}
	for _, a := range p.all() {
		ip4.Hosts = append(ip4.Hosts, hostXML{a.mac.String(), a.ip.String()})
	}
	x.IPs = append(x.IPs, ip4)
	if n.CIDR6.IsValid() {
		x.IPs = append(x.IPs, ipXML{Family: "ipv6", Address: n.Gateway6().String(), Prefix: n.CIDR6.Bits()})
		x.Options = append(x.Options, valueXML{fmt.Sprintf("ra-param=%s,mtu:%d,60", n.Bridge, n.MTU)})
	}
	x.Tag = tag{Owner: owner}
	x.Tag.Config = digest(text(x))
	return x
}

// filterXML is the part of libvirt's network filter format that we write.
// Source: https://libvirt.org/formatnwfilter.html
type filterXML struct {
	XMLName xml.Name   `xml:"filter"`
	Name    string     `xml:"name,attr"`
	Chain   string     `xml:"chain,attr"`
	UUID    string     `xml:"uuid,omitempty"`
	Parts   []filterAt `xml:",any"`
}

// filterAt is a rule or a reference to a filter; their order counts.
type filterAt struct {
	XMLName   xml.Name
	Filter    string      `xml:"filter,attr,omitempty"`
	Action    string      `xml:"action,attr,omitempty"`
	Direction string      `xml:"direction,attr,omitempty"`
	Priority  int         `xml:"priority,attr,omitempty"`
	Match     []filterOne `xml:",any"`
}

type filterOne struct {
	XMLName  xml.Name
	Protocol string `xml:"protocolid,attr,omitempty"` // of mac
	IP6Proto string `xml:"protocol,attr,omitempty"`   // of ipv6
	Type     int    `xml:"type,attr,omitempty"`       // of ICMPv6
	SrcPort  int    `xml:"srcportstart,attr,omitempty"`
}

func filterName(n Network) string { return "gpuserver-" + n.Bridge }

// describeFilter describes what a VM's port lets through: its own MAC and IPv4
// address, and IPv6 only where the network has it, without what only a router
// says. generation changes nothing but makes libvirt set it up anew.
func describeFilter(n Network, uuid string, generation int) filterXML {
	ref := func(name string) filterAt { return filterAt{XMLName: xml.Name{Local: "filterref"}, Filter: name} }
	rule := func(action, direction string, priority int, m filterOne) filterAt {
		return filterAt{XMLName: xml.Name{Local: "rule"}, Action: action, Direction: direction, Priority: priority, Match: []filterOne{m}}
	}
	mac := func(protocol string) filterOne {
		return filterOne{XMLName: xml.Name{Local: "mac"}, Protocol: protocol}
	}
	x := filterXML{Name: filterName(n), Chain: "root", UUID: uuid, Parts: []filterAt{
		ref("no-mac-spoofing"), ref("no-ip-spoofing"),
		rule("accept", "out", -650, mac("ipv4")),
		ref("allow-incoming-ipv4"), ref("no-arp-spoofing"),
		rule("accept", "inout", -500, mac("arp")),
	}}
	if n.CIDR6.IsValid() {
		ip6 := func(protocol string, icmp, port int) filterOne {
			return filterOne{XMLName: xml.Name{Local: "ipv6"}, IP6Proto: protocol, Type: icmp, SrcPort: port}
		}
		x.Parts = append(x.Parts,
			rule("drop", "out", -480, ip6("icmpv6", 134, 0)), // router advertisement
			rule("drop", "out", -480, ip6("icmpv6", 137, 0)), // redirect
			rule("drop", "out", -480, ip6("udp", 0, 547)),    // DHCPv6 server
			rule("accept", "inout", -470, mac("ipv6")))
	}
	// Anything else is dropped; the priority is the generation.
	x.Parts = append(x.Parts, filterAt{XMLName: xml.Name{Local: "rule"}, Action: "drop", Direction: "inout", Priority: 900 + generation})
	return x
}
