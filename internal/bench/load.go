package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// sample is a delivery of the stand-in for GitHub, with the numbers in it that
// make another delivery of it.
type sample struct {
	Header http.Header `json:"header"`
	Body   string      `json:"body"`
	Run    int64       `json:"run"`
	Job    int64       `json:"job"`
}

// load is what the process that sends deliveries is told.
type load struct {
	URL    string `json:"url"`
	Sample sample `json:"sample"`
	Jobs   []ids  `json:"jobs"` // one delivery each
	// PerS is a fixed rate for which each delivery has a time at which it is due,
	// whether the ones before were answered or not; 0: as fast as they are
	// answered.
	PerS        int           `json:"per_s"`
	For         time.Duration `json:"for"`
	Connections int           `json:"connections"`
}

type ids struct {
	Run int64 `json:"run"`
	Job int64 `json:"job"`
}

// loaded is what it answers.
type loaded struct {
	PerS   float64   `json:"per_s"`
	Took   Quantiles `json:"took"`
	Failed int       `json:"failed"` // not answered 202
	Why    string    `json:"why"`    // of the first
	Ended  bool      `json:"ended"`  // there were too few deliveries for the time
}

// serveLoad prepares and signs all deliveries, says ready, waits for a line and
// sends them.
func serveLoad(ctx context.Context, in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	var l load
	line, err := r.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &l)
	}
	if err != nil {
		return gpuserver.Wrap(gpuserver.KindInvalid, "bench: read what to send", err)
	}
	s, err := newSender(l)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready", len(s.requests))
	if _, err := r.ReadBytes('\n'); err != nil {
		return gpuserver.Wrap(gpuserver.KindInvalid, "bench: wait for the start", err)
	}
	return json.NewEncoder(out).Encode(s.send(ctx))
}

// sender sends prepared requests over connections of its own. It is written on
// bare connections, because it shares two cores with what it measures: net/http
// would cost about as much as the service.
type sender struct {
	load
	host     string
	requests []request
	next     atomic.Int64
	start    time.Time

	mu     sync.Mutex
	took   []time.Duration
	failed int
	why    string
	last   time.Time
	ended  bool
}

// request is a delivery: the head is ready, the body is the sample's with other
// numbers, written where it is sent, as thousands of bodies would fill memory.
type request struct {
	head []byte
	ids  ids
}

func newSender(l load) (*sender, error) {
	u, err := url.Parse(l.URL)
	if err != nil {
		return nil, gpuserver.Wrap(gpuserver.KindInvalid, "bench: the address of the webhook", err)
	}
	s := &sender{load: l, host: u.Host}
	f, err := newForm(l.Sample)
	if err != nil {
		return nil, err
	}
	for i, j := range l.Jobs {
		body := f.with(j)
		h := l.Sample.Header.Clone()
		h.Set("X-GitHub-Delivery", fmt.Sprintf("%08x-0000-4000-8000-%012d", i, j.Job%1e12))
		h.Set("X-Hub-Signature-256", forgetest.Sign(webhookSecret, body))
		h.Set("Content-Length", strconv.Itoa(len(body)))
		var head bytes.Buffer
		fmt.Fprintf(&head, "POST %s HTTP/1.1\r\nHost: %s\r\n", u.Path, u.Host)
		if err := h.Write(&head); err != nil {
			return nil, gpuserver.Wrap(gpuserver.KindInternal, "bench: write the head of a delivery", err)
		}
		head.WriteString("\r\n")
		s.requests = append(s.requests, request{head.Bytes(), j})
	}
	return s, nil
}

// form is a body in which numbers of the same length are put in place.
type form struct {
	body      []byte
	runs      []int // where the run's number stands
	jobs      []int
	run, jobN int // lengths
}

func newForm(s sample) (*form, error) {
	run, job := strconv.FormatInt(s.Run, 10), strconv.FormatInt(s.Job, 10)
	f := &form{body: []byte(s.Body), runs: places(s.Body, run), jobs: places(s.Body, job), run: len(run), jobN: len(job)}
	if len(f.runs) == 0 || len(f.jobs) == 0 {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "bench: the sample of a delivery does not hold run %s and job %s", run, job)
	}
	return f, nil
}

func places(text, part string) (at []int) {
	for from := 0; ; {
		i := strings.Index(text[from:], part)
		if i < 0 {
			return at
		}
		at = append(at, from+i)
		from += i + len(part)
	}
}

// with gives the body for a job; the next call overwrites it.
func (f *form) with(j ids) []byte {
	put(f.body, f.runs, f.run, j.Run)
	put(f.body, f.jobs, f.jobN, j.Job)
	return f.body
}

func put(body []byte, at []int, n int, v int64) {
	digits := fmt.Appendf(nil, "%0*d", n, v)
	for _, i := range at {
		copy(body[i:i+n], digits)
	}
}

// send sends until the time is over or there are no more.
func (s *sender) send(ctx context.Context) loaded {
	ctx, cancel := context.WithTimeout(ctx, s.For+patience)
	defer cancel()
	s.start = time.Now()
	var wg sync.WaitGroup
	for range s.Connections {
		wg.Go(func() {
			took, err := s.connection(ctx)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.took = append(s.took, took...)
			if err != nil {
				s.fail(err.Error())
			}
		})
	}
	wg.Wait()
	seconds := s.last.Sub(s.start).Seconds()
	return loaded{PerS: round(float64(len(s.took))/seconds, 1), Took: quantiles(s.took), Failed: s.failed, Why: s.why, Ended: s.ended}
}

// fail counts; s.mu is held.
func (s *sender) fail(why string) {
	if s.failed++; s.why == "" {
		s.why = why
	}
}

// connection sends over one connection until there is no more to send.
func (s *sender) connection(ctx context.Context) (took []time.Duration, err error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.host)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	f, err := newForm(s.Sample)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	r := bufio.NewReader(c)
	for {
		q, due, ok := s.take()
		if !ok {
			return took, nil
		}
		if d := time.Until(due); d > 0 {
			time.Sleep(d)
		}
		bufs := net.Buffers{q.head, f.with(q.ids)}
		if _, err := bufs.WriteTo(c); err != nil {
			return took, err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return took, err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return took, err
		}
		end := time.Now()
		s.answered(end, resp.StatusCode, text)
		took = append(took, end.Sub(due))
	}
}

func (s *sender) answered(t time.Time, status int, text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.After(s.last) {
		s.last = t
	}
	if status != http.StatusAccepted {
		s.fail(fmt.Sprintf("%d %s", status, text))
	}
}

// take gives the next request and when it is due.
func (s *sender) take() (q request, due time.Time, ok bool) {
	now := time.Now()
	if now.Sub(s.start) >= s.For && s.PerS == 0 {
		return q, due, false
	}
	i := int(s.next.Add(1)) - 1
	if i >= len(s.requests) {
		s.mu.Lock()
		s.ended = s.PerS == 0
		s.mu.Unlock()
		return q, due, false
	}
	due = now
	if s.PerS > 0 {
		due = s.start.Add(time.Duration(i) * time.Second / time.Duration(s.PerS))
	}
	return s.requests[i], due, true
}
