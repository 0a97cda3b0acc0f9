package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listener is one bound listener with what it serves.
type listener struct {
	net.Listener
	srv  *http.Server
	what string
	log  *slog.Logger
	once sync.Once
}

// handle sets what is served, with bounds on what a client may cost: the time
// for headers and the size of headers. Bodies are bounded by the handlers.
func (l *listener) handle(what string, h http.Handler, log *slog.Logger) {
	l.what, l.log = what, log
	l.srv = &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.With("listener", what).Handler(), slog.LevelDebug),
	}
	if what != "api" && what != "socket" { // those stream
		l.srv.ReadTimeout, l.srv.WriteTimeout = time.Minute, 2*time.Minute
	}
}

// serve answers until ctx is done, then lets requests under way end.
func (l *listener) serve(ctx context.Context) error {
	done := make(chan struct{})
	defer func() { <-done }()
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(done)
		<-sctx.Done()
		grace, stop := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer stop()
		if l.srv.Shutdown(grace) != nil {
			_ = l.srv.Close() // streams have no end of their own
		}
	}()
	l.log.Info("listening", "for", l.what, "address", l.Addr().String())
	if err := l.srv.Serve(l.Listener); err != nil && !isClosed(err) && ctx.Err() == nil {
		return err
	}
	return nil
}

func (l *listener) close() { l.once.Do(func() { _ = l.Close() }) }

func bindTCP(address string) (*listener, error) {
	ln, err := net.Listen("tcp", address)
	return &listener{Listener: ln}, err
}

// bindGuests binds an address that is there only once the bridge is: libvirt
// may come up after us, and the bridge goes and returns with it.
// Source: ip(7), IP_FREEBIND.
func bindGuests(address string) (*listener, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			if network == "tcp6" {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
				return
			}
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		})
		if err != nil {
			return err
		}
		return serr
	}}
	ln, err := lc.Listen(context.Background(), "tcp", address)
	return &listener{Listener: ln}, err
}

// bindSocket makes the unix socket that only root can open. One that a server
// left behind is replaced; one that somebody answers on is not.
func bindSocket(path string) (*listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, &os.PathError{Op: "listen", Path: path, Err: syscall.EADDRINUSE}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	old := syscall.Umask(0o177) // so that there is no moment at which others may open it
	ln, err := net.Listen("unix", path)
	syscall.Umask(old)
	return &listener{Listener: ln}, err
}
