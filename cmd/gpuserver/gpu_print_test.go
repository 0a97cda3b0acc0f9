package main

import (
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/api"
)

// Of a card that its cloud does not show from outside it is said that only its guests
// tell of it.
func TestHealthThatOnlyGuestsTell(t *testing.T) {
	for guestOnly, want := range map[bool]bool{true: true, false: false} {
		var b strings.Builder
		if err := printGPU(&b, api.GPUDetail{GPU: api.GPUInfo{GPU: gpuserver.GPU{ID: 4}, GuestOnly: guestOnly}}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(b.String(), "guest-side only"); got != want {
			t.Errorf("guest only %t:\n%s", guestOnly, b.String())
		}
	}
}
