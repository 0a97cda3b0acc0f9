package api

import (
	"slices"

	"gpuserver"
	"gpuserver/internal/sched"
)

// cardWarnings says which flavors ask for cards that no host has; nothing while
// a cloud has not told its hosts yet.
func cardWarnings(clouds []CloudStatus, hosts []gpuserver.Host, flavors []FlavorInfo) []string {
	if slices.ContainsFunc(clouds, func(c CloudStatus) bool { return !c.Known }) {
		return nil
	}
	models := map[string]bool{}
	for _, h := range hosts {
		for _, s := range h.Slots {
			for _, c := range s.Cards {
				models[c.Model] = true
			}
		}
	}
	asked := make([]gpuserver.Flavor, 0, len(flavors))
	for _, f := range flavors {
		asked = append(asked, f.Flavor)
	}
	return sched.Cardless(asked, func(model string) bool { return models[model] })
}
