package github

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
)

func TestParseBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "https://api.github.com",
		"https://api.github.com":              "https://api.github.com",
		"https://api.github.com/":             "https://api.github.com",
		"https://ghe.example.org":             "https://ghe.example.org/api/v3",
		"https://ghe.example.org/":            "https://ghe.example.org/api/v3",
		"https://ghe.example.org:8443/api/v3": "https://ghe.example.org:8443/api/v3",
		"https://ghe.example.org/api/v3/":     "https://ghe.example.org/api/v3",
		"https://api.octo.ghe.com":            "https://api.octo.ghe.com",
		"http://127.0.0.1:8090":               "http://127.0.0.1:8090",
		"http://[::1]:8090/api/v3":            "http://[::1]:8090/api/v3",
	} {
		if got, err := ParseBaseURL(in); err != nil || got.String() != want {
			t.Errorf("%q: got %v, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{
		"ghe.example.org", "ftp://ghe.example.org", "http://ghe.example.org", "https://", "https:///api/v3",
		"https://user:pw@ghe.example.org", "https://ghe.example.org/?x=1", "https://ghe.example.org/#x",
		"https://github.com", "https://www.github.com/octo", "https://ghe example", "%",
	} {
		if got, err := ParseBaseURL(in); gpuserver.KindOf(err) != gpuserver.KindInvalid {
			t.Errorf("%q: got %v, %v", in, got, err)
		} else if strings.Contains(gpuserver.PublicText(err), "pw") {
			t.Errorf("%q: the text tells the password", in)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no app id":         func(c *Config) { c.AppID = "" },
		"odd app id":        func(c *Config) { c.AppID = "my app" },
		"no key":            func(c *Config) { c.PrivateKey = nil },
		"no PEM":            func(c *Config) { c.PrivateKey = []byte("secret words") },
		"half a key":        func(c *Config) { c.PrivateKey = c.PrivateKey[:200] },
		"an elliptic curve": func(c *Config) { c.PrivateKey = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}) },
		"odd scope":         func(c *Config) { c.RunnerScope = "enterprise" },
		"odd URL":           func(c *Config) { c.BaseURL = "http://ghe.example.org" },
	} {
		c := Config{AppID: "1", PrivateKey: testKey(t)}
		change(&c)
		if _, err := New(t.Context(), c); gpuserver.KindOf(err) != gpuserver.KindInvalid || strings.Contains(err.Error(), "secret words") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestAppToken verifies the App's own token as GitHub would.
func TestAppToken(t *testing.T) {
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{testKey(t), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		app, err := newAppKey("Iv23liAbCd", data)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		signed, err := app.token(now)
		if err != nil {
			t.Fatal(err)
		}
		jwt := signed.value
		parts := strings.Split(jwt, ".")
		if len(parts) != 3 {
			t.Fatalf("got %q", jwt)
		}
		sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		sig, err := base64.RawURLEncoding.DecodeString(parts[2])
		if err != nil {
			t.Fatal(err)
		}
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], sig); err != nil {
			t.Error(err)
		}
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Iss      string
			Iat, Exp int64
		}
		if err := json.Unmarshal(claims, &c); err != nil {
			t.Fatal(err)
		}
		if c.Iss != "Iv23liAbCd" || c.Iat >= now.Unix() || c.Exp <= now.Unix() || c.Exp-c.Iat > 600 {
			t.Errorf("claims %s at %d", claims, now.Unix())
		}
		if again, err := app.token(now.Add(5 * time.Minute)); err != nil || again != signed {
			t.Errorf("signed anew while good: %v", err)
		}
		if later, err := app.token(now.Add(8 * time.Minute)); err != nil || later == signed {
			t.Errorf("kept for too long: %v", err)
		}
	}
}

// TestReinstalled shows that the number of a removed installation is forgotten.
func TestReinstalled(t *testing.T) {
	id := 3
	f := newForge(t, roundTrip(func(req *http.Request) (*http.Response, error) {
		switch path := req.URL.Path; {
		case strings.HasSuffix(path, "/installation"):
			return reply(200, fmt.Sprintf(`{"id":%d}`, id)), nil
		case strings.HasSuffix(path, "/3/access_tokens") && id != 3:
			return reply(404, "{}"), nil
		case strings.HasSuffix(path, "/access_tokens"):
			return reply(201, fmt.Sprintf(`{"token":"t","expires_at":%q}`, time.Now().UTC().Format(time.RFC3339))), nil
		}
		return reply(200, goodJob), nil
	}), nil)
	hello := forge.Repo{Name: "octo/hello"}
	if _, err := f.Job(t.Context(), hello, 5); err != nil {
		t.Fatal(err)
	}
	id = 4
	if _, err := f.Job(t.Context(), hello, 5); gpuserver.KindOf(err) != gpuserver.KindRefused {
		t.Errorf("through the removed one: %v", err)
	}
	if _, err := f.Job(t.Context(), hello, 5); err != nil {
		t.Errorf("through the new one: %v", err)
	}
}

func TestScope(t *testing.T) {
	f := newForge(t, &script{}, nil)
	if got, want := f.Scope(octo), (forge.Scope{Repo: octo}); got != want {
		t.Errorf("got %+v", got)
	}
	f = newForge(t, &script{}, func(c *Config) { c.RunnerScope, c.RunnerGroup = ScopeOrganisation, "gpus" })
	if got, want := f.Scope(octo), (forge.Scope{Repo: octo, Organisation: true, RunnerGroup: "gpus"}); got != want {
		t.Errorf("got %+v", got)
	}
}

// kept is a FileCache in memory.
type kept struct {
	mu sync.Mutex
	m  map[string]CachedFile
}

func (k *kept) Get(_ context.Context, key string) (CachedFile, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.m[key]
	return f, ok
}

func (k *kept) Put(_ context.Context, key string, f CachedFile) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m[key] = f
}

// TestFileCache shows that a copy outlives a restart, is asked for by its tag,
// and is still told of when GitHub fails.
func TestFileCache(t *testing.T) {
	down := false
	s := &script{answer: func(n int, req *http.Request) (*http.Response, error) {
		switch {
		case down:
			return reply(404, "{}"), nil
		case req.Header.Get("If-None-Match") == `"e1"`:
			return reply(304, ""), nil
		}
		return reply(200, `{"type":"file","encoding":"base64","sha":"abc","size":2,"content":"aGk=\n"}`, "ETag", `"e1"`), nil
	}}
	hook := &kept{m: make(map[string]CachedFile)}
	for i := range 2 { // the second time with an empty memory
		f := newForge(t, s, func(c *Config) { c.Files = hook })
		if got, err := f.File(t.Context(), octo, ".cirun.yml", "main"); err != nil || string(got.Content) != "hi" {
			t.Errorf("time %d: %+v, %v", i, got, err)
		}
		if len(s.calls) != i+1 || len(hook.m) != 1 {
			t.Errorf("time %d: %d calls, %d copies", i, len(s.calls), len(hook.m))
		}
	}
	down = true
	f := newForge(t, s, func(c *Config) { c.Files = hook })
	if _, err := f.File(t.Context(), octo, ".cirun.yml", "main"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("got %v", err)
	}
	if good, ok := f.LastGood(t.Context(), octo, ".cirun.yml", "main"); !ok || string(good.File.Content) != "hi" {
		t.Errorf("got %+v, %v", good, ok)
	}
}

func TestFileCacheIsBounded(t *testing.T) {
	c := newFileCache()
	content := make([]byte, maxFile)
	for i := range 40 {
		c.put(strings.Repeat("k", i+1), CachedFile{File: forge.File{Content: content}})
		c.put("same", CachedFile{File: forge.File{Content: content}})
	}
	sum := 0
	for _, f := range c.lru.Values() {
		sum += len(f.File.Content)
	}
	if sum != *c.bytes || sum > filesBytes || sum < filesBytes-maxFile {
		t.Errorf("%d bytes are kept, %d counted, %d allowed", sum, *c.bytes, filesBytes)
	}
}

func TestCut(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("x", 100), strings.Repeat("ü", 100), strings.Repeat("€", 100)} {
		got := cut(s, 50)
		if len(got) > 50 || !strings.HasPrefix(s, strings.TrimSuffix(got, "\n…")) || strings.ContainsRune(got, '\uFFFD') {
			t.Errorf("%q became %q", s, got)
		}
	}
}
