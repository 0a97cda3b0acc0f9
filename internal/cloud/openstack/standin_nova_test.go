package openstack

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (s *standin) nova(w http.ResponseWriter, r *http.Request, path string) {
	parts := strings.Split(path, "/")
	switch {
	case path == "":
		send(w, 200, object{"version": object{"id": "v2.1", "version": s.newest, "min_version": "2.1"}})
	case path == "limits":
		send(w, 200, object{"limits": object{"absolute": s.quota}})
	case path == "flavors":
		s.flavors(w, r)
	case path == "os-server-groups":
		send(w, 200, object{"server_groups": []any{object{"id": "99999999-2222-4333-8444-555555555555", "name": "apart"}}})
	case path == "servers" && r.Method == http.MethodPost:
		s.boot(w, body(r))
	case path == "servers/detail":
		s.listServers(w, r)
	case len(parts) >= 2:
		i := slices.IndexFunc(s.machines, func(m *machine) bool { return m.ID == parts[1] && m.Status != "DELETED" })
		if i < 0 {
			fault(w, 404, "Instance "+parts[1]+" could not be found.")
			return
		}
		s.server(w, r, s.machines[i], parts[2:])
	}
}

func (s *standin) flavors(w http.ResponseWriter, r *http.Request) {
	var all []any
	for name, f := range s.sizes {
		all = append(all, object{"id": f.ID, "name": name})
	}
	slices.SortFunc(all, func(a, b any) int { return strings.Compare(a.(object)["id"].(string), b.(object)["id"].(string)) })
	marker := r.URL.Query().Get("marker")
	from := slices.IndexFunc(all, func(f any) bool { return f.(object)["id"] == marker }) + 1
	to := min(from+2, len(all)) // two on a page
	page := object{"flavors": all[from:to]}
	if to < len(all) {
		page["flavors_links"] = []any{object{"rel": "next", "href": "http://192.0.2.1/behind/a/gateway"}}
	}
	send(w, 200, page)
}

// boot answers POST /servers.
func (s *standin) boot(w http.ResponseWriter, b object) {
	spec := b["server"].(object)
	flavor, ok := s.flavorOf(fmt.Sprint(spec["flavorRef"]))
	image := fmt.Sprint(spec["imageRef"])
	m := &machine{
		ID: s.id("b"), Name: spec["name"].(string), Status: "BUILD", Task: "scheduling", Flavor: flavor, Image: image,
		Meta: map[string]string{}, Created: s.now(), Updated: s.now(), Body: b,
	}
	if devices, volume := spec["block_device_mapping_v2"].([]any); volume {
		disk := devices[0].(object)
		image = fmt.Sprint(disk["uuid"])
		v := &piece{kind: "volume", ID: s.id("c"), GiB: int64(disk["volume_size"].(float64)), body: disk}
		s.parts = append(s.parts, v)
		m.Volumes = []string{v.ID}
	}
	known := false
	for _, id := range s.images {
		known = known || id == image
	}
	used := s.usage()
	switch {
	case !ok:
		fault(w, 400, "Invalid flavorRef provided.")
		return
	case !known:
		fault(w, 400, "Can not find requested image")
		return
	case used.servers >= s.quota["maxTotalInstances"]:
		send(w, 403, object{"forbidden": object{"code": 403, "message": fmt.Sprintf("Quota exceeded for instances: Requested 1, but already used %d of %d instances", used.servers, used.servers)}})
		return
	}
	for k, v := range asMap(spec["metadata"]) {
		m.Meta[k] = v.(string)
	}
	for _, t := range asList(spec["tags"]) {
		m.Tags = append(m.Tags, t.(string))
	}
	for _, n := range asList(spec["networks"]) {
		if p, ok := n.(object)["port"].(string); ok {
			m.Ports = append(m.Ports, p)
		}
	}
	if u, ok := spec["user_data"].(string); ok {
		data, _ := base64.StdEncoding.DecodeString(u)
		m.UserData = string(data)
	}
	s.machines = append(s.machines, m)
	send(w, 202, object{"server": object{"id": m.ID, "adminPass": "x"}})
}

func asMap(v any) object { m, _ := v.(object); return m }
func asList(v any) []any { l, _ := v.([]any); return l }

func (s *standin) flavorOf(id string) (name string, ok bool) {
	for name, f := range s.sizes {
		if f.ID == id {
			return name, true
		}
	}
	return "", false
}

func (s *standin) usage() (u use) {
	for _, m := range s.machines {
		if m.Status != "DELETED" {
			u.servers++
			u.vcpus += int64(s.sizes[m.Flavor].VCPUs)
		}
	}
	return u
}

// cardsUsed counts the cards of servers that got a host.
func (s *standin) cardsUsed() (n int) {
	for _, m := range s.machines {
		if m.Status != "DELETED" && m.Status != "ERROR" && m.Status != "BUILD" {
			f := s.sizes[m.Flavor]
			n += f.cards("tesla-v100")
		}
	}
	return n
}

// advance does what a cloud does in its own time: a server that was seen building
// is built or fails, one that was seen being deleted is gone.
func (s *standin) advance(m *machine) {
	if m.stuck {
		return
	}
	was := m.Status + m.Task
	if m.seen {
		switch {
		case m.Task == "deleting" && s.reclaim:
			m.Status, m.Task = stateSoftGone, ""
		case m.Task == "deleting":
			s.vanish(m)
		case m.Status == "BUILD":
			f := s.sizes[m.Flavor]
			m.Status, m.Task = "ACTIVE", ""
			if s.cardsUsed()-f.cards("tesla-v100") >= s.cards && f.cards("tesla-v100") > 0 {
				m.Status, m.Fault = "ERROR", "No valid host was found. There are not enough hosts available."
			}
		case m.Task == "powering-off":
			m.Status, m.Task = "SHUTOFF", ""
		}
	}
	m.seen = true
	if m.Status+m.Task != was {
		m.Updated = s.now()
	}
}

// vanish makes a server gone, with what Nova made for it.
func (s *standin) vanish(m *machine) {
	m.Status, m.Task, m.Updated = "DELETED", "", s.now()
	m.Tags = nil // Nova drops them
	s.parts = slices.DeleteFunc(s.parts, func(p *piece) bool { return slices.Contains(m.Volumes, p.ID) })
}

func (s *standin) show(m *machine, r *http.Request) object {
	if m.down {
		return object{"id": m.ID, "status": "UNKNOWN", "tenant_id": "p", "created": m.Created.Format(time.RFC3339), "links": []any{}}
	}
	f := s.sizes[m.Flavor]
	o := object{
		"id": m.ID, "name": m.Name, "status": m.Status, "created": m.Created.Format(time.RFC3339), "updated": m.Updated.Format(time.RFC3339),
		"hostId": "h1", "metadata": m.Meta, "OS-EXT-STS:task_state": m.Task, "OS-EXT-STS:power_state": 1, "flavor": object{"id": f.ID},
		"os-extended-volumes:volumes_attached": []any{},
	}
	if m.Task == "" {
		o["OS-EXT-STS:task_state"] = nil
	}
	if m.Status == "ERROR" && m.late != "" {
		m.Fault, m.late = m.late, ""
	} else if m.Fault != "" {
		o["fault"] = object{"code": 500, "message": m.Fault, "created": m.Updated.Format(time.RFC3339)}
	}
	if len(m.Volumes) > 0 {
		o["os-extended-volumes:volumes_attached"] = []any{object{"id": m.Volumes[0]}}
	}
	if minor, _ := strconv.Atoi(strings.TrimPrefix(r.Header.Get("X-OpenStack-Nova-API-Version"), "2.")); minor >= embedded {
		o["flavor"] = object{"vcpus": f.VCPUs, "ram": f.RAM, "disk": f.Disk, "original_name": m.Flavor, "extra_specs": f.Specs}
		o["tags"] = m.Tags
	}
	return o
}

// listServers answers GET /servers/detail.
func (s *standin) listServers(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	since, err := time.Parse(time.RFC3339, q.Get("changes-since"))
	changes := err == nil
	var found []*machine
	for _, m := range s.machines {
		if q.Get("marker") == "" && m.Status != "DELETED" {
			s.advance(m)
		}
		switch {
		case m.hidden, m.down && q.Get("name") != "":
		case changes && m.Updated.Before(since), !changes && (m.Status == "DELETED" || m.Status == stateSoftGone):
		case q.Get("name") != "" && !regexp.MustCompile(q.Get("name")).MatchString(m.Name):
		default:
			found = append(found, m)
		}
	}
	from := slices.IndexFunc(found, func(m *machine) bool { return m.ID == q.Get("marker") }) + 1
	to := min(from+s.page, len(found))
	list := []any{}
	for _, m := range found[from:to] {
		list = append(list, s.show(m, r))
	}
	page := object{"servers": list}
	if to < len(found) {
		page["servers_links"] = []any{object{"rel": "next", "href": "http://192.0.2.1/behind/a/gateway"}}
	}
	send(w, 200, page)
}

// server answers what is asked of one.
func (s *standin) server(w http.ResponseWriter, r *http.Request, m *machine, path []string) {
	what := strings.Join(path, "/")
	switch {
	case what == "" && r.Method == http.MethodGet:
		s.advance(m)
		if m.Status == "DELETED" {
			fault(w, 404, "Instance could not be found.")
			return
		}
		send(w, 200, object{"server": s.show(m, r)})
	case what == "" && r.Method == http.MethodDelete:
		m.Task, m.Updated, m.seen = "deleting", s.now(), false
		w.WriteHeader(204)
	case strings.HasPrefix(what, "tags/"):
		m.Tags, m.Updated = append(m.Tags, path[1]), s.now()
		w.WriteHeader(201)
	case what == "metadata":
		for k, v := range asMap(body(r)["metadata"]) {
			m.Meta[k] = v.(string)
		}
		m.Updated = s.now()
		send(w, 200, object{"metadata": m.Meta})
	case what == "action":
		s.act(w, m, body(r))
	}
}

func (s *standin) act(w http.ResponseWriter, m *machine, b object) {
	for action := range b {
		switch action {
		case "os-stop":
			if m.Status != "ACTIVE" {
				send(w, 409, object{"conflictingRequest": object{"code": 409, "message": "Cannot 'stop' instance while it is in vm_state " + strings.ToLower(m.Status)}})
				return
			}
			m.Task, m.Updated, m.seen = "powering-off", s.now(), false
			w.WriteHeader(202)
		case "forceDelete":
			s.vanish(m)
			w.WriteHeader(202)
		case "os-getConsoleOutput":
			send(w, 200, object{"output": m.Console})
		}
	}
}
