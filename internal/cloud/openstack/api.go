package openstack

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"go.yaml.in/yaml/v4"

	"gpuserver"
)

// Service is one of an OpenStack's services.
type Service string

// The services, as OpenStack's service types authority calls them.
const (
	Identity  Service = "identity"
	Compute   Service = "compute"
	Image     Service = "image"
	Network   Service = "network"
	Volume    Service = "block-storage"
	Placement Service = "placement"
)

// API is a login to a cloud for what is not about VMs, such as its flavors: the same
// credentials, endpoints, time-outs and errors as the driver's. Make one with Dial.
type API struct{ d *Driver }

// Dial gives an API. With a wrong configuration it fails with KindInvalid. Nothing is
// asked of the cloud before the first call.
func Dial(cfg Config, log *slog.Logger) (*API, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &API{idleDriver(cfg, log)}, nil
}

// idleDriver is a driver that watches nothing and makes no VMs.
func idleDriver(cfg Config, log *slog.Logger) *Driver {
	running, stop := context.WithCancel(context.Background())
	return &Driver{cfg: cfg, log: log.With("cloud", cfg.Name), wire: &wire{}, login: login{turns: newTurns()}, running: running, stop: stop}
}

// Close ends the API's calls and connections.
func (a *API) Close() {
	a.d.stop()
	a.d.wire.close()
}

// Call makes one call and decodes the answer into out, unless that is nil. What is
// our word for it stands in errors: "list flavors". The path begins behind the
// service's URL; "{project}" in it stands for the id of the login's own project. A
// service that the catalogue lacks gives KindNotFound, a missing right KindRefused.
func (a *API) Call(ctx context.Context, what string, service Service, method, path string, in, out any) error {
	return a.d.ask(ctx, what, func(ctx context.Context, s *session) error {
		client := s.of(service)
		if client == nil {
			return a.lacks(what, service)
		}
		opts := &gophercloud.RequestOpts{JSONBody: in, JSONResponse: out, OkCodes: []int{
			http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNonAuthoritativeInfo, http.StatusNoContent,
		}}
		if service == Identity && path == "auth/tokens" { // which asks about a token: this one
			opts.MoreHeaders = map[string]string{"X-Subject-Token": s.provider.Token()}
		}
		_, err := client.Request(ctx, method, client.ServiceURL(strings.ReplaceAll(path, "{project}", s.project)), opts)
		return err
	})
}

// lacks is the error of a call to a service that is not there.
func (a *API) lacks(what string, service Service) error {
	return gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s: cannot %s: its catalogue has no %s service", a.d.cfg.Name, what, service)
}

// Offers fails like Call if a service could not be called at all, and calls nothing.
func (a *API) Offers(ctx context.Context, what string, service Service) error {
	s, err := a.d.session(ctx)
	if err == nil && s.of(service) == nil {
		err = a.lacks(what, service)
	}
	return err
}

// ProjectID gives the id of the project that the login is for.
func (a *API) ProjectID(ctx context.Context) (string, error) {
	s, err := a.d.session(ctx)
	if err != nil {
		return "", err
	}
	return s.project, nil
}

// Nova gives the microversion of Nova that is spoken, after "2."; 0 without a login.
func (a *API) Nova(ctx context.Context) int {
	s, err := a.d.session(ctx)
	if err != nil {
		return 0
	}
	return s.nova
}

// Access is how a cloud is reached, apart from who asks.
type Access struct{ AuthURL, Region, Interface, CAFile string }

// Access gives how the cloud is reached, for a clouds.yaml of another user.
func (a *API) Access() (Access, error) {
	id, err := a.d.cfg.Credentials.read()
	if err != nil {
		return Access{}, err
	}
	c := a.d.cfg.Credentials
	return Access{
		AuthURL: versioned(id.auth.IdentityEndpoint, "v3"), Region: id.endpoint.Region,
		Interface: string(id.endpoint.Availability), CAFile: cmp.Or(c.CAFile, c.entryCA()),
	}, nil
}

// entryCA gives the cacert of an entry, "" if it has none.
func (c Credentials) entryCA() string {
	var file struct {
		Clouds map[string]struct {
			CA string `yaml:"cacert"`
		} `yaml:"clouds"`
	}
	text, err := os.ReadFile(c.CloudsFile)
	if err != nil || yaml.Unmarshal(text, &file) != nil {
		return "" // whatever is wrong was said when the file was read for the login
	}
	return file.Clouds[c.Cloud].CA
}

// LogInAs gives an API of Keystone alone for another user, by password.
func (a *API) LogInAs(ctx context.Context, user, password, project string) (*API, error) {
	s, err := a.d.session(ctx)
	if err != nil {
		return nil, err
	}
	d := idleDriver(a.d.cfg, a.d.log)
	provider, err := openstack.NewClient(s.identity.Endpoint)
	if err != nil {
		return nil, d.failed("log in as the new user", err)
	}
	id, err := d.cfg.Credentials.read()
	if err != nil {
		return nil, err
	}
	provider.HTTPClient = http.Client{Transport: d.wire.open(id.tls)}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.CallTimeout)
	defer cancel()
	err = openstack.AuthenticateV3(ctx, provider, &gophercloud.AuthOptions{
		IdentityEndpoint: s.identity.Endpoint, UserID: user, Password: password, Scope: &gophercloud.AuthScope{ProjectID: project},
	}, gophercloud.EndpointOpts{})
	if err != nil {
		return nil, d.failed("log in as the new user", err)
	}
	d.login.now = &session{
		provider: provider, project: project,
		identity: &gophercloud.ServiceClient{ProviderClient: provider, Endpoint: s.identity.Endpoint, Type: string(Identity)},
	}
	return &API{d}, nil
}

// of gives a service's client, nil if there is none.
func (s *session) of(service Service) *gophercloud.ServiceClient {
	switch service {
	case Identity:
		return s.identity
	case Compute:
		return s.compute
	case Image:
		return s.image
	case Network:
		return s.network
	case Volume:
		return s.volume
	case Placement:
		return s.placement
	}
	return nil
}

// FreeCards gives how many devices of a class Placement has to give away; known is
// false if it may not be asked or has no such class.
func (a *API) FreeCards(ctx context.Context, class string) (free int, known bool, err error) {
	return a.d.freeInPlacement(ctx, class)
}

// OwnerKey is the metadata of a server that says which installation's it is.
const OwnerKey = ownerKey
