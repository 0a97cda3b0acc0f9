package sched

import (
	"slices"

	"gpuserver"
)

// Hold gives the slots of a host as they stand with what leases take of them, and for
// each of them who has it, nil if nobody. model gives the model of a flavor's cards.
//
// A slot with addresses is the one that a lease names. Slots without are cards that the
// cloud chooses itself: they only count, one of a model is as good as another, and
// their numbers mean nothing. A lease there takes one card of its model, whatever
// became of the number that it was given, and a card that somebody else has is never
// one of those that leases hold.
func Hold(slots []gpuserver.Slot, used []TakenSlot, model func(flavor string) string) ([]gpuserver.Slot, []*TakenSlot) {
	by := make([]*TakenSlot, len(slots))
	for i, s := range slots {
		if n := slices.IndexFunc(used, func(t TakenSlot) bool { return t.Group == s.Group }); n >= 0 {
			by[i] = &used[n]
		}
	}
	if !slices.ContainsFunc(slots, counted) {
		return slots, by
	}
	slots = slices.Clone(slots)
	free := func(m string, may func(gpuserver.Slot) bool) int {
		for i, s := range slots {
			if by[i] == nil && counted(s) && s.Cards[0].Model == m && may(s) {
				return i
			}
		}
		return -1
	}
	in := func(s gpuserver.Slot) bool { return s.Out == "" }
	for n := range used {
		m := model(used[n].Flavor)
		if i := slices.Index(by, &used[n]); m == "" || i >= 0 && (!counted(slots[i]) || slots[i].Cards[0].Model == m) {
			continue
		}
		if i := free(m, func(gpuserver.Slot) bool { return true }); i >= 0 {
			by[i] = &used[n]
		}
	}
	for i, s := range slots {
		if by[i] == nil || in(s) || !counted(s) {
			continue
		}
		if j := free(s.Cards[0].Model, in); j >= 0 {
			slots[i].Out, slots[j].Out = "", s.Out
		}
	}
	return slots, by
}

// counted reports whether a slot stands for a card that the cloud chooses.
func counted(s gpuserver.Slot) bool { return len(s.Cards) > 0 && s.Cards[0].Address == "" }
