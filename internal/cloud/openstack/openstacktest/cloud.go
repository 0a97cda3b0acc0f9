// Package openstacktest is an OpenStack in memory, behind HTTP, for what an
// administrator makes: projects, users, flavors, quotas, networks, keys.
//
// It answers with the words and the statuses of Keystone, Nova, Neutron and Glance,
// and refuses to a member what their policies do by default. Servers are not made
// here: the driver's tests have a stand-in of their own for that.
package openstacktest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Object is a thing as the API shows it.
type Object = map[string]any

// Cloud is the stand-in. Make one with New.
type Cloud struct {
	http *httptest.Server

	mu     sync.Mutex
	serial int
	tokens map[string]login
	things map[string][]Object // by collection, such as "networks"
	quotas map[string]Object   // by service and project
	calls  []string
	// Fail, if set, may answer a call in place of the cloud: a status other than 0.
	fail func(method, path string) (status int, body string)
}

// login is what a token is good for.
type login struct {
	user, project string
	credential    string // its id; "": it was made by password
	roles         []string
}

// New starts a cloud with the domain Default, the project admin, the roles admin and
// member, and an external network public. It ends with the test.
func New(t testing.TB) *Cloud {
	c := &Cloud{tokens: map[string]login{}, things: map[string][]Object{}, quotas: map[string]Object{}}
	c.Add("domains", Object{"id": "default", "name": "Default"})
	c.Add("projects", Object{"id": "p-admin", "name": "admin", "domain_id": "default"})
	c.Add("users", Object{"id": "u-admin", "name": "admin", "domain_id": "default", "password": "secret"})
	for _, r := range []string{"admin", "member", "reader"} {
		c.Add("roles", Object{"id": "r-" + r, "name": r})
	}
	c.Add("grants", Object{"user": "u-admin", "project": "p-admin", "role": "r-admin"})
	c.Add("networks", Object{"id": "n-public", "name": "public", "router:external": true, "project_id": "p-admin"})
	c.http = httptest.NewServer(c)
	t.Cleanup(c.http.Close)
	return c
}

// CloudsFile writes a clouds.yaml whose entry admin is the administrator's, and gives
// its path.
func (c *Cloud) CloudsFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin-clouds.yaml")
	text := fmt.Sprintf("clouds:\n  admin:\n    region_name: RegionOne\n    auth: {auth_url: %q, username: admin, password: secret, project_name: admin, user_domain_name: Default, project_domain_name: Default}\n", c.http.URL+"/identity")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Add puts a thing into a collection, such as "networks", with an id unless it has
// one, and gives the id.
func (c *Cloud) Add(collection string, o Object) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.add(collection, o)
}

func (c *Cloud) add(collection string, o Object) string {
	if _, has := o["id"]; !has {
		o["id"] = c.id(collection[:1])
	}
	c.things[collection] = append(c.things[collection], o)
	return o["id"].(string)
}

func (c *Cloud) id(prefix string) string {
	c.serial++
	return fmt.Sprintf("%s-%04d", prefix, c.serial)
}

// Edit changes the things of a collection whose field has a value.
func (c *Cloud) Edit(collection, field, value string, change func(Object)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.things[collection] {
		if o[field] == value {
			change(o)
		}
	}
}

// Remove drops the things of a collection whose field has a value, as a stranger who
// deletes them.
func (c *Cloud) Remove(collection, field, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.things[collection] = slices.DeleteFunc(c.things[collection], func(o Object) bool { return o[field] == value })
}

// Find gives the things of a collection whose field has a value.
func (c *Cloud) Find(collection, field, value string) []Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(collection, field, value)
}

func (c *Cloud) find(collection, field, value string) (out []Object) {
	for _, o := range c.things[collection] {
		if o[field] == value {
			out = append(out, o)
		}
	}
	return out
}

// Calls gives the calls that were made and change something, such as
// "POST /network/v2.0/networks", and forgets them.
func (c *Cloud) Calls() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, call := range c.calls {
		if !strings.HasPrefix(call, "GET ") && !strings.HasSuffix(call, "/auth/tokens") {
			out = append(out, call)
		}
	}
	c.calls = nil
	return out
}

// Fail makes a function see each call first; a status other than 0 is the answer.
func (c *Cloud) Fail(f func(method, path string) (status int, body string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = f
}

// ServeHTTP implements http.Handler.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, r.Method+" "+r.URL.Path)
	if c.fail != nil {
		if status, text := c.fail(r.Method, r.URL.Path); status != 0 {
			answer(w, status, text)
			return
		}
	}
	service, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if service+"/"+path == "identity/v3/auth/tokens" && r.Method == http.MethodPost {
		c.authenticate(w, r)
		return
	}
	who, ok := c.tokens[r.Header.Get("X-Auth-Token")]
	if !ok {
		answer(w, 401, `{"error": {"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}}`)
		return
	}
	q := call{ResponseWriter: w, r: r, who: who, admin: slices.Contains(who.roles, "admin")}
	switch service {
	case "identity":
		q.path = strings.Split(strings.TrimPrefix(path, "v3/"), "/")
		c.keystone(q)
	case "compute":
		q.path = strings.Split(strings.Trim(strings.TrimPrefix(path, "v2.1"), "/"), "/")
		c.nova(q)
	case "network":
		q.path = strings.Split(strings.TrimPrefix(path, "v2.0/"), "/")
		c.neutron(q)
	case "image":
		q.path = strings.Split(strings.TrimPrefix(path, "v2/"), "/")
		c.list(q, "images", nil)
	}
}

// call is a request with who makes it.
type call struct {
	http.ResponseWriter
	r     *http.Request
	path  []string
	who   login
	admin bool
}

func (q call) body(key string) Object {
	var b map[string]Object
	_ = json.NewDecoder(q.r.Body).Decode(&b)
	return b[key]
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

func send(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	answer(w, status, string(text))
}

// list answers with the things of a collection that have what the query asks for.
func (c *Cloud) list(q call, collection string, keep func(Object) bool) {
	found := []Object{}
	for _, o := range c.things[collection] {
		ok := keep == nil || keep(o)
		for key, values := range q.r.URL.Query() {
			if slices.Contains([]string{"sort", "limit", "is_public", "user_id"}, key) {
				continue
			}
			ok = ok && fmt.Sprint(o[key]) == values[0]
		}
		if ok {
			found = append(found, o)
		}
	}
	send(q, 200, Object{strings.ReplaceAll(collection, "-", "_"): found})
}

// refuse answers 403 in a service's words.
func (q call) refuse(rule string) {
	send(q, 403, Object{"error": Object{"code": 403, "title": "Forbidden", "message": "Policy doesn't allow " + rule + " to be performed."}})
}

// missing answers 404.
func (q call) missing(what string) {
	send(q, 404, Object{"itemNotFound": Object{"code": 404, "message": what + " could not be found."}})
}

// one finds the thing with the id that the path has at a place.
func (c *Cloud) one(q call, collection string, at int) (Object, bool) {
	if found := c.find(collection, "id", q.path[at]); len(found) > 0 {
		return found[0], true
	}
	q.missing(collection + " " + q.path[at])
	return nil, false
}

// drop deletes a thing.
func (c *Cloud) drop(q call, collection, id string) {
	n := len(c.things[collection])
	c.things[collection] = slices.DeleteFunc(c.things[collection], func(o Object) bool { return o["id"] == id })
	if len(c.things[collection]) == n {
		q.missing(id)
		return
	}
	q.WriteHeader(204)
}

// bodyPlain is a body that is not under a key.
func (q call) bodyPlain() (b Object) {
	_ = json.NewDecoder(q.r.Body).Decode(&b)
	return b
}
