package cirun

import "strings"

// Known answers, at the price of a few look-ups, whether a job could be ours at
// all. It is asked before a delivery's body is kept.
type Known struct {
	// Unread says that a file which may define labels (the repository's own, as
	// a rule) was not read yet. Every label that is not a GitHub-hosted name may
	// be ours then, as losing a job is worse than keeping a body.
	Unread bool

	labels   map[string]bool
	prefixes []string
}

// NewKnown collects the labels of files (nil ones are skipped). Labels that
// begin with "cirun-", "gpuserver" or one of prefixes may be ours without
// standing in a file.
func NewKnown(prefixes []string, files ...*File) Known {
	k := Known{labels: map[string]bool{selfHosted: true}, prefixes: []string{oneLinePrefix, "gpuserver"}}
	for _, p := range prefixes {
		if p != "" {
			k.prefixes = append(k.prefixes, strings.ToLower(p))
		}
	}
	for _, f := range files {
		if f == nil {
			continue
		}
		for _, rs := range [][]Runner{f.Runners, f.Disabled} { // whose job asks for a disabled one is to be told
			for _, r := range rs {
				for _, l := range r.Labels {
					k.labels[strings.ToLower(l)] = true
				}
			}
		}
	}
	return k
}

// Ours reports whether a job with these labels could be ours: whether one of
// them is known, has a prefix of ours or is self-hosted. The names of runners
// that GitHub hosts never are.
func (k Known) Ours(labels []string) bool {
	for _, l := range labels {
		base := strings.ToLower(Base(l))
		if Hosted(base) {
			continue
		}
		if k.Unread || k.labels[base] {
			return true
		}
		for _, p := range k.prefixes {
			if strings.HasPrefix(base, p) {
				return true
			}
		}
	}
	return false
}
