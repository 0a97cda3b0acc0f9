package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"gpuserver/internal/gate"
)

// Waits between two tries to reach the server.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// caller speaks to the agent listener.
type caller struct {
	http  *http.Client
	base  string
	token string
}

// answerError is an answer other than 2xx and a verdict.
type answerError struct {
	status int
	text   string
}

// Error implements error.
func (e *answerError) Error() string {
	return fmt.Sprintf("the server answered %d: %s", e.status, e.text)
}

// final reports whether err is an answer that repeating cannot change.
func final(err error) bool {
	e, ok := errors.AsType[*answerError](err)
	return ok && e.status >= 400 && e.status < 500 && e.status != http.StatusTooManyRequests
}

// post sends body to path and reads the answer into out; it gives the answer's
// status and the server's clock.
func (c *caller) post(ctx context.Context, path string, body []byte, out any) (status int, clock time.Time, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, clock, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, clock, err
	}
	defer resp.Body.Close()
	clock, _ = http.ParseTime(resp.Header.Get("Date")) // the zero time: not told
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 0, clock, err
	}
	if resp.StatusCode/100 != 2 && resp.StatusCode != http.StatusForbidden {
		return resp.StatusCode, clock, &answerError{resp.StatusCode, gate.Clip(string(b), 512)}
	}
	if err := json.Unmarshal(b, out); err != nil {
		return resp.StatusCode, clock, &answerError{resp.StatusCode, "no JSON"}
	}
	return resp.StatusCode, clock, nil
}

// reporter sends heartbeats: each phase in order, and one every interval.
type reporter struct {
	caller
	agent    *agent
	log      *slog.Logger
	every    time.Duration
	woken    chan struct{} // something changed: send now
	told     chan struct{} // closed once the phase exited was told
	clockSet bool
}

func newReporter(a *agent) *reporter {
	return &reporter{
		caller: caller{http: httpClient(), base: strings.TrimSuffix(a.payload.Server, "/"), token: a.payload.Token},
		agent:  a, log: a.log,
		every: orDefault(a.payload.BeatEvery, defaultBeatEvery),
		woken: make(chan struct{}, 1), told: make(chan struct{}),
	}
}

// wake makes the reporter send now, also if it waits to try again.
func (r *reporter) wake() {
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

// run reports until ctx ends or the last phase was told. Phases that could not
// be told wait in order; a beat that failed is replaced by the next.
func (r *reporter) run(ctx context.Context) {
	defer r.http.CloseIdleConnections()
	retry := firstRetry
	for {
		wait := r.every
		beat, phase := r.agent.status.next()
		err := r.beat(ctx, beat)
		if final(err) { // what it was about is lost, what comes next may not be
			r.log.Warn("the server refuses the report", "phase", beat.Phase, "err", err)
		}
		switch {
		case phase && (err == nil || final(err)):
			retry = firstRetry
			r.agent.status.told()
			if beat.Phase == PhaseExited {
				close(r.told)
				return
			}
			if _, more := r.agent.status.next(); more {
				wait = 0
			}
		case phase:
			wait = min(retry, r.every)
			retry = min(2*retry, lastRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.woken:
		case <-time.After(wait):
		}
	}
}

// beat sends one heartbeat and carries out the orders that answer it.
func (r *reporter) beat(ctx context.Context, h Heartbeat) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	var answer struct {
		Orders
		Error string `json:"error"`
	}
	status, clock, err := r.post(ctx, "/guest/v1/heartbeat", body, &answer)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return &answerError{status, gate.Clip(answer.Error, 512)}
	}
	if !r.clockSet && !clock.IsZero() {
		r.clockSet = true
		r.agent.setClock(clock)
	}
	if answer.Interrupt {
		r.agent.interrupt("the server asks for it: " + gate.Clip(answer.Reason, 256))
	}
	return nil
}

// flush waits until the last phase was told, at most limit.
func (r *reporter) flush(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-r.told:
	case <-ctx.Done():
		r.log.Error("the server did not take the last report", "waited", limit)
	}
}
