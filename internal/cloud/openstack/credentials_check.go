package openstack

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// Check says what is wrong with credentials, without asking the cloud: the entry has to
// be there, what its type of login needs has to be complete, and the files that it names
// have to be readable. Its error is KindInvalid, names file and entry, and shows no
// secret.
func (c Credentials) Check() error {
	if c.CloudsFile != "" {
		e, err := c.entry()
		if err != nil {
			return err
		}
		if what := e.missing(); what != "" {
			return c.bad("cloud %q: %s", c.Cloud, what)
		}
		for _, f := range []struct{ key, file string }{
			{"cacert", cmp.Or(c.CAFile, e.text("cacert"))}, {"cert", e.text("cert")}, {"key", e.text("key")},
		} {
			if err := readable(f.key, f.file); err != nil {
				return c.bad("cloud %q: %v", c.Cloud, err)
			}
		}
	} else if err := readable("ca_file", c.CAFile); err != nil {
		return c.bad("%v", err)
	}
	_, err := c.read()
	return err
}

// readable says why a file of certificates or keys cannot be used; none is fine.
func readable(key, file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	switch {
	case err != nil:
		return fmt.Errorf("its %s cannot be read: %w", key, err)
	case key != "key" && !x509.NewCertPool().AppendCertsFromPEM(text):
		return fmt.Errorf("its %s %s has no certificate in PEM", key, file)
	}
	return nil
}

func (e entry) text(key string) string {
	s, _ := e[key].(string)
	return s
}

// missing says what an entry lacks, "" if nothing.
// Source: docs.openstack.org/keystoneauth, "Plugin Options".
func (e entry) missing() string {
	if e["cloud"] != nil || e["profile"] != nil { // the rest stands in a clouds-public.yaml
		return ""
	}
	auth := e.auth()
	has := func(keys ...string) bool {
		for _, k := range keys {
			if s := fmt.Sprint(auth[k]); auth[k] != nil && s != "" {
				return true
			}
		}
		return false
	}
	if len(auth) == 0 {
		return "it has no auth"
	}
	if !has("auth_url") {
		return "its auth has no auth_url, such as https://cloud.example.org:5000/v3"
	}
	if u, err := url.Parse(fmt.Sprint(auth["auth_url"])); err != nil || u.Host == "" || !strings.HasPrefix(u.Scheme, "http") {
		return "its auth_url is no URL, such as https://cloud.example.org:5000/v3"
	}
	domain := func(of string) bool {
		return has(of+"_domain_name", of+"_domain_id", "default_domain", "domain_name", "domain_id")
	}
	kind := e.text("auth_type")
	if kind == "" && has("application_credential_id", "application_credential_name", "application_credential_secret") {
		kind = "v3applicationcredential"
	}
	switch kind {
	case "v3applicationcredential":
		switch {
		case !has("application_credential_secret"):
			return "its auth_type v3applicationcredential needs application_credential_secret"
		case !has("application_credential_id") && !has("application_credential_name"):
			return "its auth_type v3applicationcredential needs application_credential_id, or application_credential_name with the user"
		case !has("application_credential_id") && !has("user_id") && !(has("username") && domain("user")):
			return "its application_credential_name needs user_id, or username and user_domain_name; or give application_credential_id"
		}
	case "", "password", "v3password":
		switch {
		case !has("password"):
			return "its login by password needs password; for an application credential set auth_type: v3applicationcredential"
		case !has("username", "user_id"):
			return "its login by password needs username or user_id"
		case !has("user_id") && !domain("user"):
			return "its username needs user_domain_name or user_domain_id"
		case !has("project_id", "project_name", "tenant_id", "tenant_name"):
			return "its login by password needs project_name or project_id"
		case !has("project_id", "tenant_id") && !domain("project"):
			return "its project_name needs project_domain_name or project_domain_id"
		}
	case "token", "v3token":
		return "its auth_type " + kind + " is of no use for a service, since a token runs out; use v3applicationcredential or password"
	default:
		return fmt.Sprintf("its auth_type %q is not known; use v3applicationcredential or password", kind)
	}
	return ""
}
