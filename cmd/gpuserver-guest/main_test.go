package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"gpuserver/internal/guest"
)

func TestArguments(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	for _, c := range []struct {
		args []string
		code int
		out  string // of both streams
	}{
		{[]string{"version"}, 0, guest.AgentVersion},
		{nil, 2, "usage:"},
		{[]string{"hook"}, 2, "usage:"},
		{[]string{"agent", "--nonsense"}, 2, "nonsense"},
		// By hand, on some host, it would end with the host's power-off.
		{[]string{"agent", "--runner-dir", "/nonexistent"}, 2, "only systemd starts it"},
		{[]string{"exec", "root", "x", "--", "true"}, 2, "usage:"},
		{[]string{"exec", "nobody-of-that-name", "0", "--", "true"}, 126, "nobody-of-that-name"},
		{[]string{"hook", "job-started"}, 1, "::error title=gpuserver::"},
	} {
		var out bytes.Buffer
		if code := guest.Main(c.args, nil, &out, &out); code != c.code || !strings.Contains(out.String(), c.out) {
			t.Errorf("%q: status %d, expected %d: %s", c.args, code, c.code, out.String())
		}
	}
}

// TestImports keeps the image's content to the guest's code: what it imports of
// this module is the contract and the guest.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(string(out)), " "); got != "gpuserver gpuserver/internal/gate gpuserver/internal/guest gpuserver/cmd/gpuserver-guest" {
		t.Errorf("imports %s", got)
	}
}
