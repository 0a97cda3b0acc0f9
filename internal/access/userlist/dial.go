package userlist

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// notPublic are ranges that netip has no predicate for, but which are not on
// the public internet or lead back into private networks.
// Source: IANA's IPv4 and IPv6 Special-Purpose Address Registries.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // shared by carriers
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), // benchmarks
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"), // reserved, broadcast
	netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4 holds an IPv4 address
	netip.MustParsePrefix("3fff::/20"),
}

// global6 is all of IPv6 that was ever given out. Outside lie, among others, the
// forms that hold an IPv4 address (compatible, translated, NAT64), site-local
// and discard-only addresses.
var global6 = netip.MustParsePrefix("2000::/3")

// Public reports whether an address is on the public internet, so that a list's
// address cannot make us talk to our own machine or network.
func Public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return false
	}
	if a.Is6() && !global6.Contains(a) {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// control refuses a connection once its address is known, after the name was
// resolved and for redirects too, so that no answer of a name server gets
// around it.
func control(allow func(netip.AddrPort) bool) func(network, address string, c syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("the address %q cannot be judged: %w", address, err)
		}
		if !allow(ap) {
			return &net.AddrError{Err: "the address is not on the public internet", Addr: ap.Addr().String()}
		}
		return nil
	}
}
