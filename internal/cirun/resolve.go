package cirun

import (
	"fmt"
	"slices"
	"strings"

	"gpuserver"
)

// Mapping says what Cirun's words mean here. It comes from the configuration.
type Mapping struct {
	Clouds  []Cloud  // in the order in which they are to be tried
	Flavors []Flavor // by name or alias; on_prem sizes take the smallest that fits
	Images  []gpuserver.Image
}

// Cloud is one of our clouds with what it stands in for.
type Cloud struct {
	Name   string   // an entry may also name it directly
	Serves []Place  // Cirun's clouds and regions
	Images []string // our images that it has; nil is all
}

// Place is a cloud and region in Cirun's words.
type Place struct {
	Cloud  string
	Region string // "" is every region
}

// Flavor is one of our flavors with the foreign instance types that mean it. An
// alias "TYPE+GPU" means that type with that gpu.
type Flavor struct {
	gpuserver.Flavor
	Aliases []string
}

// cloudWords are the values of cloud that Cirun knows; "do" is DigitalOcean.
var cloudWords = []string{"aws", "gcp", "azure", "do", "digitalocean", "openstack", "oracle", "vast_ai", "on_prem"}

// sameCloud compares two of Cirun's words for a cloud.
func sameCloud(a, b string) bool {
	canon := func(s string) string {
		s = strings.ToLower(s)
		if s == "digitalocean" {
			return "do"
		}
		return s
	}
	return canon(a) == canon(b)
}

// clouds gives our clouds that serve a cloud and region: those that name the
// region (or that the entry names directly) before those that serve any.
func (m Mapping) clouds(cloud, region string) []Cloud {
	var exact, anyRegion []Cloud
	for _, c := range m.Clouds {
		named, served := strings.EqualFold(c.Name, cloud), false
		for _, p := range c.Serves {
			if !sameCloud(p.Cloud, cloud) {
				continue
			}
			named = named || region != "" && strings.EqualFold(p.Region, region)
			served = served || p.Region == "" || region == ""
		}
		if named {
			exact = append(exact, c)
		} else if served {
			anyRegion = append(anyRegion, c)
		}
	}
	return append(exact, anyRegion...)
}

// has reports whether a cloud has an image.
func (c Cloud) has(image string) bool { return c.Images == nil || slices.Contains(c.Images, image) }

func (m Mapping) flavor(a Alternative) (name string, byGPU bool) {
	if a.GPU != "" {
		if f := m.flavorNamed(a.InstanceType + "+" + a.GPU); f != "" {
			return f, true
		}
	}
	if f := m.flavorNamed(a.InstanceType); f != "" {
		return f, false
	}
	if a.Size != nil {
		return m.fitting(*a.Size), false
	}
	return "", false
}

func (m Mapping) flavorNamed(name string) string {
	for _, f := range m.Flavors {
		if strings.EqualFold(f.Name, name) {
			return f.Name
		}
	}
	for _, f := range m.Flavors {
		for _, al := range f.Aliases {
			if strings.EqualFold(al, name) {
				return f.Name
			}
		}
	}
	return ""
}

// fitting gives the smallest flavor that has at least this size. A flavor with
// cards is none of them: they are scarce, and whoever wants one names it.
func (m Mapping) fitting(s Size) string {
	var best *Flavor
	for i, f := range m.Flavors {
		if f.GPUs.Count > 0 || f.VCPUs < s.VCPUs || f.MemoryMiB < s.MemoryMiB || f.DiskGiB < s.DiskGiB {
			continue
		}
		if best == nil || f.VCPUs < best.VCPUs || f.VCPUs == best.VCPUs && f.MemoryMiB < best.MemoryMiB {
			best = &m.Flavors[i]
		}
	}
	if best == nil {
		return ""
	}
	return best.Name
}

func (m Mapping) image(name string) string {
	for _, im := range m.Images {
		if strings.EqualFold(im.Name, name) {
			return im.Name
		}
	}
	for _, im := range m.Images {
		for _, al := range im.Aliases {
			if strings.EqualFold(al, name) {
				return im.Name
			}
		}
	}
	return ""
}

// lack is a name that the mapping does not have.
type lack struct {
	rule Rule
	text string
}

// lacks gives what of an alternative the mapping does not have.
func (m Mapping) lacks(a Alternative) []lack {
	var out []lack
	if len(m.clouds(a.Cloud, a.Region)) == 0 {
		place := fmt.Sprintf("cloud %q", clip(a.Cloud))
		if a.Region != "" {
			place += fmt.Sprintf(" in region %q", clip(a.Region))
		}
		out = append(out, lack{RuleUnmappedCloud, fmt.Sprintf("no cloud of the configuration serves %s; add it to \"serves\" of a cloud", place)})
	}
	if f, _ := m.flavor(a); f == "" {
		what := fmt.Sprintf("no flavor of the configuration is called %q; add it to \"aliases\" of a flavor", clip(a.InstanceType))
		if a.Size != nil {
			what = fmt.Sprintf("no flavor of the configuration is called %q or has that size; add a flavor, or the name to \"aliases\" of one", clip(a.InstanceType))
		}
		out = append(out, lack{RuleUnmappedFlavor, what})
	}
	return append(out, m.lacksImage(a)...)
}

func (m Mapping) lacksImage(a Alternative) []lack {
	image, clouds := m.image(a.Image), m.clouds(a.Cloud, a.Region)
	if image == "" {
		return []lack{{RuleUnmappedImage, fmt.Sprintf("no image of the configuration is called %q; add it to \"aliases\" of an image", clip(a.Image))}}
	}
	if len(clouds) > 0 && !slices.ContainsFunc(clouds, func(c Cloud) bool { return c.has(image) }) {
		return []lack{{RuleUnmappedImage, fmt.Sprintf("the image %s, which %q means, has no source for the cloud %s; add one to the image", image, clip(a.Image), clouds[0].Name)}}
	}
	return nil
}

// Resolve turns one alternative of a runner into our own names: one entry for
// each of our clouds that serves it, in the mapping's order. The error
// (KindInvalid) says which names are missing, and where to add them.
func Resolve(r Runner, a Alternative, m Mapping) ([]gpuserver.Entry, error) {
	if r.Origin == FromLabel {
		return resolveOneLine(r, a, m)
	}
	if l := m.lacks(a); len(l) > 0 {
		var texts []string
		for _, x := range l {
			texts = append(texts, x.text)
		}
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "runner %s (%s): %s", clip(r.Name), r.Where(), strings.Join(texts, "; "))
	}
	flavor, _ := m.flavor(a)
	image := m.image(a.Image)
	var out []gpuserver.Entry
	for _, c := range m.clouds(a.Cloud, a.Region) {
		if c.has(image) {
			out = append(out, newEntry(r, c.Name, flavor, image))
		}
	}
	return out, nil
}

func newEntry(r Runner, cloud, flavor, image string) gpuserver.Entry {
	return gpuserver.Entry{Cloud: cloud, Flavor: flavor, Image: image, Runner: r.Name, Env: r.Env, SetupInfo: r.SetupInfo}
}

// ResolveAll resolves all alternatives of runners in order, each place once.
// What cannot be resolved is left out; the reason says what, and its class is
// ReasonNoPlace if nothing is left. It is zero if all were resolved.
func ResolveAll(runners []Runner, m Mapping) ([]gpuserver.Entry, gpuserver.Reason) {
	type place struct{ runner, cloud, flavor, image string }
	seen := map[place]bool{}
	var out []gpuserver.Entry
	var problems []string
	for _, r := range runners {
		for _, a := range r.Alternatives {
			entries, err := Resolve(r, a, m)
			if err != nil {
				problems = append(problems, gpuserver.PublicText(err))
			}
			for _, e := range entries {
				if p := (place{r.Where(), e.Cloud, e.Flavor, e.Image}); !seen[p] {
					seen[p] = true
					out = append(out, e)
				}
			}
		}
	}
	if len(problems) == 0 {
		return out, gpuserver.Reason{}
	}
	reason := gpuserver.Reason{Text: strings.Join(problems[:min(len(problems), 5)], ". ") + ".", Help: "An operator adds the missing names to the configuration, or the runner names what is there."}
	if len(out) == 0 {
		reason.Class = gpuserver.ReasonNoPlace
	}
	return out, reason
}

// dashed spells a name as it stands in a one-line label: lower case, with
// dashes for everything but letters and digits.
func dashed(s string) string {
	return strings.Trim(strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		}
		return '-'
	}, s), "-")
}

// spelled is one reading of the beginning of a one-line label.
type spelled struct{ ours, rest string }

// spellings gives every reading of the beginning of rest as one of names, each
// remainder once.
func spellings(rest, ours string, names []string) []spelled {
	var out []spelled
	seen := map[string]bool{}
	for _, n := range names {
		d := dashed(n)
		after, ok := strings.CutPrefix(rest, d)
		if d == "" || !ok || after != "" && after[0] != '-' {
			continue
		}
		if after = strings.TrimPrefix(after, "-"); !seen[after] {
			seen[after] = true
			out = append(out, spelled{ours, after})
		}
	}
	return out
}

// resolveOneLine finds the cloud, flavor and image whose names, joined by
// dashes, are the label. Two readings are an error: guessing would run a job on
// what it did not ask for.
func resolveOneLine(r Runner, a Alternative, m Mapping) ([]gpuserver.Entry, error) {
	rest := dashed(a.InstanceType)
	var out []gpuserver.Entry
	readings := map[string]bool{}
	for _, c := range m.Clouds {
		names := []string{c.Name}
		for _, p := range c.Serves {
			names = append(names, p.Cloud)
			if sameCloud(p.Cloud, "do") {
				names = append(names, "digitalocean", "do")
			}
		}
		for _, cloud := range spellings(rest, c.Name, names) {
			for _, fl := range m.flavorSpellings(cloud.rest) {
				for _, im := range m.imageSpellings(fl.rest) {
					if !c.has(im.ours) {
						continue
					}
					readings[fl.ours+" with "+im.ours] = true
					out = append(out, newEntry(r, c.Name, fl.ours, im.ours))
				}
			}
		}
	}
	switch {
	case len(readings) == 0:
		return nil, gpuserver.Errorf(gpuserver.KindInvalid,
			"the label %q is neither a runner's nor cirun-<cloud>-<instance type>-<image> with names of the configuration; add it to a runner's labels, or the names to \"serves\" and \"aliases\"", clip(r.Name))
	case len(readings) > 1:
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "the label %q can be read in %d ways; define a runner with that label", clip(r.Name), len(readings))
	}
	return out, nil
}

func (m Mapping) flavorSpellings(rest string) []spelled {
	var out []spelled
	for _, f := range m.Flavors {
		for _, s := range spellings(rest, f.Name, append([]string{f.Name}, f.Aliases...)) {
			if s.rest != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

func (m Mapping) imageSpellings(rest string) []spelled {
	var out []spelled
	for _, im := range m.Images {
		for _, s := range spellings(rest, im.Name, append([]string{im.Name}, im.Aliases...)) {
			if s.rest == "" {
				out = append(out, s)
			}
		}
	}
	return out
}
