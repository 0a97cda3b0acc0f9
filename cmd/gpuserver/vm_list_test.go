package main

import (
	"strings"
	"testing"

	"gpuserver"
)

// The list of VMs names each one's cloud.
func TestVMListAcrossClouds(t *testing.T) {
	var b strings.Builder
	vms := []gpuserver.VM{
		{ID: 1, Name: "gs-1", Cloud: "local", Host: "node1", State: gpuserver.VMBusy, Flavor: "small"},
		{ID: 2, Name: "gs-2", Cloud: "stack", Host: "stack", State: gpuserver.VMBooting, Flavor: "gpu_large"},
	}
	if err := printVMs(&b, vms); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"local/node1", "stack/stack"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}
