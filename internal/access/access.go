// Package access decides whether a job may have a runner, and if not, says why,
// which policy line refused and what would satisfy it. It does no I/O: Needs
// says which facts have to be fetched first, and Decide takes them as values.
package access

import (
	"strings"

	"gpuserver"
	"gpuserver/internal/cirun"
)

// FileState says what is known of an organisation's .access.yml.
type FileState string

// The states of an access file.
const (
	// FileAbsent: there is none. Every runner may be had, except by pull
	// requests from forks, unless the configuration allows them.
	FileAbsent FileState = "absent"
	// FileRead: it was read.
	FileRead FileState = "read"
	// FileLastGood: it cannot be read now; an earlier version is used.
	FileLastGood FileState = "last_good"
	// FileUnreadable: it is there, cannot be read and never could: all is refused.
	FileUnreadable FileState = "unreadable"
)

// Request is all that a decision depends on.
type Request struct {
	// Org is the organisation whose access file it is: the owner of Repo. It is
	// "" for the access section of our own configuration, which is about many
	// owners, so that its policies name repositories as "organisation/name".
	Org      string
	Repo     string // "owner/name"
	Resource string // the name of the runner entry that matched
	Event    string // of the run: "push", "pull_request", …
	Actor    Actor  // the run's triggering actor, never an event's sender
	HeadRepo string // "owner/name"; "" if that repository is gone

	State   FileState
	File    *cirun.Access // with FileRead and FileLastGood
	Problem string        // why the file cannot be read now, with FileLastGood and FileUnreadable
	Version string        // which version FileLastGood is, such as a short SHA or a date

	// AllowForks lets pull requests from forks have runners where there is no
	// access file.
	AllowForks bool

	Facts Facts
}

// Actor is an account on the forge; ID 0 is not known.
type Actor struct {
	Login string
	ID    int64
}

// String names the actor for people.
func (a Actor) String() string {
	if a.Login == "" {
		return "the actor"
	}
	return a.Login
}

// FactKind says what a fact is about.
type FactKind string

// The kinds of facts.
const (
	FactUsers FactKind = "users" // what a users_from_json address holds
	FactRole  FactKind = "role"  // the actor's role on the repository
	FactTeam  FactKind = "team"  // whether the actor is a member of a team
)

// Fact names something that has to be fetched.
type Fact struct {
	Kind FactKind
	Key  string // FactUsers: the address; FactRole: the repository; FactTeam: "organisation/team-slug"
}

// Value is what was fetched for a Fact.
type Value struct {
	Users   []cirun.User // FactUsers
	Role    string       // FactRole: role_name; "" is none
	Member  bool         // FactTeam
	Problem string       // it could not be fetched: why, as a sentence
	Note    string       // it may be old: why, as a sentence
}

// Facts are the facts fetched so far.
type Facts map[Fact]Value

// Decision is the answer to a Request.
type Decision struct {
	Allowed bool
	// Retry says that a refusal rests on something that could not be fetched:
	// decide again later instead of telling the user no.
	Retry  bool
	Reason gpuserver.Reason // why not; zero if allowed
	Policy string           // the policy that allowed it; "" where none was needed
	Where  string           // "file:line" of that policy
	Note   string           // what an operator should know: an old version was used, say
}

// FileRef gives the ref at which a repository's runner file is read: the run's
// own commit, or "" (the default branch) if the head is another repository, so
// that a fork never changes who may run what.
func FileRef(repo, headRepo, headSHA string) string {
	if !strings.EqualFold(repo, headRepo) {
		return ""
	}
	return headSHA
}

// isPull reports whether a run came from a pull request in GitHub's sense.
func (q Request) isPull() bool { return strings.HasPrefix(q.Event, "pull_request") }

// isFork reports whether a run's code comes from another repository. A head
// that is gone counts as one where a pull request was the cause.
func (q Request) isFork() bool {
	if q.HeadRepo == "" {
		return q.isPull()
	}
	return !strings.EqualFold(q.HeadRepo, q.Repo)
}

// needsPull reports whether only policies with pull_request: true count. Code
// from elsewhere counts as a pull request whatever the event is called.
func (q Request) needsPull() bool { return q.isPull() || q.isFork() }

// Needs gives the facts that have to be fetched before Decide can answer, those
// of one policy at a time, the cheapest first; none once it can. Fetch one or
// all of them (a fact that cannot be fetched gets a Value with a Problem), add
// them to q.Facts and ask again.
func Needs(q Request) []Fact {
	if !q.hasFile() {
		return nil
	}
	var best []Fact
	for _, v := range q.verdicts() {
		if v.holds() {
			return nil
		}
		if v.open() && (best == nil || len(v.unknown) < len(best)) {
			best = v.unknown
		}
	}
	return best
}

func (q Request) hasFile() bool {
	return (q.State == FileRead || q.State == FileLastGood) && q.File != nil
}

// Decide says whether the actor may have the resource. Facts that are missing
// count as not fetched: the answer is no, with Retry.
func Decide(q Request) Decision {
	switch {
	case q.State == FileAbsent:
		return q.decideWithoutFile()
	case !q.hasFile():
		return q.unreadable()
	}
	vs := q.verdicts()
	var d Decision
	for _, v := range vs {
		if v.holds() {
			d = Decision{Allowed: true, Policy: v.policy.ID, Where: v.where(), Note: v.note}
			break
		}
	}
	if !d.Allowed {
		d = q.refuse(vs)
	}
	if q.State == FileLastGood {
		note := q.File.Path + " cannot be read now" + because(q.Problem) + "; its last good version" + version(q.Version) + " was used"
		d.Note = strings.Trim(d.Note+"; "+note, "; ")
		if !d.Allowed {
			d.Reason.Text += " (" + note + ".)"
		}
	}
	return d
}

func because(problem string) string {
	if problem == "" {
		return ""
	}
	return " (" + strings.TrimSuffix(problem, ".") + ")"
}

func version(v string) string {
	if v == "" {
		return ""
	}
	return " (" + v + ")"
}

func (q Request) decideWithoutFile() Decision {
	if !q.isFork() || q.AllowForks {
		return Decision{Allowed: true}
	}
	head := q.HeadRepo
	if head == "" {
		head = "a repository that is gone"
	}
	return Decision{Reason: gpuserver.Reason{
		Class: gpuserver.ReasonNoAccess,
		Text: "User not authorized for the requested runners, pull requests from forks are not allowed: the code comes from " +
			head + ", and " + q.owner() + " has no .access.yml that says who may run it.",
		Help: "Push the branch to " + q.Repo + " itself, or add an .access.yml with a policy with pull_request: true to " +
			q.owner() + "/.cirun, or an operator allows forks in the configuration.",
	}}
}

// owner is the part of the repository's name before the slash.
func (q Request) owner() string {
	owner, _, _ := strings.Cut(q.Repo, "/")
	return owner
}

// file names the access file for people who want to change it.
func (q Request) file() string {
	if q.Org == "" {
		return "the access section of the configuration"
	}
	return q.File.Path + " of " + q.Org + "/.cirun"
}

func (q Request) unreadable() Decision {
	return Decision{Note: "the access file cannot be read" + because(q.Problem), Reason: gpuserver.Reason{
		Class: gpuserver.ReasonConfig,
		Text: "User not authorized for the requested runners: the .access.yml of " + q.owner() + " cannot be read" +
			because(q.Problem) + ", and no earlier version of it is known.",
		Help: "Somebody who can write to " + q.owner() + "/.cirun mends .access.yml; `gpuserver cirun lint` finds what is wrong. Then re-run the check.",
	}}
}
