package forgetest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"gpuserver"
)

// maxControl is the longest body of a control call, in bytes.
const maxControl = 64 << 20

// Arguments of control calls that have no type of their own.
type (
	idArg struct {
		ID int64 `json:"id"`
	}
	jobArg struct {
		ID         int64  `json:"id"`
		Priority   int    `json:"priority,omitempty"`
		Runner     string `json:"runner,omitempty"`
		Conclusion string `json:"conclusion,omitempty"`
		Action     string `json:"action,omitempty"`
		Actor      string `json:"actor,omitempty"`
	}
	repoArg struct {
		Repo    string `json:"repo"`
		Private bool   `json:"private,omitempty"`
	}
	waitArg struct {
		JobFilter
		Until string        `json:"until,omitempty"`
		For   time.Duration `json:"for"`
	}
	eventArg struct {
		Event  string `json:"event"`
		Action string `json:"action"`
	}
	sinceArg struct {
		Since int64 `json:"since"`
	}
	none struct{}
)

// operation registers one control call: JSON in, JSON out.
func operation[In, Out any](mux *http.ServeMux, name string, do func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST /_control/"+name, func(w http.ResponseWriter, r *http.Request) {
		var in In
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxControl))
		if err == nil && len(body) > 0 {
			err = json.Unmarshal(body, &in)
		}
		if err != nil {
			writeControlError(w, &gpuserver.Error{Kind: gpuserver.KindInvalid, Public: name + ": the body is not what this call takes", Err: err})
			return
		}
		out, err := do(r.Context(), in)
		if err != nil {
			writeControlError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	})
}

// act registers a control call that gives nothing back.
func act[In any](mux *http.ServeMux, name string, do func(In) error) {
	operation(mux, name, func(_ context.Context, in In) (none, error) { return none{}, do(in) })
}

// ask registers a control call that cannot fail.
func ask[In, Out any](mux *http.ServeMux, name string, do func(In) Out) {
	operation(mux, name, func(_ context.Context, in In) (Out, error) { return do(in), nil })
}

// controlError is how an error travels.
type controlError struct {
	Kind gpuserver.Kind `json:"kind"`
	Text string         `json:"text"`
}

func writeControlError(w http.ResponseWriter, err error) {
	kind, status := gpuserver.KindOf(err), http.StatusInternalServerError
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		kind = gpuserver.KindUnavailable
	}
	switch kind {
	case gpuserver.KindInvalid:
		status = http.StatusBadRequest
	case gpuserver.KindNotFound:
		status = http.StatusNotFound
	case gpuserver.KindConflict:
		status = http.StatusConflict
	case gpuserver.KindUnavailable:
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, controlError{Kind: kind, Text: err.Error()})
}

func (s *Server) controlRoutes(mux *http.ServeMux) {
	ask(mux, "app", func(none) App { return s.App() })
	act(mux, "configure", func(c Settings) error {
		s.Configure(c)
		return nil
	})
	s.controlWorld(mux)
	s.controlJobs(mux)
	s.controlHooks(mux)
	act(mux, "faults", func(f []Fault) error {
		s.SetFaults(f)
		return nil
	})
	ask(mux, "stats", func(none) Stats { return s.Stats() })
	act(mux, "reset-stats", func(none) error {
		s.ResetStats()
		return nil
	})
	ask(mux, "calls", func(in sinceArg) []Call { return s.Calls(in.Since) })
	operation(mux, "trace", func(_ context.Context, in idArg) (Trace, error) { return s.Trace(in.ID) })
	ask(mux, "runners", func(none) []Runner { return s.Runners() })
	ask(mux, "checks", func(in repoArg) []Check { return s.Checks(in.Repo) })
	act(mux, "rerequest", func(in jobArg) error { return s.Rerequest(in.ID, in.Actor) })
}

func (s *Server) controlWorld(mux *http.ServeMux) {
	operation(mux, "add-org", func(_ context.Context, in Org) (Org, error) { return s.AddOrg(in) })
	act(mux, "uninstall", s.Uninstall)
	operation(mux, "add-user", func(_ context.Context, in User) (User, error) { return s.AddUser(in) })
	operation(mux, "add-repo", func(_ context.Context, in Repository) (Repository, error) { return s.AddRepo(in) })
	operation(mux, "set-file", func(_ context.Context, in FileChange) (string, error) { return s.SetFile(in) })
	act(mux, "set-private", func(in repoArg) error { return s.SetPrivate(in.Repo, in.Private) })
	act(mux, "set-team", s.SetTeam)
	act(mux, "set-role", s.SetRole)
	operation(mux, "set-group", func(_ context.Context, in Group) (Group, error) { return s.SetGroup(in) })
}

func (s *Server) controlJobs(mux *http.ServeMux) {
	operation(mux, "dispatch", func(_ context.Context, in RunSpec) (Run, error) { return s.Dispatch(in) })
	act(mux, "approve", func(in idArg) error { return s.Approve(in.ID) })
	act(mux, "release", func(in idArg) error { return s.Release(in.ID) })
	act(mux, "priority", func(in jobArg) error { return s.SetPriority(in.ID, in.Priority) })
	act(mux, "assign", func(in jobArg) error { return s.Assign(in.ID, in.Runner) })
	act(mux, "cancel-job", func(in idArg) error { return s.CancelJob(in.ID) })
	act(mux, "cancel-run", func(in idArg) error { return s.CancelRun(in.ID) })
	act(mux, "finish", func(in jobArg) error { return s.FinishJob(in.ID, in.Conclusion) })
	operation(mux, "rerun", func(_ context.Context, in jobArg) (Run, error) { return s.Rerun(in.ID, in.Actor) })
	ask(mux, "jobs", s.Jobs)
	operation(mux, "log", func(_ context.Context, in idArg) (string, error) { return s.Log(in.ID) })
	operation(mux, "wait", func(ctx context.Context, in waitArg) ([]Job, error) {
		ctx, cancel := context.WithTimeout(ctx, in.For)
		defer cancel()
		return s.Wait(ctx, in.JobFilter, in.Until)
	})
}

func (s *Server) controlHooks(mux *http.ServeMux) {
	ask(mux, "deliveries", func(none) []Delivery { return s.Deliveries() })
	act(mux, "redeliver", func(in idArg) error { return s.Redeliver(in.ID) })
	act(mux, "emit", s.Emit)
	act(mux, "emit-job", func(in jobArg) error { return s.EmitJob(in.ID, in.Action) })
	act(mux, "ping", func(none) error {
		s.Ping()
		return nil
	})
	act(mux, "hook-faults", func(f []HookFault) error {
		s.SetHookFaults(f)
		return nil
	})
	act(mux, "lose", func(in eventArg) error {
		s.LoseNextWebhook(in.Event, in.Action)
		return nil
	})
}
