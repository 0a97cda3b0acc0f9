package openstack

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"sync"

	"github.com/gophercloud/gophercloud/v2"

	"gpuserver"
)

// thing is a sort of thing that the cloud has a name and an id for.
type thing string

const (
	aFlavor      thing = "flavor"
	anImage      thing = "image"
	aNetwork     thing = "network"
	aGroup       thing = "security group"
	aServerGroup thing = "server group"
)

// directory remembers the ids of names.
type directory struct {
	mu    sync.Mutex
	ids   map[thing]map[string]string
	looks map[string]*turns // by thing and name: many that need one at once look once
}

func newDirectory() *directory {
	return &directory{ids: map[thing]map[string]string{}, looks: map[string]*turns{}}
}

func (r *directory) look(t thing, name string) *turns {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := string(t) + " " + name
	if r.looks[key] == nil {
		fresh := newTurns()
		r.looks[key] = &fresh
	}
	return r.looks[key]
}

func (r *directory) get(t thing, name string) (id string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, ok = r.ids[t][name]
	return id, ok
}

func (r *directory) put(t thing, name, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[t] == nil {
		r.ids[t] = map[string]string{}
	}
	r.ids[t][name] = id
}

// forget drops everything: the cloud said that one of them is not there.
func (r *directory) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.ids)
}

var uuidRE = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// resolve gives the id of a name. A UUID is taken for an id, except of a flavor,
// whose name may look like anything. remembered says that the answer is from an
// earlier look.
func (d *Driver) resolve(ctx context.Context, t thing, name string) (id string, remembered bool, err error) {
	if t != aFlavor && uuidRE.MatchString(name) {
		return name, false, nil
	}
	if id, ok := d.found.get(t, name); ok {
		return id, true, nil
	}
	err = d.found.look(t, name).do(ctx, func(ctx context.Context) (err error) {
		if _, ok := d.found.get(t, name); ok { // somebody looked meanwhile
			return nil
		}
		id, err = d.lookUp(ctx, t, name)
		return err
	})
	if err != nil {
		return "", false, d.failed("find "+string(t)+" "+name, err)
	}
	if id == "" {
		id, _ = d.found.get(t, name)
	}
	if id == "" { // and it was forgotten again
		id, err = d.lookUp(ctx, t, name)
	}
	return id, false, err
}

// lookUp asks the cloud for the id of a name, and remembers it.
func (d *Driver) lookUp(ctx context.Context, t thing, name string) (id string, err error) {
	var ids []string
	switch t {
	case aFlavor:
		ids, err = d.flavorIDs(ctx, name)
	case anImage:
		ids, err = d.listNamed(ctx, t, func(s *session) (*gophercloud.ServiceClient, string) { return s.image, "images" }, "images",
			url.Values{"name": {name}, "status": {"active"}, "sort": {"created_at:desc"}})
	case aNetwork:
		ids, err = d.listNamed(ctx, t, func(s *session) (*gophercloud.ServiceClient, string) { return s.network, "networks" }, "networks", url.Values{"name": {name}})
	case aGroup:
		ids, err = d.listNamed(ctx, t, func(s *session) (*gophercloud.ServiceClient, string) { return s.network, "security-groups" }, "security_groups", url.Values{"name": {name}})
	case aServerGroup:
		ids, err = d.serverGroupIDs(ctx, name)
	}
	switch {
	case err != nil:
		return "", err
	case len(ids) == 0:
		return "", gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no %s named %q that the credential may see; make it there, or correct its name in the configuration", d.cfg.Name, t, name)
	case len(ids) > 1 && t != anImage: // of images the newest
		return "", gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s has %d %ss named %q; give the id of one in the configuration", d.cfg.Name, len(ids), t, name)
	}
	d.found.put(t, name, ids[0])
	return ids[0], nil
}

// named is what lists of all services give of a thing.
type named struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// listNamed lists the things of a name: one page, as there are few.
func (d *Driver) listNamed(ctx context.Context, t thing, at func(*session) (*gophercloud.ServiceClient, string), key string, query url.Values) (ids []string, err error) {
	page := map[string]any{}
	var found []named
	err = d.ask(ctx, "list "+string(t)+"s", func(ctx context.Context, s *session) error {
		client, path := at(s)
		_, err := client.Get(ctx, client.ServiceURL(path)+"?"+query.Encode(), &page, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
		if err != nil {
			return err
		}
		return gophercloud.Result{Body: page}.ExtractIntoSlicePtr(&found, key)
	})
	for _, f := range found {
		ids = append(ids, f.ID)
	}
	return ids, err
}

// flavorIDs reads all flavors: Nova cannot filter by name.
func (d *Driver) flavorIDs(ctx context.Context, name string) (ids []string, err error) {
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for {
		var page struct {
			Flavors []named `json:"flavors"`
			Links   []struct {
				Rel string `json:"rel"`
			} `json:"flavors_links"`
		}
		err := d.ask(ctx, "list flavors", func(ctx context.Context, s *session) error {
			_, err := s.compute.Get(ctx, s.compute.ServiceURL("flavors")+"?"+query.Encode(), &page, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, f := range page.Flavors {
			d.found.put(aFlavor, f.Name, f.ID)
			if f.Name == name || f.ID == name {
				ids = append(ids, f.ID)
			}
		}
		if len(page.Links) == 0 || len(page.Flavors) == 0 {
			return ids, nil
		}
		query.Set("marker", page.Flavors[len(page.Flavors)-1].ID)
	}
}

func (d *Driver) serverGroupIDs(ctx context.Context, name string) (ids []string, err error) {
	var answer struct {
		Groups []named `json:"server_groups"`
	}
	err = d.ask(ctx, "list server groups", func(ctx context.Context, s *session) error {
		_, err := s.compute.Get(ctx, s.compute.ServiceURL("os-server-groups"), &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
		return err
	})
	for _, g := range answer.Groups {
		if g.Name == name {
			ids = append(ids, g.ID)
		}
	}
	return ids, err
}
