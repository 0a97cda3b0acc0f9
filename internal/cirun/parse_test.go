package cirun

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// fixture parses testdata/cirun.global.yml, whose one finding is the helper key
// that holds an anchor.
func fixture(t *testing.T) *File {
	t.Helper()
	f, findings, err := Parse(read(t, "testdata/cirun.global.yml"), ".cirun.global.yml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"2 unknown-key"}, short(findings)); diff != "" {
		t.Fatalf("findings (-want +got):\n%s", diff)
	}
	return f
}

func fixtureAccess(t *testing.T) *Access {
	t.Helper()
	a, findings, err := ParseAccess(read(t, "testdata/access.yml"), ".access.yml")
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	return a
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// short gives "LINE RULE" of each finding.
func short(fs []Finding) []string {
	out := []string{}
	for _, f := range fs {
		out = append(out, fmt.Sprintf("%d %s", f.Line, f.Rule))
	}
	return out
}

func TestParseReadsEveryForm(t *testing.T) {
	f := fixture(t)
	names := []string{}
	for _, r := range f.Runners {
		names = append(names, r.Name)
	}
	if diff := cmp.Diff([]string{"octo-gpu-large", "octo-cpu", "octo-spot", "octo-windows", "octo-mac"}, names); diff != "" {
		t.Fatalf("runners (-want +got):\n%s", diff)
	}
	want := Runner{
		Name: "octo-gpu-large", Path: ".cirun.global.yml", Line: 7, Cloud: "openstack",
		Labels:       []string{"linux", "x64", "cirun-gpu-large"},
		Alternatives: []Alternative{{Cloud: "openstack", Region: "RegionOne", InstanceType: "gpu_large", Image: "ubuntu-2404-gpu"}},
		Env:          map[string]string{"CUDA_HOME": "/usr/local/cuda", "DEPTH": "3"},
		SetupInfo:    []gpuserver.SetupInfo{{Group: "Octo runners", Detail: "gpu_large on RegionOne\nask #infra"}},
		Extra:        map[string]any{"env_vars": map[string]any{"CUDA_HOME": "/usr/local/cuda", "DEPTH": int64(3)}},
	}
	if diff := cmp.Diff(want, f.Runners[0]); diff != "" {
		t.Errorf("a plain entry (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Alternative{
		{Cloud: "openstack", Region: "RegionOne", InstanceType: "ci_small", Image: "ubuntu-2404-gpu"},
		{Cloud: "openstack", Region: "RegionOne", InstanceType: "ci_medium", Image: "ubuntu-2404-gpu"},
	}, f.Runners[1].Alternatives); diff != "" {
		t.Errorf("a merged entry (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Alternative{
		{Cloud: "aws", Region: "eu-west-1", InstanceType: "t3.large", Image: "ami-1", Preemptible: true},
		{Cloud: "aws", Region: "eu-north-1", InstanceType: "t3.large", Image: "ami-2", Preemptible: true},
		{Cloud: "aws", Region: "us-east-1", InstanceType: "t3.large", Image: "ami-3"},
	}, f.Runners[2].Alternatives); diff != "" {
		t.Errorf("zipped lists (-want +got):\n%s", diff)
	}
	if got := f.Runners[3].Alternatives[0].Image; got != "Canonical:UbuntuServer:18.04-LTS:latest" {
		t.Errorf("Azure's image is %q", got)
	}
	if diff := cmp.Diff(&Size{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 100}, f.Runners[4].Alternatives[0].Size); diff != "" {
		t.Errorf("an on_prem size (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{
		"licenseType": "Windows_Server", "storageProfile": map[string]any{"osDisk": map[string]any{"diskSizeGB": int64(1000)}},
	}, f.Runners[3].Extra); diff != "" {
		t.Errorf("extra_config (-want +got):\n%s", diff)
	}
}

func TestIdleWants(t *testing.T) {
	f := fixture(t)
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	cases := []struct {
		runner int
		at     string
		want   int
	}{
		{1, "2026-06-01T07:00:00Z", 4}, // Monday, 9:00 in Berlin's summer
		{1, "2026-06-01T06:59:59Z", 0},
		{1, "2026-06-01T15:00:00Z", 0}, // 17:00: the end is not included
		{1, "2026-06-06T12:00:00Z", 1}, // Saturday
		{0, "2026-06-01T07:00:00Z", 0}, // no idle settings
		{3, "2026-06-01T07:00:00Z", 2}, // the short form
	}
	for _, c := range cases {
		if got := f.Runners[c.runner].Idle.Want(at(c.at)); got != c.want {
			t.Errorf("%s wants %d idle at %s, got %d", f.Runners[c.runner].Name, c.want, c.at, got)
		}
	}
	if diff := cmp.Diff(&UsageBased{Trigger: "runner_allocated", Replicas: 2, Duration: 3 * time.Hour}, f.Runners[2].Idle.UsageBased); diff != "" {
		t.Errorf("usage_based (-want +got):\n%s", diff)
	}
}

func TestParseAccess(t *testing.T) {
	a := fixtureAccess(t)
	want := []Policy{
		{ID: "hello-team", Path: ".access.yml", Line: 3, Repo: "hello", Teams: List{Given: true, Names: []string{"core", "GPU Users"}}},
		{
			ID: "hello-roles-list", Path: ".access.yml", Line: 6, Repo: "octo-org/hello", PullRequest: true,
			Roles: List{Given: true, Names: []string{"admin", "maintain", "write"}}, UsersFromJSON: "https://example.com/users.json",
		},
		{
			ID: "other-users", Path: ".access.yml", Line: 11, Repo: "other",
			Users: UserList{Given: true, Users: []User{{Login: "alice"}, {Login: "bob", ID: 42}}},
		},
	}
	if diff := cmp.Diff(want, a.Policies); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Grant{Resource: "octo-cpu", Line: 21, Policies: []PolicyRef{{"hello-team", 22}, {"other-users", 22}}}, a.Grants[2]); diff != "" {
		t.Errorf("the second grant of a resource (-want +got):\n%s", diff)
	}
}

// TestOneBadEntry shows that a bad entry takes nothing with it.
func TestOneBadEntry(t *testing.T) {
	good := "  - {name: good, cloud: openstack, instance_type: a, machine_image: b, labels: [cirun-good]}\n"
	for _, bad := range []string{
		"  - 7\n", "  - [x]\n", "  - {name: [x]}\n", "  - {name: bad, labels: {a: b}, cloud: c, instance_type: d, machine_image: e}\n",
		"  -\n", "  - {name: bad, cloud: aws, instance_type: [], machine_image: b, labels: [l]}\n",
		"  - {name: '', cloud: aws, instance_type: t, machine_image: b, labels: [l]}\n",
		"  - {name: bad, cloud: aws, instance_type: t, machine_image: {offer: x}, labels: [l]}\n",
		"  - {name: bad, cloud: aws, instance_type: t, machine_image: b, labels: [l], preemptible: 7}\n",
	} {
		f, findings, err := Parse([]byte("runners:\n"+bad+good), "f")
		if err != nil {
			t.Errorf("%q: %v", bad, err)
			continue
		}
		if len(f.Runners) != 1 || f.Runners[0].Name != "good" || len(findings) == 0 {
			t.Errorf("%q: %d runners, findings %v", bad, len(f.Runners), findings)
		}
	}
}

// TestUnclearPolicyGrantsNothing shows that what is not understood in a policy
// never widens it.
func TestUnclearPolicyGrantsNothing(t *testing.T) {
	for _, body := range []string{
		"repo: hello", "repo: hello, team: [core]", "repo: hello, roles: [write], team: [core]", "repo: hello, users: [alice], Roles: [admin]", "repo: hello, users: 7, roles: {a: b}", "repo: hello, users: [alice], users: [bob]",
		"repo: 'a/b/c', users: [alice]", "users: [alice]", "repo: hello, users: [alice], pull_request: maybe",
		"repo: hello, users_from_json: 'http://example.com/u.json'", "repo: hello, users: [alice], users_from_json: 'file:///etc/passwd'",
		"repo: hello, users: [[alice]]", "repo: hello, users: [{id: -1}]",
	} {
		a, findings, err := ParseAccess([]byte("policies:\n  - {id: p, "+body+"}\naccess_control:\n  - {resource: r, policies: [p]}\n"), "a")
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Policies) != 1 || a.Policies[0].Disabled == "" || len(findings) == 0 {
			t.Errorf("%q: %+v, findings %v", body, a.Policies, findings)
		}
	}
}

func TestRefusedFiles(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 10), ","))
	}
	cases := map[string]struct {
		text string
		line int
	}{
		"not YAML":    {"runners: [\n", 2},
		"a list":      {"- name: x\n", 1},
		"a text":      {"hello\n", 1},
		"too large":   {"#" + strings.Repeat("x", MaxFileSize), 1},
		"too deep":    {strings.Repeat("[", 200) + strings.Repeat("]", 200), 1},
		"alias bomb":  {bomb, 1},
		"alias cycle": {"a: &a [*a]\n", 1},
		"bad UTF-8":   {"a: \xff\xfe\n", 1},
	}
	for name, c := range cases {
		for _, parse := range []func() ([]Finding, error){
			func() ([]Finding, error) { _, fs, err := Parse([]byte(c.text), "f"); return fs, err },
			func() ([]Finding, error) { _, fs, err := ParseAccess([]byte(c.text), "f"); return fs, err },
		} {
			findings, err := parse()
			if gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.HasPrefix(gpuserver.PublicText(err), "f:") {
				t.Errorf("%s: the error is %v", name, err)
			}
			if len(findings) == 0 || findings[0].Rule != RuleSyntax || findings[0].Line < c.line {
				t.Errorf("%s: the findings are %v", name, findings)
			}
		}
	}
}

func TestEmptyFiles(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "null\n", "runners:\n"} {
		f, findings, err := Parse([]byte(text), "f")
		if err != nil || f == nil || len(f.Runners) > 0 || len(findings) == 0 {
			t.Errorf("Parse(%q) = %v, %v, %v", text, f, findings, err)
		}
		a, findings, err := ParseAccess([]byte(text), "f")
		if err != nil || a == nil || len(a.Grants) > 0 || len(findings) == 0 {
			t.Errorf("ParseAccess(%q) = %v, %v, %v", text, a, findings, err)
		}
	}
}

// TestRealFiles reads an organisation's real files: they must load unchanged.
func TestRealFiles(t *testing.T) {
	dir := os.Getenv("GPUSERVER_CIRUN_DIR")
	if dir == "" {
		t.Skip("GPUSERVER_CIRUN_DIR names no folder with real files")
	}
	find := func(name string) (string, bool) {
		for _, p := range []string{"." + name, name} {
			if _, err := os.Stat(filepath.Join(dir, p)); err == nil {
				return filepath.Join(dir, p), true
			}
		}
		return "", false
	}
	var in LintInput
	if p, ok := find("cirun.global.yml"); ok {
		f, findings, err := Parse(read(t, p), filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range findings {
			t.Error(fd)
		}
		if n := strings.Count(string(read(t, p)), "- name:"); len(f.Runners) != n {
			t.Errorf("%d of %d runners were read", len(f.Runners), n)
		}
		in.Organisation = f
		for _, r := range f.Runners {
			if got := Match(Files{Organisation: f}, append([]string{selfHosted, r.Labels[len(r.Labels)-1] + "--123"}, r.Labels...)); len(got.Runners) == 0 || got.Runners[0].Name != r.Name {
				t.Errorf("the labels of %s do not give it: %+v", r.Name, got)
			}
		}
		t.Logf("%d runners", len(f.Runners))
	}
	if p, ok := find("access.yml"); ok {
		a, findings, err := ParseAccess(read(t, p), filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range findings {
			t.Error(fd)
		}
		for _, pol := range a.Policies {
			if pol.Disabled != "" {
				t.Errorf("policy %s is disabled: %s", pol.ID, pol.Disabled)
			}
		}
		in.Access = a
		grants := 0
		for _, g := range a.Grants {
			grants += len(g.Policies)
		}
		t.Logf("%d policies, %d resources, %d grants", len(a.Policies), len(a.Grants), grants)
	}
	if in.Organisation == nil && in.Access == nil {
		t.Fatalf("%s holds neither .cirun.global.yml nor .access.yml", dir)
	}
	for _, fd := range Lint(in) {
		t.Log(fd)
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range []string{"testdata/cirun.global.yml", "testdata/access.yml"} {
		data, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("runners: [{name: a, cloud: b, <<: *x, instance_type: [1,2], labels: [l--x]}]"))
	f.Add([]byte("a: &a {<<: *a}\nrunners: *a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, findings, err := Parse(data, "f")
		check(t, findings, err)
		if err != nil {
			return
		}
		for _, r := range file.Runners {
			if len(r.Alternatives) == 0 || len(r.Labels) == 0 || r.Name == "" {
				t.Errorf("an unusable runner was kept: %+v", r)
			}
		}
		_ = Lint(LintInput{Organisation: file, Mapping: &Mapping{}})
		_ = Match(Files{Organisation: file}, []string{"x", "cirun-a-b-c"})
	})
}

func FuzzParseAccess(f *testing.F) {
	data, err := os.ReadFile("testdata/access.yml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("policies: [{id: p, repo: r, users: [{github: x, id: 1}, y, 3, null]}]\naccess_control: [{resource: r, policies: p}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, findings, err := ParseAccess(data, "f")
		check(t, findings, err)
		if err != nil {
			return
		}
		for _, p := range a.Policies {
			if p.ID == "" || p.Disabled == "" && (p.Repo == "" || !p.Teams.Given && !p.Roles.Given && !p.Users.Given && p.UsersFromJSON == "") {
				t.Errorf("an unusable policy is not disabled: %+v", p)
			}
		}
	})
}

// check insists on what holds for all findings and errors.
func check(t *testing.T, findings []Finding, err error) {
	t.Helper()
	if err != nil && (gpuserver.KindOf(err) != gpuserver.KindInvalid || len(findings) == 0) {
		t.Errorf("error %v with findings %v", err, findings)
	}
	for _, f := range findings {
		if f.Line < 1 || strings.ContainsAny(f.Text, "\n\r") || f.Text == "" || !documented(f.Rule) {
			t.Errorf("a bad finding: %q", f)
		}
	}
}

func documented(rule Rule) bool {
	for _, d := range RuleDocs {
		if d.Rule == rule {
			return true
		}
	}
	return false
}
