package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/cloud/openstack/openstacktest"
	"gpuserver/internal/cloud/openstack/provision"
	"gpuserver/internal/config"
)

// declaredFile writes a configuration whose cloud stack declares everything, and gives
// its path.
func declaredFile(t *testing.T, c *openstacktest.Cloud) (path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "gpuserver.yaml")
	write(t, path, fmt.Sprintf(`server: {name: lab, listen: {agent: "10.0.0.5:8441"}}
clouds:
  - name: stack
    type: openstack
    openstack:
      clouds_file: %s/clouds.yaml
      cloud: gpuserver
      networks: [guests]
      security_groups: [gpuserver]
      gpus: [{model: tesla-v100, alias: v100, count: 4}]
      flavors: [{name: gpu_tiny, flavor: g1.tiny}]
      declared:
        admin: {clouds_file: %s, cloud: admin}
        project: {name: gpuserver}
        user: {name: gpuserver}
        application_credential: {name: gpuserver}
        quotas: {instances: 20, cores: 128, memory: 500GiB, ports: 600}
        default_quotas: {instances: 1}
        network: {name: guests, mtu: 1450, cidr: 10.30.0.0/22, external: public}
        security_groups:
          - {name: gpuserver, egress: [{cidr: 0.0.0.0/0, protocol: tcp, ports: "443"}, {cidr: "::/0", protocol: icmp}]}
        key_pairs: [{name: operator, public_key: "ssh-ed25519 AAAA operator"}]
  - {name: pretend, type: fake}
gpu_models:
  - {name: tesla-v100, ids: ["10de:1db4"]}
  - {name: a100, ids: ["10de:20f1"]}
flavors:
  - {name: ci, vcpus: 4, memory: 8GiB, disk: 60GiB}
  - {name: gpu_tiny, vcpus: 4, memory: 2GiB, disk: 20GiB, gpus: {model: tesla-v100, count: 2}}
  - {name: big, vcpus: 4, memory: 2GiB, disk: 20GiB, gpus: {model: a100}}
images:
  - {name: debian-12, openstack: {image: debian}, fake: {}}
`, dir, c.CloudsFile(t)))
	return path
}

// runWith runs the program with an input.
func runWith(t *testing.T, in string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	m := &Main{Args: args, Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errs}
	status = m.Run(t.Context())
	return status, out.String(), errs.String()
}

// The way that the documentation tells: plan, apply, plan again; then a stranger
// deletes a flavor, which is named and restored.
func TestCloudPlanAndApply(t *testing.T) {
	c := openstacktest.New(t)
	file := declaredFile(t, c)
	status, out, errs := run(t, "cloud", "plan", "stack", "--config", file)
	if status != exitChanges || errs != "" || !strings.Contains(out, "+ flavor g1.tiny\n    + vcpus: 4\n") || !strings.Contains(out, "+ pci_passthrough:alias: v100:2\n") || !strings.Contains(out, "note: flavor big: gpus of the cloud lacks its model a100") {
		t.Fatalf("plan: status %d\n%s%s", status, out, errs)
	}
	if calls := c.Calls(); len(calls) > 0 {
		t.Errorf("the plan changes something: %q", calls)
	}
	for _, no := range []string{"", "n\n", "maybe\n"} {
		status, _, errs = runWith(t, no, "cloud", "apply", "stack", "--config", file)
		if status != exitFailed || !strings.Contains(errs, "changes on cloud stack? [y/N] ") || !strings.Contains(errs, "nothing was changed") {
			t.Errorf("answer %q: status %d, %s", no, status, errs)
		}
	}
	if calls := c.Calls(); len(calls) > 0 {
		t.Errorf("it was not confirmed, and changes something: %q", calls)
	}
	status, out, errs = runWith(t, "y\n", "cloud", "apply", "stack", "--config", file)
	if status != 0 || !strings.Contains(out, "\nflavor g1.tiny: made\n") || !strings.Contains(out, "application credential gpuserver: made; its secret is in ") {
		t.Fatalf("apply: status %d\n%s%s", status, out, errs)
	}
	if status, out, errs = run(t, "cloud", "plan", "stack", "--config", file); status != 0 || !strings.HasSuffix(out, "No changes.\n") {
		t.Errorf("plan after apply: status %d\n%s%s", status, out, errs)
	}
	if status, out, _ = run(t, "cloud", "apply", "stack", "--config", file); status != 0 || !strings.HasSuffix(out, "No changes.\n") {
		t.Errorf("apply again: status %d\n%s", status, out)
	}
	c.Remove("flavors", "name", "g1.tiny")
	if status, out, _ = run(t, "cloud", "plan", "stack", "--config", file); status != exitChanges || !strings.Contains(out, "+ flavor g1.tiny\n") || strings.Contains(out, "flavor ci") {
		t.Errorf("plan without a flavor: status %d\n%s", status, out)
	}
	if status, out, _ = run(t, "cloud", "apply", "stack", "--yes", "--config", file); status != 0 || len(c.Find("flavors", "name", "g1.tiny")) != 1 {
		t.Errorf("apply without a flavor: status %d\n%s", status, out)
	}
}

func TestCloudPlanCannotTell(t *testing.T) {
	c := openstacktest.New(t)
	file := declaredFile(t, c)
	if status, out, errs := run(t, "cloud", "apply", "stack", "--yes", "--config", file); status != 0 {
		t.Fatalf("apply: status %d\n%s%s", status, out, errs)
	}
	c.Fail(func(_, path string) (int, string) {
		if strings.Contains(path, "os-quota-class-sets") {
			return 403, `{"forbidden": {"code": 403, "message": "Policy doesn't allow os_compute_api:os-quota-class-sets:show to be performed."}}`
		}
		return 0, ""
	})
	if status, out, _ := run(t, "cloud", "plan", "stack", "--config", file); status != exitUsage || !strings.Contains(out, "not looked at: default quotas: ") || !strings.Contains(out, "os_compute_api:os-quota-class-sets:show") {
		t.Errorf("a right is missing: status %d\n%s", status, out)
	}
	c.Remove("flavors", "name", "ci")
	if status, out, _ := run(t, "cloud", "plan", "stack", "--config", file); status != exitChanges {
		t.Errorf("a right is missing, and a flavor: status %d\n%s", status, out)
	}
	if status, out, _ := run(t, "cloud", "apply", "stack", "--yes", "--config", file); status != exitFailed || !strings.Contains(out, "flavor ci: made\n") {
		t.Errorf("apply without the right: status %d\n%s", status, out)
	}
	c.Fail(func(string, string) (int, string) { return 503, "" })
	if status, out, errs := run(t, "cloud", "plan", "stack", "--config", file); status != exitUsage || out != "" || !strings.Contains(errs, "503") {
		t.Errorf("the cloud is away: status %d\n%s%s", status, out, errs)
	}
	for name, say := range map[string]string{"pretend": "is of type fake", "nine": `has no cloud "nine" of type openstack; it has stack`} {
		if status, _, errs := run(t, "cloud", "plan", name, "--config", file); status != exitUsage || !strings.Contains(errs, say) {
			t.Errorf("cloud %s: status %d, %s", name, status, errs)
		}
	}
}

func TestCloudJSON(t *testing.T) {
	c := openstacktest.New(t)
	file := declaredFile(t, c)
	var p provision.Plan
	status, out, _ := run(t, "cloud", "plan", "stack", "--config", file, "--output", "json")
	if err := json.Unmarshal([]byte(out), &p); err != nil || status != exitChanges || len(p.Changes) < 10 {
		t.Errorf("plan: status %d, %v\n%s", status, err, out)
	}
	if status, _, errs := run(t, "cloud", "apply", "stack", "--config", file, "--output", "json"); status != exitUsage || !strings.Contains(errs, "--yes") {
		t.Errorf("apply without --yes: status %d, %s", status, errs)
	}
	var a applied
	status, out, _ = run(t, "cloud", "apply", "stack", "--yes", "--config", file, "--output", "json")
	if err := json.Unmarshal([]byte(out), &a); err != nil || status != 0 || len(a.Results) != len(p.Changes) || !a.Results[0].Done {
		t.Errorf("apply: status %d, %v\n%s", status, err, out)
	}
}

// The secret is in its file and nowhere else.
func TestCloudApplyShowsNoSecret(t *testing.T) {
	c := openstacktest.New(t)
	file := declaredFile(t, c)
	_, out, errs := run(t, "cloud", "apply", "stack", "--yes", "--config", file)
	secret := c.Find("application_credentials", "name", "gpuserver")[0]["secret"].(string)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(file), "clouds.yaml"))
	if err != nil || !bytes.Contains(text, []byte(secret)) {
		t.Errorf("the file: %v\n%s", err, text)
	}
	if strings.Contains(out+errs, secret) {
		t.Errorf("it is printed: %s%s", out, errs)
	}
}

func TestCloudCheckAndShow(t *testing.T) {
	c := openstacktest.New(t)
	file := declaredFile(t, c)
	status, out, _ := run(t, "cloud", "check", "stack", "--config", file)
	if status != exitFailed || !strings.Contains(out, "FAIL") || !strings.Contains(out, "credentials") {
		t.Errorf("check before apply: status %d\n%s", status, out)
	}
	run(t, "cloud", "apply", "stack", "--yes", "--config", file)
	project := c.Find("projects", "name", "gpuserver")[0]["id"]
	c.Add("hypervisors", openstacktest.Object{"hypervisor_hostname": "node1", "hypervisor_type": "QEMU", "status": "enabled", "state": "up", "vcpus": 64, "memory_mb": 262144})
	c.Add("services", openstacktest.Object{"binary": "nova-compute", "host": "node1", "status": "enabled", "state": "up"})
	c.Add("images", openstacktest.Object{"name": "debian", "status": "active", "visibility": "public"})
	for name, owner := range map[string]string{"gs-lab-1": "lab-abcde", "other-1": "lab2-abcde", "mine": ""} {
		meta := openstacktest.Object{}
		if owner != "" {
			meta["gpuserver-owner"] = owner
		}
		c.Add("servers", openstacktest.Object{"name": name, "status": "ACTIVE", "tenant_id": project, "metadata": meta, "flavor": openstacktest.Object{"original_name": "g1.tiny", "extra_specs": openstacktest.Object{"pci_passthrough:alias": "v100:2"}}})
	}
	status, out, errs := run(t, "cloud", "check", "stack", "--config", file)
	for _, want := range []string{"pass   PciPassthroughFilter and alias v100", "pass   flavors", "pass   compute hosts", "pass   quotas", "pass   security group gpuserver", "pass   roles"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	if status != 0 || strings.Contains(out, "FAIL") {
		t.Errorf("check: status %d\n%s%s", status, out, errs)
	}
	status, out, errs = run(t, "cloud", "show", "stack", "--config", file, "--output", "json")
	var v provision.View
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 {
		t.Fatalf("show: status %d, %v\n%s%s", status, err, out, errs)
	}
	var whose []string
	for _, s := range v.Servers {
		whose = append(whose, fmt.Sprint(s.Name, " ", s.Owner, " ", s.Ours))
	}
	if diff := cmp.Diff([]string{"gs-lab-1 lab-abcde true", "mine  false", "other-1 lab2-abcde false"}, whose); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	if len(v.Hypervisors) != 1 || len(v.Services) != 1 || len(v.Quotas) != 3 || v.Quotas[0].Limit != 20 {
		t.Errorf("%+v", v)
	}
	_, out, _ = run(t, "cloud", "show", "stack", "--config", file)
	for _, want := range []string{"nova-compute", "QEMU", "3 of 20 used", "stranger", "ours", "lab2-abcde"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestCloudCompletion(t *testing.T) {
	file := declaredFile(t, openstacktest.New(t))
	_, out, _ := run(t, "__complete", "cloud", "plan", "--config", file, "")
	if got := strings.Fields(out); !slices.Contains(got, "stack") || slices.Contains(got, "pretend") {
		t.Errorf("%q", got)
	}
}

// Everything of a declaration arrives.
func TestDeclarationArrives(t *testing.T) {
	c := openstacktest.New(t)
	cfg, err := config.Load(declaredFile(t, c))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Clouds[0].OpenStack.Declared.Quotas.Volumes, cfg.Clouds[0].OpenStack.Declared.Quotas.Gigabytes = 7, 8
	d := declaration(cfg, &cfg.Clouds[0])
	want := []provision.Flavor{{Name: "ci", VCPUs: 4, RAM: 8192, Disk: 60}, {Name: "g1.tiny", VCPUs: 4, RAM: 2048, Disk: 20, Alias: "v100:2"}}
	if diff := cmp.Diff(want, d.Flavors); diff != "" {
		t.Errorf("flavors (-want +got):\n%s", diff)
	}
	for _, q := range []struct{ want, got map[string]int64 }{
		{map[string]int64{"instances": 20, "cores": 128, "ram": 512000}, d.ComputeQuotas},
		{map[string]int64{"port": 600}, d.NetworkQuotas},
		{map[string]int64{"volumes": 7, "gigabytes": 8}, d.VolumeQuotas},
		{map[string]int64{"instances": 1}, d.DefaultQuotas},
	} {
		if diff := cmp.Diff(q.want, q.got); diff != "" {
			t.Errorf("quotas (-want +got):\n%s", diff)
		}
	}
	if d.Credential.File != string(cfg.Clouds[0].OpenStack.CloudsFile) || d.Credential.Entry != "gpuserver" {
		t.Errorf("credential %+v", d.Credential)
	}
}

// What is exported is what was declared: with it in the configuration nothing differs.
func TestCloudExport(t *testing.T) {
	c := openstacktest.New(t)
	file := declaredFile(t, c)
	run(t, "cloud", "apply", "stack", "--yes", "--config", file)
	c.Add("flavors", openstacktest.Object{"name": "G1 Large", "vcpus": 2, "ram": 4096, "disk": 20, "os-flavor-access:is_public": true, "extra_specs": openstacktest.Object{}})
	status, out, errs := run(t, "cloud", "export", "stack", "--config", file)
	if status != 0 || errs != "" {
		t.Fatalf("status %d, %s", status, errs)
	}
	declared, flavors, ok := strings.Cut(out, "# For the configuration itself:\n")
	text, err := os.ReadFile(file)
	if err != nil || !ok || !strings.Contains(flavors, `# flavors: [{name: g1-large, flavor: "G1 Large"}, {name: gpu_tiny, flavor: "g1.tiny"}]`) {
		t.Fatalf("%v\n%s", err, out)
	}
	before, rest, _ := strings.Cut(string(text), "      declared:\n")
	_, models, _ := strings.Cut(rest, "  - {name: pretend, type: fake}\n")
	models, _, _ = strings.Cut(models, "flavors:\n")
	indented := "      " + strings.ReplaceAll(strings.TrimSpace(declared[strings.Index(declared, "declared:"):]), "\n", "\n      ")
	admin := strings.TrimSpace(rest[strings.Index(rest, "admin:"):strings.Index(rest, "project:")])
	indented = strings.Replace(indented, "declared:\n", "declared:\n        "+admin+"\n", 1)
	before = strings.Replace(before, "flavors: [{name: gpu_tiny, flavor: g1.tiny}]", `flavors: [{name: gpu_tiny, flavor: g1.tiny}, {name: g1-large, flavor: "G1 Large"}]`, 1)
	write(t, file, before+indented+"\n"+models+flavors+"images:\n  - {name: debian-12, openstack: {image: debian}}\n")
	if status, out, errs := run(t, "cloud", "plan", "stack", "--config", file); status != 0 {
		t.Errorf("plan with what was exported: status %d\n%s%s", status, out, errs)
	}
	if status, _, errs := run(t, "cloud", "export", "stack", "--config", file, "--project", "nine"); status != exitUsage || !strings.Contains(errs, `no project "nine"`) {
		t.Errorf("no such project: status %d, %s", status, errs)
	}
}
