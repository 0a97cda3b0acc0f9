package openstack

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"gpuserver/internal/cloud"
)

// How a server says whose it is. The tags are for people and for filters of
// theirs; the metadata is what counts, since Nova drops tags with the instance and
// old clouds have none.
const (
	ownerKey      = "gpuserver-owner"      // metadata: the installation
	keptKey       = "gpuserver-quarantine" // metadata and tag: Keep was called
	portsKey      = "gpuserver-ports"      // metadata: ports that we made for it
	tagOurs       = "gpuserver"
	tagOwner      = "gpuserver-owner-" // and the installation, if it fits
	maxTag        = 60                 // characters; source: Nova's API reference, "Server tags"
	stateSoftGone = "SOFT_DELETED"
)

// server is what Nova says of a server. Of one in a cell that is down it says no
// more than the id, the creation time and the status UNKNOWN.
type server struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Status   string            `json:"status"`
	Created  time.Time         `json:"created"`
	Updated  time.Time         `json:"updated"` // by the clock of Nova's database
	HostID   string            `json:"hostId"`
	Host     string            `json:"OS-EXT-SRV-ATTR:host"` // for administrators
	Task     string            `json:"OS-EXT-STS:task_state"`
	Power    int               `json:"OS-EXT-STS:power_state"`
	Metadata map[string]string `json:"metadata"`
	Tags     []string          `json:"tags"`
	Fault    *struct {
		Message string `json:"message"`
	} `json:"fault"`
	Flavor  size `json:"flavor"`
	Volumes []struct {
		ID string `json:"id"`
	} `json:"os-extended-volumes:volumes_attached"`
}

// size is a flavor as a server shows it; only its id before 2.47.
type size struct {
	ID    string            `json:"id"`
	VCPUs int               `json:"vcpus"`
	RAM   int64             `json:"ram"`  // MiB
	Disk  int64             `json:"disk"` // GiB
	Specs map[string]string `json:"extra_specs"`
}

// cards gives how many cards a flavor asks for by an alias.
// Source: docs.openstack.org/nova, "pci_passthrough:alias" ("a1:2,a2:1").
func (s size) cards(alias string) (n int) {
	for part := range strings.SplitSeq(s.Specs["pci_passthrough:alias"], ",") {
		name, count, _ := strings.Cut(strings.TrimSpace(part), ":")
		if name == alias {
			c, err := strconv.Atoi(count)
			if err != nil {
				c = 1
			}
			n += c
		}
	}
	return n
}

// owner is the installation that a server belongs to; "": none of ours.
func (s server) owner() string {
	if o := s.Metadata[ownerKey]; o != "" {
		return o
	}
	for _, t := range s.Tags {
		if o, ok := strings.CutPrefix(t, tagOwner); ok {
			return o
		}
	}
	return ""
}

func (s server) kept() bool {
	for _, t := range s.Tags {
		if t == keptKey {
			return true
		}
	}
	return s.Metadata[keptKey] != ""
}

// unknown reports whether Nova cannot say what became of a server: its cell is
// down.
func (s server) unknown() bool { return s.Status == "UNKNOWN" }

// state translates a server's status.
// Source: docs.openstack.org/api-guide/compute, "Server concepts".
func (s server) state() cloud.State {
	const shutDown, crashed = 4, 6 // power states
	switch s.Status {
	case "BUILD", "REBUILD":
		return cloud.StateBuilding
	case "ERROR":
		return cloud.StateError
	case "SHUTOFF", "PAUSED", "SUSPENDED", "SHELVED", "SHELVED_OFFLOADED":
		return cloud.StateStopped
	case stateSoftGone:
		return cloud.StateRemains
	}
	if s.Power == shutDown || s.Power == crashed {
		return cloud.StateStopped
	}
	return cloud.StateRunning
}

// settled reports whether nothing is expected to change of a server by itself.
func (s server) settled() bool {
	return s.state() != cloud.StateBuilding && s.Task != "deleting"
}

func (s server) fault() string {
	if s.Fault == nil {
		return ""
	}
	return short(s.Fault.Message)
}

// vm describes a server.
func (s server) vm() cloud.VM {
	vm := cloud.VM{Name: s.Name, ID: s.ID, Owner: s.owner(), Host: cmp.Or(s.Host, s.HostID), State: s.state(), Kept: s.kept(), CreatedAt: s.Created}
	if vm.State == cloud.StateError {
		vm.Fault = cmp.Or(s.fault(), "Nova gives no reason")
		vm.FaultKind, vm.NoHost = ofFault(vm.Fault), noHost(vm.Fault)
	}
	return vm
}
