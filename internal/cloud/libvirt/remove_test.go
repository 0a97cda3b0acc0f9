package libvirt

import (
	"strings"
	"testing"

	"gpuserver"
)

// TestRemoveNetwork: VMs on the network keep it; VMs elsewhere do not.
func TestRemoveNetwork(t *testing.T) {
	ours, others := newPlace(t), newPlace(t)
	dropping(t)
	d, neighbour := open(t, ours), open(t, others)
	start(t, d, "guest", "sleep 1000000")
	start(t, neighbour, "stranger", "sleep 1000000")
	wantKind(t, RemoveNetwork(bounded(t), ours, logger(t)), "RemoveNetwork with a VM", gpuserver.KindConflict)
	if err := d.Delete(bounded(t), "guest"); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is not there is success
		if err := RemoveNetwork(bounded(t), ours, logger(t)); err != nil {
			t.Fatal(err)
		}
	}
	if left := host(t, "iptables -S; ip6tables -S"); strings.Contains(left, ours.Network.Bridge+" ") || !strings.Contains(left, others.Network.Bridge+" ") {
		t.Errorf("the host's own firewall should have the neighbour's exceptions and not ours:\n%s", left)
	}
	n := ours.Network.Name
	if left := host(t, "virsh -q net-list --all --name | grep -x "+n+"; ip -o link show dev "+ours.Network.Bridge+" 2>/dev/null; virsh -q nwfilter-list | grep -w "+filterName(ours.Network)+"; nft list tables | grep -w "+tableName(ours.Network)+"; true"); left != "" {
		t.Errorf("left behind: %s", left)
	}
	if got := strings.TrimSpace(host(t, "virsh -q domstate stranger")); got != "running" {
		t.Errorf("the neighbour's VM is %q", got)
	}
}
