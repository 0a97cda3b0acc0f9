package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
)

// Site is a cloud that is looked at and changed.
type Site struct {
	api    *openstack.API
	d      Declaration
	second time.Duration // how long a new password may need; tests make it shorter
}

// New gives a site; the API's credentials are an administrator's, or less: then some
// kinds cannot be looked at.
func New(api *openstack.API, d Declaration) *Site {
	return &Site{api: api, d: d, second: 1100 * time.Millisecond}
}

// get reads something.
func (s *Site) get(ctx context.Context, what string, service openstack.Service, path string, query url.Values, out any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return s.api.Call(ctx, what, service, "GET", path, nil, out)
}

// look is one reading of everything.
type look struct {
	*Site
	f   Found
	all bool // not only what is declared
}

// Look reads what is there of what is declared. What cannot be read is in Unknown,
// with the reason; an error says that not even a login was possible.
func (s *Site) Look(ctx context.Context) (Found, error) {
	own, err := s.api.ProjectID(ctx)
	if err != nil {
		return Found{}, err
	}
	l := &look{Site: s, f: Found{Unknown: map[Kind]string{}}}
	l.try(KindProject, func() error { return l.project(ctx, own) })
	if s.d.User != nil {
		l.try(KindUser, func() error { return l.user(ctx) })
		l.within(KindRole, func() error { return l.roles(ctx) }, KindUser)
	}
	if s.d.Credential != nil {
		l.within(KindCredential, func() error { return l.credential(ctx) }, KindUser)
	}
	if len(s.d.Keys) > 0 {
		l.within(KindKey, func() error { return l.keys(ctx) }, KindUser)
	}
	l.quotas(ctx)
	switch {
	case len(s.d.Flavors) > 0 && s.d.FlavorsPublic:
		l.try(KindFlavor, func() error { return l.flavors(ctx) })
	case len(s.d.Flavors) > 0:
		l.within(KindFlavor, func() error { return l.flavors(ctx) })
	}
	l.networks(ctx)
	if len(s.d.Images) > 0 {
		l.try(KindImage, func() error { return l.images(ctx) })
	}
	return l.f, ctx.Err()
}

// try notes why a kind could not be looked at.
func (l *look) try(kind Kind, read func() error) {
	if err := read(); err != nil {
		l.f.Unknown[kind] = gpuserver.PublicText(err)
	}
}

// within is try for what is in the project, or hangs on another kind too: what that
// is not known of is not known of this.
func (l *look) within(kind Kind, read func() error, also ...Kind) {
	for _, on := range append([]Kind{KindProject}, also...) {
		if _, unknown := l.f.Unknown[on]; unknown {
			l.f.Unknown[kind] = fmt.Sprintf("the %s is not known", on)
			return
		}
	}
	l.try(kind, read)
}

// named is what lists give of a thing.
type named struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// domain gives a domain's id, "" if there is none.
func (s *Site) domain(ctx context.Context, name string) (string, error) {
	var answer struct {
		Domains []named `json:"domains"`
	}
	err := s.get(ctx, "find domain "+name, openstack.Identity, "domains", url.Values{"name": {name}}, &answer)
	if err == nil && len(answer.Domains) == 0 {
		err = gpuserver.Errorf(gpuserver.KindInvalid, "Keystone has no domain %q; correct it in the configuration", name)
	}
	if err != nil {
		return "", err
	}
	return answer.Domains[0].ID, nil
}

// project finds the project. Who may not ask for projects knows those of his own.
func (l *look) project(ctx context.Context, own string) error {
	var answer struct {
		Projects []named `json:"projects"`
	}
	domain, err := l.domain(ctx, l.d.Project.Domain)
	if err == nil {
		l.f.ProjectDomain = domain
		err = l.get(ctx, "list projects", openstack.Identity, "projects", url.Values{"name": {l.d.Project.Name}, "domain_id": {domain}}, &answer)
	}
	if gpuserver.KindOf(err) == gpuserver.KindRefused {
		// Only if it is that of the login: another may have the name in another domain.
		if mine := l.get(ctx, "list own projects", openstack.Identity, "auth/projects", nil, &answer); mine != nil {
			return err
		}
		answer.Projects = slices.DeleteFunc(answer.Projects, func(p named) bool { return p.ID != own || p.Name != l.d.Project.Name })
		if len(answer.Projects) == 0 {
			return err
		}
		err = nil
	}
	if err == nil && len(answer.Projects) > 0 {
		l.f.Project = answer.Projects[0].ID
	}
	return err
}

func (l *look) user(ctx context.Context) error {
	u := l.d.User
	domain, err := l.domain(ctx, u.Domain)
	if err != nil {
		return err
	}
	l.f.UserDomain = domain
	var answer struct {
		Users []named `json:"users"`
	}
	err = l.get(ctx, "list users", openstack.Identity, "users", url.Values{"name": {u.Name}, "domain_id": {domain}}, &answer)
	if err == nil && len(answer.Users) > 0 {
		l.f.User = answer.Users[0].ID
	}
	return err
}

func (l *look) roles(ctx context.Context) error {
	var all struct {
		Roles []named `json:"roles"`
	}
	if err := l.get(ctx, "list roles", openstack.Identity, "roles", nil, &all); err != nil {
		return err
	}
	l.f.RoleIDs = map[string]string{}
	for _, r := range all.Roles {
		l.f.RoleIDs[r.Name] = r.ID
	}
	if l.f.User == "" || l.f.Project == "" {
		return nil
	}
	var answer struct {
		Given []struct {
			Role named `json:"role"`
		} `json:"role_assignments"`
	}
	err := l.get(ctx, "list role assignments", openstack.Identity, "role_assignments", url.Values{"user.id": {l.f.User}, "scope.project.id": {l.f.Project}}, &answer)
	for _, g := range answer.Given {
		for name, id := range l.f.RoleIDs {
			if id == g.Role.ID {
				l.f.Roles = append(l.f.Roles, name)
			}
		}
	}
	slices.Sort(l.f.Roles)
	return err
}

func (l *look) credential(ctx context.Context) error {
	c := l.d.Credential
	_, err := os.Lstat(c.File)
	l.f.CredentialFile = err == nil
	if l.f.User == "" {
		return nil
	}
	var answer struct {
		Credentials []named `json:"application_credentials"`
	}
	err = l.get(ctx, "list application credentials", openstack.Identity, "users/"+l.f.User+"/application_credentials", url.Values{"name": {c.Name}}, &answer)
	l.f.Credential = slices.ContainsFunc(answer.Credentials, func(n named) bool { return n.Name == c.Name })
	return err
}

func (l *look) keys(ctx context.Context) error {
	if l.f.User == "" {
		return nil
	}
	var answer struct {
		Pairs []struct {
			Pair struct {
				Name   string `json:"name"`
				Public string `json:"public_key"`
			} `json:"keypair"`
		} `json:"keypairs"`
	}
	err := l.get(ctx, "list key pairs", openstack.Compute, "os-keypairs", url.Values{"user_id": {l.f.User}}, &answer)
	for _, p := range answer.Pairs {
		l.f.Keys = append(l.f.Keys, Key{p.Pair.Name, p.Pair.Public})
	}
	return err
}

// quotas reads the sets of which something is declared.
func (l *look) quotas(ctx context.Context) {
	for _, q := range []struct {
		kind    Kind
		want    map[string]int64
		into    *map[string]int64
		service openstack.Service
		path    string
	}{
		{KindCompute, l.d.ComputeQuotas, &l.f.ComputeQuotas, openstack.Compute, "os-quota-sets/"},
		{KindNetworkQuota, l.d.NetworkQuotas, &l.f.NetworkQuotas, openstack.Network, "quotas/"},
		{KindVolume, l.d.VolumeQuotas, &l.f.VolumeQuotas, openstack.Volume, "os-quota-sets/"},
	} {
		if len(q.want) == 0 {
			continue
		}
		l.within(q.kind, func() (err error) {
			if l.f.Project == "" { // it has none yet, but whether it can have some is seen
				return l.api.Offers(ctx, "read "+string(q.kind), q.service)
			}
			*q.into, err = l.quotaSet(ctx, q.kind, q.service, q.path+l.f.Project)
			return err
		})
	}
	if len(l.d.DefaultQuotas) > 0 {
		l.try(KindDefaults, func() (err error) {
			l.f.DefaultQuotas, err = l.quotaSet(ctx, KindDefaults, openstack.Compute, "os-quota-class-sets/default")
			return err
		})
	}
}

// quotaSet reads the numbers of a set; each service has its own name for it.
func (s *Site) quotaSet(ctx context.Context, kind Kind, service openstack.Service, path string) (map[string]int64, error) {
	var answer map[string]map[string]json.RawMessage
	if err := s.get(ctx, "read "+string(kind), service, path, nil, &answer); err != nil {
		return nil, err
	}
	set := map[string]int64{}
	for _, body := range answer {
		for name, v := range body {
			var n int64
			if json.Unmarshal(v, &n) == nil { // the project's id is among them
				set[name] = n
			}
		}
	}
	return set, nil
}

// page is how many flavors, servers and images are asked for at once.
const page = 1000

// apiFlavor is a flavor as Nova shows it.
type apiFlavor struct {
	named
	VCPUs       int               `json:"vcpus"`
	RAM         int64             `json:"ram"`
	Disk        int64             `json:"disk"`
	Ephemeral   int64             `json:"OS-FLV-EXT-DATA:ephemeral"`
	Swap        json.RawMessage   `json:"swap"` // "" for none before 2.75
	Public      bool              `json:"os-flavor-access:is_public"`
	Description string            `json:"description"`
	Specs       map[string]string `json:"extra_specs"` // from 2.61 on
}

func (l *look) flavors(ctx context.Context) error {
	all, err := l.allFlavors(ctx)
	if err != nil {
		return err
	}
	for _, a := range all {
		declared := slices.ContainsFunc(l.d.Flavors, func(f Flavor) bool { return f.Name == a.Name || f.Name == a.ID })
		if !l.all && !declared && (a.Description == "" || a.Description != l.d.Mark) {
			continue
		}
		f, err := l.flavor(ctx, a)
		if err != nil {
			return err
		}
		l.f.Flavors = append(l.f.Flavors, f)
	}
	return nil
}

func (s *Site) allFlavors(ctx context.Context) (all []apiFlavor, err error) {
	query := url.Values{"is_public": {"None"}, "limit": {strconv.Itoa(page)}}
	for {
		var answer struct {
			Flavors []apiFlavor `json:"flavors"`
			Links   []any       `json:"flavors_links"`
		}
		if err := s.get(ctx, "list flavors", openstack.Compute, "flavors/detail", query, &answer); err != nil {
			return nil, err
		}
		all = append(all, answer.Flavors...)
		if len(answer.Links) == 0 || len(answer.Flavors) == 0 {
			return all, nil
		}
		query.Set("marker", all[len(all)-1].ID)
	}
}

// flavor completes what the list says of a flavor.
func (l *look) flavor(ctx context.Context, a apiFlavor) (FoundFlavor, error) {
	f := FoundFlavor{
		ID: a.ID, Flavor: Flavor{Name: a.Name, VCPUs: a.VCPUs, RAM: a.RAM, Disk: a.Disk},
		Public: a.Public, Specs: a.Specs, Ephemeral: a.Ephemeral, Description: a.Description,
	}
	if json.Unmarshal(a.Swap, &f.Swap) != nil {
		f.Swap = 0
	}
	if f.Specs == nil {
		var answer struct {
			Specs map[string]string `json:"extra_specs"`
		}
		if err := l.get(ctx, "read the extra specs of flavors", openstack.Compute, "flavors/"+a.ID+"/os-extra_specs", nil, &answer); err != nil {
			return f, err
		}
		f.Specs = answer.Specs
	}
	f.Alias = f.Specs[aliasSpec]
	if f.Public {
		return f, nil
	}
	var answer struct {
		Access []struct {
			Project string `json:"tenant_id"`
		} `json:"flavor_access"`
	}
	err := l.get(ctx, "read who may use flavors", openstack.Compute, "flavors/"+a.ID+"/os-flavor-access", nil, &answer)
	for _, p := range answer.Access {
		f.Access = append(f.Access, p.Project)
	}
	return f, err
}

// aliasSpec is the extra spec by which a flavor asks Nova for PCI devices.
// Source: docs.openstack.org/nova, "Attaching physical PCI devices to guests".
const aliasSpec = "pci_passthrough:alias"

func (l *look) images(ctx context.Context) error {
	l.f.Images = map[string][]FoundImage{}
	for _, im := range l.d.Images {
		var answer struct {
			Images []struct {
				named
				Status     string `json:"status"`
				Visibility string `json:"visibility"`
				Owner      string `json:"owner"`
				MinDisk    int64  `json:"min_disk"`
				MinRAM     int64  `json:"min_ram"`
			} `json:"images"`
		}
		key := "name"
		if uuidRE.MatchString(im.There) {
			key = "id"
		}
		query := url.Values{key: {im.There}, "sort": {"created_at:desc"}, "limit": {strconv.Itoa(page)}}
		if err := l.get(ctx, "list images", openstack.Image, "images", query, &answer); err != nil {
			return err
		}
		for _, g := range answer.Images {
			l.f.Images[im.Name] = append(l.f.Images[im.Name], FoundImage{g.ID, g.Name, g.Status, g.Visibility, g.Owner, g.MinDisk, g.MinRAM})
		}
	}
	return nil
}
