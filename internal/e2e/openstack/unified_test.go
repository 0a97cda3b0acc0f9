//go:build openstack

package openstack

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"gpuserver"
	driver "gpuserver/internal/cloud/openstack"
)

// unifiedAt is where the nova-api listens whose quotas are Keystone's unified limits;
// see scripts/openstack-lab.d/etc/nova/lab-unified.conf.
const unifiedAt = "http://198.18.0.2:8784/v2.1"

// startUnified starts a second nova-api on the same cloud, whose limits are those of
// one endpoint and region.
func startUnified(t *testing.T, endpoint string) {
	t.Helper()
	pid := strings.TrimSpace(inside(t, "sh", "-c", `printf '[oslo_limit]\nendpoint_id = %s\n' "$1" >/run/lab-endpoint.conf
		setsid nova-api --config-file /etc/nova/nova.conf --config-file /etc/nova/lab-database.conf --config-file /lab/gpus.conf \
			--config-file /etc/nova/lab-unified.conf --config-file /run/lab-endpoint.conf >/lab/log/nova-api-unified.log 2>&1 </dev/null &
		echo $!`, "sh", endpoint))
	t.Cleanup(func() {
		inside(t, "sh", "-c", `kill "$1"; while kill -0 "$1" 2>/dev/null; do sleep 0.1; done`, "sh", pid)
		if t.Failed() {
			t.Log(inside(t, "tail", "-n", "40", "/lab/log/nova-api-unified.log"))
		}
	})
	eventually(t, "the second nova-api answers", func() string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, unifiedAt, nil)
		if err != nil {
			return err.Error()
		}
		resp, err := web.Do(req)
		if err != nil {
			return err.Error()
		}
		_ = resp.Body.Close()
		return ""
	})
}

// temporary makes something by a POST to Keystone, which is deleted with the test; the
// answer's only list has it.
func (c *client) temporary(path, list string, thing map[string]any) {
	c.t.Helper()
	var made map[string][]struct{ ID string }
	c.call("POST", "identity", path, map[string]any{list: []any{thing}}, &made)
	c.deleteAfter(path + "/" + made[list][0].ID)
}

// deleteAfter deletes something of Keystone's when the test has ended.
func (c *client) deleteAfter(path string) {
	c.t.Cleanup(func() { // the test's context has ended
		if status, text, err := c.send(context.Background(), "DELETE", "identity", path, nil); err != nil || status != http.StatusNoContent {
			c.t.Errorf("DELETE %s: %d %s, %v", path, status, text, err)
		}
	})
}

// only gives the id of what a list of one has.
func (c *client) only(path, list string) string {
	c.t.Helper()
	all := c.list("identity", path, list)
	if len(all) != 1 {
		c.t.Fatalf("%s has %d, want 1", path, len(all))
	}
	return all[0].ID
}

// unified opens the driver on the second nova-api, and reads what there is room for.
func unified(t *testing.T) (*driver.Driver, gpuserver.Host) {
	t.Helper()
	d := openDriver(t, unifiedOwner, func(c *driver.Config) { c.Endpoints.Compute = unifiedAt })
	hosts, err := d.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d, hosts[0]
}

const unifiedOwner = "gpuserver-unified"

// TestFakeUnifiedLimits has limits that are Keystone's: what they leave is what the
// driver says is there, one that is not set counts as 0 as it does to Nova, and
// what is refused for them is no room.
func TestFakeUnifiedLimits(t *testing.T) {
	need(t, fake)
	admin, member := login(t, "admin"), login(t, "member")
	member.quota(admin, unlimited)
	service := admin.only("/services?type=compute", "services")
	// Nova reads limits and endpoints of all the system.
	grant := "/system/users/" + admin.only("/users?name=nova", "users") + "/roles/" + admin.only("/roles?name=admin", "roles")
	admin.call("PUT", "identity", grant, nil, nil)
	admin.deleteAfter(grant)
	register := func(limits map[string]int) {
		t.Helper()
		for name, n := range limits {
			admin.temporary("/registered_limits", "registered_limits", map[string]any{
				"service_id": service, "region_id": "RegionOne", "resource_name": name, "default_limit": n,
			})
		}
	}
	register(map[string]int{
		"servers": 3, "class:VCPU": 2, "class:MEMORY_MB": 4096,
		"server_metadata_items": 128, "server_injected_files": 5, "server_injected_file_content_bytes": 10240, "server_injected_file_path_bytes": 255,
		"server_key_pairs": 100, "server_groups": 10, "server_group_members": 10,
	})
	startUnified(t, admin.only("/endpoints?interface=public&service_id="+service, "endpoints"))

	// create makes a VM, or is refused for want of room of a resource.
	create := func(d *driver.Driver, name, lacks string) {
		t.Helper()
		_, err := d.Create(t.Context(), small(unifiedOwner, name))
		t.Cleanup(func() {
			if err := d.Delete(context.Background(), name); err != nil {
				t.Error(err)
			}
		})
		if lacks == "" && err != nil {
			t.Fatal(err)
		}
		if lacks != "" && (gpuserver.KindOf(err) != gpuserver.KindCapacity || !strings.Contains(err.Error(), lacks)) {
			t.Errorf("%s: %v, want no room for %s", name, err, lacks)
		}
	}
	d, host := unified(t)
	if host.MaxVMs != 3 || host.VCPUs != 2 || host.MemoryMiB != 4096 || host.DiskGiB != 0 {
		t.Errorf("capacity %+v, want 3 VMs, 2 vCPUs, 4096 MiB and, as no limit of disks is set, 0 GiB", host)
	}
	create(d, "unified-0", "class:DISK_GB") // Nova itself says so, too

	register(map[string]int{"class:DISK_GB": 50})
	d, host = unified(t)
	if host.DiskGiB != 50 {
		t.Errorf("%d GiB of disk, want the limit's 50", host.DiskGiB)
	}
	create(d, "unified-1", "")
	create(d, "unified-2", "")
	create(d, "unified-3", "class:VCPU")

	// A limit of its own goes before the registered one.
	admin.temporary("/limits", "limits", map[string]any{
		"service_id": service, "region_id": "RegionOne", "project_id": member.project, "resource_name": "class:DISK_GB", "resource_limit": 70,
	})
	if _, host = unified(t); host.DiskGiB != 70 {
		t.Errorf("%d GiB of disk, want the project's own 70", host.DiskGiB)
	}
}
