package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gpuserver"
	"gpuserver/internal/gate"
)

// HookSocket is where the agent answers the runner's job-started hook. It takes
// one question and gives a yes or a no; nothing else of the agent is behind it.
const HookSocket = "/run/gpuserver/hook.sock"

const (
	hookScript   = "job-started.sh" // in the agent's folder
	hookPatience = 15 * time.Second // of Options.HookPatience
	// maxQuestions bounds what a job can make the agent ask: a runner asks once.
	maxQuestions = 8
)

// hookServer answers the job's questions on a local socket, so that the job
// never sees the agent's token.
type hookServer struct {
	agent    *agent
	server   *http.Server
	wait     sync.WaitGroup
	question atomic.Int64
	allowed  atomic.Bool // a job was: it is the one that runs
}

// listenHook opens the socket for the runner's user.
func (a *agent) listenHook() (*hookServer, error) {
	path := a.path(HookSocket)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, guestError("make the hook's folder", err)
	}
	_ = os.Remove(path) // of an agent before us
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, guestError("listen for the job-started hook", err)
	}
	if err := a.ownSocket(path); err != nil {
		listener.Close()
		return nil, err
	}
	h := &hookServer{agent: a}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /job-started", h.answer)
	h.server = &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 2 * a.HookPatience, MaxHeaderBytes: 4 << 10}
	h.wait.Go(func() {
		if err := h.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("the hook's socket failed", "err", err)
		}
	})
	return h, nil
}

// ownSocket lets the runner's group and nobody else connect.
func (a *agent) ownSocket(path string) error {
	if a.Unprivileged {
		return nil
	}
	acc, err := lookupAccount(a.RunnerUser)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chown(path, 0, acc.gid), os.Chmod(path, 0o660)); err != nil {
		return guestError("give the hook's socket to "+a.RunnerUser, err)
	}
	return nil
}

// Close ends the listener and waits for it.
func (h *hookServer) Close() {
	h.server.Close()
	h.wait.Wait()
}

func (h *hookServer) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJobStarted))
	var q JobStarted
	if err != nil || json.Unmarshal(body, &q) != nil {
		writeError(w, http.StatusBadRequest, "the question is not the JSON object that was expected")
		return
	}
	if h.question.Add(1) > maxQuestions {
		writeError(w, http.StatusTooManyRequests, "this VM asked too often")
		return
	}
	v := h.agent.mayStart(r.Context(), q)
	if v.Allowed {
		h.allowed.Store(true)
		writeJSON(w, http.StatusOK, v)
		return
	}
	writeJSON(w, http.StatusForbidden, v)
	if !h.allowed.Load() { // else it is the running job that asks about another
		_ = http.NewResponseController(w).Flush() // before the runner ends, and we with it
		h.agent.interrupt("its job may not run here")
	}
}

// mayStart asks the server, and decides itself if that cannot be reached: only
// the run that the VM was made for passes.
func (a *agent) mayStart(ctx context.Context, q JobStarted) Verdict {
	v, err := a.askServer(ctx, q)
	if err != nil {
		a.log.Warn("the server did not answer whether the job may run", "err", err)
		v = a.decideAlone(q, err)
	}
	a.log.Info("job-started hook", "repo", gate.Clip(q.Repo, 256), "run", q.RunID, "attempt", q.RunAttempt, "allowed", v.Allowed, "text", v.Text)
	if v.Allowed {
		a.status.reached(PhaseJobStarted)
		a.report.wake()
	}
	return v
}

// askServer repeats the question until there is an answer or HookPatience ends.
func (a *agent) askServer(ctx context.Context, q JobStarted) (Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, a.HookPatience)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return Verdict{}, err
	}
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		var v Verdict
		_, _, err := a.report.post(ctx, "/guest/v1/job-started", body, &v)
		if err == nil || final(err) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return Verdict{}, err
		case <-time.After(retry):
		}
	}
}

// decideAlone answers q without the server; err says why.
func (a *agent) decideAlone(q JobStarted, err error) Verdict {
	p := a.payload
	switch {
	case final(err):
		return Verdict{Text: "The server of this runner refuses the question of this VM: " + err.Error()}
	case p.Repo != "" && q.Repo == p.Repo && q.RunID == p.RunID && q.RunAttempt == p.RunAttempt:
		return Verdict{Allowed: true}
	}
	return Verdict{Text: fmt.Sprintf(
		"The server of this runner cannot be reached, and this VM was made for run %d (attempt %d) of %s, not for run %d (attempt %d) of %s. Run the job again once the server is back.",
		p.RunID, p.RunAttempt, p.Repo, q.RunID, q.RunAttempt, gate.Clip(q.Repo, 256))}
}

// writeHook writes the script that the runner calls when a job was assigned.
// Source: actions/runner, docs/adrs/1751-runner-job-hooks.
func (a *agent) writeHook() error {
	script := "#!/bin/sh\nexec '" + strings.Join(a.program(), "' '") + "' hook job-started\n"
	return a.writeFile(filepath.Join("run/gpuserver", hookScript), []byte(script), 0o755)
}

// program is how the agent calls itself.
func (a *agent) program() []string {
	if a.Program != nil {
		return a.Program
	}
	self, err := os.Executable()
	if err != nil {
		self = AgentPath
	}
	return []string{self}
}

// Hook is the job's side: it asks the agent behind socket about the job that
// getenv describes, and writes what people should know to w. An error means
// that the job may not run.
func Hook(ctx context.Context, socket string, getenv func(string) string, w io.Writer) error {
	runID, err := strconv.ParseInt(getenv("GITHUB_RUN_ID"), 10, 64)
	if err != nil {
		return gpuserver.Errorf(gpuserver.KindInvalid, "GITHUB_RUN_ID is not a number: the hook is to be called by a runner")
	}
	attempt, err := strconv.Atoi(getenv("GITHUB_RUN_ATTEMPT"))
	if err != nil {
		return gpuserver.Errorf(gpuserver.KindInvalid, "GITHUB_RUN_ATTEMPT is not a number: the hook is to be called by a runner")
	}
	q := JobStarted{Repo: getenv("GITHUB_REPOSITORY"), RunID: runID, RunAttempt: attempt, Job: getenv("GITHUB_JOB")}
	v, err := askAgent(ctx, socket, q)
	if err != nil {
		return err
	}
	if !v.Allowed {
		return gpuserver.Errorf(gpuserver.KindRefused, "%s", orDefault(v.Text, "This job may not run on this runner."))
	}
	if v.Text != "" {
		fmt.Fprintln(w, v.Text)
	}
	return nil
}

func askAgent(ctx context.Context, socket string, q JobStarted) (Verdict, error) {
	client := &http.Client{Timeout: 2 * hookPatience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	body, err := json.Marshal(q)
	if err != nil {
		return Verdict{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/job-started", bytes.NewReader(body))
	if err != nil {
		return Verdict{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Verdict{}, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "job-started hook", Public: "the agent of this VM does not answer, so the job may not run", Err: err}
	}
	defer resp.Body.Close()
	var v struct {
		Verdict
		Error string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&v); err != nil {
		return Verdict{}, gpuserver.Errorf(gpuserver.KindUnavailable, "the agent of this VM gave no answer that can be read, so the job may not run")
	}
	if v.Error != "" {
		return Verdict{}, gpuserver.Errorf(gpuserver.KindInvalid, "%s", v.Error)
	}
	return v.Verdict, nil
}
