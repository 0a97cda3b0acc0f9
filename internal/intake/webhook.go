package intake

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
)

// Verifier is what a webhook's handler needs of its forge.
type Verifier interface {
	// Read reads the body within its bound, checks the signature before anything
	// is parsed, and gives the delivery's id, its event and its body. Errors:
	// KindRefused (signature), KindInvalid (not understood; the body is given),
	// KindCapacity (too large).
	Read(r *http.Request) (guid string, e forge.Event, body []byte, err error)
}

// Handler answers the deliveries of one forge. Every answer but 2xx means that
// nothing was stored.
//
//	202 stored · 200 nothing to us, or seen before · 400 not understood
//	401 wrong signature · 413 too large · 503 cannot be stored now
func (in *Intake) Handler(forgeName string, v Verifier) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := time.Now().UTC()
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			answer(w, http.StatusMethodNotAllowed, "deliveries are POSTed")
			return
		}
		guid, e, body, err := v.Read(r)
		if err != nil {
			status := map[gpuserver.Kind]int{gpuserver.KindRefused: 401, gpuserver.KindInvalid: 400, gpuserver.KindCapacity: 413}[gpuserver.KindOf(err)]
			if status == 0 {
				status = http.StatusBadRequest
			}
			in.observe(forgeName, OutcomeBad)
			in.Log.Warn("delivery refused", "forge", forgeName, "guid", guid, "status", status, "err", err)
			answer(w, status, gpuserver.PublicText(err))
			return
		}
		out, err := in.Accept(r.Context(), Delivery{Forge: forgeName, GUID: guid, Event: e, Body: body, ReceivedAt: at})
		switch {
		case err != nil:
			if !errors.Is(err, errDiskFull) { // of which the guard has told, once
				in.Log.Error("delivery not stored", "forge", forgeName, "guid", guid, "err", err)
			}
			w.Header().Set("Retry-After", "30")
			answer(w, http.StatusServiceUnavailable, "the delivery was not stored: "+gpuserver.PublicText(err))
		case out == OutcomeJob || out == OutcomeRecheck:
			answer(w, http.StatusAccepted, string(out))
		default:
			answer(w, http.StatusOK, string(out))
		}
	})
}

func answer(w http.ResponseWriter, status int, text string) {
	b, _ := json.Marshal(struct {
		Message string `json:"message"`
	}{text})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
