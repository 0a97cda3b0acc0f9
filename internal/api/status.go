package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"gpuserver"
	"gpuserver/internal/store"
)

func (a *API) statusRoutes() {
	register(a, RoleViewer, huma.Operation{
		OperationID: "get-status", Method: http.MethodGet, Path: "/status", Tags: []string{"status"},
		Summary: "Show the server's state", Description: "Gives the queue, VMs, hosts, clouds, forges, held images and suspended flavors at a glance.",
	},
		func(ctx context.Context, _ *struct{}) (*answer[Status], error) {
			s, err := a.Status(ctx)
			return &answer[Status]{s}, err
		})
	register(a, RoleViewer, huma.Operation{
		OperationID: "list-flavors", Method: http.MethodGet, Path: "/flavors", Tags: []string{"status"},
		Summary: "List the sizes of VM", Description: "Gives the flavors of the configuration with their other names.",
	},
		func(ctx context.Context, _ *struct{}) (*answer[FlavorList], error) {
			return &answer[FlavorList]{FlavorList{a.actions.Flavors(ctx)}}, nil
		})
	register(a, RoleViewer, huma.Operation{
		OperationID: "list-images", Method: http.MethodGet, Path: "/images", Tags: []string{"images"},
		Summary: "List the images", Description: "Gives what VMs boot, with their other names.",
	},
		func(ctx context.Context, _ *struct{}) (*answer[ImageList], error) {
			return &answer[ImageList]{ImageList{a.actions.Images(ctx)}}, nil
		})
	register(a, RoleAdmin, huma.Operation{
		OperationID: "release-image", Method: http.MethodDelete, Path: "/images/{name}/hold", Tags: []string{"images"}, DefaultStatus: http.StatusAccepted,
		Summary: "Release a held image", Description: "Lets VMs be made from an image again and forgets its failures.",
	},
		func(ctx context.Context, in *struct {
			Name string `path:"name" maxLength:"200"`
		},
		) (*struct{}, error) {
			return nil, a.actions.ReleaseImage(ctx, in.Name, callerOf(ctx).Name)
		})
	register(a, RoleOperator, huma.Operation{
		OperationID: "resume-flavor", Method: http.MethodDelete, Path: "/clouds/{cloud}/flavors/{flavor}/suspension", Tags: []string{"status"}, DefaultStatus: http.StatusAccepted,
		Summary: "Resume a suspended flavor", Description: "Lets VMs of a flavor be made on a cloud again and forgets its failures there.",
	},
		func(ctx context.Context, in *struct {
			Cloud  string `path:"cloud" maxLength:"100"`
			Flavor string `path:"flavor" maxLength:"200"`
		},
		) (*struct{}, error) {
			return nil, a.actions.ResumeFlavor(ctx, in.Cloud, in.Flavor, callerOf(ctx).Name)
		})
}

// Status gives the server at a glance, readiness included.
func (a *API) Status(ctx context.Context) (Status, error) {
	s, err := ReadStatus(ctx, a.db, a.actions, a.version)
	if err != nil {
		return s, err
	}
	s.NotReady = a.missing(ctx)
	s.Ready = len(s.NotReady) == 0
	return s, nil
}

// missing says what keeps us from taking jobs and making VMs: a store that cannot
// be written, or no cloud that is up and has told how much room it has.
func (a *API) missing(ctx context.Context) (what []string) {
	if err := a.writable.Check(ctx); err != nil {
		what = append(what, gpuserver.PublicText(err))
	}
	clouds := a.actions.Clouds(ctx)
	for _, c := range clouds {
		if c.Up {
			return what
		}
	}
	if len(clouds) == 0 {
		return append(what, "No cloud is configured.")
	}
	for _, c := range clouds {
		why := "Cloud " + c.Name + " cannot be used now"
		if !c.Known {
			why = "Cloud " + c.Name + " has not told its capacity yet"
		}
		if c.Reason != "" {
			why += ": " + c.Reason
		}
		what = append(what, strings.TrimSuffix(why, ".")+".")
	}
	return what
}

// healthz says that the process answers; it asks nobody else, so that a full
// disk or an unreachable cloud does not get us restarted.
func (a *API) healthz(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok", "version": a.version})
}

func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	what := a.missing(r.Context())
	if len(what) > 0 {
		writeJSON(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "not_ready": what})
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"ready": true})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// Probe finds out whether a store can be written, at most every few seconds:
// anybody may ask, and each write costs a sync of the disk.
type Probe struct {
	db  *store.DB
	mu  sync.Mutex
	at  time.Time
	err error
}

const (
	probeEvery = 5 * time.Second
	probeKey   = "api.probed_at"
)

// NewProbe makes a probe of a store.
func NewProbe(db *store.DB) *Probe { return &Probe{db: db} }

// Check gives why the store cannot be written, nil if it can.
func (p *Probe) Check(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) < probeEvery {
		return p.err
	}
	// The outcome is kept for others, so it must not be that this one left.
	p.err = p.db.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		return tx.SetSetting(probeKey, tx.Now.Format(time.RFC3339))
	})
	p.at = time.Now()
	return p.err
}
