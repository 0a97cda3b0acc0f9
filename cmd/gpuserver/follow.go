package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
)

// commandRun is a command of gpuserver run under way.
type commandRun struct {
	client   *api.Client
	id       gpuserver.JobID
	out      map[string]io.Writer // by stream
	progress io.Writer            // nil: nobody is told where the command is

	interrupted atomic.Bool // by the user
	unread      atomic.Bool // nobody reads our output any more
}

// errPipe says that output could not be written.
var errPipe = errors.New("nobody reads the output")

const (
	outputWait  = 20 * time.Second       // one question for more output
	askEvery    = 500 * time.Millisecond // where the command is
	awayLimit   = 2 * time.Minute        // a server that restarts takes the job up again
	cancelLimit = time.Minute            // for a cancelled command to be over
	drainLimit  = 20 * time.Second       // for the rest of the output once it is over
)

// follow copies output until the command is over, and says how it ended. When
// ctx ends the command is cancelled, and followed until that is done.
func (r *commandRun) follow(ctx context.Context) (api.RunStatus, error) {
	// Work goes on after ctx: the end of a cancelled command is wanted too.
	live, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var canceller, copies sync.WaitGroup
	defer func() {
		stop(nil)
		canceller.Wait()
	}()
	canceller.Go(func() {
		select {
		case <-ctx.Done():
			r.interrupted.Store(true)
			r.cancel(live, stop)
		case <-live.Done():
		}
	})
	ended := make(chan struct{})
	for stream, w := range r.out {
		copies.Go(func() {
			if err := r.copy(live, stream, w); errors.Is(err, errPipe) {
				r.unread.Store(true)
				canceller.Go(func() { r.cancel(live, stop) })
			}
		})
	}
	go func() { copies.Wait(); close(ended) }()
	s, err := r.await(live, ended)
	if err == nil {
		drain := time.AfterFunc(drainLimit, func() { stop(nil) })
		<-ended
		drain.Stop()
	} else {
		stop(err)
		<-ended
	}
	return s, err
}

// cancel asks for the command's end and gives up waiting for it in the end.
func (r *commandRun) cancel(ctx context.Context, stop context.CancelCauseFunc) {
	r.tell("cancelling")
	asking, done := context.WithTimeout(ctx, callLimit)
	defer done()
	if err := r.client.CancelRun(asking, r.id); err != nil {
		stop(fmt.Errorf("cancel job %d: %w", r.id, err))
		return
	}
	select {
	case <-time.After(cancelLimit):
		stop(fmt.Errorf("job %d was cancelled and is not over yet", r.id))
	case <-ctx.Done():
	}
}

// copy writes one stream as it comes, until its end.
func (r *commandRun) copy(ctx context.Context, stream string, w io.Writer) error {
	var from int64
	for {
		o, err := persist(ctx, r, func() (api.Output, error) { return r.client.Output(ctx, r.id, stream, from, outputWait) })
		if err != nil {
			return err
		}
		if _, err := w.Write(o.Data); err != nil {
			return errPipe
		}
		from = o.Next
		if o.Done {
			return nil
		}
	}
}

// await asks where the command is until it is over, at once when its output
// ended, and tells what changed.
func (r *commandRun) await(ctx context.Context, ended <-chan struct{}) (api.RunStatus, error) {
	last := ""
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		s, err := persist(ctx, r, func() (api.RunStatus, error) { return r.client.Run(ctx, r.id) })
		if err != nil || s.Done {
			return s, err
		}
		if s.Sentence != last {
			last = s.Sentence
			r.tell(last)
		}
		select {
		case <-tick.C:
		case <-ended:
			ended = nil // once
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
}

// persist repeats what failed because the server is away, as one that is
// restarted takes its jobs up again.
func persist[T any](ctx context.Context, r *commandRun, fn func() (T, error)) (T, error) {
	var since time.Time
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		v, err := fn()
		if gpuserver.KindOf(err) != gpuserver.KindUnavailable && gpuserver.KindOf(err) != gpuserver.KindLimited {
			return v, err
		}
		if since.IsZero() {
			since = time.Now()
			r.tell("the server is away; waiting for it")
		}
		if time.Since(since) > awayLimit {
			return v, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
	}
}

func (r *commandRun) tell(text string) {
	if r.progress != nil {
		_, _ = fmt.Fprintf(r.progress, "gpuserver: job %d: %s\n", r.id, printable(text))
	}
}
