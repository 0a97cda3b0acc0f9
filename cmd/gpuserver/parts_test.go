package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gpuserver/internal/cloud/openstack"
	"gpuserver/internal/config"
)

// Every option of a cloud of type openstack arrives at its driver.
func TestOpenStackConfig(t *testing.T) {
	cfg, err := config.Parse([]byte(`
server: {listen: {agent: "10.0.0.5:8441"}}
clouds:
  - name: stack
    type: openstack
    openstack:
      {clouds_file: /c.yaml, cloud: entry, region: R1, interface: internal, ca_file: /ca.pem, call_timeout: 7s, networks: [n], make_ports: true,
       security_groups: [s], availability_zone: az, server_group: g, key_pair: k, boot_from_volume: true, volume_type: ssd, max_vms: 8,
       launches_per_minute: 9, build_timeout: 11m, emulated: true, flavors: [{name: f, flavor: theirs}],
       gpus: [{model: v100, alias: a, count: 4, resource_class: CUSTOM_X}],
       placement: {clouds_file: /p.yaml, cloud: placement},
       endpoints: {identity: "http://i", compute: "http://c", image: "http://im", network: "http://n", volume: "http://v", placement: "http://p"}}
flavors:
  - {name: f, vcpus: 1, memory: 1GiB, disk: 2GiB}
gpu_models:
  - {name: tesla-v100, aliases: [v100], ids: ["10de:1db4"]}
images:
  - {name: i, openstack: {image: debian}}
`), "x.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := openstack.Config{
		Name: "stack", Owner: "me-abcde",
		Credentials: openstack.Credentials{CloudsFile: "/c.yaml", Cloud: "entry", Region: "R1", Interface: "internal", CAFile: "/ca.pem"},
		Placement:   &openstack.Credentials{CloudsFile: "/p.yaml", Cloud: "placement", Region: "R1", Interface: "internal", CAFile: "/ca.pem"},
		Endpoints:   openstack.Endpoints{Identity: "http://i", Compute: "http://c", Image: "http://im", Network: "http://n", Volume: "http://v", Placement: "http://p"},
		Flavors:     map[string]string{"f": "theirs"}, Images: map[string]string{"i": "debian"},
		Networks: []string{"n"}, Ports: true, SecurityGroups: []string{"s"}, AvailabilityZone: "az", ServerGroup: "g", KeyPair: "k",
		BootFromVolume: true, VolumeType: "ssd", GPUs: []openstack.GPUs{{Model: "tesla-v100", Alias: "a", Count: 4, Class: "CUSTOM_X"}},
		MaxVMs: 8, LaunchesPerMinute: 9, Emulated: true, BuildTimeout: 11 * time.Minute, CallTimeout: 7 * time.Second,
	}
	got := openStackConfig(cfg, &cfg.Clouds[0], "me-abcde")
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(openstack.Config{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	d, err := openCloud(t.Context(), cfg, &cfg.Clouds[0], "me-abcde", newLog(cfg.Server.Log, t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	if d.Name() != "stack" || d.Capabilities().Accelerated || !d.Capabilities().Keep {
		t.Errorf("the driver is %s with %+v", d.Name(), d.Capabilities())
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
