package intake

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"syscall"
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
func (in *Intake) Handler(forgeName string, v Verifier, disk *DiskGuard) http.Handler {
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
		if !disk.Room() {
			answer(w, http.StatusServiceUnavailable, "the disk of the database is nearly full; the delivery was not stored")
			return
		}
		out, err := in.Accept(r.Context(), Delivery{Forge: forgeName, GUID: guid, Event: e, Body: body, ReceivedAt: at})
		switch {
		case err != nil:
			in.Log.Error("delivery not stored", "forge", forgeName, "guid", guid, "err", err)
			w.Header().Set("Retry-After", "30")
			answer(w, http.StatusServiceUnavailable, "the delivery was not stored")
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

// DiskGuard says whether there is room for the database to grow, so that
// deliveries are refused before SQLite meets a full disk. It asks the file
// system at most once a second. The zero value always says yes.
type DiskGuard struct {
	Dir     string // a folder on the database's file system
	MinFree uint64 // bytes

	next atomic.Int64 // Unix nanoseconds
	full atomic.Bool
}

// Room reports whether MinFree bytes are free.
func (g *DiskGuard) Room() bool {
	if g == nil || g.Dir == "" {
		return true
	}
	now := time.Now().UnixNano()
	next := g.next.Load()
	if now >= next && g.next.CompareAndSwap(next, now+int64(time.Second)) {
		var st syscall.Statfs_t
		if err := syscall.Statfs(g.Dir, &st); err == nil {
			g.full.Store(st.Bavail*uint64(st.Bsize) < g.MinFree)
		}
	}
	return !g.full.Load()
}
