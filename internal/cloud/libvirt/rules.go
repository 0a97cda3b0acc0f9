package libvirt

import (
	"fmt"
	"net/netip"
	"strings"
)

// closed4 and closed6 are the ranges that no guest reaches unless opened:
// private, shared, link-local, multicast and reserved, and IPv6 ranges in which
// an IPv4 address hides. Documentation ranges are not here: nobody is in them.
// Source: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890).
var (
	closed4 = []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
	}
	closed6 = []string{
		"::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2002::/16",
		"fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	}
)

// tableName is the name of our tables in both families.
func tableName(n Network) string {
	return "gpuserver_" + strings.NewReplacer("-", "_", ".", "_").Replace(n.Bridge)
}

// rules writes both tables for nft. Applied as one transaction, they replace
// what was there; applying them again changes nothing. A packet that one table
// drops is dropped whatever others accept, so other firewalls cannot open what
// is closed here, and the early priority matters for none of it.
func rules(p pool) string {
	n, table := p.net, tableName(p.net)
	var b strings.Builder
	for _, family := range []string{"inet", "bridge"} {
		// Deleting what is not there would fail; so it is made first.
		fmt.Fprintf(&b, "table %s %s {}\ndelete table %s %s\n", family, table, family, table)
	}
	open4, open6 := split(n.OpenRanges)
	fmt.Fprintf(&b, "table inet %s {\n", table)
	writeSet(&b, "closed4", "ipv4_addr", closed4)
	writeSet(&b, "closed6", "ipv6_addr", closed6)
	writeSet(&b, "open4", "ipv4_addr", open4)
	writeSet(&b, "open6", "ipv6_addr", open6)
	b.WriteString(inetChains(p))
	b.WriteString("}\n")
	b.WriteString(bridgeTable(p))
	return b.String()
}

func inetChains(p pool) string {
	n := p.net
	sources := "ip saddr != " + n.CIDR.String() + " drop\n\t\tip saddr " + n.Gateway().String() + " drop"
	agent, gateway6, masquerade6 := "", "", ""
	if n.AgentPort != 0 {
		agent = fmt.Sprintf("ip daddr %s tcp dport %d accept", n.Gateway(), n.AgentPort)
	}
	host6, sources6 := "meta nfproto ipv6 drop", "meta nfproto ipv6 drop"
	if n.CIDR6.IsValid() {
		sources6 = "ip6 saddr != " + n.CIDR6.String() + " drop\n\t\tip6 saddr " + n.Gateway6().String() + " drop"
		host6 = `icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept
		` + sources6 + `
		ip6 daddr ` + n.Gateway6().String() + ` meta l4proto { tcp, udp } th dport 53 accept`
		if n.AgentPort != 0 {
			host6 += fmt.Sprintf("\n\t\tip6 daddr %s tcp dport %d accept", n.Gateway6(), n.AgentPort)
		}
		gateway6 = fmt.Sprintf("iifname != \"lo\" ip6 daddr %s goto to_guest", n.Gateway6())
		masquerade6 = fmt.Sprintf("ip6 saddr %s oifname != \"%s\" masquerade", n.CIDR6, n.Bridge)
	}
	return strings.NewReplacer(
		"BRIDGE", n.Bridge, "PORTS", p.ports(), "TO_GATEWAY6", gateway6, "SOURCES4", sources, "SOURCES6", sources6, "AGENT", agent, "HOST6", host6,
		"GATEWAY", n.Gateway().String(), "CIDR", n.CIDR.String(), "MASQUERADE6", masquerade6,
	).Replace(inetTemplate)
}

// inetTemplate: what guests may say to the host, and to the world through it. A
// port that lost its bridge (net-destroy) is an interface of the host's, on which
// nobody filters for us: it is not listened to. The host's address on the bridge
// is there for guests alone: others on the machine's networks do not reach it.
const inetTemplate = `	chain input {
		type filter hook input priority -20; policy accept;
		iifname "BRIDGE" goto to_host
		iifname "PORTS" drop
		iifname != "lo" ip daddr GATEWAY goto to_guest
		TO_GATEWAY6
	}
	chain to_host {
		ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
		HOST6
		SOURCES4
		ct state established,related accept
		udp sport 68 udp dport 67 accept
		ip daddr GATEWAY meta l4proto { tcp, udp } th dport 53 accept
		AGENT
		drop
	}
	chain forward {
		type filter hook forward priority -20; policy accept;
		iifname "PORTS" drop
		iifname "BRIDGE" goto from_guest
		oifname "BRIDGE" goto to_guest
	}
	chain from_guest {
		oifname "BRIDGE" drop
		SOURCES4
		SOURCES6
		ct state established,related accept
		ct status dnat drop
		ip daddr @open4 accept
		ip6 daddr @open6 accept
		ip daddr @closed4 drop
		ip6 daddr @closed6 drop
		accept
	}
	chain to_guest {
		ct state established,related accept
		drop
	}
	chain nat {
		type nat hook postrouting priority 90; policy accept;
		ip saddr CIDR oifname != "BRIDGE" masquerade
		MASQUERADE6
	}
`

// bridgeTable lets each port send from its own addresses only, and say of no
// others by ARP or neighbour discovery that they are here.
func bridgeTable(p pool) string {
	var own, own6, told6 []string
	for _, a := range p.all() {
		own = append(own, fmt.Sprintf("%q . %s . %s", a.tap, a.mac, a.ip))
		for _, six := range a.six(p.net) {
			own6 = append(own6, fmt.Sprintf("%q . %s . %s", a.tap, a.mac, six))
			b := six.As16()
			told6 = append(told6, fmt.Sprintf("%q . 0x%x", a.tap, b[:]))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table bridge %s {\n", tableName(p.net))
	writeLines(&b, "own", "type ifname . ether_addr . ipv4_addr", own)
	six := "drop"
	if p.net.CIDR6.IsValid() {
		writeLines(&b, "own6", "type ifname . ether_addr . ipv6_addr", own6)
		writeLines(&b, "told6", "typeof iifname . @th,64,128", told6)
		six = sixTemplate
	}
	b.WriteString(strings.NewReplacer("PORTS", p.ports(), "SIX", six).Replace(`	chain prerouting {
		type filter hook prerouting priority -310; policy accept;
		iifname "PORTS" goto from_port
	}
	chain from_port {
		ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
		iifname . ether saddr . ip saddr @own accept
		arp saddr ip 0.0.0.0 accept
		iifname . arp saddr ether . arp saddr ip @own accept
		SIX
	}
}
`))
	return b.String()
}

// sixTemplate: an address is looked for before it is used (RFC 4862, section
// 5.4); what is at 64 bits of an advertisement is the address that it is about
// (RFC 4861, section 4.4).
const sixTemplate = `icmpv6 type { nd-router-advert, nd-redirect } drop
		icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @told6 drop
		udp sport 547 drop
		ip6 saddr :: icmpv6 type { nd-router-solicit, nd-neighbor-solicit } accept
		iifname . ether saddr . ip6 saddr @own6 accept
		drop`

// writeLines writes a set with an element a line.
func writeLines(b *strings.Builder, name, kind string, elements []string) {
	fmt.Fprintf(b, "\tset %s {\n\t\t%s\n\t\telements = {", name, kind)
	for _, e := range elements {
		b.WriteString("\n\t\t\t" + e + ",")
	}
	b.WriteString("\n\t\t}\n\t}\n")
}

func writeSet(b *strings.Builder, name, kind string, elements []string) {
	fmt.Fprintf(b, "\tset %s {\n\t\ttype %s; flags interval; auto-merge\n", name, kind)
	if len(elements) > 0 {
		fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(elements, ", "))
	}
	b.WriteString("\t}\n")
}

func split(ranges []netip.Prefix) (four, six []string) {
	for _, r := range ranges {
		if r.Addr().Is4() {
			four = append(four, r.Masked().String())
		} else {
			six = append(six, r.Masked().String())
		}
	}
	return four, six
}
