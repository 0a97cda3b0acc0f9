package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

// OpenStack are the options of VMs in a project of an OpenStack.
type OpenStack struct {
	CloudsFile Path          `json:"clouds_file,omitempty" jsonschema:"A clouds.yaml with the credentials, readable for the server only; a secure.yaml beside it is read, too. None: the variables OS_* of the server's environment."`
	Cloud      string        `json:"cloud,omitempty" jsonschema:"The entry in clouds_file."`
	Region     string        `json:"region,omitempty" jsonschema:"The region. None: the entry's, or the only one."`
	Interface  string        `json:"interface,omitempty" enum:"public,internal,admin" jsonschema:"Which of the catalogue's URLs are used. None: the entry's, or public."`
	CAFile     Path          `json:"ca_file,omitempty" jsonschema:"Certificates of the authority that the cloud's are signed by. None: the entry's, or the machine's."`
	Endpoints  Endpoints     `json:"endpoints,omitempty" jsonschema:"URLs of services in place of the catalogue's, as where a gateway stands before the cloud."`
	AgentURL   URL           `json:"agent_url,omitempty" jsonschema:"URL under which this cloud's guests reach the agent listener, if it is not that of the other guests."`
	Call       time.Duration `json:"call_timeout,omitempty" range:"1s..10m" jsonschema:"How long one call to the cloud may take."`

	Networks         []string `json:"networks,omitempty" jsonschema:"Names or ids of the networks that a VM is on. None: Nova chooses, which it can where the project sees one."`
	MakePorts        bool     `json:"make_ports,omitempty" jsonschema:"Make a VM's ports ourselves, one call more each, instead of leaving them to Nova: one that Nova forgets is then found and deleted."`
	SecurityGroups   []string `json:"security_groups,omitempty" jsonschema:"Names or ids. None: the project's default group."`
	AvailabilityZone string   `json:"availability_zone,omitempty" jsonschema:"None: any."`
	ServerGroup      string   `json:"server_group,omitempty" jsonschema:"Name or id of a server group that all VMs are members of."`
	KeyPair          string   `json:"key_pair,omitempty" jsonschema:"Name of a key pair of the credential's user, for looking into a VM. It is in every VM then."`
	BootFromVolume   bool     `json:"boot_from_volume,omitempty" jsonschema:"Root disks are volumes, as large as the flavor's disk, and are deleted with their VM."`
	VolumeType       string   `json:"volume_type,omitempty" jsonschema:"Type of these volumes. None: the cloud's default."`

	Flavors []OpenStackFlavor `json:"flavors,omitempty" jsonschema:"What flavors are called on this cloud. Those that are not listed have the same name there."`
	GPUs    []OpenStackGPUs   `json:"gpus,omitempty" jsonschema:"The cards that VMs of this cloud may have. None: flavors with GPUs find no room on it."`

	MaxVMs       int           `json:"max_vms,omitempty" range:"0..100000" jsonschema:"VMs at the same time. 0: as many as the project's quotas allow."`
	LaunchRate   int           `json:"launches_per_minute,omitempty" range:"0..6000" jsonschema:"VMs that are asked for in a minute. 0: no limit."`
	BuildTimeout time.Duration `json:"build_timeout,omitempty" range:"10s..1d" jsonschema:"How long Nova may take to make a VM; 2s more for each GiB of its memory."`
	Emulated     bool          `json:"emulated,omitempty" jsonschema:"The cloud's hypervisors run VMs in software emulation: time-outs are multiplied."`

	Placement *CloudsEntry `json:"placement,omitempty" jsonschema:"Credentials of a user who may read and change Placement, an administrator: a bad card is then reserved there, in place of keeping its server. It needs report_in_placement of Nova and resource_class of gpus. None: the server is stopped and kept."`

	Declared *Declared `json:"declared,omitempty" jsonschema:"What gpuserver cloud apply makes there, and gpuserver cloud plan compares. The service does not read it."`
}

// Endpoints are URLs of an OpenStack's services.
type Endpoints struct {
	Identity  URL `json:"identity,omitempty" jsonschema:"Keystone, in place of auth_url."`
	Compute   URL `json:"compute,omitempty" jsonschema:"Nova."`
	Image     URL `json:"image,omitempty" jsonschema:"Glance."`
	Network   URL `json:"network,omitempty" jsonschema:"Neutron."`
	Volume    URL `json:"volume,omitempty" jsonschema:"Cinder, with the project's id where the catalogue has it."`
	Placement URL `json:"placement,omitempty" jsonschema:"Placement."`
}

// OpenStackFlavor is what a flavor is called on a cloud.
type OpenStackFlavor struct {
	Name   string `json:"name" jsonschema:"Our name of the flavor."`
	Flavor string `json:"flavor" jsonschema:"Its name or id there."`
}

// OpenStackGPUs are the cards of one model on a cloud.
type OpenStackGPUs struct {
	Model         string `json:"model" jsonschema:"The name or an alias of one of gpu_models."`
	Alias         string `json:"alias,omitempty" jsonschema:"The PCI alias by which Nova's flavors ask for them. None: the model's name."`
	Count         int    `json:"count,omitempty" range:"0..10000" jsonschema:"How many cards there are for VMs. 0: Placement tells, with resource_class."`
	ResourceClass string `json:"resource_class,omitempty" jsonschema:"Their class in Placement, such as CUSTOM_PCI_10DE_1DB4, where Nova reports PCI devices and the credential may read Placement: cards that others have are then not counted."`
}

// OpenStackImage is what an image is called on clouds of type openstack.
type OpenStackImage struct {
	Image string `json:"image" jsonschema:"Its name or id in Glance; of several with one name the newest is taken."`
}

// openStack checks what a cloud's own options show.
func (k *checker) openStack(o *OpenStack, path string) {
	k.noteLogin(path)
	if (o.CloudsFile == "") != (o.Cloud == "") {
		k.bad(path+".cloud", "clouds_file and the entry in it (cloud) are of use together only")
	}
	if o.VolumeType != "" && !o.BootFromVolume {
		k.bad(path+".volume_type", "it is of use with boot_from_volume only")
	}
	if o.MakePorts && len(o.Networks) == 0 {
		k.bad(path+".make_ports", "ports cannot be made without the name of a network; give networks")
	}
	for _, l := range []struct {
		name  string
		names []string
	}{{"networks", o.Networks}, {"security_groups", o.SecurityGroups}} {
		for i, n := range l.names {
			if n == "" || slices.Contains(l.names[:i], n) {
				k.bad(path+"."+index(l.name, i), "%q is empty or stands here twice", n)
			}
		}
	}
	if o.Placement != nil {
		k.placement(o, path)
	}
	if o.Declared != nil {
		k.declared(o, path+".declared")
		k.declaredUse(o, path+".declared")
	}
}

// placement checks what reserving cards needs.
func (k *checker) placement(o *OpenStack, path string) {
	if o.Placement.CloudsFile == "" || o.Placement.Cloud == "" {
		k.bad(path+".placement", "clouds_file and the entry in it (cloud) are needed")
	}
	if !slices.ContainsFunc(o.GPUs, func(g OpenStackGPUs) bool { return g.ResourceClass != "" }) {
		k.bad(path+".placement", "it is of use for cards with a resource_class only; give it in gpus")
	}
}

// noteLogin notes where a cloud says how it logs in.
func (k *checker) noteLogin(path string) {
	var at place
	for _, where := range []string{path + ".cloud", path, strings.TrimSuffix(path, ".openstack")} {
		if p, ok := k.places[where]; ok {
			at = p
			break
		}
	}
	if k.c.logins == nil {
		k.c.logins = map[string]Problem{}
	}
	k.c.logins[path] = Problem{File: k.name, Line: at.line, Column: at.column}
}

// CheckLogins calls check for each cloud of type openstack, and gives an error like
// Load's of what it finds wrong.
func (c *Config) CheckLogins(check func(*Cloud) error) error {
	var problems Problems
	for i := range c.Clouds {
		if c.Clouds[i].OpenStack == nil {
			continue
		}
		if err := check(&c.Clouds[i]); err != nil {
			p := c.logins[index("clouds", i)+".openstack"]
			p.Text = fmt.Sprintf("cloud %s: %s", c.Clouds[i].Name, gpuserver.PublicText(err))
			problems = append(problems, p)
		}
	}
	return problems.err(c.Path)
}

// openStackNames checks what the options of clouds say of things that stand
// elsewhere in the file.
func (k *checker) openStackNames() {
	for i := range k.c.Clouds {
		o, path := k.c.Clouds[i].OpenStack, index("clouds", i)+".openstack"
		if o == nil {
			continue
		}
		flavors, models := map[string]bool{}, map[string]bool{}
		for j, f := range o.Flavors {
			at := path + index(".flavors", j)
			if name, ok := k.c.FlavorFor(f.Name); !ok || name != f.Name {
				k.bad(at+".name", "flavors has no %q", f.Name)
			}
			if f.Flavor == "" || flavors[f.Name] {
				k.bad(at, "flavor %q is given no name there, or twice", f.Name)
			}
			flavors[f.Name] = true
		}
		for j, g := range o.GPUs {
			at := path + index(".gpus", j)
			model, known := k.c.ModelFor(g.Model)
			if !known {
				k.bad(at+".model", "gpu_models has no %q%s", g.Model, have(k.c.modelNames()))
			}
			if models[model] {
				k.bad(at+".model", "model %s stands here twice", model)
			}
			models[model] = true
			if g.Count == 0 && g.ResourceClass == "" {
				k.bad(at, "give the count of cards, or their resource_class in Placement")
			}
		}
	}
}

// openStackAgents refuses agent listeners that guests of an OpenStack surely do
// not reach: a VM whose agent cannot report is given up after minutes, without a
// word of why.
func (k *checker) openStackAgents() {
	s := &k.c.Server
	host, _, err := net.SplitHostPort(string(s.Listen.Agent))
	if err != nil || s.AgentURL != "" {
		return
	}
	ip, _ := netip.ParseAddr(host)
	private := ip.IsLoopback() || ip.IsUnspecified() || s.Listen.Agent == Defaults().Server.Listen.Agent
	for i := range k.c.Clouds {
		if l := k.c.Clouds[i].Libvirt; l != nil && l.Network.CIDR.Contains(ip) {
			private = true
		}
	}
	for i := range k.c.Clouds {
		if o := k.c.Clouds[i].OpenStack; o != nil && o.AgentURL == "" && private {
			k.bad(index("clouds", i)+".openstack.agent_url", "guests on an OpenStack do not reach the agent listener at %s; give the URL under which they do, or an address for server.listen.agent that they reach", s.Listen.Agent)
		}
	}
}
