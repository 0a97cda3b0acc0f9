package cirun

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuserver"
)

func names(rs []Runner) string {
	var out []string
	for _, r := range rs {
		out = append(out, string(r.Origin)+"/"+r.Name)
	}
	return strings.Join(out, " ")
}

func runner(name string, labels ...string) Runner {
	return Runner{Name: name, Path: "f", Line: 1, Cloud: "openstack", Labels: labels, Alternatives: []Alternative{{Cloud: "openstack"}}}
}

func TestMatch(t *testing.T) {
	org := fixture(t)
	repo := &File{Path: ".cirun.yml", Runners: []Runner{runner("own", "cirun-own", "cirun-cpu"), runner("Octo-CPU", "cirun-evil")}}
	conf := &File{Path: "gpuserver.yaml", Runners: []Runner{runner("house", "cirun-cpu"), runner("octo-spot", "cirun-house")}}
	cases := []struct {
		name   string
		files  Files
		labels []string
		want   string
	}{
		{"by one label", Files{Organisation: org}, []string{"cirun-gpu-large"}, "organisation/octo-gpu-large"},
		{"suffix and self-hosted", Files{Organisation: org}, []string{"self-hosted", "cirun-gpu-large--run-12"}, "organisation/octo-gpu-large"},
		{"all in one entry", Files{Organisation: org}, []string{"linux", "x64", "cirun-gpu-large--1"}, "organisation/octo-gpu-large"},
		{"letter case", Files{Organisation: org}, []string{"Self-Hosted", "MACOS", "Cirun-Mac--1"}, "organisation/octo-mac"},
		{"labels of two entries", Files{Organisation: org}, []string{"windows", "cirun-gpu-large"}, ""},
		{"fallback in order", Files{Organisation: org}, []string{"cirun-cpu--7"}, "organisation/octo-cpu organisation/octo-spot"},
		{"the repository's first", Files{Organisation: org, Repository: repo}, []string{"cirun-cpu"}, "repository/own organisation/octo-cpu organisation/octo-spot"},
		{"the configuration's before all", Files{Organisation: org, Repository: repo, Configuration: conf}, []string{"cirun-cpu"}, "configuration/house repository/own organisation/octo-cpu"},
		{"a redefined runner", Files{Organisation: org, Repository: repo}, []string{"cirun-evil"}, ""},
		{"one without its base", Files{Organisation: org}, []string{"--x"}, ""},
		{"self-hosted alone", Files{Organisation: org}, []string{"self-hosted"}, ""},
		{"no labels", Files{Organisation: org}, nil, ""},
		{"no files", Files{}, []string{"linux"}, ""},
		{"too many labels", Files{Organisation: org}, slices.Repeat([]string{"linux"}, 101), ""},
		{"one line", Files{Organisation: org}, []string{"cirun-openstack-gpu-large-ubuntu2204--9"}, "label/cirun-openstack-gpu-large-ubuntu2204"},
		{"one line with others", Files{Organisation: org}, []string{"linux", "cirun-openstack-gpu-large-ubuntu2204"}, ""},
		{"one line too short", Files{Organisation: org}, []string{"cirun-openstack-gpu"}, ""},
	}
	for _, c := range cases {
		got := Match(c.files, c.labels)
		if names(got.Runners) != c.want {
			t.Errorf("%s: got %q, want %q", c.name, names(got.Runners), c.want)
		}
		if (len(got.Runners) == 0) != (got.Reason.Class == gpuserver.ReasonNoRunner) {
			t.Errorf("%s: the reason is %+v", c.name, got.Reason)
		}
	}
	got := Match(Files{Organisation: org, Repository: repo, Configuration: conf}, []string{"self-hosted", "X--1", "x--1", "y"})
	if diff := cmp.Diff([]string{"self-hosted", "X--1", "y"}, got.Labels); diff != "" {
		t.Errorf("the runner's labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"34 redefined-runner", "1 redefined-runner"}, short(got.Findings)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// TestNamesOfDisabledRunnersAreTaken shows that a mistake in the organisation's
// file does not hand the access to its runner to somebody else's entry.
func TestNamesOfDisabledRunnersAreTaken(t *testing.T) {
	org, _, err := Parse([]byte(`runners:
  - {name: cirun-here-large-debian, cloud: openstack, machine_image: i, labels: [cirun-big]}
  - {name: cirun-here-small-debian, cloud: openstack, instance_type: t, machine_image: i, labels: [cirun-small]}
`), ".cirun.global.yml")
	if err != nil {
		t.Fatal(err)
	}
	repo := &File{Path: ".cirun.yml", Runners: []Runner{runner("Cirun-Here-Large-Debian", "cirun-mine")}}
	for _, c := range []struct {
		files       Files
		label, says string
	}{
		{Files{Organisation: org, Repository: repo}, "cirun-mine", "its name is the organisation's (.cirun.global.yml:2)"},
		{Files{Organisation: org}, "cirun-big", "the runner cirun-here-large-debian (.cirun.global.yml:2) would serve it, but is ignored, because it cannot be used"},
		{Files{Organisation: org}, "cirun-here-large-debian", `no runner has the label "cirun-here-large-debian"`},
		{Files{Organisation: org}, "cirun-here-small-debian", `no runner has the label "cirun-here-small-debian"`},
	} {
		got := Match(c.files, []string{c.label})
		if len(got.Runners) != 0 || !strings.Contains(got.Reason.Text, c.says) {
			t.Errorf("%s: %s, %q", c.label, names(got.Runners), got.Reason.Text)
		}
	}
	if !NewKnown(nil, &File{Disabled: []Runner{runner("x", "lab")}}).Ours([]string{"lab"}) {
		t.Error("the label of a disabled runner is not ours")
	}
}

func TestNearMiss(t *testing.T) {
	org := fixture(t)
	cases := []struct {
		labels     []string
		text, help string
	}{
		{
			[]string{"cirun-gpu-larg--5"},
			`no runner has the label "cirun-gpu-larg"; the nearest is "cirun-gpu-large" (runner octo-gpu-large, .cirun.global.yml:7).`,
			`Write "cirun-gpu-large" in runs-on, or add the label "cirun-gpu-larg" to a runner in .cirun.global.yml.`,
		},
		{
			[]string{"windows", "x64", "cirun-windows"},
			`no single runner has all of "windows", "x64", "cirun-windows"; the nearest is octo-windows (.cirun.global.yml:42), which lacks "x64".`,
			`Leave "x64" out of runs-on, or add it to the labels of octo-windows.`,
		},
		{
			[]string{"ubuntu-latest", "cirun-cpu"},
			`no runner has the label "ubuntu-latest", which is a name of GitHub's own runners.`,
			`Leave it out of runs-on, or ask for it alone.`,
		},
	}
	for _, c := range cases {
		got := Match(Files{Organisation: org}, c.labels).Reason
		want := gpuserver.Reason{Class: gpuserver.ReasonNoRunner, Text: noRunner + c.text, Help: c.help}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.labels, diff)
		}
	}
	if got := Match(Files{}, []string{"x"}).Reason; !strings.Contains(got.Text, "no runner is defined") {
		t.Errorf("without files: %+v", got)
	}
}

// TestMatchProperties says what holds for all files and labels.
func TestMatchProperties(t *testing.T) {
	word := rapid.SampledFrom([]string{"linux", "x64", "gpu", "cirun-a", "cirun-b", "macOS"})
	rapid.Check(t, func(t *rapid.T) {
		var f File
		for range rapid.IntRange(0, 5).Draw(t, "runners") {
			f.Runners = append(f.Runners, runner(rapid.StringMatching(`[a-d]`).Draw(t, "name"), rapid.SliceOfN(word, 1, 4).Draw(t, "labels")...))
		}
		labels := rapid.SliceOfN(word, 0, 4).Draw(t, "wanted")
		got := Match(Files{Organisation: &f}, labels)

		for _, r := range got.Runners {
			for _, l := range labels {
				if !slices.Contains(r.Labels, l) {
					t.Fatalf("%v was matched for %q", r.Labels, l)
				}
			}
		}
		changed := []string{"SELF-hosted"}
		for _, l := range labels {
			changed = append(changed, flipCase(l)+"--suffix")
		}
		if again := Match(Files{Organisation: &f}, changed); names(again.Runners) != names(got.Runners) {
			t.Fatalf("case and suffix change the match: %q, %q", names(got.Runners), names(again.Runners))
		}
		if again := Match(Files{Organisation: &f}, backwards(labels)); names(again.Runners) != names(got.Runners) {
			t.Fatalf("the labels' order changes the match: %q, %q", names(got.Runners), names(again.Runners))
		}
		if len(got.Runners) > 0 && !NewKnown(nil, &f).Ours(labels) {
			t.Fatalf("%v match and are not ours", labels)
		}
		more := append(slices.Clone(labels), word.Draw(t, "one more"))
		if again := Match(Files{Organisation: &f}, more); len(labels) > 0 && len(again.Runners) > len(got.Runners) {
			t.Fatalf("asking for more gives more: %q, %q", names(got.Runners), names(again.Runners))
		}
		own := &File{Runners: f.Runners}
		if again := Match(Files{Organisation: &f, Repository: own}, labels); names(again.Runners) != names(got.Runners) {
			t.Fatalf("a repository's copy of the organisation's file changes the match: %q, %q", names(got.Runners), names(again.Runners))
		}
	})
}

func flipCase(s string) string {
	if s == strings.ToUpper(s) {
		return strings.ToLower(s)
	}
	return strings.ToUpper(s)
}

func TestOurs(t *testing.T) {
	org := fixture(t)
	cases := []struct {
		known  Known
		labels []string
		want   bool
	}{
		{NewKnown(nil), []string{"ubuntu-latest"}, false},
		{NewKnown(nil), []string{"ubuntu-24.04-arm"}, false},
		{NewKnown(nil), []string{"macos-latest-xlarge"}, false},
		{NewKnown([]string{"ubuntu-"}), []string{"Ubuntu-Latest"}, false},
		{NewKnown(nil), nil, false},
		{NewKnown(nil), []string{"custom"}, false},
		{NewKnown(nil), []string{"self-hosted", "custom"}, true},
		{NewKnown(nil), []string{"Cirun-x--1"}, true},
		{NewKnown(nil), []string{"gpuserver-large"}, true},
		{NewKnown([]string{"Lab-"}), []string{"lab-7"}, true},
		{NewKnown(nil, nil, org), []string{"MacOS--4"}, true},
		{Known{Unread: true}, []string{"custom"}, true},
		{Known{Unread: true}, []string{"ubuntu-22.04"}, false},
		{Known{}, []string{"custom"}, false},
	}
	for _, c := range cases {
		if got := c.known.Ours(c.labels); got != c.want {
			t.Errorf("%v: got %v", c.labels, got)
		}
	}
}

func backwards(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}
