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

func (c *Cloud) neutron(q call) {
	p, method := q.path, q.r.Method
	kind := strings.TrimSuffix(strings.ReplaceAll(p[0], "-", "_"), "s")
	switch {
	case p[0] == "quotas":
		if method != http.MethodGet && !q.admin {
			send(q, 403, Object{"NeutronError": Object{"type": "HTTPForbidden", "message": "rule:update_quota is disallowed by policy"}})
			return
		}
		c.quotaSet(q, "network/"+p[1], "quota", Object{"port": 500, "network": 100})
	case p[0] == "security-group-rules":
		c.groupRule(q)
	case method == http.MethodPost:
		o := q.body(kind)
		c.neutronDefaults(p[0], o)
		c.add(p[0], o)
		send(q, 201, Object{kind: o})
	case method == http.MethodGet:
		c.list(q, p[0], func(o Object) bool {
			return q.admin || o["project_id"] == q.who.project || o["router:external"] == true
		})
	case method == http.MethodDelete:
		c.drop(q, p[0], p[1])
	case len(p) == 3: // add_router_interface and remove_router_interface
		c.routerInterface(q)
	default:
		if o, ok := c.one(q, p[0], 1); ok {
			for k, v := range q.body(kind) {
				o[k] = v
			}
			send(q, 200, Object{kind: o})
		}
	}
}

// neutronDefaults fills in what Neutron says of a new thing.
func (c *Cloud) neutronDefaults(collection string, o Object) {
	more := map[string]Object{
		"networks": {"mtu": 1500, "admin_state_up": true}, "routers": {"admin_state_up": true},
		"security-groups": {"security_group_rules": []any{
			Object{"id": c.id("rule"), "direction": "egress", "ethertype": "IPv4", "protocol": nil, "port_range_min": nil, "port_range_max": nil, "remote_ip_prefix": nil, "remote_group_id": nil},
			Object{"id": c.id("rule"), "direction": "egress", "ethertype": "IPv6", "protocol": nil, "port_range_min": nil, "port_range_max": nil, "remote_ip_prefix": nil, "remote_group_id": nil},
		}},
	}[collection]
	for k, v := range more {
		if _, has := o[k]; !has {
			o[k] = v
		}
	}
}

func (c *Cloud) groupRule(q call) {
	if q.r.Method == http.MethodPost {
		r := q.body("security_group_rule")
		r["id"] = c.id("rule")
		g := c.find("security-groups", "id", r["security_group_id"].(string))[0]
		g["security_group_rules"] = append(g["security_group_rules"].([]any), r)
		send(q, 201, Object{"security_group_rule": r})
		return
	}
	for _, g := range c.things["security-groups"] {
		g["security_group_rules"] = slices.DeleteFunc(g["security_group_rules"].([]any), func(r any) bool { return r.(Object)["id"] == q.path[1] })
	}
	q.WriteHeader(204)
}

func (c *Cloud) routerInterface(q call) {
	var subnet string
	for _, v := range q.bodyPlain() {
		subnet, _ = v.(string)
	}
	if q.path[2] == "add_router_interface" {
		router, ok := c.one(q, "routers", 1)
		if !ok {
			return
		}
		c.add("ports", Object{"device_id": q.path[1], "project_id": router["project_id"], "device_owner": "network:router_interface", "fixed_ips": []any{Object{"subnet_id": subnet}}})
	} else {
		c.things["ports"] = slices.DeleteFunc(c.things["ports"], func(o Object) bool { return o["device_id"] == q.path[1] })
	}
	send(q, 200, Object{"subnet_id": subnet})
}
