package openstack

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"gpuserver"
)

// inventory is a card's provider in Placement, of which server "vm-1" has it.
type inventory struct {
	class             string
	total, reserved   int
	generation, stale int // stale: how many changes are refused for old news
	absent            bool
}

// placementOf answers for one card in Placement.
func (s *standin) placementOf(inv *inventory) {
	s.intercept(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		show := func() {
			send(w, 200, object{"total": inv.total, "reserved": inv.reserved, "resource_provider_generation": inv.generation, "min_unit": 1, "max_unit": 1, "step_size": 1, "allocation_ratio": 1.0})
		}
		path := "/resource_providers/rp-1/inventories/" + inv.class
		switch {
		case strings.Contains(r.URL.Path, "/allocations/") && len(s.machines) > 0 && strings.HasSuffix(r.URL.Path, s.machines[0].ID):
			send(w, 200, object{"allocations": object{
				"host": object{"resources": object{"VCPU": 4, "MEMORY_MB": 8192}},
				"rp-1": object{"resources": object{inv.class: 1}},
			}})
		case strings.HasSuffix(r.URL.Path, path) && inv.absent:
			send(w, 404, object{"errors": []any{object{"status": 404, "title": "Not Found", "detail": "No resource provider with uuid rp-1 found"}}})
		case strings.HasSuffix(r.URL.Path, path) && r.Method == http.MethodGet:
			show()
		case strings.HasSuffix(r.URL.Path, path) && r.Method == http.MethodPut:
			var b struct {
				Reserved   int `json:"reserved"`
				Total      int `json:"total"`
				Generation int `json:"resource_provider_generation"`
			}
			if err := json.NewDecoder(r.Body).Decode(&b); err != nil || b.Total != inv.total || inv.stale > 0 || b.Generation != inv.generation {
				inv.stale, inv.generation = inv.stale-1, inv.generation+1
				send(w, 409, object{"errors": []any{object{"status": 409, "title": "Conflict", "detail": "resource provider generation conflict"}}})
				return true
			}
			inv.reserved, inv.generation = b.Reserved, inv.generation+1
			show()
		default:
			return false
		}
		return true
	})
}

// A bad card is reserved in Placement, its server goes, and the ledger still has it as
// ours; it is let go again.
func TestReserve(t *testing.T) {
	s := newStandin(t)
	s.place = map[string]int{"CUSTOM_V100": 3}
	cfg := s.config()
	cfg.GPUs = []GPUs{{Model: "tesla-v100", Class: "CUSTOM_V100"}} // Placement alone tells how many there are
	cfg.Placement = &cfg.Credentials
	inv := &inventory{class: "CUSTOM_V100", total: 1, generation: 7, stale: 2}
	s.placementOf(inv)
	d := open(t, cfg)
	vm := spec(cfg, "vm-1")
	vm.Flavor = gpuFlavor
	if _, err := d.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	held, err := d.Reserve(t.Context(), "vm-1")
	if err != nil || inv.reserved != 1 || held != s.find("vm-1").ID+" CUSTOM_V100:rp-1" {
		t.Fatalf("Reserve gives %q, %v; reserved: %d", held, err, inv.reserved)
	}
	if again, err := d.Reserve(t.Context(), "vm-1"); err != nil || again != held {
		t.Errorf("repeated it gives %q, %v", again, err)
	}
	if n := usable(capacity(t, d)); n != 4 { // one that the server has, three free
		t.Errorf("while the server is there %d cards may be had by the ledger, want 4", n)
	}
	if err := d.Delete(t.Context(), "vm-1"); err != nil {
		t.Fatal(err)
	}
	if n := usable(capacity(t, d)); n != 4 { // one that is held back for its lease, three free
		t.Errorf("without the server %d cards may be had by the ledger, want 4", n)
	}
	_ = d.Close()

	next := open(t, cfg)
	if n := usable(capacity(t, next)); n != 3 {
		t.Errorf("without its memory the ledger has %d cards, want 3", n)
	}
	next.Remember(held)
	if n := usable(capacity(t, next)); n != 4 {
		t.Errorf("with its memory the ledger has %d cards, want 4", n)
	}
	for range 2 {
		if err := next.Release(t.Context(), held); err != nil || inv.reserved != 0 {
			t.Errorf("Release: %v; reserved: %d", err, inv.reserved)
		}
	}
	if n := usable(capacity(t, next)); n != 3 {
		t.Errorf("after it was let go the ledger has %d cards, want 3: it is for Placement to say that it is free", n)
	}
	inv.absent = true
	if err := next.Release(t.Context(), held); err != nil {
		t.Errorf("Release of a provider that is gone: %v", err)
	}
}

// What cannot be reserved keeps its server.
func TestReserveThatCannotBe(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config, *inventory)
		kind   gpuserver.Kind
		text   string
	}{
		"no credentials":        {func(c *Config, _ *inventory) { c.Placement = nil }, gpuserver.KindInvalid, "openstack.placement"},
		"a class of others":     {func(c *Config, _ *inventory) { c.GPUs[0].Class = "CUSTOM_A100" }, gpuserver.KindInvalid, "Placement knows no card"},
		"several in a provider": {func(_ *Config, inv *inventory) { inv.total = 8 }, gpuserver.KindInvalid, "not one card"},
		"always old news":       {func(_ *Config, inv *inventory) { inv.stale = 99 }, gpuserver.KindConflict, "generation conflict"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandin(t)
			cfg := s.config()
			cfg.GPUs = []GPUs{{Model: "tesla-v100", Count: 4, Class: "CUSTOM_V100"}}
			cfg.Placement = &cfg.Credentials
			inv := &inventory{class: "CUSTOM_V100", total: 1}
			tt.change(&cfg, inv)
			s.placementOf(inv)
			d := open(t, cfg)
			create(t, d, "vm-1")
			_, err := d.Reserve(t.Context(), "vm-1")
			wantKind(t, err, tt.kind, tt.text)
			if inv.reserved != 0 {
				t.Errorf("%d are reserved", inv.reserved)
			}
		})
	}
}
