package openstack

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/limits"

	"gpuserver"
)

// unlimited stands for what no quota bounds, in each unit.
const (
	manyVCPUs = 1 << 20
	manyMiB   = 1 << 32
	manyGiB   = 1 << 24
)

// Capacity implements cloud.Driver. The project is one host, with the room that its
// quotas leave: the cloud's hosts are not ours to see, and Nova chooses among them.
// What servers of others in the project use is taken off.
func (d *Driver) Capacity(ctx context.Context) ([]gpuserver.Host, error) {
	ctx, cancel := d.bind(ctx)
	defer cancel()
	if err := d.refresh(ctx); err != nil {
		return nil, err
	}
	q, err := d.quotas(ctx)
	if err != nil {
		return nil, err
	}
	ours, others := d.uses()
	if d.cfg.BootFromVolume { // disks are volumes
		ours.disk, others.disk = q.ourDisk, 0
	}
	h := gpuserver.Host{
		Cloud: d.cfg.Name, Name: d.cfg.Name, Bound: "the project's quotas",
		VCPUs:     int(room(q.cores, others.vcpus, ours.vcpus, manyVCPUs)),
		MemoryMiB: room(q.ram, others.ram, ours.ram, manyMiB),
		DiskGiB:   room(q.disk, others.disk, ours.disk, manyGiB),
	}
	if q.servers >= 0 {
		h.MaxVMs = int(max(q.servers-others.servers, ours.servers, 0))
		if h.MaxVMs == 0 { // 0 would mean that there is no limit
			h.VCPUs, h.MemoryMiB, h.Bound = 0, 0, "the project's quota of servers"
		}
	}
	if m := d.cfg.MaxVMs; m > 0 && (h.MaxVMs == 0 || m < h.MaxVMs) {
		h.MaxVMs = m
	}
	h.Slots, err = d.slots(ctx)
	return []gpuserver.Host{h}, err
}

// room is what we may use: the quota without what others use, and never less than
// we do use. A negative quota is none.
func room(quota, others, ours, none int64) int64 {
	if quota < 0 {
		return none
	}
	return max(quota-others, ours, 0)
}

// use is what servers use.
type use struct{ servers, vcpus, ram, disk int64 }

// uses sums the sizes of the project's servers, ours and those of others.
func (d *Driver) uses() (ours, others use) {
	for _, s := range d.watch.all() {
		u := &others
		if s.owner() == d.cfg.Owner {
			u = &ours
		}
		u.servers++
		u.vcpus += int64(s.Flavor.VCPUs)
		u.ram += s.Flavor.RAM
		u.disk += s.Flavor.Disk
	}
	return ours, others
}

// quota is what the project may use; negative: no limit.
type quota struct {
	servers, cores, ram, disk int64
	ourDisk                   int64 // GiB of volumes that are ours
}

// quotas reads the project's quotas. Nova's own answer is used, which is Keystone's
// where its limits are unified; only of the disk that says nothing.
func (d *Driver) quotas(ctx context.Context) (quota, error) {
	var l *limits.Limits
	err := d.ask(ctx, "read the project's limits", func(ctx context.Context, s *session) (err error) {
		l, err = limits.Get(ctx, s.compute, nil).Extract()
		return err
	})
	if err != nil {
		return quota{}, err
	}
	a := l.Absolute
	q := quota{servers: int64(a.MaxTotalInstances), cores: int64(a.MaxTotalCores), ram: int64(a.MaxTotalRAMSize), disk: -1}
	if d.cfg.BootFromVolume {
		err = d.volumeQuota(ctx, &q)
		return q, err
	}
	q.disk, err = d.unifiedDisk(ctx, q)
	return q, err
}

// volumeQuota puts the quota of volumes in: their GiB are the disk, and there are
// no more servers than volumes.
func (d *Driver) volumeQuota(ctx context.Context, q *quota) error {
	if _, err := d.allRemains(ctx); err != nil {
		return err
	}
	var answer struct {
		Limits struct {
			Absolute struct {
				Volumes     int64 `json:"maxTotalVolumes"`
				Gigabytes   int64 `json:"maxTotalVolumeGigabytes"`
				VolumesUsed int64 `json:"totalVolumesUsed"`
				Used        int64 `json:"totalGigabytesUsed"`
			} `json:"absolute"`
		} `json:"limits"`
	}
	err := d.ask(ctx, "read the volumes' limits", func(ctx context.Context, s *session) error {
		_, err := s.volume.Get(ctx, s.volume.ServiceURL("limits"), &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
		return err
	})
	if err != nil {
		return err
	}
	a := answer.Limits.Absolute
	if a.Volumes >= 0 {
		servers := int64(len(d.watch.all())) + max(a.Volumes-a.VolumesUsed, 0)
		if q.servers < 0 || servers < q.servers {
			q.servers = servers
		}
	}
	q.ourDisk = d.parts.volumesGiB()
	if a.Gigabytes >= 0 {
		q.disk = max(a.Gigabytes-a.Used, 0) + q.ourDisk
	}
	return nil
}

// keystoneLimits are the unified limits, which change rarely.
type keystoneLimits struct {
	mu   sync.Mutex
	at   time.Time
	disk int64 // of class:DISK_GB; -1: none
}

// unifiedEvery is how often Keystone is asked for limits.
const unifiedEvery = 10 * time.Minute

// unifiedDisk gives the limit of disks where limits are unified, -1 elsewhere. Nova
// does not say which driver of quotas it uses: it is the unified one if Keystone's
// limits of the three that Nova shows are just those. Up to 2024.2 a limit that is
// not set there counts as 0.
// Source: nova/quota.py (UnifiedLimitsDriver), nova/limit/placement.py, and
// docs.openstack.org/nova, "Manage Unified Limits Quotas".
func (d *Driver) unifiedDisk(ctx context.Context, shown quota) (int64, error) {
	k := &d.quota
	k.mu.Lock()
	disk, fresh := k.disk, time.Since(k.at) < unifiedEvery
	k.mu.Unlock()
	if fresh {
		return disk, nil
	}
	set, newest, err := d.registeredLimits(ctx)
	switch gpuserver.KindOf(err) {
	case "":
	case gpuserver.KindRefused, gpuserver.KindNotFound, gpuserver.KindInvalid:
		set = nil // a Keystone before Queens, or a closed one
	default:
		return 0, err
	}
	disk = -1
	value := func(name string) int64 { // what Nova makes of it
		v, ok := set[name]
		if !ok {
			return 0
		}
		return v
	}
	if len(set) > 0 && value("servers") == shown.servers && value("class:VCPU") == shown.cores && value("class:MEMORY_MB") == shown.ram {
		if v, ok := set["class:DISK_GB"]; ok {
			disk = v
		} else if newest < epoxyNova {
			disk = 0
			d.log.Warn("Keystone has no registered limit for class:DISK_GB, which Nova takes for 0: no VM whose flavor has a disk can be made there; set one", "service", "nova")
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.at, k.disk = time.Now(), disk
	return disk, nil
}

// registeredLimits gives Nova's limits in Keystone: the project's own, and else the
// registered ones; and Nova's newest microversion. Nova reads those of its endpoint's
// region only, and none that are of no region.
// Source: oslo_limit/limit.py, _EnforcerUtils.
func (d *Driver) registeredLimits(ctx context.Context) (set map[string]int64, newest int, err error) {
	var registered struct {
		Limits []struct {
			Name  string `json:"resource_name"`
			Limit int64  `json:"default_limit"`
		} `json:"registered_limits"`
	}
	var own struct {
		Limits []struct {
			Name    string `json:"resource_name"`
			Project string `json:"project_id"`
			Limit   int64  `json:"resource_limit"`
		} `json:"limits"`
	}
	set = map[string]int64{}
	err = d.ask(ctx, "read Keystone's limits", func(ctx context.Context, s *session) error {
		newest = s.newest
		query := "?" + url.Values{"service_id": {s.service}, "region_id": {s.region}}.Encode()
		ok := &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}}
		if _, err := s.identity.Get(ctx, s.identity.ServiceURL("registered_limits")+query, &registered, ok); err != nil || len(registered.Limits) == 0 {
			return err
		}
		if _, err := s.identity.Get(ctx, s.identity.ServiceURL("limits")+query, &own, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}}); err != nil {
			return err
		}
		for _, l := range registered.Limits {
			set[l.Name] = l.Limit
		}
		for _, l := range own.Limits {
			if l.Project == s.project {
				set[l.Name] = l.Limit
			}
		}
		return nil
	})
	return set, newest, err
}

// slots gives a slot without an address for each card that VMs of ours may have.
// Cards that servers of others have are out: of other owners in our project, which
// the list shows, and of other projects where Placement may be read.
func (d *Driver) slots(ctx context.Context) (slots []gpuserver.Slot, err error) {
	all := d.watch.all()
	for _, g := range d.cfg.GPUs {
		ours, others := 0, 0
		for _, s := range all {
			if s.owner() == d.cfg.Owner {
				ours += s.Flavor.cards(g.Alias)
			} else {
				others += s.Flavor.cards(g.Alias)
			}
		}
		count, why := g.Count, "a server of somebody else in the project has it"
		usable := count - others
		if g.Class != "" {
			asked := d
			if d.admin != nil {
				asked = d.admin
			}
			free, known, err := asked.freeInPlacement(ctx, g.Class)
			if err != nil {
				return nil, err
			}
			ours += d.heldBack(g.Class)
			switch {
			case known && count == 0:
				count, usable = free+ours, free+ours
			case known && free+ours < usable:
				usable, why = free+ours, "Placement says that it is not free"
			}
		}
		for i := range count {
			slot := gpuserver.Slot{Group: len(slots), NUMANode: -1, Cards: []gpuserver.Card{{Model: g.Model}}}
			if i >= max(usable, ours) {
				slot.Out = why
			}
			slots = append(slots, slot)
		}
	}
	return slots, nil
}

// freeInPlacement gives how many devices of a class Placement has to give away;
// known is false where the credential may not ask.
// Source: docs.openstack.org/api-ref/placement, "Allocation candidates".
func (d *Driver) freeInPlacement(ctx context.Context, class string) (free int, known bool, err error) {
	var answer struct {
		Summaries map[string]struct {
			Resources map[string]struct {
				Capacity int `json:"capacity"`
				Used     int `json:"used"`
			} `json:"resources"`
		} `json:"provider_summaries"`
	}
	err = d.ask(ctx, "ask Placement", func(ctx context.Context, s *session) error {
		if s.placement == nil {
			return gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no Placement in its catalogue", d.cfg.Name)
		}
		client := *s.placement // the microversion is this call's
		client.Microversion = placementVersion
		query := url.Values{"resources": {fmt.Sprintf("%s:1", class)}, "limit": {"1000"}}
		_, err := client.Get(ctx, client.ServiceURL("allocation_candidates")+"?"+query.Encode(), &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
		return err
	})
	switch gpuserver.KindOf(err) {
	case "":
	case gpuserver.KindRefused, gpuserver.KindNotFound, gpuserver.KindInvalid: // not allowed, or a class that is not there
		return 0, false, nil
	default:
		return 0, false, err
	}
	for _, s := range answer.Summaries {
		r := s.Resources[class]
		free += max(r.Capacity-r.Used, 0) // reserved while a server still has it: less than none
	}
	return free, true, nil
}
