package libvirt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gpuserver"
)

// pool is the network's addresses. Each has its MAC address and the name of its
// port on the bridge, all three computed from one number: so DHCP, filters and
// rules are written once for all VMs, and no guest can use another's.
type pool struct {
	net  Network
	dir  string // one link for each address in use: number → VM
	size int    // numbers are 1 to size
}

// maxVMs bounds a network's addresses, and with it the rules that list them.
const maxVMs = 1000

// address is one place on the network.
type address struct {
	ip  netip.Addr
	mac net.HardwareAddr
	tap string // the port's name on the host
}

func newPool(n Network, dir string) pool {
	hosts := 1<<(32-n.CIDR.Bits()) - 3 // without network, host and broadcast
	return pool{net: n, dir: dir, size: min(hosts, maxVMs)}
}

// at gives the address of a number.
func (p pool) at(number int) address {
	base := p.net.CIDR.Masked().Addr().As4()
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], binary.BigEndian.Uint32(base[:])+1+uint32(number))
	h := fnv.New32a()
	h.Write([]byte(p.net.Bridge)) // never fails
	id := h.Sum32()
	return address{
		ip:  netip.AddrFrom4(ip),
		mac: net.HardwareAddr{0x52, 0x54, byte(id), byte(id >> 8), byte(number >> 8), byte(number)},
		tap: fmt.Sprintf("gs%04x-%d", id&0xffff, number),
	}
}

// six gives the IPv6 addresses that a guest makes itself from its MAC address:
// the link's own, and the one in the network's range.
// Source: RFC 4291, appendix A.
func (a address) six(n Network) (list []netip.Addr) {
	for _, p := range []netip.Prefix{netip.MustParsePrefix("fe80::/64"), n.CIDR6} {
		b := p.Masked().Addr().As16()
		copy(b[8:], []byte{a.mac[0] ^ 2, a.mac[1], a.mac[2], 0xff, 0xfe, a.mac[3], a.mac[4], a.mac[5]})
		list = append(list, netip.AddrFrom16(b))
	}
	return list
}

// all gives every address.
func (p pool) all() []address {
	list := make([]address, p.size)
	for i := range list {
		list[i] = p.at(i + 1)
	}
	return list
}

// ports matches the names of all ports, and of nothing else, in a rule.
func (p pool) ports() string {
	prefix, _, _ := strings.Cut(p.at(1).tap, "-")
	return prefix + "-*"
}

// claim takes a free address for a VM.
func (p pool) claim(vm string) (address, error) {
	for number := 1; number <= p.size; number++ {
		err := os.Symlink(vm, filepath.Join(p.dir, strconv.Itoa(number)))
		if err == nil {
			return p.at(number), nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return address{}, unavailable("claim an address", err)
		}
	}
	return address{}, gpuserver.Errorf(gpuserver.KindCapacity, "all %d addresses of network %s are in use", p.size, p.net.Name)
}

// held gives the addresses claimed for a VM: at most one.
func (p pool) held(vm string) (paths []string, first address, err error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, address{}, err
	}
	for _, e := range entries {
		path := filepath.Join(p.dir, e.Name())
		number, err := strconv.Atoi(e.Name())
		if holder, _ := os.Readlink(path); err != nil || holder != vm {
			continue
		}
		if paths == nil {
			first = p.at(number)
		}
		paths = append(paths, path)
	}
	return paths, first, nil
}

// release gives a VM's address back.
func (p pool) release(vm string) error {
	paths, _, err := p.held(vm)
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
