package cirun

import (
	"regexp"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // time zones are judged alike on every machine

	"go.yaml.in/yaml/v4"
)

// maxReplicas bounds how many runners may be kept idle by one setting.
const maxReplicas = 1000

// Idle says how many runners of an entry are kept ready without a job. Exactly
// one of its fields is set. It counts only in the default branch's file.
type Idle struct {
	Schedule   []IdleTime
	UsageBased *UsageBased
	Replicas   int // the short form: always
}

// IdleTime keeps runners idle in some hours of some days of the week.
type IdleTime struct {
	Days     [7]bool // by time.Weekday
	From, To int     // whole hours of the day, From included, To not
	Zone     *time.Location
	Replicas int
	Line     int
}

// Covers reports whether t is in the hours of this line.
func (s IdleTime) Covers(t time.Time) bool {
	t = t.In(s.Zone)
	return s.Days[t.Weekday()] && t.Hour() >= s.From && t.Hour() < s.To
}

// UsageBased keeps Replicas runners idle for Duration after one was taken.
type UsageBased struct {
	Trigger  string
	Replicas int
	Duration time.Duration
}

// Want gives how many runners are to be kept idle at time t by schedule or
// short form. Of overlapping lines the largest number counts.
func (i *Idle) Want(t time.Time) int {
	if i == nil {
		return 0
	}
	n := i.Replicas
	for _, s := range i.Schedule {
		if s.Covers(t) {
			n = max(n, s.Replicas)
		}
	}
	return n
}

// idle reads the settings; nil if nothing of them can be used.
func (r *reader) idle(n *yaml.Node) *Idle {
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "idle has to be a mapping, not %s; it is ignored", kindName(n))
		return nil
	}
	var out Idle
	var forms []string
	ps, _ := r.pairs(n)
	for _, p := range ps {
		switch p.key {
		case "schedule":
			out.Schedule = r.schedule(p.value)
		case "usage_based":
			out.UsageBased = r.usageBased(p.value)
		case "replicas":
			out.Replicas, _ = r.number("idle.replicas", RuleBadIdle, p.value, 0, maxReplicas)
		default:
			r.find(p.line, RuleUnknownKey, "the key %q of idle is not known and is ignored", clip(p.key))
			continue
		}
		forms = append(forms, p.key)
	}
	if len(forms) > 1 {
		r.find(n.Line, RuleIdleConflict, "idle has %s, which exclude each other; idle is ignored", strings.Join(forms, " and "))
		return nil
	}
	if len(forms) == 0 {
		r.find(n.Line, RuleBadIdle, "idle has none of schedule, usage_based and replicas; it is ignored")
		return nil
	}
	if out.UsageBased == nil && len(out.Schedule) == 0 && out.Replicas == 0 {
		return nil
	}
	return &out
}

func (r *reader) schedule(n *yaml.Node) []IdleTime {
	nodes, _ := r.list("idle.schedule", n)
	if len(nodes) == 0 {
		r.find(n.Line, RuleBadIdle, "idle.schedule is empty")
	}
	var out []IdleTime
	for _, c := range nodes {
		if s, ok := r.idleTime(c); ok {
			r.overlap(out, s)
			out = append(out, s)
		}
	}
	return out
}

func (r *reader) idleTime(n *yaml.Node) (IdleTime, bool) {
	s := IdleTime{Zone: time.UTC, Line: n.Line}
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "a line of idle.schedule has to be a mapping, not %s; it is ignored", kindName(n))
		return s, false
	}
	good, seen := true, map[string]bool{}
	ps, _ := r.pairs(n)
	for _, p := range ps {
		ok := true
		switch p.key {
		case "day":
			s.Days, ok = r.days(p.value)
		case "time":
			s.From, s.To, ok = r.hours(p.value)
		case "timezone":
			s.Zone, ok = r.zone(p.value)
		case "replicas":
			s.Replicas, ok = r.number("replicas", RuleBadIdle, p.value, 0, maxReplicas)
		default:
			r.find(p.line, RuleUnknownKey, "the key %q of idle.schedule is not known and is ignored", clip(p.key))
			continue
		}
		seen[p.key] = true
		good = good && ok
	}
	for _, k := range []string{"day", "time", "replicas"} {
		if !seen[k] {
			good = false
			r.find(n.Line, RuleMissingKey, "a line of idle.schedule lacks %s; it is ignored", k)
		}
	}
	return s, good
}

var weekdays = map[string]time.Weekday{
	"sun": time.Sunday, "mon": time.Monday, "tue": time.Tuesday, "wed": time.Wednesday,
	"thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday,
}

// days reads "mon" or "mon-fri"; a week begins on Monday, so that sat-sun is a
// range and sun-mon is not.
func (r *reader) days(n *yaml.Node) (days [7]bool, ok bool) {
	s, ok := r.text("day", n)
	if !ok {
		return days, false
	}
	from, to, isRange := strings.Cut(strings.ToLower(s), "-")
	if !isRange {
		to = from
	}
	a, okA := weekdays[strings.TrimSpace(from)]
	b, okB := weekdays[strings.TrimSpace(to)]
	first, last := (int(a)+6)%7, (int(b)+6)%7
	if !okA || !okB || first > last {
		r.find(n.Line, RuleBadDay, "the day %q has to be one of mon, tue, wed, thu, fri, sat, sun, or a range like mon-fri; the line is ignored", clip(s))
		return days, false
	}
	for d := first; d <= last; d++ {
		days[(d+1)%7] = true
	}
	return days, true
}

var hourRange = regexp.MustCompile(`^\s*([0-9]{1,2})\s*-\s*([0-9]{1,2})\s*$`)

func (r *reader) hours(n *yaml.Node) (from, to int, ok bool) {
	s, ok := r.text("time", n)
	if !ok {
		return 0, 0, false
	}
	if m := hourRange.FindStringSubmatch(s); m != nil {
		from, _ = strconv.Atoi(m[1])
		to, _ = strconv.Atoi(m[2])
		if from < to && to <= 24 {
			return from, to, true
		}
	}
	r.find(n.Line, RuleBadTime, "the time %q has to be two whole hours from 0 to 24, the first before the second, like 9-17 (two lines for a night); the line is ignored", clip(s))
	return 0, 0, false
}

func (r *reader) zone(n *yaml.Node) (*time.Location, bool) {
	s, ok := r.text("timezone", n)
	if !ok {
		return nil, false
	}
	// "" and "Local" mean something to Go and nothing in the TZ database.
	if s != "" && s != "Local" {
		if z, err := time.LoadLocation(s); err == nil {
			return z, true
		}
	}
	r.find(n.Line, RuleBadTimezone, "the time zone %q is not in the TZ database (UTC, Europe/Berlin, …); the line is ignored", clip(s))
	return nil, false
}

// overlap finds earlier lines that ask for another number at the same time.
func (r *reader) overlap(earlier []IdleTime, s IdleTime) {
	for _, e := range earlier {
		if e.Replicas == s.Replicas || e.Zone.String() != s.Zone.String() || e.From >= s.To || s.From >= e.To {
			continue
		}
		for d := range e.Days {
			if e.Days[d] && s.Days[d] {
				r.find(s.Line, RuleIdleConflict, "this line asks for %d replicas while the one on line %d asks for %d at the same time; the larger number counts",
					s.Replicas, e.Line, e.Replicas)
				return
			}
		}
	}
}

func (r *reader) usageBased(n *yaml.Node) *UsageBased {
	if n.Kind != yaml.MappingNode {
		r.find(n.Line, RuleWrongType, "idle.usage_based has to be a mapping, not %s; it is ignored", kindName(n))
		return nil
	}
	u := UsageBased{Trigger: "runner_allocated"}
	good, seen := true, map[string]bool{}
	ps, _ := r.pairs(n)
	for _, p := range ps {
		ok := true
		switch p.key {
		case "trigger":
			u.Trigger, ok = r.text("trigger", p.value)
			if ok && u.Trigger != "runner_allocated" {
				ok = false
				r.find(p.line, RuleBadIdle, "the trigger %q is not known; known is runner_allocated", clip(u.Trigger))
			}
		case "replicas":
			u.Replicas, ok = r.number("replicas", RuleBadIdle, p.value, 0, maxReplicas)
		case "duration":
			var minutes int
			minutes, ok = r.number("duration (minutes)", RuleBadIdle, p.value, 1, 31*24*60)
			u.Duration = time.Duration(minutes) * time.Minute
		default:
			r.find(p.line, RuleUnknownKey, "the key %q of idle.usage_based is not known and is ignored", clip(p.key))
			continue
		}
		seen[p.key] = true
		good = good && ok
	}
	for _, k := range []string{"replicas", "duration"} {
		if !seen[k] {
			good = false
			r.find(n.Line, RuleMissingKey, "idle.usage_based lacks %s; it is ignored", k)
		}
	}
	if !good {
		return nil
	}
	return &u
}
