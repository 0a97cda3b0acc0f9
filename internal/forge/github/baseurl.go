package github

import (
	"net"
	"net/url"
	"strings"

	"gpuserver"
)

const publicAPI = "https://api.github.com"

// ParseBaseURL checks the address of a GitHub API. "" is github.com's; one of
// GitHub Enterprise Server without a path gets its /api/v3. Plain http is for
// loopback addresses only, because calls carry tokens.
func ParseBaseURL(s string) (*url.URL, error) {
	if s == "" {
		s = publicAPI
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, badURL("is not a URL", err)
	}
	host := strings.ToLower(u.Hostname())
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, badURL("must start with https://", nil)
	case host == "":
		return nil, badURL("has no host", nil)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, badURL("must have neither user, query nor fragment", nil)
	case u.Scheme == "http" && !loopback(host):
		return nil, badURL("must be https: calls carry tokens", nil)
	case host == "github.com" || host == "www.github.com":
		return nil, badURL("is github.com's page, not its API; leave it out for github.com", nil)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	if u.Path == "" && u.Scheme == "https" && !strings.HasPrefix(host, "api.") && !loopback(host) {
		u.Path = "/api/v3"
	}
	return u, nil
}

func badURL(what string, err error) error {
	return &gpuserver.Error{Kind: gpuserver.KindInvalid, Public: "the forge's base URL " + what +
		"; write it like https://ghe.example.org/api/v3", Err: err}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
