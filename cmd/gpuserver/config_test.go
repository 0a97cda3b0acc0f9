package main

import (
	"path/filepath"
	"strings"
	"testing"

	"gpuserver/internal/pci/pcitest"
)

// The catalogue's cards are those of the first machine, and of no other.
func TestConfigCheckComparesFlavorsWithCards(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	write(t, path, "clouds: [{name: local, type: fake}]\nimages: [{name: i, fake: {}}]\n")
	for _, tt := range []struct {
		name    string
		machine pcitest.Machine
		warned  bool
	}{
		{"the seed's machine", pcitest.Seed("vfio-pci"), false},
		{"its IOMMU off", pcitest.Off(), true},
		{"another card", pcitest.Board(), true},
	} {
		status, out, errs := run(t, "config", "check", "--sysfs", pcitest.Write(t, tt.machine), path)
		if status != 0 || out != "" {
			t.Errorf("%s: status %d, stdout %q", tt.name, status, out)
		}
		const words = "note: no host has a card of model tesla-v100 that VMs may have, so jobs for gpu_2x_large, gpu_2x_xlarge, gpu_2xlarge"
		if got := strings.Contains(errs, words); got != tt.warned {
			t.Errorf("%s: stderr %q", tt.name, errs)
		}
	}
	if status, _, errs := run(t, "config", "check", "--sysfs", filepath.Join(t.TempDir(), "none"), path); status != exitUsage || errs == "" {
		t.Errorf("no such folder: status %d, stderr %q", status, errs)
	}
}

// A clouds.yaml is looked into where it can be read, and has to be readable where all is
// to be as the service finds it. Mistakes stand at the cloud's place in the file.
func TestConfigCheckLooksIntoCloudsFile(t *testing.T) {
	dir := t.TempDir()
	path, clouds := filepath.Join(dir, "c.yaml"), filepath.Join(dir, "clouds.yaml")
	write(t, path, `
server: {listen: {agent: "192.0.2.1:8441"}}
clouds:
  - name: stack
    type: openstack
    openstack:
      clouds_file: `+clouds+`
      cloud: lab
images: [{name: i, openstack: {image: i}}]
`)
	for _, tt := range []struct {
		name, file string // "": there is none
		args       []string
		status     int
		out, errs  string
	}{
		{"no file", "", nil, 0, "", "note: the credentials of cloud stack are not checked: open " + clouds + ": no such file"},
		{"no file for the service", "", []string{"--secrets"}, exitUsage, path + ":8:14: cloud stack: the OpenStack credentials in " + clouds + " cannot be used: open", ""},
		{"no entry", "clouds: {other: {}}", nil, exitUsage, path + ":8:14: cloud stack: the OpenStack credentials in " + clouds + ` cannot be used: it has no cloud "lab"; it has other`, ""},
		{"half an entry", "clouds: {lab: {auth: {auth_url: 'https://c/v3', username: u, password: hushhush}}}", nil, exitUsage, `cloud "lab": its username needs user_domain_name`, ""},
		{"a whole one", "clouds: {lab: {auth: {auth_url: 'https://c/v3', user_id: u, password: hushhush, project_id: p}}}", []string{"--secrets"}, 0, "", ""},
	} {
		if tt.file != "" {
			write(t, clouds, tt.file)
		}
		status, out, errs := run(t, append(append([]string{"config", "check"}, tt.args...), path)...)
		if status != tt.status || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.errs) || strings.Contains(out+errs, "hushhush") {
			t.Errorf("%s: status %d, want %d\n%s%s", tt.name, status, tt.status, out, errs)
		}
	}
}

// The credentials for Placement are looked into, too.
func TestConfigCheckLooksIntoPlacementLogin(t *testing.T) {
	dir := t.TempDir()
	path, clouds, admin := filepath.Join(dir, "c.yaml"), filepath.Join(dir, "clouds.yaml"), filepath.Join(dir, "admin.yaml")
	write(t, path, `
server: {listen: {agent: "192.0.2.1:8441"}}
clouds:
  - name: stack
    type: openstack
    openstack:
      clouds_file: `+clouds+`
      cloud: lab
      gpus: [{model: tesla-v100, count: 1, resource_class: CUSTOM_V100}]
      placement: {clouds_file: `+admin+`, cloud: boss}
images: [{name: i, openstack: {image: i}}]
`)
	write(t, clouds, "clouds: {lab: {auth: {auth_url: 'https://c/v3', user_id: u, password: p, project_id: p}}}")
	write(t, admin, "clouds: {lab: {}}")
	if status, out, errs := run(t, "config", "check", path); status != exitUsage || !strings.Contains(out, admin+` cannot be used: it has no cloud "boss"`) {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}
