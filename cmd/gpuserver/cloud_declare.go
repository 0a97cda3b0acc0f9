package main

import (
	"cmp"
	"fmt"

	"gpuserver/internal/cloud/openstack/provision"
	"gpuserver/internal/config"
)

// declaration gives what a cloud has to have, of its declaration and of the flavors
// and images of the configuration.
func declaration(cfg *config.Config, c *config.Cloud) provision.Declaration {
	o := c.OpenStack
	in := o.Declared
	d := provision.Declaration{
		Cloud: c.Name, Mark: fmt.Sprintf("declared by gpuserver %s, cloud %s", cfg.Server.Name, c.Name),
		Project:       provision.Principal{Name: in.Project.Name, Domain: in.Project.Domain},
		FlavorsPublic: in.Flavors == "public",
		ComputeQuotas: quotas("instances", in.Quotas.Instances, "cores", in.Quotas.Cores, "ram", in.Quotas.Memory.MiB()),
		NetworkQuotas: quotas("port", in.Quotas.Ports),
		VolumeQuotas:  quotas("volumes", in.Quotas.Volumes, "gigabytes", in.Quotas.Gigabytes),
		DefaultQuotas: quotas("instances", in.DefaultQuotas.Instances, "cores", in.DefaultQuotas.Cores, "ram", in.DefaultQuotas.Memory.MiB()),
	}
	if u := in.User; u != nil {
		d.User = &provision.User{Principal: provision.Principal{Name: u.Name, Domain: u.Domain}, Roles: u.Roles}
	}
	if a := in.Credential; a != nil {
		d.Credential = &provision.Credential{Name: a.Name, File: string(cmp.Or(a.File, o.CloudsFile)), Entry: cmp.Or(o.Cloud, a.Name)}
	}
	if in.Flavors != "none" {
		d.Flavors, d.Notes = declaredFlavors(cfg, o)
	}
	if n := in.Network; n != nil {
		d.Network = &provision.Network{Name: n.Name, MTU: n.MTU, CIDR: n.CIDR, DNS: n.DNS, External: n.External}
	}
	for _, g := range in.SecurityGroups {
		d.Groups = append(d.Groups, provision.Group{Name: g.Name, Rules: egress(g.Egress)})
	}
	for _, k := range in.KeyPairs {
		d.Keys = append(d.Keys, provision.Key{Name: k.Name, Public: k.PublicKey})
	}
	d.Images = openStackImages(cfg)
	return d
}

// openStackImages gives the images that clouds of type openstack have.
func openStackImages(cfg *config.Config) (out []provision.Image) {
	for _, im := range cfg.Images {
		if im.OpenStack != nil {
			out = append(out, provision.Image{Name: im.Name, There: im.OpenStack.Image})
		}
	}
	return out
}

// quotas gives the quotas that are not 0; pairs are names and numbers.
func quotas(pairs ...any) map[string]int64 {
	out := map[string]int64{}
	for i := 0; i+1 < len(pairs); i += 2 {
		var n int64
		switch v := pairs[i+1].(type) {
		case int:
			n = int64(v)
		case int64:
			n = v
		}
		if n != 0 {
			out[pairs[i].(string)] = n
		}
	}
	return out
}

// declaredFlavors gives our flavors as Nova's. One with cards that the cloud does not
// have finds no room there, so it is not made there.
func declaredFlavors(cfg *config.Config, o *config.OpenStack) (out []provision.Flavor, notes []string) {
	names, aliases := map[string]string{}, map[string]string{}
	for _, f := range o.Flavors {
		names[f.Name] = f.Flavor
	}
	for _, g := range o.GPUs {
		model, _ := cfg.ModelFor(g.Model) // known: it was checked
		aliases[model] = cmp.Or(g.Alias, model)
	}
	for _, f := range cfg.Flavors {
		want := provision.Flavor{Name: cmp.Or(names[f.Name], f.Name), VCPUs: f.VCPUs, RAM: f.Memory.MiB(), Disk: int64(f.Disk.GiB())}
		if f.GPUs != nil {
			model, _ := cfg.ModelFor(f.GPUs.Model)
			if aliases[model] == "" {
				notes = append(notes, fmt.Sprintf("flavor %s: gpus of the cloud lacks its model %s, so it is not made there", f.Name, model))
				continue
			}
			want.Alias = fmt.Sprintf("%s:%d", aliases[model], f.GPUs.Count)
		}
		out = append(out, want)
	}
	return out, notes
}

func egress(list []config.DeclaredRule) (out []provision.Rule) {
	if len(list) == 0 {
		return provision.Everywhere()
	}
	for _, r := range list {
		first, last, _ := r.PortRange() // it was checked
		out = append(out, provision.Egress(r.CIDR, r.Protocol, first, last))
	}
	return out
}
