package config

import (
	"net/netip"
	"reflect"
	"time"
)

// Defaults gives the values of everything that a file leaves out, outside of
// what it lists itself.
func Defaults() Config {
	c, _ := defaults()
	return c
}

// defaults is the one place where defaults are written down: of the whole
// file, and of each element of its lists by type.
func defaults() (Config, map[reflect.Type]any) {
	whole := Config{
		Server: Server{
			Name:    "gpuserver",
			DataDir: "/var/lib/gpuserver",
			Listen: Listen{
				Webhooks: "127.0.0.1:8440",
				Agent:    "192.168.77.1:8441",
				API:      "127.0.0.1:8442",
				Socket:   "/run/gpuserver/api.sock",
			},
			Log:          Log{Level: "info", Format: "json"},
			DrainTimeout: 8 * time.Second,
		},
		GPUModels: []GPUModel{catalogueModel},
		Flavors:   catalogue(),
		Jobs: Jobs{
			BootTimeout: 5 * time.Minute, EmulationFactor: 4, IdleTimeout: 5 * time.Minute,
			TimeLimit: 6 * time.Hour, Grace: 30 * time.Second, Retries: 2,
			RetryAfter: 5 * time.Second, NoticeAfter: 30 * time.Second,
			BackfillFor: 5 * time.Minute, HoldImageAfter: 3,
			SuspendFlavorAfter: 5, SuspendFlavorOver: 10 * time.Minute, SuspendFlavorFor: 30 * time.Minute,
		},
		Retention: Retention{Deliveries: 3 * day, Consoles: 14 * day, Jobs: 90 * day, Every: time.Hour},
		Reconcile: Reconcile{
			Clouds: 30 * time.Second, Jobs: 5 * time.Minute, Runners: 5 * time.Minute,
			Deliveries: 5 * time.Minute, Runs: 10 * time.Minute, RunsFor: 7 * day,
		},
	}
	elements := []any{
		Forge{
			BaseURL: "https://api.github.com", Mode: "webhook", PullEvery: 10 * time.Second,
			RunnerScope: "repository", RunnerGroup: "Default", LabelPrefixes: []string{"cirun-"},
			CheckName: "gpuserver",
			Config: ForgeConfig{
				OrganisationRepo: ".cirun", RunnersFile: ".cirun.global.yml",
				AccessFile: ".access.yml", RepositoryFile: ".cirun.yml", Forks: "refuse",
			},
			Budget: Budget{PointsPerMinute: 900, RegistrationsPerHour: 10000, ContentPerMinute: 80, ContentPerHour: 500},
		},
		Libvirt{
			URI: "/var/run/libvirt/libvirt-sock", Accel: "auto", Overcommit: 1,
			MemoryReserve: 2 * GiB, DiskReserve: 5 * GiB,
			Network: Network{
				Name: "gpuserver", Bridge: "gpuserver0",
				CIDR: netip.MustParsePrefix("192.168.77.0/24"), MTU: 1500,
			},
		},
		OpenStack{Call: time.Minute, BuildTimeout: 5 * time.Minute},
		Declared{Project: DeclaredProject{Domain: "Default"}, Flavors: "public"},
		DeclaredUser{Domain: "Default", Roles: []string{"member"}},
		ImageFiles{Format: "qcow2"},
		GPUs{Count: 1},
	}
	byType := make(map[reflect.Type]any, len(elements))
	for _, e := range elements {
		byType[reflect.TypeOf(e)] = e
	}
	return whole, byType
}
