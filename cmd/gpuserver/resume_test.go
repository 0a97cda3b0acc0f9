package main

import (
	"fmt"
	"testing"
	"time"

	"gpuserver/internal/config"
)

// TestSuspensionSettingsArrive follows the settings to the fleet.
func TestSuspensionSettingsArrive(t *testing.T) {
	cfg, err := config.Parse(fmt.Appendf(nil, `
server: {data_dir: %q, listen: {webhooks: "", agent: "127.0.0.1:0", api: "127.0.0.1:0", socket: ""}}
clouds: [{name: local, type: fake}]
flavors: [{name: small, vcpus: 1, memory: 1GiB, disk: 2GiB}]
images: [{name: demo, fake: {}}]
jobs: {suspend_flavor_after: 7, suspend_flavor_over: 8m, suspend_flavor_for: 9m}
`, t.TempDir()), "gpuserver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(t.Context(), cfg, newLog(cfg.Server.Log, t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if l := s.fleet.Limits; l.SuspendAfter != 7 || l.SuspendOver != 8*time.Minute || l.SuspendFor != 9*time.Minute {
		t.Errorf("the fleet has %+v", l)
	}
}
