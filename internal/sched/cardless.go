package sched

import (
	"fmt"
	"maps"
	"slices"

	"gpuserver"
)

// Cardless gives a sentence for each model that flavors ask for and no card of
// which is there: jobs for these flavors cannot run anywhere. have says which
// models are there.
func Cardless(flavors []gpuserver.Flavor, have func(model string) bool) (sentences []string) {
	asking := map[string][]string{}
	for _, f := range flavors {
		if f.GPUs.Count > 0 && !have(f.GPUs.Model) {
			asking[f.GPUs.Model] = append(asking[f.GPUs.Model], f.Name)
		}
	}
	for _, model := range slices.Sorted(maps.Keys(asking)) {
		names := asking[model]
		slices.Sort(names)
		sentences = append(sentences, fmt.Sprintf("no host has a card of model %s that VMs may have, so jobs for %s cannot run; gpuserver host inspect shows a host's cards, and gpu_models says which numbers a model has", model, join(names)))
	}
	return sentences
}
