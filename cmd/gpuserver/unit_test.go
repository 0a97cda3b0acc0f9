package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuserver/internal/config"
)

const unitFile = "../../deploy/gpuserver.service"

// unit gives the settings of the systemd unit that is shipped.
func unit(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			settings[key] = value
		}
	}
	return settings
}

// The unit runs commands that exist, with flags that they have.
func TestUnitRunsOurCommands(t *testing.T) {
	settings := unit(t)
	for _, key := range []string{"ExecStart", "ExecStartPre"} {
		args := strings.Fields(settings[key])
		if len(args) < 2 || filepath.Base(args[0]) != "gpuserver" {
			t.Errorf("%s runs %q", key, settings[key])
			continue
		}
		cmd, rest, err := newRootCommand().Find(args[1:])
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil || !cmd.HasParent() {
			t.Errorf("%s: %v", key, err)
		}
		if !strings.Contains(settings[key], defaultConfig) {
			t.Errorf("%s does not name %s", key, defaultConfig)
		}
	}
}

// The folders that systemd makes are those of the configuration's defaults.
func TestUnitMakesTheDefaultFolders(t *testing.T) {
	settings, server := unit(t), config.Defaults().Server
	if got := "/var/lib/" + settings["StateDirectory"]; got != string(server.DataDir) {
		t.Errorf("StateDirectory is %s, data_dir %s", got, server.DataDir)
	}
	if got := "/run/" + settings["RuntimeDirectory"]; got != filepath.Dir(string(server.Listen.Socket)) {
		t.Errorf("RuntimeDirectory is %s, the socket %s", got, server.Listen.Socket)
	}
	if settings["RuntimeDirectoryPreserve"] != "yes" {
		t.Error("systemd removes the RuntimeDirectory with each stop, and each start tries KVM anew before its first VM")
	}
}

// systemd itself finds no mistake in the unit.
func TestUnitIsVerified(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze here")
	}
	data, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	// It insists on a program that is there.
	text := strings.ReplaceAll(string(data), "/usr/local/bin/gpuserver", "/bin/true")
	path := filepath.Join(t.TempDir(), "gpuserver.service")
	write(t, path, text)
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "gpuserver.service") {
		t.Errorf("%v\n%s", err, out)
	}
}
