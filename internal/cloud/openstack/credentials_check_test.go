package openstack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuserver"
)

// What is wrong with a clouds.yaml is said with file and entry, before anybody logs in.
func TestCheckCredentials(t *testing.T) {
	dir := t.TempDir()
	file, noCA := filepath.Join(dir, "clouds.yaml"), filepath.Join(dir, "no-ca.pem")
	if err := os.WriteFile(noCA, []byte("hushhush"), 0o600); err != nil {
		t.Fatal(err)
	}
	const url = "auth_url: 'https://cloud/v3'"
	password := func(more string) string {
		return "clouds: {lab: {auth: {" + url + ", password: hushhush" + more + "}}}"
	}
	app := func(more string) string {
		return "clouds: {lab: {auth_type: v3applicationcredential, auth: {" + url + more + "}}}"
	}
	for _, tt := range []struct{ text, want string }{
		{"clouds: {}", `no cloud "lab"`},
		{"clouds: {lab: {region_name: x}}", `cloud "lab": it has no auth`},
		{"clouds: {lab: {auth: {username: u}}}", "no auth_url"},
		{"clouds: {lab: {auth: {auth_url: 'cloud:5000', username: u}}}", "no URL"},
		{"clouds: {lab: {auth: {" + url + ", username: u}}}", "needs password"},
		{password(""), "username or user_id"},
		{password(", username: u"), "user_domain_name"},
		{password(", user_id: u"), "project_name or project_id"},
		{password(", user_id: u, project_name: p"), "project_domain_name"},
		{password(", user_id: u, project_id: p"), ""},
		{password(", username: u, project_name: p, user_domain_name: d, project_domain_name: d"), ""},
		{app(", application_credential_id: i"), "application_credential_secret"},
		{app(", application_credential_secret: hushhush"), "application_credential_id"},
		{app(", application_credential_secret: hushhush, application_credential_name: n"), "user_id"},
		{app(", application_credential_secret: hushhush, application_credential_id: i"), ""},
		{"clouds: {lab: {auth: {" + url + ", application_credential_id: i}}}", "application_credential_secret"},
		{"clouds: {lab: {auth_type: v3token, auth: {" + url + ", token: hushhush}}}", "runs out"},
		{"clouds: {lab: {auth_type: v3oidc, auth: {" + url + "}}}", `"v3oidc" is not known`},
		{fmt.Sprintf("clouds: {lab: {cacert: %s, auth: {%s, password: x, user_id: u, project_id: p}}}", noCA, url), "no certificate in PEM"},
		{fmt.Sprintf("clouds: {lab: {cacert: %s-gone, auth: {%s, password: x, user_id: u, project_id: p}}}", noCA, url), "cacert cannot be read"},
	} {
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := Credentials{CloudsFile: file, Cloud: "lab"}.Check()
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.text, err)
			}
			continue
		}
		wantKind(t, err, gpuserver.KindInvalid, file, tt.want)
		if err != nil && strings.Contains(err.Error(), "hushhush") {
			t.Errorf("the error shows a secret: %v", err)
		}
	}
	// The secret may stand in a file of its own beside it.
	if err := os.WriteFile(file, []byte(app(", application_credential_id: i")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secure.yaml"), []byte("clouds: {lab: {auth: {application_credential_secret: hushhush}}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (Credentials{CloudsFile: file, Cloud: "lab"}).Check(); err != nil {
		t.Errorf("with a secure.yaml: %v", err)
	}
}
