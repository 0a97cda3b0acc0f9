package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/fake"
	"gpuserver/internal/forge/forgetest"
)

// The environment in which the benchmark's program is another process.
const (
	RoleVariable = "GPUSERVER_BENCH_ROLE"
	argsVariable = "GPUSERVER_BENCH_ARGS"
)

const webhookSecret = "the secret of the benchmark"

// forgeArgs are how the stand-in for GitHub runs.
type forgeArgs struct {
	Latency time.Duration `json:"latency"`
	Limits  bool          `json:"limits"` // those that GitHub documents; else none
}

// cloudArgs are how the cloud runs.
type cloudArgs struct {
	MaxVMs int    `json:"max_vms"` // 0: none fits
	Guest  string `json:"guest"`   // one of guests
}

// unlimited is the room of a cloud that never is full.
const unlimited = 1 << 20

// ServeRole runs the process that the environment names; false if it names none.
func ServeRole(ctx context.Context) (bool, error) {
	args := []byte(os.Getenv(argsVariable))
	switch role := os.Getenv(RoleVariable); role {
	case "":
		return false, nil
	case "forge":
		var a forgeArgs
		if err := json.Unmarshal(args, &a); err != nil {
			return true, err
		}
		return true, serveForge(ctx, a)
	case "cloud":
		var a cloudArgs
		if err := json.Unmarshal(args, &a); err != nil {
			return true, err
		}
		return true, serveCloud(ctx, a)
	case "proxy":
		var a proxyArgs
		if err := json.Unmarshal(args, &a); err != nil {
			return true, err
		}
		return true, serveProxy(ctx, a)
	case "load":
		return true, serveLoad(ctx, os.Stdin, os.Stdout)
	default:
		return true, gpuserver.Errorf(gpuserver.KindInvalid, "bench: %s=%s is no role", RoleVariable, role)
	}
}

func serveForge(ctx context.Context, a forgeArgs) error {
	cfg := forgetest.Config{
		WebhookSecret: webhookSecret, Latency: a.Latency, RunnerLease: 5 * time.Minute,
		Retention: forgetest.Retention{Calls: 200_000, Deliveries: 100_000},
	}
	if a.Limits {
		cfg.Limits = forgetest.GitHubLimits()
	}
	return forgetest.Serve(ctx, forgetest.Options{
		Config: cfg, Listen: "127.0.0.1:0",
		Ready: func(addr, _ string) { fmt.Println("ready", addr) },
	})
}

func serveCloud(ctx context.Context, a cloudArgs) error {
	guest, ok := guests[a.Guest]
	if !ok {
		return gpuserver.Errorf(gpuserver.KindInvalid, "bench: no guest is named %q", a.Guest)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "bench: listen", err)
	}
	fmt.Println("ready", ln.Addr())
	return fake.Serve(ctx, ln, fake.Config{Name: "local", Hosts: hosts(a.MaxVMs), Guest: guest})
}

// hosts is one host with room for n VMs of any flavor.
func hosts(n int) []gpuserver.Host {
	h := gpuserver.Host{Name: "host-1", MaxVMs: n}
	if n > 0 {
		h.VCPUs, h.MemoryMiB, h.DiskGiB = 1<<24, 1<<40, 1<<30
	}
	return []gpuserver.Host{h}
}
