package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gpuserver"
	"gpuserver/internal/access/userlist"
	"gpuserver/internal/admission"
	"gpuserver/internal/api"
	"gpuserver/internal/checks"
	"gpuserver/internal/cloud"
	"gpuserver/internal/config"
	"gpuserver/internal/fleet"
	"gpuserver/internal/forge"
	"gpuserver/internal/forge/github"
	"gpuserver/internal/gate"
	"gpuserver/internal/guest"
	"gpuserver/internal/intake"
	"gpuserver/internal/metrics"
	"gpuserver/internal/store"
)

// server is the service: every stage of a job's way, wired together. Tests,
// "demo" and "run" run the very same.
type server struct {
	cfg *config.Config
	log *slog.Logger

	db        *store.DB
	id        string // of this installation
	clouds    []cloud.Driver
	forges    map[string]*github.Forge
	intake    *intake.Intake
	admission *admission.Admission
	fleet     *fleet.Fleet
	checks    *checks.Writer
	feeds     []*intake.Feed
	api       *api.API
	metrics   *metrics.Metrics
	tidier    *store.Tidier

	listeners []*listener
}

// newServer opens the store, the clouds and the forges; nothing runs yet. What
// it opened is closed again if it fails.
func newServer(ctx context.Context, cfg *config.Config, log *slog.Logger) (s *server, err error) {
	s = &server{cfg: cfg, log: log, forges: map[string]*github.Forge{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := cfg.CheckSecrets(); err != nil {
		return s, err
	}
	dir := string(cfg.Server.DataDir)
	if err := os.MkdirAll(dir, 0o711); err != nil { // QEMU's user passes through to its disks
		return s, &gpuserver.Error{Kind: gpuserver.KindUnavailable, Public: "the data folder " + dir + " cannot be made; see server.data_dir", Err: err}
	}
	if s.db, err = store.Open(ctx, filepath.Join(dir, "gpuserver.db")); err != nil {
		return s, err
	}
	if s.id, err = fleet.Identity(ctx, s.db, cfg.Server.Name); err != nil {
		return s, err
	}
	for i := range cfg.Clouds {
		c, err := openCloud(ctx, cfg, &cfg.Clouds[i], s.id, log)
		if err != nil {
			return s, err
		}
		s.clouds = append(s.clouds, c)
	}
	for i := range cfg.Forges {
		f, err := openForge(ctx, &cfg.Forges[i])
		if err != nil {
			return s, err
		}
		s.forges[cfg.Forges[i].Name] = f
	}
	return s, s.wire(ctx)
}

// wire makes the stages and the listeners.
func (s *server) wire(ctx context.Context) (err error) {
	s.intake = &intake.Intake{
		DB: s.db, Redecide: fleet.Redecide, Log: s.log,
		Disk:    &intake.DiskGuard{Dir: string(s.cfg.Server.DataDir), MinFree: minFreeDisk, Log: s.log},
		Ours:    func(name string, repo forge.Repo, labels []string) bool { return s.admission.Ours(name, repo, labels) },
		Observe: func(name string, out intake.Outcome) { s.metrics.Delivery(name, string(out)); s.tidier.Came() },
	}
	s.tidier = s.newTidier()
	s.admission = s.newAdmission()
	if s.fleet, err = s.newFleet(ctx); err != nil {
		return err
	}
	told := map[string]forge.Forge{}
	for name, f := range s.forges {
		told[name] = f
	}
	s.checks = &checks.Writer{DB: s.db, Forges: told, PublicURL: string(s.cfg.Server.PublicURL), After: s.cfg.Jobs.NoticeAfter, Log: s.log}
	for i := range s.cfg.Forges {
		s.feeds = append(s.feeds, s.newFeed(&s.cfg.Forges[i]))
	}
	if s.api, err = s.newAPI(); err != nil {
		return err
	}
	return s.listen()
}

func (s *server) newAdmission() *admission.Admission {
	o := admission.Options{
		DB: s.db, Forges: map[string]admission.Forge{}, Mapping: s.cfg.Mapping(), Log: s.log,
		Users:  userLists{userlist.New(userlist.Options{Keeper: listKeeper{s.db}, Log: s.log})},
		Reread: s.intake.Apply,
	}
	for _, f := range s.cfg.Forges {
		o.Forges[f.Name] = admission.Forge{
			Forge: s.forges[f.Name], OrganisationRepo: f.Config.OrganisationRepo, RunnersFile: f.Config.RunnersFile,
			AccessFile: f.Config.AccessFile, RepositoryFile: f.Config.RepositoryFile, AllowForks: f.Config.Forks == "allow",
			LabelPrefixes: f.LabelPrefixes, Owners: f.Owners,
		}
	}
	o.Runners, o.Access = s.cfg.RunnersFile(), s.cfg.AccessFile()
	return admission.New(o)
}

func (s *server) newFleet(ctx context.Context) (*fleet.Fleet, error) {
	j, r := s.cfg.Jobs, s.cfg.Reconcile
	o := fleet.Options{
		DB: s.db, Clouds: s.clouds, Forges: map[string]fleet.Forge{}, Flavors: s.cfg.FlavorMap(), Name: s.cfg.Server.Name,
		Models: s.cfg.Models(), Places: places(s.cfg),
		AgentURL:  s.cfg.AgentURLFor,
		OutputDir: filepath.Join(string(s.cfg.Server.DataDir), "output"),
		Admit:     s.admission.Admit, Reread: s.intake.Apply, Repaired: s.repaired, Struck: s.struck, BackfillFor: j.BackfillFor, Log: s.log,
		RerunOnGPU: j.RerunOnGPUFailure,
		Limits: fleet.Limits{
			Boot: j.BootTimeout, EmulationFactor: j.EmulationFactor, Idle: j.IdleTimeout, Job: j.TimeLimit, Grace: j.Grace,
			Retries: j.Retries, RetryAfter: j.RetryAfter, HoldImageAfter: j.HoldImageAfter,
			SuspendAfter: j.SuspendFlavorAfter, SuspendOver: j.SuspendFlavorOver, SuspendFor: j.SuspendFlavorFor, Registrations: 64, Creates: 64,
		},
		Every: fleet.Intervals{Clouds: r.Clouds, Jobs: r.Jobs, Runners: r.Runners},
	}
	for name, f := range s.forges {
		o.Forges[name] = fleet.Forge{Forge: f, Scope: f.Scope}
	}
	return fleet.New(ctx, o)
}

func (s *server) newFeed(f *config.Forge) *intake.Feed {
	r := s.cfg.Reconcile
	return &intake.Feed{
		Intake: s.intake, Name: f.Name, Forge: deliveries{s.forges[f.Name]}, Pull: f.Mode == "pull", PullEvery: f.PullEvery,
		RetryEvery: r.Deliveries, RunsEvery: r.Runs, RunsFor: r.RunsFor, Repaired: s.repaired,
	}
}

// Run serves until ctx is done, then drains: no new work, and what is under way
// has until the drain time-out. VMs and their jobs go on; the next start takes
// them up.
func (s *server) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	run := func(fn func(context.Context) error) {
		wg.Go(func() {
			if err := fn(work); err != nil {
				failed <- err
			}
		})
	}
	run(s.admission.Run)
	run(s.fleet.Run)
	run(s.checks.Run)
	run(s.tidier.Run)
	for _, f := range s.feeds {
		run(func(ctx context.Context) error { f.Run(ctx); return nil })
	}
	for _, l := range s.listeners {
		run(l.serve)
	}
	notifyReady(s.log)
	s.log.Info("serving", "version", version(), "installation", s.fleet.ID(), "clouds", len(s.clouds), "forges", len(s.forges))

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	notifyStopping()
	s.fleet.StopPlanning()
	s.log.Info("draining; running jobs go on without us", "timeout", s.cfg.Server.DrainTimeout)
	stop()
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(s.cfg.Server.DrainTimeout):
		s.log.Warn("not everything ended in time; the next start takes it up")
	}
	return err
}

// repaired counts a repair of a reconciler.
func (s *server) repaired(kind string) { s.metrics.Repair(kind) }

// struck counts what was seen wrong of a card.
func (s *server) struck(card gpuserver.GPUID, kind gate.Kind) { s.metrics.Strike(card, string(kind)) }

// newTidier makes what deletes the things older than their retention.
func (s *server) newTidier() *store.Tidier {
	r := s.cfg.Retention
	return &store.Tidier{
		DB: s.db, Limits: store.Limits{Deliveries: r.Deliveries, Jobs: r.Jobs, MaxDeliveries: 200_000, MaxBodies: 20_000},
		Every: r.Every, After: 20_000, Also: func() { s.fleet.PruneOutputs(r.Jobs) }, Log: s.log,
	}
}

// Close closes what newServer opened. VMs go on.
func (s *server) Close() {
	for _, l := range s.listeners {
		l.close()
	}
	if s.api != nil {
		s.api.Close()
	}
	for _, f := range s.forges {
		_ = f.Close()
	}
	for _, c := range s.clouds {
		if err := c.Close(); err != nil {
			s.log.Warn("cloud cannot be closed", "cloud", c.Name(), "err", err)
		}
	}
	if s.metrics != nil {
		s.metrics.Close()
	}
	if s.db != nil {
		if err := s.db.Close(); err != nil {
			s.log.Warn("store cannot be closed", "err", err)
		}
	}
}

// listen binds the listeners; nothing is served yet.
func (s *server) listen() error {
	l := s.cfg.Server.Listen
	hooks := http.NewServeMux()
	for i := range s.cfg.Forges {
		f := &s.cfg.Forges[i]
		h := s.intake.Handler(f.Name, hookReader{s.forges[f.Name]})
		hooks.Handle("/webhooks/"+f.Name, h)
		if len(s.cfg.Forges) == 1 {
			hooks.Handle("/webhook", h)
		}
	}
	for _, x := range []struct {
		what, address string
		bind          func(string) (*listener, error)
		handler       http.Handler
	}{
		{"webhooks", string(l.Webhooks), bindTCP, hooks},
		{"agent", string(l.Agent), bindGuests, guest.Handler(s.fleet, s.log)},
		{"api", string(l.API), bindTCP, s.api.TCP()},
		{"socket", string(l.Socket), bindSocket, s.api.Socket()},
	} {
		if x.address == "" || x.what == "webhooks" && len(s.cfg.Forges) == 0 {
			continue
		}
		ln, err := x.bind(x.address)
		if err != nil {
			return &gpuserver.Error{
				Kind: gpuserver.KindUnavailable, Public: fmt.Sprintf("cannot listen on %s for %s; see server.listen.%s", x.address, x.what, x.what), Err: err,
			}
		}
		ln.handle(x.what, x.handler, s.log)
		s.listeners = append(s.listeners, ln)
	}
	return nil
}

// minFreeDisk is how much room the database's file system must have for
// deliveries to be accepted, in bytes.
const minFreeDisk = 64 << 20

func isClosed(err error) bool { return errors.Is(err, http.ErrServerClosed) }

// address gives where a listener is bound, "" if there is none.
func (s *server) address(what string) string {
	for _, l := range s.listeners {
		if l.what == what {
			return l.Addr().String()
		}
	}
	return ""
}
