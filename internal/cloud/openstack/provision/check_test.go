package provision

import (
	"strings"
	"testing"
	"time"

	"gpuserver/internal/cloud/openstack"
	"gpuserver/internal/cloud/openstack/openstacktest"
)

// Each thing that jobs would fail of is found, and nothing else fails.
func TestCheck(t *testing.T) {
	door := openstacktest.Object{"id": "door", "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22}
	for _, tt := range []struct {
		name  string
		spoil func(*openstacktest.Cloud, *Needs)
		check string // whose level is not pass or skip; "": none
		level Level
		seen  string
	}{
		{"all well", func(*openstacktest.Cloud, *Needs) {}, "", "", ""},
		{"a flavor is missing", func(c *openstacktest.Cloud, _ *Needs) { c.Remove("flavors", "name", "ci_large") }, "flavors", Fail, "ci_large is not there"},
		{"a flavor's alias", func(_ *openstacktest.Cloud, n *Needs) { n.Flavors[1].Alias = "a100:1" }, "flavors", Fail, `gpu_large asks for PCI alias "tesla-v100:1" in place of "a100:1"`},
		{"a flavor's size", func(c *openstacktest.Cloud, _ *Needs) {
			c.Edit("flavors", "name", "ci_large", func(o openstacktest.Object) { o["vcpus"] = 1 })
		}, "flavors", Fail, "ci_large has 1 vCPUs"},
		{"quota of memory", func(c *openstacktest.Cloud, n *Needs) {
			n.Flavors[0].RAM = 600000
			c.Edit("flavors", "name", "ci_large", func(o openstacktest.Object) { o["ram"] = 600000 })
			c.Edit("hypervisors", "hypervisor_hostname", "node1", func(o openstacktest.Object) { o["memory_mb"] = 1 << 20 })
		}, "quotas", Fail, "never fit: ci_large"},
		{"more cards than servers", func(_ *openstacktest.Cloud, n *Needs) { n.GPUs[0].Count = 99 }, "quotas", Warn, "the 99 cards"},
		{"no host is large enough", func(c *openstacktest.Cloud, _ *Needs) {
			c.Edit("hypervisors", "hypervisor_hostname", "node1", func(o openstacktest.Object) { o["memory_mb"] = 2048 })
		}, "compute hosts", Fail, "none with the memory and CPUs of these flavors: ci_large, gpu_large"},
		{"no host has the CPUs", func(c *openstacktest.Cloud, _ *Needs) {
			c.Edit("hypervisors", "hypervisor_hostname", "node1", func(o openstacktest.Object) { o["vcpus"] = 1 })
		}, "compute hosts", Fail, "none with the memory and CPUs of these flavors: ci_large, gpu_large"},
		{"no host is up", func(c *openstacktest.Cloud, _ *Needs) {
			c.Edit("hypervisors", "hypervisor_hostname", "node1", func(o openstacktest.Object) { o["state"] = "down" })
		}, "compute hosts", Fail, "none is up"},
		{"no card was ever given", func(c *openstacktest.Cloud, _ *Needs) {
			c.Edit("servers", "name", "gs-1", func(o openstacktest.Object) {
				o["status"], o["fault"] = "ERROR", openstacktest.Object{"message": "No valid host was found. There are not enough hosts available."}
			})
		}, "PciPassthroughFilter and alias tesla-v100", Warn, "gs-1 found no host"},
		{"a door", func(c *openstacktest.Cloud, _ *Needs) {
			c.Edit("security-groups", "name", "gpuserver", func(o openstacktest.Object) {
				o["security_group_rules"] = append(o["security_group_rules"].([]any), door)
			})
		}, "security group gpuserver", Warn, "it lets something in: ingress IPv4 tcp port 22"},
		{"no network", func(_ *openstacktest.Cloud, n *Needs) { n.Networks[0] = "other" }, "network other", Fail, "sees 0 networks"},
		{"the service may do all", func(c *openstacktest.Cloud, _ *Needs) {
			user, project := c.Find("users", "name", "gpuserver")[0]["id"], c.Find("projects", "name", "gpuserver")[0]["id"]
			c.Add("grants", openstacktest.Object{"user": user, "project": project, "role": "r-admin"})
		}, "roles", Warn, "an administrator"},
		{"the credential ends", func(c *openstacktest.Cloud, _ *Needs) {
			c.Edit("application_credentials", "name", "gpuserver", func(o openstacktest.Object) { o["expires_at"] = "2030-01-10T00:00:00.000000" })
		}, "application credential", Warn, "expires on 2030-01-10"},
		{"no image", func(c *openstacktest.Cloud, _ *Needs) { c.Remove("images", "name", "debian") }, "images", Warn, `no image "debian"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, d, need := checked(t)
			tt.spoil(c, &need)
			service := siteAs(t, openstack.Credentials{CloudsFile: d.Credential.File, Cloud: "gpuserver"}, d)
			found := false
			for _, f := range Check(t.Context(), service.api, site(t, c, d).api, need) {
				switch {
				case f.Name == tt.check:
					found = true
					if f.Level != tt.level || !strings.Contains(f.Seen, tt.seen) {
						t.Errorf("%+v, want %s with %q", f, tt.level, tt.seen)
					}
				case f.Level != Pass && f.Level != Skip:
					t.Errorf("%+v", f)
				}
			}
			if !found && tt.check != "" {
				t.Errorf("no check %q", tt.check)
			}
		})
	}
}

// checked is a cloud on which all is well, and what the service needs of it.
func checked(t *testing.T) (*openstacktest.Cloud, Declaration, Needs) {
	c := openstacktest.New(t)
	d := everything(t)
	apply(t, site(t, c, d), false)
	c.Add("images", openstacktest.Object{"name": "debian", "status": "active", "visibility": "public"})
	c.Add("hypervisors", openstacktest.Object{"hypervisor_hostname": "node1", "status": "enabled", "state": "up", "vcpus": 64, "memory_mb": 262144})
	c.Add("servers", openstacktest.Object{
		"name": "gs-1", "status": "ACTIVE", "tenant_id": c.Find("projects", "name", "gpuserver")[0]["id"],
		"flavor": openstacktest.Object{"extra_specs": openstacktest.Object{aliasSpec: "tesla-v100:1"}},
	})
	return c, d, Needs{
		Flavors: append([]Flavor{}, d.Flavors...), GPUs: []Cards{{Alias: "tesla-v100", Count: 4}}, Networks: []string{"guests"}, Groups: []string{"gpuserver"},
		Images: d.Images, Now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

// With wrong credentials that is said, and nothing else.
func TestCheckCredentials(t *testing.T) {
	c, d, need := checked(t)
	c.Remove("application_credentials", "name", "gpuserver")
	service := siteAs(t, openstack.Credentials{CloudsFile: d.Credential.File, Cloud: "gpuserver"}, d)
	got := Check(t.Context(), service.api, nil, need)
	if len(got) != 1 || got[0].Level != Fail || !strings.Contains(got[0].Seen, "401") {
		t.Errorf("%+v", got)
	}
}
