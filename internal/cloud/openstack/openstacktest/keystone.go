package openstacktest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// authenticate answers POST /auth/tokens: by password or application credential.
func (c *Cloud) authenticate(w http.ResponseWriter, r *http.Request) {
	var b struct {
		Auth struct {
			Identity struct {
				Password struct {
					User struct{ ID, Name, Password string }
				}
				Credential struct{ ID, Secret string } `json:"application_credential"`
			}
			Scope struct{ Project struct{ ID, Name string } }
		}
	}
	_ = json.NewDecoder(r.Body).Decode(&b)
	u, app, scope := b.Auth.Identity.Password.User, b.Auth.Identity.Credential, b.Auth.Scope.Project
	var who login
	for _, o := range c.things["users"] {
		if (o["name"] == u.Name || o["id"] == u.ID) && o["password"] == u.Password && u.Password != "" {
			who.user = o["id"].(string)
		}
	}
	for _, o := range c.things["application_credentials"] {
		if o["id"] == app.ID && o["secret"] == app.Secret {
			who.user, who.credential, scope.ID = o["user_id"].(string), app.ID, o["project_id"].(string)
		}
	}
	for _, o := range c.things["projects"] {
		if o["id"] == scope.ID || o["name"] == scope.Name {
			who.project = o["id"].(string)
		}
	}
	for _, g := range c.things["grants"] {
		if g["user"] == who.user && g["project"] == who.project && who.user != "" {
			who.roles = append(who.roles, strings.TrimPrefix(g["role"].(string), "r-"))
		}
	}
	if len(who.roles) == 0 {
		answer(w, 401, `{"error": {"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}}`)
		return
	}
	token := c.id("t")
	c.tokens[token] = who
	w.Header().Set("X-Subject-Token", token)
	send(w, 201, Object{"token": c.token(who)})
}

// token is what Keystone says of a token.
func (c *Cloud) token(who login) Object {
	var catalog, roles []any
	for kind, path := range map[string]string{"compute": "compute/v2.1", "image": "image", "network": "network", "identity": "identity/v3"} {
		catalog = append(catalog, Object{"id": "s-" + kind, "type": kind, "name": kind, "endpoints": []any{
			Object{"id": kind, "interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": c.http.URL + "/" + path},
		}})
	}
	for _, r := range who.roles {
		roles = append(roles, Object{"id": "r-" + r, "name": r})
	}
	name := func(collection, id string) any { return c.find(collection, "id", id)[0]["name"] }
	answer := Object{
		"expires_at": "2040-01-01T00:00:00.000000Z", "roles": roles, "catalog": catalog,
		"project": Object{"id": who.project, "name": name("projects", who.project)}, "user": Object{"id": who.user, "name": name("users", who.user)},
	}
	if who.credential != "" {
		answer["application_credential"] = Object{"id": who.credential, "name": name("application_credentials", who.credential)}
	}
	return answer
}

func (c *Cloud) keystone(q call) {
	method, p := q.r.Method, q.path
	if what := strings.Join(p, "/"); what == "auth/tokens" {
		send(q, 200, Object{"token": c.token(q.who)})
		return
	} else if what == "auth/projects" {
		c.list(q, "projects", func(o Object) bool {
			return slices.ContainsFunc(c.things["grants"], func(g Object) bool { return g["user"] == q.who.user && g["project"] == o["id"] })
		})
		return
	}
	if len(p) >= 3 && p[0] == "users" && p[2] == "application_credentials" {
		c.credentials(q)
		return
	}
	if !q.admin {
		send(q, 403, Object{"error": Object{"code": 403, "title": "Forbidden", "message": "You are not authorized to perform the requested action: identity:list_" + p[0] + "."}})
		return
	}
	kind := strings.TrimSuffix(p[0], "s")
	switch {
	case p[0] == "role_assignments":
		user, project := q.r.URL.Query().Get("user.id"), q.r.URL.Query().Get("scope.project.id")
		list := []any{}
		for _, g := range c.things["grants"] {
			if g["user"] == user && g["project"] == project {
				list = append(list, Object{"role": Object{"id": g["role"]}})
			}
		}
		send(q, 200, Object{"role_assignments": list})
	case method == http.MethodPut && len(p) == 6: // projects/P/users/U/roles/R
		c.add("grants", Object{"project": p[1], "user": p[3], "role": p[5]})
		q.WriteHeader(204)
	case method == http.MethodPost:
		o := q.body(kind)
		c.add(p[0], o)
		send(q, 201, Object{kind: o})
	case method == http.MethodPatch:
		if o, ok := c.one(q, p[0], 1); ok {
			for k, v := range q.body(kind) {
				o[k] = v
			}
			send(q, 200, Object{kind: o})
		}
	default:
		c.list(q, p[0], nil)
	}
}

// credentials answers what is asked of a user's application credentials, which only
// the user may make.
func (c *Cloud) credentials(q call) {
	user := q.path[1]
	if q.r.Method == http.MethodPost {
		if q.who.user != user {
			q.refuse("identity:create_application_credential")
			return
		}
		o := q.body("application_credential")
		o["user_id"], o["project_id"], o["secret"] = user, q.who.project, "s3cret-"+c.id("x")
		c.add("application_credentials", o)
		send(q, 201, Object{"application_credential": o})
		return
	}
	if q.who.user != user && !q.admin {
		q.refuse("identity:list_application_credentials")
		return
	}
	if len(q.path) == 4 {
		if o, ok := c.one(q, "application_credentials", 3); ok {
			send(q, 200, Object{"application_credential": o})
		}
		return
	}
	c.list(q, "application_credentials", func(o Object) bool { return o["user_id"] == user })
}

// adminOnly are Nova's paths that a member may not use, by the method.
func adminOnly(method string, path []string) (rule string) {
	switch first := path[0]; {
	case slices.Contains([]string{"os-quota-class-sets", "os-hypervisors", "os-services"}, first):
		return "os_compute_api:" + first
	case first == "flavors" && method != http.MethodGet:
		return "os_compute_api:os-flavor-manage"
	case first == "os-quota-sets" && method != http.MethodGet:
		return "os_compute_api:os-quota-sets:update"
	}
	return ""
}
