package guest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemoImagePrintOnly: the folder can be asked for without a build.
func TestDemoImagePrintOnly(t *testing.T) {
	cache := t.TempDir()
	gocache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "../../scripts/demo-image", args...)
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+cache, "GOCACHE="+strings.TrimSpace(string(gocache)))
		out, err := cmd.Output()
		if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
	}
	folder, code := ask("--print-only")
	if code != 3 || filepath.Dir(folder) != filepath.Join(cache, "gpuserver") {
		t.Fatalf("status %d, folder %q; expected 3 and a folder in the cache", code, folder)
	}
	if entries, err := os.ReadDir(cache); err != nil || len(entries) > 0 {
		t.Errorf("the cache has %v (%v), expected nothing", entries, err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--print-only"}, nil} {
		if again, code := ask(args...); code != 0 || again != folder {
			t.Errorf("%q: status %d, folder %q; expected what is built", args, code, again)
		}
	}
	if out, code := ask("--nonsense"); code != 2 || out != "" {
		t.Errorf("status %d, output %q", code, out)
	}
}
