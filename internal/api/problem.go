package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"gpuserver"
)

// Problem is the body of every answer that is not a success.
// Source: RFC 9457; kind is our own member.
type Problem struct {
	Title  string              `json:"title" doc:"The status in words."`
	Status int                 `json:"status" doc:"The HTTP status."`
	Detail string              `json:"detail" doc:"What was wrong and what to do, in a sentence."`
	Kind   gpuserver.Kind      `json:"kind" doc:"Whose fault it is: invalid, not_found, conflict, refused, capacity, unavailable, limited, guest or internal."`
	Errors []*huma.ErrorDetail `json:"errors,omitempty" doc:"The fields that were wrong."`
}

// Error implements error.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

// huma makes its own answers (a body that is not JSON, a field out of range)
// and the schema of all errors through this variable.
func init() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		p := &Problem{Title: http.StatusText(status), Status: status, Detail: msg, Kind: kindOf(status)}
		if status == http.StatusInternalServerError {
			p.Detail = gpuserver.PublicText(errors.New(msg))
			return p
		}
		for _, err := range errs {
			if d, ok := err.(huma.ErrorDetailer); ok {
				p.Errors = append(p.Errors, d.ErrorDetail())
			} else if err != nil {
				p.Errors = append(p.Errors, &huma.ErrorDetail{Message: err.Error()})
			}
		}
		return p
	}
}

// statuses is the one table from kinds to statuses.
var statuses = map[gpuserver.Kind]int{
	gpuserver.KindInvalid:     http.StatusUnprocessableEntity,
	gpuserver.KindNotFound:    http.StatusNotFound,
	gpuserver.KindConflict:    http.StatusConflict,
	gpuserver.KindRefused:     http.StatusForbidden,
	gpuserver.KindCapacity:    http.StatusServiceUnavailable,
	gpuserver.KindUnavailable: http.StatusServiceUnavailable,
	gpuserver.KindLimited:     http.StatusTooManyRequests,
	gpuserver.KindGuest:       http.StatusBadGateway,
	gpuserver.KindInternal:    http.StatusInternalServerError,
}

// kindOf gives the kind for statuses that huma or the mux chose.
func kindOf(status int) gpuserver.Kind {
	switch {
	case status == http.StatusNotFound:
		return gpuserver.KindNotFound
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return gpuserver.KindRefused
	case status == http.StatusConflict:
		return gpuserver.KindConflict
	case status == http.StatusTooManyRequests:
		return gpuserver.KindLimited
	case status == http.StatusServiceUnavailable:
		return gpuserver.KindUnavailable
	case status < http.StatusInternalServerError:
		return gpuserver.KindInvalid
	}
	return gpuserver.KindInternal
}

// asProblem is the one place where an error becomes an answer: its kind gives
// the status, its public sentence the text; the cause goes to the log only.
func asProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	kind := gpuserver.KindOf(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		kind = gpuserver.KindUnavailable
	}
	status, ok := statuses[kind]
	if !ok {
		status, kind = http.StatusInternalServerError, gpuserver.KindInternal
	}
	return &Problem{Title: http.StatusText(status), Status: status, Detail: gpuserver.PublicText(err), Kind: kind}
}

// fail answers err and logs what is not the caller's own fault.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := a.report(r.Context(), r.Method+" "+r.URL.Path, err)
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func (a *API) report(ctx context.Context, op string, err error) *Problem {
	p := asProblem(err)
	if p.Status >= http.StatusInternalServerError && ctx.Err() == nil {
		a.log.WarnContext(ctx, "api: request failed", "op", op, "kind", p.Kind, "err", err)
	}
	return p
}
