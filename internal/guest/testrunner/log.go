package testrunner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"gpuserver/internal/forge/forgetest/runnerclient"
)

// Bounds of a job's log.
const (
	logBuffer = 4 << 20               // kept while the server is away; what comes then is dropped
	maxLine   = 64 << 10              // longer lines are broken
	logDelay  = 50 * time.Millisecond // lines that come together travel together
)

// liveLog sends a job's log while it is written. Every line gets its time, as
// on GitHub.
type liveLog struct {
	mu      sync.Mutex
	line    []byte // not ended yet
	buffer  []byte // not sent yet
	dropped int
	written chan struct{}
}

func newLiveLog() *liveLog { return &liveLog{written: make(chan struct{}, 1)} }

// Write implements io.Writer; it never fails.
func (l *liveLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(b)
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			l.line = append(l.line, b...)
			break
		}
		l.line = append(l.line, b[:end]...)
		b = b[end+1:]
		l.endLine()
	}
	for len(l.line) > maxLine {
		l.endLine()
	}
	return n, nil
}

// printf writes one line.
func (l *liveLog) printf(format string, args ...any) {
	fmt.Fprintln(l, strings.TrimSuffix(fmt.Sprintf(format, args...), "\n"))
}

// endStep ends a line that a step left open.
func (l *liveLog) endStep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.line) > 0 {
		l.endLine()
	}
}

// endLine moves the line to the buffer. l.mu is held.
func (l *liveLog) endLine() {
	line := bytes.TrimSuffix(l.line, []byte("\r"))
	rest := []byte(nil)
	if len(line) > maxLine {
		line, rest = line[:maxLine], append(rest, line[maxLine:]...)
	}
	if len(l.buffer) > logBuffer {
		l.dropped++
	} else {
		l.buffer = append(l.buffer, time.Now().UTC().Format("2006-01-02T15:04:05.0000000Z ")...)
		l.buffer = append(l.buffer, line...)
		l.buffer = append(l.buffer, '\n')
	}
	l.line = append(l.line[:0], rest...)
	select {
	case l.written <- struct{}{}:
	default:
	}
}

// send posts the log until done is closed and everything was sent, or ctx ends.
func (l *liveLog) send(ctx context.Context, c *runnerclient.Client, job int64, done <-chan struct{}) {
	var offset int64
	for last := false; ; {
		piece := l.take(last)
		if len(piece) > 0 {
			err := retry(ctx, func() error {
				next, err := c.Log(ctx, job, offset, piece)
				piece, offset = piece[next-offset:], next
				return err
			})
			if err != nil && (ctx.Err() != nil || errors.Is(err, runnerclient.ErrGone)) {
				return
			}
			continue
		}
		if last {
			return
		}
		select {
		case <-l.written:
			time.Sleep(logDelay) // gathers lines; nothing waits for it
		case <-done:
			last = true
		case <-ctx.Done():
			return
		}
	}
}

// take gives what is to be sent; at the end with a line that did not end.
func (l *liveLog) take(last bool) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last && len(l.line) > 0 {
		l.endLine()
	}
	if last && l.dropped > 0 {
		l.buffer = fmt.Appendf(l.buffer, "##[warning]%d lines were dropped while the server was away\n", l.dropped)
		l.dropped = 0
	}
	piece := l.buffer
	l.buffer = nil
	return piece
}
