package fake

import (
	"encoding/json"
	"errors"
	"net/http"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// ownerHeader carries a driver's owner tag with each of its requests.
const ownerHeader = "Fake-Owner"

// wireError is how an error travels.
type wireError struct {
	Kind gpuserver.Kind `json:"kind"`
	Op   string         `json:"op,omitempty"`
	Text string         `json:"text"`
	// NoHost says that cloud.ErrNoHost is among its causes.
	NoHost bool `json:"no_host,omitempty"`
}

// notice is one line of the stream of events. The first one has Hello.
type notice struct {
	Hello *hello       `json:"hello,omitempty"`
	Event *cloud.Event `json:"event,omitempty"`
}

type hello struct {
	Capabilities cloud.Capabilities `json:"capabilities"`
}

// statuses are the HTTP statuses of the kinds that a cloud's errors have.
var statuses = map[gpuserver.Kind]int{
	gpuserver.KindInvalid:     http.StatusBadRequest,
	gpuserver.KindNotFound:    http.StatusNotFound,
	gpuserver.KindConflict:    http.StatusConflict,
	gpuserver.KindRefused:     http.StatusForbidden,
	gpuserver.KindCapacity:    http.StatusInsufficientStorage,
	gpuserver.KindLimited:     http.StatusTooManyRequests,
	gpuserver.KindUnavailable: http.StatusServiceUnavailable,
}

// answer writes a value, or the error if there is one.
func answer(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		kind := gpuserver.KindOf(err)
		if status = statuses[kind]; status == 0 {
			status = http.StatusInternalServerError
		}
		e := wireError{Kind: kind, Text: err.Error(), NoHost: errors.Is(err, cloud.ErrNoHost)}
		if ge, ok := errors.AsType[*gpuserver.Error](err); ok && ge.Public != "" {
			e.Op, e.Text = ge.Op, ge.Public
		}
		v = e
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error here means that the caller has gone
}
