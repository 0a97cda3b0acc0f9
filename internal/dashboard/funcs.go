package dashboard

import (
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"gpuserver"
	"gpuserver/internal/api"
)

func (p *pages) funcs() template.FuncMap {
	return template.FuncMap{
		"ago":     func(t time.Time) string { return humanize.RelTime(t, p.o.Now(), "ago", "from now") },
		"iso":     func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"day":     func(t time.Time) string { return t.UTC().Format(time.DateTime) },
		"clock":   func(t time.Time) string { return t.UTC().Format("15:04:05.000") },
		"lasted":  p.lasted,
		"since":   func(t time.Time) string { return p.lasted(t, time.Time{}) },
		"seconds": func(s float64) string { return fmt.Sprintf("%.3f", s) },
		"age":     func(s float64) string { return duration(time.Duration(s * float64(time.Second))) },
		"join":    func(ss []string) string { return strings.Join(ss, " ") },
		"mib":     func(n int64) string { return humanize.IBytes(uint64(max(0, n)) << 20) },
		"outcome": outcome,
		"card":    func(g api.GPUInfo) string { return g.Standing(p.o.Now()) },
		"stop":    stop,
		"points":  func(f float64) string { return fmt.Sprintf("%.1f", f) },
		"why":     why,
		"mark":    mark,
	}
}

// lasted says how long something took, or takes since it began.
func (p *pages) lasted(from, to time.Time) string {
	if from.IsZero() {
		return "–"
	}
	if to.IsZero() {
		to = p.o.Now()
	}
	return duration(to.Sub(from))
}

func duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// outcome is the word for how a job stands.
func outcome(j gpuserver.Job) string {
	if j.State == gpuserver.JobDone && j.Conclusion != "" {
		return j.Conclusion
	}
	return string(j.State)
}

// why is the reason of a job that did not end well, "" for any other.
func why(j gpuserver.Job) string {
	switch {
	case j.State == gpuserver.JobRefused, j.State == gpuserver.JobFailed:
		return j.Reason.Text
	case j.State == gpuserver.JobDone && (j.Reason.Class == "" || j.Reason.Class == gpuserver.ReasonGPU):
		return j.Reason.Text // any other class belongs to the wait that is over
	}
	return ""
}

// stop ends a text as a sentence.
func stop(s string) string {
	if s == "" {
		return ""
	}
	return strings.TrimSuffix(s, ".") + "."
}

// mark is the class that colours an outcome; the word itself is always there
// too, for those who do not see colours.
func mark(word any) string {
	switch fmt.Sprint(word) {
	case "success", "busy", "running", "ready", "in service":
		return "good"
	case "failure", "failed", "refused", "timed_out", "startup_failure", "kept", "quarantined":
		return "bad"
	case "queued", "starting", "waiting", "received", "leased", "creating", "booting", "draining", "deleting", "keeping", "resting", "cordoned":
		return "wait"
	}
	return "dull"
}
