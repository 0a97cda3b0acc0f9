package openstacktest

import (
	"net/http"
	"slices"
	"strings"
)

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
		id := c.add(p[0], o)
		for _, n := range c.things["networks"] {
			if n["id"] == o["network_id"] {
				n["subnets"] = append(n["subnets"].([]any), id)
			}
		}
		send(q, 201, Object{kind: o})
	case method == http.MethodGet && len(p) == 2:
		if o, ok := c.one(q, p[0], 1); ok {
			send(q, 200, Object{kind: o})
		}
	case method == http.MethodGet:
		c.list(q, p[0], func(o Object) bool {
			return q.admin || o["project_id"] == q.who.project || o["router:external"] == true
		})
	case method == http.MethodDelete && len(c.find("ports", "device_id", p[1])) > 0:
		send(q, 409, Object{"NeutronError": Object{"type": "RouterInUse", "message": "Router " + p[1] + " still has ports"}})
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
		"networks": {"mtu": 1500, "admin_state_up": true, "subnets": []any{}}, "routers": {"admin_state_up": true},
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
