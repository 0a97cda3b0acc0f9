package provision

import (
	"context"
	"slices"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
)

// Result is how a change went.
type Result struct {
	Change
	Err error // nil: it is done
	// Note is what a person should know of what was done.
	Note string
}

// applier carries changes out. What it makes it adds to f, for what comes after.
type applier struct {
	*Site
	f        Found
	note     string
	password string // of a user that was made a moment ago
}

// Apply carries the changes of a plan out that Diff made of f, in order, and tells of
// each as soon as it is over. One that fails does not end the others, since what
// depends on it fails by itself; an error says that ctx ended.
func (s *Site) Apply(ctx context.Context, p Plan, f Found, tell func(Result)) error {
	a := &applier{Site: s, f: f}
	for _, c := range p.Changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		a.note = ""
		err := a.apply(ctx, c)
		tell(Result{Change: c, Err: err, Note: a.note})
	}
	return ctx.Err()
}

func (a *applier) apply(ctx context.Context, c Change) error {
	if c.Action == ByHand {
		return gpuserver.Errorf(gpuserver.KindRefused, "%s", c.Note)
	}
	do := map[Kind]func(context.Context, Change) error{
		KindProject: a.project, KindUser: a.user, KindRole: a.role, KindCredential: a.credential,
		KindCompute: a.quotas, KindNetworkQuota: a.quotas, KindVolume: a.quotas, KindDefaults: a.quotas,
		KindFlavor: a.flavor, KindNetwork: a.network, KindSubnet: a.subnet, KindRouter: a.router, KindGroup: a.group, KindKey: a.key,
	}[c.Kind]
	for _, need := range []struct {
		id    string
		kind  Kind
		kinds []Kind
	}{
		{a.f.Project, KindProject, []Kind{KindRole, KindCredential, KindCompute, KindNetworkQuota, KindVolume, KindNetwork, KindSubnet, KindRouter, KindGroup}},
		{a.f.User, KindUser, []Kind{KindRole, KindCredential, KindKey}},
	} {
		if need.id == "" && slices.Contains(need.kinds, c.Kind) {
			return gpuserver.Errorf(gpuserver.KindNotFound, "the %s is not there, which it belongs to", need.kind)
		}
	}
	return do(ctx, c)
}

// object is the body of a call.
type object = map[string]any

// make creates a thing and gives its id. The call's body is under key.
func (a *applier) make(ctx context.Context, what string, service openstack.Service, path, key string, body object) (string, error) {
	var answer map[string]named
	err := a.api.Call(ctx, "create "+what, service, "POST", path, object{key: body}, &answer)
	return answer[key].ID, err
}

// send makes a call whose answer does not matter.
func (a *applier) send(ctx context.Context, what string, service openstack.Service, method, path string, body any) error {
	return a.api.Call(ctx, what, service, method, path, body, nil)
}

// remove deletes a thing; one that is gone is no failure.
func (a *applier) remove(ctx context.Context, what string, service openstack.Service, path string) error {
	err := a.send(ctx, "delete "+what, service, "DELETE", path, nil)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		return nil
	}
	return err
}

func (a *applier) project(ctx context.Context, c Change) (err error) {
	a.f.Project, err = a.make(ctx, "project "+c.Name, openstack.Identity, "projects", "project",
		object{"name": c.Name, "domain_id": a.f.ProjectDomain, "description": a.d.Mark, "enabled": true})
	return err
}

// user makes the user, with a password that is forgotten once it has made its
// application credential.
func (a *applier) user(ctx context.Context, c Change) (err error) {
	password := newPassword()
	a.f.User, err = a.make(ctx, "user "+c.Name, openstack.Identity, "users", "user", object{
		"name": c.Name, "domain_id": a.f.UserDomain, "description": a.d.Mark, "enabled": true, "default_project_id": a.f.Project, "password": password,
	})
	if err == nil {
		a.password = password
	}
	return err
}

func (a *applier) role(ctx context.Context, c Change) error {
	return a.send(ctx, "give the user role "+c.Name, openstack.Identity, "PUT", "projects/"+a.f.Project+"/users/"+a.f.User+"/roles/"+a.f.RoleIDs[c.Name], nil)
}

func (a *applier) quotas(ctx context.Context, c Change) error {
	want, service, path, key := a.d.ComputeQuotas, openstack.Compute, "os-quota-sets/"+a.f.Project, "quota_set"
	switch c.Kind {
	case KindNetworkQuota:
		want, service, path, key = a.d.NetworkQuotas, openstack.Network, "quotas/"+a.f.Project, "quota"
	case KindVolume:
		want, service = a.d.VolumeQuotas, openstack.Volume
	case KindDefaults:
		want, path, key = a.d.DefaultQuotas, "os-quota-class-sets/default", "quota_class_set"
	}
	body := object{}
	for _, f := range c.Fields {
		body[f.Name] = want[f.Name]
	}
	return a.send(ctx, "set "+string(c.Kind), service, "PUT", path, object{key: body})
}

func (a *applier) flavor(ctx context.Context, c Change) error {
	i := slices.IndexFunc(a.f.Flavors, func(f FoundFlavor) bool { return f.Name == c.Name || f.ID == c.Name })
	have := FoundFlavor{Specs: map[string]string{}}
	if i >= 0 {
		have = a.f.Flavors[i]
	}
	if c.Action == Delete || c.Action == Replace {
		if err := a.remove(ctx, "flavor "+c.Name, openstack.Compute, "flavors/"+have.ID); err != nil || c.Action == Delete {
			return err
		}
	}
	w := slices.IndexFunc(a.d.Flavors, func(f Flavor) bool { return f.Name == c.Name })
	want := a.d.Flavors[w]
	if c.Action == Update {
		return a.equip(ctx, have.ID, have, want)
	}
	// One that is replaced keeps its id, which a running service remembers.
	id, err := a.makeFlavor(ctx, have, want)
	if err != nil {
		return err
	}
	for _, project := range have.Access {
		if err := a.allow(ctx, id, want.Name, project); err != nil {
			return err
		}
	}
	have.Public = a.d.FlavorsPublic
	kept := have.Specs
	have.Specs = map[string]string{}
	for name, value := range kept {
		if name == aliasSpec {
			continue
		}
		if err := a.specs(ctx, id, map[string]string{name: value}); err != nil {
			return err
		}
	}
	return a.equip(ctx, id, have, want)
}

func (a *applier) makeFlavor(ctx context.Context, have FoundFlavor, want Flavor) (string, error) {
	body := object{
		"name": want.Name, "vcpus": want.VCPUs, "ram": want.RAM, "disk": want.Disk, "os-flavor-access:is_public": a.d.FlavorsPublic,
		"OS-FLV-EXT-DATA:ephemeral": have.Ephemeral, "swap": have.Swap,
	}
	if have.ID != "" {
		body["name"], body["id"] = have.Name, have.ID
	}
	if a.api.Nova(ctx) >= describedFlavors {
		body["description"] = a.d.Mark
	}
	return a.make(ctx, "flavor "+want.Name, openstack.Compute, "flavors", "flavor", body)
}

// describedFlavors is the microversion from which flavors have descriptions.
const describedFlavors = 55

// equip gives a flavor its cards and who may use it.
func (a *applier) equip(ctx context.Context, id string, have FoundFlavor, want Flavor) error {
	old := have.Specs[aliasSpec]
	switch {
	case want.Alias == old:
	case want.Alias == "":
		if err := a.remove(ctx, "the cards of flavor "+want.Name, openstack.Compute, "flavors/"+id+"/os-extra_specs/"+aliasSpec); err != nil {
			return err
		}
	default:
		if err := a.specs(ctx, id, map[string]string{aliasSpec: want.Alias}); err != nil {
			return err
		}
	}
	if have.Public || slices.Contains(have.Access, a.f.Project) {
		return nil
	}
	if a.f.Project == "" {
		return gpuserver.Errorf(gpuserver.KindNotFound, "the project is not there, which is to use it")
	}
	return a.allow(ctx, id, want.Name, a.f.Project)
}

// allow lets a project use a flavor that is not public.
func (a *applier) allow(ctx context.Context, id, name, project string) error {
	if a.d.FlavorsPublic {
		return nil
	}
	return a.send(ctx, "let a project use flavor "+name, openstack.Compute, "POST", "flavors/"+id+"/action", object{"addTenantAccess": object{"tenant": project}})
}

func (a *applier) specs(ctx context.Context, id string, specs map[string]string) error {
	return a.send(ctx, "set extra specs of a flavor", openstack.Compute, "POST", "flavors/"+id+"/os-extra_specs", object{"extra_specs": specs})
}

// key makes a key pair of the user, which an administrator may.
func (a *applier) key(ctx context.Context, c Change) error {
	if c.Action != Create {
		err := a.remove(ctx, "key pair "+c.Name, openstack.Compute, "os-keypairs/"+escape(c.Name)+"?user_id="+a.f.User)
		if err != nil || c.Action == Delete {
			return err
		}
	}
	i := slices.IndexFunc(a.d.Keys, func(k Key) bool { return k.Name == c.Name })
	_, err := a.make(ctx, "key pair "+c.Name, openstack.Compute, "os-keypairs", "keypair",
		object{"name": c.Name, "public_key": a.d.Keys[i].Public, "user_id": a.f.User})
	return err
}
