package main

import (
	"net/netip"
	"os"
	"testing"
)

// TestRangesAreReserved: two commands that start at the same time get ranges of
// their own, though neither has an interface yet.
func TestRangesAreReserved(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("commands that make networks need root")
	}
	for name, free := range map[string]func() (netip.Prefix, error){"of VMs": freeNetwork, "of the stand-in": freeTestNet} {
		first, err := free()
		if err != nil {
			t.Fatal(err)
		}
		second, err := free()
		if err != nil {
			t.Fatal(err)
		}
		if !first.IsValid() || !second.IsValid() || first.Overlaps(second) {
			t.Errorf("ranges %s: %s and %s at the same time", name, first, second)
		}
	}
}
