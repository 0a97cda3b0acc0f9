package github

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

// The example of GitHub's documentation, "Validating webhook deliveries".
const (
	docSecret = "It's a Secret to Everybody"
	docBody   = "Hello, World!"
	docHeader = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
)

func TestVerifySignature(t *testing.T) {
	for name, secrets := range map[string][]string{
		"one secret":            {docSecret},
		"the old one of two":    {"new", docSecret},
		"the new one of two":    {docSecret, "old"},
		"beside an empty one":   {"", docSecret},
		"the same secret twice": {docSecret, docSecret},
	} {
		if err := VerifySignature(secrets, []byte(docBody), docHeader); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := Sign(docSecret, []byte(docBody)); got != docHeader {
		t.Errorf("Sign gives %s", got)
	}
	digits := strings.TrimPrefix(docHeader, "sha256=")
	empty := Sign("", []byte(docBody))
	for name, c := range map[string]struct{ secret, body, header string }{
		"unsigned":           {docSecret, docBody, ""},
		"another secret":     {"other", docBody, docHeader},
		"another body":       {docSecret, docBody + "!", docHeader},
		"truncated body":     {docSecret, docBody[:5], docHeader},
		"one digit off":      {docSecret, docBody, docHeader[:len(docHeader)-1] + "0"},
		"truncated":          {docSecret, docBody, docHeader[:len(docHeader)-2]},
		"longer":             {docSecret, docBody, docHeader + "00"},
		"no prefix":          {docSecret, docBody, digits},
		"SHA-1":              {docSecret, docBody, "sha1=" + digits[:40]},
		"no hexadecimal":     {docSecret, docBody, "sha256=" + strings.Repeat("z", 64)},
		"by an empty secret": {"", docBody, empty},
	} {
		err := VerifySignature([]string{c.secret}, []byte(c.body), c.header)
		if gpuserver.KindOf(err) != gpuserver.KindRefused {
			t.Errorf("%s: got %v", name, err)
		}
		if err != nil && c.secret != "" && strings.Contains(err.Error(), c.secret) {
			t.Errorf("%s: the error tells the secret", name)
		}
	}
	if err := VerifySignature(nil, []byte(docBody), docHeader); err == nil {
		t.Error("accepted without any secret")
	}
}

func FuzzVerifySignature(f *testing.F) {
	f.Add([]byte(docBody), docHeader)
	f.Add([]byte(""), "sha256=")
	f.Add([]byte("{}"), "sha256="+strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, body []byte, header string) {
		ok := VerifySignature([]string{docSecret}, body, header) == nil
		if want := strings.EqualFold(header, Sign(docSecret, body)) && strings.HasPrefix(header, "sha256="); ok != want {
			t.Fatalf("accepted: %v, want %v", ok, want)
		}
	})
}

func deliveryHeader(change func(http.Header)) http.Header {
	h := http.Header{}
	for k, v := range map[string]string{
		HeaderEvent: "workflow_job", HeaderDelivery: "72d3162e-cc78-11e3-81ab-4c9367dc0958", HeaderSignature: docHeader,
		headerTargetType: "integration", headerTargetID: "79929171", "Content-Type": "application/json; charset=utf-8",
	} {
		h.Set(k, v)
	}
	if change != nil {
		change(h)
	}
	return h
}

func TestParseHeaders(t *testing.T) {
	got, err := ParseHeaders(deliveryHeader(nil))
	want := Headers{"workflow_job", "72d3162e-cc78-11e3-81ab-4c9367dc0958", "integration", 79929171, docHeader}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	for name, c := range map[string]struct {
		change func(http.Header)
		ok     bool
	}{
		"old, without target": {func(h http.Header) { h.Del(headerTargetType); h.Del(headerTargetID) }, true},
		"no event":            {func(h http.Header) { h.Del(HeaderEvent) }, false},
		"no delivery id":      {func(h http.Header) { h.Del(HeaderDelivery) }, false},
		"odd event":           {func(h http.Header) { h.Set(HeaderEvent, "a/b") }, false},
		"long id":             {func(h http.Header) { h.Set(HeaderDelivery, strings.Repeat("x", 129)) }, false},
		"odd target":          {func(h http.Header) { h.Set(headerTargetType, "\x00") }, false},
		"odd target id":       {func(h http.Header) { h.Set(headerTargetID, "-1") }, false},
		"form":                {func(h http.Header) { h.Set("Content-Type", "application/x-www-form-urlencoded") }, false},
		"no content type":     {func(h http.Header) { h.Del("Content-Type") }, false},
	} {
		_, err := ParseHeaders(deliveryHeader(c.change))
		if (err == nil) != c.ok || err != nil && gpuserver.KindOf(err) != gpuserver.KindInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzParseHeaders(f *testing.F) {
	f.Add("workflow_job", "72d3162e", "integration", "1", "application/json")
	f.Add("", "\x00", "a b", "99999999999999999999", "application/json;")
	f.Fuzz(func(t *testing.T, event, id, target, targetID, media string) {
		h := deliveryHeader(func(h http.Header) {
			h.Set(HeaderEvent, event)
			h.Set(HeaderDelivery, id)
			h.Set(headerTargetType, target)
			h.Set(headerTargetID, targetID)
			h.Set("Content-Type", media)
		})
		got, err := ParseHeaders(h)
		if err != nil {
			return
		}
		if got.Event != event || got.Delivery != id || strings.ContainsAny(event+id+target, " \n/\x00") || got.TargetID < 0 {
			t.Fatalf("accepted %+v", got)
		}
	})
}

func FuzzNextLink(f *testing.F) {
	f.Add(`<https://api.github.com/x?cursor=v1_1>; rel="next", <https://api.github.com/x>; rel="first"`)
	f.Add(`<>; rel=next`)
	f.Add(`<a;b>; rel="prev`)
	f.Fuzz(func(t *testing.T, s string) {
		h := http.Header{"Link": {s}}
		if link := nextLink(h); !strings.Contains(s, link) {
			t.Fatalf("made up %q", link)
		}
		nextCursor(h)
	})
}

func TestNextCursor(t *testing.T) {
	for link, want := range map[string]string{
		"": "",
		`<https://api.github.com/app/hook/deliveries?per_page=100&cursor=v1_12>; rel="next"`:                      "v1_12",
		`<https://api.github.com/x?cursor=a>; rel="prev", <https://api.github.com/x?cursor=b>; foo=1; rel="next"`: "b",
		`<https://api.github.com/x?cursor=a>; rel="last"`:                                                         "",
	} {
		if got := nextCursor(http.Header{"Link": {link}}); got != want {
			t.Errorf("%s: got %q, want %q", link, got, want)
		}
	}
}
