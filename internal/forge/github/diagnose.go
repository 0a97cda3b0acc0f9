package github

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

// Level says how bad a finding is.
type Level string

// The levels of findings.
const (
	Pass Level = "pass"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one line of `gpuserver forge check`.
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"`          // what was looked at, such as "permission checks: write on octo-org"
	Text  string `json:"text"`           // what was found
	Why   string `json:"why,omitempty"`  // what we need it for
	Mend  string `json:"mend,omitempty"` // what to do about it
}

// DiagnoseOptions say what the configuration needs.
type DiagnoseOptions struct {
	Teams bool // access names teams
	Pull  bool // events are fetched; no hook needs to reach us
	// Checks is false if no check runs are to be written.
	Checks bool
	// Rerun is true if jobs whose GPU failed are to be run again.
	Rerun bool
}

// maxSkew is the difference of clocks that is let pass; tokens are refused from
// about a minute on.
const maxSkew = 20 * time.Second

// need is a permission that the App needs.
type need struct {
	name, level string // "checks", "write"
	words       string // as on the App's page
	why         string
	optional    bool
}

func (f *Forge) needs(o DiagnoseOptions) []need {
	list := []need{
		{"metadata", "read", "Repository permissions → Metadata: read", "GitHub asks for it with every other one", false},
		{
			"actions", "read", "Repository permissions → Actions: read",
			"a job's event names neither the event of its run nor who started it; both are read from the run", false,
		},
		{"contents", "read", "Repository permissions → Contents: read", ".cirun.yml and .access.yml are read", false},
		{
			"checks", "write", "Repository permissions → Checks: write",
			"why a job waits or was refused is shown on its commit", !o.Checks,
		},
		{
			"members", "read", "Organization permissions → Members: read",
			"policies that name teams ask who is in them", !o.Teams,
		},
	}
	if o.Rerun {
		list = append(list, need{
			"actions", "write", "Repository permissions → Actions: write",
			"a job whose GPU failed is run again (jobs.rerun_on_gpu_failure)", false,
		})
	}
	if f.cfg.RunnerScope == ScopeOrganisation {
		return append(list, need{
			"organization_self_hosted_runners", "write",
			"Organization permissions → Self-hosted runners: write", "runners are registered with the organisation", false,
		})
	}
	return append(list, need{
		"administration", "write", "Repository permissions → Administration: write",
		"runners are registered with the repository; GitHub has no smaller permission for it", false,
	})
}

// wireApp is the App as GitHub shows it to itself.
type wireApp struct {
	Slug        string            `json:"slug"`
	HTMLURL     string            `json:"html_url"`
	Permissions map[string]string `json:"permissions"`
	Events      []string          `json:"events"`
}

// Diagnose compares what the App was given with what we need. It changes
// nothing, and gives a finding for each thing that it looked at, also for what
// it could not look at.
func (f *Forge) Diagnose(ctx context.Context, o DiagnoseOptions) []Finding {
	ctx = WithClass(ctx, ClassRead)
	var app wireApp
	sent := time.Now()
	a, err := f.do(ctx, call{method: http.MethodGet, path: "/app", doing: "read the App"}, &app)
	if err != nil {
		return []Finding{failed("App", err, "without the App nothing works",
			"compare app id, private key and base URL with the App's page, and this machine's clock (timedatectl)")}
	}
	found := []Finding{
		{Level: Pass, Check: "App", Text: "GitHub knows the App " + app.Slug},
		clock(a.header, sent, time.Now()),
	}
	found = append(found, f.compareApp(app, o)...)
	found = append(found, f.hook(ctx, o.Pull))
	return append(found, f.compareInstallations(ctx, o)...)
}

func failed(check string, err error, why, mend string) Finding {
	text := strings.TrimSuffix(gpuserver.PublicText(err), "; it is tried again")
	if cause := errors.Unwrap(err); cause != nil && gpuserver.KindOf(err) == gpuserver.KindUnavailable {
		text += ": " + cause.Error()
	}
	return Finding{Level: Fail, Check: check, Text: text, Why: why, Mend: mend}
}

// clock compares GitHub's Date, which has whole seconds and lies between the
// sending and the answer, with ours.
func clock(h http.Header, sent, got time.Time) Finding {
	out := Finding{Level: Warn, Check: "clock", Why: "tokens are signed with the time, and refused if it is wrong"}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		out.Text = "GitHub's answer has no date to compare with"
		return out
	}
	var off time.Duration
	switch {
	case date.Add(time.Second).Before(sent):
		off = sent.Sub(date.Add(time.Second))
	case date.After(got):
		off = got.Sub(date)
	}
	if off.Abs() <= maxSkew {
		return Finding{Level: Pass, Check: "clock", Text: "this machine's clock agrees with GitHub's"}
	}
	way := "fast"
	if off < 0 {
		way = "slow"
	}
	out.Level = Fail
	out.Text = fmt.Sprintf("this machine's clock is %s %s", off.Abs().Round(time.Second), way)
	out.Mend = "set it by NTP (timedatectl set-ntp true)"
	return out
}

// compareApp looks at what the App asks for.
func (f *Forge) compareApp(app wireApp, o DiagnoseOptions) []Finding {
	var found []Finding
	for _, n := range f.needs(o) {
		found = append(found, n.compare(app.Permissions, "the App", "add it on the App's page ("+app.HTMLURL+
			"), under Permissions & events: "+n.words))
	}
	for _, e := range []struct{ name, why string }{
		{"workflow_job", "it tells that a job is queued, runs or has ended"},
		{"check_run", "it tells that somebody pressed Re-run on our check"},
	} {
		out := Finding{Level: Pass, Check: "event " + e.name, Text: "subscribed", Why: e.why}
		if !slices.Contains(app.Events, e.name) {
			out.Level, out.Text = Fail, "not subscribed"
			if e.name == "check_run" {
				out.Level = Warn
			}
			out.Mend = "tick it on the App's page (" + app.HTMLURL + "), under Subscribe to events"
		}
		found = append(found, out)
	}
	return found
}

// compare looks for a permission among those that who has.
func (n need) compare(has map[string]string, who, mend string) Finding {
	out := Finding{
		Level: Pass, Check: "permission " + n.name + ": " + n.level + " of " + who,
		Text: "granted", Why: n.why,
	}
	got := has[n.name]
	if got == n.level || got == "write" || got == "admin" {
		return out
	}
	out.Level, out.Mend = Fail, mend
	if n.optional {
		out.Level = Warn
	}
	out.Text = "it has " + got
	if got == "" {
		out.Text = "it has none"
	}
	return out
}

// hook looks at where GitHub sends the App's events. A site that pulls needs a
// webhook as well, whatever its address: GitHub records deliveries of one only.
func (f *Forge) hook(ctx context.Context, pull bool) Finding {
	out := Finding{Level: Fail, Check: "webhook", Why: "events come through it"}
	if pull {
		out.Why = "GitHub records events, which are pulled, only where a webhook is active"
	}
	var h struct {
		URL         string `json:"url"`
		ContentType string `json:"content_type"`
		Secret      string `json:"secret"`
		InsecureSSL any    `json:"insecure_ssl"`
	}
	c := call{method: http.MethodGet, path: "/app/hook/config", doing: "read the App's webhook"}
	if _, err := f.do(ctx, c, &h); err != nil {
		return failed(out.Check, err, out.Why, "make the webhook active on the App's page")
	}
	insecure := fmt.Sprint(h.InsecureSSL) == "1"
	switch {
	case h.URL == "" && pull:
		out.Text = "it has no address"
		out.Mend = "make the webhook active on the App's page, with any address that is yours; it need not answer"
	case h.URL == "":
		out.Text, out.Mend = "it has no address", "give the webhook the address of the webhook listener, on the App's page, or set the forge to pull"
	case pull:
		out.Level, out.Text = Pass, "it is there for events to be recorded"
	case h.ContentType != "json":
		out.Text, out.Mend = "it sends "+h.ContentType, "choose the content type application/json, on the App's page"
	case h.Secret == "":
		out.Text, out.Mend = "it has no secret", "give the webhook the secret of the configuration, on the App's page"
	case insecure || !strings.HasPrefix(h.URL, "https://"):
		out.Level, out.Text = Warn, h.URL+" is not verified by TLS"
		out.Mend = "use https with verification, unless the way there is yours alone"
	default:
		out.Level, out.Text = Pass, "it sends signed JSON to "+h.URL
	}
	return out
}

// compareInstallations looks at what each owner granted, which is less than the
// App asks for until somebody accepts a change.
func (f *Forge) compareInstallations(ctx context.Context, o DiagnoseOptions) []Finding {
	const why = "an App reaches only where it is installed"
	list, err := f.Installations(ctx)
	if err != nil {
		return []Finding{failed("installations", err, why, "try again")}
	}
	if len(list) == 0 {
		return []Finding{{
			Level: Fail, Check: "installations", Text: "the App is installed nowhere", Why: why,
			Mend: "install it, from the App's page, on the owner of the repositories",
		}}
	}
	var found []Finding
	for _, i := range list {
		if !i.SuspendedAt.IsZero() {
			found = append(found, Finding{
				Level: Warn, Check: "installation on " + i.Account,
				Text: "suspended since " + i.SuspendedAt.Format(time.DateOnly), Why: why,
				Mend: "unsuspend it, in the settings of " + i.Account,
			})
			continue
		}
		found = append(found, f.compareInstallation(ctx, i, o)...)
	}
	return found
}

func (f *Forge) compareInstallation(ctx context.Context, i Installation, o DiagnoseOptions) []Finding {
	var found []Finding
	org := i.AccountType == "Organization"
	for _, n := range f.needs(o) {
		if !org && (n.name == "members" || n.name == "organization_self_hosted_runners") {
			continue // users have neither
		}
		found = append(found, n.compare(i.Permissions, "the installation on "+i.Account,
			"accept the App's new permissions, in the settings of "+i.Account+" under GitHub Apps"))
	}
	if f.cfg.RunnerScope != ScopeOrganisation {
		return found
	}
	if !org {
		return append(found, Finding{
			Level: Fail, Check: "runner group of " + i.Account,
			Text: "it is a user, who has no runner groups",
			Why:  "runners are registered with organisations", Mend: "set runner_scope to repository for it",
		})
	}
	return append(found, f.group(ctx, i)...)
}

// group looks at the runner group in which runners are registered.
func (f *Forge) group(ctx context.Context, i Installation) []Finding {
	check := "runner group " + cmp.Or(f.cfg.RunnerGroup, "Default") + " of " + i.Account
	g, err := f.findGroup(ctx, i.ID, i.Account, f.cfg.RunnerGroup, ClassHousekeeping)
	if err != nil {
		return []Finding{failed(check, err, "runners are registered in it",
			"compare runner_group with the organisation's settings, Actions → Runner groups")}
	}
	found := []Finding{{Level: Pass, Check: check, Text: g.Name + " is there"}}
	page := "organisation's settings, Actions → Runner groups → " + g.Name
	if g.Visibility == "selected" {
		found = append(found, Finding{
			Level: Warn, Check: check, Text: "only selected repositories may use it",
			Why: "jobs of the others wait for ever", Mend: page + ": choose the repositories, or all",
		})
	}
	if !g.Public {
		found = append(found, Finding{
			Level: Warn, Check: check, Text: "public repositories may not use it",
			Why: "their jobs wait for ever", Mend: page + ": allow public repositories, if they shall",
		})
	}
	if g.Restricted {
		found = append(found, Finding{
			Level: Warn, Check: check, Text: "only selected workflows may use it",
			Why: "jobs of the others wait for ever", Mend: page + ": check the list of workflows",
		})
	}
	return found
}
