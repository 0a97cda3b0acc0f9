package cirun

import (
	"strings"
)

// labels reads a runner's labels; without a usable one the runner is disabled.
func (r *reader) labels(p pair) ([]string, bool) {
	items, _ := r.texts("labels", p.value)
	var out []string
	for _, it := range items {
		if it.text == "" {
			r.find(it.line, RuleEmptyLabel, "a label is empty; it is ignored")
			continue
		}
		if why := badLabel(it.text); why != "" {
			r.find(it.line, RuleBadLabel, "no job can ask for the label %q: %s", clip(it.text), why)
		}
		out = append(out, it.text)
	}
	r.doubles("label", items)
	if len(out) == 0 {
		r.find(p.line, RuleEmptyLabel, "the runner has no labels, so that no job can ask for it")
	}
	return out, len(out) > 0
}

// badLabel says why no job can ask for a label, or "".
func badLabel(l string) string {
	switch {
	case strings.Contains(l, "--"):
		return "what follows \"--\" in a job's label is not compared"
	case strings.ContainsAny(l, ",\r\n"):
		return "it holds a comma or a line break"
	case len(l) > 256:
		return "GitHub allows 256 characters"
	case strings.EqualFold(l, selfHosted):
		return "\"self-hosted\" is not compared"
	case Hosted(l):
		return "GitHub gives it to a runner of its own"
	}
	return ""
}

// doubles finds repeats and letter-case doubles in a list of texts.
func (r *reader) doubles(what string, items []item) {
	seen := map[string]item{}
	for _, it := range items {
		k := strings.ToLower(it.text)
		if it.text == "" {
			continue
		}
		old, ok := seen[k]
		switch {
		case !ok:
			seen[k] = it
		case old.text == it.text:
			r.find(it.line, RuleDuplicateEntry, "the %s %q stands twice; first on line %d", what, clip(it.text), old.line)
		default:
			r.find(it.line, RuleLetterCase, "the %s %q differs from %q on line %d only in the case of letters",
				what, clip(it.text), clip(old.text), old.line)
		}
	}
}

func (r *reader) checkRunnerNames(runners []Runner) {
	seen := map[string]Runner{}
	for _, ru := range runners {
		k := strings.ToLower(ru.Name)
		old, ok := seen[k]
		switch {
		case !ok:
			seen[k] = ru
		case old.Name == ru.Name:
			r.find(ru.Line, RuleDuplicateRunner, "the runner %q is defined twice; first on line %d. Both are used, one after the other", clip(ru.Name), old.Line)
		default:
			r.find(ru.Line, RuleLetterCase, "the runner %q differs from %q on line %d only in the case of letters", clip(ru.Name), clip(old.Name), old.Line)
		}
	}
}

// checkLabelCase finds labels of different runners that differ only in case.
func (r *reader) checkLabelCase(runners []Runner) {
	type seenLabel struct {
		text string
		line int
	}
	seen := map[string]seenLabel{}
	for _, ru := range runners {
		own := map[string]bool{} // within one runner doubles has found it
		for _, l := range ru.Labels {
			k := strings.ToLower(l)
			old, ok := seen[k]
			if !ok {
				seen[k], own[k] = seenLabel{l, ru.Line}, true
				continue
			}
			if old.text != l && !own[k] {
				r.find(ru.Line, RuleLetterCase, "the label %q differs from %q of the runner on line %d only in the case of letters", clip(l), clip(old.text), old.line)
			}
		}
	}
}
