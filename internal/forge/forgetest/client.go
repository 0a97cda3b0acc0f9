package forgetest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"gpuserver"
)

// Client drives a Server in another process through "/_control/". Its methods
// are those of Server.
type Client struct {
	URL  string       // the server's address, "http://127.0.0.1:8090"
	HTTP *http.Client // nil: http.DefaultClient
}

// do carries out one control call.
func do[Out any](ctx context.Context, c *Client, name string, in any) (Out, error) {
	var out Out
	fail := func(err error) (Out, error) {
		return out, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Op: "forgetest: " + name, Err: err}
	}
	body, err := json.Marshal(in)
	if err != nil {
		return fail(err)
	}
	req, err := http.NewRequestWithContext(ctx, "POST", strings.TrimSuffix(c.URL, "/")+"/_control/"+name, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		e := controlError{Kind: gpuserver.KindUnavailable, Text: resp.Status}
		_ = json.Unmarshal(b, &e) // else the status says enough
		return out, &gpuserver.Error{Kind: e.Kind, Op: "forgetest: " + name, Public: e.Text}
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return fail(err)
	}
	return out, nil
}

func tell(ctx context.Context, c *Client, name string, in any) error {
	_, err := do[none](ctx, c, name, in)
	return err
}

// App is Server.App.
func (c *Client) App(ctx context.Context) (App, error) { return do[App](ctx, c, "app", none{}) }

// Configure is Server.Configure.
func (c *Client) Configure(ctx context.Context, s Settings) error {
	return tell(ctx, c, "configure", s)
}

// AddOrg is Server.AddOrg.
func (c *Client) AddOrg(ctx context.Context, o Org) (Org, error) {
	return do[Org](ctx, c, "add-org", o)
}

// Uninstall is Server.Uninstall.
func (c *Client) Uninstall(ctx context.Context, o Org) error { return tell(ctx, c, "uninstall", o) }

// AddUser is Server.AddUser.
func (c *Client) AddUser(ctx context.Context, u User) (User, error) {
	return do[User](ctx, c, "add-user", u)
}

// AddRepo is Server.AddRepo.
func (c *Client) AddRepo(ctx context.Context, r Repository) (Repository, error) {
	return do[Repository](ctx, c, "add-repo", r)
}

// SetFile is Server.SetFile.
func (c *Client) SetFile(ctx context.Context, f FileChange) (sha string, err error) {
	return do[string](ctx, c, "set-file", f)
}

// SetPrivate is Server.SetPrivate.
func (c *Client) SetPrivate(ctx context.Context, repo string, private bool) error {
	return tell(ctx, c, "set-private", repoArg{Repo: repo, Private: private})
}

// SetTeam is Server.SetTeam.
func (c *Client) SetTeam(ctx context.Context, t Team) error { return tell(ctx, c, "set-team", t) }

// SetRole is Server.SetRole.
func (c *Client) SetRole(ctx context.Context, r Role) error { return tell(ctx, c, "set-role", r) }

// SetGroup is Server.SetGroup.
func (c *Client) SetGroup(ctx context.Context, g Group) (Group, error) {
	return do[Group](ctx, c, "set-group", g)
}

// Dispatch is Server.Dispatch.
func (c *Client) Dispatch(ctx context.Context, r RunSpec) (Run, error) {
	return do[Run](ctx, c, "dispatch", r)
}

// Approve is Server.Approve.
func (c *Client) Approve(ctx context.Context, job int64) error {
	return tell(ctx, c, "approve", idArg{job})
}

// Release is Server.Release.
func (c *Client) Release(ctx context.Context, job int64) error {
	return tell(ctx, c, "release", idArg{job})
}

// SetPriority is Server.SetPriority.
func (c *Client) SetPriority(ctx context.Context, job int64, priority int) error {
	return tell(ctx, c, "priority", jobArg{ID: job, Priority: priority})
}

// Assign is Server.Assign.
func (c *Client) Assign(ctx context.Context, job int64, runner string) error {
	return tell(ctx, c, "assign", jobArg{ID: job, Runner: runner})
}

// CancelJob is Server.CancelJob.
func (c *Client) CancelJob(ctx context.Context, job int64) error {
	return tell(ctx, c, "cancel-job", idArg{job})
}

// CancelRun is Server.CancelRun.
func (c *Client) CancelRun(ctx context.Context, run int64) error {
	return tell(ctx, c, "cancel-run", idArg{run})
}

// FinishJob is Server.FinishJob.
func (c *Client) FinishJob(ctx context.Context, job int64, conclusion string) error {
	return tell(ctx, c, "finish", jobArg{ID: job, Conclusion: conclusion})
}

// Rerun is Server.Rerun.
func (c *Client) Rerun(ctx context.Context, run int64, actor string) (Run, error) {
	return do[Run](ctx, c, "rerun", jobArg{ID: run, Actor: actor})
}

// Jobs is Server.Jobs.
func (c *Client) Jobs(ctx context.Context, f JobFilter) ([]Job, error) {
	return do[[]Job](ctx, c, "jobs", f)
}

// Wait is Server.Wait, by long polls until ctx ends.
func (c *Client) Wait(ctx context.Context, f JobFilter, status string) ([]Job, error) {
	for {
		jobs, err := do[[]Job](ctx, c, "wait", waitArg{JobFilter: f, Until: status, For: 20 * time.Second})
		// A poll that ran out says unavailable, as a server that is being restarted.
		if err == nil || gpuserver.KindOf(err) != gpuserver.KindUnavailable {
			return jobs, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Log is Server.Log.
func (c *Client) Log(ctx context.Context, job int64) (string, error) {
	return do[string](ctx, c, "log", idArg{job})
}

// Runners is Server.Runners.
func (c *Client) Runners(ctx context.Context) ([]Runner, error) {
	return do[[]Runner](ctx, c, "runners", none{})
}

// Checks is Server.Checks.
func (c *Client) Checks(ctx context.Context, repo string) ([]Check, error) {
	return do[[]Check](ctx, c, "checks", repoArg{Repo: repo})
}

// Rerequest is Server.Rerequest.
func (c *Client) Rerequest(ctx context.Context, check int64, by string) error {
	return tell(ctx, c, "rerequest", jobArg{ID: check, Actor: by})
}

// Deliveries is Server.Deliveries.
func (c *Client) Deliveries(ctx context.Context) ([]Delivery, error) {
	return do[[]Delivery](ctx, c, "deliveries", none{})
}

// Redeliver is Server.Redeliver.
func (c *Client) Redeliver(ctx context.Context, delivery int64) error {
	return tell(ctx, c, "redeliver", idArg{delivery})
}

// Emit is Server.Emit.
func (c *Client) Emit(ctx context.Context, e Emission) error { return tell(ctx, c, "emit", e) }

// EmitJob is Server.EmitJob.
func (c *Client) EmitJob(ctx context.Context, job int64, action string) error {
	return tell(ctx, c, "emit-job", jobArg{ID: job, Action: action})
}

// Ping is Server.Ping.
func (c *Client) Ping(ctx context.Context) error { return tell(ctx, c, "ping", none{}) }

// SetFaults is Server.SetFaults.
func (c *Client) SetFaults(ctx context.Context, f []Fault) error { return tell(ctx, c, "faults", f) }

// SetHookFaults is Server.SetHookFaults.
func (c *Client) SetHookFaults(ctx context.Context, f []HookFault) error {
	return tell(ctx, c, "hook-faults", f)
}

// LoseNextWebhook is Server.LoseNextWebhook.
func (c *Client) LoseNextWebhook(ctx context.Context, event, action string) error {
	return tell(ctx, c, "lose", eventArg{Event: event, Action: action})
}

// Stats is Server.Stats.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	return do[Stats](ctx, c, "stats", none{})
}

// ResetStats is Server.ResetStats.
func (c *Client) ResetStats(ctx context.Context) error { return tell(ctx, c, "reset-stats", none{}) }

// Calls is Server.Calls.
func (c *Client) Calls(ctx context.Context, since int64) ([]Call, error) {
	return do[[]Call](ctx, c, "calls", sinceArg{since})
}

// Trace is Server.Trace.
func (c *Client) Trace(ctx context.Context, job int64) (Trace, error) {
	return do[Trace](ctx, c, "trace", idArg{job})
}
