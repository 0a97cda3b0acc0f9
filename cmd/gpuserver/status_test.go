package main

import (
	"strings"
	"testing"

	"gpuserver/internal/api"
)

// A suspended flavor is shown by status and resumed by a command.
func TestResumeFlavor(t *testing.T) {
	s := operate(t, api.Options{})
	if got := gpuserverOK(t, "status"); !strings.Contains(got, "ledger and cloud disagree") || !strings.Contains(got, "gpuserver cloud check stack, end it with gpuserver cloud resume stack gpu_large") {
		t.Errorf("status does not tell of the flavor:\n%s", got)
	}
	if got := gpuserverOK(t, "__complete", "cloud", "resume", "stack", ""); !strings.Contains(got, "gpu_large\n") {
		t.Errorf("completed: %s", got)
	}
	if got := gpuserverOK(t, "cloud", "resume", "stack", "gpu_large"); !strings.Contains(got, "VMs of flavor gpu_large are made on cloud stack again.") {
		t.Errorf("resumed: %s", got)
	}
	if calls := s.fleet.Calls(); len(calls) != 1 || calls[0] != "resume gpu_large on stack by socket" {
		t.Errorf("calls: %q", calls)
	}
	if got := gpuserverOK(t, "status"); strings.Contains(got, "gpu_large is suspended") {
		t.Errorf("status afterwards:\n%s", got)
	}
}

func TestStatusPrintsWarnings(t *testing.T) {
	var b strings.Builder
	if err := printStatus(&b, api.Status{Ready: true, Warnings: []string{"no host has a card\x1b of model a100"}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "\nWarning: no host has a card? of model a100.\n") {
		t.Errorf("the warning is not in:\n%s", b.String())
	}
}
