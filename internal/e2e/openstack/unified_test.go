//go:build openstack

package openstack

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
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

// registered are limits in Keystone that are deleted with the test.
type registered struct {
	admin   *client
	service string
	ids     map[string]string
}

func (r *registered) set(limits map[string]int) {
	r.admin.t.Helper()
	for name, n := range limits {
		if id, ok := r.ids[name]; ok {
			r.admin.call("PATCH", "identity", "/v3/registered_limits/"+id, map[string]any{"registered_limit": map[string]any{"default_limit": n}}, nil)
			continue
		}
		var made struct {
			Limits []struct{ ID string } `json:"registered_limits"`
		}
		r.admin.call("POST", "identity", "/v3/registered_limits", map[string]any{"registered_limits": []any{map[string]any{
			"service_id": r.service, "region_id": "RegionOne", "resource_name": name, "default_limit": n,
		}}}, &made)
		r.ids[name] = made.Limits[0].ID
	}
}

func (r *registered) drop() {
	for name, id := range r.ids {
		if status, text, err := r.admin.send(context.Background(), "DELETE", "identity", "/v3/registered_limits/"+id, nil); err != nil || status != http.StatusNoContent {
			r.admin.t.Errorf("deleting the limit %s: %d %s, %v", name, status, text, err)
		}
	}
}

// TestFakeUnifiedLimits has limits that are Keystone's: what they leave is what the
// driver says is there, one that is not set counts as 0 as it does to Nova, and
// what is refused for them is no room.
func TestFakeUnifiedLimits(t *testing.T) {
	need(t, fake)
	admin, member := login(t, "admin"), login(t, "member")
	member.quota(admin, unlimited)
	admin.endpoints["identity"] = strings.TrimSuffix(admin.endpoints["identity"], "/v3")
	find := func(path, list, field, value string) string {
		t.Helper()
		var raw map[string]json.RawMessage
		admin.call("GET", "identity", path, nil, &raw)
		var all []map[string]any
		if err := json.Unmarshal(raw[list], &all); err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if e[field] == value {
				return e["id"].(string)
			}
		}
		t.Fatalf("%s has none with %s %s", path, field, value)
		return ""
	}
	service := find("/v3/services?type=compute", "services", "type", "compute")
	endpoint := find("/v3/endpoints?service_id="+service, "endpoints", "interface", "public")
	// Nova reads limits and endpoints of all the system.
	grant := "/v3/system/users/" + find("/v3/users?name=nova", "users", "name", "nova") + "/roles/" + find("/v3/roles?name=admin", "roles", "name", "admin")
	admin.call("PUT", "identity", grant, nil, nil)
	t.Cleanup(func() {
		if _, _, err := admin.send(context.Background(), "DELETE", "identity", grant, nil); err != nil {
			t.Error(err)
		}
	})
	limits := &registered{admin, service, map[string]string{}}
	t.Cleanup(limits.drop)
	limits.set(map[string]int{
		"servers": 3, "class:VCPU": 2, "class:MEMORY_MB": 4096,
		"server_metadata_items": 128, "server_injected_files": 5, "server_injected_file_content_bytes": 10240, "server_injected_file_path_bytes": 255,
		"server_key_pairs": 100, "server_groups": 10, "server_group_members": 10,
	})
	startUnified(t, endpoint)

	const owner = "gpuserver-unified"
	open := func() (*driver.Driver, gpuserver.Host) {
		t.Helper()
		d, err := driver.Open(driver.Config{
			Name: "lab", Owner: owner, Credentials: driver.Credentials{CloudsFile: cloudsFile, Cloud: "member"},
			Endpoints: driver.Endpoints{Compute: unifiedAt},
			Flavors:   map[string]string{"small": "lab.nano"}, Images: map[string]string{"empty": "empty"}, Networks: []string{"lab"},
			BuildTimeout: limit, DeleteTimeout: limit,
		}, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		hosts, err := d.Capacity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("capacity: %+v", hosts[0])
		return d, hosts[0]
	}
	d, host := open()
	if host.MaxVMs != 3 || host.VCPUs != 2 || host.MemoryMiB != 4096 || host.DiskGiB != 0 {
		t.Errorf("capacity %+v, want 3 VMs, 2 vCPUs, 4096 MiB and, as no limit of disks is set, 0 GiB", host)
	}
	// Nova itself says so, too.
	_, err := d.Create(t.Context(), small(owner, "unified-0"))
	t.Logf("without a limit of disks: %v", err)
	if gpuserver.KindOf(err) != gpuserver.KindCapacity || !strings.Contains(err.Error(), "DISK_GB") {
		t.Errorf("a VM without a limit of disks: %v, want no room for DISK_GB", err)
	}
	_ = d.Close()

	limits.set(map[string]int{"class:DISK_GB": 50})
	d, host = open()
	if host.DiskGiB != 50 {
		t.Errorf("%d GiB of disk, want the limit's 50", host.DiskGiB)
	}
	for n := range 3 {
		name := fmt.Sprintf("unified-%d", n+1)
		_, err := d.Create(t.Context(), small(owner, name))
		t.Cleanup(func() {
			if err := d.Delete(context.Background(), name); err != nil {
				t.Error(err)
			}
		})
		if n < 2 && err != nil {
			t.Fatal(err)
		}
		if n == 2 && (gpuserver.KindOf(err) != gpuserver.KindCapacity || !strings.Contains(err.Error(), "VCPU")) {
			t.Errorf("a third VM of one vCPU: %v, want no room for VCPU", err)
		}
	}

	// A limit of its own goes before the registered one.
	var made struct{ Limits []struct{ ID string } }
	admin.call("POST", "identity", "/v3/limits", map[string]any{"limits": []any{map[string]any{
		"service_id": service, "region_id": "RegionOne", "project_id": member.project, "resource_name": "class:DISK_GB", "resource_limit": 70,
	}}}, &made)
	own := "/v3/limits/" + made.Limits[0].ID
	_, host = open()
	if status, text := admin.do("DELETE", "identity", own, nil); status != http.StatusNoContent {
		t.Errorf("deleting the project's limit: %d %s", status, text)
	}
	if host.DiskGiB != 70 {
		t.Errorf("%d GiB of disk, want the project's own 70", host.DiskGiB)
	}
}
