package api

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"gpuserver"
	"gpuserver/internal/store"
)

// Started is the answer to a new command job.
type Started struct {
	Job gpuserver.JobID `json:"job"`
}

type outputIn struct {
	ID     int64  `path:"id" minimum:"1" doc:"Our number of the job."`
	Stream string `path:"stream" enum:"stdout,stderr"`
	From   int64  `query:"from" minimum:"0" default:"0" doc:"Byte offset to begin at."`
	Wait   int    `query:"wait" minimum:"0" maximum:"60" default:"0" doc:"Seconds to wait for something to come."`
}

func (a *API) runRoutes() {
	tags := []string{"runs"}
	register(a, RoleOperator, huma.Operation{
		OperationID: "start-run", Method: http.MethodPost, Path: "/runs", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Run a command", Description: "Runs a command in a fresh VM, without a forge.",
	}, a.startRun)
	register(a, RoleOperator, huma.Operation{
		OperationID: "get-run", Method: http.MethodGet, Path: "/runs/{id}", Tags: tags,
		Summary: "Show a run", Description: "Says how a command stands and, at its end, its exit status.",
	},
		func(ctx context.Context, in *jobIn) (*answer[RunStatus], error) {
			out := &answer[RunStatus]{}
			return out, a.db.View(ctx, func(tx *store.Tx) (err error) {
				out.Body, err = readRun(tx, gpuserver.JobID(in.ID))
				return err
			})
		})
	register(a, RoleOperator, huma.Operation{
		OperationID: "get-output", Method: http.MethodGet, Path: "/runs/{id}/{stream}", Tags: tags,
		Summary: "Read a run's output", Description: "Gives what the command wrote to one stream. Ask again from next until done.",
	}, a.output)
	register(a, RoleOperator, huma.Operation{
		OperationID: "cancel-run", Method: http.MethodDelete, Path: "/runs/{id}", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Cancel a run", Description: "Ends a command; its VM is taken down. One that is over already is left as it is.",
	},
		func(ctx context.Context, in *jobIn) (*struct{}, error) {
			err := a.actions.CancelJob(ctx, gpuserver.JobID(in.ID), callerOf(ctx).Name)
			if gpuserver.KindOf(err) == gpuserver.KindConflict {
				return nil, nil
			}
			return nil, err
		})
}

func (a *API) startRun(ctx context.Context, in *struct{ Body RunRequest }) (*answer[Started], error) {
	for _, k := range slices.Sorted(maps.Keys(in.Body.Env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "body.env: %q cannot be the name of an environment variable", k)
		}
		if strings.ContainsRune(in.Body.Env[k], 0) {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "body.env.%s: a value cannot hold a zero byte", k)
		}
	}
	for i, arg := range in.Body.Args {
		if strings.ContainsRune(arg, 0) || i == 0 && arg == "" {
			return nil, gpuserver.Errorf(gpuserver.KindInvalid, "body.args[%d] cannot be run: it is empty or holds a zero byte", i)
		}
	}
	id, err := a.actions.StartRun(ctx, in.Body, callerOf(ctx).Name)
	return &answer[Started]{Started{id}}, err
}

func (a *API) output(ctx context.Context, in *outputIn) (*answer[Output], error) {
	// A waiting answer ends when the server does, so that a shutdown does not wait for it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.stopped, cancel)()
	out, err := a.actions.Output(ctx, gpuserver.JobID(in.ID), in.Stream, in.From, time.Duration(in.Wait)*time.Second)
	if err != nil {
		return nil, named(err, "run", fmt.Sprint(in.ID))
	}
	if out.Data == nil {
		out.Data = []byte{}
	}
	return &answer[Output]{out}, nil
}
