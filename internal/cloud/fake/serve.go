package fake

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// Serve runs a new cloud on a listener (TCP or a Unix socket) until ctx ends,
// and ends its guests then. Dial gives a driver of it, NewAdmin what a test
// needs. It has no access control: listen on loopback or a private socket.
func Serve(ctx context.Context, ln net.Listener, cfg Config) error {
	c := NewCloud(cfg)
	defer c.Close()
	base, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler:           c.Handler(),
		BaseContext:       func(net.Listener) context.Context { return base }, // ends stalls and streams
		ReadHeaderTimeout: 10 * time.Second,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return gpuserver.Wrap(gpuserver.KindUnavailable, "fake: serve", err)
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer stop()
	err := errors.Join(srv.Shutdown(grace), srv.Close())
	<-failed
	return gpuserver.Wrap(gpuserver.KindInternal, "fake: shut down", err)
}

// Handler serves the cloud over HTTP: drivers under /v1/, a test's hand under
// /admin/.
func (c *Cloud) Handler() http.Handler {
	mux := http.NewServeMux()
	c.driverRoutes(mux)
	c.adminRoutes(mux)
	return mux
}

// driver is the request's driver, with its owner tag and without events.
func (c *Cloud) driver(r *http.Request) *Driver {
	return &Driver{cloud: c, owner: r.Header.Get(ownerHeader)}
}

func (c *Cloud) driverRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/vms", func(w http.ResponseWriter, r *http.Request) {
		var spec cloud.Spec
		if !read(w, r, &spec) {
			return
		}
		vm, err := c.driver(r).Create(r.Context(), spec)
		answer(w, vm, err)
	})
	mux.HandleFunc("GET /v1/vms", func(w http.ResponseWriter, r *http.Request) {
		vms, err := c.driver(r).List(r.Context())
		answer(w, vms, err)
	})
	mux.HandleFunc("GET /v1/vms/{name}", func(w http.ResponseWriter, r *http.Request) {
		vm, err := c.driver(r).Get(r.Context(), r.PathValue("name"))
		answer(w, vm, err)
	})
	mux.HandleFunc("DELETE /v1/vms/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, c.driver(r).Delete(r.Context(), r.PathValue("name")))
	})
	mux.HandleFunc("POST /v1/vms/{name}/keep", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, c.driver(r).Keep(r.Context(), r.PathValue("name")))
	})
	mux.HandleFunc("GET /v1/vms/{name}/console", func(w http.ResponseWriter, r *http.Request) {
		text, err := c.driver(r).Console(r.Context(), r.PathValue("name"), number(r, "from"), number(r, "limit"))
		if err != nil {
			answer(w, nil, err)
			return
		}
		defer text.Close()
		io.Copy(w, text) // an error here means that the caller has gone
	})
	mux.HandleFunc("GET /v1/capacity", func(w http.ResponseWriter, r *http.Request) {
		hosts, err := c.driver(r).Capacity(r.Context())
		answer(w, hosts, err)
	})
	mux.HandleFunc("POST /v1/hosts/{host}/cards", func(w http.ResponseWriter, r *http.Request) {
		var addresses []string
		if !read(w, r, &addresses) {
			return
		}
		readings, err := c.driver(r).Cards(r.Context(), r.PathValue("host"), addresses)
		answer(w, readings, err)
	})
	mux.HandleFunc("GET /v1/events", c.stream)
}

// stream sends the capabilities and then each event as a line of JSON, until
// the caller leaves or the cloud ends.
func (c *Cloud) stream(w http.ResponseWriter, r *http.Request) {
	events := c.subscribe()
	defer c.unsubscribe(events)
	out, lines := http.NewResponseController(w), json.NewEncoder(w)
	next := notice{Hello: &hello{Capabilities: *c.cfg.Capabilities}}
	for {
		if lines.Encode(next) != nil || out.Flush() != nil {
			return
		}
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			next = notice{Event: &e}
		case <-r.Context().Done():
			return
		}
	}
}

// read decodes a request's body, or answers that it cannot.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(v)
	if err != nil {
		answer(w, nil, gpuserver.Errorf(gpuserver.KindInvalid, "the body of %s %s is not the JSON that it should be: %v", r.Method, r.URL.Path, err))
	}
	return err == nil
}

// number is a query parameter; 0 if it is missing or no number.
func number(r *http.Request, key string) int64 {
	n, _ := strconv.ParseInt(r.URL.Query().Get(key), 10, 64)
	return n
}
