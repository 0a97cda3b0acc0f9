// Package testdeps brings other people's data, which tests compare us with,
// from their packages into a cache, so that none of it is copied into the
// repository.
package testdeps

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// pinned holds the packages that may be asked for, with the SHA-512 of their
// archives in npm's form (`npm view NAME@VERSION dist.integrity`). A package
// that changed under its version is refused.
var pinned = map[string]string{
	"@octokit/openapi@23.0.2":          "sha512-pV8M7L9GY23AybNvTmo2nyjmpmnt6+2sRE/tqr0ZLQcPS4lnw7u5eZGNmwRNkBC3D7gZXbFx5AHzLUVRBXGDhg==",
	"@octokit/webhooks-schemas@7.6.1":  "sha512-qW0Bwtb76r4m2WzVhKDyfEeEnt1GEQoRjkCqmq2ZeB0nNVDJ+Z2LBDS9FDPyduuMXf/ZTWiCJp9PFFHgRfBe3A==",
	"@octokit/webhooks-examples@7.6.1": "sha512-De6U3XB6O3DtCa7bKgCMzTHdeopqqZ6SNivMYJnK65ierKL1AnNIA0tkRYCRS7lwGT792d+Ps1WbfHlso6MynQ==",
}

// CacheDir is the project's cache, ${XDG_CACHE_HOME:-~/.cache}/gpuserver.
func CacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder; set HOME or XDG_CACHE_HOME: %w", err)
	}
	return filepath.Join(base, "gpuserver"), nil
}

// NPM gives the path of one file of an npm package, such as
// NPM(t, "@octokit/webhooks-examples", "7.6.1", "package/api.github.com/index.json").
// The first call asks `npm pack` for the archive and keeps only that file; later
// ones, of this or any other process, find it in the cache. The file must not be
// written to.
func NPM(t testing.TB, name, version, path string) string {
	t.Helper()
	got, err := npmFile(name+"@"+version, path)
	if err != nil {
		t.Fatalf("%s of npm package %s@%s: %v", path, name, version, err)
	}
	return got
}

// npmFile finds or makes the cached file. The archive's and the path's sums are
// in its name, so a new version never meets an old file.
func npmFile(spec, path string) (string, error) {
	want, ok := pinned[spec]
	if !ok {
		return "", errors.New("the package is not pinned: add its integrity to internal/testdeps")
	}
	sum := sha256.Sum256([]byte(want + "\n" + path))
	return Cached("npm/"+hex.EncodeToString(sum[:16])+filepath.Ext(path), func(w io.Writer) error {
		return pack(w, spec, want, path)
	})
}

// Cached gives the path of the file key in the cache, and has fill write it if
// it is not there. Of several processes that ask at once one fills and the
// others wait; a file is there whole or not at all.
func Cached(key string, fill func(io.Writer) error) (string, error) {
	root, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, filepath.FromSlash(key))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, writeWhole(path, fill)
}

// writeWhole writes a file beside its place and renames it there.
func writeWhole(path string, fill func(io.Writer) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".part-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // it is gone already if all went well
	if err := errors.Join(fill(tmp), tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// lock takes an exclusive lock that dies with the process. The lock file is
// removed only while it is held, so a waiter that gets a removed one tries again.
func lock(path string) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		held, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(held, now) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

// pack downloads the archive of spec, checks its sum and copies the one file.
func pack(w io.Writer, spec, want, path string) error {
	dir, err := os.MkdirTemp("", "gpuserver-npm-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("npm", "pack", "--silent", spec)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return errors.New("npm is not installed (Debian: apt-get install npm)")
		}
		return fmt.Errorf("npm pack %s: %w\n%s", spec, err, out)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("npm pack %s left %d archives, want 1", spec, len(found))
	}
	if err := verify(found[0], want); err != nil {
		return err
	}
	return extract(w, found[0], path)
}

// verify compares a file's SHA-512 with npm's form of one.
func verify(file, want string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("the archive's sum is %s, want %s", got, want)
	}
	return nil
}

// extract copies one file out of a gzipped tar.
func extract(w io.Writer, archive, path string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the archive has no %s: %w", path, fs.ErrNotExist)
		}
		if err != nil {
			return err
		}
		if h.Name == path && h.Typeflag == tar.TypeReg {
			_, err := io.Copy(w, tr)
			return err
		}
	}
}
