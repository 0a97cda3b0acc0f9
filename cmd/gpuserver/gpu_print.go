package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
)

func printGPUs(w io.Writer, gs []api.GPUInfo) error {
	if len(gs) == 0 {
		_, err := fmt.Fprintln(w, "No GPUs.")
		return err
	}
	rows := make([][]string, len(gs))
	for i, g := range gs {
		group := ""
		if g.Group != nil {
			group = strconv.Itoa(*g.Group)
		}
		since := ""
		if gpuState(g) != "in service" {
			since = gpuSince(g)
		}
		rows[i] = []string{fmt.Sprint(g.ID), g.Cloud + "/" + g.Host, g.Address, group, g.Model, gpuState(g), since, points(g.StrikesNow), heldBy(g.HeldBy), g.Reason}
	}
	if err := printTable(w, []string{"GPU", "HOST", "ADDRESS", "GROUP", "MODEL", "STATE", "SINCE", "STRIKES", "HELD BY", "WHY"}, rows); err != nil {
		return err
	}
	return printGPUHelp(w, gs)
}

func gpuState(g api.GPUInfo) string { return g.Standing(time.Now()) }

func gpuSince(g api.GPUInfo) string { return ago(g.Since(time.Now())) }

func points(p float64) string {
	if p < 0.05 {
		return "0"
	}
	return strconv.FormatFloat(p, 'f', 1, 64)
}

func heldBy(h *api.GPUHolder) string {
	switch {
	case h == nil:
		return ""
	case h.Unused:
		return "(" + h.Name + ")"
	case h.Kept():
		return h.Name + " (kept)"
	}
	return h.Name
}

// gpuPlace says where a card is, as far as that is known.
func gpuPlace(g gpuserver.GPU) string {
	return strings.TrimSpace(g.Cloud + "/" + g.Host + " " + g.Address)
}

// standing says in a sentence or two how a card stands.
func standing(g api.GPUInfo) string {
	s := fmt.Sprintf("GPU %d (%s, %s) is %s.", g.ID, gpuPlace(g.GPU), g.Model, gpuState(g))
	switch h := g.HeldBy; {
	case h == nil:
	case h.Unused:
		s += fmt.Sprintf(" VM %s holds its group%s.", h.Name, until(h))
	default:
		s += fmt.Sprintf(" VM %s has it%s.", h.Name, until(h))
	}
	return s
}

func until(h *api.GPUHolder) string {
	if h.Until.IsZero() {
		return ""
	}
	return " until " + h.Until.Local().Format(time.DateTime) + " at the latest"
}

func printGPU(w io.Writer, d api.GPUDetail) error {
	g, group, held, width, rest := d.GPU, "", "", "", ""
	if g.Group != nil {
		group = strconv.Itoa(*g.Group)
	}
	if h := g.HeldBy; h != nil {
		held = fmt.Sprintf("VM %s (%s)", h.Name, h.State)
		if h.Job != 0 {
			held += fmt.Sprintf(", job %d%s", h.Job, until(h))
		}
		if h.Unused {
			held += "; it has another card of the group"
		}
	}
	if g.LinkWidth > 0 {
		width = fmt.Sprintf("%d lanes at most", g.LinkWidth)
	}
	if time.Now().Before(g.RestUntil) {
		rest = "until " + g.RestUntil.Local().Format(time.DateTime)
	}
	health := ""
	if g.GuestOnly {
		health = "guest-side only: its cloud shows nothing of it from outside"
	}
	err := fields(w, "gpu", fmt.Sprint(g.ID), "state", gpuState(g), "since", g.Since(time.Now()).Local().Format(time.DateTime)+" ("+gpuSince(g)+")", "reason", g.Reason, "next", g.Help,
		"model", g.Model, "host", g.Cloud+"/"+g.Host, "address", g.Address, "group", group, "pci id", strings.Trim(g.VendorID+":"+g.DeviceID, ":"),
		"uuid", g.UUID, "serial", g.Serial, "link", width, "health", health, "strikes", points(g.StrikesNow), "rests", rest, "held by", held,
		"first seen", ago(g.FirstSeen), "last seen", ago(g.LastSeen))
	if err != nil || len(d.Events) == 0 {
		return err
	}
	_, _ = fmt.Fprintln(w)
	return printGPUHistory(w, d.Events)
}

func printGPUHistory(w io.Writer, es []gpuserver.GPUEvent) error {
	if len(es) == 0 {
		_, err := fmt.Fprintln(w, "Nothing is known of it.")
		return err
	}
	number := func(n int64) string {
		if n == 0 {
			return ""
		}
		return strconv.FormatInt(n, 10)
	}
	rows := make([][]string, len(es))
	for i, e := range es {
		strike := ""
		if e.Points > 0 {
			strike = points(e.Points)
		}
		rows[i] = []string{e.At.Local().Format(time.DateTime), e.Kind, strike, number(int64(e.Job)), number(int64(e.VM)), e.Text}
	}
	return printTable(w, []string{"TIME", "EVENT", "POINTS", "JOB", "VM", "WHY"}, rows)
}

// printCards names the cards of a job.
func printCards(w io.Writer, gs []gpuserver.GPU) error {
	if len(gs) == 0 {
		return nil
	}
	rows := make([][]string, len(gs))
	for i, g := range gs {
		rows[i] = []string{fmt.Sprint(g.ID), g.Cloud + "/" + g.Host, g.Address, g.Model, g.UUID}
	}
	_, _ = fmt.Fprintln(w)
	return printTable(w, []string{"GPU", "HOST", "ADDRESS", "MODEL", "UUID"}, rows)
}

// gpuCounts says how many cards are in which state; "" if there is none.
func gpuCounts(s api.Status) string {
	n := map[string]int{}
	for _, c := range s.GPUs.Counts {
		n[strings.ReplaceAll(string(c.State), "_", " ")] += c.Count
	}
	for _, g := range s.GPUs.Out {
		if gpuState(g) == "resting" {
			n["in service"]--
			n["resting"]++
		}
	}
	var parts []string
	for _, state := range []string{"in service", "resting", "cordoned", "quarantined"} {
		if n[state] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[state], state))
		}
	}
	return strings.Join(parts, ", ")
}

// slotTotals says how many slots are free, held and out; "" if there is none.
func slotTotals(counts []api.SlotCount) string {
	var parts []string
	for _, c := range counts {
		if c.Count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s on %s", c.Count, c.State, c.Cloud))
		}
	}
	return strings.Join(parts, ", ")
}

// outRows are the cards that no VM gets.
func outRows(out []api.GPUInfo) (rows [][]string) {
	for _, g := range out {
		rows = append(rows, []string{fmt.Sprint(g.ID), g.Cloud + "/" + g.Host, g.Address, gpuState(g), gpuSince(g), g.Reason})
	}
	return rows
}

// printGPUHelp says what to do about each card that no VM gets.
func printGPUHelp(w io.Writer, gs []api.GPUInfo) error {
	for _, g := range gs {
		if g.Help == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "GPU %d: %s\n", g.ID, printable(g.Help)); err != nil {
			return err
		}
	}
	return nil
}
