package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"gpuserver"
)

// GPUActions is what the API asks of the fleet about cards. by, who asked, is to
// stand in the card's history.
type GPUActions interface {
	// CordonGPU takes a card out of service; the VM that has it runs to its end.
	// KindNotFound: no such card. KindConflict: it is out already.
	CordonGPU(ctx context.Context, id gpuserver.GPUID, reason, by string) error
	// UncordonGPU puts a card back into service and forgets its strikes; a VM that
	// was kept because of it is deleted. KindNotFound: no such card. KindConflict:
	// it is in service and well.
	UncordonGPU(ctx context.Context, id gpuserver.GPUID, by string) error
	// TestGPU runs a local job on just this card, also one that is out of service,
	// and gives its number; it waits for whoever has the card. KindInvalid: no job
	// can be made to run on just this card.
	TestGPU(ctx context.Context, id gpuserver.GPUID, by string) (gpuserver.JobID, error)
}

// GPUList is an answer with cards.
type GPUList struct {
	GPUs []GPUInfo `json:"gpus" doc:"By cloud, host and address."`
}

// GPUHistory is an answer with a card's history.
type GPUHistory struct {
	Events []gpuserver.GPUEvent `json:"events" doc:"Newest first."`
}

// CordonRequest says why a card is taken out.
type CordonRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"500" doc:"For people: why."`
}

type gpusIn struct {
	State []string `query:"state" enum:"in_service,cordoned,quarantined" doc:"Only cards in these states."`
	Cloud string   `query:"cloud" maxLength:"100" doc:"Only cards of this cloud."`
	Host  string   `query:"host" maxLength:"300" doc:"Only cards of hosts with this name."`
}

type gpuIn struct {
	GPU string `path:"gpu" maxLength:"300" doc:"Our number, UUID, serial number or address of the card; HOST/ADDRESS or CLOUD/HOST/ADDRESS, as one escaped segment, where several hosts have one at the address."`
}

type gpuHistoryIn struct {
	GPU   string `path:"gpu" maxLength:"300" doc:"As for get-gpu."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most so many."`
}

type cordonIn struct {
	GPU  string `path:"gpu" maxLength:"300" doc:"As for get-gpu."`
	Body CordonRequest
}

// lastEvents is how much of a card's history is shown with it.
const lastEvents = 10

func (a *API) gpuRoutes() {
	tags := []string{"gpus"}
	register(a, RoleViewer, huma.Operation{
		OperationID: "list-gpus", Method: http.MethodGet, Path: "/gpus", Tags: tags,
		Summary: "List the GPUs", Description: "Gives the cards that were ever met, with their state and who has them.",
	}, a.listGPUs)
	register(a, RoleViewer, huma.Operation{
		OperationID: "get-gpu", Method: http.MethodGet, Path: "/gpus/{gpu}", Tags: tags,
		Summary: "Show a GPU", Description: "Gives a card, who has it, and the last of its history.",
	},
		func(ctx context.Context, in *gpuIn) (*answer[GPUDetail], error) {
			d, err := a.readGPU(ctx, in.GPU, lastEvents)
			return &answer[GPUDetail]{d}, err
		})
	register(a, RoleViewer, huma.Operation{
		OperationID: "get-gpu-history", Method: http.MethodGet, Path: "/gpus/{gpu}/history", Tags: tags,
		Summary: "Show a GPU's history", Description: "Gives what was seen of a card, what followed, and who took it out, tested it or put it back (a token's name, or \"socket\"), newest first.",
	},
		func(ctx context.Context, in *gpuHistoryIn) (*answer[GPUHistory], error) {
			d, err := a.readGPU(ctx, in.GPU, in.Limit)
			return &answer[GPUHistory]{GPUHistory{d.Events}}, err
		})
	register(a, RoleOperator, huma.Operation{
		OperationID: "cordon-gpu", Method: http.MethodPost, Path: "/gpus/{gpu}/cordon", Tags: tags,
		Summary: "Cordon a GPU", Description: "Takes a card out of service; the VM that has it runs to its end. Gives the card as it is then.",
	},
		func(ctx context.Context, in *cordonIn) (*answer[GPUDetail], error) {
			return a.changeGPU(ctx, in.GPU, func(id gpuserver.GPUID, by string) error {
				return a.actions.CordonGPU(ctx, id, in.Body.Reason, by)
			})
		})
	register(a, RoleOperator, huma.Operation{
		OperationID: "uncordon-gpu", Method: http.MethodPost, Path: "/gpus/{gpu}/uncordon", Tags: tags,
		Summary: "Put a GPU back", Description: "Puts a cordoned or quarantined card back into service and deletes the VM that was kept because of it. Gives the card as it is then.",
	},
		func(ctx context.Context, in *gpuIn) (*answer[GPUDetail], error) {
			return a.changeGPU(ctx, in.GPU, func(id gpuserver.GPUID, by string) error { return a.actions.UncordonGPU(ctx, id, by) })
		})
	register(a, RoleOperator, huma.Operation{
		OperationID: "test-gpu", Method: http.MethodPost, Path: "/gpus/{gpu}/test", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Test a GPU", Description: "Runs a job on just this card, also one that is out of service; follow it as a run.",
	},
		func(ctx context.Context, in *gpuIn) (*answer[Started], error) {
			d, err := a.readGPU(ctx, in.GPU, 0)
			if err != nil {
				return nil, err
			}
			id, err := a.actions.TestGPU(ctx, d.GPU.ID, callerOf(ctx).Name)
			return &answer[Started]{Started{id}}, err
		})
}

func (a *API) listGPUs(ctx context.Context, in *gpusIn) (*answer[GPUList], error) {
	gs, err := ReadGPUs(ctx, a.db, a.actions)
	gs = slices.DeleteFunc(gs, func(g GPUInfo) bool {
		return len(in.State) > 0 && !slices.Contains(in.State, string(g.State)) || in.Cloud != "" && g.Cloud != in.Cloud || in.Host != "" && g.Host != in.Host
	})
	return &answer[GPUList]{GPUList{gs}}, err
}

func (a *API) readGPU(ctx context.Context, ref string, limit int) (GPUDetail, error) {
	return ReadGPU(ctx, a.db, a.actions, ref, limit)
}

// changeGPU does something to the card that ref names and gives it as it is then.
func (a *API) changeGPU(ctx context.Context, ref string, change func(id gpuserver.GPUID, by string) error) (*answer[GPUDetail], error) {
	d, err := a.readGPU(ctx, ref, 0)
	if err != nil {
		return nil, err
	}
	if err := change(d.GPU.ID, callerOf(ctx).Name); err != nil {
		return nil, err
	}
	d, err = a.readGPU(ctx, fmt.Sprint(d.GPU.ID), lastEvents)
	return &answer[GPUDetail]{d}, err
}
