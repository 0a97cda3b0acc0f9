package github

import (
	"net/http"
	"net/url"
	"strings"
)

// nextLink gives the address of a list's next page, "" on the last one.
// Source: RFC 8288 section 3, in the form in which GitHub writes it.
func nextLink(h http.Header) string {
	for _, line := range h.Values("Link") {
		for link := range strings.SplitSeq(line, ",") {
			target, params, ok := strings.Cut(strings.TrimSpace(link), ";")
			if !ok || len(target) < 2 || target[0] != '<' || target[len(target)-1] != '>' {
				continue
			}
			for p := range strings.SplitSeq(params, ";") {
				if p = strings.TrimSpace(p); p == `rel="next"` || p == "rel=next" {
					return target[1 : len(target)-1]
				}
			}
		}
	}
	return ""
}

// nextCursor gives the cursor of a list's next page, "" on the last one.
func nextCursor(h http.Header) string {
	u, err := url.Parse(nextLink(h))
	if err != nil {
		return ""
	}
	return u.Query().Get("cursor")
}
