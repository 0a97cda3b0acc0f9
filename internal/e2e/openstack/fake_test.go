//go:build openstack

package openstack

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seed are the addresses that the seed's nova.conf names: one card of each group.
var seed = []string{"0000:27:00.0", "0000:44:00.0", "0000:a3:00.0", "0000:c3:00.0"}

// devices gives the addresses of the cards that Nova knows, with their states.
func devices(t *testing.T) (all []string, taken int) {
	t.Helper()
	rows := inside(t, "mariadb", "--no-defaults", "-uroot", "-N", "nova_cell1", "-e", "SELECT address, status FROM pci_devices WHERE deleted = 0")
	for line := range strings.Lines(rows) {
		f := strings.Fields(line)
		all = append(all, f[0])
		if f[1] == "allocated" {
			taken++
		}
	}
	slices.Sort(all)
	return all, taken
}

// TestFakeCards has Nova offer exactly the cards that "gpuserver host render nova"
// names, of the six that its hypervisor has.
func TestFakeCards(t *testing.T) {
	need(t, fake)
	all, _ := devices(t)
	if d := cmp.Diff(seed, all); d != "" {
		t.Errorf("Nova's cards (-want +got):\n%s", d)
	}
}

// TestFakeGPUs has real scheduling by pci_passthrough:alias.
func TestFakeGPUs(t *testing.T) {
	need(t, fake)
	member := login(t, "member")
	member.quota(login(t, "admin"), unlimited)
	image := member.image("empty")
	create := func(t *testing.T, name, flavor string) string {
		t.Helper()
		return member.as(t).create(newServer{Name: name, Flavor: flavor, Image: image})
	}
	var gpus []string
	for n := range 4 {
		gpus = append(gpus, create(t, fmt.Sprintf("gpu%d", n), "gpu_tiny"))
	}
	active := func(t *testing.T, id string) {
		t.Helper()
		if s := member.as(t).settled(id); s.Status != "ACTIVE" {
			t.Errorf("%v, want ACTIVE", s)
		}
	}
	t.Run("four one-GPU servers", func(t *testing.T) {
		for _, id := range gpus {
			active(t, id)
		}
		if _, taken := devices(t); taken != 4 {
			t.Errorf("%d cards are taken, want 4", taken)
		}
	})
	t.Run("a fifth finds no valid host", func(t *testing.T) {
		if s := member.as(t).settled(create(t, "gpu4", "gpu_tiny")); s.Status != "ERROR" || !strings.Contains(s.Fault.Message, "No valid host") {
			t.Errorf("%v, want ERROR and No valid host", s)
		}
	})
	t.Run("a CPU server fits", func(t *testing.T) { active(t, create(t, "cpu", "ci_medium")) })
	t.Run("after a delete the next fits", func(t *testing.T) {
		member.as(t).remove(gpus[0])
		// The card is given back after the server is gone from the list.
		eventually(t, "a card is free", func() string {
			if _, taken := devices(t); taken != 3 {
				return fmt.Sprintf("%d cards are taken", taken)
			}
			return ""
		})
		active(t, create(t, "again", "gpu_4xlarge"))
	})
}

// TestFakeQuotas has Nova refuse what is over a project's quota.
func TestFakeQuotas(t *testing.T) {
	need(t, fake)
	admin, member := login(t, "admin"), login(t, "member")
	image, network := member.image("empty"), member.network()
	for _, tt := range []struct {
		quota string
		limit int
	}{{"instances", 0}, {"cores", 3}, {"ram", 8191}} {
		t.Run(tt.quota, func(t *testing.T) {
			admin, member := admin.as(t), member.as(t)
			member.quota(admin, unlimited)
			member.quota(admin, map[string]any{tt.quota: tt.limit})
			defer member.quota(admin, unlimited)
			status, text := member.do("POST", "compute", "/servers", map[string]any{"server": newServer{
				Name: "over", Flavor: "ci_medium", Image: image, Networks: []map[string]string{{"uuid": network}},
			}})
			if status != http.StatusForbidden || !strings.Contains(text, "Quota exceeded for "+tt.quota) {
				t.Errorf("%d %s, want 403 and Quota exceeded for %s", status, text, tt.quota)
			}
		})
	}
}
