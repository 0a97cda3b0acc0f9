package cirun

import (
	"fmt"
	"slices"
	"strings"
)

// LintInput is what is linted together. Each part may be nil.
type LintInput struct {
	Organisation *File // .cirun.global.yml
	Repository   *File // .cirun.yml
	Access       *Access
	Mapping      *Mapping // what the configuration maps; nil: not compared
}

// Lint finds what can only be seen across files or against a configuration.
// What is wrong within one file Parse and ParseAccess have found.
func Lint(in LintInput) []Finding {
	_, _, out := merge(Files{Repository: in.Repository, Organisation: in.Organisation})
	for _, f := range []*File{in.Organisation, in.Repository} {
		if f == nil {
			continue
		}
		for _, r := range f.Runners {
			out = append(out, lintRunner(r, in.Mapping)...)
		}
	}
	if in.Access != nil && in.Organisation != nil {
		out = append(out, lintGrants(in.Organisation, in.Access)...)
	}
	return SortFindings(out)
}

func (r Runner) finding(rule Rule, format string, args ...any) Finding {
	return Finding{Path: r.Path, Line: r.Line, Rule: rule, Text: fmt.Sprintf("runner %q: ", clip(r.Name)) + fmt.Sprintf(format, args...)}
}

func lintRunner(r Runner, m *Mapping) []Finding {
	var out []Finding
	known := slices.ContainsFunc(cloudWords, func(w string) bool { return strings.EqualFold(w, r.Cloud) })
	if !known && (m == nil || len(m.clouds(r.Cloud, "")) == 0) {
		out = append(out, r.finding(RuleUnknownCloud, "the cloud %q is none of %s", clip(r.Cloud), strings.Join(cloudWords, ", ")))
	}
	if m == nil {
		return out
	}
	for _, a := range r.Alternatives {
		for _, l := range m.lacks(a) {
			out = append(out, r.finding(l.rule, "%s", l.text))
		}
		if f, byGPU := m.flavor(a); f != "" && a.GPU != "" && !byGPU {
			out = append(out, r.finding(RuleGPUIgnored, "the gpu %q plays no part, the flavor %s decides; if another one is meant, give it the alias %q",
				clip(a.GPU), f, clip(a.InstanceType+"+"+a.GPU)))
		}
	}
	return out
}

// lintGrants compares an organisation's resources with its runners.
func lintGrants(f *File, a *Access) []Finding {
	var out []Finding
	runners, granted := map[string]bool{}, map[string]bool{}
	for _, r := range f.Runners {
		runners[r.Name] = true
	}
	for _, g := range a.Grants {
		granted[g.Resource] = true
		if runners[g.Resource] {
			continue
		}
		for _, r := range f.Runners {
			if strings.EqualFold(r.Name, g.Resource) {
				out = append(out, Finding{a.Path, g.Line, RuleLetterCase, fmt.Sprintf(
					"the resource %q differs from the runner %q (%s) only in the case of letters", clip(g.Resource), clip(r.Name), r.Where())})
				break
			}
		}
		out = append(out, Finding{a.Path, g.Line, RuleUnknownResource, fmt.Sprintf(
			"the resource %q is no usable runner of %s", clip(g.Resource), f.Path)})
	}
	for _, r := range f.Runners {
		if !granted[r.Name] {
			out = append(out, r.finding(RuleUngranted, "no resource of %s names it, so that nobody can have it", a.Path))
		}
	}
	return out
}
