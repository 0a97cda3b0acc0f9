package cirun

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gpuserver"
)

const (
	selfHosted = "self-hosted"
	maxLabels  = 100 // GitHub's limit for a runner
)

// hostedForm is what GitHub calls the runners that it hosts itself.
// Source: https://docs.github.com/actions/reference/runners/github-hosted-runners
var hostedForm = regexp.MustCompile(`(?i)^(ubuntu|windows|macos)-(latest|slim|[0-9][0-9.]*)(-[a-z0-9.]+)*$`)

// Hosted reports whether a label is the name of a runner that GitHub hosts,
// such as ubuntu-24.04 or macos-latest-xlarge. Such a label is never ours.
func Hosted(label string) bool { return hostedForm.MatchString(label) }

// Base gives the part of a requested label that is compared: what stands before
// the first "--".
func Base(label string) string {
	base, _, _ := strings.Cut(label, "--")
	return base
}

// Origin says whose file an entry stands in, and so whose access control it is
// under.
type Origin string

// The origins of a runner entry.
const (
	FromConfiguration Origin = "configuration" // the runners of our own configuration file
	FromRepository    Origin = "repository"    // .cirun.yml
	FromOrganisation  Origin = "organisation"  // .cirun.global.yml
	FromLabel         Origin = "label"         // no file: a one-line label
)

// Files are the files that count for one job; each may be nil. If one is there
// but cannot be read, give its last good version or do not match at all:
// without the organisation's file a repository could redefine its runners.
type Files struct {
	Configuration *File // the runners of our own configuration
	Repository    *File // .cirun.yml at the job's own ref (see access.FileRef)
	Organisation  *File // .cirun.global.yml of the organisation's .cirun repository
}

// Result is what Match found.
type Result struct {
	// Runners serve the job; they are to be tried in this order: those of the
	// configuration, of the repository's file, of the organisation's, each in
	// the file's order. A one-line label counts only where no file has an entry.
	Runners []Runner
	// Labels are what the created runner carries: exactly the requested labels,
	// suffixes included, each once.
	Labels []string
	// Findings name runners that were ignored, because they redefine another's.
	Findings []Finding
	// Reason says why there are no Runners; zero if there are some.
	Reason gpuserver.Reason
	// Otherwise is the Reason that there were if a one-line label were none: a
	// label with a typing error looks like one. Zero for runners of files.
	Otherwise gpuserver.Reason
}

// Match finds the runners that serve a job: those whose label list holds every
// requested label except self-hosted. Only the text before "--" is compared,
// without the case of letters, as GitHub compares labels. Names are the
// configuration's first, then the organisation's: a runner of another file with
// such a name is ignored, and a one-line label that is such a name is none. The
// name of an entry that cannot be used is taken, too: who may have that runner
// was said of the organisation's.
func Match(files Files, labels []string) Result {
	if len(labels) > maxLabels {
		return Result{Reason: gpuserver.Reason{
			Class: gpuserver.ReasonNoRunner,
			Text:  fmt.Sprintf(noRunner+"the job asks for %d labels, and GitHub gives a runner at most %d.", len(labels), maxLabels),
			Help:  "Leave some out of runs-on.",
		}}
	}
	all, left, findings := merge(files)
	res := Result{Labels: dedupe(labels), Findings: findings}
	want := wanted(labels)
	if len(want) == 0 {
		res.Reason = gpuserver.Reason{
			Class: gpuserver.ReasonNoRunner,
			Text:  noRunner + "the job asks for no label besides self-hosted.",
			Help:  "Add a label of a runner to runs-on.",
		}
		return res
	}
	for _, r := range all {
		if len(missing(r, want)) == 0 {
			res.Runners = append(res.Runners, r)
		}
	}
	if len(res.Runners) == 0 {
		if r, ok := lost(left, want); ok {
			res.Reason = r
			return res
		}
		r, ok := oneLine(want)
		if ok && !named(all, left, r.Name) {
			res.Runners, res.Otherwise = []Runner{r}, nearMiss(all, want, files)
			return res
		}
		res.Reason = nearMiss(all, want, files)
	}
	return res
}

// ignored is a runner that plays no part.
type ignored struct {
	Runner
	why string
}

// merge lists the runners of all files in their order, without those that
// redefine one of a file with more say; these and the disabled ones are left out.
func merge(files Files) (all []Runner, out []ignored, findings []Finding) {
	taken := map[string]Runner{}
	pick := func(f *File, origin Origin) (in []Runner) {
		if f == nil {
			return nil
		}
		for _, r := range f.Runners {
			r.Origin = origin
			if o, ok := taken[strings.ToLower(r.Name)]; ok {
				out = append(out, ignored{r, fmt.Sprintf("its name is the %s's (%s)", o.Origin, o.Where())})
				findings = append(findings, Finding{Path: r.Path, Line: r.Line, Rule: RuleRedefined, Text: fmt.Sprintf(
					"the runner %q is the %s's (%s); this one is ignored, so give it another name", clip(r.Name), o.Origin, o.Where())})
				continue
			}
			in = append(in, r)
		}
		for _, r := range f.Disabled {
			r.Origin = origin
			out = append(out, ignored{r, "it cannot be used (`gpuserver cirun lint` says why)"})
			taken[strings.ToLower(r.Name)] = r
		}
		for _, r := range in {
			taken[strings.ToLower(r.Name)] = r
		}
		return in
	}
	conf := pick(files.Configuration, FromConfiguration)
	org := pick(files.Organisation, FromOrganisation)
	repo := pick(files.Repository, FromRepository)
	return slices.Concat(conf, repo, org), out, SortFindings(findings)
}

// named reports whether one of the runners has that name.
func named(all []Runner, left []ignored, name string) bool {
	return slices.ContainsFunc(all, func(r Runner) bool { return strings.EqualFold(r.Name, name) }) ||
		slices.ContainsFunc(left, func(r ignored) bool { return strings.EqualFold(r.Name, name) })
}

func dedupe(labels []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, l := range labels {
		if k := strings.ToLower(l); !seen[k] {
			seen[k] = true
			out = append(out, l)
		}
	}
	return out
}

// wanted gives the compared parts of the requested labels.
func wanted(labels []string) []string {
	var out []string
	for _, l := range labels {
		if !strings.EqualFold(l, selfHosted) {
			out = append(out, Base(l))
		}
	}
	return dedupe(out)
}

// missing gives the wanted labels that r lacks.
func missing(r Runner, want []string) []string {
	var out []string
	for _, w := range want {
		if !hasLabel(r, w) {
			out = append(out, w)
		}
	}
	return out
}

func hasLabel(r Runner, label string) bool {
	for _, l := range r.Labels {
		if strings.EqualFold(l, label) {
			return true
		}
	}
	return false
}

// oneLinePrefix begins a label that is a runner by itself:
// cirun-<cloud>-<instance type>-<image>.
const oneLinePrefix = "cirun-"

// oneLine makes a runner of a one-line label. Which part of it is the cloud,
// which the instance type and which the image only a Mapping can say, because
// each may hold dashes: Resolve does. It is the only label of its runner, as
// nothing says what others that runner would have.
func oneLine(want []string) (Runner, bool) {
	if len(want) != 1 {
		return Runner{}, false
	}
	l := strings.ToLower(want[0])
	rest, ok := strings.CutPrefix(l, oneLinePrefix)
	if !ok || len(l) > 256 || strings.Count(rest, "-") < 2 || strings.Contains("-"+rest+"-", "--") {
		return Runner{}, false
	}
	return Runner{
		Name: want[0], Labels: want, Origin: FromLabel, Line: 1, Path: "runs-on",
		Alternatives: []Alternative{{InstanceType: rest}},
	}, true
}
