package forgetest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// appRoutes are the App's own affairs, and accounts.
func (s *Server) appRoutes() []route {
	return []route{
		{pattern: "GET /app", auth: authApp, handle: s.getApp},
		{pattern: "GET /app/installations", auth: authApp, handle: s.listInstallations},
		{pattern: "GET /app/installations/{installation_id}", auth: authApp, handle: s.getInstallation},
		{pattern: "POST /app/installations/{installation_id}/access_tokens", auth: authApp, handle: s.newToken},
		{pattern: "GET /repos/{owner}/{repo}/installation", auth: authApp, handle: s.repoInstallation},
		{pattern: "GET /orgs/{org}/installation", auth: authApp, handle: s.accountInstallation},
		{pattern: "GET /users/{username}/installation", auth: authApp, handle: s.accountInstallation},
		{pattern: "GET /app/hook/config", auth: authApp, handle: s.hookConfig},
		{pattern: "GET /app/hook/deliveries", auth: authApp, handle: s.listDeliveries},
		{pattern: "GET /app/hook/deliveries/{delivery_id}", auth: authApp, handle: s.getDelivery},
		{pattern: "POST /app/hook/deliveries/{delivery_id}/attempts", auth: authApp, handle: s.attemptDelivery},
		{pattern: "GET /rate_limit", auth: authNone, free: true, handle: s.rateLimit},
		{pattern: "GET /installation/repositories", handle: s.installationRepos},
	}
}

func (s *Server) getApp(*call) (int, any, *apiError) {
	o := s.appFields()
	o["installations_count"], o["client_id"] = len(s.world.installed), s.cfg.clientID()
	return http.StatusOK, o, nil
}

func (s *Server) listInstallations(c *call) (int, any, *apiError) {
	out := []obj{}
	from, to := c.page(len(s.world.installed))
	for _, a := range s.world.installed[from:to] {
		out = append(out, s.installationFields(a))
	}
	return http.StatusOK, out, nil
}

func (s *Server) getInstallation(c *call) (int, any, *apiError) {
	a, e := s.installation(c)
	if e != nil {
		return 0, nil, e
	}
	return http.StatusOK, s.installationFields(a), nil
}

func (s *Server) repoInstallation(c *call) (int, any, *apiError) {
	p, e := c.repo()
	if e != nil || p.owner.installID == 0 {
		return 0, nil, notFound
	}
	return http.StatusOK, s.installationFields(p.owner), nil
}

func (s *Server) accountInstallation(c *call) (int, any, *apiError) {
	login := c.r.PathValue("org") + c.r.PathValue("username") // the path has one of them
	a := s.world.accounts[strings.ToLower(login)]
	if a == nil || a.installID == 0 {
		return 0, nil, notFound
	}
	return http.StatusOK, s.installationFields(a), nil
}

func (s *Server) hookConfig(*call) (int, any, *apiError) {
	return http.StatusOK, obj{"url": s.set.webhookURL, "content_type": "json", "secret": "********", "insecure_ssl": "0"}, nil
}

func (s *Server) deliveryFields(d *delivery) obj {
	o := obj{
		"id": d.ID, "guid": d.GUID, "delivered_at": stamp(d.DeliveredAt), "redelivery": d.Redelivery, "duration": d.Seconds,
		"status": d.Status, "status_code": d.StatusCode, "event": d.Event, "action": orNull(d.action), "installation_id": nil,
		"repository_id": nil, "throttled_at": nil,
	}
	if d.account != nil {
		o["installation_id"] = d.account.installID
	}
	if d.repo != nil {
		o["repository_id"] = d.repo.id
	}
	return o
}

// listDeliveries lists the newest first. A cursor names the first one of the
// next page.
func (s *Server) listDeliveries(c *call) (int, any, *apiError) {
	q := c.r.URL.Query()
	per, _ := strconv.Atoi(q.Get("per_page"))
	if per <= 0 {
		per = 30
	}
	per = min(per, 100)
	from := int64(0)
	if cursor := q.Get("cursor"); cursor != "" {
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(cursor, "v1_"))
		if err == nil {
			from, err = strconv.ParseInt(string(raw), 10, 64)
		}
		if err != nil {
			return 0, nil, &apiError{status: http.StatusBadRequest, message: "Invalid cursor"}
		}
	}
	status := q.Get("status")
	out := []obj{}
	for i := len(s.hooks.kept) - 1; i >= 0; i-- {
		d := s.hooks.kept[i]
		if (from != 0 && d.ID > from) || (status == "failure" && d.StatusCode < 300) || (status == "success" && d.StatusCode >= 300) {
			continue
		}
		if len(out) == per {
			q.Set("cursor", "v1_"+base64.RawURLEncoding.EncodeToString(strconv.AppendInt(nil, d.ID, 10)))
			c.header.Set("Link", fmt.Sprintf(`<%s%s?%s>; rel="next"`, c.base(), c.r.URL.Path, q.Encode()))
			break
		}
		out = append(out, s.deliveryFields(d))
	}
	return http.StatusOK, out, nil
}

func (s *Server) delivery(c *call) (*delivery, *apiError) {
	id, e := c.id("delivery_id")
	if e != nil {
		return nil, e
	}
	if d := s.hooks.byID[id]; d != nil {
		c.rec.Job = d.Job
		return d, nil
	}
	return nil, notFound
}

func (s *Server) getDelivery(c *call) (int, any, *apiError) {
	d, e := s.delivery(c)
	if e != nil {
		return 0, nil, e
	}
	body := d.parts.join()
	heads := obj{}
	for k, v := range s.hookHeaders(d.event, body) {
		heads[k] = v[0]
	}
	answer := obj{}
	for k, v := range d.answerHeads {
		answer[k] = v[0]
	}
	o := s.deliveryFields(d)
	o["url"] = s.set.webhookURL
	o["request"] = obj{"headers": heads, "payload": asJSON(body)}
	o["response"] = obj{"headers": answer, "payload": orNull(d.answerBody)}
	return http.StatusOK, o, nil
}

// asJSON keeps a body that is no JSON as text: a made-up event may be anything.
func asJSON(b []byte) any {
	if json.Valid(b) {
		return json.RawMessage(b)
	}
	return string(b)
}

func (s *Server) attemptDelivery(c *call) (int, any, *apiError) {
	d, e := s.delivery(c)
	if e != nil {
		return 0, nil, e
	}
	s.redeliver(d)
	return http.StatusAccepted, obj{}, nil
}

// rateLimit answers without counting against any limit, as GitHub does. It
// looks at whatever credentials there are.
func (s *Server) rateLimit(c *call) (int, any, *apiError) {
	_, cred, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	c.token = s.world.tokens[cred]
	c.app = c.token == nil && strings.Count(cred, ".") == 2
	one := func(resource string) obj {
		probe := *c
		probe.route = &route{resource: resource}
		b := s.meter.budget(&probe, now())
		limit, used := s.set.limits.primary(resource), b.used
		if limit == 0 {
			limit, used = 1_000_000, 0
		}
		return obj{"limit": limit, "used": used, "remaining": max(0, limit-used), "reset": b.reset.Unix()}
	}
	core := one(resourceCore)
	return http.StatusOK, obj{
		"resources": obj{"core": core, resourceRegistration: one(resourceRegistration), "search": obj{
			"limit": 30, "used": 0, "remaining": 30, "reset": now().Unix() + 60,
		}},
		"rate": core,
	}, nil
}

func (s *Server) installationRepos(c *call) (int, any, *apiError) {
	var seen []*repo
	for _, p := range c.token.account.repos {
		if c.token.repos == nil || c.token.repos[p.id] {
			seen = append(seen, p)
		}
	}
	from, to := c.page(len(seen))
	out := []json.RawMessage{}
	for _, p := range seen[from:to] {
		out = append(out, p.full)
	}
	return http.StatusOK, obj{"total_count": len(seen), "repository_selection": "all", "repositories": out}, nil
}
