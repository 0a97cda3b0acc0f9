package guest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"gpuserver"
	"gpuserver/internal/gate"
)

// Bounds of what a guest may send.
const (
	maxHeartbeat  = 16 << 10
	maxJobStarted = 4 << 10
	maxOutput     = 64 << 10
)

// Rates per VM, and of failed logins per address, in requests a second with
// their bursts. A guest that keeps to the protocol stays far below.
const (
	beatRate, beatBurst     = 5, 30
	outputRate, outputBurst = 100, 400
	failRate, failBurst     = 2, 20
	limitersKept            = 10_000
)

// handler answers the agents.
type handler struct {
	service Service
	log     *slog.Logger
	beats   *limiters[gpuserver.VMID]
	outputs *limiters[gpuserver.VMID]
	fails   *limiters[string]
}

// Handler answers the agents' requests (see the protocol's types) by way of s.
// Every answer is JSON; an error's is {"error": text} with 400, 401 (no such
// token), 403, 404, 409, 413, 429 or 503. Neither tokens nor bodies are logged.
func Handler(s Service, log *slog.Logger) http.Handler {
	h := &handler{
		service: s, log: log,
		beats:   newLimiters[gpuserver.VMID](beatRate, beatBurst),
		outputs: newLimiters[gpuserver.VMID](outputRate, outputBurst),
		fails:   newLimiters[string](failRate, failBurst),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /guest/v1/heartbeat", h.authenticated(h.beats, maxHeartbeat, h.heartbeat))
	mux.HandleFunc("POST /guest/v1/job-started", h.authenticated(h.beats, maxJobStarted, h.jobStarted))
	mux.HandleFunc("POST /guest/v1/output/{stream}", h.authenticated(h.outputs, maxOutput, h.output))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, http.StatusNotFound, "there is nothing here; the agent's interface is under /guest/v1/")
	})
	return mux
}

// endpoint answers one authenticated request whose body was read.
type endpoint func(ctx context.Context, vm gpuserver.VMID, r *http.Request, body []byte) (any, error)

// authenticated wraps e in what every request passes: token, rate, size.
func (h *handler) authenticated(limit *limiters[gpuserver.VMID], maxBody int64, e endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		vm, ok := h.login(w, r)
		if !ok {
			return
		}
		if !limit.allow(vm) {
			w.Header().Set("Retry-After", "1")
			writeError(w, http.StatusTooManyRequests, "this VM sends too many requests; wait a second")
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			writeError(w, http.StatusRequestEntityTooLarge, "the body has more than "+strconv.FormatInt(maxBody, 10)+" bytes")
			return
		}
		if err != nil {
			writeError(w, http.StatusBadRequest, "the body ended early")
			return
		}
		answer, err := e(r.Context(), vm, r, body)
		if err != nil {
			h.fail(w, r, vm, err)
			return
		}
		if v, ok := answer.(Verdict); ok && !v.Allowed {
			writeJSON(w, http.StatusForbidden, v)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// login finds the VM that the request speaks for, or answers it.
func (h *handler) login(w http.ResponseWriter, r *http.Request) (gpuserver.VMID, bool) {
	address, _, _ := net.SplitHostPort(r.RemoteAddr)
	if h.fails.exhausted(address) {
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusTooManyRequests, "too many requests with a wrong token from this address")
		return 0, false
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	var err error
	var vm gpuserver.VMID
	if ok && token != "" && len(token) <= 512 {
		vm, err = h.service.Authenticate(r.Context(), token)
		if err == nil {
			return vm, true
		}
	}
	if kind := gpuserver.KindOf(err); err != nil && kind != gpuserver.KindRefused && kind != gpuserver.KindNotFound {
		h.fail(w, r, 0, err)
		return 0, false
	}
	h.fails.allow(address)
	w.Header().Set("WWW-Authenticate", "Bearer")
	writeError(w, http.StatusUnauthorized, "the token speaks for no VM, or its VM is gone")
	return 0, false
}

func (h *handler) heartbeat(ctx context.Context, vm gpuserver.VMID, _ *http.Request, body []byte) (any, error) {
	var b Heartbeat
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, badBody(err)
	}
	b.bound()
	return h.service.Heartbeat(ctx, vm, b)
}

func (h *handler) jobStarted(ctx context.Context, vm gpuserver.VMID, _ *http.Request, body []byte) (any, error) {
	var j JobStarted
	if err := json.Unmarshal(body, &j); err != nil {
		return nil, badBody(err)
	}
	j.Repo, j.Job = gate.Clip(j.Repo, 256), gate.Clip(j.Job, 256)
	return h.service.JobStarted(ctx, vm, j)
}

func (h *handler) output(ctx context.Context, vm gpuserver.VMID, r *http.Request, body []byte) (any, error) {
	stream := r.PathValue("stream")
	if stream != "stdout" && stream != "stderr" {
		return nil, gpuserver.Errorf(gpuserver.KindNotFound, "there is no stream %q, only stdout and stderr", gate.Clip(stream, 32))
	}
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil || offset < 0 {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "offset is not a number of bytes")
	}
	return struct{}{}, h.service.Output(ctx, vm, stream, offset, body)
}

func badBody(err error) error {
	return &gpuserver.Error{Kind: gpuserver.KindInvalid, Op: "guest: body", Public: "the body is not the JSON object that was expected", Err: err}
}

// fail answers an error of the service; the log gets its cause, the guest only
// its public sentence.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, vm gpuserver.VMID, err error) {
	status := statusOf(gpuserver.KindOf(err))
	if status >= http.StatusInternalServerError && !errors.Is(err, context.Canceled) {
		h.log.LogAttrs(r.Context(), slog.LevelWarn, "guest request failed",
			slog.Int64("vm", int64(vm)), slog.String("path", gate.Clip(r.URL.Path, 64)), slog.Any("err", err))
	}
	writeError(w, status, gpuserver.PublicText(err))
}

// statusOf gives the HTTP status of a kind of error.
func statusOf(k gpuserver.Kind) int {
	switch k {
	case gpuserver.KindInvalid:
		return http.StatusBadRequest
	case gpuserver.KindNotFound:
		return http.StatusNotFound
	case gpuserver.KindConflict:
		return http.StatusConflict
	case gpuserver.KindRefused:
		return http.StatusForbidden
	case gpuserver.KindLimited:
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}

func writeError(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the guest went away: nothing to do about it
}

// limiters holds one token bucket for each of the keys seen lately.
type limiters[K comparable] struct {
	cache *lru.Cache[K, *rate.Limiter]
	limit rate.Limit
	burst int
}

func newLimiters[K comparable](limit rate.Limit, burst int) *limiters[K] {
	cache, err := lru.New[K, *rate.Limiter](limitersKept)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return &limiters[K]{cache: cache, limit: limit, burst: burst}
}

func (l *limiters[K]) of(k K) *rate.Limiter {
	fresh := rate.NewLimiter(l.limit, l.burst)
	if old, ok, _ := l.cache.PeekOrAdd(k, fresh); ok {
		l.cache.Get(k) // most recently used now
		return old
	}
	return fresh
}

// allow takes one from k's bucket, and reports whether there was one.
func (l *limiters[K]) allow(k K) bool { return l.of(k).Allow() }

// exhausted reports whether k's bucket is empty, without taking from it.
func (l *limiters[K]) exhausted(k K) bool {
	old, ok := l.cache.Get(k)
	return ok && old.Tokens() < 1
}
