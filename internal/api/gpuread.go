package api

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/sched"
	"gpuserver/internal/store"
)

// GPUInfo is a card as it stands now.
type GPUInfo struct {
	gpuserver.GPU
	Group      *int       `json:"group,omitempty" doc:"Its IOMMU group, where the cloud tells."`
	Absent     bool       `json:"absent,omitempty" doc:"Another card is in its place, and it was not seen elsewhere since."`
	GuestOnly  bool       `json:"guest_only,omitempty" doc:"Its health is guest-side only: its cloud shows nothing of it from outside."`
	StrikesNow float64    `json:"strikes_now" doc:"Its strikes, in points, as they have faded to now."`
	HeldBy     *GPUHolder `json:"held_by,omitempty" doc:"The VM that has it, or its group."`
	Help       string     `json:"help,omitempty" doc:"What to do about a card that no VM gets."`
}

// Usable reports whether a VM may get the card at the time given, once nobody
// holds it.
func (g GPUInfo) Usable(now time.Time) bool {
	return g.State == gpuserver.GPUInService && !now.Before(g.RestUntil) && !g.Absent
}

// Since is when the card came to stand as it does: for one that rests, when it was
// struck.
func (g GPUInfo) Since(now time.Time) time.Time {
	if g.Standing(now) == "resting" {
		return g.StruckAt
	}
	return g.StateAt
}

// Standing is the word for how the card stands: in service, resting, cordoned,
// quarantined or absent.
func (g GPUInfo) Standing(now time.Time) string {
	if g.Absent {
		return "absent"
	}
	if g.State == gpuserver.GPUInService && !g.Usable(now) {
		return "resting"
	}
	return strings.ReplaceAll(string(g.State), "_", " ")
}

// GPUHolder is the VM that has a card.
type GPUHolder struct {
	VM     gpuserver.VMID    `json:"vm"`
	Name   string            `json:"name"`
	State  gpuserver.VMState `json:"state"`
	Job    gpuserver.JobID   `json:"job,omitempty" doc:"The job that runs on it, or that it was made for."`
	Until  time.Time         `json:"until,omitzero" doc:"When its job ends at the latest."`
	Unused bool              `json:"unused,omitempty" doc:"It has another card of the group; nobody else gets this one meanwhile."`
}

// Kept reports whether the VM is off and only there to hold its cards, on a cloud
// that would give them to the next VM.
func (h GPUHolder) Kept() bool {
	return h.State == gpuserver.VMKeeping || h.State == gpuserver.VMKept
}

// GPUDetail is a card with the last lines of its history.
type GPUDetail struct {
	GPU    GPUInfo              `json:"gpu"`
	Events []gpuserver.GPUEvent `json:"events" doc:"The last of its history, newest first."`
}

// GPUSummary is how the cards stand, at a glance.
type GPUSummary struct {
	Counts []GPUCount `json:"counts" doc:"Cards by cloud, model and state."`
	Out    []GPUInfo  `json:"out" doc:"The cards that no VM gets now: quarantined, cordoned or resting."`
}

// GPUCount is a number of cards.
type GPUCount struct {
	Cloud string             `json:"cloud"`
	Model string             `json:"model"`
	State gpuserver.GPUState `json:"state"`
	Count int                `json:"count"`
}

// ReadGPUs gives all cards that we ever met and where they are now, by cloud,
// host and address.
func ReadGPUs(ctx context.Context, db *store.DB, around Surroundings) (gs []GPUInfo, err error) {
	err = db.View(ctx, func(tx *store.Tx) error {
		gs, err = readGPUs(ctx, tx, around)
		return err
	})
	return gs, err
}

// ReadGPU gives the card that ref names, by our number, UUID, serial number or
// address, with at most limit lines of its history. KindNotFound: there is none;
// KindConflict: ref names more than one.
func ReadGPU(ctx context.Context, db *store.DB, around Surroundings, ref string, limit int) (d GPUDetail, err error) {
	return d, db.View(ctx, func(tx *store.Tx) error {
		gs, err := readGPUs(ctx, tx, around)
		if err != nil {
			return err
		}
		if d.GPU, err = findGPU(gs, ref); err != nil {
			return err
		}
		d.Events = []gpuserver.GPUEvent{}
		if limit > 0 {
			es, err := tx.GPUEvents(d.GPU.ID, limit)
			d.Events = append(d.Events, es...)
			return err
		}
		return nil
	})
}

func readGPUs(ctx context.Context, tx *store.Tx, around Surroundings) ([]GPUInfo, error) {
	all, err := tx.GPUs()
	if err != nil || len(all) == 0 {
		return []GPUInfo{}, err
	}
	holders, err := readHolders(tx)
	if err != nil {
		return nil, err
	}
	hosts, clouds, policy := around.Hosts(ctx), around.Clouds(ctx), around.HealthPolicy(ctx)
	gs := []GPUInfo{}
	for _, g := range all {
		info := GPUInfo{GPU: g, Group: groupOf(hosts, g), StrikesNow: policy.Left(g, tx.Now)}
		info.Absent = g.Address == "" && slices.ContainsFunc(clouds, func(c CloudStatus) bool { return c.Name == g.Cloud && c.Cards })
		info.GuestOnly = slices.ContainsFunc(clouds, func(c CloudStatus) bool { return c.Name == g.Cloud && !c.Cards })
		info.HeldBy = holders.of(g, info.Group)
		info.Help = help(info, tx.Now)
		gs = append(gs, info)
	}
	helpNeighbours(gs, tx.Now)
	slices.SortFunc(gs, func(a, b GPUInfo) int {
		return cmp.Or(cmp.Compare(a.Cloud, b.Cloud), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Address, b.Address), cmp.Compare(a.ID, b.ID))
	})
	return gs, nil
}

// groupOf finds a card's group among the hosts' slots; nil where the address is
// not known.
func groupOf(hosts []gpuserver.Host, g gpuserver.GPU) *int {
	if g.Address == "" { // a cloud that chooses has slots without addresses
		return nil
	}
	for _, h := range hosts {
		if h.Cloud != g.Cloud || h.Name != g.Host {
			continue
		}
		for _, s := range h.Slots {
			if slices.ContainsFunc(s.Cards, func(c gpuserver.Card) bool { return c.Address == g.Address }) {
				return &s.Group
			}
		}
	}
	return nil
}

// place is where a card is, by its address, or a group, by its number.
type place struct{ cloud, host, where string }

// holders are the VMs that have cards, by card, and those that have slots, by
// group.
type holders struct {
	byCard  map[gpuserver.GPUID]GPUHolder
	byGroup map[place]GPUHolder
}

func readHolders(tx *store.Tx) (holders, error) {
	h := holders{map[gpuserver.GPUID]GPUHolder{}, map[place]GPUHolder{}}
	vms, err := tx.AliveVMs()
	if err != nil {
		return h, err
	}
	for _, v := range vms {
		if len(v.Claims) == 0 {
			continue
		}
		by := GPUHolder{VM: v.ID, Name: v.Name, State: v.State}
		if !by.Kept() { // a kept VM's job is elsewhere by now
			by.Job, by.Until = cmp.Or(v.Assigned, v.MadeFor), v.JobDeadline
		}
		cards, err := tx.GPUsOfVM(v.ID)
		if err != nil {
			return h, err
		}
		for _, g := range cards {
			h.byCard[g.ID] = by
		}
		by.Unused = true
		for _, c := range v.Claims {
			h.byGroup[place{v.Cloud, v.Host, strconv.Itoa(c.Group)}] = by
		}
	}
	return h, nil
}

func (h holders) of(g gpuserver.GPU, group *int) *GPUHolder {
	by, ok := h.byCard[g.ID]
	if !ok && group != nil {
		by, ok = h.byGroup[place{g.Cloud, g.Host, strconv.Itoa(*group)}]
	}
	if !ok {
		return nil
	}
	return &by
}

// help says what to do about a card that no VM gets. A card can only be tested
// where its cloud lets us choose it, and so tells where it is.
func help(g GPUInfo, now time.Time) string {
	history := fmt.Sprintf("gpuserver gpu history %d says what was seen", g.ID)
	back := fmt.Sprintf("gpuserver gpu uncordon %d puts it back", g.ID)
	if g.HeldBy != nil && g.HeldBy.Kept() {
		back += " and deletes VM " + g.HeldBy.Name + ", which is kept so that no other gets the card"
	}
	switch {
	case g.Absent:
		return "Nothing, unless it comes back: another card is in its place."
	case g.State == gpuserver.GPUQuarantined && g.Address != "":
		return fmt.Sprintf("%s, and journalctl -k on %s what the host saw. Once it is mended, gpuserver gpu test %d tries it, and %s.", history, g.Host, g.ID, back)
	case g.State == gpuserver.GPUQuarantined:
		return history + ". Once it is mended, " + back + "."
	case g.State == gpuserver.GPUCordoned:
		return back + "."
	case now.Before(g.RestUntil):
		return "It is used again by itself; " + history + "."
	}
	return ""
}

// helpNeighbours says of cards that are well, and that no VM gets because another
// card of their group is out, which that is.
func helpNeighbours(gs []GPUInfo, now time.Time) {
	for i, g := range gs {
		if g.Group == nil || !g.Usable(now) {
			continue
		}
		for _, o := range gs {
			if o.Group != nil && *o.Group == *g.Group && o.Cloud == g.Cloud && o.Host == g.Host && !o.Usable(now) {
				gs[i].Help = fmt.Sprintf("No VM gets it while GPU %d of its group is %s: gpuserver gpu show %d.", o.ID, o.Standing(now), o.ID)
			}
		}
	}
}

// summary counts cards and names those that no VM gets; one that is absent is
// neither.
func summary(gs []GPUInfo, now time.Time) GPUSummary {
	s := GPUSummary{Counts: []GPUCount{}, Out: []GPUInfo{}}
	for _, g := range gs {
		if g.Absent {
			continue
		}
		i := slices.IndexFunc(s.Counts, func(c GPUCount) bool { return c.Cloud == g.Cloud && c.Model == g.Model && c.State == g.State })
		if i < 0 {
			i = len(s.Counts)
			s.Counts = append(s.Counts, GPUCount{Cloud: g.Cloud, Model: g.Model, State: g.State})
		}
		s.Counts[i].Count++
		if !g.Usable(now) {
			s.Out = append(s.Out, g)
		}
	}
	slices.SortFunc(s.Counts, func(a, b GPUCount) int {
		return cmp.Or(cmp.Compare(a.Cloud, b.Cloud), cmp.Compare(a.Model, b.Model), cmp.Compare(a.State, b.State))
	})
	// Quarantine is the worst and stands first.
	slices.SortStableFunc(s.Out, func(a, b GPUInfo) int { return cmp.Compare(badness(b.State), badness(a.State)) })
	return s
}

func badness(s gpuserver.GPUState) int {
	return slices.Index([]gpuserver.GPUState{gpuserver.GPUInService, gpuserver.GPUCordoned, gpuserver.GPUQuarantined}, s)
}

var shortBDF = regexp.MustCompile(`^[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// findGPU finds the card that ref names: by our number, UUID, serial number or
// address, which may have its host and cloud before it (HOST/ADDRESS,
// CLOUD/HOST/ADDRESS) and may lack the domain 0000. Our number goes before all
// else. KindNotFound: there is none; KindConflict: more than one is meant, and
// the sentence names them.
func findGPU(all []GPUInfo, ref string) (found GPUInfo, err error) {
	var meant []GPUInfo
	for _, g := range all {
		if strconv.FormatInt(int64(g.ID), 10) == ref {
			return g, nil
		}
		if names(g.GPU, ref) {
			meant = append(meant, g)
		}
	}
	switch len(meant) {
	case 0:
		return found, gpuserver.Errorf(gpuserver.KindNotFound,
			"There is no GPU %.100q; gpuserver gpu list has the cards by number, HOST/ADDRESS and UUID.", ref)
	case 1:
		return meant[0], nil
	}
	var candidates []string
	for _, g := range meant {
		candidates = append(candidates, fmt.Sprintf("%d (%s)", g.ID, where(g.GPU)))
	}
	return found, gpuserver.Errorf(gpuserver.KindConflict, "%.100q names %d GPUs; name one by its number: %s.", ref, len(meant), strings.Join(candidates, ", "))
}

// names reports whether ref names a card by anything but our number.
func names(g gpuserver.GPU, ref string) bool {
	if ref == "" {
		return false
	}
	if strings.EqualFold(ref, g.UUID) || strings.EqualFold(ref, g.Serial) {
		return true
	}
	at, address := "", strings.ToLower(ref)
	if i := strings.LastIndexByte(ref, '/'); i >= 0 {
		at, address = ref[:i], address[i+1:]
	}
	if shortBDF.MatchString(address) {
		address = "0000:" + address
	}
	return g.Address != "" && address == g.Address && (at == "" || at == g.Host || at == g.Cloud+"/"+g.Host)
}

// where says where a card is, in a form that findGPU understands.
func where(g gpuserver.GPU) string {
	return strings.TrimSuffix(g.Cloud+"/"+g.Host+"/"+g.Address, "/")
}

// SlotCount is a number of slots.
type SlotCount struct {
	Cloud string `json:"cloud"`
	State string `json:"state" doc:"free, held (by a VM, or by another of its cards) or out (no VM may have it now)."`
	Count int    `json:"count"`
}

// The states of slots, as they are counted.
const (
	SlotFree = "free"
	SlotHeld = "held"
	SlotOut  = "out"
)

// slotCounts counts the hosts' slots, all three states of each cloud that has
// any. A slot that a VM holds counts as held, whatever will become of it.
func slotCounts(hosts []gpuserver.Host, usages []store.Usage, flavors []FlavorInfo, gpus []GPUInfo, now time.Time) []SlotCount {
	models := map[string]string{}
	for _, f := range flavors {
		models[f.Name] = f.GPUs.Model
	}
	bad := map[place]bool{}
	for _, g := range gpus {
		if !g.Usable(now) && g.Address != "" {
			bad[place{g.Cloud, g.Host, g.Address}] = true
		}
	}
	counts := []SlotCount{}
	for _, h := range hosts {
		var used []sched.TakenSlot
		for _, u := range usages {
			for _, s := range u.Slots {
				if u.Cloud == h.Cloud && u.Host == h.Name {
					used = append(used, sched.TakenSlot(s))
				}
			}
		}
		slots, by := sched.Hold(h.Slots, used, func(flavor string) string { return models[flavor] })
		for n, s := range slots {
			i := slices.IndexFunc(counts, func(c SlotCount) bool { return c.Cloud == h.Cloud })
			if i < 0 {
				i = len(counts)
				counts = append(counts, SlotCount{h.Cloud, SlotFree, 0}, SlotCount{h.Cloud, SlotHeld, 0}, SlotCount{h.Cloud, SlotOut, 0})
			}
			out := s.Out != "" || slices.ContainsFunc(s.Cards, func(c gpuserver.Card) bool { return bad[place{h.Cloud, h.Name, c.Address}] })
			switch {
			case by[n] != nil:
				i++
			case out:
				i += 2
			}
			counts[i].Count++
		}
	}
	return counts
}
