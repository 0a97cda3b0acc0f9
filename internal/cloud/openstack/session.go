package openstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/v2/openstack/utils"

	"gpuserver"
)

// Microversions of Nova that we know: the newest is asked for that both sides
// have.
// Source: docs.openstack.org/nova, "REST API Version History".
const (
	newestNova = 79 // 2.79, Train
	autoNet    = 37 // networks "auto" has to be said
	embedded   = 47 // a server shows its flavor's sizes
	tagsAtPost = 52 // tags may be given when a server is made
	volumeType = 67 // and the type of its volume
	epoxyNova  = 97 // newer than 2.96: Nova 2025.1 or later
)

// session is a login: the token, which gophercloud renews once Keystone refuses
// it, and where the services are.
type session struct {
	provider  *gophercloud.ProviderClient
	compute   *gophercloud.ServiceClient
	image     *gophercloud.ServiceClient
	network   *gophercloud.ServiceClient
	identity  *gophercloud.ServiceClient
	volume    *gophercloud.ServiceClient // nil: none in the catalogue
	placement *gophercloud.ServiceClient // nil: none in the catalogue

	project string // its id
	service string // Nova's id in the catalogue
	region  string // the id of its region there
	nova    int    // the microversion of Nova that is spoken, after "2."
	newest  int    // the newest that Nova has
}

// login keeps the session.
type login struct {
	turns
	mu  sync.Mutex
	now *session
}

func (l *login) get() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// drop forgets a session whose credentials are refused: they are read anew.
func (l *login) drop(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now == s {
		l.now = nil
	}
}

// session gives the session, and logs in if there is none. Callers that come
// while a login is under way wait for that one.
func (d *Driver) session(ctx context.Context) (*session, error) {
	if s := d.login.get(); s != nil {
		return s, nil
	}
	var s *session
	err := d.login.do(ctx, func(ctx context.Context) (err error) {
		if s = d.login.get(); s != nil {
			return nil
		}
		if s, err = d.logIn(ctx); err != nil {
			return err
		}
		d.login.mu.Lock()
		d.login.now = s
		d.login.mu.Unlock()
		return nil
	})
	if s == nil {
		s = d.login.get()
	}
	if s == nil && err == nil {
		err = errors.New("the credentials were refused a moment ago")
	}
	if err != nil {
		// Whatever is wrong, it says nothing of the VM that the call was about.
		err = d.failed("log in", err)
		return nil, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "openstack: log in", Public: gpuserver.PublicText(err), Err: err}
	}
	return s, nil
}

func (d *Driver) logIn(ctx context.Context) (*session, error) {
	id, err := d.cfg.Credentials.read()
	if err != nil {
		return nil, err
	}
	id.auth.IdentityEndpoint = versioned(cmp.Or(d.cfg.Endpoints.Identity, id.auth.IdentityEndpoint), "v3")
	provider, err := openstack.NewClient(id.auth.IdentityEndpoint)
	if err != nil {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s: %q is no URL of a Keystone", d.cfg.Name, id.auth.IdentityEndpoint)
	}
	provider.HTTPClient = http.Client{Transport: d.wire.open(id.tls)}
	provider.UserAgent.Prepend("gpuserver")
	if err := d.within(ctx, func(ctx context.Context) error { return openstack.Authenticate(ctx, provider, id.auth) }); err != nil {
		return nil, err
	}
	granted, ok := provider.GetAuthResult().(tokens.CreateResult)
	if !ok {
		return nil, errors.New("keystone's answer holds no token of its API version 3")
	}
	catalog, err := granted.ExtractServiceCatalog()
	if err != nil {
		return nil, err
	}
	project, err := granted.ExtractProject()
	if err != nil {
		return nil, err
	}
	if project == nil {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s: the credentials are for no project; give project_name or use an application credential", d.cfg.Name)
	}
	s := &session{provider: provider, project: project.ID}
	if err := d.locate(s, catalog, id); err != nil {
		return nil, err
	}
	if err := d.within(ctx, func(ctx context.Context) error { return d.negotiate(ctx, s) }); err != nil {
		return nil, err
	}
	d.log.Info("logged in", "project", project.Name, "nova", s.compute.Endpoint, "microversion", cmp.Or(s.compute.Microversion, "2.1"))
	return s, nil
}

// locate finds the services, in the catalogue or where the configuration says.
func (d *Driver) locate(s *session, catalog *tokens.ServiceCatalog, id identity) error {
	e := d.cfg.Endpoints
	s.identity = &gophercloud.ServiceClient{ProviderClient: s.provider, Endpoint: id.auth.IdentityEndpoint, Type: "identity"}
	for _, w := range []struct {
		client **gophercloud.ServiceClient
		kind   string // as OpenStack's service types authority says
		url    string
		api    string // the version that the URL has to end with; "": as it is
		needed bool
	}{
		{&s.compute, "compute", e.Compute, "", true},
		{&s.image, "image", e.Image, "v2", true},
		{&s.network, "network", e.Network, "v2.0", true},
		{&s.volume, "block-storage", e.Volume, "", d.cfg.BootFromVolume},
		{&s.placement, "placement", e.Placement, "", false},
	} {
		url, service, region := inCatalog(catalog, w.kind, id.endpoint)
		if w.kind == "compute" {
			s.service, s.region = service, region
		}
		url = cmp.Or(w.url, url)
		if url == "" {
			if !w.needed {
				continue
			}
			return gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s: its catalogue has no %s service in region %q for interface %s; check openstack.region, or give the URL under openstack.endpoints",
				d.cfg.Name, w.kind, id.endpoint.Region, id.endpoint.Availability)
		}
		url = gophercloud.NormalizeURL(url)
		if w.api != "" {
			url = versioned(url, w.api)
		}
		*w.client = &gophercloud.ServiceClient{ProviderClient: s.provider, Endpoint: url, Type: w.kind}
	}
	return nil
}

// aliases are the other names that a service has in catalogues.
var aliases = map[string][]string{
	"network":       {"networking"},
	"block-storage": {"volumev3", "block-store", "volume"},
}

// inCatalog gives a service's URL, its id and its region's, "" if there is none.
func inCatalog(catalog *tokens.ServiceCatalog, kind string, o gophercloud.EndpointOpts) (url, service, region string) {
	for _, name := range append([]string{kind}, aliases[kind]...) {
		for _, s := range catalog.Entries {
			if s.Type != name {
				continue
			}
			i := slices.IndexFunc(s.Endpoints, func(e tokens.Endpoint) bool {
				return e.Interface == string(o.Availability) && (o.Region == "" || o.Region == e.Region || o.Region == e.RegionID)
			})
			if i >= 0 {
				return s.Endpoints[i].URL, s.ID, s.Endpoints[i].RegionID
			}
		}
	}
	return "", "", ""
}

// versioned gives a service's URL that ends with its API's version.
func versioned(url, version string) string {
	url = gophercloud.NormalizeURL(url)
	if strings.HasSuffix(url, "/"+version+"/") {
		return url
	}
	return url + version + "/"
}

// novaRoot is Nova's URL up to its version; old catalogues have the project's id
// behind it.
var novaRoot = regexp.MustCompile(`^(.*/v2(\.[0-9]+)?/)`)

// negotiate chooses the microversion of Nova. One without them, or too old for
// tags at creation, is spoken to without: ownership is in the metadata as well.
func (d *Driver) negotiate(ctx context.Context, s *session) error {
	root := cmp.Or(novaRoot.FindString(s.compute.Endpoint), s.compute.Endpoint)
	var answer struct {
		Version struct {
			Newest string `json:"version"`
		} `json:"version"`
	}
	_, err := s.provider.Request(ctx, http.MethodGet, root, &gophercloud.RequestOpts{JSONResponse: &answer, OkCodes: []int{http.StatusOK}})
	if err != nil {
		return err
	}
	s.nova, s.newest = 1, 1
	if major, minor, err := utils.ParseMicroversion(answer.Version.Newest); err == nil && major == 2 {
		s.newest, s.nova = minor, min(minor, newestNova)
		s.compute.Microversion = fmt.Sprintf("2.%d", s.nova)
	}
	if s.nova < tagsAtPost {
		d.log.Warn("Nova is too old for tags; VMs are known by their metadata alone", "newest", cmp.Or(answer.Version.Newest, "2.1"))
	}
	return nil
}
