// Package dashboard is what a person sees in a browser: one live page with the
// queue, VMs and recent jobs, and a page for each job that says why it waits.
//
// Pages are rendered here and are whole without JavaScript; the small script of
// ours only fetches a page's live part anew when something changed. Nothing is
// loaded from elsewhere, and a strict Content-Security-Policy says so.
//
// Whether a repository is private is not stored yet, so the pages cannot hide
// what only some may see: they are for callers whom package api lets in, on
// loopback, the socket or with a token, and never open to everybody.
package dashboard

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/store"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// Options are what the pages are made of. DB and Around are needed.
type Options struct {
	DB      *store.DB
	Around  api.Surroundings
	Version string
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
	// Writable gives why the store cannot be written, nil if it can; nil: nobody
	// is asked.
	Writable func(context.Context) error
}

type pages struct {
	o   Options
	tpl *template.Template
}

// New gives the handler of the pages: /, /jobs/{id}, /gpus/{id} and their static
// files. It
// is given to package api as Options.Pages, which decides who may look.
func New(o Options) http.Handler {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &pages{o: o}
	p.tpl = template.Must(template.New("").Funcs(p.funcs()).ParseFS(templateFiles, "templates/*.html"))
	static, err := fs.Sub(staticFiles, "static")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.overview)
	mux.HandleFunc("GET /jobs/{id}", p.job)
	mux.HandleFunc("GET /gpus/{id}", p.gpu)
	mux.Handle("GET /static/", cached(http.StripPrefix("/static/", http.FileServerFS(static))))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p.fail(w, r, gpuserver.Errorf(gpuserver.KindNotFound, "There is no such page."))
	})
	return secured(mux)
}

// secured allows pages what they need and nothing else.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// cached lets a browser keep our few files for a while; they change with the
// program only.
func cached(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "private, max-age=300")
		next.ServeHTTP(w, r)
	})
}

// How many rows the pages show of what has no end.
const (
	maxQueue  = 100
	maxRecent = 30
	maxVMs    = 200
	maxEvents = 100
)

type overview struct {
	Status  api.Status
	Trouble string // why nothing can be stored, "" if it can
	Queue   []queued
	VMs     []gpuserver.VM
	GPUs    []api.GPUInfo
	Recent  []gpuserver.Job
	Version string
	At      time.Time
}

// queued is a job that has not begun to run, with its place; 0 is none.
type queued struct {
	gpuserver.Job
	Place int
}

func (p *pages) overview(w http.ResponseWriter, r *http.Request) {
	v, err := p.readOverview(r.Context())
	if err != nil {
		p.fail(w, r, err)
		return
	}
	p.render(w, r, http.StatusOK, "overview", v)
}

func (p *pages) readOverview(ctx context.Context) (v overview, err error) {
	v = overview{Version: p.o.Version, At: p.o.Now().UTC()}
	if v.Status, err = api.ReadStatus(ctx, p.o.DB, p.o.Around, p.o.Version); err != nil {
		return v, err
	}
	if v.GPUs, err = api.ReadGPUs(ctx, p.o.DB, p.o.Around); err != nil {
		return v, err
	}
	if p.o.Writable != nil {
		if err := p.o.Writable(ctx); err != nil {
			v.Trouble = gpuserver.PublicText(err)
		}
	}
	return v, p.o.DB.View(ctx, func(tx *store.Tx) error {
		if v.Queue, err = readQueue(tx); err != nil {
			return err
		}
		if v.VMs, err = tx.ListVMs(false, maxVMs); err != nil {
			return err
		}
		v.Recent, err = tx.ListJobs(store.JobFilter{Limit: maxRecent, States: []gpuserver.JobState{
			gpuserver.JobRunning, gpuserver.JobDone, gpuserver.JobFailed, gpuserver.JobRefused,
		}})
		return err
	})
}

func readQueue(tx *store.Tx) (qs []queued, err error) {
	for _, state := range []gpuserver.JobState{gpuserver.JobStarting, gpuserver.JobQueued, gpuserver.JobReceived, gpuserver.JobWaiting} {
		jobs, err := tx.JobsIn(state, maxQueue)
		if err != nil {
			return nil, err
		}
		for i, j := range jobs {
			q := queued{Job: j}
			if state == gpuserver.JobQueued {
				q.Place = i + 1
			}
			qs = append(qs, q)
		}
	}
	return qs, nil
}

type jobPage struct {
	api.JobDetail
	Why     api.Explanation
	Version string
	At      time.Time
}

func (p *pages) job(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		p.fail(w, r, gpuserver.Errorf(gpuserver.KindNotFound, "There is no such job."))
		return
	}
	v := jobPage{Version: p.o.Version, At: p.o.Now().UTC()}
	if v.JobDetail, err = api.ReadJob(r.Context(), p.o.DB, gpuserver.JobID(id)); err == nil {
		v.Why, err = api.ReadExplanation(r.Context(), p.o.DB, gpuserver.JobID(id))
	}
	if err != nil {
		p.fail(w, r, err)
		return
	}
	p.render(w, r, http.StatusOK, "job", v)
}

type gpuPage struct {
	api.GPUDetail
	Version string
	At      time.Time
}

func (p *pages) gpu(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		p.fail(w, r, gpuserver.Errorf(gpuserver.KindNotFound, "There is no such GPU."))
		return
	}
	v := gpuPage{Version: p.o.Version, At: p.o.Now().UTC()}
	if v.GPUDetail, err = api.ReadGPU(r.Context(), p.o.DB, p.o.Around, strconv.FormatInt(id, 10), maxEvents); err != nil {
		p.fail(w, r, err)
		return
	}
	p.render(w, r, http.StatusOK, "gpu", v)
}

func (p *pages) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	switch gpuserver.KindOf(err) {
	case gpuserver.KindNotFound:
		status = http.StatusNotFound
	case gpuserver.KindUnavailable:
		status = http.StatusServiceUnavailable
	}
	if status >= http.StatusInternalServerError && !errors.Is(err, context.Canceled) {
		p.o.Log.WarnContext(r.Context(), "dashboard: page failed", "path", r.URL.Path, "err", err)
	}
	p.render(w, r, status, "failed", map[string]any{"Text": gpuserver.PublicText(err), "Version": p.o.Version, "At": p.o.Now().UTC()})
}

// render renders to memory first, so that a page is never half of one.
func (p *pages) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	if err := p.tpl.ExecuteTemplate(&b, name, data); err != nil {
		p.o.Log.ErrorContext(r.Context(), "dashboard: template failed", "name", name, "err", err)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w)
}
