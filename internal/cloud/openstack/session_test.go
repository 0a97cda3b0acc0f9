package openstack

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// A gateway stands before the cloud: its URLs hold, for discovery and pages, too.
func TestEndpoints(t *testing.T) {
	s := newStandin(t)
	s.page = 1
	cfg := s.config()
	cfg.Credentials.Region = "RegionTwo" // whose URLs in the catalogue lead nowhere
	cfg.Endpoints = Endpoints{
		Identity: s.http.URL + "/identity", Compute: s.http.URL + "/compute/v2.1", Image: s.http.URL + "/image/", Network: s.http.URL + "/network",
	}
	d := open(t, cfg)
	create(t, d, "vm-1")
	create(t, d, "vm-2")
	if vms, err := d.List(t.Context()); err != nil || len(vms) != 2 {
		t.Errorf("List gives %+v, %v", vms, err)
	}
}

func TestNoSuchRegion(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	cfg.Credentials.Region = "RegionNine"
	_, err := open(t, cfg).List(t.Context())
	wantKind(t, err, gpuserver.KindUnavailable, "RegionNine", "openstack.region")
}

// An openrc file's variables are credentials as well.
func TestEnvironment(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	cfg.Credentials = Credentials{}
	for k, v := range map[string]string{
		"AUTH_URL": s.http.URL + "/identity/v3", "USERNAME": "ci", "PASSWORD": "secret", "PROJECT_NAME": "ci",
		"USER_DOMAIN_NAME": "Default", "PROJECT_DOMAIN_NAME": "Default", "REGION_NAME": "RegionOne", "CLOUD": "another",
	} {
		t.Setenv("OS_"+k, v)
	}
	create(t, open(t, cfg), "vm-1")
	t.Setenv("OS_AUTH_URL", "")
	_, err := open(t, cfg).List(t.Context())
	wantKind(t, err, gpuserver.KindUnavailable, "OS_AUTH_URL")
}

// An application credential is for one project by itself.
func TestApplicationCredential(t *testing.T) {
	s := newStandin(t)
	cfg := s.config()
	text := "clouds: {lab: {auth_type: v3applicationcredential, auth: {auth_url: " + s.http.URL + "/identity/v3, application_credential_id: abc, application_credential_secret: secret}}}\n"
	if err := os.WriteFile(cfg.Credentials.CloudsFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var sent any
	s.intercept(func(_ http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
		if is(r, "POST", "/identity") {
			b := body(r)
			s.do(func() { sent = b["auth"]; s.secret = "" })
			r.Body = http.NoBody
		}
		return false
	})
	// The stand-in looks for the secret in the body, which was read: it refuses.
	_, err := open(t, cfg).List(t.Context())
	wantKind(t, err, gpuserver.KindUnavailable, "401")
	want := object{"identity": object{"methods": []any{"application_credential"}, "application_credential": object{"id": "abc", "secret": "secret"}}}
	s.do(func() {
		if diff := cmp.Diff(any(want), sent); diff != "" {
			t.Errorf("what is sent (-want +got):\n%s", diff)
		}
	})
	s.intercept(nil)
	s.do(func() { s.secret = "secret" })
	create(t, open(t, cfg), "vm-1")
}

func TestCredentialsThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clouds.yaml")
	for text, want := range map[string]string{
		"":                                     "no cloud",
		"clouds: {other: {auth: {a: b}}}":      "it has other",
		"clouds: {lab: {region_name: x}}":      "no auth",
		"clouds: [":                            "not valid YAML",
		"clouds: {lab: {auth: {a: hushhush}}}": "no auth_url",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Credentials{CloudsFile: file, Cloud: "lab"}.read()
		wantKind(t, err, gpuserver.KindInvalid, file, want)
		if err != nil && strings.Contains(err.Error(), "hushhush") {
			t.Errorf("the error shows what is in the file: %v", err)
		}
	}
	_, err := Credentials{CloudsFile: file + "x", Cloud: "lab"}.read()
	wantKind(t, err, gpuserver.KindInvalid, "no such file")
}

// What is spoken is the newest that both know.
func TestMicroversion(t *testing.T) {
	for newest, want := range map[string]string{"2.100": "2.79", "2.60": "2.60", "2.42": "2.42", "": ""} {
		s := newStandin(t)
		s.newest = newest
		d := open(t, s.config())
		create(t, d, "vm-1")
		if got := d.login.get().compute.Microversion; got != want {
			t.Errorf("with %q the microversion is %q, want %q", newest, got, want)
		}
		if m := s.find("vm-1"); (len(m.Tags) > 0) != (want == "2.79" || want == "2.60") || m.Meta[ownerKey] == "" {
			t.Errorf("with %q: tags %v, metadata %v", newest, m.Tags, m.Meta)
		}
	}
}

func TestOpenRefusesMistakes(t *testing.T) {
	s := newStandin(t)
	for name, spoil := range map[string]func(*Config){
		"name": func(c *Config) { c.Name = "" }, "owner": func(c *Config) { c.Owner = "" },
		"clouds_file": func(c *Config) { c.Credentials.Cloud = "" }, "volume_type": func(c *Config) { c.VolumeType = "fast" },
		"ports": func(c *Config) { c.Ports, c.Networks = true, nil }, "gpus": func(c *Config) { c.GPUs = []GPUs{{Model: "x"}} },
	} {
		cfg := s.config()
		spoil(&cfg)
		_, err := Open(cfg, nil)
		wantKind(t, err, gpuserver.KindInvalid, name)
	}
}
