package openstacktest

import (
	"net/http"
	"slices"
	"strings"
)

func (c *Cloud) nova(q call) {
	if rule := adminOnly(q.r.Method, q.path); rule != "" && !q.admin {
		q.refuse(rule)
		return
	}
	switch q.path[0] {
	case "":
		send(q, 200, Object{"version": Object{"id": "v2.1", "version": "2.93", "min_version": "2.1"}})
	case "flavors":
		c.flavors(q)
	case "os-keypairs":
		c.keys(q)
	case "os-quota-sets":
		c.quotaSet(q, "compute/"+q.path[1], "quota_set", Object{"instances": 10, "cores": 20, "ram": 51200, "key_pairs": 100})
	case "os-quota-class-sets":
		c.quotaSet(q, "class/"+q.path[1], "quota_class_set", Object{"instances": 10, "cores": 20, "ram": 51200})
	case "limits":
		set := c.quotas["compute/"+q.who.project]
		if set == nil {
			set = Object{"instances": 10, "cores": 20, "ram": 51200}
		}
		send(q, 200, Object{"limits": Object{"absolute": Object{"maxTotalInstances": set["instances"], "maxTotalCores": set["cores"], "maxTotalRAMSize": set["ram"]}}})
	case "os-hypervisors":
		send(q, 200, Object{"hypervisors": c.things["hypervisors"]})
	case "os-services":
		send(q, 200, Object{"services": c.things["services"]})
	case "servers":
		project := q.who.project
		if p := q.r.URL.Query().Get("project_id"); p != "" && q.admin {
			project = p
		}
		list := []Object{}
		for _, s := range c.things["servers"] {
			if s["tenant_id"] == project {
				list = append(list, s)
			}
		}
		send(q, 200, Object{"servers": list})
	}
}

func (c *Cloud) flavors(q call) {
	p, method := q.path, q.r.Method
	if len(p) == 1 && method == http.MethodPost {
		f := q.body("flavor")
		if len(c.find("flavors", "name", f["name"].(string))) > 0 {
			send(q, 409, Object{"conflictingRequest": Object{"code": 409, "message": "Flavor with name " + f["name"].(string) + " already exists."}})
			return
		}
		f["extra_specs"] = Object{}
		c.add("flavors", f)
		send(q, 200, Object{"flavor": f})
		return
	}
	if len(p) == 2 && p[1] == "detail" {
		c.list(q, "flavors", nil)
		return
	}
	f, ok := c.one(q, "flavors", 1)
	if !ok {
		return
	}
	switch what := strings.Join(p[2:], "/"); {
	case what == "" && method == http.MethodDelete:
		c.things["access"] = slices.DeleteFunc(c.things["access"], func(o Object) bool { return o["flavor"] == p[1] })
		c.drop(q, "flavors", p[1])
	case what == "os-extra_specs":
		for k, v := range q.body("extra_specs") {
			f["extra_specs"].(Object)[k] = v
		}
		send(q, 200, Object{"extra_specs": f["extra_specs"]})
	case strings.HasPrefix(what, "os-extra_specs/"):
		delete(f["extra_specs"].(Object), p[3])
		q.WriteHeader(200)
	case what == "action":
		c.add("access", Object{"flavor": p[1], "tenant_id": q.body("addTenantAccess")["tenant"]})
		send(q, 200, Object{})
	case what == "os-flavor-access":
		list := c.find("access", "flavor", p[1])
		if list == nil {
			list = []Object{}
		}
		send(q, 200, Object{"flavor_access": list})
	}
}

func (c *Cloud) keys(q call) {
	user := q.r.URL.Query().Get("user_id")
	switch q.r.Method {
	case http.MethodPost:
		k := q.body("keypair")
		c.add("keys", k)
		send(q, 201, Object{"keypair": k})
	case http.MethodDelete:
		for _, k := range c.find("keys", "name", q.path[1]) {
			if k["user_id"] == user {
				c.drop(q, "keys", k["id"].(string))
				return
			}
		}
		q.missing("Keypair " + q.path[1])
	default:
		list := []any{}
		for _, k := range c.find("keys", "user_id", user) {
			list = append(list, Object{"keypair": k})
		}
		send(q, 200, Object{"keypairs": list})
	}
}

// quotaSet answers what is asked of a set of quotas, which is there without being made.
func (c *Cloud) quotaSet(q call, name, key string, defaults Object) {
	set := c.quotas[name]
	if set == nil {
		set = defaults
		c.quotas[name] = set
	}
	if q.r.Method == http.MethodPut {
		for k, v := range q.body(key) {
			set[k] = v
		}
	}
	if len(q.path) > 2 && q.path[2] == "detail" {
		detail := Object{"id": q.path[1]}
		for k, v := range set {
			detail[k] = Object{"limit": v, "in_use": 3, "reserved": 0}
		}
		set = detail
	}
	send(q, 200, Object{key: set})
}
