package provision

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
)

// Level is how a check ended.
type Level string

// The levels.
const (
	Pass Level = "pass"
	Warn Level = "warn" // it works, but not as well or as safely as it could
	Fail Level = "fail" // jobs would fail, or find no room
	Skip Level = "skip" // it could not be looked at, or does not matter here
)

// Finding is the outcome of one check.
type Finding struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Seen  string `json:"seen"`
	Mend  string `json:"mend,omitempty"` // what mends it
}

// Needs is what the running service needs of a cloud.
type Needs struct {
	Flavors          []Flavor // those that find cards there
	GPUs             []Cards
	Networks, Groups []string // names or ids
	Images           []Image
	Now              time.Time
}

// Cards are the cards of a model that the ledger counts with.
type Cards struct {
	Alias string
	Count int    // 0: Placement tells
	Class string // in Placement; "": it is not asked
}

// checks collects findings.
type checks struct {
	ctx      context.Context
	service  *Site
	admin    *Site // nil: there is no administrator's credential
	need     Needs
	findings []Finding
	servers  []Server
}

// Check looks at a cloud as the service does, and as an administrator where one's
// credentials are given. Nothing is changed. What Nova's API does not tell, such as
// the scheduler's filters, is told as far as it shows.
func Check(ctx context.Context, service, admin *openstack.API, need Needs) []Finding {
	c := &checks{ctx: ctx, service: New(service, Declaration{}), need: need}
	if !c.credentials() {
		return c.findings
	}
	if admin != nil {
		c.admin = New(admin, Declaration{})
		c.administrator()
	} else {
		c.add("administrator", Skip, "the configuration names none (openstack.declared.admin)", "")
	}
	c.flavors()
	c.cards()
	c.quotas()
	c.hosts()
	c.networks()
	c.groups()
	c.images()
	return c.findings
}

func (c *checks) add(name string, level Level, seen, mend string) {
	c.findings = append(c.findings, Finding{name, level, seen, mend})
}

// failed adds what an error means: a right that is missing leaves a check out.
func (c *checks) failed(name string, err error) {
	level := Fail
	if gpuserver.KindOf(err) == gpuserver.KindRefused {
		level = Skip
	}
	c.add(name, level, gpuserver.PublicText(err), "")
}

// apiToken is what Keystone says of the token that is used.
type apiToken struct {
	Token struct {
		Roles   []named `json:"roles"`
		Project named   `json:"project"`
		User    named   `json:"user"`
		App     *named  `json:"application_credential"`
	} `json:"token"`
}

func (s *Site) token(ctx context.Context) (apiToken, error) {
	var t apiToken
	err := s.get(ctx, "read the own token", openstack.Identity, "auth/tokens", nil, &t)
	return t, err
}

func (t apiToken) roles() string {
	var names []string
	for _, r := range t.Token.Roles {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func (t apiToken) has(role string) bool {
	return slices.ContainsFunc(t.Token.Roles, func(r named) bool { return r.Name == role })
}

// credentials reports whether the service can log in at all.
func (c *checks) credentials() bool {
	t, err := c.service.token(c.ctx)
	if err != nil {
		c.add("credentials", Fail, gpuserver.PublicText(err), "check clouds_file and cloud of openstack in the configuration, and that Keystone answers")
		return false
	}
	c.add("credentials", Pass, fmt.Sprintf("logged in as user %s in project %s", t.Token.User.Name, t.Token.Project.Name), "")
	switch {
	case t.has("admin"):
		c.add("roles", Warn, "the service is an administrator: "+t.roles(), "give it a user with the role member; gpuserver cloud apply makes one")
	case t.roles() == "reader":
		c.add("roles", Fail, "the service may read only", "give its user the role member in the project")
	default:
		c.add("roles", Pass, t.roles(), "")
	}
	c.expiry(t)
	return true
}

// soon is when the end of an application credential is near.
const soon = 14 * 24 * time.Hour

func (c *checks) expiry(t apiToken) {
	const name = "application credential"
	if t.Token.App == nil {
		c.add(name, Skip, "the service logs in by password", "")
		return
	}
	var answer struct {
		Credential struct {
			Name    string  `json:"name"`
			Expires *string `json:"expires_at"`
		} `json:"application_credential"`
	}
	err := c.service.get(c.ctx, "read the own application credential", openstack.Identity, "users/"+t.Token.User.ID+"/application_credentials/"+t.Token.App.ID, nil, &answer)
	if err != nil {
		c.failed(name, err)
		return
	}
	if answer.Credential.Expires == nil {
		c.add(name, Pass, answer.Credential.Name+" does not expire", "")
		return
	}
	at, err := time.Parse("2006-01-02T15:04:05", strings.TrimSuffix(strings.SplitN(*answer.Credential.Expires, ".", 2)[0], "Z"))
	switch {
	case err != nil:
		c.add(name, Warn, fmt.Sprintf("%s expires at %q", answer.Credential.Name, *answer.Credential.Expires), "")
	case at.Before(c.need.Now.Add(soon)):
		c.add(name, Warn, fmt.Sprintf("%s expires on %s", answer.Credential.Name, at.Format(time.DateOnly)), "make a new one before: delete this one, move its file away, gpuserver cloud apply")
	default:
		c.add(name, Pass, fmt.Sprintf("%s expires on %s", answer.Credential.Name, at.Format(time.DateOnly)), "")
	}
}

func (c *checks) administrator() {
	t, err := c.admin.token(c.ctx)
	switch {
	case err != nil:
		c.failed("administrator", err)
		c.admin = nil
	case !t.has("admin"):
		c.add("administrator", Warn, fmt.Sprintf("user %s has no role admin, but %s", t.Token.User.Name, t.roles()), "gpuserver cloud apply says which rights are missing")
	default:
		c.add("administrator", Pass, fmt.Sprintf("logged in as user %s", t.Token.User.Name), "")
	}
}

// flavors compares the flavors that the service sees with those of the configuration.
func (c *checks) flavors() {
	l := &look{Site: c.service, f: Found{Unknown: map[Kind]string{}}}
	all, err := l.allFlavors(c.ctx)
	if err != nil {
		c.failed("flavors", err)
		return
	}
	var bad []string
	for _, want := range c.need.Flavors {
		i := slices.IndexFunc(all, func(a apiFlavor) bool { return a.Name == want.Name || a.ID == want.Name })
		if i < 0 {
			bad = append(bad, want.Name+" is not there, or not for this project")
			continue
		}
		a := all[i]
		switch alias := a.Specs[aliasSpec]; {
		case a.VCPUs != want.VCPUs || a.RAM != want.RAM || a.Disk != want.Disk:
			bad = append(bad, fmt.Sprintf("%s has %d vCPUs, %d MiB and %d GiB in place of %d, %d and %d", want.Name, a.VCPUs, a.RAM, a.Disk, want.VCPUs, want.RAM, want.Disk))
		case a.Specs != nil && alias != want.Alias:
			bad = append(bad, fmt.Sprintf("%s asks for PCI alias %q in place of %q", want.Name, alias, want.Alias))
		}
	}
	if len(bad) > 0 {
		c.add("flavors", Fail, strings.Join(bad, "; "), "gpuserver cloud plan shows the difference, and cloud apply makes them right")
		return
	}
	c.add("flavors", Pass, fmt.Sprintf("all %d of the configuration are there as they should be", len(c.need.Flavors)), "")
}

// causes are why Nova finds no card though the ledger has one.
const causes = "[filter_scheduler] enabled_filters of nova-scheduler needs PciPassthroughFilter; [pci] alias has to be the same in nova-api and on the compute host; [pci] device_spec there has to name the cards (gpuserver host render nova); and the flavor has to fit on that host"

// cards looks for what shows that Nova gives cards away. The API shows neither filters
// nor aliases: only servers that have a card, or got none.
func (c *checks) cards() {
	var err error
	if c.servers, err = c.service.allServers(c.ctx); err != nil {
		c.failed("servers", err)
	}
	for _, g := range c.need.GPUs {
		name := "PciPassthroughFilter and alias " + g.Alias
		with := slices.DeleteFunc(slices.Clone(c.servers), func(s Server) bool { return !s.asks(g.Alias) })
		running := slices.IndexFunc(with, func(s Server) bool { return s.Status == "ACTIVE" || s.Status == "SHUTOFF" })
		refused := slices.IndexFunc(with, func(s Server) bool { return s.Status == "ERROR" && strings.Contains(s.Fault, "No valid host") })
		switch {
		case running >= 0:
			c.add(name, Pass, fmt.Sprintf("server %s has a card by it", with[running].Name), "")
		case refused >= 0:
			c.add(name, Warn, fmt.Sprintf("server %s found no host, and none has a card now", with[refused].Name), causes)
		default:
			c.add(name, Skip, "no server has a card now, and Nova's API shows neither filters nor aliases", "if jobs find no host though cards are free: "+causes)
		}
		c.placement(g)
	}
}

func (c *checks) placement(g Cards) {
	name, site := "cards in Placement "+g.Class, c.service
	if g.Class == "" {
		return
	}
	if c.admin != nil {
		site = c.admin
	}
	free, known, err := site.api.FreeCards(c.ctx, g.Class)
	switch {
	case err != nil:
		c.failed(name, err)
	case !known && g.Count == 0:
		c.add(name, Fail, "it does not tell: the class is not there, or the credential may not ask", "give count in gpus of the cloud, or set [pci] report_in_placement on the compute hosts")
	case !known:
		c.add(name, Warn, "it does not tell; the count of the configuration alone is used", "set [pci] report_in_placement on the compute hosts, and let the credential read Placement")
	case g.Count > 0 && free > g.Count:
		c.add(name, Warn, fmt.Sprintf("%d are free, more than the %d that the configuration counts with", free, g.Count), "raise count in gpus of the cloud")
	default:
		c.add(name, Pass, fmt.Sprintf("%d free", free), "")
	}
}

// quotas says which flavors never fit into the project.
func (c *checks) quotas() {
	var answer struct {
		Limits struct {
			Absolute struct {
				Servers int64 `json:"maxTotalInstances"`
				Cores   int64 `json:"maxTotalCores"`
				RAM     int64 `json:"maxTotalRAMSize"`
			} `json:"absolute"`
		} `json:"limits"`
	}
	if err := c.service.get(c.ctx, "read the project's limits", openstack.Compute, "limits", nil, &answer); err != nil {
		c.failed("quotas", err)
		return
	}
	a := answer.Limits.Absolute
	words := func(n int64) string {
		if n < 0 {
			return "any number of"
		}
		return strconv.FormatInt(n, 10)
	}
	seen := fmt.Sprintf("%s servers, %s vCPUs, %s MiB", words(a.Servers), words(a.Cores), words(a.RAM))
	var never []string
	for _, f := range c.need.Flavors {
		if a.Cores >= 0 && int64(f.VCPUs) > a.Cores || a.RAM >= 0 && f.RAM > a.RAM {
			never = append(never, f.Name)
		}
	}
	cards := 0
	for _, g := range c.need.GPUs {
		cards += g.Count
	}
	const mend = "set quotas in openstack.declared, then gpuserver cloud apply"
	switch {
	case a.Servers == 0 || a.Cores == 0 || a.RAM == 0:
		c.add("quotas", Fail, seen+": no server can be made", mend+"; with unified limits a limit of Keystone that is not set counts as 0")
	case len(never) > 0:
		c.add("quotas", Fail, seen+": these flavors never fit: "+strings.Join(never, ", "), mend)
	case a.Servers >= 0 && a.Servers < int64(cards):
		c.add("quotas", Warn, fmt.Sprintf("%s: fewer servers than the %d cards", seen, cards), mend)
	default:
		c.add("quotas", Pass, seen, "")
	}
}

// hosts looks whether a compute host is up, and large enough for each flavor.
func (c *checks) hosts() {
	const name = "compute hosts"
	if c.admin == nil {
		c.add(name, Skip, "only an administrator sees them", "")
		return
	}
	hosts, err := c.admin.hypervisors(c.ctx)
	if err != nil {
		c.failed(name, err)
		return
	}
	up := slices.DeleteFunc(hosts, func(h Hypervisor) bool { return h.State != "up" || h.Status != "enabled" })
	var large []string
	for _, f := range c.need.Flavors {
		// One server gets no more CPUs than its host has, however far they are overcommitted:
		// Placement's max_unit. A size of 0 is not told.
		fits := func(h Hypervisor) bool {
			return (h.MemoryMiB == 0 || h.MemoryMiB >= f.RAM) && (h.VCPUs == 0 || h.VCPUs >= f.VCPUs)
		}
		if !slices.ContainsFunc(up, fits) {
			large = append(large, f.Name)
		}
	}
	switch {
	case len(up) == 0:
		c.add(name, Fail, "none is up and enabled", "look at nova-compute on the hosts: openstack compute service list")
	case len(large) > 0:
		c.add(name, Fail, fmt.Sprintf("%d up, none with the memory and CPUs of these flavors: %s", len(up), strings.Join(large, ", ")), "make the flavors smaller, or leave them out")
	default:
		c.add(name, Pass, fmt.Sprintf("%d up", len(up)), "")
	}
}

func (c *checks) networks() {
	if len(c.need.Networks) == 0 {
		c.add("network", Skip, "none is configured: Nova chooses", "")
	}
	for _, want := range c.need.Networks {
		name := "network " + want
		var answer struct {
			Networks []struct {
				named
				MTU     int      `json:"mtu"`
				Status  string   `json:"status"`
				Subnets []string `json:"subnets"`
			} `json:"networks"`
		}
		err := c.service.get(c.ctx, "find network "+want, openstack.Network, "networks", byName(want), &answer)
		switch {
		case err != nil:
			c.failed(name, err)
		case len(answer.Networks) != 1:
			c.add(name, Fail, fmt.Sprintf("the project sees %d networks of this name", len(answer.Networks)), "gpuserver cloud apply makes it; or give an id in networks of the cloud")
		case len(answer.Networks[0].Subnets) == 0:
			c.add(name, Fail, "it has no subnet", "gpuserver cloud apply makes one")
		default:
			c.add(name, Pass, fmt.Sprintf("MTU %d", answer.Networks[0].MTU), "")
		}
	}
}

// byName is the query for a name or an id.
func byName(want string) url.Values {
	if uuidRE.MatchString(want) {
		return url.Values{"id": {want}}
	}
	return url.Values{"name": {want}}
}

func (c *checks) groups() {
	for _, want := range c.need.Groups {
		name := "security group " + want
		var answer struct {
			Groups []apiGroup `json:"security_groups"`
		}
		err := c.service.get(c.ctx, "find "+name, openstack.Network, "security-groups", byName(want), &answer)
		switch {
		case err != nil:
			c.failed(name, err)
			continue
		case len(answer.Groups) != 1:
			c.add(name, Fail, fmt.Sprintf("the project sees %d of this name", len(answer.Groups)), "gpuserver cloud apply makes it; or give an id in security_groups of the cloud")
			continue
		}
		open, out := "", 0
		for _, r := range answer.Groups[0].found().Rules {
			if r.Direction == "ingress" {
				open = cmp.Or(open, r.String())
			} else {
				out++
			}
		}
		switch {
		case open != "":
			c.add(name, Warn, "it lets something in: "+open, "no job needs that; delete the rule, or declare the group and apply")
		case out == 0:
			c.add(name, Fail, "it lets nothing out, so that no agent can report", "add a rule for egress")
		default:
			c.add(name, Pass, fmt.Sprintf("nothing comes in; %d rules for what goes out", out), "")
		}
	}
	if len(c.need.Groups) == 0 {
		c.add("security group", Warn, "none is configured: servers are in the project's group default, whose servers reach each other", "declare one and give it in security_groups of the cloud")
	}
}

// images looks with the eyes of the service.
func (c *checks) images() {
	s := *c.service
	s.d.Images, s.d.Flavors = c.need.Images, c.need.Flavors
	l := &look{Site: &s, f: Found{Unknown: map[Kind]string{}}}
	if err := l.images(c.ctx); err != nil {
		c.failed("images", err)
		return
	}
	x := &differ{d: s.d, f: l.f}
	x.images()
	if len(x.p.Notes) > 0 {
		c.add("images", Warn, strings.Join(x.p.Notes, "; "), "")
		return
	}
	c.add("images", Pass, fmt.Sprintf("all %d are there", len(c.need.Images)), "")
}
