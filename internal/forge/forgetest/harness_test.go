package forgetest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gpuserver/internal/forge/forgetest/runnerclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// generous is how long a test waits for what must happen: a machine may be slow.
const generous = 2 * time.Minute

// bench is a server with one repository and a caller with the App's identity.
type bench struct {
	*Server
	t    *testing.T
	url  string
	http *http.Client
	app  App
	repo Repository

	mu     sync.Mutex
	tokens map[int64]string
}

func start(t *testing.T, cfg Config) *bench {
	t.Helper()
	s := New(cfg)
	web := httptest.NewServer(s)
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(func() {
		_ = s.Close()
		tr.CloseIdleConnections()
		web.Close()
	})
	b := &bench{Server: s, t: t, url: web.URL, http: &http.Client{Transport: tr}, tokens: map[int64]string{}}
	b.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	b.repo = must(s.AddRepo(Repository{Name: "octo-org/hello", Private: true, Files: map[string]string{
		".cirun.yml": "runners: []\n", "src/main.go": "package main\n",
	}}))(t)
	b.app = s.App()
	return b
}

// must unwraps a value that has to be there: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (b *bench) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// jwt signs an App's token; claims override the usual ones.
func (b *bench) jwt(key *rsa.PrivateKey, claims obj) string {
	t := time.Now().Unix()
	all := obj{"iat": t - 60, "exp": t + 540, "iss": fmt.Sprint(b.app.ID)}
	for k, v := range claims {
		all[k] = v
	}
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + enc(raw(all))
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	b.check(err)
	return text + "." + enc(sig)
}

func (b *bench) appToken() string { return b.jwt(b.cfg.PrivateKey, nil) }

// token gives an installation's token, asking for one if need be.
func (b *bench) token(installation int64) string {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens[installation] == "" {
		a := b.do("POST", fmt.Sprintf("/app/installations/%d/access_tokens", installation), b.appToken(), nil)
		a.want(b.t, http.StatusCreated)
		b.tokens[installation] = a.str("token")
	}
	return b.tokens[installation]
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (a reply) want(t testing.TB, status int) {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
}

func (a reply) into(t testing.TB, out any) {
	t.Helper()
	if err := json.Unmarshal(a.body, out); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

func (a reply) str(key string) string {
	var o obj
	_ = json.Unmarshal(a.body, &o)
	s, _ := o[key].(string)
	return s
}

func (b *bench) do(method, path, token string, in any, headers ...string) reply {
	b.t.Helper()
	a, err := b.try(method, path, token, in, headers...)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (b *bench) try(method, path, token string, in any, headers ...string) (reply, error) {
	var body io.Reader
	if in != nil {
		body = bytes.NewReader(raw(in))
	}
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, b.url+path, body)
	if err != nil {
		return reply{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, text}, err
}

// call calls as the installation of the first repository.
func (b *bench) call(method, path string, in any, headers ...string) reply {
	b.t.Helper()
	return b.do(method, path, b.token(b.repo.InstallationID), in, headers...)
}

// register makes a registration at the first repository.
func (b *bench) register(name string, labels ...string) (id int64, jit string) {
	b.t.Helper()
	a := b.call("POST", "/repos/octo-org/hello/actions/runners/generate-jitconfig", obj{
		"name": name, "runner_group_id": 1, "labels": labels,
	})
	a.want(b.t, http.StatusCreated)
	var out struct {
		Runner struct{ ID int64 }
		JIT    string `json:"encoded_jit_config"`
	}
	a.into(b.t, &out)
	return out.Runner.ID, out.JIT
}

// online registers a runner and connects it.
func (b *bench) online(name string, labels ...string) *runnerclient.Client {
	b.t.Helper()
	_, jit := b.register(name, labels...)
	c := must(runnerclient.Connect(b.t.Context(), jit))(b.t)
	b.t.Cleanup(c.Close)
	return c
}

// takeJob waits for a runner's job.
func (b *bench) takeJob(c *runnerclient.Client) *runnerclient.Job {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), generous)
	defer cancel()
	return must(c.NextJob(ctx))(b.t)
}

func (b *bench) dispatch(jobs ...JobSpec) Run {
	b.t.Helper()
	return must(b.Dispatch(RunSpec{Repo: "octo-org/hello", Jobs: jobs}))(b.t)
}

func (b *bench) wait(f JobFilter, status string) []Job {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), generous)
	defer cancel()
	return must(b.Wait(ctx, f, status))(b.t)
}

func (b *bench) job(id int64) Job {
	b.t.Helper()
	jobs := b.Jobs(JobFilter{Job: id})
	if len(jobs) != 1 {
		b.t.Fatalf("job %d: %d found", id, len(jobs))
	}
	return jobs[0]
}

// sink receives deliveries and answers them with a status.
type sink struct {
	*httptest.Server
	mu     sync.Mutex
	got    []hook
	status int
	more   chan struct{}
}

type hook struct {
	header http.Header
	body   []byte
}

func newSink(t *testing.T) *sink {
	k := &sink{status: http.StatusAccepted, more: make(chan struct{}, 10000)}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		k.mu.Lock()
		k.got = append(k.got, hook{r.Header, body})
		status := k.status
		k.mu.Unlock()
		w.WriteHeader(status)
		k.more <- struct{}{}
	}))
	t.Cleanup(k.Close)
	return k
}

// next waits for n more deliveries and gives all that came.
func (k *sink) next(t *testing.T, n int) []hook {
	t.Helper()
	limit := time.After(generous)
	for range n {
		select {
		case <-k.more:
		case <-limit:
			t.Fatalf("waited for %d deliveries in vain", n)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]hook(nil), k.got...)
}

func (h hook) action() string {
	var o struct {
		Action string `json:"action"`
	}
	_ = json.Unmarshal(h.body, &o)
	return h.header.Get("X-GitHub-Event") + "." + o.Action
}

func actions(hooks []hook) string {
	var out []string
	for _, h := range hooks {
		out = append(out, strings.TrimPrefix(h.action(), "workflow_job."))
	}
	return strings.Join(out, " ")
}

// recorded waits until n deliveries are recorded: that follows the answer.
func (b *bench) recorded(n int) []Delivery {
	b.t.Helper()
	for end := time.Now().Add(generous); ; time.Sleep(time.Millisecond) {
		if d := b.Deliveries(); len(d) >= n {
			return d
		}
		if time.Now().After(end) {
			b.t.Fatalf("waited for %d recorded deliveries in vain", n)
		}
	}
}
