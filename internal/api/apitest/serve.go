package apitest

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"gpuserver/internal/api"
)

// Serve serves an API over TCP and over a unix socket until the test ends.
func Serve(t testing.TB, o api.Options) (url, socket string) {
	t.Helper()
	a, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	tcp := httptest.NewUnstartedServer(a.TCP())
	tcp.Config.RegisterOnShutdown(a.Close)
	tcp.Start()
	// A test's own folder may be longer than the 108 bytes of a socket's path.
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := &httptest.Server{Listener: l, Config: &http.Server{Handler: a.Socket()}}
	unix.Start()
	t.Cleanup(func() {
		a.Close()
		tcp.Close()
		unix.Close()
		_ = os.RemoveAll(dir)
	})
	return tcp.URL, socket
}
