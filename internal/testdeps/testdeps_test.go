package testdeps

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestNPM(t *testing.T) {
	path := NPM(t, "@octokit/webhooks-examples", "7.6.1", "package/package.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var pkg struct{ Name, Version string }
	if err := json.Unmarshal(data, &pkg); err != nil {
		t.Fatal(err)
	}
	if pkg.Name != "@octokit/webhooks-examples" || pkg.Version != "7.6.1" {
		t.Errorf("got the package %+v", pkg)
	}
}

func TestNPMRefuses(t *testing.T) {
	if _, err := npmFile("left-pad@1.3.0", "package/package.json"); err == nil {
		t.Error("a package that is not pinned was accepted")
	}
	if _, err := npmFile("@octokit/webhooks-examples@7.6.1", "package/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that the package lacks: got %v", err)
	}
	file := filepath.Join(t.TempDir(), "x.tgz")
	if err := os.WriteFile(file, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := verify(file, "sha512-AAAA"); err == nil {
		t.Error("a wrong sum was accepted")
	}
}

func TestCachedFillsOnce(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := Cached("a/b.txt", func(w io.Writer) error {
				fills.Add(1)
				_, err := io.WriteString(w, "whole")
				return err
			})
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != "whole" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := fills.Load(); n != 1 {
		t.Errorf("filled %d times, want 1", n)
	}
}

func TestCachedLeavesNoPart(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	boom := errors.New("boom")
	if _, err := Cached("a/b.txt", func(io.Writer) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("got %v, want the filler's error", err)
	}
	root, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(root, "a", "*"))
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := filepath.Glob(filepath.Join(root, "a", ".*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(left, hidden...) {
		if base := filepath.Base(f); strings.Contains(base, "b.txt") || strings.Contains(base, "part") {
			t.Errorf("%s is left", f)
		}
	}
}
