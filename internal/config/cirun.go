package config

import (
	"strings"

	"gpuserver/internal/cirun"
)

// RunnersFile gives the file's own runner entries, nil if it has none.
func (c *Config) RunnersFile() *cirun.File { return c.runners }

// AccessFile gives the file's own access control, nil if it has none.
func (c *Config) AccessFile() *cirun.Access { return c.access }

// Mapping gives what this configuration makes of Cirun's words: clouds and
// regions, instance types and machine images.
func (c *Config) Mapping() cirun.Mapping {
	var m cirun.Mapping
	for i := range c.Clouds {
		mapped := cirun.Cloud{Name: c.Clouds[i].Name, Images: []string{}}
		for _, s := range c.Clouds[i].Serves {
			mapped.Serves = append(mapped.Serves, cirun.Place{Cloud: s.Cloud, Region: s.Region})
		}
		for j := range c.Images {
			if c.HasImage(c.Images[j].Name, c.Clouds[i].Name) {
				mapped.Images = append(mapped.Images, c.Images[j].Name)
			}
		}
		m.Clouds = append(m.Clouds, mapped)
	}
	flavors, images := c.FlavorMap(), c.ImageMap()
	for _, f := range c.Flavors {
		m.Flavors = append(m.Flavors, cirun.Flavor{Flavor: flavors[f.Name], Aliases: f.Aliases})
	}
	for _, im := range c.Images {
		m.Images = append(m.Images, images[im.Name])
	}
	return m
}

// cirun reads the parts in Cirun's form. What is a finding in a foreign file is
// a mistake in ours.
func (k *checker) cirun() {
	if len(k.problems) > 0 {
		return // names that were refused above would be found missing here again
	}
	var findings []cirun.Finding
	take := func(fs []cirun.Finding, err error) {
		findings = append(findings, fs...)
		if err != nil {
			k.add(place{1, 1}, "%v", err)
		}
	}
	var (
		fs  []cirun.Finding
		err error
	)
	if k.c.Runners.Given() {
		k.c.runners, fs, err = cirun.Parse(k.c.Runners.Source(), k.name)
		take(fs, err)
	}
	if k.c.Access.Given() {
		k.c.access, fs, err = cirun.ParseAccess(k.c.Access.Source(), k.name)
		take(fs, err)
	}
	mapping := k.c.Mapping()
	take(cirun.Lint(cirun.LintInput{Organisation: k.c.runners, Access: k.c.access, Mapping: &mapping}), nil)
	for _, f := range cirun.SortFindings(findings) {
		k.add(place{f.Line, k.indent(f.Line)}, "%s: %s", f.Rule, f.Text)
	}
}

// indent gives the column of the first character of a line.
func (k *checker) indent(line int) int {
	n := 1
	for text := range strings.Lines(string(k.data)) {
		if n++; n > line {
			return len(text) - len(strings.TrimLeft(text, " ")) + 1
		}
	}
	return 1
}
