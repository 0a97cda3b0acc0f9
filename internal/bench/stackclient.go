package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v4"

	"gpuserver"
)

// stackClient is the simplest client of an OpenStack: plain HTTP, one token. It makes
// what the measurement needs, and is what the service is held against.
type stackClient struct {
	token   string
	project string            // its id
	urls    map[string]string // of the services, as in proxyArgs
	http    *http.Client
}

// stackTypes are the services' types in a catalogue.
var stackTypes = map[string]string{"compute": "nova", "image": "glance", "network": "neutron", "placement": "placement"}

// stackLogin logs in as an entry of a clouds.yaml, by password.
func stackLogin(ctx context.Context, file, entry string) (*stackClient, error) {
	fail := func(err error) (*stackClient, error) {
		return nil, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: log in as "+entry+" of "+file, err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fail(err)
	}
	var conf struct {
		Clouds map[string]struct {
			Auth struct {
				URL      string `yaml:"auth_url"`
				User     string `yaml:"username"`
				Password string `yaml:"password"`
				Project  string `yaml:"project_name"`
			} `yaml:"auth"`
		} `yaml:"clouds"`
	}
	if err := yaml.Unmarshal(text, &conf); err != nil {
		return fail(err)
	}
	auth := conf.Clouds[entry].Auth
	root := strings.TrimSuffix(strings.TrimSuffix(auth.URL, "/"), "/v3")
	type object = map[string]any
	domain := object{"id": "default"}
	c := &stackClient{urls: map[string]string{"keystone": root}, http: &http.Client{Transport: plainWire(), Timeout: 5 * time.Minute}}
	var got struct {
		Token struct {
			Project struct{ ID string }
			Catalog []struct {
				Type      string
				Endpoints []struct{ Interface, URL string }
			}
		}
	}
	header, err := c.send(ctx, "POST", "keystone", "/v3/auth/tokens", object{"auth": object{
		"identity": object{"methods": []string{"password"}, "password": object{"user": object{"name": auth.User, "domain": domain, "password": auth.Password}}},
		"scope":    object{"project": object{"name": auth.Project, "domain": domain}},
	}}, &got)
	if err != nil {
		return nil, err
	}
	c.token, c.project = header.Get("X-Subject-Token"), got.Token.Project.ID
	for _, s := range got.Token.Catalog {
		for _, e := range s.Endpoints {
			if name := stackTypes[s.Type]; name != "" && e.Interface == "public" {
				c.urls[name] = strings.TrimSuffix(e.URL, "/")
			}
		}
	}
	return c, nil
}

func plainWire() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.MaxIdleConnsPerHost = nil, 128
	return t
}

// behind gives the same client with its calls going through a proxy.
func (c *stackClient) behind(addr, from string) *stackClient {
	other := *c
	other.urls = map[string]string{}
	for name := range c.urls {
		other.urls[name] = proxyURL(addr, from, name)
	}
	return &other
}

// send makes a call; out, unless nil, is what the answer is read into.
func (c *stackClient) send(ctx context.Context, method, service, path string, in, out any) (http.Header, error) {
	what := "bench: " + method + " " + c.urls[service] + path
	fail := func(err error) (http.Header, error) {
		return nil, gpuserver.Wrap(gpuserver.KindUnavailable, what, err)
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fail(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.urls[service]+path, body)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("X-Auth-Token", c.token)
	req.Header.Set("Content-Type", "application/json")
	if service == "nova" {
		req.Header.Set("X-OpenStack-Nova-API-Version", "2.79") // as our driver does
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fail(err)
	case resp.StatusCode == http.StatusNotFound:
		return nil, gpuserver.Errorf(gpuserver.KindNotFound, "%s: %s", what, text)
	case resp.StatusCode >= 300:
		return nil, gpuserver.Errorf(gpuserver.KindUnavailable, "%s: %s: %s", what, resp.Status, text)
	case out != nil:
		err = json.Unmarshal(text, out)
	}
	return resp.Header, gpuserver.Wrap(gpuserver.KindUnavailable, what, err)
}

// stackServerSpec is what all servers are made of, in ids.
type stackServerSpec struct{ image, network string }

// The laboratory's own: a disk that nothing boots from, and the smallest flavor.
const (
	stackImage   = "empty"
	stackNetwork = "lab"
	stackFlavor  = "lab.nano"
)

// spec finds the ids.
func (c *stackClient) spec(ctx context.Context) (s stackServerSpec, err error) {
	var images struct{ Images []struct{ ID string } }
	var networks struct{ Networks []struct{ ID string } }
	if _, err = c.send(ctx, "GET", "glance", "/v2/images?name="+stackImage, nil, &images); err != nil {
		return s, err
	}
	if _, err = c.send(ctx, "GET", "neutron", "/v2.0/networks?name="+stackNetwork, nil, &networks); err != nil {
		return s, err
	}
	if len(images.Images) != 1 || len(networks.Networks) != 1 {
		return s, gpuserver.Errorf(gpuserver.KindInvalid, "bench: the cloud needs one image %s and one network %s; scripts/openstack-lab has them", stackImage, stackNetwork)
	}
	return stackServerSpec{images.Images[0].ID, networks.Networks[0].ID}, nil
}

// barePoll is how often the bare client asks for its server: as often as libraries
// for it do that are in wide use, and as our driver.
const barePoll = time.Second

// post asks for a server.
func (c *stackClient) post(ctx context.Context, name string, s stackServerSpec) (id string, err error) {
	type object = map[string]any
	var got struct{ Server struct{ ID string } }
	_, err = c.send(ctx, "POST", "nova", "/servers", object{"server": object{
		"name": name, "flavorRef": stackFlavor, "imageRef": s.image, "config_drive": true, "networks": []object{{"uuid": s.network}},
	}}, &got)
	return got.Server.ID, err
}

// create asks for a server and then for its state until it is active.
func (c *stackClient) create(ctx context.Context, name string, s stackServerSpec) (id string, err error) {
	if id, err = c.post(ctx, name, s); err != nil {
		return "", err
	}
	var got struct{ Server struct{ Status string } }
	for {
		select {
		case <-ctx.Done():
			return id, ctx.Err()
		case <-time.After(barePoll):
		}
		if _, err := c.send(ctx, "GET", "nova", "/servers/"+id, nil, &got); err != nil {
			return id, err
		}
		switch got.Server.Status {
		case "ACTIVE":
			return id, nil
		case "ERROR":
			return id, gpuserver.Errorf(gpuserver.KindUnavailable, "bench: server %s of the bare client failed", id)
		}
	}
}

// fill makes servers without a network, which is quickest, until the project has so
// many of them.
func (b *bench) fill(c *stackClient, s stackServerSpec, n int) error {
	type object = map[string]any
	const atOnce = 50
	for made := 0; made < n; made += atOnce {
		_, err := c.send(b.ctx, "POST", "nova", "/servers", object{"server": object{
			"name": "bare-fill", "flavorRef": stackFlavor, "imageRef": s.image, "networks": "none", "min_count": 1, "max_count": min(atOnce, n-made),
		}}, nil)
		if err != nil {
			return err
		}
	}
	return untilWithin(b.ctx, stackPatience, time.Second, "the project is filled", func() (string, error) {
		active, err := c.servers(b.ctx, "bare-fill", "&status=ACTIVE")
		if len(active) < n {
			return fmt.Sprintf("%d of %d", len(active), n), err
		}
		return "", err
	})
}

// createAll asks for servers, for so many at a time, and lists them all until each is
// active. A client that asks for each of them instead has Nova ask Neutron each time,
// and both are busy with little else.
func (c *stackClient) createAll(ctx context.Context, workers int, names []string, prefix string, s stackServerSpec) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	active := map[string]chan struct{}{} // by id; closed once it is
	of := func(id string) chan struct{} {
		mu.Lock()
		defer mu.Unlock()
		if active[id] == nil {
			active[id] = make(chan struct{})
		}
		return active[id]
	}
	listed := make(chan error, 1)
	go func() {
		told := map[string]bool{}
		for {
			select {
			case <-ctx.Done():
				listed <- nil
				return
			case <-time.After(barePoll):
			}
			var page struct{ Servers []struct{ ID, Status string } }
			_, err := c.send(ctx, "GET", "nova", "/servers/detail?limit=1000&name=^"+prefix, nil, &page)
			for _, one := range page.Servers {
				if one.Status == "ACTIVE" && !told[one.ID] {
					told[one.ID] = true
					close(of(one.ID))
				}
				if one.Status == "ERROR" {
					err = gpuserver.Errorf(gpuserver.KindUnavailable, "bench: server %s of the bare client failed", one.ID)
				}
			}
			if err != nil && ctx.Err() == nil {
				listed <- err
				cancel()
				return
			}
		}
	}()
	err := each(workers, names, func(name string) error {
		id, err := c.post(ctx, name, s)
		if err != nil {
			return err
		}
		select {
		case <-of(id):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	cancel()
	return errors.Join(<-listed, err)
}

// servers gives the ids of the project's servers whose names begin with a prefix;
// query has more conditions.
func (c *stackClient) servers(ctx context.Context, prefix, query string) (ids []string, err error) {
	marker := ""
	for {
		var page struct{ Servers []struct{ ID, Name string } }
		if _, err := c.send(ctx, "GET", "nova", "/servers?limit=1000"+query+marker, nil, &page); err != nil || len(page.Servers) == 0 {
			return ids, err
		}
		for _, s := range page.Servers {
			if strings.HasPrefix(s.Name, prefix) {
				ids = append(ids, s.ID)
			}
		}
		marker = "&marker=" + page.Servers[len(page.Servers)-1].ID
	}
}

// clear deletes the servers whose names begin with a prefix, and waits until they
// are gone.
func (b *bench) clear(c *stackClient, prefix string) error {
	asked := map[string]bool{}
	return untilWithin(b.ctx, stackPatience, 500*time.Millisecond, "servers are deleted", func() (string, error) {
		ids, err := c.servers(b.ctx, prefix, "")
		if err != nil || len(ids) == 0 {
			return "", err
		}
		ids = slices.DeleteFunc(ids, func(id string) bool { return asked[id] })
		err = each(8, ids, func(id string) error {
			_, err := c.send(b.ctx, "DELETE", "nova", "/servers/"+id, nil, nil)
			if gpuserver.KindOf(err) == gpuserver.KindNotFound {
				err = nil
			}
			return err
		})
		for _, id := range ids {
			asked[id] = true
		}
		return fmt.Sprintf("%d are left", len(asked)), err
	})
}

// quotas has the administrator set no limits for a project.
func (c *stackClient) quotas(ctx context.Context, project string) error {
	type object = map[string]any
	_, err := c.send(ctx, "PUT", "nova", "/os-quota-sets/"+project, object{"quota_set": object{"force": true, "instances": -1, "cores": -1, "ram": -1}}, nil)
	if err == nil {
		_, err = c.send(ctx, "PUT", "neutron", "/v2.0/quotas/"+project, object{"quota": object{"port": -1}}, nil)
	}
	return err
}
