package api

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gpuserver"
	"gpuserver/internal/store"
)

// VMList is an answer with VMs.
type VMList struct {
	VMs []gpuserver.VM `json:"vms" doc:"Newest first."`
}

type vmsIn struct {
	All   bool `query:"all" doc:"The VMs that are gone too."`
	Limit int  `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most so many."`
}

type vmIn struct {
	VM string `path:"vm" maxLength:"100" doc:"Its number or its name."`
}

type consoleIn struct {
	VM     string `path:"vm" maxLength:"100" doc:"Its number or its name."`
	From   int64  `query:"from" minimum:"0" default:"0" doc:"Byte offset to begin at; one that was rotated away begins at the oldest byte kept."`
	Limit  int64  `query:"limit" minimum:"1" maximum:"67108864" default:"1048576" doc:"At most so many bytes (at a time, if followed)."`
	Follow bool   `query:"follow" doc:"Go on with what is added, until the VM is gone."`
}

func (a *API) vmRoutes() {
	tags := []string{"vms"}
	register(a, RoleViewer, huma.Operation{
		OperationID: "list-vms", Method: http.MethodGet, Path: "/vms", Tags: tags,
		Summary: "List VMs", Description: "Gives VMs, newest first.",
	}, a.listVMs)
	register(a, RoleViewer, huma.Operation{
		OperationID: "get-vm", Method: http.MethodGet, Path: "/vms/{vm}", Tags: tags,
		Summary: "Show a VM", Description: "Gives a VM with its history.",
	}, a.showVM)
	register(a, RoleOperator, huma.Operation{
		OperationID: "get-console", Method: http.MethodGet, Path: "/vms/{vm}/console", Tags: tags,
		Summary: "Read a VM's console", Description: "Gives the serial console as it was written. It comes from a hostile place: do not print it raw.",
		Responses: map[string]*huma.Response{"200": {Description: "The console.", Content: map[string]*huma.MediaType{"application/octet-stream": {}}}},
	}, a.console)
	register(a, RoleOperator, huma.Operation{
		OperationID: "delete-vm", Method: http.MethodDelete, Path: "/vms/{vm}", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Delete a VM", Description: "Takes a VM down whatever it does; its job, if it has one, fails on the forge.",
	},
		func(ctx context.Context, in *vmIn) (*struct{}, error) {
			v, err := a.findVM(ctx, in.VM)
			if err != nil {
				return nil, err
			}
			return nil, a.actions.DeleteVM(ctx, v.ID, callerOf(ctx).Name)
		})
}

func (a *API) listVMs(ctx context.Context, in *vmsIn) (*answer[VMList], error) {
	out := &answer[VMList]{}
	return out, a.db.View(ctx, func(tx *store.Tx) (err error) {
		out.Body.VMs, err = tx.ListVMs(in.All, in.Limit)
		if out.Body.VMs == nil {
			out.Body.VMs = []gpuserver.VM{}
		}
		return err
	})
}

func (a *API) showVM(ctx context.Context, in *vmIn) (*answer[VMDetail], error) {
	v, err := a.findVM(ctx, in.VM)
	if err != nil {
		return nil, err
	}
	out := &answer[VMDetail]{VMDetail{VM: v}}
	return out, a.db.View(ctx, func(tx *store.Tx) (err error) {
		if out.Body.GPUs, err = tx.GPUsOfVM(v.ID); err != nil {
			return err
		}
		out.Body.Events, err = tx.VMEvents(v.ID)
		if out.Body.Events == nil {
			out.Body.Events = []gpuserver.Event{}
		}
		return err
	})
}

// findVM finds a VM by number or name.
func (a *API) findVM(ctx context.Context, ref string) (v gpuserver.VM, err error) {
	err = a.db.View(ctx, func(tx *store.Tx) error {
		if id, perr := strconv.ParseInt(ref, 10, 64); perr == nil {
			v, err = tx.VM(gpuserver.VMID(id))
		} else {
			v, err = tx.VMByName(ref)
		}
		return named(err, "VM", ref)
	})
	return v, err
}

func (a *API) console(ctx context.Context, in *consoleIn) (*huma.StreamResponse, error) {
	v, err := a.findVM(ctx, in.VM)
	if err != nil {
		return nil, err
	}
	// The first read happens before the status is sent, so that its error can be one.
	first, err := a.actions.Console(ctx, v.ID, in.From, in.Limit)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", "application/octet-stream")
		n, err := pour(w, first)
		if err == nil && in.Follow {
			a.follow(ctx, w, v.ID, in.From+n, in.Limit)
		}
	}}, nil
}

// followEvery is how often a followed console is asked for more: no cloud tells
// when a console grows.
const followEvery = 500 * time.Millisecond

func (a *API) follow(ctx context.Context, w http.ResponseWriter, id gpuserver.VMID, from, limit int64) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		// Asked before the read, so that what came before the end is read.
		gone := a.isGone(ctx, id)
		part, err := a.actions.Console(ctx, id, from, limit)
		if err != nil {
			return
		}
		n, err := pour(w, part)
		if err != nil || gone && n == 0 {
			return
		}
		from += n
		if n == limit || gone {
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-a.stopped.Done():
			return
		}
	}
}

func (a *API) isGone(ctx context.Context, id gpuserver.VMID) bool {
	gone := false
	err := a.db.View(ctx, func(tx *store.Tx) error {
		v, err := tx.VM(id)
		gone = v.State == gpuserver.VMGone
		return err
	})
	return gone || err != nil
}

func pour(w io.Writer, r io.ReadCloser) (int64, error) {
	n, err := io.Copy(w, r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return n, err
}
