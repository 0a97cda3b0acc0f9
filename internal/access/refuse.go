package access

import (
	"fmt"
	"strings"

	"gpuserver"
)

// The sentence that users of Cirun know; what follows the comma differs.
const notAuthorized = "User not authorized for the requested runners, "

// maxTold bounds how many policies one refusal explains.
const maxTold = 4

// refuse explains why no policy holds.
func (q Request) refuse(vs []verdict) Decision {
	d := Decision{Reason: gpuserver.Reason{Class: gpuserver.ReasonNoAccess}}
	if len(vs) == 0 {
		d.Reason.Text, d.Reason.Help = q.noPolicy()
		return d
	}
	d.Retry = mayHoldLater(vs)
	if d.Retry {
		d.Reason.Class = gpuserver.ReasonUnreachable
	}
	lead := told(vs)
	var details, remedies []string
	for i, v := range vs {
		if i == maxTold {
			details = append(details, fmt.Sprintf("%d more policies refuse too", len(vs)-i))
			break
		}
		detail, remedy := v.explain()
		details = append(details, fmt.Sprintf("policy %s at %s: %s", v.policy.ID, v.where(), detail))
		remedies = append(remedies, remedy)
	}
	d.Reason.Text = fmt.Sprintf("%s%s. Runner %s: %s.", notAuthorized, lead, q.Resource, strings.Join(details, "; "))
	d.Reason.Help = "To satisfy it: " + strings.Join(remedies, "; or ") + "."
	return d
}

// mayHoldLater reports whether some policy fails only by what could not be
// fetched.
func mayHoldLater(vs []verdict) bool {
	for _, v := range vs {
		later := true
		for _, f := range v.failed {
			later = later && f.problem
		}
		if later {
			return true
		}
	}
	return false
}

// told picks the end of the sentence that users know: of the policy that fails
// by the least.
func told(vs []verdict) string {
	best := vs[0]
	for _, v := range vs[1:] {
		if len(v.failed) > 0 && len(v.failed) < len(best.failed) {
			best = v
		}
	}
	if len(best.failed) == 0 {
		return "it could not be checked"
	}
	return best.failed[0].known
}

// explain says what of a policy does not hold and what would satisfy it.
func (v verdict) explain() (detail, remedy string) {
	var ds, rs []string
	for _, f := range v.failed {
		ds = append(ds, f.detail)
		rs = append(rs, f.remedy)
	}
	if len(ds) == 0 {
		return "not checked yet", "wait: it is checked again"
	}
	return strings.Join(ds, ", and "), strings.Join(rs, " and ")
}

// noPolicy explains a resource that no policy of the repository is attached to,
// and finds the near misses: another letter case, a policy of the repository
// that is attached elsewhere.
func (q Request) noPolicy() (text, help string) {
	path := q.File.Path
	line, granted := 0, false
	for _, g := range q.File.Grants {
		if g.Resource == q.Resource {
			line, granted = g.Line, true
			break
		}
	}
	name := q.Repo
	if q.Org != "" {
		name = q.Repo[strings.LastIndexByte(q.Repo, '/')+1:]
	}
	if !granted {
		text = fmt.Sprintf("%sno policy grants the runner %s to anybody (%s has no resource of that name).", notAuthorized, q.Resource, path)
		for _, g := range q.File.Grants {
			if strings.EqualFold(g.Resource, q.Resource) {
				text += fmt.Sprintf(" Line %d names %s, which differs in the case of letters.", g.Line, g.Resource)
				break
			}
		}
		return text, fmt.Sprintf("To satisfy it: add \"resource: %s\" with a policy for %s to access_control in %s.", q.Resource, name, q.file())
	}
	text = fmt.Sprintf("%sno policy attached to the runner %s (%s:%d) is for the repository %s.", notAuthorized, q.Resource, path, line, q.Repo)
	help = fmt.Sprintf("To satisfy it: add a policy for %s to %s and attach it to %s.", name, q.file(), q.Resource)
	for _, p := range q.File.Policies {
		if q.isAbout(p) {
			help = fmt.Sprintf("To satisfy it: attach the policy %s (%s:%d), which is for this repository, to %s in %s.",
				p.ID, p.Path, p.Line, q.Resource, q.file())
			break
		}
	}
	return text, help
}
