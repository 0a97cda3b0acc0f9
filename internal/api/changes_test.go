package api

import (
	"testing"

	"gpuserver/internal/store"
)

// TestSlowListenersAreDropped: the store's writer never waits for a client.
func TestSlowListenersAreDropped(t *testing.T) {
	h := newHub()
	slow, ok := h.listen()
	if !ok {
		t.Fatal("refused")
	}
	quick, _ := h.listen()
	for i := range maxBehind + 1 {
		h.tell([]store.Change{{Job: 1}})
		if _, ok := <-quick; !ok {
			t.Fatalf("the quick one was dropped at %d", i)
		}
	}
	n := 0
	for range slow {
		n++
	}
	if n != maxBehind {
		t.Errorf("the slow one got %d changes before it was dropped", n)
	}
	h.leave(slow)
	h.leave(quick)
	if len(h.clients) != 0 {
		t.Errorf("%d clients are left", len(h.clients))
	}
}

func TestListenersAreBounded(t *testing.T) {
	h := newHub()
	for range maxListeners {
		if _, ok := h.listen(); !ok {
			t.Fatal("refused too early")
		}
	}
	if _, ok := h.listen(); ok {
		t.Error("one too many")
	}
	h.close()
	if _, ok := h.listen(); ok {
		t.Error("after close")
	}
}
