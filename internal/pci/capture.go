package pci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"gpuserver"
)

// Recorder is a file system that remembers what was read through it, so that
// just this much of a machine can be packed, sent and read again. It is safe for
// concurrent use.
type Recorder struct {
	fsys fs.FS

	mu      sync.Mutex
	entries map[string]*entry // by real name: no part of it is a link
}

// entry is what was read of one name.
type entry struct {
	mode   fs.FileMode // fs.ModeDir, fs.ModeSymlink, or 0
	target string      // of a link
	text   []byte      // of a file: what was read, from its beginning
}

// NewRecorder gives a file system that reads from fsys, which has to implement
// fs.ReadLinkFS.
func NewRecorder(fsys fs.FS) *Recorder {
	return &Recorder{fsys: fsys, entries: map[string]*entry{}}
}

// maxLinks bounds how many links lead from a name to a file.
const maxLinks = 40

// real follows the links in name, the last part's too if follow, and remembers
// them.
func (c *Recorder) real(name string, follow bool) (string, error) {
	done, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := path.Join(done, part)
		if !fs.ValidPath(next) {
			return "", &fs.PathError{Op: "open", Path: name, Err: errors.New("leads out of the tree")}
		}
		info, err := fs.Lstat(c.fsys, next)
		if err != nil {
			return "", err
		}
		if info.Mode().Type() != fs.ModeSymlink || len(rest) == 0 && !follow {
			done = next
			continue
		}
		target, err := fs.ReadLink(c.fsys, next)
		if err != nil {
			return "", err
		}
		if links++; links > maxLinks || path.IsAbs(target) {
			return "", &fs.PathError{Op: "open", Path: name, Err: errors.New("leads out of the tree, or in a circle")}
		}
		c.note(next, entry{mode: fs.ModeSymlink, target: target})
		rest = append(strings.Split(target, "/"), rest...)
	}
	return done, nil
}

func (c *Recorder) note(name string, e entry) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.entries[name]
	if known == nil {
		known = &e
		c.entries[name] = known
	}
	return known
}

// noteInfo remembers that a name is there, and a link's target.
func (c *Recorder) noteInfo(name string, mode fs.FileMode) {
	e := entry{mode: mode.Type() & fs.ModeDir}
	if mode.Type() == fs.ModeSymlink {
		target, err := fs.ReadLink(c.fsys, name)
		if err != nil {
			return // it went since
		}
		e = entry{mode: fs.ModeSymlink, target: target}
	}
	c.note(name, e)
}

// Open implements fs.FS.
func (c *Recorder) Open(name string) (fs.File, error) {
	at, err := c.real(name, true)
	if err != nil {
		return nil, err
	}
	f, err := c.fsys.Open(at)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return &recorded{File: f, c: c, e: c.note(at, entry{mode: info.Mode().Type() & fs.ModeDir})}, nil
}

// ReadDir implements fs.ReadDirFS. Of the entries, links and folders are
// remembered; what is in files only when it is read.
func (c *Recorder) ReadDir(name string) ([]fs.DirEntry, error) {
	at, err := c.real(name, true)
	if err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(c.fsys, at)
	if err != nil {
		return nil, err
	}
	c.note(at, entry{mode: fs.ModeDir})
	for _, e := range entries {
		if e.Type() == fs.ModeSymlink || e.IsDir() {
			c.noteInfo(path.Join(at, e.Name()), e.Type())
		}
	}
	return entries, nil
}

// ReadLink implements fs.ReadLinkFS.
func (c *Recorder) ReadLink(name string) (string, error) {
	at, err := c.real(name, false)
	if err != nil {
		return "", err
	}
	target, err := fs.ReadLink(c.fsys, at)
	if err == nil {
		c.note(at, entry{mode: fs.ModeSymlink, target: target})
	}
	return target, err
}

// Lstat implements fs.ReadLinkFS.
func (c *Recorder) Lstat(name string) (fs.FileInfo, error) { return c.stat(name, false) }

// Stat implements fs.StatFS.
func (c *Recorder) Stat(name string) (fs.FileInfo, error) { return c.stat(name, true) }

func (c *Recorder) stat(name string, follow bool) (fs.FileInfo, error) {
	at, err := c.real(name, follow)
	if err != nil {
		return nil, err
	}
	info, err := fs.Lstat(c.fsys, at)
	if err == nil {
		c.noteInfo(at, info.Mode())
	}
	return info, err
}

// recorded is an open file whose reading is remembered.
type recorded struct {
	fs.File
	c   *Recorder
	e   *entry
	off int
}

// Read implements fs.File.
func (f *recorded) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if end := f.off + n; end > len(f.e.text) {
		f.e.text = append(f.e.text[:f.off], p[:n]...)
	}
	f.off += n
	return n, err
}

// Pack writes what was read into an archive, below the folder prefix.
func (c *Recorder) Pack(w *tar.Writer, prefix string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.entries)) {
		e := c.entries[name]
		h := &tar.Header{Name: path.Join(prefix, name), Mode: 0o644, Format: tar.FormatPAX, Typeflag: tar.TypeReg, Size: int64(len(e.text))}
		switch e.mode {
		case fs.ModeDir:
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
			h.Name += "/"
		case fs.ModeSymlink:
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.target, 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(e.text); err != nil {
				return err
			}
		}
	}
	return nil
}

// Bounds of an archive, which comes from somebody else.
const (
	maxEntries = 200_000
	maxPacked  = 64 << 10 // bytes of one file
)

// Unpack lays an archive of Pack out below root. A bad archive is KindInvalid;
// nothing is written outside of root.
func Unpack(archive io.Reader, root *os.Root) error {
	const op = "unpack a capture"
	r := tar.NewReader(archive)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) && n > 0 {
			return nil
		}
		if err != nil {
			return &gpuserver.Error{Kind: gpuserver.KindInvalid, Op: op, Public: "this is no archive of gpuserver host inspect --capture", Err: err}
		}
		name := path.Clean(h.Name)
		if n >= maxEntries || h.Size > maxPacked || !fs.ValidPath(name) {
			return gpuserver.Errorf(gpuserver.KindInvalid, "entry %q of the capture is too much: at most %d entries of %d bytes, all below the archive's own folder", h.Name, maxEntries, maxPacked)
		}
		if err := unpackEntry(r, h, root, name); err != nil {
			return &gpuserver.Error{Kind: gpuserver.KindInvalid, Op: op, Public: fmt.Sprintf("entry %q of the capture cannot be laid out", h.Name), Err: err}
		}
	}
}

func unpackEntry(r io.Reader, h *tar.Header, root *os.Root, name string) error {
	if h.Typeflag == tar.TypeDir {
		return root.MkdirAll(name, 0o755)
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeReg:
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return root.WriteFile(name, text, 0o644)
	}
	return fmt.Errorf("is neither file, folder nor link (type %q)", h.Typeflag)
}
