package config

import (
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// checker looks for what no single value shows: names given twice, references
// that lead nowhere, values that exclude each other.
type checker struct {
	*decoder
	c *Config
}

// bad adds a problem at a path, or at the nearest place above it that the file
// has, unless something was found there already: the first finding is the
// cause, what follows from it is noise.
func (k *checker) bad(path, format string, args ...any) {
	where := path
	for {
		p, ok := k.places[where]
		if ok || where == "" {
			for _, had := range k.problems {
				if had.Line == p.line && had.Column == p.column {
					return
				}
			}
			k.add(p, "%s: "+format, append([]any{label(path)}, args...)...)
			return
		}
		where = where[:max(0, strings.LastIndexAny(where, ".["))]
	}
}

func (k *checker) check() {
	k.server()
	k.forges()
	k.clouds()
	k.agents()
	k.openStackAgents()
	k.gpuModels()
	k.catalogueFits()
	k.flavors()
	k.openStackNames()
	k.images()
	k.jobs()
	k.tokens()
	k.cirun()
}

var (
	instanceRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)
	nameRE     = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	foreignRE  = regexp.MustCompile(`^[^\s,]{1,200}$`)
	ownerRE    = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)
	fileRE     = regexp.MustCompile(`^[^/][^\n]{0,254}$`)
	hashRE     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	linkRE     = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}$`)
)

func (k *checker) server() {
	s := &k.c.Server
	if !instanceRE.MatchString(s.Name) {
		k.bad("server.name", "%q is not a name of 1 to 20 lower case letters, digits and '-'", s.Name)
	}
	if s.DataDir == "" {
		k.bad("server.data_dir", "a folder is needed")
	}
	if s.Listen.Agent == "" && len(k.c.Clouds) > 0 {
		k.bad("server.listen.agent", "agents in VMs need a listener; give HOST:PORT")
	}
	if s.Listen.API == "" && s.Listen.Socket == "" {
		k.bad("server.listen", "api and socket are both switched off; keep one, or nothing can be seen or done")
	}
	seen := map[Address]string{}
	for _, l := range []struct {
		path    string
		address Address
	}{
		{"server.listen.webhooks", s.Listen.Webhooks},
		{"server.listen.agent", s.Listen.Agent},
		{"server.listen.api", s.Listen.API},
	} {
		_, port, _ := net.SplitHostPort(string(l.address))
		if other, twice := seen[l.address]; twice && port != "0" {
			k.bad(l.path, "%s is the address of %s too; give each listener its own", l.address, other)
		}
		if l.address != "" {
			seen[l.address] = l.path
		}
	}
}

// unique refuses a name that is not well formed or was used before.
func (k *checker) unique(seen map[string]string, name, path string, form *regexp.Regexp, words string) {
	if !form.MatchString(name) {
		k.bad(path, "%q is not a name: use %s", name, words)
		return
	}
	if other, twice := seen[name]; twice {
		k.bad(path, "the name %q is used by %s already", name, other)
		return
	}
	seen[name] = path
}

const (
	nameWords    = "1 to 63 lower case letters, digits, '.', '_' and '-'"
	foreignWords = "1 to 200 characters without spaces and commas"
)

func (k *checker) forges() {
	seen := map[string]string{}
	for i := range k.c.Forges {
		f, path := &k.c.Forges[i], index("forges", i)
		k.unique(seen, f.Name, path+".name", nameRE, nameWords)
		if f.Name == "local" {
			k.bad(path+".name", "local names the jobs of gpuserver run; give another name")
		}
		k.secret(f.PrivateKey, path+".private_key")
		for j, s := range f.WebhookSecrets {
			k.secret(s, path+index(".webhook_secrets", j))
		}
		for j, o := range f.Owners {
			k.form(o, path+index(".owners", j), ownerRE, "a login, without a slash")
		}
		for j, p := range f.LabelPrefixes {
			k.form(p, path+index(".label_prefixes", j), foreignRE, foreignWords)
		}
		k.delivery(f, path)
		k.forgeFiles(&f.Config, path+".config")
	}
}

// delivery checks that deliveries can arrive and be trusted.
func (k *checker) delivery(f *Forge, path string) {
	if f.Mode != "webhook" {
		return
	}
	if len(f.WebhookSecrets) == 0 {
		k.bad(path+".webhook_secrets", "mode webhook needs the webhook's secret: deliveries without one could be forged by anybody")
	}
	if k.c.Server.Listen.Webhooks == "" {
		k.bad(path+".mode", "mode webhook needs server.listen.webhooks; give an address there, or use mode pull")
	}
}

func (k *checker) forgeFiles(c *ForgeConfig, path string) {
	k.form(c.OrganisationRepo, path+".organisation_repo", ownerRE, "a repository's name, without its owner")
	k.form(c.RunnersFile, path+".runners_file", fileRE, "a path in the repository, such as .cirun.global.yml")
	k.form(c.AccessFile, path+".access_file", fileRE, "a path in the repository, such as .access.yml")
	if c.RepositoryFile != "" {
		k.form(c.RepositoryFile, path+".repository_file", fileRE, "a path in the repository, such as .cirun.yml")
	}
}

func (k *checker) form(s, path string, form *regexp.Regexp, words string) {
	if !form.MatchString(s) {
		k.bad(path, "%q is not what is needed: %s", s, words)
	}
}

// secret checks that exactly one place is given.
func (k *checker) secret(s Secret, path string) {
	n := 0
	for _, place := range []string{string(s.File), s.Env, s.Credential} {
		if place != "" {
			n++
		}
	}
	if n != 1 {
		k.bad(path, "give exactly one of file, env and credential")
		return
	}
	p := k.places[path]
	k.c.secrets = append(k.c.secrets, placedSecret{s, Problem{File: k.name, Line: p.line, Column: p.column}})
}

// pciIDRE is a vendor and device number.
var pciIDRE = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{4}$`)

func (k *checker) gpuModels() {
	seen, ids := map[string]string{}, map[string]string{}
	for i := range k.c.GPUModels {
		m, path := &k.c.GPUModels[i], index("gpu_models", i)
		k.unique(seen, m.Name, path+".name", foreignRE, foreignWords)
		for j, a := range m.Aliases {
			k.unique(seen, a, path+index(".aliases", j), foreignRE, foreignWords)
		}
		for j, id := range m.IDs {
			k.unique(ids, id, path+index(".ids", j), pciIDRE, "a vendor and a device number in small hexadecimal digits, such as 10de:1db4")
		}
		if len(m.IDs) == 0 {
			k.bad(path+".ids", "at least one is needed; gpuserver host inspect shows the numbers of this machine's cards")
		}
	}
}

// have says which names there are.
func have(names []string) string {
	if len(names) == 0 {
		return "; it is empty"
	}
	return "; it has " + strings.Join(names, ", ")
}

func (k *checker) flavors() {
	seen := map[string]string{}
	for i := range k.c.Flavors {
		f, path := &k.c.Flavors[i], index("flavors", i)
		k.unique(seen, f.Name, path+".name", foreignRE, foreignWords)
		for j, a := range f.Aliases {
			k.unique(seen, a, path+index(".aliases", j), foreignRE, foreignWords)
		}
		if f.Memory%MiB != 0 {
			k.bad(path+".memory", "%s is not a whole number of MiB", f.Memory)
		}
		if f.Disk%GiB != 0 {
			k.bad(path+".disk", "%s is not a whole number of GiB", f.Disk)
		}
		if g := f.GPUs; g != nil {
			if _, known := k.c.ModelFor(g.Model); !known {
				k.bad(path+".gpus.model", "gpu_models has no %q%s", g.Model, have(k.c.modelNames()))
			}
		}
	}
	if len(k.c.Flavors) == 0 {
		k.bad("flavors", "at least one flavor is needed; leave the key out for the default catalogue")
	}
}

func (k *checker) images() {
	seen, types := map[string]string{}, map[string]bool{}
	for i := range k.c.Images {
		m, path := &k.c.Images[i], index("images", i)
		k.unique(seen, m.Name, path+".name", foreignRE, foreignWords)
		for j, a := range m.Aliases {
			k.unique(seen, a, path+index(".aliases", j), foreignRE, foreignWords)
		}
		sources := m.types()
		if len(sources) == 0 {
			k.bad(path, "it has no source; give the block of a cloud's type, such as libvirt")
		}
		for _, t := range sources {
			types[t] = true
			if !k.hasType(t) {
				k.bad(path+"."+t, "no cloud is of type %s", t)
			}
		}
		k.imageFiles(m.Libvirt, path+".libvirt")
		if m.OpenStack != nil && m.OpenStack.Image == "" {
			k.bad(path+".openstack.image", "the image's name or id there is needed")
		}
	}
	for i := range k.c.Clouds {
		if c := &k.c.Clouds[i]; slices.Contains(cloudTypes(), c.Type) && !types[c.Type] {
			k.bad(index("clouds", i), "no image has a source for clouds of type %s; add one under images", c.Type)
		}
	}
}

func (k *checker) imageFiles(f *ImageFiles, path string) {
	if f == nil {
		return
	}
	if f.Disk == "" {
		k.bad(path+".disk", "a file is needed")
	}
	if f.Kernel == "" && (f.Initrd != "" || f.Cmdline != "") {
		k.bad(path, "initrd and cmdline are of use with kernel only; give it, or remove them")
	}
}

// hasType reports whether a cloud is, or may have been meant to be, of a type.
func (k *checker) hasType(t string) bool {
	for i := range k.c.Clouds {
		if c := &k.c.Clouds[i]; c.Type == t || !slices.Contains(cloudTypes(), c.Type) {
			return true
		}
	}
	return len(k.c.Clouds) == 0
}

func (k *checker) jobs() {
	if j := &k.c.Jobs; j.RerunOnGPUFailure && j.Retries == 0 {
		k.bad("jobs.rerun_on_gpu_failure", "jobs.retries is 0, so that no job is run again; give it at least 1, or remove this")
	}
}

func (k *checker) tokens() {
	seen := map[string]string{}
	for i := range k.c.API.Tokens {
		t, path := &k.c.API.Tokens[i], index("api.tokens", i)
		k.unique(seen, t.Name, path+".name", foreignRE, foreignWords)
		switch {
		case (t.Hash == "") == (t.Secret == nil):
			k.bad(path, "give exactly one of hash and secret")
		case t.Secret != nil:
			k.secret(*t.Secret, path+".secret")
		case !hashRE.MatchString(t.Hash):
			// The text is not shown: it may be the token itself.
			k.bad(path+".hash", "not a SHA-256 in hex (64 digits 0-9a-f); printf %%s TOKEN | sha256sum prints it")
		}
	}
	if len(k.c.API.Tokens) > 0 && k.c.Server.Listen.API == "" {
		k.bad("api.tokens", "server.listen.api is switched off, so that no token can be used")
	}
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// block is the options of one type of cloud: the field of Cloud and of Image
// that has the type's name.
func block(v any, name string) reflect.Value {
	f := fieldsOf(reflect.TypeOf(v).Elem())[name]
	return reflect.ValueOf(v).Elem().FieldByIndex(f.Index)
}

// cloudTypes are the types of cloud, from the enum of Cloud.Type.
func cloudTypes() []string {
	return strings.Split(fieldsOf(reflect.TypeFor[Cloud]())["type"].Tag.Get("enum"), ",")
}

// types gives the types of cloud that the image has a source for.
func (m *Image) types() []string {
	var types []string
	for _, t := range cloudTypes() {
		if !block(m, t).IsNil() {
			types = append(types, t)
		}
	}
	return types
}

// canonical gives a prefix without the bits of a host, and whether it had none.
func canonical(p netip.Prefix) (netip.Prefix, bool) {
	m := p.Masked()
	return m, m == p
}
