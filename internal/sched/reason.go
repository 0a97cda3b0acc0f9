package sched

import (
	"fmt"
	"strings"
	"time"

	"gpuserver"
)

// The sentences for people. They start small, because they follow the job's
// name: "waits for 8 vCPU on cloud local: …".

// retry is why a job is not planned before its NextTryAt. Whoever set that time
// has said why, as a rule.
func retry(j *gpuserver.Job) gpuserver.Reason {
	switch j.Reason.Class {
	case gpuserver.ReasonRetry, gpuserver.ReasonForgeBudget:
		if j.Reason.Text != "" {
			return j.Reason
		}
	}
	return gpuserver.Reason{
		Class: gpuserver.ReasonRetry,
		Text:  "is tried again at " + j.NextTryAt.UTC().Format(time.RFC3339),
		Help:  "Nothing needs to be done.",
	}
}

func unknownFlavor(e gpuserver.Entry) *gpuserver.Reason {
	return &gpuserver.Reason{
		Class: gpuserver.ReasonNoPlace,
		Text:  fmt.Sprintf("cannot run on cloud %s: there is no flavor %q", e.Cloud, e.Flavor),
		Help:  fmt.Sprintf("Add flavor %q to the configuration, or change the runner entry.", e.Flavor),
	}
}

func unknownCloud(e gpuserver.Entry) *gpuserver.Reason {
	return &gpuserver.Reason{
		Class: gpuserver.ReasonNoPlace,
		Text:  fmt.Sprintf("cannot run on cloud %q: it has no hosts", e.Cloud),
		Help:  "Add the cloud to the configuration, or change the runner entry.",
	}
}

func cloudDown(e gpuserver.Entry, r gpuserver.Reason) *gpuserver.Reason {
	if r.Class == "" {
		r.Class = gpuserver.ReasonUnreachable
	}
	if r.Text == "" {
		r.Text = fmt.Sprintf("waits for cloud %s, which cannot be reached", e.Cloud)
	}
	if r.Help == "" {
		r.Help = "It goes on by itself once the cloud is back."
	}
	return &r
}

func imageHeld(e gpuserver.Entry, r gpuserver.Reason) *gpuserver.Reason {
	if r.Class == "" {
		r.Class = gpuserver.ReasonImageHeld
	}
	if r.Text == "" {
		r.Text = fmt.Sprintf("waits for image %s, which is held after repeated failures", e.Image)
	}
	if r.Help == "" {
		r.Help = "An operator has to repair the image and release it."
	}
	return &r
}

func suspended(e gpuserver.Entry, r gpuserver.Reason) *gpuserver.Reason {
	if r.Class == "" {
		r.Class = gpuserver.ReasonSuspended
	}
	if r.Text == "" {
		r.Text = fmt.Sprintf("waits on cloud %s: flavor %s is suspended there", e.Cloud, e.Flavor)
	}
	if r.Help == "" {
		r.Help = "It goes on by itself once a VM of that flavor could be made there."
	}
	return &r
}

func tooLarge(c *place, f gpuserver.Flavor, n need) *gpuserver.Reason {
	need := n.amount
	if c.fitted(n, func(h *host) amount { return h.total }) { // but for the cards
		if n.pin != (gpuserver.Place{}) {
			return noSuchCard(c, n)
		}
		return noSuchCards(c, f)
	}
	nearest, least := c.hosts[0], c.hosts[0].total.lack(need)
	for _, h := range c.hosts[1:] {
		if lack := h.total.lack(need); lack < least {
			nearest, least = h, lack
		}
	}
	wanted, has := missing(need, nearest.total)
	if nearest.bound != "" {
		return &gpuserver.Reason{
			Class: gpuserver.ReasonNoPlace,
			Text: fmt.Sprintf("cannot run on cloud %s: flavor %s needs %s, and within %s we have %s",
				c.name, f.Name, join(wanted), nearest.bound, join(has)),
			Help: fmt.Sprintf("Choose a smaller flavor, or have %s raised; what others use of them is taken off.", nearest.bound),
		}
	}
	return &gpuserver.Reason{
		Class: gpuserver.ReasonNoPlace,
		Text: fmt.Sprintf("cannot run on cloud %s: flavor %s needs %s, and no host is that large (%s has %s)",
			c.name, f.Name, join(wanted), nearest.name, join(has)),
		Help: "Choose a smaller flavor, or add a larger host.",
	}
}

// noRoom is why an entry that could hold a job does not now.
func (p *Planner) noRoom(o option) gpuserver.Reason {
	c := o.cloud
	var r gpuserver.Reason
	if c.limited && c.starts <= 0 {
		r = noStart(c)
	} else if known, ok := c.full[o.need]; ok && known.changes == c.changes {
		r = known.why
	} else {
		r = p.full(c, o.need)
		c.full[o.need] = fullness{r, c.changes}
	}
	r.Text += ahead(c.queue)
	return r
}

func noStart(c *place) gpuserver.Reason {
	return gpuserver.Reason{
		Class: gpuserver.ReasonCapacity,
		Text:  fmt.Sprintf("waits until cloud %s may start another VM", c.name),
		Help:  "Nothing needs to be done: it is only a moment until the VMs being made have started.",
	}
}

// full is why a cloud has no room for need.
func (p *Planner) full(c *place, n need) gpuserver.Reason {
	if h := c.shortOfCards(n); h != nil {
		return p.noCards(c, h, n)
	}
	if c.fitted(n, func(h *host) amount { return h.free }) { // and yet was not taken: it is kept
		return gpuserver.Reason{
			Class: gpuserver.ReasonBehind,
			Text: fmt.Sprintf("waits behind job %d on cloud %s, which has waited %d min and for which room is kept on host %s",
				c.head.ID, c.name, int(p.now.Sub(queuedAt(c.head)).Minutes()), c.keeper.name),
			Help: "Nothing needs to be done: that job starts when enough VMs on that host have ended.",
		}
	}
	if c.fitted(n, func(h *host) amount { return h.start }) {
		return gpuserver.Reason{
			Class: gpuserver.ReasonBehind,
			Text:  fmt.Sprintf("waits on cloud %s: older jobs have just taken what was free", c.name),
			Help:  helpRoom,
		}
	}
	h := c.nearest(n)
	wanted, _ := missing(n.amount, h.free)
	return gpuserver.Reason{
		Class: gpuserver.ReasonCapacity,
		Text:  fmt.Sprintf("waits for %s on cloud %s: %s are free%s", join(wanted), c.name, join(shares(n.amount, h)), onHost(c, h)),
		Help:  helpRoom,
	}
}

const helpRoom = "It starts when enough VMs have ended; a smaller flavor or a further runner entry could start sooner."

func onHost(c *place, h *host) string {
	if len(c.hosts) == 1 {
		return ""
	}
	return fmt.Sprintf(" on host %s, the nearest of %d", h.name, len(c.hosts))
}

func ahead(n int) string {
	switch n {
	case 0:
		return "; no job is ahead"
	case 1:
		return "; 1 job is ahead"
	}
	return fmt.Sprintf("; %d jobs are ahead", n)
}

// why joins the reasons of a job's entries to one. The entry that is nearest to
// a VM gives class and help.
func why(passed []Passed) gpuserver.Reason {
	if len(passed) == 0 {
		return gpuserver.Reason{
			Class: gpuserver.ReasonNoPlace,
			Text:  "cannot run anywhere: its runner entry names no place",
			Help:  "Name a cloud, a flavor and an image in the runner entry.",
		}
	}
	first := 0
	for i := range passed {
		if hope(passed[i].Reason) > hope(passed[first].Reason) {
			first = i
		}
	}
	r := passed[first].Reason
	var text strings.Builder
	text.WriteString(r.Text)
	told := map[string]bool{r.Text: true}
	for i, other := range passed {
		if i == first || told[other.Reason.Text] {
			continue
		}
		told[other.Reason.Text] = true
		fmt.Fprintf(&text, "; entry %d of %d: %s", other.Entry+1, len(passed), other.Reason.Text)
	}
	r.Text = text.String()
	return r
}

// hope ranks reasons by how much has to happen before a job starts.
func hope(r gpuserver.Reason) int {
	switch r.Class {
	case gpuserver.ReasonBehind, gpuserver.ReasonCapacity:
		return 3
	case gpuserver.ReasonUnreachable:
		return 2
	case gpuserver.ReasonNoPlace:
		return 0
	}
	return 1
}

// missing gives the dimensions of which has is less than need, in words: what is
// needed and what is there.
func missing(need, has amount) (wanted, there []string) {
	for i := range need {
		if need[i] > has[i] {
			wanted = append(wanted, words(i, need[i]))
			there = append(there, words(i, max(has[i], 0)))
		}
	}
	return wanted, there
}

// shares says how much is free on a host of what is missing there.
func shares(need amount, h *host) []string {
	var parts []string
	for i := range need {
		if need[i] > h.free[i] {
			parts = append(parts, fmt.Sprintf("%s of %s", number(i, max(h.free[i], 0)), words(i, h.total[i])))
		}
	}
	return parts
}

// words says an amount of dimension i with its unit.
func words(i int, n int64) string {
	switch i {
	case vcpus:
		return fmt.Sprintf("%d vCPU", n)
	case memoryMiB:
		return size(n) + " of memory"
	case diskGiB:
		return fmt.Sprintf("%d GiB of disk", n)
	}
	if n == 1 {
		return "1 VM"
	}
	return fmt.Sprintf("%d VMs", n)
}

// number says an amount of dimension i without what it is of.
func number(i int, n int64) string {
	switch i {
	case memoryMiB:
		return size(n)
	case diskGiB:
		return fmt.Sprintf("%d GiB", n)
	}
	return fmt.Sprint(n)
}

func size(mib int64) string {
	if mib%1024 == 0 {
		return fmt.Sprintf("%d GiB", mib/1024)
	}
	return fmt.Sprintf("%d MiB", mib)
}

// join makes "a", "a and b", "a, b and c".
func join(parts []string) string {
	if len(parts) < 2 {
		return strings.Join(parts, "")
	}
	last := len(parts) - 1
	return strings.Join(parts[:last], ", ") + " and " + parts[last]
}
