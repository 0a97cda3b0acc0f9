package fake

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/pci"
)

// longPoll is how long a request for calls waits for one.
const longPoll = 25 * time.Second

func (c *Cloud) adminRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /admin/vms", func(w http.ResponseWriter, r *http.Request) { answer(w, c.VMs(), nil) })
	mux.HandleFunc("GET /admin/vms/{name}/spec", func(w http.ResponseWriter, r *http.Request) {
		spec, err := c.Spec(r.PathValue("name"))
		answer(w, spec, err)
	})
	mux.HandleFunc("POST /admin/vms/{name}/stop", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, c.Stop(r.PathValue("name"), r.URL.Query().Get("reason")))
	})
	mux.HandleFunc("POST /admin/vms/{name}/vanish", func(w http.ResponseWriter, r *http.Request) {
		c.Vanish(r.PathValue("name"))
		answer(w, struct{}{}, nil)
	})
	mux.HandleFunc("POST /admin/vms/{name}/remains", func(w http.ResponseWriter, r *http.Request) {
		c.LeavePart(r.PathValue("name"), r.URL.Query().Get("owner"))
		answer(w, struct{}{}, nil)
	})
	mux.HandleFunc("POST /admin/vms/{name}/foreign", func(w http.ResponseWriter, r *http.Request) {
		c.AddForeign(r.PathValue("name"))
		answer(w, struct{}{}, nil)
	})
	mux.HandleFunc("POST /admin/vms/{name}/console", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err == nil {
			err = c.Write(r.PathValue("name"), text)
		}
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("PUT /admin/hosts", func(w http.ResponseWriter, r *http.Request) {
		var hosts []gpuserver.Host
		if read(w, r, &hosts) {
			c.SetHosts(hosts)
			answer(w, struct{}{}, nil)
		}
	})
	mux.HandleFunc("PUT /admin/cards", func(w http.ResponseWriter, r *http.Request) {
		var card pci.Reading
		if read(w, r, &card) {
			c.SetCard(card)
			answer(w, struct{}{}, nil)
		}
	})
	mux.HandleFunc("PUT /admin/faults", func(w http.ResponseWriter, r *http.Request) {
		var list []Fault
		if read(w, r, &list) {
			c.SetFaults(list)
			answer(w, struct{}{}, nil)
		}
	})
	mux.HandleFunc("GET /admin/calls", c.adminCalls)
	mux.HandleFunc("POST /admin/reset", func(w http.ResponseWriter, r *http.Request) {
		c.Reset()
		answer(w, struct{}{}, nil)
	})
}

// adminCalls answers with the calls after ?after=N; with ?wait=1 it waits a
// while until there is one.
func (c *Cloud) adminCalls(w http.ResponseWriter, r *http.Request) {
	after := number(r, "after")
	if number(r, "wait") != 0 {
		ctx, cancel := context.WithTimeout(r.Context(), longPoll)
		defer cancel()
		c.WaitCall(ctx, after, func(Call) bool { return true }) // none in time: an empty list
	}
	answer(w, c.Calls(after), nil)
}

// Admin is a test's hand on a cloud that Serve runs: what the methods of Cloud
// of the same names do.
type Admin struct{ client client }

// NewAdmin gives a hand on the cloud at an address as Dial takes it.
func NewAdmin(address string) *Admin { return &Admin{newClient(address)} }

// Close drops the connections.
func (a *Admin) Close() { a.client.http.CloseIdleConnections() }

// VMs gives all VMs, foreign ones too, in the order of their creation.
func (a *Admin) VMs(ctx context.Context) (vms []cloud.VM, err error) {
	err = a.call(ctx, "GET", "/admin/vms", nil, &vms)
	return vms, err
}

// Spec gives what a VM was made of.
func (a *Admin) Spec(ctx context.Context, name string) (spec cloud.Spec, err error) {
	err = a.call(ctx, "GET", admin(name, "spec"), nil, &spec)
	return spec, err
}

// Stop makes a VM stop by itself, and tells the drivers so.
func (a *Admin) Stop(ctx context.Context, name, reason string) error {
	return a.call(ctx, "POST", admin(name, "stop")+"?"+url.Values{"reason": {reason}}.Encode(), nil, nil)
}

// Vanish takes a VM away without a word.
func (a *Admin) Vanish(ctx context.Context, name string) error {
	return a.call(ctx, "POST", admin(name, "vanish"), nil, nil)
}

// LeavePart makes a leftover with an owner tag.
func (a *Admin) LeavePart(ctx context.Context, name, owner string) error {
	return a.call(ctx, "POST", admin(name, "remains")+"?"+url.Values{"owner": {owner}}.Encode(), nil, nil)
}

// AddForeign makes a running VM that carries no owner tag.
func (a *Admin) AddForeign(ctx context.Context, name string) error {
	return a.call(ctx, "POST", admin(name, "foreign"), nil, nil)
}

// SetHosts changes the hosts' room.
func (a *Admin) SetHosts(ctx context.Context, hosts []gpuserver.Host) error {
	return a.call(ctx, "PUT", "/admin/hosts", hosts, nil)
}

// SetCard makes a card's state be read as r.
func (a *Admin) SetCard(ctx context.Context, r pci.Reading) error {
	return a.call(ctx, "PUT", "/admin/cards", r, nil)
}

// SetFaults replaces all faults, and lets calls go on that stall at one.
func (a *Admin) SetFaults(ctx context.Context, list []Fault) error {
	return a.call(ctx, "PUT", "/admin/faults", list, nil)
}

// Calls gives the calls after the one numbered seq, oldest first.
func (a *Admin) Calls(ctx context.Context, seq int64) (list []Call, err error) {
	err = a.call(ctx, "GET", fmt.Sprintf("/admin/calls?after=%d", seq), nil, &list)
	return list, err
}

// WaitCall waits until a call after the one numbered seq matches, and gives it.
func (a *Admin) WaitCall(ctx context.Context, seq int64, match func(Call) bool) (Call, error) {
	for {
		var list []Call
		if err := a.call(ctx, "GET", fmt.Sprintf("/admin/calls?wait=1&after=%d", seq), nil, &list); err != nil {
			return Call{}, err
		}
		for _, one := range list {
			if match(one) {
				return one, nil
			}
			seq = one.Seq
		}
	}
}

// Reset takes all VMs, faults and calls away.
func (a *Admin) Reset(ctx context.Context) error {
	return a.call(ctx, "POST", "/admin/reset", nil, nil)
}

func (a *Admin) call(ctx context.Context, method, path string, in, out any) error {
	return a.client.call(ctx, "", method, path, in, out)
}

func admin(name, verb string) string { return "/admin/vms/" + url.PathEscape(name) + "/" + verb }
