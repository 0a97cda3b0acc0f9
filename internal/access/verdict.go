package access

import (
	"fmt"
	"slices"
	"strings"

	"gpuserver/internal/cirun"
)

// verdict is how one policy judges a request. It holds if nothing failed and
// nothing is unknown; it is open if nothing failed yet.
type verdict struct {
	policy  cirun.Policy
	unknown []Fact    // to be fetched, cheapest first
	failed  []failure // what does not hold, in the order in which it is told
	note    string    // facts that may be old
}

// failure is one condition that does not hold.
type failure struct {
	known   string // the end of the sentence that users know
	detail  string // with names
	remedy  string // what would satisfy it
	problem bool   // it could not be fetched
}

func (v verdict) holds() bool { return len(v.failed) == 0 && len(v.unknown) == 0 }
func (v verdict) open() bool  { return len(v.failed) == 0 && len(v.unknown) > 0 }
func (v verdict) where() string {
	return fmt.Sprintf("%s:%d", v.policy.Path, v.policy.Line)
}

// verdicts judges by every policy that is attached to the resource and about
// the repository, in the file's order, each once.
func (q Request) verdicts() []verdict {
	var out []verdict
	for _, p := range q.attached() {
		if q.isAbout(p) {
			out = append(out, q.judge(p))
		}
	}
	return out
}

// attached gives the policies attached to the resource, each once. References
// to policies that do not exist are left out.
func (q Request) attached() []cirun.Policy {
	policies := map[string]cirun.Policy{}
	for _, p := range q.File.Policies {
		policies[p.ID] = p
	}
	var out []cirun.Policy
	seen := map[string]bool{}
	for _, g := range q.File.Grants {
		if g.Resource != q.Resource {
			continue
		}
		for _, ref := range g.Policies {
			if p, ok := policies[ref.ID]; ok && !seen[ref.ID] {
				seen[ref.ID] = true
				out = append(out, p)
			}
		}
	}
	return out
}

// isAbout reports whether a policy is about the request's repository. A policy
// names it with or without its organisation; another organisation's repository
// of that name is not meant.
func (q Request) isAbout(p cirun.Policy) bool {
	if strings.Contains(p.Repo, "/") {
		return strings.EqualFold(p.Repo, q.Repo)
	}
	return q.Org != "" && strings.EqualFold(q.Org+"/"+p.Repo, q.Repo)
}

func (q Request) judge(p cirun.Policy) verdict {
	v := verdict{policy: p}
	if p.Disabled != "" {
		v.failed = append(v.failed, failure{known: "the policy cannot be used", detail: p.Disabled, remedy: "mend the policy"})
		return v
	}
	if q.needsPull() && !p.PullRequest {
		v.failed = append(v.failed, failure{
			known: "pull requests are not allowed", detail: "the policy is not for pull requests",
			remedy: "set pull_request: true in the policy, or push to a branch of " + q.Repo,
		})
	}
	if p.Users.Given {
		q.judgeUsers(&v)
	}
	if p.UsersFromJSON != "" {
		q.judgeList(&v)
	}
	if p.Roles.Given {
		q.judgeRoles(&v)
	}
	if p.Teams.Given {
		q.judgeTeams(&v)
	}
	return v
}

func (q Request) isIn(users []cirun.User) bool {
	return slices.ContainsFunc(users, func(u cirun.User) bool { return u.Is(q.Actor.Login, q.Actor.ID) })
}

const notInUsers = "user not present in 'users' list"

func (q Request) judgeUsers(v *verdict) {
	if q.isIn(v.policy.Users.Users) {
		return
	}
	v.failed = append(v.failed, failure{
		known: notInUsers, detail: q.Actor.String() + " is not in its users" + q.namesake(v.policy.Users.Users),
		remedy: "add " + q.Actor.String() + " to its users",
	})
}

// namesake says that a login matches and the id does not: the account was made
// anew or renamed.
func (q Request) namesake(users []cirun.User) string {
	for _, u := range users {
		if q.Actor.Login != "" && strings.EqualFold(u.Login, q.Actor.Login) {
			return fmt.Sprintf(" (the list has %s with id %d, but the account's id is %d)", u.Login, u.ID, q.Actor.ID)
		}
	}
	return ""
}

func (q Request) judgeList(v *verdict) {
	f := Fact{FactUsers, v.policy.UsersFromJSON}
	list := "the list " + cirun.ShownAddress(f.Key)
	val, ok := q.fetched(v, f, list)
	if !ok || q.isIn(val.Users) {
		return
	}
	v.failed = append(v.failed, failure{
		known: notInUsers, detail: q.Actor.String() + " is not in " + list + q.namesake(val.Users),
		remedy: "add " + q.Actor.String() + " to " + list,
	})
}

func (q Request) judgeRoles(v *verdict) {
	f := Fact{FactRole, q.Repo}
	names := v.policy.Roles.Names
	val, ok := q.fetched(v, f, "the role of "+q.Actor.String()+" on "+q.Repo)
	if !ok || containsFold(names, val.Role) {
		return
	}
	has := "has no role"
	if val.Role != "" {
		has = "has the role " + val.Role
	}
	v.failed = append(v.failed, failure{
		known:  "user does not have an authorized role",
		detail: fmt.Sprintf("%s %s on %s, not %s", q.Actor, has, q.Repo, either(names)),
		remedy: fmt.Sprintf("give %s the role %s on %s", q.Actor, either(names), q.Repo),
	})
}

// judgeTeams is satisfied by one team; it asks for one more only while no
// membership is known.
func (q Request) judgeTeams(v *verdict) {
	var unknown []Fact
	var notes, problems []string
	for _, t := range v.policy.Teams.Names {
		f := Fact{FactTeam, q.team(t)}
		val, ok := q.Facts[f]
		switch {
		case !ok:
			if !slices.Contains(unknown, f) {
				unknown = append(unknown, f)
			}
		case val.Problem != "":
			problems = append(problems, "team "+t+": "+val.Problem)
		case val.Member:
			v.addNote(val.Note)
			return
		case val.Note != "":
			notes = append(notes, val.Note)
		}
	}
	for _, n := range notes {
		v.addNote(n)
	}
	switch {
	case len(unknown) > 0:
		v.unknown = append(v.unknown, unknown...)
	case len(problems) > 0:
		v.failed = append(v.failed, unfetched("the teams of "+q.Actor.String(), strings.Join(problems, "; ")))
	default:
		v.failed = append(v.failed, failure{
			known:  "user not in authorized teams",
			detail: fmt.Sprintf("%s is not in %s", q.Actor, teams(v.policy.Teams.Names)),
			remedy: fmt.Sprintf("add %s to %s", q.Actor, teams(v.policy.Teams.Names)),
		})
	}
}

// team gives a team's key: its organisation and its slug, which is its name in
// lower case with dashes for spaces.
func (q Request) team(name string) string {
	org, slug, ok := strings.Cut(strings.TrimPrefix(name, "@"), "/")
	if !ok {
		org, slug = q.owner(), org
	}
	return strings.ToLower(org + "/" + strings.Join(strings.Fields(slug), "-"))
}

// fetched gives a fact's value; ok is false if it is not known (yet).
func (q Request) fetched(v *verdict, f Fact, what string) (Value, bool) {
	val, ok := q.Facts[f]
	switch {
	case !ok:
		v.unknown = append(v.unknown, f)
		return val, false
	case val.Problem != "":
		v.failed = append(v.failed, unfetched(what, val.Problem))
		return val, false
	}
	v.addNote(val.Note)
	return val, true
}

func unfetched(what, problem string) failure {
	return failure{
		known:  "it could not be checked",
		detail: what + " cannot be read (" + strings.TrimSuffix(problem, ".") + ")",
		remedy: "wait: it is tried again", problem: true,
	}
}

func (v *verdict) addNote(n string) {
	if n != "" {
		v.note = strings.Trim(v.note+"; "+n, "; ")
	}
}

func containsFold(list []string, s string) bool {
	return s != "" && slices.ContainsFunc(list, func(x string) bool { return strings.EqualFold(x, s) })
}

func either(names []string) string {
	if len(names) == 0 {
		return "any (its list is empty)"
	}
	return strings.Join(names, " or ")
}

func teams(names []string) string {
	if len(names) == 0 {
		return "any team (its list is empty)"
	}
	return "team " + strings.Join(names, " or ")
}
