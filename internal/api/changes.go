package api

import (
	"sync"

	"gpuserver/internal/store"
)

// hub hands the store's changes on to clients that listen. The store's writer
// calls it, so it never waits: who does not keep up is dropped.
type hub struct {
	mu      sync.Mutex
	clients map[chan []store.Change]struct{}
	closed  bool
}

const (
	maxListeners = 256 // clients at once
	maxBehind    = 64  // commits that a client may be behind
)

func newHub() *hub { return &hub{clients: map[chan []store.Change]struct{}{}} }

// tell is given to store.DB.Watch.
func (h *hub) tell(cs []store.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.clients {
		select {
		case c <- cs:
		default:
			h.drop(c)
		}
	}
}

// listen gives a channel of changes. It is closed when the client is dropped or
// the server shuts down; ok is false if there are too many already.
func (h *hub) listen() (c chan []store.Change, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.clients) >= maxListeners {
		return nil, false
	}
	c = make(chan []store.Change, maxBehind)
	h.clients[c] = struct{}{}
	return c, true
}

func (h *hub) leave(c chan []store.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(c)
}

// drop is called with mu held; dropping twice is harmless.
func (h *hub) drop(c chan []store.Change) {
	if _, ok := h.clients[c]; ok {
		delete(h.clients, c)
		close(c)
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for c := range h.clients {
		h.drop(c)
	}
}
