// Package bench measures the service as its users meet it: the real program as
// a process, with the forge, the cloud and the load as processes of their own.
//
// Each part begins with a fresh world, so that the parts can be run alone and in
// any order. What a figure means is written where it is taken and, for readers
// of the table, in docs/performance.md. Times come from the records of the other
// processes: the stand-in for GitHub notes when it sent a delivery, the fake
// cloud when a call arrived. All run on one machine and so by one clock.
package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

// Size is how much is measured.
type Size struct {
	Singles       int           // single jobs, forge without latency
	SinglesLate   int           // single jobs, forge with 150 ms
	SinglesPerS   float64       // how many of them arrive a second at most
	Burst         int           // jobs at once
	LimitedJobs   int           // jobs at once with the forge's limits on
	LimitedFor    time.Duration // how long their creation is watched
	IntakeFor     time.Duration // each of the two kinds of load
	IntakePerS    int           // the fixed rate at which latency is measured
	LiveVMs       int           // that are there in the second intake measurement
	MemoryVMs     int           // whose memory is measured
	MemorySettle  time.Duration // how long memory is sampled
	Restarts      int           // kills
	RestartQueued int           // jobs that wait meanwhile
	StackPairs    int           // single VMs on a real OpenStack, beside as many of a bare client
	StackBurst    int           // VMs at once there
	StackBursts   int           // how often, beside as many of the bare client
	StackOurs     int           // of the service that are alive when idle calls are counted
	StackLive     int           // with those of others in the project
	StackSettle   time.Duration // before that is
	StackIdle     time.Duration // how long calls are counted
}

// FullSize is what the published figures are taken with.
func FullSize() Size {
	return Size{
		Singles: 300, SinglesLate: 100, SinglesPerS: 20, Burst: 1000, LimitedJobs: 1000, LimitedFor: 2 * time.Minute,
		IntakeFor: 10 * time.Second, IntakePerS: 2000, LiveVMs: 1000, MemoryVMs: 5000, MemorySettle: 15 * time.Second,
		Restarts: 7, RestartQueued: 300,
		StackPairs: 20, StackBurst: 100, StackBursts: 2, StackOurs: 50, StackLive: 500, StackSettle: 30 * time.Second, StackIdle: 2 * time.Minute,
	}
}

// SmallSize shows that everything works; its figures mean nothing.
func SmallSize() Size {
	return Size{
		Singles: 4, SinglesLate: 2, SinglesPerS: 20, Burst: 20, LimitedJobs: 10, LimitedFor: time.Second,
		IntakeFor: time.Second, IntakePerS: 100, LiveVMs: 5, MemoryVMs: 10, MemorySettle: time.Second,
		Restarts: 1, RestartQueued: 3,
		StackPairs: 1, StackBurst: 2, StackBursts: 1, StackOurs: 2, StackLive: 4, StackSettle: time.Second, StackIdle: time.Second,
	}
}

// Options are what to measure and where.
type Options struct {
	Server   string   // the program gpuserver
	Self     string   // the program that calls ServeRole in the role of Role's variable
	Dir      string   // a folder on a real disk; a folder in it is made and removed
	Parts    []string // names of Parts; none: all
	Size     Size
	Progress io.Writer // lines for people
	// Environment is added to the service's: for profiles of it.
	Environment []string
	Onto        Report // measured before: parts that are not measured now stay
	Keep        bool   // keeps the folder, with logs and databases

	Clouds       string // the clouds.yaml for the parts openstack-…, with entries admin and member
	LeaveServers bool   // whoever started that cloud ends it anyway
}

type part struct {
	name string
	what string
	run  func(*bench) error
	only bool // by its name, not with all others
}

// parts are in the order of the report.
var parts = []part{
	{"machine", "the machine and its disk", (*bench).machine, false},
	{"idle", "memory without work", (*bench).idle, false},
	{"single", "single jobs, forge at 0 and 150 ms", (*bench).single, false},
	{"burst", "jobs at once, forge at 0 and 150 ms, limits off", (*bench).bursts, false},
	{"limits", "jobs at once with GitHub's limits on", (*bench).limits, false},
	{"intake", "deliveries, without VMs and with many", (*bench).intake, false},
	{"memory", "memory with many VMs", (*bench).memory, false},
	{"restart", "kill -9 to the first create call", (*bench).restart, false},
	{weekPart, "a simulated week of jobs with GPUs, three ways", (*bench).week, false},
	{"openstack-single", "a real OpenStack: single jobs beside a bare client (needs --clouds)", stack((*stackWorld).pairs), true},
	{"openstack-burst", "… jobs at once beside a bare client", stack((*stackWorld).bursts), true},
	{"openstack-idle", "… calls while nothing happens", stack((*stackWorld).idles), true},
}

// Parts gives the names of what can be measured, with a few words on each.
func Parts() (names, what []string) {
	for _, p := range parts {
		names, what = append(names, p.name), append(what, p.what)
	}
	return names, what
}

// bench is one run.
type bench struct {
	Options
	ctx    context.Context
	dir    string
	report Report
	began  time.Time
}

// Run measures and gives the report. On an error the report holds what was
// measured until then.
func Run(ctx context.Context, o Options) (Report, error) {
	b := &bench{Options: o, ctx: ctx, began: time.Now(), report: o.Onto}
	chosen, err := choose(o.Parts)
	if err != nil {
		return b.report, err
	}
	if err := realDisk(o.Dir); err != nil {
		return b.report, err
	}
	if b.dir, err = os.MkdirTemp(o.Dir, "run-"); err != nil {
		return b.report, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: make a folder in "+o.Dir, err)
	}
	if o.Keep {
		b.say("logs and databases are kept in %s", b.dir)
	} else {
		defer os.RemoveAll(b.dir)
	}
	for _, p := range chosen {
		b.say("%s: %s", p.name, p.what)
		start := time.Now()
		if err := p.run(b); err != nil {
			return b.report, fmt.Errorf("%s: %w", p.name, err)
		}
		b.report.Parts = slices.DeleteFunc(b.report.Parts, func(old Part) bool { return old.Name == p.name })
		b.report.Parts = append(b.report.Parts, Part{Name: p.name, Seconds: round(time.Since(start).Seconds(), 1)})
	}
	b.report.TakenAt = b.began.UTC().Truncate(time.Second)
	return b.report, nil
}

func choose(names []string) ([]part, error) {
	if len(names) == 0 {
		return slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return p.only }), nil
	}
	var out []part
	for _, p := range parts {
		if slices.Contains(names, p.name) {
			out = append(out, p)
		}
	}
	if len(out) != len(names) {
		all, _ := Parts()
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "bench: %s: not all of these are parts; there are %s",
			strings.Join(names, ", "), strings.Join(all, ", "))
	}
	return out, nil
}

// say writes a line of progress with the seconds since the start.
func (b *bench) say(format string, args ...any) {
	if b.Progress != nil {
		fmt.Fprintf(b.Progress, "%6.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// folder makes a fresh folder for one world.
func (b *bench) folder(name string) (string, error) {
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return "", gpuserver.Wrap(gpuserver.KindUnavailable, "bench: make a folder", err)
	}
	return filepath.Clean(dir), nil
}
