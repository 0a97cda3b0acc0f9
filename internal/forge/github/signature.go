package github

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"gpuserver"
)

// The headers of a delivery.
const (
	HeaderSignature  = "X-Hub-Signature-256"
	HeaderEvent      = "X-GitHub-Event"
	HeaderDelivery   = "X-GitHub-Delivery"
	headerTargetType = "X-GitHub-Hook-Installation-Target-Type"
	headerTargetID   = "X-GitHub-Hook-Installation-Target-ID"
)

const signaturePrefix = "sha256="

// VerifySignature checks the X-Hub-Signature-256 header of a delivery against
// every secret, in constant time. It must be called before the body is parsed.
// The error is KindRefused and does not tell what would have been right.
func VerifySignature(secrets []string, body []byte, header string) error {
	digits, ok := strings.CutPrefix(header, signaturePrefix)
	if !ok || len(digits) != hex.EncodedLen(sha256.Size) {
		return refuse("the delivery has no SHA-256 signature; set a secret on the hook")
	}
	got, err := hex.DecodeString(digits)
	if err != nil {
		return refuse("the delivery's signature is not hexadecimal")
	}
	good := 0
	for _, s := range secrets {
		if s == "" { // an empty secret would let everybody in
			continue
		}
		mac := hmac.New(sha256.New, []byte(s))
		mac.Write(body)
		if hmac.Equal(mac.Sum(nil), got) {
			good++
		}
	}
	if good == 0 {
		return refuse("the delivery's signature does not fit the webhook secret; compare it with the hook's")
	}
	return nil
}

// Sign gives the header value that VerifySignature accepts.
func Sign(secret string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return signaturePrefix + hex.EncodeToString(mac.Sum(nil))
}

func refuse(text string) error {
	return &gpuserver.Error{Kind: gpuserver.KindRefused, Op: "verify delivery", Public: text}
}

// Headers are what a delivery's headers tell.
type Headers struct {
	Event      string // "workflow_job"
	Delivery   string // the delivery's GUID, equal for each redelivery
	TargetType string // "integration" (App), "organization" or "repository"; "" if not told
	TargetID   int64
	Signature  string // for VerifySignature; not checked here
}

// ParseHeaders reads a delivery's headers. It refuses a delivery without event
// or id, and one that is not sent as JSON.
func ParseHeaders(h http.Header) (Headers, error) {
	d := Headers{
		Event:      h.Get(HeaderEvent),
		Delivery:   h.Get(HeaderDelivery),
		TargetType: h.Get(headerTargetType),
		Signature:  h.Get(HeaderSignature),
	}
	if !word(d.Event, 64) {
		return Headers{}, invalid("the delivery has no proper %s header", HeaderEvent)
	}
	if !word(d.Delivery, 128) {
		return Headers{}, invalid("the delivery has no proper %s header", HeaderDelivery)
	}
	if d.TargetType != "" && !word(d.TargetType, 64) {
		return Headers{}, invalid("the delivery has no proper %s header", headerTargetType)
	}
	if media, _, err := mime.ParseMediaType(h.Get("Content-Type")); err != nil || media != "application/json" {
		return Headers{}, invalid("the delivery is not JSON; set the hook's content type to application/json")
	}
	if s := h.Get(headerTargetID); s != "" {
		id, err := strconv.ParseInt(s, 10, 64)
		if err != nil || id < 0 {
			return Headers{}, invalid("the delivery's %s header is not a number", headerTargetID)
		}
		d.TargetID = id
	}
	return d, nil
}

// word reports whether s is 1 to limit letters, digits, '_', '-' or '.'.
func word(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

func invalid(format string, args ...any) error {
	return gpuserver.Errorf(gpuserver.KindInvalid, format, args...)
}
