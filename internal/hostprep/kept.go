package hostprep

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"gpuserver"
)

// stateDir is where what was replaced is kept, from the root: manifest.json, and
// below files what files said, named by their hash.
const stateDir = "var/lib/gpuserver/host-prepare"

// manifest says what was done to a system, so that it can be undone. It is
// written before the first file, so that after a crash nothing is lost.
type manifest struct {
	// Pending says that the last run did not come to its end.
	Pending bool     `json:"pending"`
	Files   []kept   `json:"files"`
	Dirs    []string `json:"dirs,omitempty"` // that we made, from the root
	// Added and Replaced are the kernel's parameters that were added to each
	// kernel, and that were taken off for them, where grubby does it.
	Added    []string `json:"added,omitempty"`
	Replaced []string `json:"replaced,omitempty"`
}

// kept is one file that we wrote.
type kept struct {
	Path     string      `json:"path"`     // from the root
	Original string      `json:"original"` // hash of what it said before; "": it was absent
	Mode     fs.FileMode `json:"mode"`     // of the original
	Written  []string    `json:"written"`  // hashes of all that we ever wrote; "": we removed it
}

func (m *manifest) clone() *manifest {
	c := *m
	c.Files, c.Dirs = slices.Clone(m.Files), slices.Clone(m.Dirs)
	c.Added, c.Replaced = slices.Clone(m.Added), slices.Clone(m.Replaced)
	return &c
}

// empty reports whether nothing was done.
func (m *manifest) empty() bool {
	return !m.Pending && len(m.Files)+len(m.Dirs)+len(m.Added)+len(m.Replaced) == 0
}

// written notes that a file is about to be changed; the original of the first
// time stays.
func (m *manifest) written(name string, before, after *content) {
	for i := range m.Files {
		if m.Files[i].Path == name {
			m.Files[i].Written = append(m.Files[i].Written, hash(after))
			return
		}
	}
	k := kept{Path: name, Original: hash(before), Written: []string{hash(after)}}
	if before != nil {
		k.Mode = before.mode
	}
	m.Files = append(m.Files, k)
}

// hash names what a file says; "" is no file.
func hash(c *content) string {
	if c == nil {
		return ""
	}
	sum := sha256.Sum256(c.text)
	return hex.EncodeToString(sum[:])
}

func (p *Preparer) state(name string) string { return filepath.Join(p.Dir, stateDir, name) }

// readManifest gives what was done so far; an empty one if nothing.
func (p *Preparer) readManifest() (*manifest, error) {
	m := &manifest{}
	text, err := os.ReadFile(p.state("manifest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(text, m)
	}
	if err != nil {
		return nil, &gpuserver.Error{
			Kind: gpuserver.KindUnavailable, Err: err,
			Public: "what an earlier run kept, " + p.state("manifest.json") + ", cannot be read; put it right, or move it away and the files of host prepare with it",
		}
	}
	return m, nil
}

// writeManifest keeps m; an empty one is removed with all that was kept.
func (p *Preparer) writeManifest(m *manifest) error {
	if m.empty() {
		err := os.Remove(p.state("manifest.json"))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = nil
			_ = os.RemoveAll(p.state("files")) // of no use without the manifest
			_ = os.Remove(p.state(""))         // unless something else is kept there
		}
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.state(""), 0o700); err != nil {
		return err
	}
	return p.replace(p.state("manifest.json"), &content{append(text, '\n'), 0o600})
}

// keep puts away what a file says.
func (p *Preparer) keep(c *content) error {
	if c == nil {
		return nil
	}
	if err := os.MkdirAll(p.state("files"), 0o700); err != nil {
		return err
	}
	return p.replace(p.state("files/"+hash(c)), &content{c.text, 0o600})
}

// original gives what a file said before we wrote it, nil if it was absent.
func (p *Preparer) original(k kept) (*content, error) {
	if k.Original == "" {
		return nil, nil
	}
	text, err := os.ReadFile(p.state("files/" + k.Original))
	c := &content{text, k.Mode}
	if err == nil && hash(c) != k.Original {
		err = errors.New("it does not have the hash that it is named by")
	}
	if err != nil {
		return nil, &gpuserver.Error{
			Kind: gpuserver.KindUnavailable, Err: err,
			Public: fmt.Sprintf("what /%s said before, kept in %s, cannot be read", k.Path, p.state("files/"+k.Original)),
		}
	}
	return c, nil
}

func (p *Preparer) replace(path string, c *content) error {
	if p.replacing != nil {
		return p.replacing(path, c)
	}
	return replace(path, c, true)
}

// replace makes the file at path say what c says, or removes it: at each moment
// it is the old one or the new one and, with sync, also after a crash.
func replace(path string, c *content, sync bool) (err error) {
	if c == nil {
		if err := os.Remove(path); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		return syncDir(filepath.Dir(path), sync)
	}
	// The name ends in nothing that modprobe, GRUB or dracut would read.
	f, err := os.CreateTemp(filepath.Dir(path), ".gpuserver-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(c.text)
	if err == nil {
		err = f.Chmod(c.mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path), sync)
}

func syncDir(dir string, sync bool) error {
	if !sync {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
