package guest

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// outputBuffer is how much of each stream is kept while the server is away; the
// command waits when it is full.
const outputBuffer = 4 << 20

// runCommand runs the payload's command, its output streamed to the server.
func (a *agent) runCommand(ctx context.Context) jobExit {
	c := a.payload.Command
	env := a.environment()
	for name, value := range c.Env {
		env[name] = value
	}
	home := a.path("/")
	if acc, err := lookupAccount(a.RunnerUser); err == nil && !a.Unprivileged {
		home = acc.home
	}
	cmd := a.command(stepOOMScore, home, c.Args, env)
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var streams streamGroup
	cmd.Stdout, cmd.Stderr = streams.open(streamCtx, a, "stdout"), streams.open(streamCtx, a, "stderr")
	err := streams.err
	if err == nil {
		err = cmd.Start()
	}
	streams.closeWriters()
	if err != nil {
		streams.wait(a.OutputPatience, cancel)
		a.log.Error("cannot start the command", "err", err)
		return jobExit{status: startFailed}
	}
	a.status.reached(PhaseRunner)
	a.report.wake()
	exit := a.await(ctx, cmd, c.Timeout)
	a.killJob(cmd.Process.Pid)
	streams.wait(a.OutputPatience, cancel)
	return exit
}

// streamGroup is the two streams of a command.
type streamGroup struct {
	readers []*os.File
	writers []*os.File
	work    sync.WaitGroup
	err     error
}

// open makes a pipe whose other end is sent to the server as the named stream.
func (g *streamGroup) open(ctx context.Context, a *agent, name string) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		g.err = err
		return nil
	}
	g.readers, g.writers = append(g.readers, r), append(g.writers, w)
	s := &stream{agent: a, name: name}
	s.changed = sync.NewCond(&s.mu)
	g.work.Go(func() { s.fill(r) })
	g.work.Go(func() { s.send(ctx) })
	return w
}

// closeWriters closes our copies of the pipes' ends, so that the command's are
// the last.
func (g *streamGroup) closeWriters() {
	for _, w := range g.writers {
		w.Close()
	}
}

// wait waits until everything was sent. After patience it gives up: what was not
// sent is lost, and so is what somebody writes who holds a pipe still open, such as
// a service that the command started outside of its slice.
func (g *streamGroup) wait(patience time.Duration, cancel func()) {
	t := time.AfterFunc(patience, func() {
		cancel()
		for _, r := range g.readers {
			r.Close()
		}
	})
	defer t.Stop()
	g.work.Wait()
}

// stream is one stream of output on its way.
type stream struct {
	agent *agent
	name  string

	mu      sync.Mutex
	changed *sync.Cond
	buffer  []byte // not yet taken by the server
	offset  int64  // of buffer's first byte
	eof     bool
	lost    bool // nobody takes it any more: read on, so that the command does not block
}

// fill reads the pipe to its end.
func (s *stream) fill(r io.ReadCloser) {
	defer r.Close()
	piece := make([]byte, 32<<10)
	for {
		n, err := r.Read(piece)
		s.mu.Lock()
		for len(s.buffer) >= outputBuffer && !s.lost {
			s.changed.Wait()
		}
		if !s.lost {
			s.buffer = append(s.buffer, piece[:n]...)
		}
		s.eof = err != nil
		s.changed.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// send posts the stream piece by piece until its end, or ctx's.
func (s *stream) send(ctx context.Context) {
	defer s.giveUp()
	retry := firstRetry
	for {
		piece, offset := s.front()
		if len(piece) == 0 {
			return
		}
		var answer struct {
			Error string `json:"error"`
		}
		status, _, err := s.agent.report.post(ctx, fmt.Sprintf("/guest/v1/output/%s?offset=%d", s.name, offset), piece, &answer)
		if err == nil && status != 200 {
			err = &answerError{status, answer.Error}
		}
		switch {
		case err == nil:
			retry = firstRetry
			s.taken(len(piece))
			continue
		case final(err):
			s.agent.log.Error("the server does not take the output", "stream", s.name, "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
			retry = min(2*retry, lastRetry)
		}
	}
}

// front gives the next piece, empty at the stream's end.
func (s *stream) front() ([]byte, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.buffer) == 0 && !s.eof {
		s.changed.Wait()
	}
	return append([]byte(nil), s.buffer[:min(len(s.buffer), maxOutput)]...), s.offset
}

func (s *stream) taken(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buffer = s.buffer[n:]
	s.offset += int64(n)
	s.changed.Broadcast()
}

// giveUp lets fill go on without keeping anything.
func (s *stream) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost, s.buffer = true, nil
	s.changed.Broadcast()
}
