package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
	"gpuserver/internal/cloud/openstack/openstacktest"
)

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator"

// everything is a declaration that has something of each kind.
func everything(t *testing.T) Declaration {
	return Declaration{
		Cloud: "stack", Mark: "declared by gpuserver lab, cloud stack",
		Project:    Principal{"gpuserver", "Default"},
		User:       &User{Principal{"gpuserver", "Default"}, []string{"member"}},
		Credential: &Credential{"gpuserver", filepath.Join(t.TempDir(), "clouds.yaml"), "gpuserver"},
		Flavors: []Flavor{
			{Name: "ci_large", VCPUs: 4, RAM: 12288, Disk: 60},
			{Name: "gpu_large", VCPUs: 4, RAM: 12288, Disk: 60, Alias: "tesla-v100:1"},
		},
		FlavorsPublic: true,
		ComputeQuotas: map[string]int64{"instances": 20, "cores": 128, "ram": 512000}, NetworkQuotas: map[string]int64{"port": 600},
		DefaultQuotas: map[string]int64{"ram": 51200, "instances": 1},
		Network: &Network{
			Name: "guests", MTU: 1450, CIDR: netip.MustParsePrefix("10.30.0.0/22"), DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, External: "public",
		},
		Groups: []Group{{"gpuserver", []Rule{
			Egress(netip.MustParsePrefix("0.0.0.0/0"), "tcp", 443, 443), Egress(netip.MustParsePrefix("192.0.2.53/32"), "any", 0, 0),
		}}},
		Keys:   []Key{{"operator", publicKey}},
		Images: []Image{{"debian-12", "debian"}},
	}
}

// site gives the cloud as an administrator sees it.
func site(t *testing.T, c *openstacktest.Cloud, d Declaration) *Site {
	t.Helper()
	return siteAs(t, openstack.Credentials{CloudsFile: c.CloudsFile(t), Cloud: "admin"}, d)
}

func siteAs(t *testing.T, who openstack.Credentials, d Declaration) *Site {
	t.Helper()
	api, err := openstack.Dial(openstack.Config{Name: "stack", Owner: "lab", Credentials: who}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	s := New(api, d)
	s.second = 0
	return s
}

// plan compares.
func plan(t *testing.T, s *Site, prune bool) (Plan, Found) {
	t.Helper()
	f, err := s.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return Diff(s.d, f, prune), f
}

// apply compares and applies, and gives a line for each change.
func apply(t *testing.T, s *Site, prune bool) (lines []string) {
	t.Helper()
	p, f := plan(t, s, prune)
	if len(p.Unknown) > 0 {
		t.Fatalf("not everything can be looked at: %v", p.Unknown)
	}
	err := s.Apply(t.Context(), p, f, func(r Result) {
		line := fmt.Sprintf("%s %s %s", r.Action, r.Kind, r.Name)
		if r.Err != nil {
			line += ": " + gpuserver.PublicText(r.Err)
		}
		lines = append(lines, line)
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// A cloud without volumes says so before there is a project, too: what cannot be done
// is no change.
func TestServiceThatIsMissing(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	d.VolumeQuotas = map[string]int64{"volumes": 5}
	s := site(t, c, d)
	for _, when := range []string{"without a project", "with it"} {
		p, f := plan(t, s, false)
		want := []Unknown{{KindVolume, "cloud stack: cannot read volume quotas: its catalogue has no block-storage service"}}
		if diff := cmp.Diff(want, p.Unknown); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
		err := s.Apply(t.Context(), p, f, func(r Result) {
			if r.Err != nil || r.Kind == KindVolume {
				t.Errorf("%s: %s %s: %v", when, r.Kind, r.Name, r.Err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// An empty cloud gets everything, in an order that works; the second time nothing is
// left to do, and nothing is called that changes anything.
func TestApplyTwice(t *testing.T) {
	c := openstacktest.New(t)
	s := site(t, c, everything(t))
	want := []string{
		"create project gpuserver", "create user gpuserver", "create role member",
		"update compute quotas gpuserver", "update network quotas gpuserver", "update default quotas default",
		"create flavor ci_large", "create flavor gpu_large",
		"create network guests", "create subnet guests", "create router guests", "create security group gpuserver",
		"create key pair operator", "create application credential gpuserver",
	}
	if diff := cmp.Diff(want, apply(t, s, false)); diff != "" {
		t.Fatalf("first time (-want +got):\n%s", diff)
	}
	c.Calls()
	p, _ := plan(t, s, true)
	wantPlan := Plan{Changes: []Change{}, Unknown: []Unknown{}, Notes: []string{`image debian-12: Glance has no image "debian", so jobs with it find no place here; gpuserver image is for making it`}}
	if diff := cmp.Diff(wantPlan, p); diff != "" {
		t.Errorf("second time (-want +got):\n%s", diff)
	}
	if calls := c.Calls(); len(calls) > 0 {
		t.Errorf("a plan changes something: %q", calls)
	}
}

// What was made has what is declared.
func TestWhatIsMade(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	apply(t, site(t, c, d), false)
	project := c.Find("projects", "name", "gpuserver")[0]["id"].(string)
	gpu := c.Find("flavors", "name", "gpu_large")[0]
	if gpu["ram"] != 12288.0 || gpu["os-flavor-access:is_public"] != true || gpu["description"] != d.Mark {
		t.Errorf("flavor %v", gpu)
	}
	if diff := cmp.Diff(openstacktest.Object{"pci_passthrough:alias": "tesla-v100:1"}, gpu["extra_specs"]); diff != "" {
		t.Errorf("its extra specs (-want +got):\n%s", diff)
	}
	for _, kind := range []string{"networks", "subnets", "routers"} {
		if o := c.Find(kind, "name", "guests")[0]; o["project_id"] != project || o["description"] != d.Mark {
			t.Errorf("%s: %v", kind, o)
		}
	}
	if n := c.Find("networks", "name", "guests")[0]; n["mtu"] != 1450.0 {
		t.Errorf("MTU %v", n["mtu"])
	}
	var got []string
	for _, r := range c.Find("security-groups", "name", "gpuserver")[0]["security_group_rules"].([]any) {
		o := r.(openstacktest.Object)
		got = append(got, fmt.Sprint(o["direction"], " ", o["protocol"], " ", o["port_range_min"], " ", o["remote_ip_prefix"]))
	}
	if diff := cmp.Diff([]string{"egress tcp 443 <nil>", "egress <nil> <nil> 192.0.2.53/32"}, got); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

// The service logs in with what was written, as the user and into the project, and
// nobody else can read it.
func TestCredential(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	s := site(t, c, d)
	apply(t, s, false)
	info, err := os.Stat(d.Credential.File)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	member := siteAs(t, openstack.Credentials{CloudsFile: d.Credential.File, Cloud: "gpuserver"}, d)
	project, err := member.api.ProjectID(t.Context())
	if want := c.Find("projects", "name", "gpuserver")[0]["id"]; err != nil || project != want {
		t.Fatalf("logged in to %q, %v; want %v", project, err, want)
	}
	// It is lost: without the file no new one is made by itself, and never over a file.
	if err := os.Rename(d.Credential.File, d.Credential.File+".moved"); err != nil {
		t.Fatal(err)
	}
	if p, _ := plan(t, s, false); len(p.Changes) > 0 || !strings.Contains(strings.Join(p.Notes, "\n"), "is not on this machine") {
		t.Errorf("%+v", p)
	}
	c.Remove("application_credentials", "name", "gpuserver")
	if err := os.WriteFile(d.Credential.File, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, _ := plan(t, s, false); len(p.Changes) != 1 || p.Changes[0].Action != ByHand {
		t.Errorf("with the file there: %+v", p)
	}
	if err := os.Remove(d.Credential.File); err != nil {
		t.Fatal(err)
	}
	if got := apply(t, s, false); !slices.Equal(got, []string{"create application credential gpuserver"}) {
		t.Errorf("%q", got)
	}
}

// Keystone refuses a token of the second in which the password was changed.
func TestCredentialOfTheSameSecond(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	c.Add("users", openstacktest.Object{"name": "gpuserver", "domain_id": "default", "password": "of somebody"})
	s := site(t, c, d)
	refusals := 2
	c.Fail(func(method, path string) (int, string) {
		if method == "POST" && strings.HasSuffix(path, "/application_credentials") && refusals > 0 {
			refusals--
			return 401, `{"error": {"code": 401, "message": "The request you have made requires authentication."}}`
		}
		return 0, ""
	})
	got := apply(t, s, false)
	if last := got[len(got)-1]; last != "create application credential gpuserver" || refusals != 0 {
		t.Errorf("%q, %d refusals left", last, refusals)
	}
	if u := c.Find("users", "name", "gpuserver"); len(u) != 1 || u[0]["password"] == "of somebody" {
		t.Errorf("the user is %v", u)
	}
}

// A secret that cannot be had leaves no file behind that would stop the next try.
func TestCredentialFails(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	s := site(t, c, d)
	c.Fail(func(method, path string) (int, string) {
		if method == "POST" && strings.HasSuffix(path, "/application_credentials") {
			return 403, `{"error": {"message": "You are not authorized to perform the requested action: identity:create_application_credential."}}`
		}
		return 0, ""
	})
	got := apply(t, s, false)
	if last := got[len(got)-1]; !strings.Contains(last, "identity:create_application_credential") {
		t.Errorf("the last line is %q", last)
	}
	if _, err := os.Stat(d.Credential.File); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file: %v", err)
	}
}

// Each thing that a stranger changes is named, and put back.
func TestDrift(t *testing.T) {
	for _, tt := range []struct {
		name  string
		drift func(*openstacktest.Cloud)
		want  Change
	}{
		{"a flavor is gone", func(c *openstacktest.Cloud) { c.Remove("flavors", "name", "gpu_large") }, Change{Create, KindFlavor, "gpu_large", []Field{
			{"vcpus", "", "4"}, {"ram", "", "12288"}, {"disk", "", "60"}, {"access", "", "public"}, {"pci_passthrough:alias", "", "tesla-v100:1"},
		}, ""}},
		{"a flavor's size", func(c *openstacktest.Cloud) {
			c.Edit("flavors", "name", "gpu_large", func(o openstacktest.Object) { o["ram"] = 8192 })
		}, Change{Replace, KindFlavor, "gpu_large", []Field{{"ram", "8192", "12288"}}, ""}},
		{"a flavor's alias", func(c *openstacktest.Cloud) {
			c.Edit("flavors", "name", "gpu_large", func(o openstacktest.Object) { o["extra_specs"] = openstacktest.Object{aliasSpec: "v100:1"} })
		}, Change{Update, KindFlavor, "gpu_large", []Field{{"pci_passthrough:alias", "v100:1", "tesla-v100:1"}}, ""}},
		{"a card for a flavor without", func(c *openstacktest.Cloud) {
			c.Edit("flavors", "name", "ci_large", func(o openstacktest.Object) { o["extra_specs"] = openstacktest.Object{aliasSpec: "v100:1"} })
		}, Change{Update, KindFlavor, "ci_large", []Field{{"pci_passthrough:alias", "v100:1", ""}}, ""}},
		{"a role", func(c *openstacktest.Cloud) { c.Remove("grants", "role", "r-member") }, Change{Create, KindRole, "member", []Field{{"of user", "", "gpuserver"}}, ""}},
		{"MTU", func(c *openstacktest.Cloud) {
			c.Edit("networks", "name", "guests", func(o openstacktest.Object) { o["mtu"] = 1500 })
		}, Change{Update, KindNetwork, "guests", []Field{{"mtu", "1500", "1450"}}, ""}},
		{"name servers", func(c *openstacktest.Cloud) {
			c.Edit("subnets", "name", "guests", func(o openstacktest.Object) { o["dns_nameservers"] = []any{} })
		}, Change{Update, KindSubnet, "guests", []Field{{"dns", "", "192.0.2.53"}}, ""}},
		{"the router's way", func(c *openstacktest.Cloud) { c.Remove("ports", "device_owner", "network:router_interface") }, Change{Update, KindRouter, "guests", []Field{{"joins", "", "guests"}}, ""}},
		{"a door", func(c *openstacktest.Cloud) {
			c.Edit("security-groups", "name", "gpuserver", func(o openstacktest.Object) {
				o["security_group_rules"] = append(o["security_group_rules"].([]any), openstacktest.Object{"id": "door", "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22, "remote_ip_prefix": "0.0.0.0/0"})
			})
		}, Change{Update, KindGroup, "gpuserver", []Field{{"rule", "ingress IPv4 tcp port 22 from everywhere", ""}}, ""}},
		{"a key", func(c *openstacktest.Cloud) {
			c.Edit("keys", "name", "operator", func(o openstacktest.Object) { o["public_key"] = "ssh-ed25519 BBBB x" })
		}, Change{Replace, KindKey, "operator", []Field{{"public key", "ssh-ed25519 BBBB x", publicKey}}, ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := openstacktest.New(t)
			s := site(t, c, everything(t))
			apply(t, s, false)
			tt.drift(c)
			p, _ := plan(t, s, false)
			if diff := cmp.Diff([]Change{tt.want}, p.Changes); diff != "" {
				t.Fatalf("-want +got:\n%s", diff)
			}
			apply(t, s, false)
			if p, _ := plan(t, s, false); len(p.Changes) > 0 {
				t.Errorf("after apply there is left: %+v", p.Changes)
			}
		})
	}
}

// A flavor that is replaced keeps its id and what others set of it.
func TestReplacedFlavor(t *testing.T) {
	c := openstacktest.New(t)
	s := site(t, c, everything(t))
	apply(t, s, false)
	old := c.Find("flavors", "name", "gpu_large")[0]["id"]
	c.Edit("flavors", "name", "gpu_large", func(o openstacktest.Object) {
		o["vcpus"] = 2
		o["extra_specs"].(openstacktest.Object)["hw:cpu_policy"] = "dedicated"
	})
	apply(t, s, false)
	f := c.Find("flavors", "name", "gpu_large")
	want := openstacktest.Object{"hw:cpu_policy": "dedicated", "pci_passthrough:alias": "tesla-v100:1"}
	if diff := cmp.Diff(want, f[0]["extra_specs"]); diff != "" || len(f) != 1 || f[0]["id"] != old {
		t.Errorf("%v, id was %v\n%s", f, old, diff)
	}
}

// Flavors for the project only.
func TestPrivateFlavors(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	d.FlavorsPublic = false
	s := site(t, c, d)
	apply(t, s, false)
	id := c.Find("flavors", "name", "gpu_large")[0]["id"].(string)
	if got := c.Find("access", "flavor", id); len(got) != 1 || got[0]["tenant_id"] != c.Find("projects", "name", "gpuserver")[0]["id"] {
		t.Errorf("access %v", got)
	}
	if p, _ := plan(t, s, false); len(p.Changes) > 0 {
		t.Errorf("%+v", p.Changes)
	}
	c.Add("access", openstacktest.Object{"flavor": id, "tenant_id": "p-admin"})
	c.Edit("flavors", "name", "gpu_large", func(o openstacktest.Object) { o["disk"] = 1 })
	apply(t, s, false) // deletes it with its list, and makes it anew
	if got := c.Find("access", "flavor", id); len(got) != 2 {
		t.Errorf("access after it was replaced: %v", got)
	}
	c.Remove("access", "flavor", id)
	want := []Change{{Update, KindFlavor, "gpu_large", []Field{{"may be used by", "", "gpuserver"}}, ""}}
	if p, _ := plan(t, s, false); cmp.Diff(want, p.Changes) != "" {
		t.Errorf("%+v", p.Changes)
	}
}

// What is no longer declared goes when that is asked for, and only what was made here.
func TestPrune(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	apply(t, site(t, c, d), false)
	project := c.Find("projects", "name", "gpuserver")[0]["id"]
	c.Add("flavors", openstacktest.Object{"name": "strange", "vcpus": 1, "ram": 1, "disk": 1, "extra_specs": openstacktest.Object{}})
	c.Add("networks", openstacktest.Object{"name": "strange", "project_id": project, "mtu": 1500})
	d.Flavors, d.Groups[0].Name = d.Flavors[:1], "renamed"
	d.Network.Name = "others"
	s := site(t, c, d)
	p, _ := plan(t, s, false)
	for _, want := range []string{"flavor gpu_large", "security group gpuserver", "network guests", "router guests"} {
		if !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.HasPrefix(n, want+" was made by gpuserver") }) {
			t.Errorf("no note names %s: %q", want, p.Notes)
		}
	}
	got := apply(t, s, true)
	want := []string{
		"create network others", "create subnet others", "create router others", "create security group renamed",
		"delete security group gpuserver", "delete router guests", "delete network guests", "delete flavor gpu_large",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(c.Find("flavors", "name", "strange")) != 1 || len(c.Find("networks", "name", "strange")) != 1 {
		t.Error("what is not ours was deleted")
	}
}

// A member is told what it may not see, and sees the rest.
func TestMember(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	apply(t, site(t, c, d), false)
	s := siteAs(t, openstack.Credentials{CloudsFile: d.Credential.File, Cloud: "gpuserver"}, d)
	c.Remove("flavors", "name", "gpu_large")
	p, f := plan(t, s, false)
	if len(p.Changes) != 1 || p.Changes[0].Name != "gpu_large" {
		t.Errorf("changes %+v", p.Changes)
	}
	var kinds []Kind
	for _, u := range p.Unknown {
		kinds = append(kinds, u.Kind)
	}
	if diff := cmp.Diff([]Kind{KindCredential, KindDefaults, KindKey, KindRole, KindUser}, kinds); diff != "" {
		t.Errorf("unknown (-want +got):\n%s", diff)
	}
	if why := f.Unknown[KindDefaults]; !strings.Contains(why, "os_compute_api:os-quota-class-sets") {
		t.Errorf("the right that is missing is not named: %s", why)
	}
	var failed string
	_ = s.Apply(t.Context(), p, f, func(r Result) { failed = gpuserver.PublicText(r.Err) })
	if !strings.Contains(failed, "os_compute_api:os-flavor-manage") {
		t.Errorf("the right that is missing is not named: %s", failed)
	}
}

// A member's other project is not taken for the declared one: it may be in another
// domain.
func TestMemberElsewhere(t *testing.T) {
	c := openstacktest.New(t)
	d := everything(t)
	apply(t, site(t, c, d), false)
	c.Add("projects", openstacktest.Object{"id": "p-other", "name": "other", "domain_id": "else"})
	c.Add("grants", openstacktest.Object{"user": c.Find("users", "name", "gpuserver")[0]["id"], "project": "p-other", "role": "r-member"})
	d.Project.Name = "other"
	p, f := plan(t, siteAs(t, openstack.Credentials{CloudsFile: d.Credential.File, Cloud: "gpuserver"}, d), false)
	if f.Project != "" || f.Unknown[KindProject] == "" || f.Unknown[KindNetwork] == "" || len(p.Changes) > 0 {
		t.Errorf("%+v\n%+v", f, p.Changes)
	}
}

// One change that fails does not end the others; what depends on it says so.
func TestApplyGoesOn(t *testing.T) {
	c := openstacktest.New(t)
	s := site(t, c, everything(t))
	c.Fail(func(method, path string) (int, string) {
		if method == "POST" && strings.HasSuffix(path, "/networks") {
			return 409, `{"NeutronError": {"type": "IpAddressInUse", "message": "no"}}`
		}
		return 0, ""
	})
	got := strings.Join(apply(t, s, false), "\n")
	for _, want := range []string{"create network guests: cloud stack: cannot create network guests: it answers 409 Conflict: no", "create subnet guests: network guests is not there", "create security group gpuserver\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	c.Fail(nil)
	apply(t, s, false)
	if p, _ := plan(t, s, false); len(p.Changes) > 0 {
		t.Errorf("left: %+v", p.Changes)
	}
}

// With Keystone away nothing can be told.
func TestKeystoneAway(t *testing.T) {
	c := openstacktest.New(t)
	s := site(t, c, everything(t))
	c.Fail(func(string, string) (int, string) { return 503, "<html><title>503</title></html>" })
	if _, err := s.Look(t.Context()); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
		t.Errorf("%v", err)
	}
	c.Fail(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Look(ctx); err == nil {
		t.Error("a look that was ended has no error")
	}
}
