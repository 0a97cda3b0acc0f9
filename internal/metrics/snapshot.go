package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/store"
)

// snapshot is a collector of what the store and the fleet know now.
type snapshot struct {
	db    *store.DB
	fleet api.Surroundings
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("gpuserver_"+name, help, labels, nil)
}

var (
	queueLength = desc("queue_length", "Jobs that may run and wait for a VM.")
	queueAge    = desc("queue_age_seconds", "How long the first job of the queue has waited; 0 if none waits.")
	jobsNow     = desc("jobs", "Unfinished jobs by state.", "state")
	vmsNow      = desc("vms", "VMs alive by cloud and state.", "cloud", "state")
	imageHeld   = desc("image_held", "1 for an image that is held after failures in a row, 0 for one with fewer.", "image")
	suspended   = desc("flavor_suspended", "1 for a flavor that is suspended on a cloud, which finds no host for it although it has room by the ledger; no series otherwise.", "cloud", "flavor")
	cloudUp     = desc("cloud_up", "1 if the cloud's last answer was good.", "cloud")
	hostTotal   = desc("host_capacity", "What VMs may use of a host, by resource (vcpus, memory_mib, disk_gib).", "cloud", "host", "resource")
	hostUsed    = desc("host_leased", "What leases hold of a host, by resource (vcpus, memory_mib, disk_gib, vms).", "cloud", "host", "resource")
	gpusNow     = desc("gpus", "GPUs by cloud, model and state (in_service, cordoned, quarantined).", "cloud", "model", "state")
	slotsNow    = desc("slots", "IOMMU groups with GPUs by cloud and state (free, held by a VM, out of service).", "cloud", "state")
	forgeUp     = desc("forge_up", "1 if the forge's last answer was good.", "forge")
	forgeLeft   = desc("forge_calls_remaining", "Calls that the forge still allows in its present hour.", "forge")
	forgePoints = desc("forge_points_total", "Points spent on a forge by class of call.", "forge", "class")
	storeUp     = desc("store_readable", "1 if the store could be read for this scrape.")
)

// Describe implements prometheus.Collector.
func (s *snapshot) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{queueLength, queueAge, jobsNow, vmsNow, imageHeld, suspended, cloudUp, hostTotal, hostUsed, gpusNow, slotsNow, forgeUp, forgeLeft, forgePoints, storeUp} {
		ch <- d
	}
}

// A scrape must end before Prometheus's own time-out of 10 s.
const scrapeLimit = 5 * time.Second

// Collect implements prometheus.Collector.
func (s *snapshot) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st, err := api.ReadStatus(ctx, s.db, s.fleet, "")
	gauge(storeUp, truth(err == nil))
	if err != nil {
		return
	}
	gauge(queueLength, float64(st.Queue.Length))
	gauge(queueAge, st.Queue.AgeSeconds)
	for _, state := range []gpuserver.JobState{gpuserver.JobWaiting, gpuserver.JobReceived, gpuserver.JobQueued, gpuserver.JobStarting, gpuserver.JobRunning} {
		gauge(jobsNow, float64(st.Jobs[state]), string(state))
	}
	for _, v := range st.VMs {
		gauge(vmsNow, float64(v.Count), v.Cloud, string(v.State))
	}
	for _, i := range st.Images {
		gauge(imageHeld, truth(i.Held), i.Name)
	}
	for _, f := range st.Suspended {
		gauge(suspended, 1, f.Cloud, f.Flavor)
	}
	for _, c := range st.Clouds {
		gauge(cloudUp, truth(c.Up), c.Name)
	}
	for _, h := range st.Hosts {
		hostMetrics(gauge, h)
	}
	gpuMetrics(gauge, st)
	for _, f := range st.Forges {
		gauge(forgeUp, truth(f.Up), f.Name)
		gauge(forgeLeft, float64(f.Remaining), f.Name)
		for class, n := range f.Spent {
			ch <- prometheus.MustNewConstMetric(forgePoints, prometheus.CounterValue, float64(n), f.Name, class)
		}
	}
}

func hostMetrics(gauge func(*prometheus.Desc, float64, ...string), h api.HostStatus) {
	gauge(hostTotal, float64(h.VCPUs), h.Cloud, h.Name, "vcpus")
	gauge(hostTotal, float64(h.MemoryMiB), h.Cloud, h.Name, "memory_mib")
	gauge(hostTotal, float64(h.DiskGiB), h.Cloud, h.Name, "disk_gib")
	gauge(hostUsed, float64(h.Used.VCPUs), h.Cloud, h.Name, "vcpus")
	gauge(hostUsed, float64(h.Used.MemoryMiB), h.Cloud, h.Name, "memory_mib")
	gauge(hostUsed, float64(h.Used.DiskGiB), h.Cloud, h.Name, "disk_gib")
	gauge(hostUsed, float64(h.Used.VMs), h.Cloud, h.Name, "vms")
}

// gpuMetrics tells all three states of each model, so that a series is 0 and not
// gone when the last card leaves a state.
func gpuMetrics(gauge func(*prometheus.Desc, float64, ...string), st api.Status) {
	type key struct {
		cloud, model string
		state        gpuserver.GPUState
	}
	n := map[key]int{}
	for _, c := range st.GPUs.Counts {
		for _, state := range []gpuserver.GPUState{gpuserver.GPUInService, gpuserver.GPUCordoned, gpuserver.GPUQuarantined} {
			n[key{c.Cloud, c.Model, state}] += 0
		}
		n[key{c.Cloud, c.Model, c.State}] += c.Count
	}
	for k, count := range n {
		gauge(gpusNow, float64(count), k.cloud, k.model, string(k.state))
	}
	for _, c := range st.Slots {
		gauge(slotsNow, float64(c.Count), c.Cloud, c.State)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
