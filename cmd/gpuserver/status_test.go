package main

import (
	"strings"
	"testing"

	"gpuserver/internal/api"
)

func TestStatusPrintsWarnings(t *testing.T) {
	var b strings.Builder
	if err := printStatus(&b, api.Status{Ready: true, Warnings: []string{"no host has a card\x1b of model a100"}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "\nWarning: no host has a card? of model a100.\n") {
		t.Errorf("the warning is not in:\n%s", b.String())
	}
}
