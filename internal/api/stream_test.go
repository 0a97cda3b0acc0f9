package api_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("database/sql.(*DB).connectionOpener"))
}

func TestConsole(t *testing.T) {
	s := serve(t, api.Options{})
	s.fleet.WriteConsole(s.world.Busy.ID, "0123456789")
	r, err := s.admin.Console(t.Context(), "gs-2", 3, 4, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if string(text) != "3456" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
}

// TestFollowedConsole ends by itself once the VM is gone, with all of it read.
func TestFollowedConsole(t *testing.T) {
	s := serve(t, api.Options{})
	v := s.world.Busy
	s.fleet.WriteConsole(v.ID, "one ")
	r, err := s.admin.Console(t.Context(), v.Name, 0, 2, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first := make([]byte, 4)
	if _, err := io.ReadFull(r, first); err != nil || string(first) != "one " {
		t.Fatalf("%q, %v", first, err)
	}
	s.fleet.WriteConsole(v.ID, "two ")
	if _, err := io.ReadFull(r, first); err != nil || string(first) != "two " {
		t.Fatalf("%q, %v", first, err)
	}
	s.fleet.WriteConsole(v.ID, "the end")
	err = s.db.Update(t.Context(), func(tx *store.Tx) error {
		if err := tx.MoveVM(&v, gpuserver.VMDeleting, "x"); err != nil {
			return err
		}
		return tx.MoveVM(&v, gpuserver.VMGone, "x")
	})
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if string(rest) != "the end" || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestRunFromStartToExit(t *testing.T) {
	s := serve(t, api.Options{})
	s.fleet.OnRun = func(ctx context.Context, id gpuserver.JobID, _ api.RunRequest) {
		v, err := s.fleet.StartVM(ctx, id)
		if err != nil {
			t.Error(err)
			return
		}
		s.fleet.Write(id, "stdout", "out\n")
		s.fleet.Write(id, "stderr", "err\n")
		if err := s.fleet.Exit(ctx, id, v, 3); err != nil {
			t.Error(err)
		}
	}
	id, err := s.admin.StartRun(t.Context(), api.RunRequest{Args: []string{"make"}})
	if err != nil {
		t.Fatal(err)
	}
	for stream, want := range map[string]string{"stdout": "out\n", "stderr": "err\n"} {
		var got []byte
		for o := (api.Output{}); !o.Done; {
			if o, err = s.admin.Output(t.Context(), id, stream, o.Next, 30*time.Second); err != nil {
				t.Fatal(err)
			}
			got = append(got, o.Data...)
		}
		if string(got) != want {
			t.Errorf("%s: %q", stream, got)
		}
	}
	r, err := s.admin.Run(t.Context(), id)
	if err != nil || !r.Done || r.Exit == nil || *r.Exit != 3 || r.Conclusion != "failure" || r.VM == "" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := s.admin.CancelRun(t.Context(), id); err != nil {
		t.Errorf("cancelling what is over: %v", err)
	}
}

// watch reads events in the background; each is "type data".
func watch(t *testing.T, s *served) <-chan string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/api/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	events, ready := make(chan string, 100), make(chan struct{})
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = resp.Body.Close()
		<-done
	})
	go func() {
		defer close(done)
		defer close(events)
		kind := ""
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			switch line := sc.Text(); {
			case line == ": watching":
				close(ready)
			case strings.HasPrefix(line, "event: "):
				kind = line[7:]
			case strings.HasPrefix(line, "data: "):
				events <- kind + " " + line[6:]
			}
		}
	}()
	<-ready
	return events
}

func TestEventsTellOfCommits(t *testing.T) {
	s := serve(t, api.Options{})
	events := watch(t, s)
	if err := s.fleet.End(t.Context(), s.world.Queued.ID, "cancelled"); err != nil {
		t.Fatal(err)
	}
	if got := <-events; got != `job {"job":3,"state":"done"}` {
		t.Errorf("got %s", got)
	}
	v := s.world.Busy
	if err := s.db.Update(t.Context(), func(tx *store.Tx) error { return tx.MoveVM(&v, gpuserver.VMDraining, "x") }); err != nil {
		t.Fatal(err)
	}
	if got := <-events; got != `vm {"vm":2,"state":"draining"}` {
		t.Errorf("got %s", got)
	}
}

var update = flag.Bool("update", false, "write testdata/openapi.yaml anew")

// TestOpenAPI keeps the description of the API in view of whoever changes it.
func TestOpenAPI(t *testing.T) {
	got, err := api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/openapi.yaml"
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("the API differs from %s; if that is meant: go test ./internal/api -run TestOpenAPI -update", path)
	}
	s := serve(t, api.Options{})
	if _, served := request(t, "GET", s.url+"/api/v1/openapi.yaml", ""); served != string(want) {
		t.Error("what is served differs")
	}
}
