package openstack

import (
	"cmp"
	"context"
	"net"
	"time"

	"gpuserver"
)

// Config is what a driver is opened with; the zero value of a field is its
// default unless it says otherwise.
type Config struct {
	Name  string // the cloud's name; needed
	Owner string // tag of this installation; needed, at most 60 characters

	Credentials Credentials
	Endpoints   Endpoints
	// Placement are an administrator's credentials, with which cards are reserved in
	// Placement and counted there; nil: bad cards keep their servers.
	Placement *Credentials

	Flavors map[string]string // the cloud's name or id of our flavor, where it is not the same name
	Images  map[string]string // the cloud's name or id of our image; others cannot be booted

	Networks         []string // names or ids; none: whatever Nova chooses ("auto" from 2.37 on)
	Ports            bool     // make each VM's ports ourselves instead of leaving it to Nova
	SecurityGroups   []string // names or ids; none: the project's default
	AvailabilityZone string   // "": any
	ServerGroup      string   // name or id; "": none
	KeyPair          string   // of the credential's user; "": none
	BootFromVolume   bool     // root disk on a volume that is deleted with the server
	VolumeType       string   // of these volumes; "": the cloud's default

	GPUs              []GPUs
	MaxVMs            int  // of ours at once; 0: the quota alone
	LaunchesPerMinute int  // 0: no limit
	Emulated          bool // its hypervisors run without acceleration

	BuildTimeout  time.Duration // from the POST to ACTIVE, without memory's share; default 5 min
	DeleteTimeout time.Duration // until a server is gone; default 5 min
	CallTimeout   time.Duration // of one HTTP request; default 60 s

	times times
	dial  func(ctx context.Context, network, address string) (net.Conn, error) // in place of the network; tests have one in memory
}

// Credentials say who we are: an entry of a clouds.yaml, or the OS_* variables.
type Credentials struct {
	CloudsFile string // "": OS_* of the environment
	Cloud      string // the entry's name
	Region     string // overrides the entry's; "" with one region: that
	Interface  string // public, internal or admin; overrides the entry's; default public
	CAFile     string // overrides the entry's
}

// Endpoints are URLs that are used in place of the catalogue's, as where a gateway
// stands before the cloud. "": the catalogue's.
type Endpoints struct {
	Identity, Compute, Image, Network, Volume, Placement string
}

// GPUs are the cards of one model that VMs of this cloud may have.
type GPUs struct {
	Model string // our name of the model
	Alias string // Nova's PCI alias, which flavors ask for; default the model
	Count int    // cards that are there for us; 0: Placement alone tells
	// Class is their resource class in Placement, such as CUSTOM_PCI_10DE_1DB4.
	// "": Placement is not asked.
	Class string
}

// times are how long things take; tests make them shorter.
type times struct {
	busy, idle  time.Duration // between two lists: while something changes, and else
	full        time.Duration // between two whole lists
	settle      time.Duration // how long a create whose answer was lost is looked for
	look        time.Duration // between two of these looks
	perGiB      time.Duration // of memory, more to build
	retryAfter  time.Duration // the longest that a Retry-After is waited for within a call
	maxInterval time.Duration // between two lists while the cloud is away
}

var usual = times{
	busy: time.Second, idle: 10 * time.Second, full: 5 * time.Minute, settle: 15 * time.Second, look: time.Second,
	perGiB: 2 * time.Second, retryAfter: 30 * time.Second, maxInterval: 30 * time.Second,
}

func (c Config) withDefaults() (Config, error) {
	c.BuildTimeout = cmp.Or(c.BuildTimeout, 5*time.Minute)
	c.DeleteTimeout = cmp.Or(c.DeleteTimeout, 5*time.Minute)
	c.CallTimeout = cmp.Or(c.CallTimeout, time.Minute)
	c.times = cmp.Or(c.times, usual)
	gpus := make([]GPUs, len(c.GPUs))
	for i, g := range c.GPUs {
		g.Alias = cmp.Or(g.Alias, g.Model)
		gpus[i] = g
	}
	c.GPUs = gpus
	return c, c.check()
}

func (c Config) check() error {
	bad := func(field, what string) error {
		return gpuserver.Errorf(gpuserver.KindInvalid, "cloud %q cannot be used: its %s %s", c.Name, field, what)
	}
	switch {
	case c.Name == "":
		return bad("name", "is missing")
	case c.Owner == "" || len(c.Owner) > 60:
		return bad("owner tag", "needs 1 to 60 characters; nobody would find its VMs again")
	case c.Credentials.CloudsFile != "" && c.Credentials.Cloud == "":
		return bad("clouds_file", "needs the name of an entry in it; set openstack.cloud")
	case c.VolumeType != "" && !c.BootFromVolume:
		return bad("volume_type", "is of use with boot_from_volume only")
	case c.Ports && len(c.Networks) == 0:
		return bad("ports", "cannot be made without the name of a network; set openstack.networks")
	}
	for _, g := range c.GPUs {
		if g.Model == "" || g.Count < 0 || g.Count == 0 && g.Class == "" {
			return bad("gpus", "need a model, and a count or a resource class of Placement")
		}
	}
	return nil
}
