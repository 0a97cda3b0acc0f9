package provision

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Action is what is done to a thing.
type Action string

// The actions.
const (
	Create  Action = "create"
	Update  Action = "update"
	Replace Action = "replace" // deleted and made anew: it cannot be changed
	Delete  Action = "delete"  // pruned
	ByHand  Action = "by hand" // only a person can do it; Note says how
)

// Change is one difference between what is declared and what is there.
type Change struct {
	Action Action  `json:"action"`
	Kind   Kind    `json:"kind"`
	Name   string  `json:"name"`
	Fields []Field `json:"fields,omitempty"`
	Note   string  `json:"note,omitempty"` // what a person should know or do
}

// Field is what differs; an empty Old or New is nothing.
type Field struct {
	Name string `json:"name"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Plan is the outcome of a comparison.
type Plan struct {
	Changes []Change `json:"changes"`
	// Unknown is what could not be looked at, with the reason.
	Unknown []Unknown `json:"unknown"`
	// Notes are what should be known and is no change.
	Notes []string `json:"notes"`
}

// Unknown is a kind that could not be looked at.
type Unknown struct {
	Kind Kind   `json:"kind"`
	Why  string `json:"why"`
}

// differ collects the differences.
type differ struct {
	d Declaration
	f Found
	p Plan
}

// Diff says what has to be done so that everything that is declared is there. With
// prune, what bears the declaration's mark and is not declared goes as well, at the
// end; without, a note names it.
func Diff(d Declaration, f Found, prune bool) Plan {
	x := &differ{d: d, f: f, p: Plan{Changes: []Change{}, Unknown: []Unknown{}, Notes: slices.Clone(d.Notes)}}
	if x.p.Notes == nil {
		x.p.Notes = []string{}
	}
	x.identity()
	x.quotas(KindCompute, d.ComputeQuotas, f.ComputeQuotas)
	x.quotas(KindNetworkQuota, d.NetworkQuotas, f.NetworkQuotas)
	x.quotas(KindVolume, d.VolumeQuotas, f.VolumeQuotas)
	x.quotas(KindDefaults, d.DefaultQuotas, f.DefaultQuotas)
	x.flavors()
	x.network()
	x.groups()
	x.keys()
	x.credential()
	x.images()
	x.surplus(prune)
	for _, kind := range slices.Sorted(maps.Keys(f.Unknown)) {
		x.p.Unknown = append(x.p.Unknown, Unknown{kind, f.Unknown[kind]})
	}
	return x.p
}

// known reports whether a kind was looked at.
func (x *differ) known(kind Kind) bool {
	_, unknown := x.f.Unknown[kind]
	return !unknown
}

func (x *differ) add(action Action, kind Kind, name string, fields ...Field) {
	x.p.Changes = append(x.p.Changes, Change{Action: action, Kind: kind, Name: name, Fields: fields})
}

func (x *differ) byHand(kind Kind, name, format string, args ...any) {
	x.p.Changes = append(x.p.Changes, Change{Action: ByHand, Kind: kind, Name: name, Note: fmt.Sprintf(format, args...)})
}

func (x *differ) note(format string, args ...any) {
	x.p.Notes = append(x.p.Notes, fmt.Sprintf(format, args...))
}

// changed gives the fields whose values differ.
func changed(all ...Field) (out []Field) {
	for _, f := range all {
		if f.Old != f.New {
			out = append(out, f)
		}
	}
	return out
}

func (x *differ) identity() {
	if x.known(KindProject) && x.f.Project == "" {
		x.add(Create, KindProject, x.d.Project.Name, Field{Name: "domain", New: x.d.Project.Domain})
	}
	u := x.d.User
	if u == nil {
		return
	}
	if x.known(KindUser) && x.f.User == "" {
		x.add(Create, KindUser, u.Name, Field{Name: "domain", New: u.Domain})
	}
	if !x.known(KindRole) {
		return
	}
	for _, role := range u.Roles {
		if slices.Contains(x.f.Roles, role) {
			continue
		}
		if x.f.RoleIDs[role] == "" {
			x.byHand(KindRole, role, "Keystone has no role of this name; correct it in the configuration, or make the role")
			continue
		}
		x.add(Create, KindRole, role, Field{Name: "of user", New: u.Name})
	}
}

func (x *differ) quotas(kind Kind, want, have map[string]int64) {
	if len(want) == 0 || !x.known(kind) {
		return
	}
	var fields []Field
	for _, name := range slices.Sorted(maps.Keys(want)) {
		old := ""
		if n, ok := have[name]; ok {
			old = strconv.FormatInt(n, 10)
		}
		fields = append(fields, Field{name, old, strconv.FormatInt(want[name], 10)})
	}
	if fields = changed(fields...); len(fields) > 0 {
		name := x.d.Project.Name
		if kind == KindDefaults {
			name = "default"
		}
		x.add(Update, kind, name, fields...)
	}
}

func (x *differ) flavors() {
	if !x.known(KindFlavor) {
		return
	}
	for _, want := range x.d.Flavors {
		have, n := x.flavor(want.Name)
		access := "public"
		if !x.d.FlavorsPublic {
			access = "project"
		}
		sizes := func(f FoundFlavor) []Field {
			return []Field{
				{"vcpus", number(int64(f.VCPUs)), number(int64(want.VCPUs))},
				{"ram", number(f.RAM), number(want.RAM)},
				{"disk", number(f.Disk), number(want.Disk)},
				{"access", reach(f), access},
			}
		}
		alias := Field{aliasSpec, have.Specs[aliasSpec], want.Alias}
		switch {
		case n == 0:
			x.add(Create, KindFlavor, want.Name, changed(append(sizes(FoundFlavor{}), alias)...)...)
		case n > 1:
			x.byHand(KindFlavor, want.Name, "Nova has %d flavors that this name or id means; give the id of one in flavors of the cloud", n)
		case len(changed(sizes(have)...)) > 0:
			x.add(Replace, KindFlavor, want.Name, changed(append(sizes(have), alias)...)...)
		default:
			fields := changed(alias)
			if !have.Public && !slices.Contains(have.Access, x.f.Project) {
				fields = append(fields, Field{Name: "may be used by", New: x.d.Project.Name})
			}
			if len(fields) > 0 {
				x.add(Update, KindFlavor, want.Name, fields...)
			}
		}
	}
}

// flavor finds the flavor of a name or id, and says how many there are.
func (x *differ) flavor(name string) (found FoundFlavor, n int) {
	for _, f := range x.f.Flavors {
		if f.Name == name || f.ID == name {
			found = f
			n++
		}
	}
	return found, n
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// reach says who may use a flavor that was found.
func reach(f FoundFlavor) string {
	switch {
	case f.ID == "":
		return ""
	case f.Public:
		return "public"
	}
	return "project"
}

func (x *differ) groups() {
	if !x.known(KindGroup) {
		return
	}
	for _, want := range x.d.Groups {
		have, n := one(x.f.Groups, func(g FoundGroup) bool { return g.Name == want.Name })
		if n > 1 {
			x.twice(KindGroup, want.Name, n)
			continue
		}
		missing, surplus := rules(want.Rules, have.Rules)
		var fields []Field
		for _, r := range surplus {
			fields = append(fields, Field{Name: "rule", Old: r.String()})
		}
		for _, r := range missing {
			fields = append(fields, Field{Name: "rule", New: r.String()})
		}
		switch {
		case n == 0:
			x.add(Create, KindGroup, want.Name, fields...)
		case len(fields) > 0:
			x.add(Update, KindGroup, want.Name, fields...)
		}
	}
}

// rules compares the rules of a group.
func rules(want, have []Rule) (missing, surplus []Rule) {
	in := func(r Rule, list []Rule) bool {
		return slices.ContainsFunc(list, func(o Rule) bool { return o.String() == r.String() })
	}
	for _, r := range want {
		if !in(r, have) && !in(r, missing) {
			missing = append(missing, r)
		}
	}
	for _, r := range have {
		if !in(r, want) {
			surplus = append(surplus, r)
		}
	}
	return missing, surplus
}

// one finds the thing that is meant, and says how many there are.
func one[T any](list []T, meant func(T) bool) (found T, n int) {
	for _, v := range list {
		if meant(v) {
			if n == 0 {
				found = v
			}
			n++
		}
	}
	return found, n
}

func (x *differ) twice(kind Kind, name string, n int) {
	x.byHand(kind, name, "the project has %d of this name; delete or rename what is not meant", n)
}

func (x *differ) keys() {
	if !x.known(KindKey) {
		return
	}
	for _, want := range x.d.Keys {
		have, n := one(x.f.Keys, func(k Key) bool { return k.Name == want.Name })
		switch {
		case n == 0:
			x.add(Create, KindKey, want.Name, Field{Name: "public key", New: want.Public})
		case !sameKey(want.Public, have.Public):
			x.add(Replace, KindKey, want.Name, Field{"public key", have.Public, want.Public})
		}
	}
}

func (x *differ) credential() {
	c := x.d.Credential
	if c == nil || !x.known(KindCredential) {
		return
	}
	switch {
	case !x.f.Credential && x.f.CredentialFile:
		x.byHand(KindCredential, c.Name, "it is not there, and %s, which it would be written to, is: move that file away, then apply", c.File)
	case !x.f.Credential:
		x.p.Changes = append(x.p.Changes, Change{
			Action: Create, Kind: KindCredential, Name: c.Name, Fields: []Field{{Name: "written to", New: c.File}},
			Note: "the user is given a new password, which nobody learns",
		})
	case !x.f.CredentialFile:
		x.note("application credential %s is there, and %s is not on this machine; if it was lost, delete the credential and apply", c.Name, c.File)
	}
}

func (x *differ) images() {
	if !x.known(KindImage) {
		return
	}
	for _, im := range x.d.Images {
		active := slices.DeleteFunc(slices.Clone(x.f.Images[im.Name]), func(g FoundImage) bool { return g.Status != "active" })
		say := func(format string, args ...any) {
			x.note("image %s: %s", im.Name, fmt.Sprintf(format, args...))
		}
		switch all := x.f.Images[im.Name]; {
		case len(all) == 0:
			say("Glance has no image %q, so jobs with it find no place here; gpuserver image is for making it", im.There)
		case len(active) == 0:
			say("Glance has %q, but its status is %s", im.There, all[0].Status)
		case len(active) > 1:
			say("Glance has %d active images %q; the newest is used", len(active), im.There)
		case active[0].Visibility == "private" && x.f.Project != "" && active[0].Owner != x.f.Project:
			say("%q is private to another project", im.There)
		default:
			x.fits(im, active[0])
		}
	}
}

// fits names the flavors that an image is too large for.
func (x *differ) fits(im Image, g FoundImage) {
	var small []string
	for _, f := range x.d.Flavors {
		if f.Disk < g.MinDisk || f.RAM < g.MinRAM {
			small = append(small, f.Name)
		}
	}
	if len(small) > 0 {
		x.note("image %s: %q asks for %d GiB of disk and %d MiB of memory, more than these flavors have: %s", im.Name, im.There, g.MinDisk, g.MinRAM, strings.Join(small, ", "))
	}
}

// surplus is what bears our mark and is not declared, the dependent first.
func (x *differ) surplus(prune bool) {
	var list []Change
	add := func(kind Kind, name string, declared bool) {
		if !declared {
			list = append(list, Change{Action: Delete, Kind: kind, Name: name})
		}
	}
	n := x.d.Network
	for _, k := range x.f.Keys {
		add(KindKey, k.Name, slices.ContainsFunc(x.d.Keys, func(o Key) bool { return o.Name == k.Name }))
	}
	for _, g := range x.f.Groups {
		add(KindGroup, g.Name, g.Description != x.d.Mark || slices.ContainsFunc(x.d.Groups, func(o Group) bool { return o.Name == g.Name }))
	}
	for _, r := range x.f.Routers {
		add(KindRouter, r.Name, r.Description != x.d.Mark || n != nil && n.External != "" && n.Name == r.Name)
	}
	for _, s := range x.f.Networks {
		add(KindNetwork, s.Name, s.Description != x.d.Mark || n != nil && n.Name == s.Name)
	}
	for _, f := range x.f.Flavors {
		add(KindFlavor, f.Name, f.Description != x.d.Mark || slices.ContainsFunc(x.d.Flavors, func(o Flavor) bool { return o.Name == f.Name || o.Name == f.ID }))
	}
	for _, c := range list {
		if prune {
			x.p.Changes = append(x.p.Changes, c)
		} else {
			x.note("%s %s was made by gpuserver and is not declared; --prune deletes it", c.Kind, cmp.Or(c.Name, "without a name"))
		}
	}
}
