package guest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ifreq is struct ifreq with a socket address, flags or a number in its union.
// Source: netdevice(7).
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

// rtentry is struct rtentry on 64-bit Linux. Source: route(7), <linux/route.h>.
type rtentry struct {
	_       uint64
	dst     [16]byte
	gateway [16]byte
	genmask [16]byte
	flags   uint16
	_       [62]byte // metric, device, sizes: the kernel's own choice
}

// applyStatic gives links that network data describes their IPv4 address and
// routes at once: a network manager, which does the same later from the files,
// may need seconds in an emulated machine. It acts only where links keep the
// kernel's names, because one that is up cannot be renamed any more.
func (a *agent) applyStatic(n *networkData, mtu int) {
	cmdline, _ := os.ReadFile(a.path("proc/cmdline"))
	if a.Unprivileged || n == nil || !slices.Contains(strings.Fields(string(cmdline)), "net.ifnames=0") {
		return
	}
	links, err := net.Interfaces()
	if err != nil {
		a.log.Warn("cannot list the network links", "err", err)
		return
	}
	for _, described := range n.Links {
		mac, err := net.ParseMAC(described.MAC)
		if err != nil {
			continue
		}
		for _, link := range links {
			if slices.Equal(link.HardwareAddr, mac) {
				err := n.apply(link.Name, described.ID, orDefault(mtu, described.MTU))
				a.log.Info("static address", "link", link.Name, "err", err)
			}
		}
	}
}

// apply sets up one link; what it cannot do is left to the network manager.
func (n *networkData) apply(name, id string, mtu int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if mtu > 0 {
		if err := ifSet(fd, name, unix.SIOCSIFMTU, binary.NativeEndian.AppendUint32(nil, uint32(mtu))); err != nil {
			return err
		}
	}
	for _, w := range n.Networks {
		p, ok := prefix(w.Address, w.Netmask)
		if w.Link != id || w.Type != "ipv4" || !ok || !p.Addr().Is4() {
			continue
		}
		if err := ifSet(fd, name, unix.SIOCSIFADDR, sockaddr(p.Addr())); err != nil {
			return err
		}
		mask, _ := netip.AddrFromSlice(net.CIDRMask(p.Bits(), 32))
		if err := ifSet(fd, name, unix.SIOCSIFNETMASK, sockaddr(mask)); err != nil {
			return err
		}
		up := binary.NativeEndian.AppendUint16(nil, unix.IFF_UP|unix.IFF_RUNNING|unix.IFF_BROADCAST|unix.IFF_MULTICAST)
		if err := ifSet(fd, name, unix.SIOCSIFFLAGS, up); err != nil {
			return err
		}
		for _, r := range w.routes() {
			if err := addRoute(fd, r); err != nil && err != unix.EEXIST {
				return err
			}
		}
	}
	return nil
}

// ifSet carries out one of netdevice's ioctls.
func ifSet(fd int, name string, request uintptr, value []byte) error {
	var r ifreq
	copy(r.name[:unix.IFNAMSIZ-1], name)
	copy(r.data[:], value)
	return ioctlPointer(uintptr(fd), request, &r)
}

func addRoute(fd int, r route) error {
	mask, _ := netip.AddrFromSlice(net.CIDRMask(r.to.Bits(), 32))
	e := rtentry{flags: unix.RTF_UP | unix.RTF_GATEWAY}
	copy(e.dst[:], sockaddr(r.to.Masked().Addr()))
	copy(e.genmask[:], sockaddr(mask))
	copy(e.gateway[:], sockaddr(r.via))
	return ioctlPointer(uintptr(fd), unix.SIOCADDRT, &e)
}

// sockaddr gives struct sockaddr_in with port 0.
func sockaddr(a netip.Addr) []byte {
	four := a.As4()
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
	return append(append(b, 0, 0), four[:]...)
}

var _ [120]byte = [unsafe.Sizeof(rtentry{})]byte{} // as the kernel has it
