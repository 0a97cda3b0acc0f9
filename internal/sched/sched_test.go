package sched

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var flavors = map[string]gpuserver.Flavor{
	"small": {Name: "small", VCPUs: 2, MemoryMiB: 2048, DiskGiB: 10},
	"big":   {Name: "big", VCPUs: 8, MemoryMiB: 16384, DiskGiB: 40},
	"huge":  {Name: "huge", VCPUs: 64, MemoryMiB: 1 << 20, DiskGiB: 40},
}

// job is a job that was queued so many minutes before noon; each entry is
// "cloud/flavor" or "cloud/flavor/image".
func job(id gpuserver.JobID, age int, entries ...string) gpuserver.Job {
	j := gpuserver.Job{ID: id, State: gpuserver.JobQueued, QueuedAt: noon.Add(-time.Duration(age) * time.Minute)}
	for _, e := range entries {
		parts := append(strings.Split(e, "/"), "debian")
		j.Entries = append(j.Entries, gpuserver.Entry{Cloud: parts[0], Flavor: parts[1], Image: parts[2]})
	}
	return j
}

func hostOf(cloud, name string, cpus int) gpuserver.Host {
	return gpuserver.Host{Cloud: cloud, Name: name, VCPUs: cpus, MemoryMiB: int64(cpus) * 2048, DiskGiB: 1000}
}

func uses(cloud, name string, cpus int) Use {
	return Use{Cloud: cloud, Host: name, VCPUs: cpus, MemoryMiB: int64(cpus) * 1024, DiskGiB: 10, VMs: 1}
}

// brief puts decisions in a line each: "1 local/a#0" or "2 class: text".
func brief(ds []Decision) string {
	var b strings.Builder
	for _, d := range ds {
		if d.Place != nil {
			fmt.Fprintf(&b, "%d %s/%s#%d\n", d.Job, d.Place.Cloud, d.Place.Host, d.Place.Entry)
		} else {
			fmt.Fprintf(&b, "%d %s: %s\n", d.Job, d.Reason.Class, d.Reason.Text)
		}
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	local := []gpuserver.Host{hostOf("local", "a", 16)}
	pair := []gpuserver.Host{hostOf("local", "a", 16), hostOf("local", "b", 8)}
	tests := []struct {
		name string
		s    Snapshot
		want string
	}{
		{"nothing waits", Snapshot{Hosts: local}, ""},
		{"oldest first, ties by number", Snapshot{
			Hosts:   []gpuserver.Host{hostOf("local", "a", 4)},
			Waiting: []gpuserver.Job{job(3, 1, "local/small"), job(2, 1, "local/small"), job(9, 2, "local/small")},
		}, `
			9 local/a#0
			2 local/a#0
			3 behind: waits on cloud local: older jobs have just taken what was free; no job is ahead`},
		{"what is missing and who is ahead", Snapshot{
			Hosts: local, Used: []Use{uses("local", "a", 12)},
			Waiting: []gpuserver.Job{job(1, 2, "local/big"), job(2, 1, "local/big")},
		}, `
			1 capacity: waits for 8 vCPU on cloud local: 4 of 16 vCPU are free; no job is ahead
			2 capacity: waits for 8 vCPU on cloud local: 4 of 16 vCPU are free; 1 job is ahead`},
		{"a suspended flavor goes elsewhere, or waits", Snapshot{
			Hosts:     append([]gpuserver.Host{hostOf("stack", "s", 64)}, local...),
			Suspended: map[FlavorOn]Suspension{{"stack", "small"}: {Reason: gpuserver.Reason{Text: "is suspended"}}},
			Waiting:   []gpuserver.Job{job(1, 3, "stack/small", "local/small"), job(2, 2, "stack/small"), job(3, 1, "stack/big")},
		}, `
			1 local/a#1
			2 suspended: is suspended
			3 stack/s#0`},
		{"a suspended flavor is tried with one VM", Snapshot{
			Hosts:     append([]gpuserver.Host{hostOf("stack", "s", 64)}, local...),
			Suspended: map[FlavorOn]Suspension{{"stack", "small"}: {Reason: gpuserver.Reason{Text: "is suspended"}, Probe: true}},
			Waiting:   []gpuserver.Job{job(1, 4, "stack/huge"), job(2, 3, "stack/small"), job(3, 2, "stack/small", "local/small"), job(4, 1, "stack/small")},
		}, `
			1 no_place: cannot run on cloud stack: flavor huge needs 1024 GiB of memory, and no host is that large (s has 128 GiB of memory)
			2 stack/s#0
			3 local/a#1
			4 suspended: is suspended`},
		{"a quota is no host", Snapshot{
			Hosts:   []gpuserver.Host{{Cloud: "stack", Name: "stack", Bound: "the project's quotas", VCPUs: 4, MemoryMiB: 1 << 20, DiskGiB: 999}},
			Waiting: []gpuserver.Job{job(1, 2, "stack/big")},
		}, `
			1 no_place: cannot run on cloud stack: flavor big needs 8 vCPU, and within the project's quotas we have 4 vCPU`},
		{"several things missing, several hosts", Snapshot{
			Hosts:   pair,
			Used:    []Use{uses("local", "a", 15), {Cloud: "local", Host: "b", VCPUs: 1, MemoryMiB: 8193, DiskGiB: 10, VMs: 1}},
			Waiting: []gpuserver.Job{job(1, 2, "local/big")},
		}, `
			1 capacity: waits for 8 vCPU and 16 GiB of memory on cloud local: 7 of 8 vCPU and 8191 MiB of 16 GiB of memory are free on host b, the nearest of 2; no job is ahead`},
		{"number of VMs", Snapshot{
			Hosts:   []gpuserver.Host{{Cloud: "local", Name: "a", VCPUs: 99, MemoryMiB: 1 << 20, DiskGiB: 99, MaxVMs: 1}},
			Waiting: []gpuserver.Job{job(1, 1, "local/small"), job(2, 0, "local/small")}, Used: []Use{{Cloud: "local", Host: "a", VMs: 1}},
		}, `
			1 capacity: waits for 1 VM on cloud local: 0 of 1 VM are free; no job is ahead
			2 capacity: waits for 1 VM on cloud local: 0 of 1 VM are free; 1 job is ahead`},
		{"the fullest host that fits", Snapshot{
			Hosts: pair, Used: []Use{uses("local", "a", 12)},
			Waiting: []gpuserver.Job{job(1, 2, "local/small"), job(2, 1, "local/big")},
		}, `
			1 local/a#0
			2 local/b#0`},
		{"young jobs are overtaken", Snapshot{
			Hosts: local, Used: []Use{uses("local", "a", 12)},
			Waiting: []gpuserver.Job{job(1, 4, "local/big"), job(2, 1, "local/small")},
		}, `
			1 capacity: waits for 8 vCPU on cloud local: 4 of 16 vCPU are free; no job is ahead
			2 local/a#0`},
		{"room is kept for an old job", Snapshot{
			Hosts: local, Used: []Use{uses("local", "a", 12)},
			Waiting: []gpuserver.Job{job(1, 12, "local/big"), job(2, 11, "local/small")},
		}, `
			1 capacity: waits for 8 vCPU on cloud local: 4 of 16 vCPU are free; no job is ahead
			2 behind: waits behind job 1 on cloud local, which has waited 12 min and for which room is kept on host a; 1 job is ahead`},
		{"room is kept where only memory is short", Snapshot{
			Hosts: local, Used: []Use{uses("local", "a", 4), {Cloud: "local", Host: "a", MemoryMiB: 20000}},
			Flavors: map[string]gpuserver.Flavor{"fat": {Name: "fat", VCPUs: 8, MemoryMiB: 8700}, "lean": {Name: "lean", VCPUs: 2, MemoryMiB: 1}},
			Waiting: []gpuserver.Job{job(1, 12, "local/fat"), job(2, 11, "local/lean")},
		}, `
			1 capacity: waits for 8700 MiB of memory on cloud local: 8672 MiB of 32 GiB of memory are free; no job is ahead
			2 behind: waits behind job 1 on cloud local, which has waited 12 min and for which room is kept on host a; 1 job is ahead`},
		{"room is kept on one host only", Snapshot{
			Hosts:   []gpuserver.Host{hostOf("local", "a", 8), hostOf("local", "b", 8)},
			Used:    []Use{uses("local", "a", 6), uses("local", "b", 4)},
			Waiting: []gpuserver.Job{job(1, 9, "local/big"), job(2, 8, "local/small"), job(3, 7, "local/small")},
		}, `
			1 capacity: waits for 8 vCPU and 16 GiB of memory on cloud local: 4 of 8 vCPU and 12 GiB of 16 GiB of memory are free on host b, the nearest of 2; no job is ahead
			2 local/a#0
			3 behind: waits behind job 1 on cloud local, which has waited 9 min and for which room is kept on host b; 1 job is ahead`},
		{"fallback in order", Snapshot{
			Hosts:   []gpuserver.Host{hostOf("local", "a", 2), hostOf("far", "f", 16)},
			Waiting: []gpuserver.Job{job(1, 2, "local/small", "far/small"), job(2, 1, "local/small", "far/small")},
		}, `
			1 local/a#0
			2 far/f#1`},
		{"a cloud that is down and a held image are passed over", Snapshot{
			Hosts:      local,
			CloudDown:  map[string]gpuserver.Reason{"far": {}},
			HeldImages: map[string]gpuserver.Reason{"bad": {Text: "waits for image bad, whose runner is too old"}},
			Waiting:    []gpuserver.Job{job(1, 2, "far/small", "local/small/bad", "local/small"), job(2, 1, "far/small", "local/small/bad"), job(3, 0, "local/small/bad")},
		}, `
			1 local/a#2
			2 unreachable: waits for cloud far, which cannot be reached; entry 2 of 2: waits for image bad, whose runner is too old
			3 image_held: waits for image bad, whose runner is too old`},
		{"impossible ones", Snapshot{
			Hosts:   pair,
			Waiting: []gpuserver.Job{job(1, 9, "local/huge"), job(2, 8, "local/none"), job(3, 7, "mars/small"), job(4, 6), job(5, 5, "local/huge", "local/small")},
		}, `
			1 no_place: cannot run on cloud local: flavor huge needs 64 vCPU and 1024 GiB of memory, and no host is that large (a has 16 vCPU and 32 GiB of memory)
			2 no_place: cannot run on cloud local: there is no flavor "none"
			3 no_place: cannot run on cloud "mars": it has no hosts
			4 no_place: cannot run anywhere: its runner entry names no place
			5 local/b#1`},
		{"starts are limited", Snapshot{
			Hosts: local, Starts: map[string]int{"local": 1},
			Waiting: []gpuserver.Job{job(1, 2, "local/small"), job(2, 1, "local/small")},
		}, `
			1 local/a#0
			2 capacity: waits until cloud local may start another VM; no job is ahead`},
		{"a host that is used beyond its room", Snapshot{
			Hosts: local, Used: []Use{uses("local", "a", 20)},
			Waiting: []gpuserver.Job{job(1, 2, "local/small")},
		}, `
			1 capacity: waits for 2 vCPU on cloud local: 0 of 16 vCPU are free; no job is ahead`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.s.Flavors == nil {
				tt.s.Flavors = flavors
			}
			want := strings.TrimLeft(strings.ReplaceAll(tt.want, "\n\t\t\t", "\n")+"\n", "\n")
			if diff := cmp.Diff(want, brief(Plan(tt.s, noon))); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	later := noon.Add(time.Minute)
	told := gpuserver.Reason{Class: gpuserver.ReasonForgeBudget, Text: "the forge's limit is used up", Help: "wait"}
	a, b, c := job(1, 9, "local/small"), job(2, 8, "local/small"), job(3, 7, "local/small")
	a.NextTryAt = later
	b.NextTryAt, b.Reason = later, told
	c.NextTryAt = noon
	got := Plan(Snapshot{Waiting: []gpuserver.Job{a, b, c}, Hosts: []gpuserver.Host{hostOf("local", "a", 2)}, Flavors: flavors}, noon)
	for _, d := range got[:2] {
		if d.Place != nil || !d.RetryAt.Equal(later) {
			t.Errorf("job %d: %+v, want it to be retried at %v", d.Job, d, later)
		}
	}
	if got[0].Reason.Class != gpuserver.ReasonRetry || got[0].Reason.Text == "" {
		t.Errorf("reason %+v, want class retry", got[0].Reason)
	}
	if diff := cmp.Diff(told, got[1].Reason); diff != "" {
		t.Errorf("a reason that was told already is changed (-want +got):\n%s", diff)
	}
	if got[2].Place == nil {
		t.Errorf("a job whose time has come waits: %+v", got[2].Reason)
	}
}

func TestSum(t *testing.T) {
	lease := func(host string, cpus int, released time.Time) gpuserver.Lease {
		return gpuserver.Lease{Cloud: "local", Host: host, VCPUs: cpus, MemoryMiB: 10, DiskGiB: 1, ReleasedAt: released}
	}
	got := Sum([]gpuserver.Lease{lease("a", 2, time.Time{}), lease("b", 4, time.Time{}), lease("a", 3, time.Time{}), lease("a", 9, noon)})
	want := []Use{{"local", "a", 5, 20, 2, 2, nil}, {"local", "b", 4, 10, 1, 1, nil}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Sum (-want +got):\n%s", diff)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, full := range []bool{false, true} {
		b.Run(fmt.Sprintf("full=%v", full), func(b *testing.B) {
			s := Snapshot{Flavors: flavors}
			var leases []gpuserver.Lease
			for i := range 100 {
				cpus := 110
				if full {
					cpus = 101
				}
				s.Hosts = append(s.Hosts, hostOf("local", fmt.Sprintf("h%d", i), cpus))
				for range 50 {
					leases = append(leases, gpuserver.Lease{Cloud: "local", Host: fmt.Sprintf("h%d", i), VCPUs: 2, MemoryMiB: 2048, DiskGiB: 10})
				}
			}
			for i := range 1000 {
				s.Waiting = append(s.Waiting, job(gpuserver.JobID(i), i%20, "local/big", "local/small"))
			}
			for b.Loop() {
				s.Used = Sum(leases)
				Plan(s, noon)
			}
		})
	}
}
