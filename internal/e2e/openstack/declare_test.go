//go:build openstack

package openstack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// declaredCloud is the section "clouds" of TestDeclared. The cloud's Cinder is missing,
// so a case of its own has the quota of volumes.
const declaredCloud = `clouds:
  - name: stack
    type: openstack
    openstack:
      clouds_file: clouds.yaml
      cloud: gpuserver
      networks: [guests]
      security_groups: [gpuserver]
      gpus: [{model: tesla-v100, count: 4, resource_class: CUSTOM_PCI_10DE_1DB4}]
%s      declared:
        admin: {clouds_file: %s, cloud: admin}
%s`

const (
	declaredNames = "      flavors: [{name: gpu_small, flavor: g1.small}]\n"
	declaredSite  = `        project: {name: gpuserver}
        user: {name: gpuserver}
        application_credential: {name: gpuserver}
        quotas: {instances: 20, cores: 128, memory: 500GiB, ports: 600}
        default_quotas: {instances: 1}
        network: {name: guests, mtu: 1450, cidr: 10.30.0.0/22, dns: [192.0.2.53], external: outer}
        security_groups:
          - {name: gpuserver, egress: [{cidr: 0.0.0.0/0, protocol: tcp, ports: "443"}, {cidr: "::/0", protocol: icmp}]}
        key_pairs: [{name: operator, public_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIHKqrK0cDmNW0hTpOoTbCKSlJdYq9mZJjvO2W7yfA+5 operator"}]
`
	declaredFlavors = `flavors:
  - {name: plain, vcpus: 1, memory: 128MiB, disk: 1GiB}
  - {name: gpu_small, vcpus: 4, memory: 2GiB, disk: 20GiB, gpus: {model: tesla-v100}}
`
	declaredImages = "images:\n  - {name: debian-12, openstack: {image: empty}}\n"
)

// declaration is a site whose cloud declares all that can be declared.
type declaration struct {
	*site
	admin *client
}

func (d *declaration) declare(site string) {
	d.t.Helper()
	d.configure(fmt.Sprintf(declaredCloud, declaredNames, cloudsFile, site) + declaredFlavors + declaredImages)
}

// cloud runs "gpuserver cloud" on it, and wants an exit status and words.
func (d *declaration) cloud(want int, args []string, words ...string) (out string) {
	d.t.Helper()
	status, out, errs := run(d.t, append([]string{"cloud", args[0], "stack", "--config", d.file}, args[1:]...)...)
	out += errs
	d.t.Logf("gpuserver cloud %s stack: status %d\n%s", strings.Join(args, " "), status, out)
	if status != want {
		d.t.Errorf("cloud %s: status %d, want %d", args[0], status, want)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			d.t.Errorf("cloud %s does not say %q", args[0], w)
		}
	}
	return out
}

func words(args ...string) []string { return args }

// TestDeclared takes a project of a real cloud from nothing to a job, by the commands
// of "gpuserver cloud".
func TestDeclared(t *testing.T) {
	need(t, fake)
	t.Parallel() // with TestConformance
	d := &declaration{newSite(t, "runners:\n"+entry("plain", "stack", "plain", "cirun-plain")), login(t, "admin")}
	d.undeclare()
	t.Cleanup(d.undeclare)
	d.declare(declaredSite)
	for _, c := range []struct {
		name string
		run  func(*declaration)
	}{
		{"check before anything is there", checkNothing},
		{"plan of an empty cloud", planAll},
		{"apply, and no changes after it", applyAll},
		{"the file of the credential", credentialFile},
		{"a flavor that was deleted by hand", flavorLost},
		{"what is no longer declared", pruneFlavor},
		{"a service that is missing", volumesMissing},
		{"check and show", checkAndShow},
		{"cards in Placement", cardsInPlacement},
		{"export", exportAll},
		{"a member cannot tell", memberPlans},
		{"the service works with the credential", serviceWorks},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *d.site
			s.t = t
			c.run(&declaration{&s, d.admin.as(t)})
		})
	}
}

func checkNothing(d *declaration) {
	d.cloud(1, words("check"), "FAIL   credentials", "clouds.yaml")
}

func planAll(d *declaration) {
	d.cloud(3, words("plan"), "+ project gpuserver", "+ user gpuserver", "+ role member", "~ compute quotas gpuserver", "~ network quotas gpuserver",
		"~ instances: 10 → 1", "+ flavor g1.small", "pci_passthrough:alias: tesla-v100:1", "+ network guests", "+ subnet guests",
		"! router guests\n    (there is no external network \"outer\"", "+ security group gpuserver", "+ key pair operator", "+ application credential gpuserver", "14 changes.")
	if made := d.admin.list("identity", "/projects?name=gpuserver", "projects"); len(made) > 0 {
		d.t.Errorf("the plan made a project: %v", made)
	}
}

func applyAll(d *declaration) {
	var made struct{ Network struct{ ID string } }
	d.admin.call("POST", "network", "/v2.0/networks", map[string]any{"network": map[string]any{"name": "outer", "router:external": true}}, &made)
	d.admin.call("POST", "network", "/v2.0/subnets", map[string]any{"subnet": map[string]any{"network_id": made.Network.ID, "ip_version": 4, "cidr": "203.0.113.0/24"}}, nil)
	d.cloud(0, words("apply", "--yes"), "project gpuserver: made", "router guests: made", "flavor g1.small: made", "application credential gpuserver: made; its secret is in ")
	d.cloud(0, words("plan"), "No changes.")
	d.cloud(0, words("apply"), "No changes.") // it need not ask
}

func credentialFile(d *declaration) {
	info, err := os.Stat(filepath.Join(d.dir, "clouds.yaml"))
	d.ok(err)
	if info.Mode() != 0o600 {
		d.t.Errorf("its mode is %v, want 0600", info.Mode())
	}
}

func flavorLost(d *declaration) {
	ids := d.flavors("g1.small")
	if len(ids) != 1 {
		d.t.Fatalf("%d flavors g1.small", len(ids))
	}
	d.admin.call("DELETE", "compute", "/flavors/"+ids[0], nil, nil)
	if out := d.cloud(3, words("plan"), "+ flavor g1.small", "1 change."); strings.Contains(out, "flavor plain") {
		d.t.Error("it names another flavor, too")
	}
	d.cloud(0, words("apply", "--yes"), "flavor g1.small: made")
	d.cloud(0, words("plan"), "No changes.")
	var got struct {
		Specs map[string]string `json:"extra_specs"`
	}
	d.admin.call("GET", "compute", "/flavors/"+d.flavors("g1.small")[0]+"/os-extra_specs", nil, &got)
	if got.Specs["pci_passthrough:alias"] != "tesla-v100:1" {
		d.t.Errorf("the flavor that was restored has %v", got.Specs)
	}
}

func pruneFlavor(d *declaration) {
	d.configure(fmt.Sprintf(declaredCloud, declaredNames, cloudsFile, declaredSite) + strings.Replace(declaredFlavors, "{name: plain,", "{name: other,", 1) + declaredImages)
	d.cloud(3, words("plan"), "+ flavor other", "note: flavor plain was made by gpuserver and is not declared; --prune deletes it")
	d.cloud(3, words("plan", "--prune"), "- flavor plain", "2 changes.")
	d.cloud(0, words("apply", "--prune", "--yes"), "flavor plain: deleted", "flavor other: made")
	d.declare(declaredSite)
	d.cloud(0, words("apply", "--prune", "--yes"), "flavor other: deleted", "flavor plain: made")
}

func volumesMissing(d *declaration) {
	d.declare(strings.Replace(declaredSite, "ports: 600}", "ports: 601, volumes: 5}", 1))
	const missing = "not looked at: volume quotas: cloud stack: cannot read volume quotas: its catalogue has no block-storage service"
	d.cloud(3, words("plan"), missing, "~ port: 600 → 601", "1 change.")
	d.cloud(1, words("apply", "--yes"), missing, "network quotas gpuserver: changed")
	d.cloud(2, words("plan"), missing, "No changes in what could be looked at.")
	d.declare(declaredSite)
	d.cloud(0, words("apply", "--yes"), "network quotas gpuserver: changed")
}

func checkAndShow(d *declaration) {
	d.cloud(0, words("check"), "pass   credentials", "user gpuserver in project gpuserver", "pass   roles", "member", "pass   flavors", "pass   quotas",
		"pass   compute hosts", "pass   network guests", "MTU 1450", "pass   security group gpuserver", "pass   images", "0 failed")
	d.admin.call("DELETE", "compute", "/flavors/"+d.flavors("plain")[0], nil, nil)
	d.cloud(1, words("check"), "FAIL   flavors", "plain")
	d.cloud(0, words("apply", "--yes"), "flavor plain: made")
	d.cloud(0, words("show"), "nova-compute", "nova-scheduler", "/512000", "0 of 20 used", "No servers.")
}

// cardsInPlacement has Placement tell of Nova's cards, and of others once they are there.
func cardsInPlacement(d *declaration) {
	d.cloud(0, words("check"), "pass   cards in Placement "+cardClass, " free")
	const class = "CUSTOM_PCI_10DE_1DB5"
	d.configure(fmt.Sprintf(strings.Replace(declaredCloud, cardClass, class, 1), declaredNames, cloudsFile, declaredSite) + declaredFlavors + declaredImages)
	d.cloud(0, words("check"), "warn   cards in Placement "+class, "it does not tell")
	var provider struct{ UUID string }
	d.admin.call("POST", "placement", "/resource_providers", map[string]any{"name": "cards"}, &provider)
	d.admin.call("PUT", "placement", "/resource_classes/"+class, nil, nil)
	d.admin.call("PUT", "placement", "/resource_providers/"+provider.UUID+"/inventories", map[string]any{
		"resource_provider_generation": 0, "inventories": map[string]any{class: map[string]int{"total": 3}},
	}, nil)
	d.cloud(0, words("check"), "pass   cards in Placement "+class, "3 free")
	d.admin.call("DELETE", "placement", "/resource_providers/"+provider.UUID, nil, nil)
	d.admin.call("DELETE", "placement", "/resource_classes/"+class, nil, nil)
	d.declare(declaredSite)
}

// exportAll puts what was exported in the place of what was declared.
func exportAll(d *declaration) {
	out := d.cloud(0, words("export"), "# volume quotas could not be looked at")
	cloud, flavors, ok := strings.Cut(out, "# For the configuration itself:\n")
	if !ok {
		d.t.Fatal("it has no flavors")
	}
	_, declared, _ := strings.Cut(cloud, "declared:\n")
	flavors, names, _ := strings.Cut(flavors, "# For openstack of the cloud, as these are called otherwise there:\n# ")
	indent := func(by, text string) string {
		return by + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+by) + "\n"
	}
	// Two spaces of its own are below "declared".
	d.configure(fmt.Sprintf(declaredCloud, indent("      ", names), cloudsFile, indent("        ", strings.ReplaceAll("\n"+declared, "\n  ", "\n"))) + flavors + declaredImages)
	d.cloud(0, words("plan"), "No changes.")
	d.declare(declaredSite)
}

// memberPlans has the service's own credential look and change: what it may not do is
// named.
func memberPlans(d *declaration) {
	const admin = "        admin: {clouds_file: %s, cloud: admin}\n"
	asMember := func(site string) {
		d.configure(fmt.Sprintf(strings.Replace(declaredCloud, admin, "", 1), declaredNames, site) + declaredFlavors + declaredImages)
	}
	asMember(declaredSite)
	out := d.cloud(2, words("plan"), "not looked at: user: ", "identity:list_domains", "not looked at: default quotas: ", "os_compute_api:os-quota-class-sets:show", "No changes in what could be looked at.")
	if strings.Contains(out, "not looked at: flavor") || strings.Contains(out, "not looked at: network") {
		d.t.Error("a member sees flavors and networks")
	}
	asMember(strings.Replace(declaredSite, "instances: 20", "instances: 21", 1))
	d.cloud(1, words("apply", "--yes"), "compute quotas gpuserver: FAILED: ", "os_compute_api:os-quota-sets:update")
	d.declare(declaredSite)
}

// serviceWorks has the service take a job with the credential that was made for it.
func serviceWorks(d *declaration) {
	project := d.admin.list("identity", "/projects?name=gpuserver", "projects")[0].ID
	playGuests(d.t, d.admin, project)
	d.serve()
	d.succeeded(d.dispatch("cirun-plain", "true", 1))
	eventually(d.t, "no server is left", func() string {
		there, err := d.admin.handed(d.t.Context(), project)
		if err != nil || len(there) > 0 || len(d.vms()) > 0 {
			return fmt.Sprint(there, err, d.ask("vm", "list"))
		}
		return ""
	})
	d.cloud(0, words("plan"), "No changes.")
}

// flavors gives the ids of the flavors of a name.
func (d *declaration) flavors(name string) (ids []string) {
	d.t.Helper()
	for _, f := range d.admin.list("compute", "/flavors?is_public=None", "flavors") {
		if f.Name == name {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

// undeclare takes away all that the test makes, so that it can be run again on the
// same cloud.
func (d *declaration) undeclare() {
	d.t.Helper()
	do := func(method, service, path string, body any) {
		d.t.Helper()
		status, text, err := d.admin.send(context.Background(), method, service, path, body)
		if err != nil || status >= 300 {
			d.t.Errorf("%s %s: %d %s, %v", method, path, status, text, err)
		}
	}
	all := func(service, path, key string) {
		d.t.Helper()
		for _, o := range d.admin.list(service, path, key) {
			do("DELETE", service, strings.Split(path, "?")[0]+"/"+o.ID, nil)
		}
	}
	for _, project := range d.admin.list("identity", "/projects?name=gpuserver", "projects") {
		in := "?project_id=" + project.ID
		for _, router := range d.admin.list("network", "/v2.0/routers"+in, "routers") {
			for _, port := range d.admin.list("network", "/v2.0/ports?device_owner=network:router_interface&device_id="+router.ID, "ports") {
				do("PUT", "network", "/v2.0/routers/"+router.ID+"/remove_router_interface", map[string]any{"port_id": port.ID})
			}
		}
		all("network", "/v2.0/routers"+in, "routers")
		all("network", "/v2.0/networks"+in, "networks")
		all("network", "/v2.0/security-groups"+in, "security_groups")
		do("DELETE", "identity", "/projects/"+project.ID, nil)
	}
	all("network", "/v2.0/networks?name=outer", "networks")
	for _, user := range d.admin.list("identity", "/users?name=gpuserver", "users") {
		do("DELETE", "compute", "/os-keypairs/operator?user_id="+user.ID, nil)
		do("DELETE", "identity", "/users/"+user.ID, nil)
	}
	for _, name := range []string{"plain", "other", "g1.small"} {
		for _, id := range d.flavors(name) {
			do("DELETE", "compute", "/flavors/"+id, nil)
		}
	}
	do("PUT", "compute", "/os-quota-class-sets/default", map[string]any{"quota_class_set": map[string]int{"instances": 10}})
}
