package libvirt

import (
	"cmp"
	"net/netip"
	"path/filepath"
	"time"

	"gpuserver"
)

// Config is what a driver is opened with; the zero value of a field is its
// default unless it says otherwise.
type Config struct {
	Name   string // the cloud's name; needed
	Owner  string // tag of this installation; needed
	Socket string // libvirtd's; default /var/run/libvirt/libvirt-sock
	// Dir holds disks, config drives and consoles. QEMU's user passes through
	// it, so never a home. Default /var/lib/gpuserver/libvirt.
	Dir     string
	Images  map[string]ImageSource // by the image's name
	Network Network
	Accel   Accel // default AccelAuto

	Overcommit       float64 // virtual CPUs for each CPU of the host; default 1
	MemoryReserveMiB int64   // of the host's memory, for the host
	DiskReserveGiB   int64   // of Dir's file system, for others
	MaxVMs           int     // 0: as many as fit
	// Models are our names of GPU models by vendor and device number
	// ("10de:1db4"); cards of others go to no VM.
	Models map[string]string
	// ROMs are files that VMs are shown as the firmware of cards, by the same
	// numbers: some cards' own cannot be read, as when the host's console used them.
	ROMs  map[string]string
	Sysfs string // where the GPUs are read from; default /sys
	Kmsg  string // the kernel's log; default /dev/kmsg
	Proc  string // where it is read who has them; default /proc
	// HugePages takes the memory of VMs from the host's huge pages, which the
	// operator has to set aside; without enough of them a VM does not start.
	HugePages    bool
	KeepConsoles time.Duration // after a VM's end; default 14 days
}

// ImageSource is an image's files. QEMU's user must be able to read them; they
// are shared by all VMs and never written.
type ImageSource struct {
	Disk    string // root disk; "": none (a kernel and its initrd alone)
	Format  string // of Disk: "qcow2" (default) or "raw"
	Kernel  string // booted directly; "": Disk is booted by firmware
	Initrd  string // with Kernel
	Cmdline string // with Kernel
}

// Network is the VMs' own NAT network.
type Network struct {
	Name   string       // libvirt's name; default gpuserver
	Bridge string       // at most 15 characters; default gpuserver0
	CIDR   netip.Prefix // IPv4, /16 to /29; the host has its first address; default 192.168.77.0/24
	CIDR6  netip.Prefix // IPv6, a /64; the zero value: no IPv6 at all
	MTU    int          // of bridge and guests; default 1500
	DNS    []netip.Addr // whom dnsmasq asks; none: the host's own name servers
	// AgentPort is the TCP port on Gateway that guests may reach; 0: none.
	AgentPort int
	// OpenRanges are private ranges that guests may reach all the same.
	OpenRanges []netip.Prefix
}

// Gateway is the host's address on the network: what guests know the server by.
func (n Network) Gateway() netip.Addr { return n.CIDR.Masked().Addr().Next() }

// Gateway6 is the host's IPv6 address on the network, if it has IPv6.
func (n Network) Gateway6() netip.Addr {
	if !n.CIDR6.IsValid() {
		return netip.Addr{}
	}
	return n.CIDR6.Masked().Addr().Next()
}

// Accel says how guests are executed.
type Accel string

// The ways to execute a guest.
const (
	AccelAuto Accel = "auto" // KVM where a guest really runs on it, else emulation
	AccelKVM  Accel = "kvm"  // KVM, without trying it first
	AccelTCG  Accel = "tcg"  // QEMU's software emulation
)

func (c Config) withDefaults() (Config, error) {
	c.Socket = cmp.Or(c.Socket, "/var/run/libvirt/libvirt-sock")
	c.Dir = cmp.Or(c.Dir, "/var/lib/gpuserver/libvirt")
	c.Accel = cmp.Or(c.Accel, AccelAuto)
	c.Sysfs = cmp.Or(c.Sysfs, "/sys")
	c.Kmsg = cmp.Or(c.Kmsg, "/dev/kmsg")
	c.Proc = cmp.Or(c.Proc, "/proc")
	c.Overcommit = cmp.Or(c.Overcommit, 1)
	c.KeepConsoles = cmp.Or(c.KeepConsoles, 14*24*time.Hour)
	n := &c.Network
	n.Name = cmp.Or(n.Name, "gpuserver")
	n.Bridge = cmp.Or(n.Bridge, "gpuserver0")
	n.MTU = cmp.Or(n.MTU, 1500)
	if !n.CIDR.IsValid() {
		n.CIDR = netip.MustParsePrefix("192.168.77.0/24")
	}
	return c, c.check()
}

func (c Config) check() error {
	n := c.Network
	bad := func(field, what string) error {
		return gpuserver.Errorf(gpuserver.KindInvalid, "cloud %q cannot be used: its %s %s", c.Name, field, what)
	}
	switch {
	case c.Name == "":
		return bad("name", "is missing")
	case c.Owner == "":
		return bad("owner tag", "is missing; nobody would find its VMs again")
	case !filepath.IsAbs(c.Dir):
		return bad("dir", "must be an absolute path")
	case c.Accel != AccelAuto && c.Accel != AccelKVM && c.Accel != AccelTCG:
		return bad("accel", "must be auto, kvm or tcg")
	case len(n.Bridge) > 15:
		return bad("network.bridge", "may have 15 characters")
	case !n.CIDR.Addr().Is4() || n.CIDR.Bits() < 8 || n.CIDR.Bits() > 29:
		return bad("network.cidr", "must be an IPv4 range of /8 to /29")
	case n.CIDR6.IsValid() && (!n.CIDR6.Addr().Is6() || n.CIDR6.Bits() != 64):
		return bad("network.cidr6", "must be an IPv6 range of /64")
	case n.MTU < 576 || n.MTU > 65535 || n.CIDR6.IsValid() && n.MTU < 1280:
		return bad("network.mtu", "must be 576 to 65535, and with IPv6 at least 1280")
	}
	for name, i := range c.Images {
		if i.Kernel == "" && i.Disk == "" {
			return bad("image "+name, "needs a disk or a kernel")
		}
		if i.Format != "" && i.Format != "qcow2" && i.Format != "raw" {
			return bad("image "+name, "must have the format qcow2 or raw")
		}
	}
	return nil
}
