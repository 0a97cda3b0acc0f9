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
	// A token lives an hour. From tokenRenew before its end a new one is fetched
	// in the background, from tokenLast on callers wait for it.
	tokenRenew = 10 * time.Minute
	tokenLast  = time.Minute
)

// appKey signs the App's own tokens.
type appKey struct {
	issuer string
	key    *rsa.PrivateKey

	mu    sync.Mutex
	jwt   string
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
func (a *appKey) token(now time.Time) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Before(a.until) {
		return a.jwt, nil
	}
	claims, err := json.Marshal(map[string]any{
		"iss": a.issuer, "iat": now.Add(-jwtBack).Unix(), "exp": now.Add(jwtLife).Unix(),
	})
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + enc.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, a.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	a.jwt, a.until = text+"."+enc.EncodeToString(sig), now.Add(jwtLife-2*time.Minute)
	return a.jwt, nil
}

func (a *appKey) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.until = time.Time{}
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

// authorization is the header of a call.
func (f *Forge) authorization(ctx context.Context, c call) (string, error) {
	if c.installation != 0 && !c.noToken {
		t, err := f.token(ctx, c.installation)
		return "Bearer " + t, err
	}
	jwt, err := f.app.token(time.Now())
	if err != nil {
		return "", gpuserver.Wrap(gpuserver.KindInternal, "github: sign the App's token", err)
	}
	return "Bearer " + jwt, nil
}

// Prepare makes sure that a token for an installation is there, so that the
// next call needs no round trip for it. Callers at the same time share one.
func (f *Forge) Prepare(ctx context.Context, installation int64) error {
	_, err := f.token(ctx, installation)
	return err
}

func (f *Forge) token(ctx context.Context, installation int64) (string, error) {
	now := time.Now()
	f.tokens.mu.Lock()
	t := f.tokens.m[installation]
	if t != nil && now.Before(t.until.Add(-tokenLast)) {
		if now.After(t.until.Add(-tokenRenew)) && !t.renewing && f.ctx.Err() == nil {
			t.renewing = true
			f.work.Go(func() { f.renew(installation, t) })
		}
		f.tokens.mu.Unlock()
		return t.value, nil
	}
	f.tokens.mu.Unlock()
	return shared(ctx, &f.flight, "token/"+strconv.FormatInt(installation, 10), func() (string, error) {
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

func (f *Forge) fetchToken(ctx context.Context, installation int64) (string, error) {
	id := strconv.FormatInt(installation, 10)
	var out struct {
		Token     string    `json:"token"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	c := call{
		method: http.MethodPost, path: "/app/installations/" + id + "/access_tokens",
		doing: "get a token for installation " + id, noToken: true, repeatable: true,
	}
	// All classes wait for the one token, so it is fetched for the highest.
	a, err := f.do(WithClass(ctx, ClassRegister), c, &out)
	if err != nil {
		if notFound(err) {
			f.installations.forget(installation)
		}
		return "", notInstalled(c, err)
	}
	if out.Token == "" {
		return "", unavailable(c, errors.New("the answer has no token"))
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
	f.tokens.m[installation] = &installationToken{value: out.Token, until: until}
	return out.Token, nil
}

// forgetToken drops a token that GitHub no longer takes.
func (f *Forge) forgetToken(installation int64) {
	if installation == 0 {
		f.app.forget()
		return
	}
	f.tokens.mu.Lock()
	defer f.tokens.mu.Unlock()
	delete(f.tokens.m, installation)
}
