package config

import (
	"fmt"
	"slices"
	"strings"
)

// The default catalogue: what the server that this project began with offered,
// and two flavors with a pair of cards. A file that lists no flavors gets it.

// catalogueModel is the model of the catalogue's cards: a Tesla V100 PCIe 16GB.
var catalogueModel = GPUModel{Name: "tesla-v100", Aliases: []string{"nvidia-tesla-v100"}, IDs: []string{"10de:1db4"}}

// catalogue gives the flavors of the default catalogue.
func catalogue() []Flavor {
	flavors := []Flavor{
		{Name: "ci_medium", VCPUs: 4, Memory: 8 * GiB, Disk: 60 * GiB},
		{Name: "ci_large", VCPUs: 4, Memory: 12 * GiB, Disk: 60 * GiB},
		{Name: "ci_xlarge", VCPUs: 4, Memory: 32 * GiB, Disk: 60 * GiB},
		{Name: "ci_2xlarge", VCPUs: 8, Memory: 32 * GiB, Disk: 80 * GiB},
		{Name: "ci_4xlarge", VCPUs: 8, Memory: 64 * GiB, Disk: 100 * GiB},
		{Name: "gpu_tiny", VCPUs: 4, Memory: 2 * GiB, Disk: 20 * GiB},
		{Name: "gpu_medium", VCPUs: 4, Memory: 8 * GiB, Disk: 50 * GiB},
		{Name: "gpu_large", VCPUs: 4, Memory: 12 * GiB, Disk: 60 * GiB},
		{Name: "gpu_xlarge", VCPUs: 8, Memory: 16 * GiB, Disk: 60 * GiB},
		{Name: "gpu_2xlarge", VCPUs: 8, Memory: 32 * GiB, Disk: 60 * GiB},
		{Name: "gpu_4xlarge", VCPUs: 8, Memory: 64 * GiB, Disk: 60 * GiB},
		{Name: "gpu_2x_large", VCPUs: 8, Memory: 24 * GiB, Disk: 100 * GiB},
		{Name: "gpu_2x_xlarge", VCPUs: 16, Memory: 64 * GiB, Disk: 100 * GiB},
	}
	for i, f := range flavors {
		switch {
		case strings.HasPrefix(f.Name, "gpu_2x_"):
			flavors[i].GPUs = &GPUs{Model: catalogueModel.Name, Count: 2}
		case strings.HasPrefix(f.Name, "gpu_"):
			flavors[i].GPUs = &GPUs{Model: catalogueModel.Name, Count: 1}
		}
	}
	return flavors
}

// catalogueFits gives the catalogue's flavors a model that the file knows: the
// file may call these cards otherwise, or list only models of its own. In that
// case the model is added, so that jobs are told that no host has such a card.
func (k *checker) catalogueFits() {
	if _, listed := k.places["flavors[0]"]; listed || len(k.c.Flavors) == 0 {
		return
	}
	k.c.catalogue = true
	name, known := k.c.ModelFor(catalogueModel.Name)
	if !known {
		name, known = k.c.Models()[catalogueModel.IDs[0]]
	}
	if !known {
		name = catalogueModel.Name
		k.c.GPUModels = append(k.c.GPUModels, GPUModel{Name: name, IDs: slices.Clone(catalogueModel.IDs)})
	}
	for i := range k.c.Flavors {
		if g := k.c.Flavors[i].GPUs; g != nil {
			g.Model = name
		}
	}
}

// Notes says what a reader of the file should know though nothing is wrong, one
// sentence each.
func (c *Config) Notes() (notes []string) {
	if c.catalogue {
		var names []string
		model := ""
		for _, f := range c.Flavors {
			names = append(names, f.Name)
			if f.GPUs != nil {
				model = f.GPUs.Model
			}
		}
		notes = append(notes, fmt.Sprintf("flavors: none are listed, so these of the default catalogue are used: %s; those with cards are for model %s", strings.Join(names, ", "), model))
	}
	return notes
}
