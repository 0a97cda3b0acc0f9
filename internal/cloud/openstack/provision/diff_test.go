package provision

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// made is a cloud on which everything is as small declares it.
func made() (Declaration, Found) {
	cidr := netip.MustParsePrefix("10.30.0.0/22")
	d := Declaration{
		Mark: "ours", Project: Principal{"ci", "Default"}, User: &User{Principal{"ci", "Default"}, []string{"member"}},
		Flavors: []Flavor{{Name: "f", VCPUs: 1, RAM: 1024, Disk: 10}}, FlavorsPublic: true,
		Network: &Network{Name: "guests", CIDR: cidr, External: "public"},
		Groups:  []Group{{"g", Everywhere()}},
		Images:  []Image{{"debian-12", "debian"}},
	}
	f := Found{
		Unknown: map[Kind]string{}, Project: "p", User: "u", Roles: []string{"member"}, RoleIDs: map[string]string{"member": "r"},
		Flavors:  []FoundFlavor{{ID: "f1", Flavor: d.Flavors[0], Public: true}},
		Networks: []FoundNetwork{{ID: "n", Name: "guests", MTU: 1450, Up: true}},
		Subnets: []FoundSubnet{
			{ID: "s6", Name: "six", Network: "n", CIDR: netip.MustParsePrefix("fd00::/64"), DHCP: true},
			{ID: "s", Name: "any name", Network: "n", CIDR: cidr, DHCP: true},
		},
		Routers: []FoundRouter{{ID: "r", Name: "any name", External: "x", Subnets: []string{"s"}, Up: true}}, External: "x",
		Groups: []FoundGroup{{ID: "g1", Name: "g", Rules: Everywhere()}},
		Images: map[string][]FoundImage{"debian-12": {{ID: "i", Name: "debian", Status: "active", Visibility: "public"}}},
	}
	return d, f
}

// Each difference alone, from a cloud without any.
func TestDiff(t *testing.T) {
	none := Plan{Changes: []Change{}, Unknown: []Unknown{}, Notes: []string{}}
	changes := func(list ...Change) Plan {
		p := none
		p.Changes = list
		return p
	}
	notes := func(list ...string) Plan {
		p := none
		p.Notes = list
		return p
	}
	for _, tt := range []struct {
		name string
		edit func(*Declaration, *Found)
		want Plan
	}{
		{"nothing", func(*Declaration, *Found) {}, none},
		{"MTU is Neutron's matter", func(_ *Declaration, f *Found) { f.Networks[0].MTU = 9000 }, none},
		{"a role that Keystone lacks", func(d *Declaration, _ *Found) { d.User.Roles = []string{"guru"} }, changes(Change{Action: ByHand, Kind: KindRole, Name: "guru", Note: "Keystone has no role of this name; correct it in the configuration, or make the role"})},
		{"two networks of the name", func(_ *Declaration, f *Found) {
			f.Networks = append(f.Networks, FoundNetwork{ID: "n2", Name: "guests"})
		}, changes(Change{Action: ByHand, Kind: KindNetwork, Name: "guests", Note: "the project has 2 of this name; delete or rename what is not meant"})},
		{"a network that is off", func(_ *Declaration, f *Found) { f.Networks[0].Up = false }, changes(Change{Action: Update, Kind: KindNetwork, Name: "guests", Fields: []Field{{"admin_state_up", "false", "true"}}})},
		{"another range", func(d *Declaration, _ *Found) { d.Network.CIDR = netip.MustParsePrefix("10.31.0.0/22") }, changes(Change{Action: ByHand, Kind: KindSubnet, Name: "guests", Note: "its range is 10.30.0.0/22, and 10.31.0.0/22 is declared. A range cannot be changed: let the jobs end, delete the subnet, then apply"})},
		{"two subnets", func(_ *Declaration, f *Found) {
			f.Subnets = append(f.Subnets, FoundSubnet{ID: "s2", Network: "n", CIDR: netip.MustParsePrefix("10.9.0.0/24")})
		}, changes(Change{Action: ByHand, Kind: KindSubnet, Name: "guests", Note: "the network has 2 subnets of IPv4, and one is declared; delete those that are not meant"})},
		{"no DHCP", func(_ *Declaration, f *Found) { f.Subnets[1].DHCP = false }, changes(Change{Action: Update, Kind: KindSubnet, Name: "guests", Fields: []Field{{"dhcp", "false", "true"}}})},
		{"no external network", func(_ *Declaration, f *Found) { f.External = "" }, changes(Change{Action: ByHand, Kind: KindRouter, Name: "guests", Note: `there is no external network "public" that it could lead to; an administrator has to make it, or its name has to be corrected`})},
		{"a router that leads elsewhere", func(_ *Declaration, f *Found) { f.Routers[0].External = "y" }, changes(Change{Action: Update, Kind: KindRouter, Name: "guests", Fields: []Field{{"leads to", "network y", "public"}}})},
		{"a router that is off", func(_ *Declaration, f *Found) { f.Routers[0].Up = false }, changes(Change{Action: Update, Kind: KindRouter, Name: "guests", Fields: []Field{{"admin_state_up", "false", "true"}}})},
		{"no router is declared", func(d *Declaration, f *Found) { d.Network.External, f.Routers = "", nil }, none},
		{"a flavor of a name and an id", func(_ *Declaration, f *Found) {
			f.Flavors = append(f.Flavors, FoundFlavor{ID: "f", Flavor: Flavor{Name: "g"}})
		}, changes(Change{Action: ByHand, Kind: KindFlavor, Name: "f", Note: "Nova has 2 flavors that this name or id means; give the id of one in flavors of the cloud"})},
		{"a rule in other words", func(_ *Declaration, f *Found) {
			f.Groups[0].Rules = []Rule{{Direction: "egress", Ethertype: "IPv6", CIDR: "::/0"}, {Direction: "egress", Ethertype: "IPv4", CIDR: "0.0.0.0/0", Protocol: "any"}}
		}, none},
		{"what others made", func(_ *Declaration, f *Found) {
			f.Flavors = append(f.Flavors, FoundFlavor{ID: "o", Flavor: Flavor{Name: "other"}, Description: "theirs"})
			f.Groups = append(f.Groups, FoundGroup{ID: "o", Name: "other"})
			f.Networks = append(f.Networks, FoundNetwork{ID: "o", Name: "other"})
			f.Routers = append(f.Routers, FoundRouter{ID: "o", Name: "other", Description: "theirs"})
		}, none},
		{"what is not known", func(_ *Declaration, f *Found) {
			f.Flavors, f.Unknown[KindFlavor] = nil, "no right"
		}, Plan{Changes: []Change{}, Unknown: []Unknown{{KindFlavor, "no right"}}, Notes: []string{}}},
		{"an image that is not ready", func(_ *Declaration, f *Found) { f.Images["debian-12"][0].Status = "queued" }, notes(`image debian-12: Glance has "debian", but its status is queued`)},
		{"an image of others", func(_ *Declaration, f *Found) {
			f.Images["debian-12"][0].Visibility, f.Images["debian-12"][0].Owner = "private", "q"
		}, notes(`image debian-12: "debian" is private to another project`)},
		{"an image twice", func(_ *Declaration, f *Found) {
			f.Images["debian-12"] = append(f.Images["debian-12"], f.Images["debian-12"][0])
		}, notes(`image debian-12: Glance has 2 active images "debian"; the newest is used`)},
		{"an image that does not fit", func(_ *Declaration, f *Found) { f.Images["debian-12"][0].MinDisk = 20 }, notes(`image debian-12: "debian" asks for 20 GiB of disk and 0 MiB of memory, more than these flavors have: f`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, f := made()
			tt.edit(&d, &f)
			if diff := cmp.Diff(tt.want, Diff(d, f, true)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// What is shown of rules.
func TestRuleInWords(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{Egress(netip.MustParsePrefix("10.0.0.0/8"), "tcp", 80, 90).String(), "egress IPv4 tcp port 80-90 to 10.0.0.0/8"},
		{Egress(netip.MustParsePrefix("::/0"), "icmp", 0, 0).String(), "egress IPv6 ipv6-icmp to everywhere"},
		{Rule{Direction: "ingress", Ethertype: "IPv4", Group: "abc"}.String(), "ingress IPv4 any protocol from group abc"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}
