package config

import (
	"strings"
	"testing"
)

// stack is a file with a cloud of type openstack, whose options follow "openstack: {".
const stack = `server: {listen: {agent: "10.0.0.5:8441"}}
clouds:
  - name: stack
    type: openstack
    openstack: {networks: [guests]}
flavors:
  - {name: f, vcpus: 1, memory: 1GiB, disk: 2GiB, gpus: {model: v100}}
gpu_models:
  - {name: tesla-v100, aliases: [v100], ids: ["10de:1db4"]}
images:
  - {name: i, openstack: {image: debian}}
`

func TestOpenStack(t *testing.T) {
	options := func(text string) string {
		return strings.Replace(stack, "{networks: [guests]}", "{"+text+"}", 1)
	}
	for _, tt := range []struct{ name, file, problem string }{
		{"as it is", stack, ""},
		{"no options", strings.Replace(stack, "    openstack: {networks: [guests]}\n", "", 1), ""},
		{"all names", options("flavors: [{name: f, flavor: g}], gpus: [{model: v100, count: 4}]"), ""},
		{"entry without a file", options("cloud: x"), "cloud: clouds_file and the entry in it"},
		{"file without an entry", options("clouds_file: /x"), "cloud: clouds_file and the entry in it"},
		{"volume type without volumes", options("volume_type: ssd"), "volume_type: it is of use with boot_from_volume only"},
		{"ports without a network", options("make_ports: true"), "make_ports: ports cannot be made without the name of a network"},
		{"placement without an entry", options("placement: {clouds_file: /p, cloud: ''}, gpus: [{model: v100, resource_class: C}]"), "placement: clouds_file and the entry in it (cloud) are needed"},
		{"placement without a class", options("placement: {clouds_file: /p, cloud: p}, gpus: [{model: v100, count: 1}]"), "placement: it is of use for cards with a resource_class only"},
		{"a network twice", options("networks: [a, a]"), `networks[1]: "a" is empty or stands here twice`},
		{"a group without a name", options(`security_groups: [""]`), `security_groups[0]: "" is empty or stands here twice`},
		{"a flavor that is not there", options("flavors: [{name: x, flavor: g}]"), `flavors[0].name: flavors has no "x"`},
		{"a flavor twice", options("flavors: [{name: f, flavor: g}, {name: f, flavor: h}]"), `flavors[1]: flavor "f" is given no name there, or twice`},
		{"a model that is not there", options("gpus: [{model: x, count: 1}]"), `gpus[0].model: gpu_models has no "x"; it has tesla-v100`},
		{"a model twice", options("gpus: [{model: v100, count: 1}, {model: tesla-v100, count: 1}]"), "gpus[1].model: model tesla-v100 stands here twice"},
		{"cards that nobody counts", options("gpus: [{model: v100}]"), "gpus[0]: give the count of cards, or their resource_class"},
		{"unknown interface", options("interface: outside"), `unknown value "outside"`},
		{"an image without a name", strings.Replace(stack, "image: debian", `image: ""`, 1), "images[0].openstack.image: the image's name or id there is needed"},
		{"an agent on loopback", strings.Replace(stack, "10.0.0.5", "127.0.0.1", 1), "openstack.agent_url: guests on an OpenStack do not reach the agent listener at 127.0.0.1:8441"},
		{"an agent that nobody chose", strings.Replace(stack, `server: {listen: {agent: "10.0.0.5:8441"}}`+"\n", "", 1), "openstack.agent_url: guests on an OpenStack do not reach"},
		{"an agent behind a proxy", strings.Replace(options(`agent_url: "http://ci.example.org:8441"`), "10.0.0.5", "127.0.0.1", 1), ""},
		{
			"an agent on libvirt's network",
			strings.Replace(strings.Replace(stack, "clouds:\n", "clouds:\n  - {name: local, type: libvirt, libvirt: {network: {cidr: 10.0.0.0/24}}}\n", 1), "10.0.0.5", "10.0.0.1", 1) + "  - {name: j, libvirt: {disk: /j}}\n",
			"clouds[1].openstack.agent_url: guests on an OpenStack do not reach",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.file), "x.yaml")
			switch {
			case err == nil && tt.problem != "":
				t.Errorf("no problem, want %q", tt.problem)
			case err != nil && (tt.problem == "" || !strings.Contains(err.Error(), tt.problem)):
				t.Errorf("problems %v\nwant %q", err, tt.problem)
			}
		})
	}
}

// The guests of each cloud are told the URL under which they reach us.
func TestAgentURLOfACloud(t *testing.T) {
	c, err := Parse([]byte(strings.Replace(stack, "networks: [guests]", `agent_url: "http://ci.example.org:8441"`, 1)), "x.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if a, b := c.AgentURLFor("stack"), c.AgentURLFor("other"); a != "http://ci.example.org:8441" || b != "http://10.0.0.5:8441" {
		t.Errorf("%s and %s", a, b)
	}
}
