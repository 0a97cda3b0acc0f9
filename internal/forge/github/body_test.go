package github

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"gpuserver"
)

// endless gives n bytes, and counts how many were taken.
type endless struct{ left, taken int64 }

func (e *endless) Read(b []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), e.left)
	e.left -= n
	e.taken += n
	return int(n), nil
}

func TestReadBody(t *testing.T) {
	for _, n := range []int{0, 1, 510, 511, 512, 70_000, 1 << 20, 1<<20 + 1, 3 << 20} {
		for _, announced := range []int64{-1, int64(n)} {
			want := bytes.Repeat([]byte{'x'}, n)
			r := httptest.NewRequest("POST", "/", bytes.NewReader(want))
			r.ContentLength = announced
			if got, err := ReadBody(r, 3<<20); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, announced %d: got %d, %v", n, announced, len(got), err)
			}
		}
	}
	for name, c := range map[string]struct {
		announced, most int64
	}{"announced": {100 << 20, 0}, "not announced": {-1, 1<<20 + 1}, "announced too short": {5, 1<<20 + 1}} {
		src := &endless{left: 100 << 20}
		r := httptest.NewRequest("POST", "/", src)
		r.ContentLength = c.announced
		_, err := ReadBody(r, 1<<20)
		if _, ok := errors.AsType[*http.MaxBytesError](err); !ok || gpuserver.KindOf(err) != gpuserver.KindCapacity {
			t.Errorf("%s: got %v", name, err)
		}
		if src.taken > c.most {
			t.Errorf("%s: %d bytes were read", name, src.taken)
		}
	}
	for _, n := range []int64{1, firstPart + 1, 2 * largePart} {
		r := httptest.NewRequest("POST", "/", io.MultiReader(&endless{left: n}, failing{io.ErrUnexpectedEOF}))
		if _, err := ReadBody(r, 0); gpuserver.KindOf(err) != gpuserver.KindUnavailable {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

// TestReadBodyMemory sends 100 MB without saying so and looks at what that
// allocates in all.
func TestReadBodyMemory(t *testing.T) {
	const limit = 1 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := httptest.NewRequest("POST", "/", &endless{left: 100 << 20})
	if _, err := ReadBody(r, limit); err == nil {
		t.Fatal("100 MB were accepted")
	}
	runtime.ReadMemStats(&after)
	if grew := after.TotalAlloc - before.TotalAlloc; grew > 10*limit {
		t.Errorf("%d bytes were allocated for a body of which at most %d are kept", grew, limit)
	}
}

// TestLargeBodies shows that one body at a time may be large, that small ones
// pass beside it, and that who gives up waiting is told so.
func TestLargeBodies(t *testing.T) {
	pr, pw := io.Pipe()
	t.Cleanup(func() { _ = pw.Close() }) // it never fails
	first := make(chan error, 1)
	go func() {
		_, err := ReadBody(httptest.NewRequest("POST", "/", pr), 0)
		first <- err
	}()
	if _, err := pw.Write(make([]byte, 4*largePart)); err != nil { // it is read, so the place is taken
		t.Fatal(err)
	}
	if _, err := ReadBody(httptest.NewRequest("POST", "/", &endless{left: largePart / 2}), 0); err != nil {
		t.Errorf("a small one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	large := httptest.NewRequest("POST", "/", &endless{left: 4 * largePart}).WithContext(ctx)
	if _, err := ReadBody(large, 0); gpuserver.KindOf(err) != gpuserver.KindUnavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("another large one: %v", err)
	}
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Errorf("the first: %v", err)
	}
	large = httptest.NewRequest("POST", "/", &endless{left: 4 * largePart})
	if body, err := ReadBody(large, 0); err != nil || len(body) != 4*largePart {
		t.Errorf("after it: %d bytes, %v", len(body), err)
	}
}
