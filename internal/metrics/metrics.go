// Package metrics is what Prometheus reads of the server: the queue, VMs,
// leases, GPUs, phases of jobs, the forges' budgets, repairs and answers.
//
// What the store knows is read when it is asked for, so that it is right after
// a restart; what passes by is counted as it passes. No label ever holds an id
// of a job or VM, or anything else that grows without end.
package metrics

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/store"
)

// Metrics counts what passes by. Its methods may be called concurrently.
type Metrics struct {
	db       *store.DB
	registry *prometheus.Registry

	phases     *prometheus.HistogramVec
	jobs       *prometheus.CounterVec
	waits      prometheus.Histogram
	repairs    *prometheus.CounterVec
	strikes    *prometheus.CounterVec
	deliveries *prometheus.CounterVec
	answers    *prometheus.HistogramVec

	ends    *ends
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Seconds, from an immediate step to a VM that boots in emulation or a long job.
var phaseBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400}

// New makes the metrics of a server. Jobs that end and VMs that are gone are
// found through the store's changes, with their phases, and observed by a
// goroutine that Close ends.
func New(db *store.DB, fleet api.Surroundings, version string) *Metrics {
	m := &Metrics{
		db: db, registry: prometheus.NewRegistry(), ends: newEnds(),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gpuserver_job_phase_seconds", Help: "Time between a phase of a job and the phase before it, by the later one.", Buckets: phaseBuckets,
		}, []string{"phase"}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpuserver_jobs_ended_total", Help: "Jobs that ended, by our state and the forge's conclusion.",
		}, []string{"state", "conclusion"}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "gpuserver_job_wait_seconds", Help: "Time from the queueing of a job to its start.", Buckets: phaseBuckets,
		}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpuserver_repairs_total", Help: "What the reconciler found wrong and mended, by kind.",
		}, []string{"kind"}),
		strikes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpuserver_gpu_strikes_total", Help: "What was seen wrong of GPUs, by the GPU's number (gpuserver gpu list) and kind.",
		}, []string{"gpu", "kind"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpuserver_deliveries_total", Help: "Deliveries of forges, by what became of them.",
		}, []string{"forge", "outcome"}),
		answers: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gpuserver_http_request_seconds", Help: "Answers of the API and pages, by route and status.", Buckets: []float64{.001, .005, .025, .1, .5, 2, 10, 60},
		}, []string{"route", "status"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "gpuserver_build_info", Help: "1, with the version.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(m.phases, m.jobs, m.waits, m.repairs, m.strikes, m.deliveries, m.answers, build, &snapshot{db: db, fleet: fleet},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	db.Watch(m.ends.changed)
	m.running.Go(func() { m.count(ctx) })
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
}

// Close ends the counting of jobs.
func (m *Metrics) Close() {
	m.stop()
	m.running.Wait()
}

// Repair counts one thing that the reconciler mended. kind is one of a fixed
// set of words.
func (m *Metrics) Repair(kind string) { m.repairs.WithLabelValues(kind).Inc() }

// Strike counts one thing that was seen wrong of a card. kind is one of a fixed
// set of words; cards are as many as there are.
func (m *Metrics) Strike(gpu gpuserver.GPUID, kind string) {
	m.strikes.WithLabelValues(strconv.FormatInt(int64(gpu), 10), kind).Inc()
}

// Delivery counts a delivery. outcome is the store's word: job, recheck, other,
// foreign, bad, and replay.
func (m *Metrics) Delivery(forge, outcome string) { m.deliveries.WithLabelValues(forge, outcome).Inc() }

// Answer observes an answer of the API; give it as api.Options.Observe.
func (m *Metrics) Answer(route string, status int, took time.Duration) {
	m.answers.WithLabelValues(route, strconv.Itoa(status)).Observe(took.Seconds())
}
