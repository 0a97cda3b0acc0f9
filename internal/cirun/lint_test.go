package cirun

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

const wellRunner = "cloud: openstack, instance_type: t, machine_image: i"

// fileCases are runner files with what is to be found in them.
var fileCases = []struct{ name, text, want string }{
	{"clean", "runners:\n  - {name: a, " + wellRunner + ", labels: [cirun-a]}\n", ""},
	{"syntax", "runners: [\n", "2 syntax"},
	{"documents", "runners:\n  - {name: a, " + wellRunner + ", labels: [l]}\n---\nx: 1\n", "3 extra-document"},
	{"empty", "", "1 empty-file"},
	{"no runners key", "version: 1\n", "1 missing-key"},
	{"unknown keys", "runner: []\nrunners:\n  - {name: a, " + wellRunner + ", labels: [l], colour: red}\n", "1 unknown-key|3 unknown-key"},
	{"a key twice", "runners:\n  - name: a\n    name: b\n    cloud: aws\n    instance_type: t\n    machine_image: i\n    labels: [l]\n", "3 duplicate-key"},
	{"wrong type", "runners:\n  - {name: a, " + wellRunner + ", labels: [l], preemptible: maybe}\n", "2 wrong-type|2 wrong-type"},
	{"missing key", "runners:\n  - {name: a, cloud: aws, machine_image: i, labels: [l]}\n", "2 missing-key"},
	{"no labels", "runners:\n  - {name: a, " + wellRunner + ", labels: []}\n", "2 empty-label|2 wrong-type"},
	{"an empty label", "runners:\n  - name: a\n    cloud: aws\n    instance_type: t\n    machine_image: i\n    labels:\n      - l\n      - ''\n      - ' '\n", "8 empty-label|9 empty-label"},
	{"impossible labels", "runners:\n  - {name: a, " + wellRunner + ", labels: [x--1, 'x,y', self-hosted, ubuntu-latest]}\n", "2 bad-label|2 bad-label|2 bad-label|2 bad-label"},
	{"a runner twice", "runners:\n  - {name: a, " + wellRunner + ", labels: [l]}\n  - {name: a, " + wellRunner + ", labels: [l]}\n", "3 duplicate-runner"},
	{"runners' case", "runners:\n  - {name: a, " + wellRunner + ", labels: [l]}\n  - {name: A, " + wellRunner + ", labels: [l]}\n", "3 letter-case"},
	{"labels' case", "runners:\n  - {name: a, " + wellRunner + ", labels: [x, X]}\n  - {name: b, " + wellRunner + ", labels: [X]}\n", "2 letter-case|3 letter-case"},
	{"a label twice", "runners:\n  - {name: a, " + wellRunner + ", labels: [x, x]}\n", "2 duplicate-entry"},
	{"zip", "runners:\n  - {name: a, cloud: aws, instance_type: [t, u, v], machine_image: [i, j], labels: [l]}\n", "2 zip-length"},
	{"cloud", "runners:\n  - {name: a, cloud: opnstack, instance_type: t, machine_image: i, labels: [l]}\n", "2 unknown-cloud"},
	{"size", "runners:\n  - {name: a, cloud: on_prem, instance_type: huge, machine_image: i, labels: [l]}\n", "2 bad-size"},
	{"idle both", idle("{schedule: [{day: mon, time: 9-17, replicas: 1}], usage_based: {replicas: 1, duration: 5}}"), "7 idle-conflict"},
	{"idle short and long", idle("{replicas: 1, schedule: [{day: mon, time: 9-17, replicas: 1}]}"), "7 idle-conflict"},
	{"idle overlap", idle("{schedule: [{day: mon-fri, time: 9-17, replicas: 1}, {day: fri, time: 16-20, replicas: 2}]}"), "7 idle-conflict"},
	{"idle nothing", idle("{}"), "7 bad-idle"},
	{"idle negative", idle("{replicas: -1}"), "7 bad-idle"},
	{"idle trigger", idle("{usage_based: {trigger: moon, replicas: 1, duration: 5}}"), "7 bad-idle"},
	{"day", idle("{schedule: [{day: monday, time: 9-17, replicas: 1}]}"), "7 bad-day"},
	{"days backwards", idle("{schedule: [{day: fri-mon, time: 9-17, replicas: 1}]}"), "7 bad-day"},
	{"time", idle("{schedule: [{day: mon, time: 9-25, replicas: 1}]}"), "7 bad-time"},
	{"time backwards", idle("{schedule: [{day: mon, time: 17-9, replicas: 1}]}"), "7 bad-time"},
	{"no time at all", idle("{schedule: [{day: mon, time: 9-9, replicas: 1}]}"), "7 bad-time"},
	{"zone", idle("{schedule: [{day: mon, time: 9-17, timezone: Europe/Atlantis, replicas: 1}]}"), "7 bad-timezone"},
	{"local zone", idle("{schedule: [{day: mon, time: 9-17, timezone: Local, replicas: 1}]}"), "7 bad-timezone"},
}

func idle(s string) string {
	return "runners:\n  - name: a\n    cloud: aws\n    instance_type: t\n    machine_image: i\n    labels: [l]\n    idle: " + s + "\n"
}

const wellGrant = "access_control:\n  - {resource: r, policies: [p]}\n"

// accessCases are access files with what is to be found in them.
var accessCases = []struct{ name, text, want string }{
	{"clean", wellGrant + "policies:\n  - {id: p, repo: x, users: [a]}\nversion: 1\n", ""},
	{"version", wellGrant + "policies:\n  - {id: p, repo: x, users: [a]}\nversion: 2\n", "5 version"},
	{"nothing granted", "policies:\n  - {id: p, repo: x, users: [a]}\n", "1 empty-file|2 dangling-policy"},
	{"dangling", wellGrant + "policies:\n  - {id: p, repo: x, users: [a]}\n  - {id: q, repo: x, users: [a]}\n", "5 dangling-policy"},
	{"unknown policy", "access_control:\n  - {resource: r, policies: [p, q]}\npolicies:\n  - {id: p, repo: x, users: [a]}\n", "2 unknown-policy"},
	{"policies' case", wellGrant + "policies:\n  - {id: P, repo: x, users: [a]}\n", "2 letter-case|2 unknown-policy|4 dangling-policy"},
	{"a policy twice", wellGrant + "policies:\n  - {id: p, repo: x, users: [a]}\n  - {id: p, repo: y, users: [a]}\n", "5 duplicate-policy"},
	{"a grant twice", "access_control:\n  - {resource: r, policies: [p, p]}\npolicies:\n  - {id: p, repo: x, users: [a]}\n", "2 duplicate-entry"},
	{"a grant in two items", "access_control:\n  - {resource: r, policies: [p]}\n  - {resource: s, policies: [p]}\n  - {resource: r, policies: [p]}\npolicies:\n  - {id: p, repo: x, users: [a]}\n", "4 duplicate-entry"},
	{"a user in two cases", wellGrant + "policies:\n  - {id: p, repo: x, users: [alice, Alice]}\n", "4 letter-case"},
	{"repositories' case", "access_control:\n  - {resource: r, policies: [p, q]}\npolicies:\n  - {id: p, repo: x, users: [a]}\n  - {id: q, repo: X, users: [a]}\n", "5 letter-case"},
	{"role", wellGrant + "policies:\n  - {id: p, repo: x, roles: [writer]}\n", "4 unknown-role"},
	{"open", wellGrant + "policies:\n  - {id: p, repo: x}\n", "4 open-policy"},
	{"empty list", wellGrant + "policies:\n  - {id: p, repo: x, teams: []}\n", "4 empty-list"},
	{"repo", wellGrant + "policies:\n  - {id: p, repo: 'https://github.com/a/b', users: [a]}\n", "4 bad-repo|4 wrong-type"},
	{"address", wellGrant + "policies:\n  - {id: p, repo: x, users_from_json: 'http://example.com/u.json'}\n", "4 bad-url|4 wrong-type"},
}

func TestLintFindsEachRule(t *testing.T) {
	seen := map[Rule]bool{}
	compare := func(name, want string, findings []Finding) {
		t.Helper()
		for _, f := range findings {
			seen[f.Rule] = true
		}
		if diff := cmp.Diff(want, strings.Join(short(findings), "|")); diff != "" {
			t.Errorf("%s (-want +got):\n%s%v", name, diff, findings)
		}
	}
	for _, c := range fileCases {
		f, findings, _ := Parse([]byte(c.text), "f")
		compare(c.name, c.want, SortFindings(append(findings, Lint(LintInput{Repository: f})...)))
	}
	for _, c := range accessCases {
		_, findings, _ := ParseAccess([]byte(c.text), "a")
		compare("access: "+c.name, c.want, findings)
	}
	compare("across", "1 unknown-resource|2 letter-case|2 unknown-resource|2 ungranted-runner", Lint(LintInput{
		Organisation: &File{Path: "f", Runners: []Runner{{Name: "a", Path: "f", Line: 1, Cloud: "aws"}, {Name: "B", Path: "f", Line: 2, Cloud: "aws"}}},
		Access:       &Access{Path: "a", Grants: []Grant{{Resource: "a"}, {Resource: "c", Line: 1}, {Resource: "b", Line: 2}}},
	}))
	compare("redefined", "7 redefined-runner", Lint(LintInput{
		Organisation: &File{Path: "f", Runners: []Runner{{Name: "a", Cloud: "aws"}}},
		Repository:   &File{Path: "g", Runners: []Runner{{Name: "A", Path: "g", Line: 7, Cloud: "aws"}}},
	}))
	mapped := Mapping{
		Clouds:  []Cloud{{Name: "here", Serves: []Place{{Cloud: "openstack", Region: "One"}}}},
		Flavors: []Flavor{{Flavor: gpuserver.Flavor{Name: "t"}}}, Images: []gpuserver.Image{{Name: "i"}},
	}
	alternative := func(a Alternative) *File {
		return &File{Path: "f", Runners: []Runner{{Name: "a", Path: "f", Line: 3, Cloud: a.Cloud, Alternatives: []Alternative{a}}}}
	}
	compare("mapped", "", Lint(LintInput{Repository: alternative(Alternative{Cloud: "openstack", Region: "One", InstanceType: "t", Image: "i"}), Mapping: &mapped}))
	compare("our own cloud", "", Lint(LintInput{Repository: alternative(Alternative{Cloud: "here", InstanceType: "t", Image: "i"}), Mapping: &mapped}))
	compare("unmapped", "3 unmapped-cloud|3 unmapped-flavor|3 unmapped-image", Lint(LintInput{
		Repository: alternative(Alternative{Cloud: "openstack", Region: "Two", InstanceType: "x", Image: "x"}), Mapping: &mapped,
	}))
	compare("gpu", "3 gpu-ignored", Lint(LintInput{
		Repository: alternative(Alternative{Cloud: "openstack", Region: "One", InstanceType: "t", Image: "i", GPU: "t4"}), Mapping: &mapped,
	}))
	for _, d := range RuleDocs {
		if !seen[d.Rule] {
			t.Errorf("no case finds the rule %s", d.Rule)
		}
	}
}

func TestRulesAreDocumentedOnce(t *testing.T) {
	var rules []Rule
	for _, d := range RuleDocs {
		if strings.ContainsAny(d.Text, "\n") || !strings.HasSuffix(d.Text, ".") {
			t.Errorf("the text of %s is %q", d.Rule, d.Text)
		}
		rules = append(rules, d.Rule)
	}
	slices.Sort(rules)
	if n := len(slices.Compact(slices.Clone(rules))); n != len(rules) {
		t.Errorf("%d rules have %d names", len(rules), n)
	}
}
