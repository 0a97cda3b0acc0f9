package openstack

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/config/clouds"
	"go.yaml.in/yaml/v4"

	"gpuserver"
)

// identity is what credentials were read to be.
type identity struct {
	auth     gophercloud.AuthOptions
	endpoint gophercloud.EndpointOpts
	tls      *tls.Config
}

// read gets the credentials from their file or the environment, anew each time,
// so that a password that was changed there is used at the next login. Its error
// is KindInvalid and shows no secret.
func (c Credentials) read() (identity, error) {
	var opts []clouds.ParseOption
	place := "the environment (OS_*)"
	if c.CloudsFile != "" {
		place = c.CloudsFile
		if err := c.checkFile(); err != nil {
			return identity{}, err
		}
		opts = append(opts, clouds.WithLocations(c.CloudsFile), clouds.WithCloudName(c.Cloud))
	} else {
		entry, err := fromEnvironment(os.Getenv)
		if err != nil {
			return identity{}, err
		}
		opts = append(opts, clouds.WithCloudsYAML(bytes.NewReader(entry)), clouds.WithCloudName("environment"))
	}
	if c.Region != "" {
		opts = append(opts, clouds.WithRegion(c.Region))
	}
	if c.Interface != "" {
		opts = append(opts, clouds.WithEndpointType(c.Interface))
	}
	if c.CAFile != "" {
		opts = append(opts, clouds.WithCACertPath(c.CAFile))
	}
	auth, endpoint, conf, err := clouds.Parse(opts...)
	if err != nil {
		return identity{}, &gpuserver.Error{Kind: gpuserver.KindInvalid, Err: err, Public: "the OpenStack credentials in " + place + " cannot be used; gpuserver's log says why"}
	}
	if auth.IdentityEndpoint == "" {
		return identity{}, gpuserver.Errorf(gpuserver.KindInvalid, "the OpenStack credentials in %s have no auth_url", place)
	}
	auth.AllowReauth = true // one token for its lifetime, then the next
	return identity{auth, endpoint, conf}, nil
}

// checkFile says what is wrong with a clouds.yaml before it is taken for one.
func (c Credentials) checkFile() error {
	e, err := c.entry()
	if err == nil && len(e.auth()) == 0 {
		err = c.bad("cloud %q has no auth", c.Cloud)
	}
	return err
}

// bad makes an error of what is wrong with the file.
func (c Credentials) bad(format string, args ...any) error {
	return gpuserver.Errorf(gpuserver.KindInvalid, "the OpenStack credentials in %s cannot be used: %s", c.CloudsFile, fmt.Sprintf(format, args...))
}

// entry is an entry of a clouds.yaml as it stands there.
type entry map[string]any

// auth gives what stands under auth.
func (e entry) auth() map[string]any {
	if m, ok := e["auth"].(entry); ok { // as YAML makes what is within an entry
		return m
	}
	m, _ := e["auth"].(map[string]any)
	return m
}

// entry gives the entry, with what a secure.yaml beside the file adds to it.
func (c Credentials) entry() (entry, error) {
	text, err := os.ReadFile(c.CloudsFile)
	if err != nil {
		return nil, c.bad("%v; put the file there, readable for the server only", err)
	}
	entries := map[string]entry{}
	for _, name := range []string{c.CloudsFile, filepath.Join(filepath.Dir(c.CloudsFile), "secure.yaml")} {
		more, err := os.ReadFile(name)
		if name == c.CloudsFile {
			more, err = text, nil
		}
		if err != nil {
			continue // there need not be one
		}
		var file struct {
			Clouds map[string]entry `yaml:"clouds"`
		}
		if err := yaml.Unmarshal(more, &file); err != nil {
			return nil, c.bad("%s is not valid YAML with entries under clouds", name)
		}
		for k, v := range file.Clouds {
			entries[k] = entries[k].with(v)
		}
	}
	e, ok := entries[c.Cloud]
	if !ok {
		return nil, c.bad("it has no cloud %q; it has %s", c.Cloud, strings.Join(slices.Sorted(maps.Keys(entries)), ", "))
	}
	return e, nil
}

// with gives an entry with what another says more, or otherwise.
func (e entry) with(more entry) entry {
	both, auth := entry{}, map[string]any{}
	maps.Copy(both, e)
	maps.Copy(both, more)
	maps.Copy(auth, e.auth())
	maps.Copy(auth, more.auth())
	if len(auth) > 0 {
		both["auth"] = auth
	}
	return both
}

// fromEnvironment gives the OS_* variables, as an openrc file sets them, in the
// form of a clouds.yaml.
// Source: docs.openstack.org/python-openstackclient, "Authentication", and
// os-client-config's names of the variables.
func fromEnvironment(env func(string) string) ([]byte, error) {
	get := func(names ...string) (v string) {
		for _, n := range names {
			v = cmp.Or(v, env("OS_"+n))
		}
		return v
	}
	auth := &clouds.AuthInfo{
		AuthURL: get("AUTH_URL"), Username: get("USERNAME"), UserID: get("USER_ID", "USERID"), Password: get("PASSWORD"),
		ProjectID: get("PROJECT_ID", "TENANT_ID"), ProjectName: get("PROJECT_NAME", "TENANT_NAME"),
		UserDomainID: get("USER_DOMAIN_ID"), UserDomainName: get("USER_DOMAIN_NAME"),
		ProjectDomainID: get("PROJECT_DOMAIN_ID"), ProjectDomainName: get("PROJECT_DOMAIN_NAME"),
		DomainID: get("DOMAIN_ID"), DomainName: get("DOMAIN_NAME"),
		ApplicationCredentialID: get("APPLICATION_CREDENTIAL_ID"), ApplicationCredentialName: get("APPLICATION_CREDENTIAL_NAME"),
		ApplicationCredentialSecret: get("APPLICATION_CREDENTIAL_SECRET"),
	}
	if def := get("DEFAULT_DOMAIN"); def != "" && auth.DomainID == "" && auth.DomainName == "" {
		auth.DomainID = def
	}
	if auth.AuthURL == "" {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "there are no OpenStack credentials: set openstack.clouds_file, or OS_AUTH_URL and the like in the server's environment")
	}
	return json.Marshal(clouds.Clouds{Clouds: map[string]clouds.Cloud{"environment": {
		AuthInfo: auth, RegionName: get("REGION_NAME"), Interface: get("INTERFACE", "ENDPOINT_TYPE"),
	}}})
}
