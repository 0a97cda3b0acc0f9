package openstack

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/gophercloud/gophercloud/v2"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// failed makes an error of this package of what a call gave. The kind follows
// from the HTTP status; only where OpenStack has one status for two things the
// text decides.
func (d *Driver) failed(what string, err error) error {
	if _, ok := errors.AsType[*gpuserver.Error](err); ok || err == nil {
		return err
	}
	cause := err
	if e, ok := errors.AsType[*gophercloud.ErrUnableToReauthenticate](err); ok {
		cause = e.ErrReauth
	}
	kind, why := gpuserver.KindUnavailable, ""
	if answer, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](cause); ok {
		kind, why = judge(answer)
	} else {
		why = unanswered(cause)
	}
	return &gpuserver.Error{
		Kind: kind, Op: "openstack: " + what, Err: hidden{err, cause},
		Public: fmt.Sprintf("cloud %s: cannot %s: %s", d.cfg.Name, what, why),
	}
}

// hidden is a cause whose text is said already; errors.Is and As see it.
type hidden struct{ err, cause error }

// Error implements error: shortly, as the answer's text is in the public part.
func (h hidden) Error() string {
	if e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](h.cause); ok {
		return fmt.Sprintf("%s %s", e.Method, e.URL)
	}
	return h.cause.Error()
}

// Unwrap gives the causes.
func (h hidden) Unwrap() []error { return []error{h.err, h.cause} }

// judge says whose fault an answer is, and what to do.
func judge(a gophercloud.ErrUnexpectedResponseCode) (gpuserver.Kind, string) {
	text, sort := message(a.Body)
	said := fmt.Sprintf("it answers %d %s", a.Actual, http.StatusText(a.Actual))
	if text != "" {
		said += ": " + text
	}
	switch {
	case a.Actual == http.StatusUnauthorized:
		return gpuserver.KindUnavailable, said + "; the credentials are not accepted (any more): check the password, or whether the application credential expired or its user is disabled"
	case overQuota(a.Actual, text, sort):
		return gpuserver.KindCapacity, said
	case a.Actual == http.StatusForbidden:
		return gpuserver.KindRefused, said + "; the credential lacks this right (docs/openstack.md lists them)"
	case a.Actual == http.StatusNotFound && !itsOwn(a.Body):
		return gpuserver.KindUnavailable, said + "; that is not OpenStack's own answer: a proxy before it may have lost its way"
	case a.Actual == http.StatusNotFound:
		return gpuserver.KindNotFound, said
	case a.Actual == http.StatusConflict:
		return gpuserver.KindConflict, said
	case a.Actual == http.StatusTooManyRequests, a.Actual == http.StatusRequestEntityTooLarge:
		if after := a.ResponseHeader.Get("Retry-After"); after != "" {
			said += "; it is to be asked again after " + after + " s"
		}
		return gpuserver.KindLimited, said
	case a.Actual >= 400 && a.Actual < 500:
		return gpuserver.KindInvalid, said
	}
	return gpuserver.KindUnavailable, said + "; it is asked again by itself"
}

// itsOwn reports whether the body of an error is one of OpenStack's services', and
// not of a proxy before them: only then does a 404 mean that something is gone.
// Source: the API references of Nova and Cinder (itemNotFound), Neutron
// (NeutronError), Keystone (error), Placement (errors).
func itsOwn(body []byte) bool {
	var parsed map[string]json.RawMessage
	if json.Unmarshal(body, &parsed) != nil {
		return false
	}
	for _, key := range []string{"itemNotFound", "NeutronError", "error", "errors"} {
		if _, ok := parsed[key]; ok {
			return true
		}
	}
	return false
}

// overQuota reports whether an answer means that a quota is used up. Nova says 403
// for it and for a missing right, Cinder 413 for it and for too many calls,
// Neutron 409 for it and for a conflict, so the text has to tell.
// Source: nova/api/openstack/compute/servers.py (OverQuota, PortLimitExceeded),
// cinder/exception.py (QuotaError), neutron_lib.exceptions.OverQuota.
func overQuota(status int, text, sort string) bool {
	if sort == "OverQuota" {
		return true
	}
	if status != http.StatusForbidden && status != http.StatusConflict && status != http.StatusRequestEntityTooLarge {
		return false
	}
	return usedUp(text) || strings.Contains(strings.ToLower(text), "maximum number of")
}

// usedUp reports whether a text says that a quota, or a limit of Keystone's, is used up.
// Source: nova/exception.py (OverQuota), oslo_limit/exception.py (ProjectOverLimit).
func usedUp(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "quota") || strings.Contains(text, "over limit for") || strings.Contains(text, "over a limit for")
}

// unanswered says in words why there was no answer that could be read.
func unanswered(err error) string {
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "it did not answer in time"
	case errors.Is(err, context.Canceled):
		return "the call was ended"
	case errors.Is(err, errNotNova):
		return err.Error()
	case errors.As(err, &syntax):
		return "its answer is no JSON; something else than OpenStack may answer at this address"
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return "it cannot be reached: " + e.Err.Error()
	}
	return "it cannot be reached: " + short(err.Error())
}

// unsent reports whether a request surely never reached the cloud.
func unsent(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "dial"
}

// message gives the sentence in the body of an error, and the sort of error where
// it is named. Each service has its own form; a proxy before it answers in HTML.
func message(body []byte) (text, sort string) {
	var parsed map[string]json.RawMessage
	if json.Unmarshal(body, &parsed) != nil {
		return page(body), ""
	}
	type inner struct {
		Message string `json:"message"`
		Type    string `json:"type"`
		Title   string `json:"title"`
		Detail  string `json:"detail"`
	}
	for name, value := range parsed {
		var one inner
		var many []inner
		var plain string
		switch {
		case json.Unmarshal(value, &one) == nil && one.Message+one.Title != "":
			return short(cmp.Or(one.Message, one.Title)), one.Type
		case json.Unmarshal(value, &many) == nil && len(many) > 0: // Placement
			return short(cmp.Or(many[0].Detail, many[0].Title)), ""
		case (name == "message" || name == "NeutronError" || name == "error") && json.Unmarshal(value, &plain) == nil:
			return short(plain), ""
		}
	}
	return short(string(body)), ""
}

var (
	titleRE = regexp.MustCompile(`(?is)<title>(.*?)</title>`)
	tagRE   = regexp.MustCompile(`(?s)<[^>]*>`)
)

// page gives the title of an HTML page, or the text.
func page(body []byte) string {
	if m := titleRE.FindSubmatch(body); m != nil {
		return short(html.UnescapeString(string(m[1]))) + " (an HTML page: a proxy before the cloud may have answered)"
	}
	return short(html.UnescapeString(string(tagRE.ReplaceAll(bytes.TrimSpace(body), []byte(" ")))))
}

// short gives a text as one line of bounded length.
func short(text string) string {
	const most = 300
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + " …"
	}
	return text
}

// failure makes an error of a server's fault.
func failure(fault, format string, args ...any) error {
	e := gpuserver.Errorf(ofFault(fault), format, args...)
	if noHost(fault) {
		e.Err = cloud.ErrNoHost
	}
	return e
}

// noHost reports whether a fault means that no host was found, and not that a quota
// is used up, which is checked once more while a server is built.
func noHost(fault string) bool {
	return ofFault(fault) == gpuserver.KindCapacity && !usedUp(fault)
}

// ofFault gives the kind of a server's fault: Nova tells what went wrong after it
// had accepted a server in words alone.
// Source: nova/exception.py (NoValidHost, MaxRetriesExceeded,
// ComputeResourcesUnavailable, PciDeviceRequestFailed).
func ofFault(text string) gpuserver.Kind {
	lower := strings.ToLower(text)
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(lower, p) {
				return true
			}
		}
		return false
	}
	switch {
	case usedUp(text), has("no valid host", "exceeded maximum number of retries", "exhausted all hosts", "insufficient compute resources", "pci device request", "allocation candidates"):
		return gpuserver.KindCapacity
	case has("image is unacceptable", "unacceptable: ", "disk is too small", "image could not be found", "flavor's disk"):
		return gpuserver.KindInvalid
	}
	return gpuserver.KindUnavailable
}
