package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"gpuserver"
	"gpuserver/internal/store"
)

// JobList is an answer with jobs.
type JobList struct {
	Jobs []gpuserver.Job `json:"jobs" doc:"Newest first."`
}

type jobsIn struct {
	State []string `query:"state" enum:"waiting,received,refused,queued,starting,running,done,failed" doc:"Only jobs in these states."`
	Repo  string   `query:"repo" maxLength:"300" doc:"Only jobs of this repository, as owner/name."`
	Limit int      `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most so many."`
}

type jobIn struct {
	ID int64 `path:"id" minimum:"1" doc:"Our number of the job."`
}

// answer is a response with a JSON body.
type answer[T any] struct{ Body T }

func (a *API) jobRoutes() {
	tags := []string{"jobs"}
	register(a, RoleViewer, huma.Operation{
		OperationID: "list-jobs", Method: http.MethodGet, Path: "/jobs", Tags: tags,
		Summary: "List jobs", Description: "Gives jobs, newest first.",
	}, a.listJobs)
	register(a, RoleViewer, huma.Operation{
		OperationID: "get-job", Method: http.MethodGet, Path: "/jobs/{id}", Tags: tags,
		Summary: "Show a job", Description: "Gives a job with its VM, phases and history.",
	},
		func(ctx context.Context, in *jobIn) (*answer[JobDetail], error) {
			d, err := ReadJob(ctx, a.db, gpuserver.JobID(in.ID))
			return &answer[JobDetail]{d}, err
		})
	register(a, RoleViewer, huma.Operation{
		OperationID: "explain-job", Method: http.MethodGet, Path: "/jobs/{id}/explanation", Tags: tags,
		Summary: "Explain a job", Description: "Says why a job waits or was refused, and what would change it.",
	},
		func(ctx context.Context, in *jobIn) (*answer[Explanation], error) {
			x, err := ReadExplanation(ctx, a.db, gpuserver.JobID(in.ID))
			return &answer[Explanation]{x}, err
		})
	register(a, RoleOperator, huma.Operation{
		OperationID: "cancel-job", Method: http.MethodPost, Path: "/jobs/{id}/cancel", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Cancel a job", Description: "Ends a job on our side; a VM that was made for it is taken down.",
	},
		func(ctx context.Context, in *jobIn) (*struct{}, error) {
			return nil, a.actions.CancelJob(ctx, gpuserver.JobID(in.ID), callerOf(ctx).Name)
		})
	register(a, RoleOperator, huma.Operation{
		OperationID: "retry-job", Method: http.MethodPost, Path: "/jobs/{id}/retry", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Retry a job", Description: "Decides a job again from the start, at once.",
	},
		func(ctx context.Context, in *jobIn) (*struct{}, error) {
			return nil, a.actions.RetryJob(ctx, gpuserver.JobID(in.ID), callerOf(ctx).Name)
		})
}

func (a *API) listJobs(ctx context.Context, in *jobsIn) (*answer[JobList], error) {
	f := store.JobFilter{Repo: in.Repo, Limit: in.Limit}
	for _, s := range in.State {
		f.States = append(f.States, gpuserver.JobState(s))
	}
	out := &answer[JobList]{JobList{Jobs: []gpuserver.Job{}}}
	return out, a.db.View(ctx, func(tx *store.Tx) error {
		jobs, err := tx.ListJobs(f)
		for _, j := range jobs {
			out.Body.Jobs = append(out.Body.Jobs, redacted(j))
		}
		return err
	})
}
