package main

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/config"
	"gpuserver/internal/gate"
)

// gpuService runs the whole service on a fake cloud with the pair and one single
// card of the machine that this project began with.
func gpuService(t *testing.T) *runningServer {
	t.Helper()
	card := func(address string) gpuserver.Card { return gpuserver.Card{Address: address, Model: "tesla-v100"} }
	c := fake.NewCloud(fake.Config{Name: "local"})
	c.SetHosts([]gpuserver.Host{{Name: "fake", VCPUs: 48, MemoryMiB: 500 << 10, DiskGiB: 2000, Slots: []gpuserver.Slot{
		{Group: 19, Cards: []gpuserver.Card{card("0000:27:00.0"), card("0000:28:00.0")}}, {Group: 32, Cards: []gpuserver.Card{card("0000:44:00.0")}},
	}}})
	served := httptest.NewServer(c.Handler())
	dir, err := os.MkdirTemp("", "gpus") // a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "gpuserver.yaml")
	text := fmt.Sprintf(`
server:
  data_dir: %[1]s/data
  listen: {webhooks: "", agent: "127.0.0.1:0", api: "", socket: %[1]s/s}
clouds: [{name: local, type: fake, fake: {url: %[2]q}}]
gpu_models: [{name: tesla-v100, ids: ["10de:1db4"]}]
flavors: [{name: gpu, vcpus: 4, memory: 4GiB, disk: 20GiB, gpus: {model: tesla-v100}}]
images: [{name: demo, fake: {}}]
`, dir, served.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := startServer(t.Context(), cfg, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Error(err)
		}
		served.Close()
		c.Close()
		_ = os.RemoveAll(dir)
	})
	t.Setenv(envServer, filepath.Join(dir, "s"))
	t.Setenv(envToken, "")
	for end := time.Now().Add(time.Minute); len(s.fleet.Hosts()) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the cloud's hosts were not read")
		}
	}
	return s
}

// TestGPUCommandsOfTheWholeService: what the commands ask for arrives in the
// fleet, and who asked stands in the history.
func TestGPUCommandsOfTheWholeService(t *testing.T) {
	s := gpuService(t)
	if out := gpuserverOK(t, "gpu", "list"); !strings.Contains(out, "local/fake  0000:44:00.0  32     tesla-v100  in service") {
		t.Errorf("list: %s", out)
	}
	if out := gpuserverOK(t, "gpu", "cordon", "44:00.0", "--reason", "its fan is loud"); !strings.Contains(out, "is cordoned.") {
		t.Errorf("cordon: %s", out)
	}
	if out := gpuserverOK(t, "gpu", "history", "44:00.0"); !strings.Contains(out, "its fan is loud (by socket)") {
		t.Errorf("history: %s", out)
	}
	if out := gpuserverOK(t, "status"); !strings.Contains(out, "2 in service, 1 cordoned") || !strings.Contains(out, "1 free on local, 1 out on local") {
		t.Errorf("status: %s", out)
	}
	if out := gpuserverOK(t, "gpu", "uncordon", "fake/44:00.0"); !strings.Contains(out, "is in service.") {
		t.Errorf("uncordon: %s", out)
	}

	if out := gpuserverOK(t, "gpu", "history", "44:00.0"); !strings.Contains(out, "by socket; it was cordoned: its fan is loud (by socket)") {
		t.Errorf("history: %s", out)
	}
	if out := gpuserverOK(t, "status", "--output", "json"); !strings.Contains(out, `"cards": true`) {
		t.Errorf("that we choose the cards is not told: %s", out)
	}
	c, err := api.NewClient(os.Getenv(envServer), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	job, err := c.TestGPU(t.Context(), "27:00.0")
	if err != nil {
		t.Fatal(err)
	}
	if out := gpuserverOK(t, "gpu", "history", "1"); !strings.Contains(out, fmt.Sprintf("job %d tests it, asked for by socket", job)) {
		t.Errorf("history: %s", out)
	}
	s.fleet.Struck(2, gate.KindXid)
	w := httptest.NewRecorder()
	s.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{`gpuserver_gpu_strikes_total{gpu="2",kind="xid"} 1`, `gpuserver_gpus{cloud="local",model="tesla-v100",state="in_service"} 3`} {
		if !strings.Contains(w.Body.String(), line) {
			t.Errorf("no %s in the metrics", line)
		}
	}
}
