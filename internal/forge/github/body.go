package github

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"

	"golang.org/x/sync/semaphore"

	"gpuserver"
)

// MaxBody is GitHub's own cap on a delivery's payload, in bytes.
// Source: docs.github.com, "Webhook events and payloads", payload cap.
const MaxBody = 25 << 20

const (
	firstPart = 64 << 10 // what is announced is not believed beyond
	largePart = 1 << 20  // a body beyond this is large, and grows in steps of it
)

// largeBodies lets one body grow large at a time, in the whole process: a body
// has to be held until its signature is checked, so whoever can reach the hook
// could else fill the memory. A job's delivery has some 15 KB.
var largeBodies = semaphore.NewWeighted(1)

// ReadBody reads a request's body of at most limit bytes (0: MaxBody). A longer
// one is refused as soon as that is known, without keeping it: the error is
// KindCapacity with *http.MaxBytesError as its cause, to be answered with 413.
// A body that was cut is KindUnavailable.
func ReadBody(r *http.Request, limit int64) ([]byte, error) {
	if limit <= 0 {
		limit = MaxBody
	}
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	b := body{src: io.LimitReader(r.Body, limit+1), limit: limit}
	// One byte of room more than announced, so that the end is seen at once.
	err := b.fill(int(min(max(r.ContentLength, 511), firstPart)) + 1)
	for err == nil && b.size <= largePart {
		err = b.fill(min(b.size, largePart))
	}
	if err == nil {
		err = b.grow(r.Context())
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(b.parts) == 1 {
		return b.parts[0], nil
	}
	return slices.Concat(b.parts...), nil
}

// body is a body that is being read, in parts, so that it is not copied while
// it grows.
type body struct {
	src   io.Reader
	limit int64
	parts [][]byte
	size  int
}

// grow reads the rest of a large body.
func (b *body) grow(ctx context.Context) error {
	if err := largeBodies.Acquire(ctx, 1); err != nil {
		return cutBody(err)
	}
	defer largeBodies.Release(1)
	for {
		if err := b.fill(largePart); err != nil {
			return err
		}
	}
}

// fill reads one more part. At the body's end it gives io.EOF.
func (b *body) fill(room int) error {
	part := make([]byte, room)
	n, err := 0, error(nil)
	for n < room && err == nil { // not io.ReadFull, which hides a cut
		var m int
		m, err = b.src.Read(part[n:])
		n += m
	}
	b.parts = append(b.parts, part[:n])
	b.size += n
	switch {
	case int64(b.size) > b.limit:
		return tooLarge(b.limit)
	case err == nil || errors.Is(err, io.EOF): // a cut is io.ErrUnexpectedEOF
		return err
	default:
		return cutBody(err)
	}
}

func cutBody(err error) error {
	return &gpuserver.Error{
		Kind: gpuserver.KindUnavailable, Op: "read delivery",
		Public: "the delivery's body ended early", Err: err,
	}
}

func tooLarge(limit int64) error {
	return &gpuserver.Error{
		Kind: gpuserver.KindCapacity, Op: "read delivery",
		Public: "the delivery's body is longer than " + strconv.FormatInt(limit, 10) + " bytes",
		Err:    &http.MaxBytesError{Limit: limit},
	}
}
