package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/api/apitest"
	"gpuserver/internal/store"
)

func serveGPUs(t *testing.T, o api.Options) (*served, apitest.Cards) {
	t.Helper()
	s := serve(t, o)
	return s, apitest.SeedGPUs(t, s.fleet, s.world)
}

// line says what a test wants to know of a card.
func line(g api.GPUInfo) string {
	group := "?"
	if g.Group != nil {
		group = fmt.Sprint(*g.Group)
	}
	held := "free"
	if h := g.HeldBy; h != nil {
		held = fmt.Sprintf("%s(%s) job %d unused %v", h.Name, h.State, h.Job, h.Unused)
	}
	return fmt.Sprintf("%d %s/%s group %s %s %s", g.ID, g.Host, g.Address, group, g.State, held)
}

func TestGPUsAreListed(t *testing.T) {
	s, _ := serveGPUs(t, api.Options{})
	all := []string{
		"1 node1/0000:27:00.0 group 19 in_service gs-3(busy) job 6 unused false",
		"2 node1/0000:28:00.0 group 19 in_service gs-3(busy) job 6 unused true",
		"3 node1/0000:44:00.0 group 32 in_service free",
		"4 node1/0000:a3:00.0 group 75 quarantined free",
		"5 node1/0000:c3:00.0 group 87 in_service free",
		"6 node2/0000:27:00.0 group 7 cordoned free",
	}
	for name, tc := range map[string]struct {
		states      []string
		cloud, host string
		want        []string
	}{
		"all":         {want: all},
		"by state":    {states: []string{"quarantined", "cordoned"}, want: []string{all[3], all[5]}},
		"by host":     {host: "node2", want: all[5:]},
		"by cloud":    {cloud: "local", want: all},
		"other cloud": {cloud: "elsewhere"},
		"all at once": {states: []string{"in_service"}, cloud: "local", host: "node2"},
	} {
		t.Run(name, func(t *testing.T) {
			gs, err := s.admin.GPUs(t.Context(), tc.states, tc.cloud, tc.host)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, g := range gs {
				got = append(got, line(g))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A card of a cloud that chooses the cards itself has no address; the VM that is
// kept because of it is named, and what putting it back will do.
func TestCardOfACloudThatChooses(t *testing.T) {
	s := serve(t, api.Options{})
	s.fleet.CloudList[0].Cards = false
	s.fleet.HostList[0].Slots = []gpuserver.Slot{{Group: 3, Cards: []gpuserver.Card{{Model: "tesla-v100"}}}}
	g := gpuserver.GPU{Cloud: "local", Host: "node1", Model: "tesla-v100", UUID: "GPU-1", State: gpuserver.GPUQuarantined}
	v := gpuserver.VM{Forge: "github", Cloud: "local", Host: "node1", MadeFor: s.world.Behind.ID}
	update := func(fn func(tx *store.Tx) error) {
		t.Helper()
		if err := s.db.Update(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	update(func(tx *store.Tx) error {
		lease := gpuserver.Lease{Cloud: "local", Host: "node1", Claims: []gpuserver.Claim{{Group: 3}}}
		if err := tx.InsertVM(&v, func(gpuserver.VMID) string { return "gs-x" }, lease); err != nil {
			return err
		}
		if err := tx.SaveGPU(&g); err != nil {
			return err
		}
		return tx.AddVMGPU(v.ID, g.ID)
	})
	d, err := s.admin.GPU(t.Context(), "gpu-1")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := line(d.GPU), "1 node1/ group ? quarantined gs-x(leased) job 4 unused false"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := s.admin.GPU(t.Context(), "node1/"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("no place is a place: %v", err)
	}
	for _, state := range []gpuserver.VMState{gpuserver.VMDraining, gpuserver.VMKeeping, gpuserver.VMKept} {
		update(func(tx *store.Tx) error { return tx.MoveVM(&v, state, "its card failed") })
	}
	if d, err = s.admin.GPU(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if got, want := line(d.GPU), "1 node1/ group ? quarantined gs-x(kept) job 0 unused false"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	want := "gpuserver gpu history 1 says what was seen. Once it is mended, gpuserver gpu uncordon 1 puts it back and deletes VM gs-x, which is kept so that no other gets the card."
	if d.GPU.Help != want {
		t.Errorf("help: %s", d.GPU.Help)
	}
}

func TestGPUsByAnyOfTheirNames(t *testing.T) {
	s, c := serveGPUs(t, api.Options{})
	for ref, want := range map[string]gpuserver.GPUID{
		"3":                            c.Single.ID,
		c.Single.UUID:                  c.Single.ID,
		strings.ToLower(c.Single.UUID): c.Single.ID,
		c.Single.Serial:                c.Single.ID,
		"0000:44:00.0":                 c.Single.ID,
		"44:00.0":                      c.Single.ID,
		"A3:00.0":                      c.Bad.ID,
		"node1/27:00.0":                c.Pair[0].ID,
		"node2/0000:27:00.0":           c.Far.ID,
		"local/node2/27:00.0":          c.Far.ID,
	} {
		d, err := s.admin.GPU(t.Context(), ref)
		if err != nil || d.GPU.ID != want {
			t.Errorf("%s names %d (%v), want %d", ref, d.GPU.ID, err, want)
		}
	}
	for ref, want := range map[string]struct {
		kind gpuserver.Kind
		say  string
	}{
		"27:00.0":           {gpuserver.KindConflict, `"27:00.0" names 2 GPUs; name one by its number: 1 (local/node1/0000:27:00.0), 6 (local/node2/0000:27:00.0).`},
		"7":                 {gpuserver.KindNotFound, `There is no GPU "7"; gpuserver gpu list has the cards by number, HOST/ADDRESS and UUID.`},
		"node3/27:00.0":     {gpuserver.KindNotFound, `There is no GPU "node3/27:00.0"`},
		"far/node1/27:00.0": {gpuserver.KindNotFound, "There is no GPU"},
		"7:00.0":            {gpuserver.KindNotFound, "There is no GPU"},
	} {
		_, err := s.admin.GPU(t.Context(), ref)
		if gpuserver.KindOf(err) != want.kind || !strings.Contains(gpuserver.PublicText(err), want.say) {
			t.Errorf("%s: %v (%s)", ref, err, gpuserver.KindOf(err))
		}
	}
}

func TestGPUIsShownWithItsHistory(t *testing.T) {
	s, c := serveGPUs(t, api.Options{})
	d, err := s.admin.GPU(t.Context(), "4")
	if err != nil {
		t.Fatal(err)
	}
	if d.GPU.Reason != c.Bad.Reason || !strings.Contains(d.GPU.Help, "gpuserver gpu test 4 tries it, and gpuserver gpu uncordon 4 puts it back.") {
		t.Errorf("got %+v", d.GPU)
	}
	if len(d.Events) != 2 || d.Events[0].Kind != "strike" || d.Events[0].Points != 6 || d.Events[1].Kind != "seen" {
		t.Errorf("history: %+v", d.Events)
	}
	for limit, want := range map[int]int{0: 2, 1: 1} {
		if es, err := s.admin.GPUHistory(t.Context(), "node1/a3:00.0", limit); err != nil || len(es) != want || es[0].Kind != "strike" {
			t.Errorf("at most %d: %+v, %v", limit, es, err)
		}
	}
	err = s.db.Update(t.Context(), func(tx *store.Tx) error {
		c.Bad.StruckAt = tx.Now.Add(-25 * time.Hour)
		return tx.SaveGPU(&c.Bad)
	})
	if d, _ := s.admin.GPU(t.Context(), "4"); err != nil || d.GPU.Strikes != 6 || d.GPU.StrikesNow != 5 {
		t.Errorf("a day later %v points of %v are left (%v), want 5", d.GPU.StrikesNow, d.GPU.Strikes, err)
	}
	s.fleet.Policy.Fade = 5 * time.Hour
	if d, err := s.admin.GPU(t.Context(), "4"); err != nil || d.GPU.StrikesNow != 1 {
		t.Errorf("where a point fades in 5 hours, %v points are left (%v), want 1", d.GPU.StrikesNow, err)
	}
	if st, err := s.admin.Status(t.Context()); err != nil || st.GPUs.Out[0].ID != c.Bad.ID || st.GPUs.Out[0].StrikesNow != 1 {
		t.Errorf("so says the status: %+v, %v", st.GPUs.Out, err)
	}
	if _, err := s.admin.CordonGPU(t.Context(), "2", ""); err != nil {
		t.Fatal(err)
	}
	if g, err := s.admin.GPU(t.Context(), "1"); err != nil || g.GPU.Help != "No VM gets it while GPU 2 of its group is cordoned: gpuserver gpu show 2." {
		t.Errorf("beside a card that is out: %q, %v", g.GPU.Help, err)
	}
	if _, err := s.admin.UncordonGPU(t.Context(), "2"); err != nil {
		t.Fatal(err)
	}
	held, err := s.admin.GPU(t.Context(), "1")
	if err != nil || held.GPU.HeldBy == nil || !held.GPU.HeldBy.Until.Equal(c.Holder.JobDeadline) || held.GPU.Help != "" {
		t.Errorf("got %+v, %v", held.GPU, err)
	}
	if resting, err := s.admin.GPU(t.Context(), "5"); err != nil || !strings.Contains(resting.GPU.Help, "used again by itself") {
		t.Errorf("got %+v, %v", resting.GPU, err)
	}
}

func TestGPUActionsNameTheCaller(t *testing.T) {
	s, _ := serveGPUs(t, api.Options{Tokens: []api.Token{{Name: "alice", Role: api.RoleOperator, Hash: api.HashToken("secret")}}})
	alice := client(t, s.url, "secret")
	d, err := alice.CordonGPU(t.Context(), "44:00.0", "to be cleaned")
	if err != nil || d.GPU.State != gpuserver.GPUCordoned || d.GPU.Reason != "to be cleaned (by alice)" || d.Events[0].Kind != "cordoned" || d.Events[0].Text != d.GPU.Reason {
		t.Errorf("cordoned: %+v, %v", d, err)
	}
	if d, err = s.admin.UncordonGPU(t.Context(), "3"); err != nil || d.GPU.State != gpuserver.GPUInService || d.Events[0].Text != "by socket" {
		t.Errorf("uncordoned: %+v, %v", d, err)
	}
	job, err := alice.TestGPU(t.Context(), "4")
	if err != nil || job != 7 {
		t.Errorf("test: job %d, %v", job, err)
	}
	want := []string{`cordon 3 "to be cleaned" by alice`, "uncordon 3 by socket", "test 4 by alice"}
	if diff := cmp.Diff(want, s.fleet.Calls()); diff != "" {
		t.Error(diff)
	}
	if _, err := alice.CordonGPU(t.Context(), "27:00.0", ""); gpuserver.KindOf(err) != gpuserver.KindConflict {
		t.Errorf("a name of two cards: %v", err)
	}
	if _, err := alice.TestGPU(t.Context(), "99"); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		t.Errorf("no such card: %v", err)
	}
	s.fleet.Fail = gpuserver.Errorf(gpuserver.KindConflict, "VM gs-3 has it.")
	if _, err := alice.TestGPU(t.Context(), "1"); gpuserver.PublicText(err) != "VM gs-3 has it." {
		t.Errorf("the fleet refused, and the client got %v", err)
	}
}

func TestJobsAndVMsNameTheirCards(t *testing.T) {
	s, c := serveGPUs(t, api.Options{})
	want := []gpuserver.GPU{c.Pair[0]}
	job, err := s.admin.Job(t.Context(), c.Job.ID)
	if diff := cmp.Diff(want, job.GPUs); diff != "" || err != nil {
		t.Error(err, diff)
	}
	x, err := s.admin.Explain(t.Context(), c.Job.ID)
	if diff := cmp.Diff(want, x.GPUs); diff != "" || err != nil {
		t.Error(err, diff)
	}
	vm, err := s.admin.VM(t.Context(), c.Holder.Name)
	if diff := cmp.Diff(want, vm.GPUs); diff != "" || err != nil {
		t.Error(err, diff)
	}
	// A job that is over and its VM gone still name them.
	if job, err = s.admin.Job(t.Context(), s.world.Done.ID); err != nil || len(job.GPUs) != 1 || job.GPUs[0].ID != c.Bad.ID {
		t.Errorf("%+v, %v", job.GPUs, err)
	}
}

// What a card did to a job is told after its end; what it waited for is not.
func TestExplanationOfAJobWhoseCardFailed(t *testing.T) {
	s := serve(t, api.Options{})
	for class, want := range map[gpuserver.ReasonClass]string{
		gpuserver.ReasonGPU:      "It ended: success. the GPU at 0000:a3:00.0 failed during the job",
		gpuserver.ReasonCapacity: "It ended: success.",
	} {
		err := s.db.Update(t.Context(), func(tx *store.Tx) error {
			s.world.Done.Reason = gpuserver.Reason{Class: class, Text: "the GPU at 0000:a3:00.0 failed during the job"}
			return tx.SaveJob(&s.world.Done)
		})
		if err != nil {
			t.Fatal(err)
		}
		if x, err := s.admin.Explain(t.Context(), s.world.Done.ID); err != nil || x.Sentence != want {
			t.Errorf("%s: %q (%v), want %q", class, x.Sentence, err, want)
		}
	}
}

func TestStatusCountsCardsAndSlots(t *testing.T) {
	s, _ := serveGPUs(t, api.Options{})
	got, err := s.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counts := []api.GPUCount{
		{Cloud: "local", Model: "tesla-v100", State: gpuserver.GPUCordoned, Count: 1},
		{Cloud: "local", Model: "tesla-v100", State: gpuserver.GPUInService, Count: 4},
		{Cloud: "local", Model: "tesla-v100", State: gpuserver.GPUQuarantined, Count: 1},
	}
	if diff := cmp.Diff(counts, got.GPUs.Counts); diff != "" {
		t.Error(diff)
	}
	var out []gpuserver.GPUID
	for _, g := range got.GPUs.Out {
		out = append(out, g.ID)
	}
	if diff := cmp.Diff([]gpuserver.GPUID{4, 6, 5}, out); diff != "" {
		t.Errorf("the worst first: %s", diff)
	}
	slots := func(free, held, out int) []api.SlotCount {
		return []api.SlotCount{{Cloud: "local", State: "free", Count: free}, {Cloud: "local", State: "held", Count: held}, {Cloud: "local", State: "out", Count: out}}
	}
	if diff := cmp.Diff(slots(1, 1, 3), got.Slots); diff != "" {
		t.Error(diff)
	}
	s.fleet.HostList[0].Slots[1].Out = "a stranger has it"
	if got, err = s.admin.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slots(0, 1, 4), got.Slots); diff != "" {
		t.Error(diff)
	}
}

// A card that was taken out of the machine is remembered, and is nobody's trouble.
func TestAbsentCard(t *testing.T) {
	s, c := serveGPUs(t, api.Options{})
	err := s.db.Update(t.Context(), func(tx *store.Tx) error {
		c.Bad.Address = ""
		return tx.SaveGPU(&c.Bad)
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.admin.GPU(t.Context(), "4")
	if err != nil || !d.GPU.Absent || d.GPU.GuestOnly || !strings.Contains(d.GPU.Help, "another card is in its place") {
		t.Errorf("got %+v, %v", d.GPU, err)
	}
	st, err := s.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.GPUs.Counts {
		if n.State == gpuserver.GPUQuarantined {
			t.Errorf("it is counted: %+v", n)
		}
	}
	for _, g := range st.GPUs.Out {
		if g.ID == c.Bad.ID {
			t.Error("it is named as trouble")
		}
	}
	// Where the cloud never tells an address it is there as far as we know.
	s.fleet.CloudList[0].Cards = false
	if d, err := s.admin.GPU(t.Context(), "4"); err != nil || d.GPU.Absent || !d.GPU.GuestOnly {
		t.Errorf("got %+v, %v", d.GPU, err)
	}
}

func TestChangesOfCardsAreEvents(t *testing.T) {
	s, c := serveGPUs(t, api.Options{})
	events := watch(t, s)
	if err := s.db.Update(t.Context(), func(tx *store.Tx) error { return tx.SaveGPU(&c.Bad) }); err != nil {
		t.Fatal(err)
	}
	if got := <-events; got != `gpu {"gpu":4}` {
		t.Errorf("got %s", got)
	}
}
