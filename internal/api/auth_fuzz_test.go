package api

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
)

var (
	hostNamed   = regexp.MustCompile(`(?i)^\[*(localhost|gpu\.example\.org)\.?\]*(:[^.]*)?$`)
	hostAddress = regexp.MustCompile(`(?i)^\[*[0-9a-f:.]+(%[^.]*)?\.?\]*(:[^.]*)?$`)
)

// FuzzAllowedHost: whatever a Host header holds, only addresses, localhost and
// the configured names are let through.
func FuzzAllowedHost(f *testing.F) {
	for _, h := range []string{"localhost", "127.0.0.1:80", "[::1]:80", "gpu.example.org", "evil.example", "localhost.evil.example", "::1", "[", ":80", "localhost:"} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if !allowedHost(host, []string{"gpu.example.org"}) {
			return
		}
		if !hostNamed.MatchString(host) && !hostAddress.MatchString(host) {
			t.Errorf("%q is allowed", host)
		}
	})
}

// FuzzCredentials: a token is never made of less than what was sent, and basic
// authentication never gives one to a request that changes something.
func FuzzCredentials(f *testing.F) {
	for _, h := range []string{"", "Bearer x", "bearer  x ", "Basic bWU6c2VjcmV0", "Basic", "Bearer", "Digest x"} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := &http.Request{Method: http.MethodPost, Header: http.Header{"Authorization": {header}}}
		token, given := credentials(r)
		if given != (header != "") {
			t.Errorf("%q: given %v", header, given)
		}
		if token != "" && (!strings.Contains(header, token) || !strings.EqualFold(header[:6], "bearer")) {
			t.Errorf("%q gives %q", header, token)
		}
	})
}
