package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// small is a file with nothing but what is required.
const small = `clouds:
  - {name: local, type: libvirt}
flavors:
  - {name: f, vcpus: 1, memory: 1GiB, disk: 2GiB}
images:
  - {name: i, libvirt: {disk: images/i.qcow2}}
`

// lines gives an error's problems without the file's name.
func lines(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	problems, ok := errors.AsType[Problems](err)
	if !ok || gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Fatalf("the error is no list of problems of kind invalid: %v", err)
	}
	var out []string
	for _, p := range problems {
		out = append(out, strings.TrimPrefix(p.String(), p.File+":"))
	}
	return out
}

func TestDefaultsFillWhatIsLeftOut(t *testing.T) {
	c, err := Parse([]byte(small), "/etc/gpuserver/gpuserver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	if diff := cmp.Diff(want.Server, c.Server); diff != "" {
		t.Errorf("server: -default +read\n%s", diff)
	}
	if diff := cmp.Diff(want.Jobs, c.Jobs); diff != "" {
		t.Errorf("jobs: -default +read\n%s", diff)
	}
	l := c.Clouds[0].Libvirt
	if l == nil || l.Accel != "auto" || l.Network.Bridge != "gpuserver0" || l.Dir != "/var/lib/gpuserver/libvirt" {
		t.Errorf("libvirt's options without a block: %+v", l)
	}
	if got, want := c.Images[0].Libvirt.Disk, Path("/etc/gpuserver/images/i.qcow2"); got != want {
		t.Errorf("relative path became %q, want %q", got, want)
	}
	wantFlavors := map[string]gpuserver.Flavor{
		"f": {Name: "f", VCPUs: 1, MemoryMiB: 1024, DiskGiB: 2, TimeLimit: 6 * time.Hour},
	}
	if diff := cmp.Diff(wantFlavors, c.FlavorMap()); diff != "" {
		t.Errorf("flavors: -want +got\n%s", diff)
	}
	if c.AgentURL() != "http://192.168.77.1:8441" || c.AgentPort() != 8441 {
		t.Errorf("agent at %s, port %d", c.AgentURL(), c.AgentPort())
	}
}

// with gives the small file with more text behind it.
func with(text string) string { return small + text }

// Each kind of mistake: what the file says, and what is said of it. The small
// file has 6 lines, so that text added to it begins at line 7.
func TestMistakes(t *testing.T) {
	forge := func(more string) string {
		return with("forges:\n  - name: github\n    type: github\n    app_id: 1\n    private_key: {file: k}\n" + more)
	}
	for _, tt := range []struct {
		name, file string
		want       []string
	}{
		{"empty", "", []string{"1:1: the file is empty; gpuserver config sample prints one to start from"}},
		{"only comments", "# hello\n", []string{"1:1: the file is empty; gpuserver config sample prints one to start from"}},
		{"not YAML", "server:\n  name: [a\n  b: c\n", []string{"3:4: not valid YAML: did not find expected ',' or ']'"}},
		{"tab", "server:\n\tname: a\n", []string{"2:1: not valid YAML: found character that cannot start any token"}},
		{"not UTF-8", "server:\n  name: \"é\xff\"\n", []string{"2:11: the text is not UTF-8"}},
		{"two documents", small + "---\n" + small, []string{"7:1: a second document begins here; the file must hold one"}},
		{"a list at the top", "- a\n", []string{"1:1: the file: expected keys and values, got a list"}},
		{
			"required sections missing", "server: {name: a}\n",
			[]string{
				"1:1: clouds is missing: Where VMs are made.",
				"1:1: images is missing: What VMs boot.",
			},
		},
		{"unknown key, nearest", with("retension: {jobs: 1d}\n"), []string{`7:1: unknown key "retension" at the top of the file; did you mean "retention"?`}},
		{"unknown key, letter case", with("server: {Name: a}\n"), []string{`7:10: unknown key "Name" in server; did you mean "name"?`}},
		{"unknown key, nothing near", with("server:\n  log: {colour: red}\n"), []string{`8:9: unknown key "colour" in server.log; known are format, level`}},
		{"unknown key in a list", with("api:\n  tokens:\n    - {name: a, role: viewer, secret: {env: A}, rolle: x}\n"), []string{`9:49: unknown key "rolle" in api.tokens[0]; did you mean "role"?`}},
		{"duplicate key", with("server:\n  name: a\n  name: b\n"), []string{"9:3: server.name is given twice; the first is in line 8"}},
		{"duplicate section", with("flavors: []\n"), []string{"7:1: flavors is given twice; the first is in line 3"}},
		{"no flavor at all", strings.Replace(small, "flavors:\n  - {name: f, vcpus: 1, memory: 1GiB, disk: 2GiB}", "flavors: []", 1), []string{"3:10: flavors: at least one flavor is needed; leave the key out for the default catalogue"}},
		{"number for text", with("server: {name: 12}\n"), []string{"7:16: server.name: expected text, got a number; put it into quotes if it is meant as text"}},
		{"truth value for text", with("server: {name: true}\n"), []string{"7:16: server.name: expected text, got true or false; put it into quotes if it is meant as text"}},
		{"text for number", with("jobs: {retries: many}\n"), []string{"7:17: jobs.retries: expected a whole number, got text"}},
		{"fraction for number", with("jobs: {retries: 1.5}\n"), []string{"7:17: jobs.retries: expected a whole number, got a number"}},
		{"list for section", with("server: [a]\n"), []string{"7:9: server: expected keys and values, got a list"}},
		{"text for list", with("api: {tokens: abc}\n"), []string{"7:15: api.tokens: expected a list, got text"}},
		{"no value", with("server: {name: }\n"), []string{"7:16: server.name has no value; give text or remove the key"}},
		{"bad unit of time", with("jobs: {grace: 30 seconds}\n"), []string{`7:15: jobs.grace: bad duration "30 seconds": give a number with a unit (w, d, h, m, s, ms) and no space, such as 90s, 6h or 3d`}},
		{"no unit of time", with("jobs: {grace: 30}\n"), []string{`7:15: jobs.grace: bad duration "30": give a number with a unit (w, d, h, m, s, ms) and no space, such as 90s, 6h or 3d`}},
		{"time out of range", with("server: {drain_timeout: 1m}\n"), []string{"7:25: server.drain_timeout: out of range; it is from 1s to 9s"}},
		{"no time left to close", with("server: {drain_timeout: 10s}\n"), []string{"7:25: server.drain_timeout: out of range; it is from 1s to 9s"}},
		{
			"bad unit of size", strings.Replace(small, "1GiB", "1GB", 1),
			[]string{`4:33: flavors[0].memory: bad size "1GB": give a whole number with a unit (B, KiB, MiB, GiB, TiB) and no space, such as 12GiB`},
		},
		{"half a MiB", strings.Replace(small, "1GiB", "1048577KiB", 1), []string{"4:33: flavors[0].memory: 1048577KiB is not a whole number of MiB"}},
		{"number out of range", strings.Replace(small, "vcpus: 1", "vcpus: 0", 1), []string{"4:22: flavors[0].vcpus: out of range; it is from 1 to 1024"}},
		{"at least", strings.Replace(forge("    mode: pull\n"), "app_id: 1", "app_id: 0", 1), []string{"10:13: forges[0].app_id: out of range; it is at least 1"}},
		{"unknown value, nearest", strings.Replace(small, "type: libvirt", "type: libvrt", 1), []string{`2:25: clouds[0].type: unknown value "libvrt"; did you mean "libvirt"?`}},
		{"unknown value", with("server: {log: {format: fancy}}\n"), []string{`7:24: server.log.format: unknown value "fancy"; it is one of json, text`}},
		{"missing in a list", strings.Replace(small, "vcpus: 1, ", "", 1), []string{"4:5: flavors[0].vcpus is missing: Virtual CPUs."}},
		{"alias", with("server: &x {name: a}\n"), []string{"7:9: server: anchors and aliases (& and *) are not read here; write the value out"}},
		{"alias in a section of Cirun's", with("runners:\n  - &x {name: a}\n"), []string{"8:5: runners: anchors and aliases (& and *) are not read here; write the value out"}},
		{"bad address", with("server: {listen: {api: localhost}}\n"), []string{`7:24: server.listen.api: bad address "localhost": give HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:8442`}},
		{"no host", with("server: {listen: {api: \"my host:80\"}}\n"), []string{`7:24: server.listen.api: bad address "my host:80": "my host" is neither an IP address nor a host's name`}},
		{"one address twice", with("server: {listen: {api: \"127.0.0.1:8440\"}}\n"), []string{"7:24: server.listen.api: 127.0.0.1:8440 is the address of server.listen.webhooks too; give each listener its own"}},
		{"bad URL", with("server: {public_url: ci.example.org}\n"), []string{"7:22: server.public_url: bad URL: give an absolute http or https one, such as https://ci.example.org"}},
		{
			"name given twice", strings.Replace(small, "flavors:\n", "flavors:\n  - {name: g, aliases: [f], vcpus: 1, memory: 1GiB, disk: 1GiB}\n", 1),
			[]string{`5:12: flavors[1].name: the name "f" is used by flavors[0].aliases[0] already`},
		},
		{"bad instance name", with("server: {name: Big_One}\n"), []string{`7:16: server.name: "Big_One" is not a name of 1 to 20 lower case letters, digits and '-'`}},
		{"webhook without secret", forge(""), []string{"8:5: forges[0].webhook_secrets: mode webhook needs the webhook's secret: deliveries without one could be forged by anybody"}},
		{
			"webhook without listener", "server: {listen: {webhooks: \"\"}}\n" + forge("    webhook_secrets: [{env: S}]\n    mode: webhook\n"),
			[]string{"14:11: forges[0].mode: mode webhook needs server.listen.webhooks; give an address there, or use mode pull"},
		},
		{
			"secret at two places", forge("    webhook_secrets: [{env: S, file: s}]\n"),
			[]string{"12:23: forges[0].webhook_secrets[0]: give exactly one of file, env and credential"},
		},
		{"image for a cloud that is not there", strings.Replace(small, "images:\n", "images:\n  - {name: j, fake: {}}\n", 1), []string{"6:21: images[0].fake: no cloud is of type fake"}},
		{"cloud without image", strings.Replace(small, "flavors:\n", "  - {name: b, type: fake}\nflavors:\n", 1), []string{"3:5: clouds[1]: no image has a source for clouds of type fake; add one under images"}},
		{"image without source", strings.Replace(small, ", libvirt: {disk: images/i.qcow2}", "", 1), []string{"2:5: clouds[0]: no image has a source for clouds of type libvirt; add one under images", "6:5: images[0]: it has no source; give the block of a cloud's type, such as libvirt"}},
		{"options of another type", strings.Replace(small, "type: libvirt}", "type: libvirt, fake: {}}", 1), []string{"2:40: clouds[0].fake: options of type fake at a cloud of type libvirt"}},
		{"initrd without kernel", strings.Replace(small, "i.qcow2}", "i.qcow2, initrd: x}", 1), []string{"6:24: images[0].libvirt: initrd and cmdline are of use with kernel only; give it, or remove them"}},
		{"host bits", strings.Replace(small, "type: libvirt}", "type: libvirt, libvirt: {network: {cidr: 10.1.2.3/24}}}", 1), []string{"2:60: clouds[0].libvirt.network.cidr: 10.1.2.3/24 has bits of a host set; did you mean 10.1.2.0/24?"}},
		{"IPv6 for IPv4", strings.Replace(small, "type: libvirt}", "type: libvirt, libvirt: {network: {cidr: 'fd00::/64'}}}", 1), []string{"2:60: clouds[0].libvirt.network.cidr: give an IPv4 range of /8 to /29, such as 192.168.77.0/24"}},
		{"two networks in one range", strings.Replace(small, "flavors:\n", "  - {name: b, type: libvirt, libvirt: {dir: /b, network: {name: b, bridge: b}}}\nflavors:\n", 1), []string{"3:58: clouds[1].libvirt.network.cidr: its ranges overlap those of clouds[0]"}},
		{
			"agents that do not reach us", strings.Replace(small, "type: libvirt}", "type: libvirt, libvirt: {network: {cidr: 10.1.2.0/24}}}", 1),
			[]string{"2:60: clouds[0].libvirt.network.cidr: its guests reach the agent listener at 10.1.2.1 only, and server.listen.agent is 192.168.77.1:8441; make it 10.1.2.1:8441, or give server.agent_url if they reach it another way"},
		},
		{
			"agent listener everywhere", with("server: {listen: {agent: \":8441\"}}\n"),
			[]string{"2:5: clouds[0].libvirt.network.cidr: its guests reach the agent listener at 192.168.77.1 only, and server.listen.agent is :8441; make it 192.168.77.1:8441, or give server.agent_url if they reach it another way"},
		},
		{
			"agent listener of one network for two", strings.Replace(small, "flavors:\n", "  - {name: b, type: libvirt, libvirt: {dir: /b, network: {name: b, bridge: b, cidr: 10.1.2.0/24}}}\nflavors:\n", 1),
			[]string{"3:85: clouds[1].libvirt.network.cidr: one agent listener serves the guests of one libvirt cloud, which is clouds[0]; give server.agent_url if those of this one reach it another way"},
		},
		{"agent listener without a port", with("server: {listen: {agent: \"192.168.77.1:0\"}}\n"), []string{"7:26: server.listen.agent: guests are let through to a fixed port; give one, such as 192.168.77.1:8441"}},
		{"served twice", strings.Replace(small, "type: libvirt}", "type: libvirt, serves: [{cloud: aws}, {cloud: aws}]}", 1), []string{"2:57: clouds[0].serves[1]: this cloud and region stands here twice"}},
		{"hash that is none", with("api: {tokens: [{name: a, role: admin, hash: hunter2}]}\n"), []string{"7:45: api.tokens[0].hash: not a SHA-256 in hex (64 digits 0-9a-f); printf %s TOKEN | sha256sum prints it"}},
		{"re-runs without retries", with("jobs: {retries: 0, rerun_on_gpu_failure: true}\n"), []string{"7:42: jobs.rerun_on_gpu_failure: jobs.retries is 0, so that no job is run again; give it at least 1, or remove this"}},
		{"token without secret", with("api: {tokens: [{name: a, role: admin}]}\n"), []string{"7:16: api.tokens[0]: give exactly one of hash and secret"}},
		{
			"runner names what is not there", with("runners:\n  - name: r\n    cloud: local\n    instance_type: huge\n    machine_image: i\n    labels: [r]\n"),
			[]string{`8:3: unmapped-flavor: runner "r": no flavor of the configuration is called "huge"; add it to "aliases" of a flavor`},
		},
		{
			"all at once", "server: {naem: a}\nclouds: 3\nflavors:\n  - {name: f, vcpus: x, memory: 1GiB, disk: 2}\nimages: [{name: i, fake: {}}]\n",
			[]string{
				`1:10: unknown key "naem" in server; did you mean "name"?`,
				"2:9: clouds: expected a list, got a number",
				"4:22: flavors[0].vcpus: expected a whole number, got text",
				`4:45: flavors[0].disk: bad size "2": give a whole number with a unit (B, KiB, MiB, GiB, TiB) and no space, such as 12GiB`,
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.file), "gpuserver.yaml")
			if diff := cmp.Diff(tt.want, lines(t, err)); diff != "" {
				t.Errorf("problems: -want +got\n%s\nfile:\n%s", diff, tt.file)
			}
		})
	}
}

// What is right, though it is not usual.
func TestNoMistakes(t *testing.T) {
	for name, file := range map[string]string{
		"agents by another way":    strings.Replace(small, "type: libvirt}", "type: libvirt, libvirt: {network: {cidr: 10.1.2.0/24}}}", 1) + "server: {agent_url: \"https://agents.example.org\"}\n",
		"agents by IPv6":           strings.Replace(small, "type: libvirt}", "type: libvirt, libvirt: {network: {cidr6: \"fd77:1::/64\"}}}", 1) + "server: {listen: {agent: \"[fd77:1::1]:8441\"}}\n",
		"another network":          strings.Replace(small, "type: libvirt}", "type: libvirt, libvirt: {network: {cidr: 10.1.2.0/24}}}", 1) + "server: {listen: {agent: \"10.1.2.1:9000\"}}\n",
		"any port without libvirt": "clouds: [{name: f, type: fake}]\nflavors: [{name: f, vcpus: 1, memory: 1GiB, disk: 2GiB}]\nimages: [{name: i, fake: {}}]\nserver: {listen: {agent: \"127.0.0.1:0\"}}\n",
	} {
		if _, err := Parse([]byte(file), "gpuserver.yaml"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(filepath.Join(dir, "none.yaml"))
	if gpuserver.KindOf(err) != gpuserver.KindNotFound || !strings.Contains(gpuserver.PublicText(err), "none.yaml") {
		t.Errorf("a file that is not there: %v", err)
	}
	path := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(path, []byte("x: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Load(path)
	if !strings.Contains(err.Error(), path+":1:1: ") {
		t.Errorf("the error does not name %s: %v", path, err)
	}
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := Path(filepath.Join(dir, "images/i.qcow2")); c.Images[0].Libvirt.Disk != want {
		t.Errorf("the disk is %s, want %s", c.Images[0].Libvirt.Disk, want)
	}
}

func TestLookups(t *testing.T) {
	c, err := Parse([]byte(uncomment(true)), "/etc/gpuserver/gpuserver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := c.FlavorFor("2vcpu-4gb-20gb"); !ok || f != "ci_small" {
		t.Errorf("alias of a flavor gives %q, %v", f, ok)
	}
	if _, ok := c.FlavorFor("none"); ok {
		t.Error("a flavor that is not there was found")
	}
	if m, ok := c.ImageFor("ubuntu-2404"); !ok || m != "debian-12" {
		t.Errorf("alias of an image gives %q, %v", m, ok)
	}
	if !c.HasImage("debian-12", "local") || c.HasImage("debian-12", "none") || c.HasImage("none", "local") {
		t.Error("HasImage is wrong")
	}
	if c.RunnersFile() == nil || c.AccessFile() == nil {
		t.Error("the sample's runners or access were not read")
	}
}
