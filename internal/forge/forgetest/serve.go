package forgetest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"gpuserver"
)

// Options are how the stand-in runs as a process of its own.
type Options struct {
	Config
	Listen string // address of everything, "127.0.0.1:0"
	// RunnerListen, if set, is an address that serves the runner protocol alone:
	// the only part that guests may reach.
	RunnerListen string
	// Ready is called once with the bound addresses ("" where there is none).
	Ready func(listen, runnerListen string)
}

// Serve runs a Server until ctx ends.
func Serve(ctx context.Context, o Options) error {
	main, err := listen(o.Listen)
	if err != nil {
		return err
	}
	defer main.Close()
	if o.BaseURL == "" {
		o.BaseURL = "http://" + main.Addr().String()
	}
	var guests net.Listener
	guestAddr := ""
	if o.RunnerListen != "" {
		if guests, err = listen(o.RunnerListen); err != nil {
			return err
		}
		defer guests.Close()
		guestAddr = guests.Addr().String()
		if o.RunnerURL == "" {
			o.RunnerURL = "http://" + guestAddr
		}
	}
	s := New(o.Config)
	defer s.Close()
	servers := []*http.Server{{Handler: s, ReadHeaderTimeout: 10 * time.Second}}
	listeners := []net.Listener{main}
	if guests != nil {
		servers = append(servers, &http.Server{Handler: s.RunnerHandler(), ReadHeaderTimeout: 10 * time.Second})
		listeners = append(listeners, guests)
	}
	if o.Ready != nil {
		o.Ready(main.Addr().String(), guestAddr)
	}
	return serveAll(ctx, s, servers, listeners)
}

func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &gpuserver.Error{
			Kind: gpuserver.KindUnavailable, Op: "forgetest: listen",
			Public: "cannot listen on " + addr + "; choose another address", Err: err,
		}
	}
	return l, nil
}

// serveAll serves until ctx ends or one server fails, then ends all.
func serveAll(ctx context.Context, s *Server, servers []*http.Server, listeners []net.Listener) error {
	ended := make(chan error, len(servers))
	for i, srv := range servers {
		go func() { ended <- srv.Serve(listeners[i]) }()
	}
	var err error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err = <-ended:
		left--
	}
	_ = s.Close() // ends the long polls first
	for _, srv := range servers {
		_ = srv.Close()
	}
	for range left {
		if e := <-ended; err == nil {
			err = e
		}
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
