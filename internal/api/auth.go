package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"gpuserver"
)

// Role is what a caller may do; each role may do what those before it may.
type Role string

// The roles, weakest first.
const (
	RoleNone     Role = ""         // not even look
	RoleViewer   Role = "viewer"   // look at jobs, VMs, GPUs, status, metrics
	RoleOperator Role = "operator" // cancel, retry, delete VMs, cordon and test GPUs, run commands, read consoles
	RoleAdmin    Role = "admin"    // release held images, and everything else
)

var roles = []Role{RoleNone, RoleViewer, RoleOperator, RoleAdmin}

// May reports whether r includes need.
func (r Role) May(need Role) bool { return slices.Index(roles, r) >= slices.Index(roles, need) }

// Token is a bearer token of the API, known by its hash only.
type Token struct {
	Name string // for the history and the log
	Role Role
	Hash string // SHA-256 of the token, hex
}

// HashToken gives the hash by which a token is configured and compared. A fast
// hash is enough, as tokens are long random strings and not words.
func HashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// caller is who sent a request.
type caller struct {
	Name string
	Role Role
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// guard finds out who sent a request over TCP.
type guard struct {
	tokens   []Token
	failures *lru.Cache[netip.Addr, *rate.Limiter]
}

// An address may fail ten times at once and once every six seconds after that:
// enough for a person who mistypes, nothing for one who guesses. Until then
// even a right token from there is told to wait, or guessing would go on.
const (
	failureBurst = 10
	failureEvery = 6 * time.Second
	failureAddrs = 4096
)

func newGuard(tokens []Token) (*guard, error) {
	for _, t := range tokens {
		if b, err := hex.DecodeString(t.Hash); err != nil || len(b) != sha256.Size {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "the hash of API token %q is not a SHA-256 in hex; make one with: printf %%s TOKEN | sha256sum", t.Name)
		}
		if t.Role == RoleNone || !slices.Contains(roles, t.Role) {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "API token %q has role %q; it must be viewer, operator or admin", t.Name, t.Role)
		}
	}
	failures, err := lru.New[netip.Addr, *rate.Limiter](failureAddrs)
	return &guard{tokens: tokens, failures: failures}, err
}

// identify gives the caller of a request. With no token configured everybody
// who reaches the listener, which is on loopback by default, is a viewer.
func (g *guard) identify(r *http.Request) (caller, error) {
	secret, given := credentials(r)
	if !given {
		if len(g.tokens) == 0 {
			return caller{Name: "anonymous", Role: RoleViewer}, nil
		}
		return caller{}, unauthorized("This needs a token: send it as 'Authorization: Bearer TOKEN', or use the socket as root.")
	}
	limiter := g.limiter(r.RemoteAddr)
	if limiter.Tokens() < 1 {
		return caller{}, gpuserver.Errorf(gpuserver.KindLimited, "Too many wrong tokens came from your address; try again in %d seconds.", int(failureEvery.Seconds()))
	}
	if t, ok := g.find(secret); ok {
		return caller{Name: t.Name, Role: t.Role}, nil
	}
	limiter.Allow()
	return caller{}, unauthorized("The token is not one of the configuration's api.tokens.")
}

// find compares with every token in constant time, so that the time of an
// answer tells neither how much of a token was right nor which one it was.
func (g *guard) find(secret string) (found Token, ok bool) {
	hash := []byte(HashToken(secret))
	for _, t := range g.tokens {
		if subtle.ConstantTimeCompare(hash, []byte(strings.ToLower(t.Hash))) == 1 {
			found, ok = t, true
		}
	}
	return found, ok
}

func (g *guard) limiter(remote string) *rate.Limiter {
	addr := remoteAddr(remote)
	if l, ok := g.failures.Get(addr); ok {
		return l
	}
	l := rate.NewLimiter(rate.Every(failureEvery), failureBurst)
	if old, ok, _ := g.failures.PeekOrAdd(addr, l); ok {
		return old
	}
	return l
}

// remoteAddr gives the address to count failures by: an IPv6 network of 64 bits
// is one place, as whoever has one address of it has them all.
func remoteAddr(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}

// credentials takes the token from a bearer header or, for browsers that look
// at pages, from the password of basic authentication. A token is accepted in
// basic form for reading only: browsers send it by themselves.
func credentials(r *http.Request) (token string, given bool) {
	h := r.Header.Get("Authorization")
	if h == "" {
		return "", false
	}
	if scheme, rest, ok := strings.Cut(h, " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(rest), true
	}
	if _, password, ok := r.BasicAuth(); ok && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		return password, true
	}
	return "", true
}

func unauthorized(detail string) *Problem {
	return &Problem{Title: http.StatusText(http.StatusUnauthorized), Status: http.StatusUnauthorized, Detail: detail, Kind: gpuserver.KindRefused}
}

func forbidden(c caller, need Role) error {
	return gpuserver.Errorf(gpuserver.KindRefused, "This needs the role %s; %s has the role %s.", need, c.Name, c.Role)
}

// allowedHost reports whether a request names a host under which we may be
// reached. It keeps a foreign page, whose name was made to resolve to
// loopback, from reading what the browser's user may see.
func allowedHost(host string, names []string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(strings.TrimSuffix(strings.ToLower(host), "."), "[]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "localhost" || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, host) })
}

func misdirected(host string) *Problem {
	return &Problem{
		Title: http.StatusText(http.StatusMisdirectedRequest), Status: http.StatusMisdirectedRequest, Kind: gpuserver.KindInvalid,
		Detail: fmt.Sprintf("This server is not known as %.100q; use its address, or set server.public_url to that name.", host),
	}
}
