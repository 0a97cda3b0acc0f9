package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// bare is a file without flavors.
const bare = `clouds:
  - {name: local, type: libvirt}
images:
  - {name: i, libvirt: {disk: images/i.qcow2}}
`

func parsed(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse([]byte(text), samplePath)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

// A file without flavors has those of the machine that the project began with,
// and two with a pair of cards: vCPUs, GiB of memory, GiB of disk, cards.
func TestCatalogue(t *testing.T) {
	want := map[string]string{
		"ci_medium": "4/8/60", "ci_large": "4/12/60", "ci_xlarge": "4/32/60", "ci_2xlarge": "8/32/80", "ci_4xlarge": "8/64/100",
		"gpu_tiny": "4/2/20 1 tesla-v100", "gpu_medium": "4/8/50 1 tesla-v100", "gpu_large": "4/12/60 1 tesla-v100",
		"gpu_xlarge": "8/16/60 1 tesla-v100", "gpu_2xlarge": "8/32/60 1 tesla-v100", "gpu_4xlarge": "8/64/60 1 tesla-v100",
		"gpu_2x_large": "8/24/100 2 tesla-v100", "gpu_2x_xlarge": "16/64/100 2 tesla-v100",
	}
	for name, text := range map[string]string{"left out": bare, "empty": bare + "flavors:\n", "sample": Sample()} {
		c := parsed(t, text)
		got := map[string]string{}
		for _, f := range c.FlavorMap() {
			got[f.Name] = fmt.Sprintf("%d/%d/%d", f.VCPUs, f.MemoryMiB>>10, f.DiskGiB)
			if f.GPUs.Count > 0 {
				got[f.Name] += fmt.Sprintf(" %d %s", f.GPUs.Count, f.GPUs.Model)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: flavors (-want +got):\n%s", name, d)
		}
		if notes := c.Notes(); len(notes) != 1 || !strings.Contains(notes[0], "gpu_2x_xlarge") {
			t.Errorf("%s: notes %q", name, notes)
		}
		if m := c.Models()["10de:1db4"]; m != "tesla-v100" {
			t.Errorf("%s: a V100 is called %q", name, m)
		}
	}
	if c := parsed(t, small); len(c.Flavors) != 1 || len(c.Notes()) != 0 {
		t.Errorf("with a list of its own: %d flavors, notes %q", len(c.Flavors), c.Notes())
	}
}

// The catalogue's cards are called what the file calls them, and known even if
// it knows others only.
func TestCatalogueModels(t *testing.T) {
	for name, tt := range map[string]struct{ models, want string }{
		"by number": {"gpu_models: [{name: volta, ids: ['10de:1db4']}]\n", "volta"},
		"by name":   {"gpu_models: [{name: tesla-v100, ids: ['10de:1db6']}]\n", "tesla-v100"},
		"by alias":  {"gpu_models: [{name: v100, aliases: [tesla-v100], ids: ['10de:1db5']}]\n", "v100"},
		"others":    {"gpu_models: [{name: a100, ids: ['10de:20b0']}]\n", "tesla-v100"},
		"none":      {"gpu_models: []\n", "tesla-v100"},
	} {
		c := parsed(t, bare+tt.models)
		if got := c.FlavorMap()["gpu_tiny"].GPUs.Model; got != tt.want {
			t.Errorf("%s: the catalogue's model is %q, want %q", name, got, tt.want)
		}
		if _, known := c.ModelFor("tesla-v100"); !known && tt.want != "volta" {
			t.Errorf("%s: it is not known", name)
		}
	}
	// What one file makes of the catalogue is not another's.
	if got := parsed(t, bare).FlavorMap()["gpu_tiny"].GPUs.Model; got != "tesla-v100" {
		t.Errorf("afterwards the model is %q", got)
	}
	// A list of its own gets no model that the file does not have.
	_, err := Parse([]byte(strings.Replace(small, "disk: 2GiB", "disk: 2GiB, gpus: {model: tesla-v100}", 1)+"gpu_models: [{name: a100, ids: ['10de:20b0']}]\n"), samplePath)
	if got := lines(t, err); len(got) != 1 || !strings.HasSuffix(got[0], `gpu_models has no "tesla-v100"; it has a100`) {
		t.Errorf("a model that is not there: %q", got)
	}
}
