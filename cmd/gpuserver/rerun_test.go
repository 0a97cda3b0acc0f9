package main

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gpuserver/internal/config"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/github"
)

// TestRerunOnGPUFailureArrives follows the setting to the fleet, and to what is
// asked of the App: nothing more unless it is set.
func TestRerunOnGPUFailureArrives(t *testing.T) {
	hub := forgetest.New(forgetest.Config{})
	web := httptest.NewServer(hub)
	defer func() { web.Close(); _ = hub.Close() }()
	app := hub.App()
	dir := t.TempDir()
	key := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(key, []byte(app.PrivateKeyPEM), 0o600); err != nil {
		t.Fatal(err)
	}
	for set, want := range map[bool]bool{false: false, true: true} {
		cfg, err := config.Parse(fmt.Appendf(nil, `
server: {data_dir: %[1]s/%[4]t, listen: {webhooks: "", agent: "127.0.0.1:0", api: "127.0.0.1:0", socket: ""}}
forges: [{name: hub, type: github, base_url: %[2]q, app_id: %[3]d, private_key: {file: %[5]s}, mode: pull}]
clouds: [{name: local, type: fake}]
flavors: [{name: small, vcpus: 1, memory: 1GiB, disk: 2GiB}]
images: [{name: demo, fake: {}}]
jobs: {rerun_on_gpu_failure: %[4]t}
`, dir, web.URL, app.ID, set, key), "gpuserver.yaml")
		if err != nil {
			t.Fatal(err)
		}
		s, err := newServer(t.Context(), cfg, newLog(cfg.Server.Log, t.Output()))
		if err != nil {
			t.Fatal(err)
		}
		if s.fleet.RerunOnGPU != want {
			t.Errorf("set to %t, the fleet has %t", set, s.fleet.RerunOnGPU)
		}
		s.Close()
		found, err := checkForge(t.Context(), cfg, &cfg.Forges[0])
		if err != nil {
			t.Fatal(err)
		}
		asks := slices.ContainsFunc(found, func(f github.Finding) bool {
			return f.Check == "permission actions: write of the App" && f.Level == github.Fail
		})
		if asks != want {
			t.Errorf("set to %t, forge check asks for Actions: write: %t, in %+v", set, asks, found)
		}
	}
}
