package cirun

import (
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Access is what an .access.yml says: who may have which runner.
type Access struct {
	Path     string
	Policies []Policy
	Grants   []Grant
}

// Policy says which actors of one repository are meant. All kinds that are
// given (teams, roles, users, users_from_json) have to hold.
type Policy struct {
	ID            string
	Path          string
	Line          int
	Repo          string // "name", or "organisation/name"
	Teams         List
	Roles         List
	Users         UserList
	UsersFromJSON string // https address; "" is not given
	PullRequest   bool   // also for pull-request events
	// Disabled says why the policy cannot be used and so grants nothing; "" is
	// a usable policy.
	Disabled string
}

// List is a list of names that may not be given at all.
type List struct {
	Given bool
	Names []string
}

// UserList is a list of users that may not be given at all.
type UserList struct {
	Given bool
	Users []User
}

// User is an account of the forge. The id outlives renames: where both sides
// know it, it alone counts.
type User struct {
	Login string
	ID    int64 // 0: not known
}

// Is reports whether u is the account with that login and id (0: not known).
// Logins are compared without the case of letters, as GitHub does.
func (u User) Is(login string, id int64) bool {
	if u.ID != 0 && id != 0 {
		return u.ID == id
	}
	return u.Login != "" && strings.EqualFold(u.Login, login)
}

// Grant attaches policies to a runner. A resource may have several grants.
type Grant struct {
	Resource string
	Line     int
	Policies []PolicyRef
}

// PolicyRef names a policy.
type PolicyRef struct {
	ID   string
	Line int
}

// Policy finds a policy by its id.
func (a *Access) Policy(id string) (Policy, bool) {
	for _, p := range a.Policies {
		if p.ID == id {
			return p, true
		}
	}
	return Policy{}, false
}

// ParseAccess reads an .access.yml, as Parse reads a runner file. An empty file
// is an Access that grants nothing.
func ParseAccess(data []byte, path string) (*Access, []Finding, error) {
	r := &reader{path: path}
	a := &Access{Path: path}
	root, err := r.root(data)
	if err != nil {
		return nil, SortFindings(r.findings), err
	}
	if root == nil {
		r.find(1, RuleEmptyFile, "the file is empty: it grants nothing to anybody")
		return a, r.findings, nil
	}
	ps, _ := r.pairs(root)
	for _, p := range ps {
		switch p.key {
		case "version":
			if p.value.Kind != yaml.ScalarNode || p.value.Value != "1" {
				r.find(p.line, RuleVersion, "the version has to be 1, not %s; the file is read as version 1", kindName(p.value))
			}
		case "policies":
			a.Policies = r.policies(p.value)
		case "access_control":
			a.Grants = r.grants(p.value)
		default:
			r.find(p.line, RuleUnknownKey, "the key %q is not known here and is ignored; known are version, policies and access_control", clip(p.key))
		}
	}
	if len(a.Grants) == 0 {
		r.find(root.Line, RuleEmptyFile, "access_control grants nothing to anybody")
	}
	r.checkPolicies(a)
	return a, SortFindings(r.findings), nil
}

func (r *reader) policies(n *yaml.Node) []Policy {
	nodes, _ := r.list("policies", n)
	var out []Policy
	seen := map[string]Policy{}
	for _, c := range nodes {
		p, ok := r.policy(c)
		if !ok {
			continue
		}
		k := strings.ToLower(p.ID)
		old, dup := seen[k]
		switch {
		case !dup:
			seen[k] = p
		case old.ID == p.ID:
			r.find(p.Line, RuleDuplicatePolicy, "the policy %q is defined twice; only the one on line %d is used", clip(p.ID), old.Line)
			continue
		default:
			r.find(p.Line, RuleLetterCase, "the policy %q differs from %q on line %d only in the case of letters", clip(p.ID), clip(old.ID), old.Line)
		}
		out = append(out, p)
	}
	return out
}

// policy reads one policy; what is wrong in it disables it, but keeps it, so
// that a refusal can name it. ok is false if it has no id.
func (r *reader) policy(n *yaml.Node) (Policy, bool) {
	p := Policy{Path: r.path, Line: n.Line}
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "a policy has to be a mapping, not %s; it is disabled", kindName(n))
		return p, false
	}
	ps, dup := r.pairs(n)
	if dup {
		p.disable("a key stands twice in it")
	}
	for _, q := range ps {
		r.policyKey(&p, q)
	}
	if p.ID == "" {
		r.find(n.Line, RuleMissingKey, "a policy has no id; it is disabled")
		return p, false
	}
	if p.Repo == "" {
		p.disable("it names no repository")
		r.find(n.Line, RuleMissingKey, "the policy %q names no repo; it is disabled", clip(p.ID))
	}
	if !p.Teams.Given && !p.Roles.Given && !p.Users.Given && p.UsersFromJSON == "" {
		if p.Disabled == "" {
			r.find(n.Line, RuleOpenPolicy, "the policy %q names neither teams, roles nor users, and so grants nothing", clip(p.ID))
		}
		p.disable("it names neither teams, roles nor users")
	}
	return p, true
}

func (p *Policy) disable(why string) {
	if p.Disabled == "" {
		p.Disabled = why
	}
}

var repoForm = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9-]*/)?[A-Za-z0-9._-]+$`)

// policyKey reads one key of a policy. An unknown key is a finding only, except
// where it looks like a condition: without it the policy would let in more
// people than were meant.
func (r *reader) policyKey(p *Policy, q pair) {
	ok := true
	switch q.key {
	case "id":
		p.ID, ok = r.needText("id", q.value)
	case "repo":
		p.Repo, ok = r.needText("repo", q.value)
		if ok && !repoForm.MatchString(p.Repo) {
			ok = false
			r.find(q.line, RuleBadRepo, "the repository %q has to be \"name\" or \"organisation/name\"", clip(p.Repo))
		}
	case "teams":
		p.Teams, ok = r.names("team", q)
	case "roles":
		p.Roles, ok = r.names("role", q)
		r.checkRoles(p.Roles, q)
	case "users":
		p.Users, ok = r.users(q)
	case "users_from_json":
		if !isNull(q.value) {
			p.UsersFromJSON, ok = r.address(q)
		}
	case "pull_request":
		if !isNull(q.value) {
			p.PullRequest, ok = r.truth("pull_request", q.value)
		}
	default:
		if meant := resembles(q.key, "teams", "roles", "users", "users_from_json"); meant != "" {
			p.disable("the key " + clip(q.key) + " is not known")
			r.find(q.line, RuleUnknownKey, "the key %q of a policy is not known; it looks like %s, and so the policy is disabled", clip(q.key), meant)
			return
		}
		r.find(q.line, RuleUnknownKey, "the key %q of a policy is not known and is ignored", clip(q.key))
	}
	if !ok {
		p.disable(q.key + " cannot be read")
		r.find(q.line, RuleWrongType, "the policy is disabled, because its %s cannot be read", q.key)
	}
}

// resembles gives the first of words that a misspelt key may stand for, or "".
func resembles(key string, words ...string) string {
	for _, w := range words {
		if distance(key, w, 3) < 3 {
			return w
		}
	}
	return ""
}

func (r *reader) address(q pair) (string, bool) {
	s, ok := r.needText(q.key, q.value)
	if !ok {
		return "", false
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		r.find(q.line, RuleBadURL, "users_from_json has to be an https address without a password, not %q", clip(s))
		return "", false
	}
	return s, true
}

// ShownAddress gives an address as it may be told to anybody: what follows its
// path may be a secret.
func ShownAddress(address string) string {
	shown, _, cut := strings.Cut(address, "?")
	if shown, _, _ = strings.Cut(shown, "#"); cut {
		shown += "?…"
	}
	return shown
}

// names reads a list of teams or roles.
func (r *reader) names(what string, q pair) (List, bool) {
	items, ok := r.texts(q.key, q.value)
	r.doubles(what, items)
	l := List{Given: true}
	for _, it := range items {
		if it.text == "" {
			r.find(it.line, RuleEmptyList, "a %s is empty", what)
			continue
		}
		l.Names = append(l.Names, it.text)
	}
	r.emptyList(what, q, len(l.Names))
	return l, ok
}

func (r *reader) emptyList(what string, q pair, n int) {
	if n == 0 {
		r.find(q.line, RuleEmptyList, "the list of %ss is empty: nobody is in it, so that the policy grants nothing; leave it out if it is not meant", what)
	}
}

// KnownRoles are GitHub's own roles on a repository.
var KnownRoles = []string{"admin", "maintain", "write", "triage", "read"}

func (r *reader) checkRoles(l List, q pair) {
	for _, name := range l.Names {
		known := false
		for _, k := range KnownRoles {
			known = known || strings.EqualFold(k, name)
		}
		if !known {
			r.find(q.line, RuleUnknownRole, "the role %q is none of %s; it counts only if the organisation has a custom role of that name",
				clip(name), strings.Join(KnownRoles, ", "))
		}
	}
}

// users reads logins, or mappings with a login and an id as in a users_from_json
// list.
func (r *reader) users(q pair) (UserList, bool) {
	l := UserList{Given: true}
	if q.value.Kind == yaml.ScalarNode && !isNull(q.value) {
		s, ok := r.text(q.key, q.value)
		l.Users = []User{{Login: s}}
		return l, ok
	}
	nodes, ok := r.list(q.key, q.value)
	var items []item
	for _, n := range nodes {
		u, good := r.user(n)
		if !good {
			ok = false
			continue
		}
		l.Users = append(l.Users, u)
		items = append(items, item{u.Login, n.Line})
	}
	r.doubles("user", items)
	r.emptyList("user", q, len(l.Users))
	return l, ok
}

func (r *reader) user(n *yaml.Node) (User, bool) {
	if n.Kind != yaml.MappingNode {
		s, ok := r.text("an item of users", n)
		if ok && s == "" {
			r.find(n.Line, RuleEmptyList, "a user is empty")
		}
		return User{Login: strings.TrimPrefix(s, "@")}, ok
	}
	var u User
	ps, _ := r.pairs(n)
	for _, p := range ps {
		switch p.key {
		case "github", "login":
			s, ok := r.needText(p.key, p.value)
			if !ok {
				return u, false
			}
			u.Login = s
		case "id":
			id, err := strconv.ParseInt(p.value.Value, 10, 64)
			if err != nil || id <= 0 {
				r.find(p.line, RuleWrongType, "the id of a user has to be a whole number above 0, not %s", kindName(p.value))
				return u, false
			}
			u.ID = id
		default:
			r.find(p.line, RuleUnknownKey, "the key %q of a user is not known and is ignored", clip(p.key))
		}
	}
	if u == (User{}) {
		r.find(n.Line, RuleMissingKey, "a user has neither github nor id")
	}
	return u, u != User{}
}

func (r *reader) grants(n *yaml.Node) []Grant {
	nodes, _ := r.list("access_control", n)
	var out []Grant
	for _, c := range nodes {
		if g, ok := r.grant(c); ok {
			out = append(out, g)
		}
	}
	return out
}

func (r *reader) grant(n *yaml.Node) (Grant, bool) {
	g := Grant{Line: n.Line}
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "an item of access_control has to be a mapping with resource and policies, not %s; it is disabled", kindName(n))
		return g, false
	}
	good := true
	ps, dup := r.pairs(n)
	for _, p := range ps {
		ok := true
		switch p.key {
		case "resource":
			g.Resource, ok = r.needText("resource", p.value)
		case "policies":
			var items []item
			// One item that is no text leaves the others good.
			items, _ = r.texts("policies", p.value)
			r.doubles("policy", items)
			for _, it := range items {
				g.Policies = append(g.Policies, PolicyRef{it.text, it.line})
			}
		default:
			r.find(p.line, RuleUnknownKey, "the key %q of access_control is not known and is ignored", clip(p.key))
		}
		good = good && ok
	}
	if g.Resource == "" {
		r.find(n.Line, RuleMissingKey, "an item of access_control lacks resource; it is disabled")
	}
	if len(g.Policies) == 0 {
		r.find(n.Line, RuleEmptyList, "the resource %q has no policies, so that this item grants nothing", clip(g.Resource))
	}
	return g, good && !dup && g.Resource != ""
}

// checkPolicies finds policies without a resource and references without a
// policy.
func (r *reader) checkPolicies(a *Access) {
	known, folded, used := map[string]bool{}, map[string]string{}, map[string]bool{}
	for _, p := range a.Policies {
		known[p.ID] = true
		folded[strings.ToLower(p.ID)] = p.ID
	}
	type attached struct{ resource, policy string }
	at := map[attached]Grant{}
	for _, g := range a.Grants {
		for _, ref := range g.Policies {
			used[ref.ID] = true
			k := attached{g.Resource, ref.ID}
			if old, ok := at[k]; !ok {
				at[k] = g
			} else if old.Line != g.Line { // within one item doubles has found it
				r.find(ref.Line, RuleDuplicateEntry, "the policy %q is attached to the resource %q twice; first by the item on line %d", clip(ref.ID), clip(g.Resource), old.Line)
			}
			if known[ref.ID] {
				continue
			}
			if other, ok := folded[strings.ToLower(ref.ID)]; ok {
				r.find(ref.Line, RuleLetterCase, "the policy %q differs from %q only in the case of letters", clip(ref.ID), clip(other))
			}
			r.find(ref.Line, RuleUnknownPolicy, "the resource %q names the policy %q, which does not exist", clip(g.Resource), clip(ref.ID))
		}
	}
	repos := map[string]Policy{}
	for _, p := range a.Policies {
		k := strings.ToLower(p.Repo)
		if old, ok := repos[k]; ok && old.Repo != p.Repo {
			r.find(p.Line, RuleLetterCase, "the repository %q differs from %q on line %d only in the case of letters", clip(p.Repo), clip(old.Repo), old.Line)
		} else {
			repos[k] = p
		}
		if !used[p.ID] {
			r.find(p.Line, RuleDanglingPolicy, "the policy %q is attached to no resource, so that it has no effect", clip(p.ID))
		}
	}
}
