package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"gpuserver"
	"gpuserver/internal/store"
)

// JobChange is the data of an event of type job: a job changed.
type JobChange struct {
	Job   gpuserver.JobID    `json:"job"`
	State gpuserver.JobState `json:"state"`
}

// VMChange is the data of an event of type vm: a VM changed.
type VMChange struct {
	VM    gpuserver.VMID    `json:"vm"`
	State gpuserver.VMState `json:"state"`
}

// GPUChange is the data of an event of type gpu: a card or its history changed.
type GPUChange struct {
	GPU gpuserver.GPUID `json:"gpu"`
}

const (
	eventBeat  = 15 * time.Second // a comment, so that proxies and clients see life
	writeLimit = 10 * time.Second // for one write to a client that does not read
)

// eventRoute serves server-sent events beside huma, whose handlers answer once.
// Source: WHATWG HTML, "Server-sent events".
func (a *API) eventRoute() {
	a.mux.Handle("GET "+prefix+"/events", a.viewers(http.HandlerFunc(a.events)))
	registry := a.huma.OpenAPI().Components.Schemas
	a.huma.OpenAPI().AddOperation(&huma.Operation{
		OperationID: "watch-events", Method: http.MethodGet, Path: prefix + "/events", Tags: []string{"events"},
		Summary:     "Watch changes",
		Description: "Tells of each change of a job, VM or GPU, right after its commit, as server-sent events of type job, vm and gpu. A client that does not keep up is cut off; it connects again and reads what it shows anew. Needs the role viewer.",
		Security:    []map[string][]string{{"bearer": {}}},
		Responses: map[string]*huma.Response{"200": {Description: "The events.", Content: map[string]*huma.MediaType{"text/event-stream": {
			Schema: &huma.Schema{OneOf: []*huma.Schema{schemaOf[JobChange](registry), schemaOf[VMChange](registry), schemaOf[GPUChange](registry)}},
		}}}},
	})
}

func (a *API) events(w http.ResponseWriter, r *http.Request) {
	changes, ok := a.hub.listen()
	if !ok {
		w.Header().Set("Retry-After", "30")
		a.fail(w, r, gpuserver.Errorf(gpuserver.KindUnavailable, "Too many clients watch already; try again later."))
		return
	}
	defer a.hub.leave(changes)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	beat := time.NewTicker(eventBeat)
	defer beat.Stop()
	text := []byte(": watching\nretry: 2000\n\n")
	for {
		if !send(w, text) {
			return
		}
		select {
		case cs, ok := <-changes:
			if !ok {
				return
			}
			text = format(cs)
		case <-beat.C:
			text = []byte(": beat\n\n")
		case <-r.Context().Done():
			return
		}
	}
}

func send(w http.ResponseWriter, text []byte) bool {
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(time.Now().Add(writeLimit)) // not every writer has one
	if _, err := w.Write(text); err != nil {
		return false
	}
	return c.Flush() == nil
}

func format(cs []store.Change) (text []byte) {
	for _, c := range cs {
		if c.Job != 0 {
			text = appendEvent(text, "job", JobChange{c.Job, c.JobState})
		}
		if c.VM != 0 {
			text = appendEvent(text, "vm", VMChange{c.VM, c.VMState})
		}
		if c.GPU != 0 {
			text = appendEvent(text, "gpu", GPUChange{c.GPU})
		}
	}
	return text
}

func appendEvent(text []byte, kind string, data any) []byte {
	b, err := json.Marshal(data)
	if err != nil {
		panic("api: " + err.Error()) // our own types always encode
	}
	return fmt.Appendf(text, "event: %s\ndata: %s\n\n", kind, b)
}

func schemaOf[T any](r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[T](), true, "")
}
