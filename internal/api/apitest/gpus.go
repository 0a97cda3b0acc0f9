package apitest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"gpuserver"
	"gpuserver/internal/store"
)

// Cards are the cards that SeedGPUs makes.
type Cards struct {
	// Pair are the two cards of group 19 of node1; the VM Holder, with the job
	// Job, has the first, so that nobody gets the second. Single is in service and free.
	Pair   [2]gpuserver.GPU
	Single gpuserver.GPU
	// Bad is in quarantine, Resting rests for some hours; both are of node1, too.
	Bad, Resting gpuserver.GPU
	// Far is cordoned and has the address of Pair[0] on another host.
	Far gpuserver.GPU

	Job    gpuserver.Job
	Holder gpuserver.VM
}

// SeedGPUs gives the hosts of a seeded fleet cards, in each of the states.
func SeedGPUs(t testing.TB, f *Fleet, w World) Cards {
	t.Helper()
	now := time.Now().UTC()
	then := now.Add(-210 * time.Minute) // "3 hours ago", however slow the test is
	card := func(host, address string, n int) gpuserver.GPU {
		return gpuserver.GPU{
			Cloud: "local", Host: host, Address: address, Model: "tesla-v100", VendorID: "10de", DeviceID: "1db4",
			UUID: fmt.Sprintf("GPU-%08d-0000-0000-0000-000000000000", n), Serial: fmt.Sprint(1563020000000 + n), LinkWidth: 16,
			FirstSeen: then, LastSeen: then, StateAt: then,
		}
	}
	c := Cards{
		Pair: [2]gpuserver.GPU{card("node1", "0000:27:00.0", 1), card("node1", "0000:28:00.0", 2)}, Single: card("node1", "0000:44:00.0", 3),
		Bad: card("node1", "0000:a3:00.0", 4), Resting: card("node1", "0000:c3:00.0", 5), Far: card("node2", "0000:27:00.0", 6),
	}
	c.Bad.State, c.Bad.Reason, c.Bad.Strikes, c.Bad.StruckAt = gpuserver.GPUQuarantined, "Xid 79: the card has fallen off the bus", 6, then
	c.Resting.Reason, c.Resting.Strikes, c.Resting.StruckAt, c.Resting.RestUntil = "its memory had an uncorrectable error", 2, now.Add(-90*time.Minute), now.Add(150*time.Minute)
	c.Far.State, c.Far.Reason = gpuserver.GPUCordoned, "its fan is loud"
	all := []*gpuserver.GPU{&c.Pair[0], &c.Pair[1], &c.Single, &c.Bad, &c.Resting, &c.Far}
	slot := func(group int, gs ...gpuserver.GPU) gpuserver.Slot {
		s := gpuserver.Slot{Group: group, NUMANode: -1}
		for _, g := range gs {
			s.Cards = append(s.Cards, gpuserver.Card{Address: g.Address, Model: g.Model})
		}
		return s
	}
	f.HostList[0].Slots = []gpuserver.Slot{slot(19, c.Pair[0], c.Pair[1]), slot(32, c.Single), slot(75, c.Bad), slot(87, c.Resting)}
	f.HostList = append(f.HostList, gpuserver.Host{Cloud: "local", Name: "node2", VCPUs: 16, MemoryMiB: 65536, DiskGiB: 500, Slots: []gpuserver.Slot{slot(7, c.Far)}})
	err := f.DB.Update(context.Background(), func(tx *store.Tx) error {
		for _, g := range all {
			if err := tx.SaveGPU(g); err != nil {
				return err
			}
			if err := tx.AddGPUEvent(gpuserver.GPUEvent{GPU: g.ID, Kind: "seen", Text: "first seen at " + g.Address}); err != nil {
				return err
			}
		}
		if err := tx.AddGPUEvent(gpuserver.GPUEvent{GPU: c.Bad.ID, VM: w.Gone.ID, Job: w.Done.ID, Kind: "strike", Text: "xid: " + c.Bad.Reason, Points: 6}); err != nil {
			return err
		}
		if err := tx.AddVMGPU(w.Gone.ID, c.Bad.ID); err != nil {
			return err
		}
		return c.hold(tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// hold gives a VM of a job of its own the first card of the pair.
func (c *Cards) hold(tx *store.Tx) error {
	now := time.Now().UTC()
	c.Job = gpuserver.Job{
		Forge: "github", ForgeID: 200, Repo: "octo/train", RunID: 10, RunAttempt: 1, Name: "train", Labels: []string{"gpu"},
		ForgeState: gpuserver.ForgeQueued, State: gpuserver.JobReceived, QueuedAt: now.Add(-5 * time.Minute),
	}
	if err := tx.InsertJob(&c.Job); err != nil {
		return err
	}
	if err := tx.MoveJob(&c.Job, gpuserver.JobQueued, "allowed"); err != nil {
		return err
	}
	if err := seedVM(tx, &c.Job, &c.Holder, gpuserver.Claim{Group: 19, Cards: []string{c.Pair[0].Address}}); err != nil {
		return err
	}
	c.Holder.JobDeadline = now.Add(330 * time.Minute)
	if err := tx.SaveVM(&c.Holder); err != nil {
		return err
	}
	return tx.AddVMGPU(c.Holder.ID, c.Pair[0].ID)
}
