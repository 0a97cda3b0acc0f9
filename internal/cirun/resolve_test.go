package cirun

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// local is a mapping as a machine with libvirt has it: other people's names
// mean its own.
func local() Mapping {
	flavor := func(name string, cpus int, memory, disk int64, aliases ...string) Flavor {
		return Flavor{Flavor: gpuserver.Flavor{Name: name, VCPUs: cpus, MemoryMiB: memory, DiskGiB: disk}, Aliases: aliases}
	}
	return Mapping{
		Clouds: []Cloud{
			{Name: "attic", Serves: []Place{{Cloud: "openstack"}}, Images: []string{"old"}},
			{Name: "local", Serves: []Place{{Cloud: "openstack", Region: "RegionOne"}, {Cloud: "on_prem"}, {Cloud: "digitalocean"}}},
		},
		Flavors: []Flavor{
			flavor("huge", 64, 262144, 1000),
			flavor("large", 8, 16384, 100, "gpu_large", "n1-standard-1+nvidia-tesla-t4"),
			flavor("small", 2, 2048, 20, "ci_small", "n1-standard-1"),
			withCard(flavor("card", 4, 8192, 50)),
		},
		Images: []gpuserver.Image{
			{Name: "debian-12", Aliases: []string{"ubuntu-2404-gpu-20260216-160856", "ubuntu2204"}},
			{Name: "old"},
		},
	}
}

// TestForeignEntryRunsHere is an entry of the shape that conda-forge has.
func TestForeignEntryRunsHere(t *testing.T) {
	f, _, err := Parse([]byte(`
runners:
  - name: cirun-openstack-gpu-large
    cloud: openstack
    instance_type: gpu_large
    machine_image: ubuntu-2404-gpu-20260216-160856
    region: RegionOne
    labels:
      - linux
      - x64
      - cirun-openstack-gpu-large
    extra_config: {env_vars: {A: b}}
`), ".cirun.global.yml")
	if err != nil {
		t.Fatal(err)
	}
	m := Match(Files{Organisation: f}, []string{"cirun-openstack-gpu-large--4711-linux"})
	entries, reason := ResolveAll(m.Runners, local())
	want := []gpuserver.Entry{{Cloud: "local", Flavor: "large", Image: "debian-12", Runner: "cirun-openstack-gpu-large", Env: map[string]string{"A": "b"}}}
	if diff := cmp.Diff(want, entries); diff != "" || reason != (gpuserver.Reason{}) {
		t.Errorf("reason %v, entries (-want +got):\n%s", reason, diff)
	}
}

func TestResolve(t *testing.T) {
	cases := []struct {
		name string
		a    Alternative
		want string // "cloud/flavor/image …", or words of the error
		err  bool
	}{
		{"by our own names", Alternative{Cloud: "local", InstanceType: "large", Image: "debian-12"}, "local/large/debian-12", false},
		{"any region is the second choice", Alternative{Cloud: "openstack", Region: "regionone", InstanceType: "large", Image: "old"}, "local/large/old attic/large/old", false},
		{"another region", Alternative{Cloud: "openstack", Region: "Two", InstanceType: "large", Image: "old"}, "attic/large/old", false},
		{"no region", Alternative{Cloud: "OpenStack", InstanceType: "large", Image: "old"}, "attic/large/old local/large/old", false},
		{"do is digitalocean", Alternative{Cloud: "do", InstanceType: "large", Image: "old"}, "local/large/old", false},
		{"a size that fits", Alternative{Cloud: "on_prem", InstanceType: "4vcpu-8gb-50gb", Size: ParseSize("4vcpu-8gb-50gb"), Image: "old"}, "local/large/old", false},
		{"a size that does not", Alternative{Cloud: "on_prem", InstanceType: "4vcpu-8gb-5000gb", Size: ParseSize("4vcpu-8gb-5000gb"), Image: "old"}, `"4vcpu-8gb-5000gb" or has that size`, true},
		{"type and gpu", Alternative{Cloud: "local", InstanceType: "n1-standard-1", GPU: "nvidia-tesla-t4", Image: "old"}, "local/large/old", false},
		{"type alone", Alternative{Cloud: "local", InstanceType: "n1-standard-1", GPU: "other", Image: "old"}, "local/small/old", false},
		{"no cloud", Alternative{Cloud: "azure", Region: "uksouth", InstanceType: "large", Image: "old"}, `no cloud of the configuration serves cloud "azure" in region "uksouth"; add it to "serves"`, true},
		{"no flavor", Alternative{Cloud: "local", InstanceType: "gpu_9xlarge", Image: "old"}, `no flavor of the configuration is called "gpu_9xlarge"; add it to "aliases" of a flavor`, true},
		{"no image", Alternative{Cloud: "local", InstanceType: "large", Image: "beos"}, `no image of the configuration is called "beos"; add it to "aliases" of an image`, true},
		{"no source there", Alternative{Cloud: "attic", InstanceType: "large", Image: "debian-12"}, "has no source for the cloud attic", true},
	}
	for _, c := range cases {
		entries, err := Resolve(runner("r"), c.a, local())
		var got []string
		for _, e := range entries {
			got = append(got, e.Cloud+"/"+e.Flavor+"/"+e.Image)
		}
		switch {
		case c.err && (gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(gpuserver.PublicText(err), c.want)):
			t.Errorf("%s: the error is %v", c.name, err)
		case !c.err && (err != nil || strings.Join(got, " ") != c.want):
			t.Errorf("%s: got %q, %v", c.name, got, err)
		}
	}
}

func TestResolveOneLine(t *testing.T) {
	m := local()
	cases := []struct{ label, want string }{
		{"cirun-openstack-gpu-large-ubuntu2204--1", "local/large/debian-12"},
		{"Cirun-OpenStack-Large-Debian-12--x", "local/large/debian-12"},
		{"cirun-local-n1-standard-1-old", "local/small/old"},
		{"cirun-do-large-old", "local/large/old"},
		{"cirun-openstack-large-old", "attic/large/old local/large/old"},
		{"cirun-aws-t2-large-ubuntu2204", ""},
		{"cirun-local-large-", ""},
	}
	for _, c := range cases {
		res := Match(Files{}, []string{c.label})
		entries, reason := ResolveAll(res.Runners, m)
		var got []string
		for _, e := range entries {
			got = append(got, e.Cloud+"/"+e.Flavor+"/"+e.Image)
			if e.Runner != Base(c.label) {
				t.Errorf("%s: its runner is %q", c.label, e.Runner)
			}
		}
		if g := strings.Join(got, " "); g != strings.TrimPrefix(c.want, "") {
			t.Errorf("%s: got %q, %+v", c.label, g, reason)
		}
	}
	m.Flavors = append(m.Flavors, Flavor{Flavor: gpuserver.Flavor{Name: "large-debian"}})
	m.Images = append(m.Images, gpuserver.Image{Name: "12"})
	if _, reason := ResolveAll(Match(Files{}, []string{"cirun-local-large-debian-12"}).Runners, m); reason.Class != gpuserver.ReasonNoPlace || !strings.Contains(reason.Text, "2 ways") {
		t.Errorf("two readings: %+v", reason)
	}
}

func TestResolveAllKeepsWhatItCan(t *testing.T) {
	r := runner("r", "l")
	r.Alternatives = []Alternative{
		{Cloud: "azure", InstanceType: "large", Image: "old"},
		{Cloud: "on_prem", InstanceType: "large", Image: "old"},
		{Cloud: "local", InstanceType: "large", Image: "old"},
	}
	entries, reason := ResolveAll([]Runner{r}, local())
	if len(entries) != 1 || reason.Class != "" || !strings.Contains(reason.Text, `serves cloud "azure"`) {
		t.Errorf("got %v, %+v", entries, reason)
	}
	if entries, reason = ResolveAll([]Runner{r}, Mapping{}); len(entries) != 0 || reason.Class != gpuserver.ReasonNoPlace {
		t.Errorf("with nothing mapped: %v, %+v", entries, reason)
	}
}

// withCard gives a flavor a card.
func withCard(f Flavor) Flavor {
	f.GPUs = gpuserver.GPUs{Model: "tesla-v100", Count: 1}
	return f
}
