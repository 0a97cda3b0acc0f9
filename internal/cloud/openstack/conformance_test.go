package openstack

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/cloud/cloudtest"
)

const patience = 30 * time.Second

func open(t testing.TB, cfg Config) *Driver {
	t.Helper()
	d, err := Open(cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// spec is a VM for the stand-in.
func spec(cfg Config, name string) cloud.Spec {
	return cloud.Spec{Name: name, Owner: cfg.Owner, Image: "debian-12", Flavor: gpuserver.Flavor{Name: "ci", VCPUs: 1, MemoryMiB: 512, DiskGiB: 2}}
}

var gpuFlavor = gpuserver.Flavor{Name: "gpu", VCPUs: 2, MemoryMiB: 1024, DiskGiB: 2, GPUs: gpuserver.GPUs{Model: "tesla-v100", Count: 1}}

func TestConformance(t *testing.T) {
	for name, change := range map[string]func(*Config, *standin){
		"networks left to Nova": func(*Config, *standin) {},
		"ports of our own":      func(c *Config, _ *standin) { c.Ports, c.SecurityGroups = true, []string{"ci"} },
		"boot from volume":      func(c *Config, _ *standin) { c.BootFromVolume = true },
		"a Nova without tags":   func(_ *Config, s *standin) { s.newest = "2.42" },
		"small pages":           func(_ *Config, s *standin) { s.page = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandin(t)
			cfg := s.config()
			change(&cfg, s)
			o := anyCloud(cfg)
			o.CardFlavor = gpuFlavor
			s.hooks(&o)
			if !cfg.Ports {
				o.LeavePart = nil
			}
			if cfg.BootFromVolume {
				o.LeavePart = func(_ *testing.T, name string) {
					s.do(func() {
						s.parts = append(s.parts, &piece{kind: "volume", ID: s.id("c"), Name: name, Mark: cfg.Owner, GiB: 2})
					})
				}
			}
			if s.newest == "2.42" { // sizes are not told: nothing of it can be counted
				o.Shrink = nil
			}
			conform(t, cfg, o)
		})
	}
}

// TestConformanceOfARealCloud runs the suite on the cloud that the environment
// names: GPUSERVER_OPENSTACK_CLOUDS is the path of a clouds.yaml, and the other
// variables name its entry, and a flavor, image and network there.
func TestConformanceOfARealCloud(t *testing.T) {
	file := os.Getenv("GPUSERVER_OPENSTACK_CLOUDS")
	if file == "" {
		t.Skip("not tried: no GPUSERVER_OPENSTACK_CLOUDS")
	}
	env := func(name, def string) string { return cmp.Or(os.Getenv("GPUSERVER_OPENSTACK_"+name), def) }
	cfg := Config{
		Name: "real", Owner: fmt.Sprintf("gpuserver-ct%d", os.Getpid()), Credentials: Credentials{CloudsFile: file, Cloud: env("CLOUD", "gpuserver")},
		Flavors: map[string]string{"ci": env("FLAVOR", "ci_medium")}, Images: map[string]string{"debian-12": env("IMAGE", "tiny")},
	}
	if n := env("NETWORK", ""); n != "" {
		cfg.Networks, cfg.Ports = []string{n}, env("PORTS", "") != ""
	}
	o := anyCloud(cfg)
	o.Limit = 5 * time.Minute
	if gpu := env("GPU_FLAVOR", ""); gpu != "" {
		cfg.Flavors["gpu"], o.CardFlavor = gpu, gpuFlavor
	}
	if !cfg.Ports {
		o.LeavePart = nil
	}
	conform(t, cfg, o)
}

func conform(t *testing.T, cfg Config, o cloudtest.Options) {
	cloudtest.Run(t, func(t *testing.T) cloud.Driver { return open(t, cfg) }, o)
}

// anyCloud are the hooks that any OpenStack can serve: they use its API, through a
// driver of their own.
func anyCloud(cfg Config) cloudtest.Options {
	act := func(t *testing.T, what string, do func(context.Context, *session) error) {
		t.Helper()
		d := open(t, cfg)
		defer d.Close()
		if err := d.ask(t.Context(), what, do); err != nil {
			t.Fatal(err)
		}
	}
	return cloudtest.Options{
		Spec: spec(cfg, ""), Limit: patience,
		Stop: func(t *testing.T, name string) {
			d := open(t, cfg)
			defer d.Close()
			vm, err := d.Get(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			act(t, "stop", func(ctx context.Context, s *session) error { return servers.Stop(ctx, s.compute, vm.ID).ExtractErr() })
		},
		LeavePart: func(t *testing.T, name string) {
			d := open(t, cfg)
			defer d.Close()
			o := &options{CreateOpts: servers.CreateOpts{Metadata: map[string]string{}}}
			id, _, err := d.resolve(t.Context(), aNetwork, cfg.Networks[0])
			if err != nil {
				t.Fatal(err)
			}
			o.nets = []string{id}
			if _, err := d.makePorts(t.Context(), cloud.Spec{Name: name}, o); err != nil {
				t.Fatal(err)
			}
		},
		AddForeign: func(t *testing.T, name string) { addForeign(t, cfg, name) },
	}
}

// addForeign makes a server that is not ours, and waits until it runs.
func addForeign(t *testing.T, cfg Config, name string) {
	t.Helper()
	d := open(t, cfg)
	t.Cleanup(func() { d.Close() })
	o, _, err := d.options(t.Context(), spec(cfg, name))
	if err != nil {
		t.Fatal(err)
	}
	o.Metadata, o.Tags = nil, nil
	id, err := d.post(t.Context(), spec(cfg, name), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := d.destroy(ctx, name, []string{id}); err != nil {
			t.Error(err)
		}
	})
	err = d.watch.await(t.Context(), func() bool {
		s, _ := d.watch.get(id)
		return s.state() == cloud.StateRunning
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hooks adds those that look into the stand-in.
func (s *standin) hooks(o *cloudtest.Options) {
	o.Handed = func(t *testing.T, name string) ([]byte, map[string]string) {
		m := s.find(name)
		return []byte(m.UserData), m.Meta
	}
	o.Write = func(t *testing.T, name string, text []byte) {
		m := s.find(name)
		s.do(func() { m.Console += string(text) })
	}
	o.RotateConsole = func(t *testing.T, name string) {
		m := s.find(name)
		s.do(func() { m.Console = strings.Repeat("x", 100<<10) })
	}
	o.Shrink = func(t *testing.T) {
		was := s.quota
		s.do(func() {
			s.quota = map[string]int64{"maxTotalInstances": 1, "maxTotalCores": 1, "maxTotalRAMSize": 1, "gigabytes": 1}
		})
		t.Cleanup(func() { s.do(func() { s.quota = was }) })
	}
}
