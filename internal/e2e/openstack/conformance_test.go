//go:build openstack

package openstack

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"testing"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/cloudtest"
	"gpuserver/internal/cloud/openstack"
)

// TestConformance holds the driver to the same promises on a real Nova as on its
// stand-in, and as the other drivers. Ports are made by us, so that there is something
// that Nova can leave behind; all other tests leave them to Nova.
func TestConformance(t *testing.T) {
	need(t, fake)
	t.Parallel() // with TestDeclared, which has a project of its own and no cards
	admin, member := login(t, "admin"), login(t, "member")
	member.quota(admin, unlimited)
	cfg := openstack.Config{
		Name: "lab", Owner: fmt.Sprintf("gpuserver-ct%d", os.Getpid()), Credentials: openstack.Credentials{CloudsFile: cloudsFile, Cloud: "member"},
		Images: map[string]string{"debian-12": "empty"}, Networks: []string{"lab"}, Ports: true, SecurityGroups: []string{"default"},
	}
	o := cloudtest.Options{
		Spec:       cloud.Spec{Owner: cfg.Owner, Image: "debian-12", Flavor: gpuserver.Flavor{Name: "lab.nano", VCPUs: 1, MemoryMiB: 128, DiskGiB: 1}},
		CardFlavor: gpuserver.Flavor{Name: "gpu_tiny", VCPUs: 4, MemoryMiB: 2048, DiskGiB: 20, GPUs: gpuserver.GPUs{Model: "tesla-v100", Count: 1}},
		HasGuest:   true, // the fake hypervisor writes some lines for it
		Limit:      limit,
	}
	behind(&o, admin, member)
	cloudtest.Run(t, func(t *testing.T) cloud.Driver {
		d, err := openstack.Open(cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, o)
}

// behind sets the hooks, which act in plain HTTP and so see what Nova itself says.
func behind(o *cloudtest.Options, admin, member *client) {
	const mark = "gpuserver-owner" // docs/openstack.md
	o.Stop = func(t *testing.T, name string) {
		c := member.as(t)
		c.call("POST", "compute", "/servers/"+c.named(name).ID+"/action", map[string]any{"os-stop": nil}, nil)
	}
	o.LeavePart = func(t *testing.T, name string) {
		c := member.as(t)
		c.call("POST", "network", "/v2.0/ports", map[string]any{"port": map[string]any{
			"network_id": c.network(), "name": name, "description": mark + "=" + o.Spec.Owner,
		}}, nil)
	}
	o.AddForeign = func(t *testing.T, name string) {
		c := member.as(t)
		if s := c.settled(c.create(newServer{Name: name, Flavor: o.Spec.Flavor.Name, Image: c.image("empty")})); s.Status != "ACTIVE" {
			t.Fatal(s)
		}
	}
	o.Handed = func(t *testing.T, name string) ([]byte, map[string]string) {
		var got struct {
			Server struct {
				Metadata map[string]string
				UserData string `json:"OS-EXT-SRV-ATTR:user_data"`
			}
		}
		admin.as(t).call("GET", "compute", "/servers/"+member.as(t).named(name).ID, nil, &got)
		data, err := base64.StdEncoding.DecodeString(got.Server.UserData)
		if err != nil {
			t.Fatal(err)
		}
		return data, got.Server.Metadata
	}
	o.Shrink = func(t *testing.T) {
		c := member.as(t)
		c.quota(admin.as(t), map[string]any{"instances": 1, "cores": 1, "ram": 1})
		t.Cleanup(func() { // the test's context has ended
			status, text, err := admin.send(context.Background(), "PUT", "compute", "/os-quota-sets/"+member.project, map[string]any{"quota_set": unlimited})
			if err != nil || status != http.StatusOK {
				t.Errorf("giving the quota back: %d %s, %v", status, text, err)
			}
		})
	}
}

// named gives the project's only server of a name.
func (c *client) named(name string) server {
	c.t.Helper()
	var got struct{ Servers []server }
	c.call("GET", "compute", "/servers/detail?"+url.Values{"name": {"^" + name + "$"}}.Encode(), nil, &got)
	if len(got.Servers) != 1 {
		c.t.Fatalf("%d servers are called %s, want 1", len(got.Servers), name)
	}
	return got.Servers[0]
}
