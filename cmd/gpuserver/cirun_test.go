package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/cirun"
	"gpuserver/internal/config"
)

// cirunLint runs the command and gives what it printed and its exit status.
func cirunLint(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := newCirunCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(append([]string{"lint"}, args...))
	status = exitStatus(&errs, cmd.ExecuteContext(t.Context()))
	return out.String(), errs.String(), status
}

// folder makes a folder with files, by name.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	cleanGlobal = "runners:\n  - name: a\n    cloud: openstack\n    region: RegionOne\n    instance_type: gpu_large\n    machine_image: ubuntu\n    labels: [cirun-a]\n"
	cleanAccess = "version: 1\npolicies:\n  - {id: p, repo: x, users: [alice]}\naccess_control:\n  - {resource: a, policies: [p]}\n"
)

func TestCirunLint(t *testing.T) {
	cases := []struct {
		name   string
		files  map[string]string
		want   string
		status int
	}{
		{"clean", map[string]string{".cirun.global.yml": cleanGlobal, ".access.yml": cleanAccess}, "", 0},
		{"clean without dots", map[string]string{"cirun.global.yml": cleanGlobal, "access.yml": cleanAccess}, "", 0},
		{"a repository's file", map[string]string{".cirun.yml": strings.Replace(cleanGlobal, "openstack", "moon", 1)}, ".cirun.yml:2: unknown-cloud: ", 1},
		{"without a dot", map[string]string{"cirun.yml": strings.Replace(cleanGlobal, "openstack", "moon", 1)}, "cirun.yml:2: unknown-cloud: ", 1},
		{
			"sorted by file and line",
			map[string]string{".cirun.global.yml": cleanGlobal, ".access.yml": strings.ReplaceAll(cleanAccess, "resource: a", "resource: b") + "more: 1\n"},
			".access.yml:5: unknown-resource: |.access.yml:6: unknown-key: |.cirun.global.yml:2: ungranted-runner: ", 1,
		},
		{
			"the file with the dot wins", map[string]string{".access.yml": cleanAccess, "access.yml": "version: 7\n"}, "", 0,
		},
		{"not YAML", map[string]string{".cirun.yml": "runners: [\n"}, ".cirun.yml:2: syntax: ", 2},
		{"one of two is not YAML", map[string]string{".cirun.global.yml": cleanGlobal, ".access.yml": "x: [\n"}, ".access.yml:2: syntax: ", 2},
		{"nothing there", map[string]string{"README": ""}, "", 2},
	}
	for _, c := range cases {
		out, errs, status := cirunLint(t, folder(t, c.files))
		var got []string
		for line := range strings.Lines(out) {
			parts := strings.SplitN(line, ": ", 3)
			if len(parts) < 3 || !strings.HasSuffix(parts[2], "\n") || len(parts[2]) < 10 {
				t.Errorf("%s: a bad line: %q", c.name, line)
				continue
			}
			got = append(got, parts[0]+": "+parts[1]+": ")
		}
		if diff := cmp.Diff(c.want, strings.Join(got, "|")); diff != "" || status != c.status {
			t.Errorf("%s: status %d, standard error %q, lines (-want +got):\n%s", c.name, status, errs, diff)
		}
		if (status == 2) != (errs != "") {
			t.Errorf("%s: status %d with standard error %q", c.name, status, errs)
		}
	}
}

func TestCirunLintCannotRead(t *testing.T) {
	file := filepath.Join(folder(t, map[string]string{"x": ""}), "x")
	special := t.TempDir()
	if err := os.Mkdir(filepath.Join(special, ".cirun.yml"), 0o700); err != nil {
		t.Fatal(err)
	}
	clean := folder(t, map[string]string{".cirun.yml": cleanGlobal})
	for _, args := range [][]string{
		{},
		{clean, clean},
		{filepath.Join(clean, "missing")},
		{file},
		{special},
		{"--nonsense", clean},
		{"--rules", clean},
		{"--config", filepath.Join(clean, "missing.yaml"), clean},
		{"--config", filepath.Join(clean, ".cirun.yml"), clean},
	} {
		if out, errs, status := cirunLint(t, args...); out != "" || errs == "" || status == 0 || status == 1 && args[0] != "--nonsense" {
			t.Errorf("%q: status %d, output %q, error %q", args, status, out, errs)
		}
	}
}

const lintConfig = `clouds:
  - name: local
    type: libvirt
    serves: [{cloud: openstack, region: RegionOne}]
flavors:
  - {name: large, aliases: [gpu_large], vcpus: 8, memory: 16GiB, disk: 100GiB}
images:
  - name: debian-12
    aliases: [ubuntu]
    libvirt: {disk: /var/lib/gpuserver/images/debian-12.qcow2}
`

// TestCirunLintComparesWithConfiguration runs the mapping that the service uses.
func TestCirunLintComparesWithConfiguration(t *testing.T) {
	dir := folder(t, map[string]string{".cirun.yml": cleanGlobal, "mapped.yaml": lintConfig, "other.yaml": strings.NewReplacer("RegionOne", "Two", "gpu_large", "x", "ubuntu", "y").Replace(lintConfig)})
	if out, errs, status := cirunLint(t, "--config", filepath.Join(dir, "mapped.yaml"), dir); status != 0 {
		t.Errorf("mapped: status %d\n%s%s", status, out, errs)
	}
	out, errs, status := cirunLint(t, "--config", filepath.Join(dir, "other.yaml"), dir)
	for _, rule := range []cirun.Rule{cirun.RuleUnmappedCloud, cirun.RuleUnmappedFlavor, cirun.RuleUnmappedImage} {
		if !strings.Contains(out, ".cirun.yml:2: "+string(rule)+": ") {
			t.Errorf("%s is not found", rule)
		}
	}
	if status != 1 {
		t.Errorf("unmapped: status %d\n%s%s", status, out, errs)
	}
}

func TestCirunLintPrintsRules(t *testing.T) {
	out, _, status := cirunLint(t, "--rules")
	for _, r := range cirun.RuleDocs {
		if !strings.Contains(out, string(r.Rule)+" ") || !strings.Contains(out, r.Text+"\n") {
			t.Errorf("the rule %s is not printed", r.Rule)
		}
	}
	if status != 0 {
		t.Errorf("status %d", status)
	}
}

func TestLintPrintErrorIsTold(t *testing.T) {
	dir := folder(t, map[string]string{".cirun.yml": "x: 1\n"})
	if err := lintCirun(brokenPipe{}, dir, ""); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

// TestSampleRunnersRun shows that the runners of the sample configuration are
// read, clean, and mapped by that same configuration.
func TestSampleRunnersRun(t *testing.T) {
	c, err := config.Parse([]byte(config.Sample()), "gpuserver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f, findings, err := cirun.Parse(c.Runners.Source(), c.Path)
	if err != nil || len(findings) > 0 || len(f.Runners) == 0 {
		t.Fatal(f, findings, err)
	}
	m := c.Mapping()
	if findings = cirun.Lint(cirun.LintInput{Repository: f, Mapping: &m}); len(findings) > 0 {
		t.Error(findings)
	}
	for _, r := range f.Runners {
		line := strings.Split(config.Sample(), "\n")[r.Line-1]
		if !strings.Contains(line, r.Name) {
			t.Errorf("the runner %s is said to be on the line %q", r.Name, line)
		}
		if entries, reason := cirun.ResolveAll([]cirun.Runner{r}, m); len(entries) == 0 {
			t.Errorf("%s: %+v", r.Name, reason)
		}
	}
	if c.Access.Given() {
		if _, findings, err := cirun.ParseAccess(c.Access.Source(), c.Path); err != nil || len(findings) > 0 {
			t.Error(findings, err)
		}
	}
}
