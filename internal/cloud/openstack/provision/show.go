package provision

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
)

// View is a cloud as it is now, as far as the credentials see it.
type View struct {
	Services    []NovaService `json:"services"`
	Hypervisors []Hypervisor  `json:"hypervisors"`
	Quotas      []QuotaUse    `json:"quotas"`
	Servers     []Server      `json:"servers"`
	Unknown     []Unknown     `json:"unknown"`
}

// NovaService is a part of Nova on a host.
type NovaService struct {
	Binary string `json:"binary"`
	Host   string `json:"host"`
	Zone   string `json:"zone"`
	Status string `json:"status"` // enabled or disabled
	State  string `json:"state"`  // up or down
	Reason string `json:"disabled_reason"`
}

// Hypervisor is a compute host. Nova tells sizes up to microversion 2.87.
type Hypervisor struct {
	Name      string `json:"hypervisor_hostname"`
	Type      string `json:"hypervisor_type"`
	Status    string `json:"status"`
	State     string `json:"state"`
	VCPUs     int    `json:"vcpus"`
	VCPUsUsed int    `json:"vcpus_used"`
	MemoryMiB int64  `json:"memory_mb"`
	MemoryUse int64  `json:"memory_mb_used"`
	Servers   int    `json:"running_vms"`
}

// QuotaUse is a quota of the project, and how much of it is used. Limit -1 is none.
type QuotaUse struct {
	Name  string `json:"name"`
	Used  int64  `json:"used"`
	Limit int64  `json:"limit"`
}

// Server is a server in the project.
type Server struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Status  string    `json:"status"`
	Flavor  string    `json:"flavor"`
	Cards   string    `json:"cards,omitempty"` // its flavor's PCI alias and number
	Host    string    `json:"host"`            // Nova's name for it that a project sees
	Created time.Time `json:"created"`
	Owner   string    `json:"owner,omitempty"` // the installation; "": not ours
	Ours    bool      `json:"ours"`            // of this installation
	Fault   string    `json:"fault,omitempty"`
}

// asks reports whether a server's flavor asks for a PCI alias.
func (s Server) asks(alias string) bool {
	for part := range strings.SplitSeq(s.Cards, ",") {
		if name, _, _ := strings.Cut(strings.TrimSpace(part), ":"); name == alias {
			return true
		}
	}
	return false
}

// Show reads what a cloud has. The service's login sees the project; admin, if it is
// given, sees services and hypervisors. Instance is the name of this installation. An
// error says that not even a login was possible.
func Show(ctx context.Context, service, admin *openstack.API, instance string) (View, error) {
	s := New(service, Declaration{})
	project, err := s.api.ProjectID(ctx)
	if err != nil {
		return View{}, err
	}
	high := s
	if admin != nil {
		high = New(admin, Declaration{})
	}
	v := View{Services: []NovaService{}, Hypervisors: []Hypervisor{}, Quotas: []QuotaUse{}, Servers: []Server{}, Unknown: []Unknown{}}
	try := func(kind Kind, err error) {
		if err != nil {
			v.Unknown = append(v.Unknown, Unknown{kind, gpuserver.PublicText(err)})
		}
	}
	services, err := high.services(ctx)
	v.Services = append(v.Services, services...)
	try("services", err)
	hypervisors, err := high.hypervisors(ctx)
	v.Hypervisors = append(v.Hypervisors, hypervisors...)
	try("hypervisors", err)
	quotas, err := s.quotaUse(ctx, project)
	v.Quotas = append(v.Quotas, quotas...)
	try("quotas", err)
	servers, err := s.allServers(ctx)
	v.Servers = append(v.Servers, servers...)
	try("servers", err)
	for i := range v.Servers {
		// An installation is its name and a random part of its database.
		name, _, _ := cutLast(v.Servers[i].Owner, "-")
		v.Servers[i].Ours = name == instance
	}
	return v, ctx.Err()
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (s *Site) services(ctx context.Context) ([]NovaService, error) {
	var answer struct {
		Services []NovaService `json:"services"`
	}
	err := s.get(ctx, "list Nova's services", openstack.Compute, "os-services", nil, &answer)
	return answer.Services, err
}

func (s *Site) hypervisors(ctx context.Context) ([]Hypervisor, error) {
	var answer struct {
		Hypervisors []Hypervisor `json:"hypervisors"`
	}
	err := s.get(ctx, "list hypervisors", openstack.Compute, "os-hypervisors/detail", nil, &answer)
	return answer.Hypervisors, err
}

// quotaUse reads the quotas of Nova that bound servers.
func (s *Site) quotaUse(ctx context.Context, project string) (out []QuotaUse, err error) {
	type use struct {
		Limit int64 `json:"limit"`
		Used  int64 `json:"in_use"`
	}
	var answer struct {
		Set struct {
			Instances, Cores, RAM *use
		} `json:"quota_set"`
	}
	err = s.get(ctx, "read quotas", openstack.Compute, "os-quota-sets/"+project+"/detail", nil, &answer)
	for _, q := range []struct {
		name string
		use  *use
	}{{"instances", answer.Set.Instances}, {"cores", answer.Set.Cores}, {"ram (MiB)", answer.Set.RAM}} {
		if q.use != nil {
			out = append(out, QuotaUse{q.name, q.use.Used, q.use.Limit})
		}
	}
	return out, err
}

// apiServer is a server as Nova shows it.
type apiServer struct {
	named
	Status  string            `json:"status"`
	Host    string            `json:"hostId"`
	Created time.Time         `json:"created"`
	Meta    map[string]string `json:"metadata"`
	Flavor  struct {
		Name  string            `json:"original_name"`
		Specs map[string]string `json:"extra_specs"`
	} `json:"flavor"`
	Fault struct {
		Message string `json:"message"`
	} `json:"fault"`
}

// allServers reads the servers of the login's project.
func (s *Site) allServers(ctx context.Context) (out []Server, err error) {
	query := url.Values{"limit": {strconv.Itoa(page)}}
	for {
		var answer struct {
			Servers []apiServer `json:"servers"`
			Links   []any       `json:"servers_links"`
		}
		if err := s.get(ctx, "list servers", openstack.Compute, "servers/detail", query, &answer); err != nil {
			return nil, err
		}
		for _, a := range answer.Servers {
			out = append(out, Server{
				ID: a.ID, Name: a.Name, Status: a.Status, Flavor: a.Flavor.Name, Cards: a.Flavor.Specs[aliasSpec],
				Host: a.Host, Created: a.Created, Owner: a.Meta[openstack.OwnerKey], Fault: a.Fault.Message,
			})
		}
		if len(answer.Links) == 0 || len(answer.Servers) == 0 {
			slices.SortFunc(out, func(a, b Server) int { return strings.Compare(a.Name, b.Name) })
			return out, nil
		}
		query.Set("marker", answer.Servers[len(answer.Servers)-1].ID)
	}
}

// String says how much of a quota is used.
func (q QuotaUse) String() string {
	if q.Limit < 0 {
		return fmt.Sprintf("%d used, no limit", q.Used)
	}
	return fmt.Sprintf("%d of %d used", q.Used, q.Limit)
}
