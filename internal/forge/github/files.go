package github

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"gpuserver"
	"gpuserver/internal/forge"
)

// CachedFile is a file's last good copy.
type CachedFile struct {
	File      forge.File
	ETag      string
	CheckedAt time.Time // when GitHub last said that this is the file
}

// FileCache keeps last good copies across restarts. Get is asked only for what
// is not in memory. A key is "owner/name\x00path\x00ref".
type FileCache interface {
	Get(ctx context.Context, key string) (CachedFile, bool)
	Put(ctx context.Context, key string, f CachedFile)
}

const (
	filesBytes   = 16 << 20 // of content in memory
	filesEntries = 8192
	maxFile      = 1 << 20 // GitHub's limit for contents in an answer
)

// fileCache bounds the copies in memory by their bytes.
type fileCache struct {
	mu    *sync.Mutex
	lru   *simplelru.LRU[string, CachedFile]
	bytes *int
}

func newFileCache() fileCache {
	bytes := new(int)
	l, err := simplelru.NewLRU(filesEntries, func(_ string, f CachedFile) { *bytes -= len(f.File.Content) })
	if err != nil {
		panic(err) // only for a size below 1
	}
	return fileCache{mu: new(sync.Mutex), lru: l, bytes: bytes}
}

func (c fileCache) get(key string) (CachedFile, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Get(key)
}

func (c fileCache) put(key string, f CachedFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(key) // so that the old copy's bytes are taken off
	c.lru.Add(key, f)
	*c.bytes += len(f.File.Content)
	for *c.bytes > filesBytes && c.lru.Len() > 1 {
		c.lru.RemoveOldest()
	}
}

func (c fileCache) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(key)
}

func fileKey(repo forge.Repo, path, ref string) string {
	return strings.ToLower(repo.Name) + "\x00" + path + "\x00" + ref
}

// File implements forge.Forge. Content must not be changed. A file of more than
// 1 MiB, a folder or a submodule is KindInvalid.
func (f *Forge) File(ctx context.Context, repo forge.Repo, path, ref string) (forge.File, error) {
	key := fileKey(repo, path, ref)
	return shared(ctx, &f.flight, "file/"+key, func() (forge.File, error) {
		return f.readFile(ctx, repo, path, ref, key)
	})
}

func (f *Forge) readFile(ctx context.Context, repo forge.Repo, path, ref, key string) (forge.File, error) {
	escaped, err := filePath(path)
	if err != nil {
		return forge.File{}, err
	}
	c := call{
		method: http.MethodGet, path: "/contents/" + escaped, class: ClassRead,
		doing: "read " + path + " of " + repo.Name,
	}
	if ref != "" {
		c.query = url.Values{"ref": {ref}}
	}
	old, have := f.lastGood(ctx, key)
	if have {
		c.etag = old.ETag
	}
	var out wireContent
	a, err := f.answerInRepo(ctx, repo, c, &out)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		f.files.drop(key) // the hook's copy stays: it is the last good one
	}
	if err != nil {
		return forge.File{}, err
	}
	good := CachedFile{ETag: a.header.Get("Etag"), CheckedAt: time.Now()}
	switch {
	case a.status != http.StatusNotModified:
		if good.File, err = out.file(c, path, ref); err != nil {
			return forge.File{}, err
		}
	case !have:
		return forge.File{}, unavailable(c, errors.New("not modified, but we never had it"))
	default:
		good.File, good.ETag = old.File, old.ETag
	}
	f.files.put(key, good)
	if f.cfg.Files != nil && a.status != http.StatusNotModified {
		f.cfg.Files.Put(ctx, key, good)
	}
	return good.File, nil
}

// LastGood gives the last copy of a file that was read, and when GitHub last
// confirmed it, without asking GitHub.
func (f *Forge) LastGood(ctx context.Context, repo forge.Repo, path, ref string) (CachedFile, bool) {
	return f.lastGood(ctx, fileKey(repo, path, ref))
}

func (f *Forge) lastGood(ctx context.Context, key string) (CachedFile, bool) {
	if c, ok := f.files.get(key); ok {
		return c, true
	}
	if f.cfg.Files == nil {
		return CachedFile{}, false
	}
	return f.cfg.Files.Get(ctx, key)
}

// filePath escapes a path inside a repository.
func filePath(path string) (string, error) {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if !segment(p) {
			return "", invalid("%q is not a path inside a repository", path)
		}
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/"), nil
}

// wireContent is a file as GitHub shows it; a folder is a list instead.
type wireContent struct {
	Type     string `json:"type"`
	Encoding string `json:"encoding"`
	Content  string `json:"content"`
	SHA      string `json:"sha"`
	Size     int64  `json:"size"`
	folder   bool
}

// UnmarshalJSON implements json.Unmarshaler.
func (w *wireContent) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		w.folder = true
		return nil
	}
	type plain wireContent
	return json.Unmarshal(b, (*plain)(w))
}

func (w *wireContent) file(c call, path, ref string) (forge.File, error) {
	wrong := ""
	switch {
	case w.folder:
		wrong = "is a folder"
	case w.Type != "file":
		wrong = "is no file but a " + w.Type
	case w.Size > maxFile || w.Encoding != "base64":
		wrong = "is larger than 1 MiB"
	}
	if wrong != "" {
		return forge.File{}, &gpuserver.Error{Kind: gpuserver.KindInvalid, Op: opName(c), Public: path + " " + wrong}
	}
	content, err := base64.StdEncoding.DecodeString(w.Content) // line ends are passed over
	if err != nil {
		return forge.File{}, unavailable(c, err)
	}
	return forge.File{Path: path, Ref: ref, SHA: w.SHA, Content: content}, nil
}
