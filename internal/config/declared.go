package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Declared is what "gpuserver cloud apply" makes on an OpenStack. The service itself
// does not read it.
type Declared struct {
	Admin      *CloudsEntry           `json:"admin,omitempty" jsonschema:"The credentials with which gpuserver cloud works: an administrator's. The service never reads them. None: those of the service."`
	Project    DeclaredProject        `json:"project" jsonschema:"The project in which VMs are made."`
	User       *DeclaredUser          `json:"user,omitempty" jsonschema:"The service's user. None: users and roles are not looked at."`
	Credential *ApplicationCredential `json:"application_credential,omitempty" jsonschema:"With which the service logs in, as this user."`
	Flavors    string                 `json:"flavors,omitempty" enum:"public,project,none" jsonschema:"Who may use the flavors that are made of ours: everybody, or this project only. none: flavors are not looked at."`

	Quotas        ProjectQuotas `json:"quotas,omitempty" jsonschema:"Quotas of the project. Those that are not given are left as they are."`
	DefaultQuotas NovaQuotas    `json:"default_quotas,omitempty" jsonschema:"Quotas of every project that has none of its own (Nova's class default)."`

	Network        *DeclaredNetwork `json:"network,omitempty" jsonschema:"The network of VMs, with its subnet and router."`
	SecurityGroups []DeclaredGroup  `json:"security_groups,omitempty" jsonschema:"Security groups. Nothing comes in; what may go out is listed."`
	KeyPairs       []DeclaredKey    `json:"key_pairs,omitempty" jsonschema:"Key pairs of the user."`
}

// CloudsEntry is an entry of a clouds.yaml.
type CloudsEntry struct {
	CloudsFile Path   `json:"clouds_file" jsonschema:"The clouds.yaml."`
	Cloud      string `json:"cloud" jsonschema:"The entry in it."`
}

// DeclaredProject is a project of Keystone.
type DeclaredProject struct {
	Name   string `json:"name" jsonschema:"Its name."`
	Domain string `json:"domain,omitempty" jsonschema:"The name of its domain."`
}

// DeclaredUser is a user of Keystone.
type DeclaredUser struct {
	Name   string   `json:"name" jsonschema:"Its name. It belongs to the service alone: to make an application credential, it is given a password that nobody knows."`
	Domain string   `json:"domain,omitempty" jsonschema:"The name of its domain."`
	Roles  []string `json:"roles,omitempty" jsonschema:"The roles that it has in the project."`
}

// ApplicationCredential is a credential of the declared user.
type ApplicationCredential struct {
	Name string `json:"name" jsonschema:"Its name."`
	File Path   `json:"file,omitempty" jsonschema:"The clouds.yaml that is written when it is made, once, with mode 0600; it must not be there before. None: clouds_file of the cloud."`
}

// NovaQuotas are quotas of Nova. 0: left as it is.
type NovaQuotas struct {
	Instances int  `json:"instances,omitempty" range:"-1..1000000" jsonschema:"Servers. -1: no limit."`
	Cores     int  `json:"cores,omitempty" range:"-1..10000000" jsonschema:"Virtual CPUs. -1: no limit."`
	Memory    Size `json:"memory,omitempty" jsonschema:"Memory of all servers, in whole MiB. Nova's own default is 50GiB."`
}

// ProjectQuotas are quotas of a project. 0: left as it is.
type ProjectQuotas struct {
	Instances int  `json:"instances,omitempty" range:"-1..1000000" jsonschema:"Servers. -1: no limit."`
	Cores     int  `json:"cores,omitempty" range:"-1..10000000" jsonschema:"Virtual CPUs. -1: no limit."`
	Memory    Size `json:"memory,omitempty" jsonschema:"Memory of all servers, in whole MiB. Nova's own default is 50GiB, less than one flavor of 64GiB."`
	Ports     int  `json:"ports,omitempty" range:"-1..1000000" jsonschema:"Ports of networks: one for each server, one for DHCP and one for the router. -1: no limit."`
	Volumes   int  `json:"volumes,omitempty" range:"-1..1000000" jsonschema:"Volumes, with boot_from_volume. -1: no limit."`
	Gigabytes int  `json:"gigabytes,omitempty" range:"-1..100000000" jsonschema:"GiB of all volumes, with boot_from_volume. -1: no limit."`
}

// DeclaredNetwork is a network with its subnet and router.
type DeclaredNetwork struct {
	Name     string       `json:"name" jsonschema:"The name of the network, of its subnet and of its router."`
	MTU      int          `json:"mtu,omitempty" range:"1280..9216" jsonschema:"What DHCP tells guests. 0: what Neutron gives it."`
	CIDR     netip.Prefix `json:"cidr" jsonschema:"The subnet's range, of IPv4."`
	DNS      []netip.Addr `json:"dns,omitempty" jsonschema:"Name servers that DHCP tells guests. None: those of Neutron."`
	External string       `json:"external,omitempty" jsonschema:"The name of the external network that a router leads to. None: no router."`
}

// DeclaredGroup is a security group.
type DeclaredGroup struct {
	Name   string         `json:"name" jsonschema:"Its name."`
	Egress []DeclaredRule `json:"egress,omitempty" jsonschema:"Where its servers may connect to. None: everywhere. A group can only allow: to keep an address out, list the ranges around it."`
}

// DeclaredRule lets servers connect somewhere.
type DeclaredRule struct {
	CIDR     netip.Prefix `json:"cidr" jsonschema:"The range of addresses; 0.0.0.0/0 and ::/0 are all."`
	Protocol string       `json:"protocol,omitempty" enum:"any,tcp,udp,icmp" jsonschema:"The protocol. None: any."`
	Ports    string       `json:"ports,omitempty" jsonschema:"A port, or a range such as 8000-8100, of tcp or udp. None: all."`
}

// DeclaredKey is a key pair of the declared user.
type DeclaredKey struct {
	Name      string `json:"name" jsonschema:"Its name."`
	PublicKey string `json:"public_key" jsonschema:"The public key, as ssh-keygen writes it."`
}

// declared checks a declaration.
func (k *checker) declared(o *OpenStack, path string) {
	d := o.Declared
	k.foreign(d.Project.Name, path+".project.name")
	k.foreign(d.Project.Domain, path+".project.domain")
	if d.Admin != nil && d.Admin.CloudsFile == o.CloudsFile {
		k.bad(path+".admin.clouds_file", "the service reads this file; keep the administrator's credentials in another")
	}
	if d.User != nil {
		k.foreign(d.User.Name, path+".user.name")
		k.foreign(d.User.Domain, path+".user.domain")
	}
	if d.Credential != nil {
		k.foreign(d.Credential.Name, path+".application_credential.name")
		if d.User == nil {
			k.bad(path+".application_credential", "it belongs to a user; give user, too")
		}
		if d.Credential.File == "" && o.CloudsFile == "" {
			k.bad(path+".application_credential.file", "give the file that is written, or clouds_file of the cloud")
		}
	}
	if len(d.KeyPairs) > 0 && d.User == nil {
		k.bad(path+".key_pairs", "they belong to a user; give user, too")
	}
	for _, m := range []struct {
		key  string
		size Size
	}{{"quotas", d.Quotas.Memory}, {"default_quotas", d.DefaultQuotas.Memory}} {
		if m.size%MiB != 0 {
			k.bad(path+"."+m.key+".memory", "Nova counts in whole MiB")
		}
	}
	k.declaredNetwork(d.Network, path+".network")
	k.declaredNames(d, path)
	for i, g := range d.SecurityGroups {
		for j, r := range g.Egress {
			k.declaredRule(r, path+index(".security_groups", i)+index(".egress", j))
		}
	}
}

// declaredNames refuses names that stand twice.
func (k *checker) declaredNames(d *Declared, path string) {
	groups, keys := map[string]string{}, map[string]string{}
	for i, g := range d.SecurityGroups {
		at := path + index(".security_groups", i) + ".name"
		k.unique(groups, g.Name, at, foreignNameRE, foreignNameWords)
		if g.Name == "default" {
			k.bad(at, "Neutron makes the group default itself, and it is for all projects' servers that name none; give another name")
		}
	}
	for i, p := range d.KeyPairs {
		at := path + index(".key_pairs", i)
		k.unique(keys, p.Name, at+".name", foreignNameRE, foreignNameWords)
		if f := strings.Fields(p.PublicKey); len(f) < 2 || strings.Contains(p.PublicKey, "PRIVATE") {
			k.bad(at+".public_key", "that is no public key of OpenSSH, such as ssh-ed25519 AAAA…")
		}
	}
}

func (k *checker) declaredNetwork(n *DeclaredNetwork, path string) {
	if n == nil {
		return
	}
	k.foreign(n.Name, path+".name")
	if !n.CIDR.Addr().Is4() || n.CIDR.Bits() < 8 || n.CIDR.Bits() > 29 {
		k.bad(path+".cidr", "give an IPv4 range of /8 to /29, such as 10.30.0.0/22")
	}
	k.masked(n.CIDR, path+".cidr")
}

func (k *checker) declaredRule(r DeclaredRule, path string) {
	k.masked(r.CIDR, path+".cidr")
	if r.Ports == "" {
		return
	}
	if r.Protocol != "tcp" && r.Protocol != "udp" {
		k.bad(path+".ports", "only tcp and udp have ports")
	}
	if _, _, ok := r.PortRange(); !ok {
		k.bad(path+".ports", "%q is neither a port nor a range such as 8000-8100", r.Ports)
	}
}

// PortRange gives the first and the last port, 0 and 0 for all; false: that is none.
func (r DeclaredRule) PortRange() (first, last int, ok bool) {
	if r.Ports == "" {
		return 0, 0, true
	}
	lo, hi, both := strings.Cut(r.Ports, "-")
	if !both {
		hi = lo
	}
	first, err := strconv.Atoi(lo)
	last, err2 := strconv.Atoi(hi)
	return first, last, err == nil && err2 == nil && first >= 1 && first <= last && last <= 65535
}

// foreignNameRE is what a thing may be called on an OpenStack: more than here, but
// nothing that hides.
var foreignNameRE = regexp.MustCompile(`^[^\s\pC](?:[^\pC]{0,253}[^\s\pC])?$`)

const foreignNameWords = "1 to 255 characters without blanks at the ends"

func (k *checker) foreign(name, path string) { k.form(name, path, foreignNameRE, foreignNameWords) }

// declaredUse warns of a declaration that the running service would not use.
func (k *checker) declaredUse(o *OpenStack, path string) {
	d := o.Declared
	if d.Network != nil && len(o.Networks) > 0 && !slices.Contains(o.Networks, d.Network.Name) {
		k.bad(path+".network.name", "networks of this cloud lacks %q: no VM would use it", d.Network.Name)
	}
	for i, g := range d.SecurityGroups {
		if !slices.Contains(o.SecurityGroups, g.Name) {
			k.bad(path+index(".security_groups", i)+".name", "security_groups of this cloud lacks %q: no VM would use it", g.Name)
		}
	}
}
