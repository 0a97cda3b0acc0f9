package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"gpuserver"
)

// weekPart is the part of the report that has a section of its own.
const weekPart = "week"

// row is a line of the table: what, measured, target, nearest peer.
type row struct{ what, measured, target, peer string }

// WriteTable writes the report as a Markdown table beside the targets and the
// nearest peer's figures, and the machine under it.
func WriteTable(w io.Writer, r Report) error {
	var b strings.Builder
	b.WriteString("| Figure | Measured | Target | garm (nearest peer) |\n| --- | --- | --- | --- |\n")
	for _, x := range rows(r) {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", x.what, x.measured, x.target, x.peer)
	}
	m := r.Machine
	fmt.Fprintf(&b, "\nMachine: %s, %d cores, %d MiB, %s, %s; fsync of 4 KiB p50 %.2f ms, p99 %.2f ms; load average before %.1f; %s; SQLite %s.\n",
		m.CPU, m.Cores, m.MemoryMiB, m.Kernel, m.FS, m.Fsync.P50, m.Fsync.P99, m.Load, m.Go, pragmaText(m.Pragmas))
	if !r.TakenAt.IsZero() {
		total := 0.0
		for _, p := range r.Parts {
			total += p.Seconds
		}
		fmt.Fprintf(&b, "Taken %s in %.0f s.\n", r.TakenAt.Format("2006-01-02"), total)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func pragmaText(m map[string]string) string {
	full := map[string]string{"0": "OFF", "1": "NORMAL", "2": "FULL", "3": "EXTRA"}[m["synchronous"]]
	return fmt.Sprintf("journal_mode=%s synchronous=%s wal_autocheckpoint=%s cache_size=%s", m["journal_mode"], full, m["wal_autocheckpoint"], m["cache_size"])
}

func rows(r Report) []row {
	ms := func(q Quantiles) string { return fmt.Sprintf("p50 %.1f, p99 %.1f ms", q.P50, q.P99) }
	long := func(q Quantiles) string { return fmt.Sprintf("p50 %.2f, p99 %.2f s", q.P50/1000, q.P99/1000) }
	behind := func(in Intake) string { return fmt.Sprintf("; all decided %.1f s after", in.Behind) }
	in := r.Intake
	return []row{
		{"webhook → create call, forge at 0 ms", ms(r.Forge0.WebhookToCreate), "p50 < 10, p99 < 50 ms", "p50 38.6 s; 7.7 s without back-off"},
		{"webhook → create call, forge at 150 ms", ms(r.Forge150.WebhookToCreate), "", ""},
		{"… without the time at the forge", ms(r.Forge150.Beyond), "p50 < 10, p99 < 50 ms", ""},
		{"forge round trips in a row, warm; cold", fmt.Sprintf("%d; %d", r.RoundTrips.Warm, r.RoundTrips.Cold), "≤ 2; ≤ 4", ""},
		{"burst of 1000, forge at 0 ms", fmt.Sprintf("%.0f VMs/s, each waits %s", r.Forge0.BurstPerS, long(r.Forge0.BurstWebhookToCreate)), "> 100/s", "13/s, p50 31.5, max 85.4 s"},
		{"burst of 1000, forge at 150 ms", fmt.Sprintf("%.0f VMs/s, each waits %s", r.Forge150.BurstPerS, long(r.Forge150.BurstWebhookToCreate)), "> 100/s", "burst of 100: p50 14.9 s"},
		{"burst with GitHub's limits on", fmt.Sprintf("%.1f %% of the permitted rate (%.0f a minute), %d rejected", 100*r.WithinLimits.Permitted, r.WithinLimits.PerMinute, r.WithinLimits.Rejected), "≥ 95 %, 0 rejected", ""},
		{"GitHub's points per job", fmt.Sprintf("%.2f", r.PointsPerJob), "", "5, and lists"},
		{"durable intake", fmt.Sprintf("%.0f/s, p99 %.1f ms", in.NoVMs.PerS, in.NoVMs.Saturated.P99), "> 2,000/s", "464–488/s, p99 69–90 ms"},
		{"… at a fixed 2,000/s", ms(in.NoVMs.Fixed) + behind(in.NoVMs), "p99 < 50 ms", ""},
		{"… with 1,000 VMs live", fmt.Sprintf("%.0f/s, p99 %.1f ms", in.LiveVMs.PerS, in.LiveVMs.Saturated.P99), "not falling", "324/s, p99 509 ms"},
		{"… at a fixed 2,000/s", ms(in.LiveVMs.Fixed) + behind(in.LiveVMs), "p99 < 50 ms", ""},
		{"job completed → delete call", ms(r.CompleteToDelete), "p50 < 20 ms", "1.9–3.5 s"},
		{"server memory, idle", fmt.Sprintf("%.0f MiB", r.RSSIdle), "< 40 MiB", "49 MiB"},
		{"server memory, 5,000 VMs live", fmt.Sprintf("%.0f MiB", r.RSS5000), "< 150 MiB", "285 MiB at 1,000"},
		{"kill -9 → first create call, forge at 0 ms", fmt.Sprintf("p50 %.0f, max %.0f ms", r.Restarts.Forge0.P50, r.Restarts.Forge0.Max), "< 1 s", "10.9 s"},
		{"… forge at 150 ms", fmt.Sprintf("p50 %.0f, max %.0f ms", r.Restarts.Forge150.P50, r.Restarts.Forge150.Max), "", ""},
	}
}

// WriteWeek writes the simulated week as a Markdown table.
func WriteWeek(w io.Writer, r Report) error {
	var b strings.Builder
	b.WriteString("| Way | Jobs done | Lost | to the card | to starts | Mean wait | p95 | VMs that could not start |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, x := range []struct {
		name string
		way  WeekWay
	}{
		{"one address per group", r.Week.OneAddress},
		{"counting devices, 5 tries", r.Week.Counting},
		{"counting devices, tries without end", r.Week.Retrying},
		{"gpuserver", r.Week.Ours},
	} {
		fmt.Fprintf(&b, "| %s | %d of %d | %d | %d | %d | %.1f min | %.0f min | %d |\n", x.name, x.way.Done, x.way.Jobs,
			x.way.Lost, x.way.LostToCard, x.way.LostToStarts+x.way.LostInQueue, x.way.MeanWait/60, x.way.P95Wait/60, x.way.FailedStarts)
	}
	fmt.Fprintf(&b, "\n%d jobs, %d of them for two cards, %.0f card-hours in all; seed %d.\n", r.Week.Ours.Jobs, r.Week.TwoGPUJobs, r.Week.CardHours, r.Week.Seed)
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteSection writes one section of docs/performance.md, "figures", "week" or
// "openstack"; nothing if the report has not measured it.
func WriteSection(w io.Writer, r Report, section string) error {
	own := []string{weekPart, stackSection} // sections of parts whose names begin so
	measured := slices.ContainsFunc(r.Parts, func(p Part) bool {
		name, _, _ := strings.Cut(p.Name, "-")
		return name == section || section == "figures" && name != "machine" && !slices.Contains(own, name)
	})
	switch {
	case section != "figures" && !slices.Contains(own, section):
		return gpuserver.Errorf(gpuserver.KindInvalid, "bench: there is no section %q; there are figures, %s", section, strings.Join(own, ", "))
	case !measured:
		return nil
	case section == weekPart:
		return WriteWeek(w, r)
	case section == stackSection:
		return WriteStack(w, r)
	}
	return WriteTable(w, r)
}
