package forgetest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// authKind says who may call a route.
type authKind int

const (
	authInstallation authKind = iota // an installation's token
	authApp                          // the App's JWT
	authNone
)

// permissionNeeded is a permission and its least level, such as checks, write.
type permissionNeeded struct{ name, level string }

// authenticate finds out who calls; s.mu is held.
func (s *Server) authenticate(c *call) *apiError {
	if c.route.auth == authNone {
		return nil
	}
	scheme, cred, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	if scheme = strings.ToLower(scheme); scheme != "bearer" && scheme != "token" {
		return &apiError{status: http.StatusUnauthorized, message: "Requires authentication"}
	}
	if c.route.auth == authApp {
		c.app = true
		return s.checkJWT(cred, time.Now())
	}
	t := s.world.tokens[cred]
	if t == nil || time.Now().After(t.expires) {
		delete(s.world.tokens, cred)
		return &apiError{status: http.StatusUnauthorized, message: "Bad credentials"}
	}
	c.token = t
	return nil
}

// authorise checks what the route needs against what the token may; it runs
// after the limits, as on GitHub. s.mu is held.
func (s *Server) authorise(c *call) *apiError {
	if c.token == nil {
		return nil
	}
	for _, need := range c.route.needs {
		if grants(c.token.permissions[need.name], need.level) && grants(s.set.permissions[need.name], need.level) {
			continue
		}
		c.header.Set("X-Accepted-GitHub-Permissions", need.name+"="+need.level)
		return &apiError{status: http.StatusForbidden, message: "Resource not accessible by integration"}
	}
	return nil
}

func grants(have, need string) bool {
	levels := []string{"", "read", "write", "admin"}
	return slices.Index(levels, have) >= slices.Index(levels, need)
}

// checkJWT verifies an App's token with GitHub's rules: RS256 by the App's key,
// its number or client id as issuer, valid for 10 minutes at most.
// Source: GitHub docs, "Generating a JSON Web Token (JWT) for a GitHub App".
func (s *Server) checkJWT(jwt string, t time.Time) *apiError {
	bad := &apiError{status: http.StatusUnauthorized, message: "A JSON web token could not be decoded"}
	pieces := strings.Split(jwt, ".")
	if len(pieces) != 3 {
		return bad
	}
	var head struct {
		Alg string `json:"alg"`
	}
	var claims struct {
		Iat *float64        `json:"iat"`
		Exp *float64        `json:"exp"`
		Iss json.RawMessage `json:"iss"`
	}
	sig, err := base64.RawURLEncoding.DecodeString(pieces[2])
	if err != nil || !decodePiece(pieces[0], &head) || !decodePiece(pieces[1], &claims) || head.Alg != "RS256" {
		return bad
	}
	sum := sha256.Sum256([]byte(pieces[0] + "." + pieces[1]))
	if rsa.VerifyPKCS1v15(&s.cfg.PrivateKey.PublicKey, crypto.SHA256, sum[:], sig) != nil {
		return bad
	}
	if iss := strings.Trim(string(claims.Iss), `"`); iss != strconv.FormatInt(s.cfg.AppID, 10) && iss != s.cfg.clientID() {
		return &apiError{status: http.StatusNotFound, message: "Integration not found"}
	}
	unix, slack := float64(t.Unix()), 60.0
	switch {
	case claims.Iat == nil || *claims.Iat > unix+slack:
		bad.message = "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
	case claims.Exp == nil || *claims.Exp < unix:
		bad.message = "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires"
	case *claims.Exp > unix+600+slack:
		bad.message = "'Expiration time' claim ('exp') is too far in the future"
	default:
		return nil
	}
	return bad
}

func decodePiece(piece string, out any) bool {
	b, err := base64.RawURLEncoding.DecodeString(piece)
	return err == nil && json.Unmarshal(b, out) == nil
}

// newToken makes an installation's token.
func (s *Server) newToken(c *call) (int, any, *apiError) {
	a, e := s.installation(c)
	if e != nil {
		return 0, nil, e
	}
	var ask struct {
		Repositories  []string          `json:"repositories"`
		RepositoryIDs []int64           `json:"repository_ids"`
		Permissions   map[string]string `json:"permissions"`
	}
	if e := c.decode(&ask); e != nil {
		return 0, nil, e
	}
	t := &token{account: a, expires: time.Now().Add(s.cfg.TokenLife), permissions: s.set.permissions}
	if ask.Permissions != nil {
		for name, level := range ask.Permissions {
			if !grants(s.set.permissions[name], level) {
				return 0, nil, &apiError{status: http.StatusUnprocessableEntity, message: "The permissions requested are not granted to this installation."}
			}
		}
		t.permissions = ask.Permissions
	}
	if ask.Repositories != nil || ask.RepositoryIDs != nil {
		t.repos = map[int64]bool{}
		for _, p := range a.repos {
			_, name, _ := strings.Cut(p.name, "/")
			if slices.Contains(ask.RepositoryIDs, p.id) || slices.Contains(ask.Repositories, name) {
				t.repos[p.id] = true
			}
		}
		if len(t.repos) < len(ask.Repositories)+len(ask.RepositoryIDs) {
			return 0, nil, &apiError{
				status:  http.StatusUnprocessableEntity,
				message: "There is at least one repository that does not exist or is not accessible to the parent installation.",
			}
		}
	}
	secret := "ghs_" + rand.Text() + rand.Text()[:10]
	s.dropExpired()
	s.world.tokens[secret] = t
	selection := "all"
	if t.repos != nil {
		selection = "selected"
	}
	return http.StatusCreated, obj{
		"token": secret, "expires_at": stamp(t.expires), "permissions": t.permissions, "repository_selection": selection,
	}, nil
}

// dropExpired keeps the list of tokens bounded.
func (s *Server) dropExpired() {
	for k, t := range s.world.tokens {
		if time.Now().After(t.expires) {
			delete(s.world.tokens, k)
		}
	}
}

func (s *Server) installation(c *call) (*account, *apiError) {
	id, e := c.id("installation_id")
	if e != nil {
		return nil, e
	}
	if a := s.world.byID[id]; a != nil {
		return a, nil
	}
	return nil, notFound
}

func (p permissionNeeded) String() string { return fmt.Sprintf("%s=%s", p.name, p.level) }
