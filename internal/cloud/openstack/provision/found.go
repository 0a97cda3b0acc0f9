package provision

import "net/netip"

// Kind is a sort of thing that is declared.
type Kind string

// The kinds, in the order in which they are made.
const (
	KindProject      Kind = "project"
	KindUser         Kind = "user"
	KindRole         Kind = "role"
	KindCompute      Kind = "compute quotas"
	KindNetworkQuota Kind = "network quotas"
	KindVolume       Kind = "volume quotas"
	KindDefaults     Kind = "default quotas"
	KindFlavor       Kind = "flavor"
	KindNetwork      Kind = "network"
	KindSubnet       Kind = "subnet"
	KindRouter       Kind = "router"
	KindGroup        Kind = "security group"
	KindKey          Kind = "key pair"
	KindCredential   Kind = "application credential"
	KindImage        Kind = "image"
)

// Found is what is there. Its lists hold what is declared, and what bears the mark of
// the declaration.
type Found struct {
	// Unknown says why a kind could not be looked at, such as a right that is missing.
	Unknown map[Kind]string

	Project, ProjectDomain string // ids; "": there is none
	User, UserDomain       string
	Roles                  []string          // that the user has in the project
	RoleIDs                map[string]string // of all roles, by name
	Credential             bool              // it is there
	CredentialFile         bool              // the file that it is written to is there

	Flavors []FoundFlavor

	ComputeQuotas, NetworkQuotas, VolumeQuotas, DefaultQuotas map[string]int64

	Networks []FoundNetwork
	Subnets  []FoundSubnet
	Routers  []FoundRouter
	External string // id of the declared external network; "": there is none
	Groups   []FoundGroup
	Keys     []Key

	Images map[string][]FoundImage // by our name
}

// FoundFlavor is a flavor of Nova.
type FoundFlavor struct {
	ID string
	Flavor
	Public      bool
	Access      []string          // ids of the projects that may use one that is not public
	Specs       map[string]string // extra specs, all of them
	Ephemeral   int64             // GiB
	Swap        int64             // MiB
	Description string
}

// FoundNetwork is a network of Neutron.
type FoundNetwork struct {
	ID, Name, Description string
	MTU                   int
	Up                    bool
}

// FoundSubnet is a subnet of Neutron.
type FoundSubnet struct {
	ID, Name, Description, Network string
	CIDR                           netip.Prefix
	DNS                            []netip.Addr
	DHCP                           bool
}

// FoundRouter is a router of Neutron.
type FoundRouter struct {
	ID, Name, Description string
	External              string   // id of the network that it leads to
	Subnets               []string // ids of those that it joins
	Up                    bool
}

// FoundGroup is a security group of Neutron.
type FoundGroup struct {
	ID, Name, Description string
	Rules                 []Rule
}

// FoundImage is an image of Glance.
type FoundImage struct {
	ID, Name, Status, Visibility, Owner string
	MinDisk                             int64 // GiB
	MinRAM                              int64 // MiB
}
