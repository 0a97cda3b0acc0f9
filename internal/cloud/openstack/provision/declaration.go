// Package provision makes what a project on an OpenStack has to have for us: user,
// flavors, quotas, network, security groups and keys, as a declaration says.
//
// Look reads what is there, Diff says what differs, and Apply makes each change.
// Diff decides without doing: what it is given is all that it knows, so that a plan
// that was shown is the one that is carried out.
package provision

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Declaration is what is to be there. What it leaves empty is not looked at.
type Declaration struct {
	Cloud string // our name of the cloud
	// Mark is the description of what is made here. What bears it and is no longer
	// declared can be pruned; nothing else ever is.
	Mark string

	Project Principal
	User    *User
	// Credential is an application credential of User.
	Credential *Credential

	Flavors       []Flavor
	FlavorsPublic bool // else for the project only

	// Quotas of the project by Nova's, Neutron's and Cinder's own names (ram is in
	// MiB); -1 is no limit.
	ComputeQuotas, NetworkQuotas, VolumeQuotas map[string]int64
	DefaultQuotas                              map[string]int64 // Nova's class "default"

	Network *Network
	Groups  []Group
	Keys    []Key

	Images []Image // looked at only
	// Notes are what a reader of the plan should know of the declaration itself.
	Notes []string
}

// Principal is a project or a user by the names of itself and its domain.
type Principal struct{ Name, Domain string }

// User is the service's user.
type User struct {
	Principal
	Roles []string // in the project
}

// Credential is an application credential, and where it is written to.
type Credential struct {
	Name  string
	File  string // a clouds.yaml that must not be there yet
	Entry string // its name in it
}

// Flavor is a size of server.
type Flavor struct {
	Name  string // or the id of one that is there
	VCPUs int
	RAM   int64  // MiB
	Disk  int64  // GiB
	Alias string // value of pci_passthrough:alias, such as "tesla-v100:1"; "": no card
}

// Network is a network with one subnet, and a router if External is given. All three
// have its name.
type Network struct {
	Name     string
	MTU      int // 0: as Neutron says
	CIDR     netip.Prefix
	DNS      []netip.Addr
	External string // name of an external network
}

// Group is a security group with exactly these rules.
type Group struct {
	Name  string
	Rules []Rule
}

// Rule lets something through. Write one with its zero values for "any".
type Rule struct {
	ID        string // Neutron's; of one that was found
	Direction string // ingress or egress
	Ethertype string // IPv4 or IPv6
	Protocol  string
	First     int // port; 0: all
	Last      int
	CIDR      string // "": everywhere
	Group     string // the id of a group that it is about in place of a range
}

// Egress gives a rule for connections to a range. Protocol "any" is none; ports 0
// and 0 are all.
func Egress(to netip.Prefix, protocol string, first, last int) Rule {
	r := Rule{Direction: "egress", Ethertype: "IPv4", Protocol: protocol, First: first, Last: last, CIDR: to.String()}
	if to.Addr().Is6() {
		r.Ethertype = "IPv6"
	}
	return r.plain()
}

// plain gives a rule in the one form that is compared: Neutron has several for some.
func (r Rule) plain() Rule {
	if r.CIDR == "0.0.0.0/0" || r.CIDR == "::/0" {
		r.CIDR = ""
	}
	if r.Protocol == "any" {
		r.Protocol = ""
	}
	if r.Protocol == "icmp" && r.Ethertype == "IPv6" || r.Protocol == "icmpv6" {
		r.Protocol = "ipv6-icmp"
	}
	return r
}

// String gives a rule in words, without its id.
func (r Rule) String() string {
	r = r.plain()
	words := []string{r.Direction, r.Ethertype, cmp.Or(r.Protocol, "any protocol")}
	if r.First > 0 {
		words = append(words, "port "+r.Ports())
	}
	way := "to"
	if r.Direction == "ingress" {
		way = "from"
	}
	switch {
	case r.Group != "":
		words = append(words, way, "group", r.Group)
	default:
		words = append(words, way, cmp.Or(r.CIDR, "everywhere"))
	}
	return strings.Join(words, " ")
}

// Ports gives the ports of a rule, such as "443" or "8000-8100".
func (r Rule) Ports() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Everywhere are the rules of a group whose servers may connect to everything, which
// are those of a new group.
func Everywhere() []Rule {
	return []Rule{{Direction: "egress", Ethertype: "IPv4"}, {Direction: "egress", Ethertype: "IPv6"}}
}

// Key is a key pair of the user.
type Key struct{ Name, Public string }

// sameKey compares public keys without their comments.
func sameKey(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	return len(x) >= 2 && len(y) >= 2 && slices.Equal(x[:2], y[:2])
}

// Image is an image of ours, by our name and the cloud's.
type Image struct{ Name, There string }
