//go:build openstack

package openstack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
)

// client speaks to the cloud in plain HTTP, so that what it sees is the cloud's and
// not a library's or our driver's.
type client struct {
	t         *testing.T
	token     string
	project   string            // its id
	endpoints map[string]string // by type of service
}

// as gives the same client for a test below the client's own.
func (c *client) as(t *testing.T) *client {
	other := *c
	other.t = t
	return &other
}

var web = http.Client{Timeout: 2 * time.Minute}

// login gives a client for a cloud of clouds.yaml.
func login(t *testing.T, name string) *client {
	t.Helper()
	text, err := os.ReadFile(cloudsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Clouds map[string]struct {
			Auth struct {
				URL      string `yaml:"auth_url"`
				User     string `yaml:"username"`
				Password string `yaml:"password"`
				Project  string `yaml:"project_name"`
			} `yaml:"auth"`
		} `yaml:"clouds"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatalf("%s: %v", cloudsFile, err)
	}
	auth := file.Clouds[name].Auth
	type object = map[string]any
	domain := object{"id": "default"}
	ask, err := json.Marshal(object{"auth": object{
		"identity": object{"methods": []string{"password"}, "password": object{"user": object{"name": auth.User, "domain": domain, "password": auth.Password}}},
		"scope":    object{"project": object{"name": auth.Project, "domain": domain}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := web.Post(auth.URL+"/auth/tokens", "application/json", bytes.NewReader(ask))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		Token struct {
			Project struct{ ID string }
			Catalog []struct {
				Type      string
				Endpoints []struct{ Interface, URL string }
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("log in as %s: %s, %v", name, resp.Status, err)
	}
	c := &client{t: t, token: resp.Header.Get("X-Subject-Token"), project: got.Token.Project.ID, endpoints: map[string]string{}}
	for _, s := range got.Token.Catalog {
		for _, e := range s.Endpoints {
			if e.Interface == "public" {
				c.endpoints[s.Type] = strings.TrimSuffix(e.URL, "/")
			}
		}
	}
	return c
}

// send sends a request and gives status and text of the answer.
func (c *client) send(ctx context.Context, method, service, path string, body any) (int, string, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, "", err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.endpoints[service]+path, content)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-Auth-Token", c.token)
	req.Header.Set("Content-Type", "application/json")
	switch service {
	case "compute":
		req.Header.Set("X-OpenStack-Nova-API-Version", "2.90")
	case "placement":
		req.Header.Set("OpenStack-API-Version", "placement 1.39")
	}
	resp, err := web.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// do is send for what must be answered.
func (c *client) do(method, service, path string, body any) (int, string) {
	c.t.Helper()
	status, text, err := c.send(c.t.Context(), method, service, path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	return status, text
}

// call is do for what must succeed; out, unless nil, is what the answer is read into.
func (c *client) call(method, service, path string, body, out any) {
	c.t.Helper()
	status, text := c.do(method, service, path, body)
	if status >= 300 {
		c.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			c.t.Fatalf("%s %s: %v: %s", method, path, err, text)
		}
	}
}

// thing is what lists have of one.
type thing struct{ ID, Name string }

// list reads a list. It is also for after a test, whose context has ended.
func (c *client) list(service, path, key string) (things []thing) {
	c.t.Helper()
	status, text, err := c.send(context.Background(), "GET", service, path, nil)
	var got map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal([]byte(text), &got)
	}
	if err == nil {
		err = json.Unmarshal(got[key], &things)
	}
	if err != nil || status != http.StatusOK {
		c.t.Fatalf("GET %s: %d %s, %v", path, status, text, err)
	}
	return things
}

// server is what the tests look at of Nova's.
type server struct {
	ID, Name, Status string
	Addresses        map[string][]struct{ Addr string }
	Fault            struct{ Message string }
	ConfigDrive      string `json:"config_drive"`
}

// newServer is the body of a request for a server.
type newServer struct {
	Name        string              `json:"name"`
	Flavor      string              `json:"flavorRef"`
	Image       string              `json:"imageRef"`
	Networks    []map[string]string `json:"networks"`
	ConfigDrive bool                `json:"config_drive,omitempty"`
	UserData    []byte              `json:"user_data,omitempty"`
	Metadata    map[string]string   `json:"metadata,omitempty"`
}

// image and network give the id of what has that name.
func (c *client) image(name string) string {
	c.t.Helper()
	var got struct{ Images []struct{ ID string } }
	c.call("GET", "image", "/v2/images?name="+name, nil, &got)
	if len(got.Images) != 1 {
		c.t.Fatalf("%d images are called %s, want 1", len(got.Images), name)
	}
	return got.Images[0].ID
}

func (c *client) network() string {
	c.t.Helper()
	var got struct{ Networks []struct{ ID string } }
	c.call("GET", "network", "/v2.0/networks?name=lab", nil, &got)
	if len(got.Networks) != 1 {
		c.t.Fatalf("%d networks are called lab, want 1", len(got.Networks))
	}
	return got.Networks[0].ID
}

// create asks for a server, which is deleted with the test, and gives its id.
func (c *client) create(s newServer) string {
	c.t.Helper()
	s.Networks = []map[string]string{{"uuid": c.network()}}
	var got struct{ Server server }
	c.call("POST", "compute", "/servers", map[string]any{"server": s}, &got)
	c.t.Cleanup(func() { c.remove(got.Server.ID) })
	return got.Server.ID
}

// settled waits until Nova has built a server, or has given up.
func (c *client) settled(id string) server {
	c.t.Helper()
	var got struct{ Server server }
	eventually(c.t, "server "+id+" is built", func() string {
		c.call("GET", "compute", "/servers/"+id, nil, &got)
		if got.Server.Status == "BUILD" {
			return "it is in BUILD"
		}
		return ""
	})
	return got.Server
}

// remove deletes a server and waits until it is gone. It is also called when a
// test has ended, so it takes no context of the test's.
func (c *client) remove(id string) {
	c.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		status, text, err := c.send(context.Background(), "DELETE", "compute", "/servers/"+id, nil)
		if err == nil && status == http.StatusNotFound {
			return
		}
		if time.Now().After(end) {
			c.t.Errorf("server %s is not gone within %s: %d %s, %v", id, limit, status, text, err)
			return
		}
	}
}

// quota has the administrator set limits of the client's project; -1 is none. They
// stay: each test that needs others sets them.
func (c *client) quota(admin *client, limits map[string]any) {
	c.t.Helper()
	path := "/os-quota-sets/" + c.project
	set := map[string]any{"force": true}
	for name, n := range limits {
		set[name] = n
	}
	admin.call("PUT", "compute", path, map[string]any{"quota_set": set}, nil)
}

// unlimited is a quota that refuses nothing.
var unlimited = map[string]any{"instances": -1, "cores": -1, "ram": -1}

func (s server) String() string {
	return fmt.Sprintf("%s is %s %v (%s)", s.Name, s.Status, s.Addresses, s.Fault.Message)
}
