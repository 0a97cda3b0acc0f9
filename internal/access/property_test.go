package access

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gpuserver/internal/cirun"
)

// drawPolicy draws a policy with any kinds.
func drawPolicy(t *rapid.T, id string) cirun.Policy {
	people := rapid.SampledFrom([]string{"alice", "BOB", "eve"})
	p := cirun.Policy{
		ID: id, Path: "a", Line: 1, PullRequest: rapid.Bool().Draw(t, "pull_request"),
		Repo: rapid.SampledFrom([]string{"hello", "octo-org/hello", "HELLO", "other"}).Draw(t, "repo"),
	}
	if rapid.Bool().Draw(t, "has users") {
		p.Users.Given = true
		for _, l := range rapid.SliceOfN(people, 0, 2).Draw(t, "users") {
			p.Users.Users = append(p.Users.Users, cirun.User{Login: l, ID: rapid.Int64Range(0, 2).Draw(t, "id")})
		}
	}
	if rapid.Bool().Draw(t, "has roles") {
		p.Roles = cirun.List{Given: true, Names: rapid.SliceOfN(rapid.SampledFrom([]string{"write", "Admin"}), 0, 2).Draw(t, "roles")}
	}
	if rapid.Bool().Draw(t, "has teams") {
		p.Teams = cirun.List{Given: true, Names: rapid.SliceOfN(rapid.SampledFrom([]string{"core", "GPU"}), 0, 2).Draw(t, "teams")}
	}
	if rapid.Bool().Draw(t, "has list") {
		p.UsersFromJSON = usersURL
	}
	if rapid.IntRange(0, 9).Draw(t, "disabled") == 0 || !p.Users.Given && !p.Roles.Given && !p.Teams.Given && p.UsersFromJSON == "" {
		p.Disabled = "it cannot be read"
	}
	return p
}

func drawRequest(t *rapid.T) Request {
	a := &cirun.Access{Path: "a"}
	g := cirun.Grant{Resource: "r", Line: 9}
	for i := range rapid.IntRange(0, 3).Draw(t, "policies") {
		p := drawPolicy(t, fmt.Sprint("p", i))
		a.Policies = append(a.Policies, p)
		if rapid.Bool().Draw(t, "attached") {
			g.Policies = append(g.Policies, cirun.PolicyRef{ID: p.ID})
		}
	}
	a.Grants = []cirun.Grant{g}
	return Request{
		Org: "octo-org", Repo: "octo-org/hello", Resource: "r", State: FileRead, File: a, Facts: Facts{},
		HeadRepo: rapid.SampledFrom([]string{"octo-org/hello", "mallory/hello", ""}).Draw(t, "head"),
		Event:    rapid.SampledFrom([]string{"push", "pull_request", "schedule"}).Draw(t, "event"),
		Actor:    Actor{Login: rapid.SampledFrom([]string{"alice", "bob", "eve"}).Draw(t, "actor"), ID: rapid.Int64Range(0, 2).Draw(t, "actor id")},
	}
}

func drawValue(t *rapid.T) Value {
	return Value{
		Role: rapid.SampledFrom([]string{"", "write", "admin", "read"}).Draw(t, "role"), Member: rapid.Bool().Draw(t, "member"),
		Users: []cirun.User{{Login: rapid.SampledFrom([]string{"Alice", "x"}).Draw(t, "listed")}},
	}
}

// fetch answers all needs like a forge that has drawn its answers beforehand.
func fetch(t *rapid.T, q Request, world Facts) Request {
	q.Facts = Facts{}
	for range 20 {
		facts := Needs(q)
		if len(facts) == 0 {
			return q
		}
		for _, f := range facts {
			if _, ok := q.Facts[f]; ok {
				t.Fatalf("%v is asked for again", f)
			}
			if _, ok := world[f]; !ok {
				world[f] = drawValue(t)
			}
			q.Facts[f] = world[f]
		}
	}
	t.Fatal("the needs do not end")
	return q
}

// allows is the rule in its plainest form, with all facts at hand.
func allows(q Request, world Facts) bool {
	is := func(u cirun.User) bool {
		if u.ID != 0 && q.Actor.ID != 0 {
			return u.ID == q.Actor.ID
		}
		return strings.EqualFold(u.Login, q.Actor.Login)
	}
	for _, p := range q.File.Policies {
		attached := slices.ContainsFunc(q.File.Grants[0].Policies, func(r cirun.PolicyRef) bool { return r.ID == p.ID })
		pull := q.Event == "pull_request" || q.HeadRepo == "mallory/hello"
		user := slices.ContainsFunc(p.Users.Users, is)
		role := slices.ContainsFunc(p.Roles.Names, func(r string) bool { return strings.EqualFold(r, world[roleFact].Role) })
		team := slices.ContainsFunc(p.Teams.Names, func(n string) bool { return world[Fact{FactTeam, "octo-org/" + strings.ToLower(n)}].Member })
		list := slices.ContainsFunc(world[listFact].Users, is)
		if attached && p.Disabled == "" && p.Repo != "other" && (!pull || p.PullRequest) && (!p.Users.Given || user) &&
			(!p.Roles.Given || role) && (!p.Teams.Given || team) && (p.UsersFromJSON == "" || list) {
			return true
		}
	}
	return false
}

// TestDecideProperties says what holds for every file, actor and forge.
func TestDecideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		world := Facts{}
		q := fetch(t, drawRequest(t), world)
		d := Decide(q)
		if d.Retry {
			t.Fatalf("all is fetched and nothing failed, yet it is to be tried again: %+v", d)
		}
		if d.Allowed == (d.Reason.Text != "") || d.Allowed == (d.Reason.Help != "") {
			t.Fatalf("a refusal has a reason and a remedy, a grant has none: %+v", d)
		}

		all := Facts{}
		for _, f := range []Fact{roleFact, listFact, coreFact, {FactTeam, "octo-org/gpu"}} {
			if _, ok := world[f]; !ok {
				world[f] = drawValue(t)
			}
			all[f] = world[f]
		}
		if want := allows(q, all); d.Allowed != want {
			t.Fatalf("the plain rule says %v: %+v", want, d)
		}

		lazy := q
		lazy.Facts = world
		if Decide(lazy).Allowed != d.Allowed {
			t.Fatal("more facts than were needed change the decision")
		}

		flipped := q
		flipped.Actor.Login = strings.ToUpper(q.Actor.Login)
		flipped.HeadRepo = strings.ToUpper(q.HeadRepo)
		if flipped = fetch(t, flipped, world); Decide(flipped).Allowed != d.Allowed {
			t.Fatal("the case of letters changes the decision")
		}

		more := q
		file := *q.File
		p := drawPolicy(t, "extra")
		file.Policies = append(slices.Clone(file.Policies), p)
		file.Grants = append(slices.Clone(file.Grants), cirun.Grant{Resource: "r", Policies: []cirun.PolicyRef{{ID: "extra"}}})
		more.File = &file
		if got := Decide(fetch(t, more, world)); d.Allowed && !got.Allowed {
			t.Fatalf("one more grant refuses: %+v", got)
		}

		fork := q
		fork.Event, fork.HeadRepo = "pull_request", "mallory/hello"
		if got := Decide(fetch(t, fork, world)); got.Allowed && !d.Allowed {
			t.Fatalf("a fork gets what was refused otherwise: %+v", got)
		}
	})
}
