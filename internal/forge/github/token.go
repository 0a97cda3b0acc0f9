package github

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"gpuserver"
)

const (
	// jwtLife is below GitHub's 10 minutes, jwtBack allows for a clock of ours
	// that is fast. Source: docs.github.com, "Generating a JSON Web Token".
	jwtLife = 9 * time.Minute
	jwtBack = time.Minute
	// From jwtRenew before its end a new one is signed.
	jwtRenew = 2 * time.Minute
	// A token lives an hour. From tokenRenew before its end a new one is fetched
	// in the background, from tokenLast on callers wait for it.
	tokenRenew = 10 * time.Minute
	tokenLast  = time.Minute
	// A token is not sent this close to its end: the way takes time.
	tokenSend = 10 * time.Second
)

// appKey signs the App's own tokens.
type appKey struct {
	issuer string
	key    *rsa.PrivateKey

	mu   sync.Mutex
	last appToken
}

// appToken is a token of the App's own.
type appToken struct {
	value string
	until time.Time
}

func newAppKey(issuer string, data []byte) (*appKey, error) {
	if !word(issuer, 64) {
		return nil, invalid("the App's id %q is neither a number nor a client id; it is on the App's page", issuer)
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, &gpuserver.Error{
			Kind: gpuserver.KindInvalid, Op: "github: read private key",
			Public: "the App's private key is not an RSA key in PEM; make a new one on the App's page", Err: err,
		}
	}
	return &appKey{issuer: issuer, key: key}, nil
}

func parseKey(data []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	rk, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an RSA key")
	}
	return rk, nil
}

// token gives a JSON Web Token of the App, good for some minutes.
// Source: RFC 7519, RFC 7518 section 3.3 (RS256).
func (a *appKey) token(now time.Time) (appToken, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Before(a.last.until.Add(-jwtRenew)) {
		return a.last, nil
	}
	claims, err := json.Marshal(map[string]any{
		"iss": a.issuer, "iat": now.Add(-jwtBack).Unix(), "exp": now.Add(jwtLife).Unix(),
	})
	if err != nil {
		return appToken{}, err
	}
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + enc.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, a.key, crypto.SHA256, sum[:])
	if err != nil {
		return appToken{}, err
	}
	a.last = appToken{text + "." + enc.EncodeToString(sig), now.Add(jwtLife)}
	return a.last, nil
}

// forget drops a token, if it is still the last one.
func (a *appKey) forget(value string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last.value == value {
		a.last = appToken{}
	}
}

// tokenCache holds the tokens by installation.
type tokenCache struct {
	mu sync.Mutex
	m  map[int64]*installationToken
}

type installationToken struct {
	value    string
	until    time.Time
	renewing bool
}

// authorization is the token of a call, and its end.
func (f *Forge) authorization(ctx context.Context, c call) (value string, until time.Time, err error) {
	if c.installation != 0 {
		t, err := f.token(ctx, c.installation)
		if err != nil {
			return "", time.Time{}, err
		}
		return t.value, t.until, nil
	}
	jwt, err := f.app.token(time.Now())
	if err != nil {
		return "", time.Time{}, gpuserver.Wrap(gpuserver.KindInternal, "github: sign the App's token", err)
	}
	return jwt.value, jwt.until, nil
}

// ready waits for a token and for a place in the budget. That wait may outlast
// the token, and GitHub shuts out who sends many bad ones: then the place is
// given back, and both are waited for again.
func (f *Forge) ready(ctx context.Context, c call, k cost) (token string, err error) {
	for {
		token, until, err := f.authorization(ctx, c)
		if err != nil {
			return "", err
		}
		start := time.Now()
		if err := f.budget.acquire(ctx, k); err != nil {
			return "", opError(c, err)
		}
		if now := time.Now(); now.Sub(start) < tokenLast/2 || now.Before(until.Add(-tokenSend)) {
			return token, nil
		}
		f.budget.giveBack(k)
	}
}

// Prepare makes sure that a token for an installation is there, so that the
// next call needs no round trip for it. Callers at the same time share one.
func (f *Forge) Prepare(ctx context.Context, installation int64) error {
	_, err := f.token(ctx, installation)
	return err
}

func (f *Forge) token(ctx context.Context, installation int64) (*installationToken, error) {
	now := time.Now()
	f.tokens.mu.Lock()
	t := f.tokens.m[installation]
	if t != nil && now.Before(t.until.Add(-tokenLast)) {
		if now.After(t.until.Add(-tokenRenew)) && !t.renewing && f.ctx.Err() == nil {
			t.renewing = true
			f.work.Go(func() { f.renew(installation, t) })
		}
		f.tokens.mu.Unlock()
		return t, nil
	}
	f.tokens.mu.Unlock()
	return shared(ctx, &f.flight, "token/"+strconv.FormatInt(installation, 10), func() (*installationToken, error) {
		return f.fetchToken(ctx, installation)
	})
}

// renew fetches a token ahead of time. A failure is met by a later caller.
func (f *Forge) renew(installation int64, old *installationToken) {
	if _, err := f.fetchToken(f.ctx, installation); err != nil {
		sleep(f.ctx, 30*time.Second) // not with every call
		f.tokens.mu.Lock()
		defer f.tokens.mu.Unlock()
		old.renewing = false
	}
}

func (f *Forge) fetchToken(ctx context.Context, installation int64) (*installationToken, error) {
	id := strconv.FormatInt(installation, 10)
	var out struct {
		Token     string    `json:"token"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	c := call{
		method: http.MethodPost, path: "/app/installations/" + id + "/access_tokens",
		doing: "get a token for installation " + id, repeatable: true,
	}
	// All classes wait for the one token, so it is fetched for the highest.
	a, err := f.do(WithClass(ctx, ClassRegister), c, &out)
	if err != nil {
		if notFound(err) {
			f.installations.forget(installation)
		}
		return nil, notInstalled(c, err)
	}
	if out.Token == "" {
		return nil, unavailable(c, errors.New("the answer has no token"))
	}
	// The end is on GitHub's clock; what counts is how long the token lives.
	until := out.ExpiresAt
	if date, err := http.ParseTime(a.header.Get("Date")); err == nil {
		until = time.Now().Add(until.Sub(date))
	}
	f.tokens.mu.Lock()
	defer f.tokens.mu.Unlock()
	if f.tokens.m == nil {
		f.tokens.m = make(map[int64]*installationToken)
	}
	t := &installationToken{value: out.Token, until: until}
	f.tokens.m[installation] = t
	return t, nil
}

// forgetToken drops the token of a call, which GitHub no longer takes, unless
// another call that met the same has had it replaced already.
func (f *Forge) forgetToken(c call, value string) {
	if c.installation == 0 {
		f.app.forget(value)
		return
	}
	f.tokens.mu.Lock()
	defer f.tokens.mu.Unlock()
	if t := f.tokens.m[c.installation]; t != nil && t.value == value {
		delete(f.tokens.m, c.installation)
	}
}
