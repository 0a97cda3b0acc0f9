package archtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// stub writes a shell script to a file that is made executable.
func stub(t *testing.T, path, body string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/bash\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// copied copies a file of the repository into a folder.
func copied(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// command runs a program in dir with bin before everything else in PATH.
func command(t *testing.T, dir, bin, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MAKEFLAGS=", "MAKELEVEL=")
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// Only the demo itself writes to standard output: scripts read it as JSON.
func TestDemoPrintsOnlyTheProgramsOutput(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("there is no make here")
	}
	dir, bin := t.TempDir(), t.TempDir()
	copied(t, dir, "Makefile")
	stub(t, filepath.Join(dir, "scripts/setup"), "echo noise of setup")
	stub(t, filepath.Join(dir, "scripts/libvirt-up"), "echo noise of libvirt-up")
	stub(t, filepath.Join(dir, "scripts/demo-image"), "echo noise >&2; echo /the/image")
	stub(t, filepath.Join(bin, "go"), `echo noise of go; printf '#!/bin/bash\necho "{\\"args\\": \\"$*\\"}"\nexit ${STATUS-0}\n' > bin/gpuserver; chmod +x bin/gpuserver`)
	out, errs, err := command(t, dir, bin, "make", "demo", "DEMO_ARGS=--once --jobs 3 --output json")
	if want := "{\"args\": \"demo --image-dir /the/image --once --jobs 3 --output json\"}\n"; err != nil || out != want {
		t.Errorf("%v, standard output %q, want %q; standard error %q", err, out, want, errs)
	}
	for _, noise := range []string{"noise of setup", "noise of go", "noise of libvirt-up"} {
		if !strings.Contains(errs, noise) {
			t.Errorf("standard error lacks %q: %q", noise, errs)
		}
	}
	stub(t, filepath.Join(dir, "scripts/demo-image"), "exit 3")
	if out, _, err := command(t, dir, bin, "make", "demo"); err == nil || out != "" {
		t.Errorf("without an image: %v, standard output %q", err, out)
	}
}

// setup says what is missing before it installs just that, and does nothing the
// second time.
func TestSetupInstallsWhatIsMissing(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	copied(t, dir, "scripts/setup")
	done := filepath.Join(dir, "done")
	// shellcheck is not installed until apt-get was run.
	stub(t, filepath.Join(bin, "dpkg-query"), `[ "${@: -1}" != shellcheck ] || [ -e `+done+` ] || exit 1; printf installed`)
	stub(t, filepath.Join(bin, "id"), "echo 0")
	stub(t, filepath.Join(bin, "go"), "exit 0")
	stub(t, filepath.Join(bin, "apt-get"), `echo "apt-get $*"; case " $* " in *" install "*) touch `+done+` ;; esac`)
	out, errs, err := command(t, dir, bin, "scripts/setup", "lint")
	say, install := strings.Index(errs, "are installed now: shellcheck"), strings.Index(errs, "install -y --no-install-recommends shellcheck\n")
	if err != nil || out != "" || say < 0 || install < say || !strings.Contains(errs, " update\n") {
		t.Errorf("%v, standard output %q, standard error %q", err, out, errs)
	}
	if out, errs, err := command(t, dir, bin, "scripts/setup", "lint"); err != nil || out != "" || errs != "" {
		t.Errorf("the second time: %v, %q, %q", err, out, errs)
	}
	stub(t, filepath.Join(bin, "apt-get"), "exit 100")
	if err := os.Remove(done); err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, dir, bin, "scripts/setup", "lint"); err == nil {
		t.Error("apt-get failed, and setup did not")
	}
}

// On a busy machine a daemon's process may be the shell that starts it for some
// time yet; only one that is gone has ended.
func TestLibvirtIsWaitedFor(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("systemd starts libvirtd here")
	}
	dir, bin, state := t.TempDir(), t.TempDir(), t.TempDir()
	copied(t, dir, "scripts/libvirt-up")
	t.Setenv("GPUSERVER_LIBVIRT_STATE", state)
	for name, body := range map[string]string{
		"id": "echo 0", "mkdir": "exit 0", "virt-admin": "exit 0", "dnsmasq": "", "qemu-system-x86_64": "", "libvirtd": "", "virtlogd": "",
		// It answers when it was asked three times while the starting process waits.
		"virsh":   `echo >>"$GPUSERVER_LIBVIRT_STATE/asked"; [ -e "$GPUSERVER_LIBVIRT_STATE/answers" ]`,
		"unshare": `[ "$ENDS" = no ] || exit 1; until [ "$(wc -l <"$GPUSERVER_LIBVIRT_STATE/asked")" -ge 4 ] || [ ! -d "$GPUSERVER_LIBVIRT_STATE" ]; do sleep 0.01; done; touch "$GPUSERVER_LIBVIRT_STATE/answers"; while [ -d "$GPUSERVER_LIBVIRT_STATE" ]; do sleep 0.01; done`,
	} {
		stub(t, filepath.Join(bin, name), body)
	}
	t.Setenv("ENDS", "yes")
	if _, errs, err := command(t, dir, bin, "scripts/libvirt-up"); err == nil || !strings.Contains(errs, "libvirtd ended at once") {
		t.Errorf("libvirtd ended at once: %v, %q", err, errs)
	}
	if err := os.Remove(filepath.Join(state, "asked")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ENDS", "no")
	if _, errs, err := command(t, dir, bin, "scripts/libvirt-up"); err != nil || !strings.HasSuffix(errs, "libvirtd and virtlogd answer\n") {
		t.Errorf("libvirtd takes time: %v, %q", err, errs)
	}
}

// A part that fails does not hide: the parts after it run, and the end says it.
func TestTestScriptReportsFailures(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	copied(t, dir, "scripts/test")
	stub(t, filepath.Join(dir, "scripts/libvirt-up"), "exit 7")
	stub(t, filepath.Join(dir, "scripts/demo-image"), "echo /the/image")
	stub(t, filepath.Join(bin, "go"), `
case "$*" in
list*) printf 'gpuserver\ngpuserver/internal/store\ngpuserver/internal/cloud/libvirt\n'; exit "${LIST_STATUS-0}" ;;
*/libvirt) echo "go $*"; printf 'ok  \tgpuserver/internal/cloud/libvirt\t3s\n' ;;
*) echo "go $*"; printf 'ok  \tgpuserver\t0.1s\n?   \tx\t[no test files]\n--- FAIL: TestX (0.1s)\nFAIL\nFAIL\tgpuserver/internal/store\t0.1s\nFAIL\n'; exit 1 ;;
esac`)
	out, errs, err := command(t, dir, bin, "scripts/test")
	if err == nil || !strings.Contains(errs, "test: FAILED: quick packages libvirt answers\n") {
		t.Errorf("%v, standard error %q", err, errs)
	}
	if !strings.HasSuffix(errs, "FAIL\tgpuserver/internal/store\t0.1s\ntest: 2 packages passed, 1 failed\n") {
		t.Errorf("standard error does not end with what was counted: %q", errs)
	}
	quick := strings.Index(out, "gpuserver gpuserver/internal/store\n")
	machine := strings.Index(out, "-p 1 gpuserver/internal/cloud/libvirt\n")
	if quick < 0 || machine < quick {
		t.Errorf("go was called as %q", out)
	}
	t.Setenv("LIST_STATUS", "1")
	if out, errs, err := command(t, dir, bin, "scripts/test", "race"); err == nil || out != "" {
		t.Errorf("go list failed, and the race tests did not: %v, %q, %q", err, out, errs)
	}
}

// A case passes by passing with one hypervisor and failing with none; on a desk a
// skipped one is only said.
func TestOpenStackScriptCounts(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	copied(t, dir, "scripts/test-openstack")
	stub(t, filepath.Join(dir, "scripts/openstack-lab"), `
case $1 in status) exit 3 ;; up) [ "$2" != "$BROKEN" ] && echo /the/clouds.yaml ;; down) echo >>"$0.ended" ;; esac`)
	if err := os.MkdirAll(filepath.Join(dir, "internal/e2e/openstack"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "internal/e2e/openstack/cases.txt"), []byte("TestFake\nTestFake/one\nTestReal\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The tests are a script that says what a variable has for the hypervisor.
	stub(t, filepath.Join(bin, "go"), `
while [ "$1" != -o ]; do shift; done
printf '%s\n' '#!/bin/bash' '[ "$GPUSERVER_OPENSTACK_CLOUDS" = /the/clouds.yaml ] || exit 1' 'eval "echo -e \"\$$GPUSERVER_OPENSTACK_MODE\""' '! [[ $SAID == *FAIL* ]]' >"$2"
chmod 755 "$2"`)
	const (
		fake = `--- PASS: TestFake (0.1s)\n    --- PASS: TestFake/one (0.1s)\n--- SKIP: TestReal (0.0s)`
		real = `--- SKIP: TestFake (0.0s)\n--- PASS: TestReal (0.1s)`
	)
	for _, tt := range []struct {
		name, ci, broken, fake, real, last string
		fails                              bool
	}{
		{"all", "true", "", fake, real, "3 passed, 0 failed\n", false},
		{"skipped on a desk", "", "", fake, `--- SKIP: TestReal (0.0s)`, "2 passed, 0 failed\n", false},
		{"skipped in CI", "true", "", fake, `--- SKIP: TestReal (0.0s)`, "2 passed, 1 failed\n", true},
		{"missing", "", "", `--- PASS: TestFake (0.1s)\n    --- PASS: TestFake/one (0.1s)`, ``, "2 passed, 1 failed\n", true},
		{"failed", "", "", fake, `--- FAIL: TestReal (0.1s)`, "2 passed, 1 failed\n", true},
		{"not in the list", "", "", fake, real + `\n--- FAIL: TestOther (0.1s)`, "3 passed, 1 failed\n", true},
		{"panicked", "", "", fake, real + `\npanic: test timed out`, "3 passed, 1 failed\n", true},
		{"no cloud", "", "libvirt", fake, real, "2 passed, 1 failed\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range map[string]string{"CI": tt.ci, "BROKEN": tt.broken, "fake": tt.fake, "libvirt": tt.real} {
				t.Setenv(name, value)
			}
			ended := filepath.Join(dir, "scripts/openstack-lab.ended")
			_ = os.Remove(ended)
			out, errs, err := command(t, dir, bin, "scripts/test-openstack")
			if (err != nil) != tt.fails || !strings.HasSuffix(out, tt.last) {
				t.Errorf("%v, want the end %q of:\n%s\n%s", err, tt.last, out, errs)
			}
			if b, _ := os.ReadFile(ended); len(b) < 3 {
				t.Errorf("clouds were ended %d times, want 3: after each, and at the end", len(b))
			}
		})
	}
}

// Continuous integration runs every part without a terminal, and fails if any
// part failed.
func TestContinuousIntegrationReportsFailures(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	copied(t, dir, ".ci/run")
	stub(t, filepath.Join(bin, "make"), `echo "make $* CI=$CI input=$(wc -c)"; [ "$1" != "$FAIL" ]`)
	const all = "make lint CI=true input=0\nmake test CI=true input=0\nmake race CI=true input=0\nmake test-vfio CI=true input=0\nmake test-openstack CI=true input=0\n"
	for _, fail := range []string{"", "lint", "test", "race", "test-vfio", "test-openstack"} {
		t.Setenv("FAIL", fail)
		out, errs, err := command(t, dir, bin, ".ci/run")
		if out != all {
			t.Errorf("with %q failing, this was run:\n%s", fail, out)
		}
		end := "ci: all passed\n"
		if fail != "" {
			end = "ci: FAILED: make " + fail + "\n"
		}
		if (err == nil) != (fail == "") || !strings.HasSuffix(errs, end) {
			t.Errorf("with %q failing: %v, standard error %q, want it to end with %q", fail, err, errs, end)
		}
	}
}

// What is meant to be run can be run.
func TestScriptsAreExecutable(t *testing.T) {
	found := 0
	for _, folder := range []string{"scripts", ".ci"} {
		entries, err := os.ReadDir(filepath.Join("..", "..", folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			if e.Type().IsRegular() && filepath.Ext(e.Name()) == "" {
				found++
				if info.Mode()&0o111 == 0 {
					t.Errorf("%s/%s is not executable", folder, e.Name())
				}
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d scripts were found", found)
	}
}
