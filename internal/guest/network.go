package guest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// networkData is the part of OpenStack's network_data.json that the agent
// carries out. Source: OpenStack Compute documentation, network_data.json schema.
type networkData struct {
	Links []struct {
		ID  string `json:"id"`
		MAC string `json:"ethernet_mac_address"`
		MTU int    `json:"mtu"`
	} `json:"links"`
	Networks []network `json:"networks"`
	Services []struct {
		Type    string `json:"type"`
		Address string `json:"address"`
	} `json:"services"`
}

// network is one network on a link.
type network struct {
	Link    string `json:"link"`
	Type    string `json:"type"` // ipv4, ipv4_dhcp, ipv6, ipv6_slaac, …
	Address string `json:"ip_address"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
	Routes  []struct {
		Network string `json:"network"`
		Netmask string `json:"netmask"`
		Gateway string `json:"gateway"`
	} `json:"routes"`
}

// route is one way out of a network.
type route struct {
	to  netip.Prefix
	via netip.Addr
}

// routes gives the network's routes that can be understood.
func (w network) routes() []route {
	var all []route
	add := func(to netip.Prefix, gateway string) {
		if via, err := netip.ParseAddr(gateway); err == nil && via.Is4() == to.Addr().Is4() {
			all = append(all, route{to, via})
		}
	}
	for _, r := range w.Routes {
		if to, ok := prefix(r.Network, r.Netmask); ok {
			add(to, r.Gateway)
		}
	}
	if g, err := netip.ParseAddr(w.Gateway); err == nil {
		zero := netip.IPv6Unspecified()
		if g.Is4() {
			zero = netip.IPv4Unspecified()
		}
		add(netip.PrefixFrom(zero, 0), w.Gateway)
	}
	return all
}

// files gives the systemd-networkd files that make the network so, by name;
// without network data it is DHCP on every Ethernet link. mtu 0 leaves the
// network's own.
func (n *networkData) files(mtu int) map[string]string {
	if n == nil || len(n.Links) == 0 {
		return map[string]string{"05-gpuserver.network": "[Match]\nType=ether\n" + linkSection(mtu) + "\n[Network]\nDHCP=yes\n"}
	}
	files := map[string]string{}
	for i, link := range n.Links {
		mac, err := net.ParseMAC(link.MAC)
		if err != nil {
			continue // no Ethernet link
		}
		body := fmt.Sprintf("[Match]\nMACAddress=%s\n", mac) + linkSection(orDefault(mtu, link.MTU)) + "\n[Network]\n" + n.sections(link.ID)
		files[fmt.Sprintf("05-gpuserver-%d.network", i)] = body
	}
	return files
}

func linkSection(mtu int) string {
	if mtu == 0 {
		return ""
	}
	// [DHCPv4] UseMTU is off by default, so this is the last word.
	return fmt.Sprintf("\n[Link]\nMTUBytes=%d\n", mtu)
}

// sections gives the body of [Network] for one link, and the [Route] sections.
func (n *networkData) sections(link string) string {
	var network, routes strings.Builder
	for _, w := range n.Networks {
		if w.Link != link {
			continue
		}
		switch w.Type {
		case "ipv4_dhcp":
			network.WriteString("DHCP=ipv4\n")
		case "ipv6_dhcp", "ipv6_dhcpv6-stateful", "ipv6_dhcpv6-stateless", "ipv6_slaac":
			network.WriteString("IPv6AcceptRA=yes\n")
		case "ipv4", "ipv6":
			if p, ok := prefix(w.Address, w.Netmask); ok {
				fmt.Fprintf(&network, "Address=%s\n", p)
			}
			for _, r := range w.routes() {
				fmt.Fprintf(&routes, "\n[Route]\nDestination=%s\nGateway=%s\n", r.to, r.via)
			}
		}
	}
	for _, s := range n.nameServers() {
		fmt.Fprintf(&network, "DNS=%s\n", s)
	}
	return network.String() + routes.String()
}

// nameServers gives the DNS servers.
func (n *networkData) nameServers() []netip.Addr {
	if n == nil {
		return nil
	}
	var all []netip.Addr
	for _, s := range n.Services {
		if a, err := netip.ParseAddr(s.Address); s.Type == "dns" && err == nil {
			all = append(all, a)
		}
	}
	return all
}

// prefix reads an address with its netmask: "255.255.255.0", "ffff::", or in
// the address itself after a slash.
func prefix(address, netmask string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(address); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(address)
	mask, err2 := netip.ParseAddr(netmask)
	if err != nil || err2 != nil || a.Is4() != mask.Is4() {
		return netip.Prefix{}, false
	}
	bits, size := net.IPMask(mask.AsSlice()).Size()
	if size == 0 {
		return netip.Prefix{}, false // ones after zeros
	}
	return netip.PrefixFrom(a, bits), true
}

// awaitNetwork waits until the guest has an address that reaches beyond the
// link. After networkWait it goes on without: the runner tries again by itself.
func (a *agent) awaitNetwork(ctx context.Context) {
	if !a.Unprivileged && !awaitAddress(ctx) {
		a.log.Error("no network address", "waited", networkWait)
	}
	a.status.reached(PhaseNetwork)
	a.report.wake()
	if len(a.servers) > 0 {
		a.resolver(a.servers)
	}
	close(a.online)
	if a.Unprivileged || len(a.servers) > 0 {
		return
	}
	// What DHCP told is known a moment after the address.
	for end := time.Now().Add(resolverWait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		if servers := a.leased(); len(servers) > 0 {
			a.resolver(servers)
			return
		}
	}
}

// awaitAddress reports whether an address came within networkWait.
func awaitAddress(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, networkWait)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	changed := make(chan struct{}, 1)
	watch.Go(func() { watchAddresses(ctx, changed) })
	for !hasAddress() {
		select {
		case <-changed:
		case <-time.After(time.Second): // should a message be missed
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// hasAddress reports whether a link other than the loopback has a usable
// address.
func hasAddress() bool {
	addresses, _ := net.InterfaceAddrs() // none yet
	for _, address := range addresses {
		if n, ok := address.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return true
		}
	}
	return false
}

// watchAddresses tells of changed addresses until ctx ends.
func watchAddresses(ctx context.Context, changed chan<- struct{}) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return // the caller looks once a second, too
	}
	defer unix.Close(fd)
	_ = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR})
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	b := make([]byte, 8192)
	for ctx.Err() == nil {
		if n, err := unix.Read(fd, b); err != nil || n <= 0 {
			continue // the time-out: look at ctx
		}
		select {
		case changed <- struct{}{}:
		default: // told already
		}
	}
}

// leased gives the DNS servers that systemd-networkd learnt.
func (a *agent) leased() []netip.Addr {
	b, _ := os.ReadFile(a.path("run/systemd/netif/state")) // none: another network manager
	var all []netip.Addr
	for line := range strings.Lines(string(b)) {
		servers, ok := strings.CutPrefix(strings.TrimSpace(line), "DNS=")
		if !ok {
			continue
		}
		for s := range strings.FieldsSeq(servers) {
			if server, err := netip.ParseAddr(s); err == nil {
				all = append(all, server)
			}
		}
	}
	return all
}

// resolver writes /etc/resolv.conf, unless something else in the image does.
func (a *agent) resolver(servers []netip.Addr) {
	if _, err := os.Stat(a.path("etc/resolv.conf")); err == nil {
		return
	}
	var conf strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&conf, "nameserver %s\n", s)
	}
	if err := a.writeFile("etc/resolv.conf", []byte(conf.String()), 0o644); err != nil {
		a.log.Warn("cannot write resolv.conf", "err", err)
	}
}
