package access

import (
	"slices"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/cirun"
)

const usersURL = "https://example.com/users.json"

const accessFile = `version: 1
policies:
  - id: teams
    repo: hello
    teams: [core, GPU Users]
  - id: roles
    repo: octo-org/hello
    roles: [admin, write]
    pull_request: true
  - id: roles-and-list
    repo: hello
    roles: [admin, write]
    users_from_json: https://example.com/users.json
    pull_request: true
  - id: users
    repo: HELLO
    users:
      - Alice
      - {github: bob, id: 42}
  - id: elsewhere
    repo: other
    users: [alice]
  - id: other-org
    repo: evil-org/hello
    users: [alice]
  - id: broken
    repo: hello
    users: [alice]
    roles: {a: b}
  - id: nobody
    repo: hello
    users: []
  - id: users-and-roles
    repo: hello
    roles: [write]
    users: [alice]
  - id: users-and-no-roles
    repo: hello
    roles: []
    users: [alice]
access_control:
  - resource: by-team
    policies: [teams]
  - resource: by-role
    policies: [roles]
  - resource: by-both
    policies: [roles-and-list]
  - resource: by-user
    policies: [users]
  - resource: by-either
    policies: [teams]
  - resource: by-either
    policies: [users, missing]
  - resource: not-here
    policies: [elsewhere, other-org]
  - resource: by-broken
    policies: [broken]
  - resource: by-nobody
    policies: [nobody]
  - resource: by-user-and-role
    policies: [users-and-roles]
  - resource: by-user-and-no-role
    policies: [users-and-no-roles]
`

func parse(t testing.TB, text string) *cirun.Access {
	t.Helper()
	a, _, err := cirun.ParseAccess([]byte(text), ".access.yml")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// request is a push by alice, who is in no team and has no role.
func request(t testing.TB, resource string) Request {
	return Request{
		Org: "octo-org", Repo: "octo-org/hello", HeadRepo: "octo-org/hello", Resource: resource, Event: "push",
		Actor: Actor{Login: "alice", ID: 7}, State: FileRead, File: parse(t, accessFile), Facts: Facts{},
	}
}

var (
	roleFact  = Fact{FactRole, "octo-org/hello"}
	coreFact  = Fact{FactTeam, "octo-org/core"}
	usersFact = Fact{FactTeam, "octo-org/gpu-users"}
	listFact  = Fact{FactUsers, usersURL}
)

func TestDecide(t *testing.T) {
	type change = func(*Request)
	with := func(f Fact, v Value) change { return func(q *Request) { q.Facts[f] = v } }
	actor := func(login string, id int64) change { return func(q *Request) { q.Actor = Actor{login, id} } }
	pull := func(q *Request) { q.Event = "pull_request" }
	fork := func(q *Request) { q.Event, q.HeadRepo = "pull_request", "mallory/hello" }
	state := func(s FileState) change { return func(q *Request) { q.State = s } }
	none := func(q *Request) { q.State, q.File = FileAbsent, nil }
	cases := []struct {
		name, resource string
		changes        []change
		want           string // the policy that allows it, "-" none needed, "" refused
		says           string // part of the refusal
	}{
		{"in the second team", "by-team", []change{with(coreFact, Value{}), with(usersFact, Value{Member: true})}, "teams", ""},
		{"in no team", "by-team", []change{with(coreFact, Value{}), with(usersFact, Value{})}, "", "User not authorized for the requested runners, user not in authorized teams."},
		{"a role", "by-role", []change{with(roleFact, Value{Role: "Write"})}, "roles", ""},
		{"another role", "by-role", []change{with(roleFact, Value{Role: "triage"})}, "", "alice has the role triage on octo-org/hello, not admin or write"},
		{"no role", "by-role", []change{with(roleFact, Value{})}, "", "alice has no role on octo-org/hello"},
		{"role and list", "by-both", []change{with(roleFact, Value{Role: "admin"}), with(listFact, Value{Users: []cirun.User{{Login: "ALICE"}}})}, "roles-and-list", ""},
		{"role without list", "by-both", []change{with(roleFact, Value{Role: "admin"}), with(listFact, Value{})}, "", "User not authorized for the requested runners, user not present in 'users' list."},
		{"list without role", "by-both", []change{with(roleFact, Value{}), with(listFact, Value{Users: []cirun.User{{Login: "alice"}}})}, "", "no role"},
		{"user and role", "by-user-and-role", []change{with(roleFact, Value{Role: "write"})}, "users-and-roles", ""},
		{"user without role", "by-user-and-role", []change{with(roleFact, Value{Role: "read"})}, "", "user does not have an authorized role"},
		{"user and an empty list of roles", "by-user-and-no-role", []change{with(roleFact, Value{Role: "admin"})}, "", "its list is empty"},
		{"a user without case", "by-user", []change{actor("aLiCe", 7)}, "users", ""},
		{"a user renamed", "by-user", []change{actor("robert", 42)}, "users", ""},
		{"a user's name taken over", "by-user", []change{actor("bob", 43)}, "", "the list has bob with id 42, but the account's id is 43"},
		{"a user whose id is not known", "by-user", []change{actor("bob", 0)}, "users", ""},
		{"not a user", "by-user", []change{actor("eve", 1)}, "", "user not present in 'users' list."},
		{"nobody's name", "by-user", []change{actor("", 0)}, "", "user not present in 'users' list."},
		{"the second grant", "by-either", nil, "users", ""},
		{"policies of other repositories", "not-here", nil, "", "no policy attached to the runner not-here (.access.yml:54) is for the repository octo-org/hello."},
		{"a broken policy", "by-broken", nil, "", "the policy cannot be used"},
		{"an empty list", "by-nobody", nil, "", "user not present in 'users' list."},
		{"no grant", "unheard", nil, "", "no policy grants the runner unheard to anybody"},
		{"a grant in another case", "By-User", nil, "", "names by-user, which differs in the case of letters"},
		{"pull request", "by-role", []change{pull, with(roleFact, Value{Role: "write"})}, "roles", ""},
		{"pull request of a fork", "by-role", []change{fork, with(roleFact, Value{Role: "write"})}, "roles", ""},
		{"pull request not allowed", "by-user", []change{pull}, "", "pull requests are not allowed"},
		{"code from elsewhere by another event", "by-user", []change{func(q *Request) { q.HeadRepo = "mallory/hello" }}, "", "pull requests are not allowed"},
		{"pull request target", "by-user", []change{func(q *Request) { q.Event = "pull_request_target" }}, "", "pull requests are not allowed"},
		{"a push whose head is not told", "by-user", []change{func(q *Request) { q.HeadRepo = "" }}, "users", ""},
		{"last good file", "by-user", []change{state(FileLastGood)}, "users", ""},
		{"last good file refuses", "by-user", []change{state(FileLastGood), actor("eve", 1)}, "", "its last good version"},
		{"unreadable file", "by-user", []change{state(FileUnreadable), func(q *Request) { q.File = nil }}, "", "cannot be read"},
		{"a state without its file", "by-user", []change{func(q *Request) { q.File = nil }}, "", "cannot be read"},
		{"no state", "by-user", []change{state("")}, "", "cannot be read"},
		{"no file", "by-user", []change{none}, "-", ""},
		{"no file, own pull request", "by-user", []change{none, pull}, "-", ""},
		{"no file, fork", "by-user", []change{none, fork}, "", "pull requests from forks are not allowed"},
		{"no file, fork gone", "by-user", []change{none, pull, func(q *Request) { q.HeadRepo = "" }}, "", "a repository that is gone"},
		{"no file, forks allowed", "by-user", []change{none, fork, func(q *Request) { q.AllowForks = true }}, "-", ""},
		{"the configuration's own, by bare name", "by-user", []change{func(q *Request) { q.Org = "" }}, "", "is for the repository octo-org/hello"},
		{"the configuration's own, by full name", "by-role", []change{func(q *Request) { q.Org = "" }, with(roleFact, Value{Role: "write"})}, "roles", ""},
	}
	for _, c := range cases {
		q := request(t, c.resource)
		for _, f := range c.changes {
			f(&q)
		}
		d := Decide(q)
		got := d.Policy
		if d.Allowed && got == "" {
			got = "-"
		}
		if got != c.want || !strings.Contains(d.Reason.Text, c.says) || d.Allowed != (d.Reason == gpuserver.Reason{}) {
			t.Errorf("%s: %+v", c.name, d)
		}
		if !d.Allowed && d.Reason.Help == "" {
			t.Errorf("%s: nothing says what would satisfy it: %+v", c.name, d)
		}
	}
}

func TestRefusalNamesPolicyAndRemedy(t *testing.T) {
	q := request(t, "by-either")
	q.Actor = Actor{Login: "eve", ID: 9}
	q.Facts[coreFact], q.Facts[usersFact] = Value{}, Value{}
	d := Decide(q)
	wantText := "User not authorized for the requested runners, user not in authorized teams. Runner by-either: " +
		"policy teams at .access.yml:3: eve is not in team core or GPU Users; policy users at .access.yml:15: eve is not in its users."
	wantHelp := "To satisfy it: add eve to team core or GPU Users; or add eve to its users."
	if d.Reason.Text != wantText || d.Reason.Help != wantHelp || d.Reason.Class != gpuserver.ReasonNoAccess || d.Retry {
		t.Errorf("got %+v", d)
	}
}

// TestSecretOfAnAddressIsNotTold keeps what follows the path of a list's address
// out of what everybody can read.
func TestSecretOfAnAddressIsNotTold(t *testing.T) {
	q := request(t, "by-both")
	q.File = parse(t, strings.Replace(accessFile, usersURL, usersURL+"?token=s3cret#x", 1))
	list := Fact{FactUsers, usersURL + "?token=s3cret#x"}
	for _, v := range []Value{{}, {Problem: "it does not answer"}} {
		q.Facts = Facts{roleFact: {Role: "write"}, list: v}
		r := Decide(q).Reason
		if all := r.Text + r.Help; strings.Contains(all, "s3cret") || !strings.Contains(all, "the list "+usersURL+"?…") {
			t.Errorf("it says %q", all)
		}
	}
}

func TestNeedsAsksForNothingIdle(t *testing.T) {
	cases := []struct {
		name, resource string
		change         func(*Request)
		want           []Fact
	}{
		{"users are in the file", "by-user", nil, nil},
		{"one policy holds already", "by-either", nil, nil},
		{"no grant", "unheard", nil, nil},
		{"teams", "by-team", nil, []Fact{coreFact, usersFact}},
		{"teams after the first", "by-team", func(q *Request) { q.Facts[coreFact] = Value{} }, []Fact{usersFact}},
		{"one team is enough", "by-team", func(q *Request) { q.Facts[coreFact] = Value{Member: true} }, nil},
		{"role", "by-role", nil, []Fact{roleFact}},
		{"no role of somebody who is no user", "by-user-and-role", func(q *Request) { q.Actor = Actor{Login: "eve"} }, nil},
		{"the list before the role", "by-both", nil, []Fact{listFact, roleFact}},
		{"no role once the list refuses", "by-both", func(q *Request) { q.Facts[listFact] = Value{} }, nil},
		{"pull requests are refused at once", "by-team", func(q *Request) { q.Event = "pull_request" }, nil},
		{"teams of somebody else's list", "by-either", func(q *Request) { q.Actor = Actor{Login: "eve"} }, []Fact{coreFact, usersFact}},
		{"no file", "by-team", func(q *Request) { q.State, q.File = FileAbsent, nil }, nil},
		{"unreadable", "by-team", func(q *Request) { q.State = FileUnreadable }, nil},
	}
	for _, c := range cases {
		q := request(t, c.resource)
		if c.change != nil {
			c.change(&q)
		}
		if got := Needs(q); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

// TestUnfetchedFactsAreNotARefusal shows that a forge that cannot be reached
// does not tell a user no.
func TestUnfetchedFactsAreNotARefusal(t *testing.T) {
	for _, resource := range []string{"by-team", "by-role", "by-both"} {
		q := request(t, resource)
		for {
			facts := Needs(q)
			if len(facts) == 0 {
				break
			}
			for _, f := range facts {
				q.Facts[f] = Value{Problem: "the forge does not answer."}
			}
		}
		d := Decide(q)
		if d.Allowed || !d.Retry || d.Reason.Class != gpuserver.ReasonUnreachable || !strings.Contains(d.Reason.Text, "the forge does not answer") {
			t.Errorf("%s: %+v", resource, d)
		}
		if d := Decide(request(t, resource)); d.Allowed || !d.Retry {
			t.Errorf("%s without its facts: %+v", resource, d)
		}
	}
	q := request(t, "by-both")
	q.Facts[listFact] = Value{}
	q.Facts[roleFact] = Value{Problem: "x"}
	if d := Decide(q); d.Allowed || d.Retry {
		t.Errorf("what is refused anyhow is to be tried again: %+v", d)
	}
}

func TestOldFactsAreTold(t *testing.T) {
	q := request(t, "by-both")
	q.State, q.Problem, q.Version = FileLastGood, "line 3 is not YAML.", "3fa9c1"
	q.Facts[listFact] = Value{Users: []cirun.User{{ID: 7}}, Note: "the list is of yesterday"}
	q.Facts[roleFact] = Value{Role: "write"}
	d := Decide(q)
	want := "the list is of yesterday; .access.yml cannot be read now (line 3 is not YAML); its last good version (3fa9c1) was used"
	if !d.Allowed || d.Note != want {
		t.Errorf("got %+v", d)
	}
}

func TestFileRef(t *testing.T) {
	for _, c := range []struct{ repo, head, want string }{
		{"o/r", "o/r", "abc"}, {"o/r", "O/R", "abc"}, {"o/r", "mallory/r", ""}, {"o/r", "", ""},
	} {
		if got := FileRef(c.repo, c.head, "abc"); got != c.want {
			t.Errorf("FileRef(%q, %q) = %q", c.repo, c.head, got)
		}
	}
}
