package cirun

import (
	"fmt"
	"strings"

	"gpuserver"
)

const noRunner = "No runners configuration found after labels filtering: "

// nearMiss says why no runner serves a job, and which one nearly would.
func nearMiss(all []Runner, want []string, files Files) gpuserver.Reason {
	reason := gpuserver.Reason{Class: gpuserver.ReasonNoRunner}
	if len(all) == 0 {
		reason.Text = noRunner + "no runner is defined for this repository."
		reason.Help = "Define one in .cirun.yml of the repository, or in .cirun.global.yml of the organisation's .cirun repository."
		return reason
	}
	for _, w := range want {
		if anyHas(all, w) {
			continue
		}
		reason.Text = noRunner + fmt.Sprintf("no runner has the label %q", clip(w))
		if Hosted(w) {
			reason.Text += ", which is a name of GitHub's own runners."
			reason.Help = "Leave it out of runs-on, or ask for it alone."
			return reason
		}
		label, r := nearest(all, w)
		reason.Text += fmt.Sprintf("; the nearest is %q (runner %s, %s).", clip(label), clip(r.Name), r.Where())
		reason.Help = fmt.Sprintf("Write %q in runs-on, or add the label %q to a runner%s.", clip(label), clip(w), where(files))
		return reason
	}
	best, lacks := all[0], missing(all[0], want)
	for _, r := range all[1:] {
		if m := missing(r, want); len(m) < len(lacks) {
			best, lacks = r, m
		}
	}
	reason.Text = noRunner + fmt.Sprintf("no single runner has all of %s; the nearest is %s (%s), which lacks %s.",
		quoteAll(want), clip(best.Name), best.Where(), quoteAll(lacks))
	reason.Help = fmt.Sprintf("Leave %s out of runs-on, or add it to the labels of %s.", quoteAll(lacks), clip(best.Name))
	return reason
}

// lost says why a runner that is meant is ignored.
func lost(left []ignored, want []string) (gpuserver.Reason, bool) {
	for _, r := range left {
		if len(missing(r.Runner, want)) == 0 {
			return gpuserver.Reason{
				Class: gpuserver.ReasonNoRunner,
				Text:  noRunner + fmt.Sprintf("the runner %s (%s) would serve it, but is ignored, because %s.", clip(r.Name), r.Where(), r.why),
				Help:  fmt.Sprintf("Mend that entry in %s, then re-run the check.", r.Path),
			}, true
		}
	}
	return gpuserver.Reason{}, false
}

func where(files Files) string {
	var paths []string
	for _, f := range []*File{files.Configuration, files.Repository, files.Organisation} {
		if f != nil {
			paths = append(paths, f.Path)
		}
	}
	if len(paths) == 0 {
		return ""
	}
	return " in " + strings.Join(paths, " or ")
}

func quoteAll(labels []string) string {
	var q []string
	for i, l := range labels {
		if i == 8 {
			q = append(q, "…")
			break
		}
		q = append(q, fmt.Sprintf("%q", clip(l)))
	}
	return strings.Join(q, ", ")
}

func anyHas(all []Runner, label string) bool {
	for _, r := range all {
		if hasLabel(r, label) {
			return true
		}
	}
	return false
}

// maxCompared bounds the work for one explanation.
const maxCompared = 5000

// nearest finds the label with the smallest edit distance to want, the first of
// equals.
func nearest(all []Runner, want string) (string, Runner) {
	bestLabel, best, least := all[0].Labels[0], all[0], 1<<30
	compared := 0
	for _, r := range all {
		if compared += len(r.Labels); compared > maxCompared {
			break
		}
		for _, l := range r.Labels {
			if d := distance(l, want, least); d < least {
				bestLabel, best, least = l, r, d
			}
		}
	}
	return bestLabel, best
}

// distance is Levenshtein's, by bytes, without the case of letters and over the
// first 64 of them, at most limit.
func distance(a, b string, limit int) int {
	a, b = strings.ToLower(a[:min(len(a), 64)]), strings.ToLower(b[:min(len(b), 64)])
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}
