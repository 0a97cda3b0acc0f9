package config

import (
	"strings"
	"testing"
)

func TestDeclared(t *testing.T) {
	const good = "project: {name: p}, user: {name: u}, application_credential: {name: c, file: /c}, quotas: {memory: 500GiB}, " +
		"network: {name: guests, cidr: 10.0.0.0/24}, security_groups: [{name: g, egress: [{cidr: 0.0.0.0/0, protocol: tcp, ports: 80-81}]}], key_pairs: [{name: k, public_key: ssh-rsa AAAA}]"
	for _, tt := range []struct{ name, old, new, problem string }{
		{"as it is", "", "", ""},
		{"no project", "project: {name: p}, ", "", "declared.project is missing"},
		{"a project without a name", "{name: p}", `{name: ""}`, `declared.project.name: ""`},
		{"a name that hides", "{name: u}", `{name: " u"}`, "declared.user.name"},
		{"the service's own file", "project: {name: p}", "admin: {clouds_file: /x, cloud: a}, project: {name: p}", "declared.admin.clouds_file: the service reads this file"},
		{"a credential of nobody", "user: {name: u}, ", "", "declared.application_credential: it belongs to a user"},
		{"half a MiB", "500GiB", "1025B", "declared.quotas.memory: Nova counts in whole MiB"},
		{"a network that no VM is on", "name: guests", "name: other", `declared.network.name: networks of this cloud lacks "other"`},
		{"a range of IPv6", "10.0.0.0/24", "fd00::/64", "declared.network.cidr: give an IPv4 range"},
		{"a host for a range", "10.0.0.0/24", "10.0.0.1/24", "declared.network.cidr: 10.0.0.1/24 has bits of a host set; did you mean 10.0.0.0/24?"},
		{"a group that no VM is in", "{name: g,", "{name: h,", `declared.security_groups[0].name: security_groups of this cloud lacks "h"`},
		{"Neutron's own group", "{name: g,", "{name: default,", "declared.security_groups[0].name: Neutron makes the group default itself"},
		{"a group twice", "security_groups: [", "security_groups: [{name: g}, ", `declared.security_groups[1].name: the name "g" is used`},
		{"ports of icmp", "protocol: tcp", "protocol: icmp", "egress[0].ports: only tcp and udp have ports"},
		{"ports the wrong way", "80-81", "81-80", `egress[0].ports: "81-80" is neither a port nor a range`},
		{"a port too high", "80-81", `"65536"`, "egress[0].ports"},
		{"a private key", "ssh-rsa AAAA", "-----BEGIN OPENSSH PRIVATE KEY-----", "key_pairs[0].public_key: that is no public key"},
		{"who may use flavors", "project: {name: p}", "flavors: everybody, project: {name: p}", `unknown value "everybody"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(good, tt.old, tt.new, 1)
			if tt.old != "" && text == good {
				t.Fatalf("%q does not stand in it", tt.old)
			}
			file := strings.Replace(stack, "{networks: [guests]}", "{clouds_file: /x, cloud: y, networks: [guests], security_groups: [g], declared: {"+text+"}}", 1)
			_, err := Parse([]byte(file), "x.yaml")
			switch {
			case err == nil && tt.problem != "":
				t.Errorf("no problem, want %q", tt.problem)
			case err != nil && (tt.problem == "" || !strings.Contains(err.Error(), tt.problem)):
				t.Errorf("problems %v\nwant %q", err, tt.problem)
			}
		})
	}
}

// What a declaration leaves out.
func TestDeclaredDefaults(t *testing.T) {
	c, err := Parse([]byte(strings.Replace(stack, "{networks: [guests]}", "{declared: {project: {name: p}, user: {name: u}}}", 1)), "x.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := c.Clouds[0].OpenStack.Declared
	if d.Flavors != "public" || d.Project.Domain != "Default" || d.User.Domain != "Default" || len(d.User.Roles) != 1 || d.User.Roles[0] != "member" {
		t.Errorf("%+v %+v", d, d.User)
	}
}
