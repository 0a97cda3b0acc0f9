package forgetest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"gpuserver"
)

const hookID = 466_001_234

// firstDelivery is as long as GitHub's numbers: no float64 holds them.
const firstDelivery = 184_467_440_737_095_501

// hookState is the deliveries: what waits to be sent and what was.
type hookState struct {
	client *http.Client
	queues []*hookQueue
	faults []*hookFault
	held   map[int64][]event // reordered, by job: sent after its next event
	nextID int64
	kept   []*delivery // oldest first
	byID   map[int64]*delivery
}

// hookQueue is sent by one goroutine, in order. All events of one job are in one
// queue.
type hookQueue struct {
	wait []event
	wake chan struct{}
}

// event is something to be delivered.
type event struct {
	name, action string
	guid         string // "": a new one
	account      *account
	repo         *repo
	job          int64
	parts        parts
	redelivery   bool
	drop, cut    bool
}

// delivery is an event with what came of it.
type delivery struct {
	Delivery
	event
	answerBody  string
	answerHeads http.Header
}

type hookFault struct {
	HookFault
	seen, struck int
}

func (h *hookState) init(cfg Config) {
	h.client = &http.Client{
		Timeout:       cfg.DeliveryTimeout,
		Transport:     &http.Transport{MaxIdleConnsPerHost: cfg.Senders, IdleConnTimeout: 30 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for range cfg.Senders {
		h.queues = append(h.queues, &hookQueue{wake: make(chan struct{}, 1)})
	}
	h.held, h.byID, h.nextID = map[int64][]event{}, map[int64]*delivery{}, firstDelivery
}

func (s *Server) startSenders() {
	for _, q := range s.hooks.queues {
		s.wg.Go(func() {
			for {
				select {
				case <-s.ctx.Done():
					return
				case <-q.wake:
				}
				for {
					s.mu.Lock()
					if len(q.wait) == 0 || s.ctx.Err() != nil {
						s.mu.Unlock()
						break
					}
					e := q.wait[0]
					q.wait[0] = event{}
					q.wait = q.wait[1:]
					url := s.set.webhookURL
					s.mu.Unlock()
					s.deliver(e, url)
				}
			}
		})
	}
}

// emitJob tells of a job's change; s.mu is held.
func (s *Server) emitJob(j *job, action string) {
	p := j.attempt.run.repo
	s.emit(event{name: "workflow_job", action: action, repo: p, account: p.owner, job: j.id, parts: s.jobPayload(j, action)})
}

// emit puts an event in its queue, unless a fault or a missing subscription says
// otherwise; s.mu is held.
func (s *Server) emit(e event) {
	subscribed := e.name == "ping" || e.name == "installation" || slices.Contains(s.set.events, e.name)
	if !subscribed || (e.account != nil && e.account.installID == 0) {
		return
	}
	if e.guid == "" {
		e.guid = newGUID()
	}
	held := s.hooks.held[e.job]
	delete(s.hooks.held, e.job)
	s.emitFaulty(e)
	for _, h := range held {
		s.enqueue(h)
	}
}

func (s *Server) emitFaulty(e event) {
	f := s.hookFault(e)
	if f == nil {
		s.enqueue(e)
		return
	}
	s.meter.stats.Faults["hook "+string(f.Kind)]++
	switch f.Kind {
	case HookLose:
	case HookDrop:
		e.drop = true
		s.enqueue(e)
	case HookCut:
		e.cut = true
		s.enqueue(e)
	case HookDuplicate:
		s.enqueue(e)
		s.enqueue(e)
	case HookReorder:
		s.hooks.held[e.job] = append(s.hooks.held[e.job], e)
	case HookDelay:
		s.later(f.Delay, e)
	}
}

// later enqueues e after d; a closing server forgets it.
func (s *Server) later(d time.Duration, e event) {
	if s.ctx.Err() != nil {
		return
	}
	s.wg.Go(func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-s.ctx.Done():
		case <-t.C:
			s.mu.Lock()
			defer s.mu.Unlock()
			s.enqueue(e)
		}
	})
}

// hookFault finds the fault that strikes e; s.mu is held.
func (s *Server) hookFault(e event) *hookFault {
	for _, f := range s.hooks.faults {
		if (f.Event != "" && f.Event != e.name) || (f.Action != "" && f.Action != e.action) || (f.Count > 0 && f.struck >= f.Count) {
			continue
		}
		if f.seen++; f.seen <= f.Skip || !s.chance(f.Probability) {
			continue
		}
		f.struck++
		return f
	}
	return nil
}

// SetHookFaults replaces all faults of deliveries. Events that a reorder fault
// holds back are sent.
func (s *Server) SetHookFaults(faults []HookFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks.faults = nil
	for _, f := range faults {
		s.hooks.faults = append(s.hooks.faults, &hookFault{HookFault: f})
	}
	for job, held := range s.hooks.held {
		delete(s.hooks.held, job)
		for _, e := range held {
			s.enqueue(e)
		}
	}
}

// LoseNextWebhook makes GitHub never create the next event of that name and
// action (either may be "").
func (s *Server) LoseNextWebhook(name, action string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks.faults = append(s.hooks.faults, &hookFault{HookFault: HookFault{Kind: HookLose, Event: name, Action: action, Count: 1}})
}

func (s *Server) enqueue(e event) {
	if s.set.webhookURL == "" || e.drop {
		s.record(e, outcome{code: http.StatusBadGateway, status: "failed to connect to host"}, now(), 0)
		return
	}
	q := s.hooks.queues[int(e.job)%len(s.hooks.queues)]
	q.wait = append(q.wait, e)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// outcome is what came of an attempt to deliver.
type outcome struct {
	code    int
	status  string
	headers http.Header
	body    string
}

// deliver sends one event. GitHub does not repeat it, whatever comes of it.
func (s *Server) deliver(e event, url string) {
	start := now()
	body := e.parts.join()
	out := s.post(url, s.hookHeaders(e, body), body, e.cut)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record(e, out, start, now().Sub(start))
}

func (s *Server) post(url string, h http.Header, body []byte, cut bool) outcome {
	req, err := http.NewRequestWithContext(s.ctx, "POST", url, bytes.NewReader(body))
	if err != nil {
		return outcome{code: http.StatusBadGateway, status: "failed to connect to host"}
	}
	req.Header = h
	resp, err := s.hooks.client.Do(req)
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return outcome{code: http.StatusGatewayTimeout, status: "timed out"}
		}
		return outcome{code: http.StatusBadGateway, status: "failed to connect to host"}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil || cut {
		return outcome{code: http.StatusGatewayTimeout, status: "timed out"}
	}
	out := outcome{code: resp.StatusCode, status: "OK", headers: resp.Header, body: string(text)}
	if resp.StatusCode >= 300 {
		out.status = fmt.Sprintf("Invalid HTTP Response: %d", resp.StatusCode)
	}
	return out
}

// hookHeaders are GitHub's headers of a delivery.
// Source: GitHub docs, "Webhook events and payloads", delivery headers.
func (s *Server) hookHeaders(e event, body []byte) http.Header {
	target := s.cfg.AppID
	switch {
	case s.cfg.HookTarget == "organization" && e.account != nil:
		target = e.account.id
	case s.cfg.HookTarget == "repository" && e.repo != nil:
		target = e.repo.id
	}
	h := http.Header{}
	h.Set("Accept", "*/*")
	h.Set("Content-Type", "application/json")
	h.Set("User-Agent", "GitHub-Hookshot/forgetest")
	h.Set("X-GitHub-Delivery", e.guid)
	h.Set("X-GitHub-Event", e.name)
	h.Set("X-GitHub-Hook-ID", strconv.Itoa(hookID))
	h.Set("X-GitHub-Hook-Installation-Target-ID", strconv.FormatInt(target, 10))
	h.Set("X-GitHub-Hook-Installation-Target-Type", s.cfg.HookTarget)
	h.Set("X-Hub-Signature-256", Sign(s.cfg.WebhookSecret, body))
	return h
}

// Sign gives the value of X-Hub-Signature-256 for a body.
func Sign(secret string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

func newGUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// record keeps what came of a delivery; s.mu is held.
func (s *Server) record(e event, out outcome, start time.Time, took time.Duration) {
	s.hooks.nextID++
	d := &delivery{event: e, answerBody: out.body, answerHeads: out.headers, Delivery: Delivery{
		ID: s.hooks.nextID, GUID: e.guid, Event: e.name, Action: e.action, Job: e.job, DeliveredAt: start,
		Redelivery: e.redelivery, StatusCode: out.code, Status: out.status, Seconds: took.Seconds(),
	}}
	s.hooks.kept = append(s.hooks.kept, d)
	s.hooks.byID[d.ID] = d
	for len(s.hooks.kept) > s.cfg.Retention.Deliveries {
		delete(s.hooks.byID, s.hooks.kept[0].ID)
		s.hooks.kept[0] = nil
		s.hooks.kept = s.hooks.kept[1:]
	}
	s.meter.stats.Deliveries++
	if out.code >= 300 {
		s.meter.stats.Failed++
		s.log.Debug("delivery failed", "event", e.name, "action", e.action, "job", e.job, "status", out.code)
	}
}

// Deliveries lists the recorded deliveries, oldest first.
func (s *Server) Deliveries() []Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Delivery, 0, len(s.hooks.kept))
	for _, d := range s.hooks.kept {
		out = append(out, d.Delivery)
	}
	return out
}

// Emit delivers a made-up event, signed like any other.
func (s *Server) Emit(m Emission) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := event{name: m.Event, guid: newGUID(), parts: parts{m.Payload}}
	var head struct {
		Action string `json:"action"`
	}
	if json.Unmarshal(m.Payload, &head) == nil {
		e.action = head.Action
	}
	if m.Repo != "" {
		p, err := s.repo(m.Repo)
		if err != nil {
			return err
		}
		e.repo, e.account = p, p.owner
	}
	s.enqueue(e)
	return nil
}

// EmitJob delivers a job's present state again under an action of the caller's
// choice: a replay, a late or a wrong event.
func (s *Server) EmitJob(id int64, action string) error {
	return s.withJob(id, func(j *job) error {
		s.emitJob(j, action)
		return nil
	})
}

// Ping sends the event that GitHub sends when a hook is made.
func (s *Server) Ping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.emit(event{name: "ping", parts: s.pingPayload()})
}

// redeliver repeats a recorded delivery; s.mu is held.
func (s *Server) redeliver(d *delivery) {
	e := d.event
	e.redelivery, e.drop, e.cut = true, false, false
	s.emitFaulty(e)
}

// Redeliver repeats a recorded delivery, as an operator does on GitHub's page.
func (s *Server) Redeliver(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.hooks.byID[id]
	if d == nil {
		return gpuserver.Errorf(gpuserver.KindNotFound, "delivery %d does not exist", id)
	}
	s.redeliver(d)
	return nil
}
