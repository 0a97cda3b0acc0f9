package cirun

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"gpuserver"
)

// File is what one .cirun.yml or .cirun.global.yml says.
type File struct {
	Path    string
	Runners []Runner // the usable entries, in the file's order
	// Disabled are the entries with a name that cannot be used. They keep their
	// names from entries of files with less say, and explain a refusal; nothing
	// but name, labels and place is to be read from them.
	Disabled []Runner
}

// Runner is one entry of a file: the "resource" of access control.
type Runner struct {
	Name   string
	Path   string // of the file that it stands in
	Line   int
	Origin Origin // set by Match
	Cloud  string // Cirun's word, or the name of one of our clouds
	GPU    string // the cloud's name of a GPU; may be empty
	Labels []string
	// Alternatives are the entry's lists zipped by position, in the order in
	// which they are to be tried; there is at least one.
	Alternatives []Alternative
	Idle         *Idle             // counts only when read from the default branch
	Env          map[string]string // extra_config.env_vars: for every process of the job, not secret
	SetupInfo    []gpuserver.SetupInfo
	Extra        map[string]any // extra_config as it stands, env_vars included
}

// Alternative is one place where a runner may be made, in Cirun's words.
type Alternative struct {
	Cloud        string
	Region       string // empty: not given
	InstanceType string
	Image        string // Azure's map as "publisher:offer:sku:version"
	GPU          string
	Preemptible  bool
	Size         *Size // on_prem: what the instance type spells out
}

// Size is a size of VM that is spelled out, as in "8vcpu-8gb-100gb".
type Size struct {
	VCPUs     int
	MemoryMiB int64
	DiskGiB   int64
}

// Where names the entry for people.
func (r Runner) Where() string {
	if r.Origin == FromLabel {
		return "the one-line label " + r.Name
	}
	return fmt.Sprintf("%s:%d", r.Path, r.Line)
}

// Parse reads a runner file. The findings say what is wrong in it; what they
// are about is left out of the File. The error (KindInvalid) means that nothing
// of the file can be used; the last finding says why then, too.
func Parse(data []byte, path string) (*File, []Finding, error) {
	r := &reader{path: path}
	f := &File{Path: path}
	root, err := r.root(data)
	if err != nil {
		return nil, SortFindings(r.findings), err
	}
	if root == nil {
		r.find(1, RuleEmptyFile, "the file is empty: it defines no runners")
		return f, r.findings, nil
	}
	seen := false
	ps, _ := r.pairs(root)
	for _, p := range ps {
		switch p.key {
		case "runners":
			seen = true
			f.Runners, f.Disabled = r.runners(p.value)
		case "version":
		default:
			r.find(p.line, RuleUnknownKey, "the key %q is not known here and is ignored; known are runners and version", clip(p.key))
		}
	}
	if !seen {
		r.find(root.Line, RuleMissingKey, "the file has no runners: list")
	}
	r.checkRunnerNames(f.Runners)
	r.checkLabelCase(f.Runners)
	return f, SortFindings(r.findings), nil
}

func (r *reader) runners(n *yaml.Node) (usable, disabled []Runner) {
	nodes, _ := r.list("runners", n)
	if len(nodes) == 0 {
		r.find(n.Line, RuleEmptyFile, "the file defines no runners")
	}
	for _, c := range nodes[:min(len(nodes), maxRunners)] {
		ru, ok := r.runner(c)
		switch {
		case ok:
			usable = append(usable, ru)
		case ru.Name != "":
			disabled = append(disabled, ru)
		}
	}
	return usable, disabled
}

// entry is a runner while it is read: lists not zipped yet.
type entry struct {
	Runner
	instance, image, region []item
	preemptible             []bool
	lists                   map[string]int // lengths of what was given as a list
	bad                     bool
}

func (r *reader) runner(n *yaml.Node) (Runner, bool) {
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "a runner has to be a mapping, not %s; it is disabled", kindName(n))
		return Runner{}, false
	}
	e := entry{Runner: Runner{Path: r.path, Line: n.Line}, lists: map[string]int{}}
	ps, _ := r.pairs(n)
	seen := map[string]bool{}
	for _, p := range ps {
		seen[p.key] = true
		r.runnerKey(&e, p)
	}
	name := clip(e.Name)
	for _, key := range []string{"name", "cloud", "instance_type", "machine_image", "labels"} {
		if !seen[key] {
			e.bad = true
			r.find(n.Line, RuleMissingKey, "the runner %q lacks %s; it is disabled", name, key)
		}
	}
	if e.bad {
		return Runner{Name: e.Name, Path: e.Path, Line: e.Line, Labels: e.Labels}, false
	}
	r.zip(&e)
	return e.Runner, len(e.Alternatives) > 0
}

// runnerKey reads one key of a runner; e.bad says that the entry cannot be used.
func (r *reader) runnerKey(e *entry, p pair) {
	ok := true
	switch p.key {
	case "name":
		e.Name, ok = r.needText("name", p.value)
	case "cloud":
		e.Cloud, ok = r.needText("cloud", p.value)
	case "gpu":
		if !isNull(p.value) {
			e.GPU, ok = r.text("gpu", p.value)
		}
	case "instance_type":
		e.instance, ok = r.column(e, p)
	case "machine_image":
		e.image, ok = r.images(e, p)
	case "region":
		if !isNull(p.value) {
			e.region, ok = r.column(e, p)
		}
	case "preemptible":
		e.preemptible, ok = r.truths(e, p)
	case "labels":
		e.Labels, ok = r.labels(p)
	case "idle":
		e.Idle = r.idle(p.value)
	case "extra_config":
		r.extraConfig(e, p.value)
	case "setup_info":
		e.SetupInfo = r.setupInfo(p.value)
	default:
		r.find(p.line, RuleUnknownKey, "the key %q of a runner is not known and is ignored", clip(p.key))
	}
	if !ok {
		e.bad = true
		r.find(p.line, RuleWrongType, "the runner is disabled, because its %s cannot be read", p.key)
	}
}

func (r *reader) needText(what string, n *yaml.Node) (string, bool) {
	s, ok := r.text(what, n)
	if ok && s == "" {
		r.find(n.Line, RuleMissingKey, "%s is empty", what)
	}
	return s, ok && s != ""
}

// column reads a field that may be a text or a list of texts.
func (r *reader) column(e *entry, p pair) ([]item, bool) {
	items, ok := r.texts(p.key, p.value)
	if p.value.Kind == yaml.SequenceNode {
		e.lists[p.key] = len(items)
	}
	if ok && len(items) == 0 {
		r.find(p.line, RuleMissingKey, "%s is empty", p.key)
		return nil, false
	}
	for _, it := range items {
		if it.text == "" {
			r.find(it.line, RuleMissingKey, "%s has an empty item", p.key)
			ok = false
		}
	}
	return items, ok
}

// images reads machine_image, of which each may be Azure's map.
func (r *reader) images(e *entry, p pair) ([]item, bool) {
	nodes := []*yaml.Node{p.value}
	if p.value.Kind == yaml.SequenceNode {
		nodes, _ = r.list(p.key, p.value)
		e.lists[p.key] = len(nodes)
	}
	var items []item
	for _, n := range nodes {
		s, ok := "", false
		if n.Kind == yaml.MappingNode {
			s, ok = r.azureImage(n)
		} else {
			s, ok = r.needText(p.key, n)
		}
		if !ok {
			return nil, false
		}
		items = append(items, item{s, n.Line})
	}
	if len(items) == 0 {
		r.find(p.line, RuleMissingKey, "machine_image is empty")
	}
	return items, len(items) > 0
}

// azureImage reads publisher, offer, sku and version (default latest), or id.
func (r *reader) azureImage(n *yaml.Node) (string, bool) {
	v := map[string]string{"version": "latest"}
	ps, _ := r.pairs(n)
	for _, p := range ps {
		switch p.key {
		case "publisher", "offer", "sku", "version", "id":
			s, ok := r.needText("machine_image."+p.key, p.value)
			if !ok {
				return "", false
			}
			v[p.key] = s
		default:
			r.find(p.line, RuleUnknownKey, "the key %q of a machine_image is not known and is ignored", clip(p.key))
		}
	}
	if v["id"] != "" {
		return v["id"], true
	}
	for _, k := range []string{"publisher", "offer", "sku"} {
		if v[k] == "" {
			r.find(n.Line, RuleMissingKey, "machine_image lacks %s (it is either an id, or publisher, offer, sku and version)", k)
			return "", false
		}
	}
	return strings.Join([]string{v["publisher"], v["offer"], v["sku"], v["version"]}, ":"), true
}

func (r *reader) truths(e *entry, p pair) ([]bool, bool) {
	if isNull(p.value) {
		return nil, true
	}
	nodes := []*yaml.Node{p.value}
	if p.value.Kind == yaml.SequenceNode {
		nodes, _ = r.list(p.key, p.value)
		e.lists[p.key] = len(nodes)
	}
	var out []bool
	for _, n := range nodes {
		v, ok := r.truth(p.key, n)
		if !ok {
			return nil, false
		}
		out = append(out, v)
	}
	return out, true
}

// zip makes the alternatives. A single value repeats; of lists that differ in
// length only the positions that all of them have are used.
func (r *reader) zip(e *entry) {
	n := 1
	if l := slices.Sorted(maps.Values(e.lists)); len(l) > 0 {
		n = l[0]
		if l[len(l)-1] != n {
			r.find(e.Line, RuleZipLength, "the lists of runner %q differ in length (%s); only the first %d are used, so make them equally long",
				clip(e.Name), lengths(e.lists), n)
		}
	}
	for i := range n {
		a := Alternative{Cloud: e.Cloud, GPU: e.GPU, InstanceType: at(e.instance, i).text, Image: at(e.image, i).text}
		if len(e.region) > 0 {
			a.Region = at(e.region, i).text
		}
		if len(e.preemptible) > 0 {
			a.Preemptible = at(e.preemptible, i)
		}
		if strings.EqualFold(a.Cloud, "on_prem") {
			a.Size = ParseSize(a.InstanceType)
			if a.Size == nil {
				r.find(at(e.instance, i).line, RuleBadSize, "the instance type %q of an on_prem runner is not like 8vcpu-8gb-100gb; it is used as a flavor's name",
					clip(a.InstanceType))
			}
		}
		e.Alternatives = append(e.Alternatives, a)
	}
}

// at gives item i of a list, or the only item.
func at[T any](l []T, i int) T {
	if len(l) == 1 {
		return l[0]
	}
	return l[i]
}

func lengths(m map[string]int) string {
	var s []string
	for k, v := range m {
		s = append(s, k+" "+strconv.Itoa(v))
	}
	slices.Sort(s)
	return strings.Join(s, ", ")
}

var sizeForm = regexp.MustCompile(`(?i)^([1-9][0-9]{0,3})v?cpus?-([1-9][0-9]{0,5})gi?b?-([1-9][0-9]{0,6})gi?b?$`)

// ParseSize reads an on_prem instance type such as "8vcpu-8gb-100gb" (virtual
// CPUs, memory, disk; sizes in GiB); nil if it is not one.
func ParseSize(s string) *Size {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return nil
	}
	cpus, _ := strconv.Atoi(m[1])
	mem, _ := strconv.ParseInt(m[2], 10, 64)
	disk, _ := strconv.ParseInt(m[3], 10, 64)
	return &Size{VCPUs: cpus, MemoryMiB: mem * 1024, DiskGiB: disk}
}

// extraConfig keeps everything and reads env_vars out of it.
func (r *reader) extraConfig(e *entry, n *yaml.Node) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "extra_config has to be a mapping, not %s; it is ignored", kindName(n))
		return
	}
	ps, _ := r.pairs(n)
	for _, p := range ps {
		if p.key == "env_vars" {
			e.Env = r.env(p.value)
		}
	}
	e.Extra, _ = value(n).(map[string]any)
}

func (r *reader) env(n *yaml.Node) map[string]string {
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "env_vars has to be a mapping, not %s; it is ignored", kindName(n))
		return nil
	}
	env := map[string]string{}
	ps, _ := r.pairs(n)
	for _, p := range ps {
		if !envName.MatchString(p.key) {
			r.find(p.line, RuleWrongType, "%q cannot be the name of an environment variable; it is ignored", clip(p.key))
			continue
		}
		if isNull(p.value) {
			env[p.key] = ""
			continue
		}
		if p.value.Kind != yaml.ScalarNode || len(p.value.Value) > maxText || strings.ContainsAny(p.value.Value, "\x00") {
			r.find(p.line, RuleWrongType, "the variable %s has to be a text of at most %d bytes, not %s; it is ignored",
				clip(p.key), maxText, kindName(p.value))
			continue
		}
		env[p.key] = p.value.Value
	}
	return env
}

func (r *reader) setupInfo(n *yaml.Node) []gpuserver.SetupInfo {
	nodes, _ := r.list("setup_info", n)
	var out []gpuserver.SetupInfo
	for _, c := range nodes {
		if c.Kind != yaml.MappingNode {
			r.find(c.Line, RuleWrongType, "an item of setup_info has to be a mapping with group and detail, not %s; it is ignored", kindName(c))
			continue
		}
		var s gpuserver.SetupInfo
		ok := true
		ps, _ := r.pairs(c)
		for _, p := range ps {
			good := true
			switch p.key {
			case "group":
				s.Group, good = r.text("group", p.value)
			case "detail":
				s.Detail, good = r.text("detail", p.value)
			default:
				r.find(p.line, RuleUnknownKey, "the key %q of setup_info is not known and is ignored", clip(p.key))
			}
			ok = ok && good
		}
		if ok {
			out = append(out, s)
		}
	}
	return out
}
