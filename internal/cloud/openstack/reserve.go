package openstack

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/gophercloud/gophercloud/v2"

	"gpuserver"
	"gpuserver/internal/cloud"
)

var _ cloud.Reserver = (*Driver)(nil)

// Where Nova reports PCI devices to Placement, each card is a resource provider of its
// own below its host's. With all of its inventory reserved Nova gives it to nobody, and
// does not set that back by itself.
// Source: Nova's "PCI tracking in Placement", and nova/compute/pci_placement_translator.py.

// reservation is the cards that a server had and that are held back. In words:
// "SERVER CLASS:PROVIDER CLASS:PROVIDER".
type reservation struct {
	server string
	cards  []reservedCard
}

type reservedCard struct{ class, provider string }

func (r reservation) String() string {
	words := []string{r.server}
	for _, c := range r.cards {
		words = append(words, c.class+":"+c.provider)
	}
	return strings.Join(words, " ")
}

func parseReservation(held string) (r reservation) {
	for i, word := range strings.Fields(held) {
		if i == 0 {
			r.server = word
		} else if class, provider, ok := strings.Cut(word, ":"); ok {
			r.cards = append(r.cards, reservedCard{class, provider})
		}
	}
	return r
}

// reservations are those that are ours.
type reservations struct {
	mu  sync.Mutex
	all []string
}

func (r *reservations) add(held string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.all, held) {
		r.all = append(r.all, held)
	}
}

func (r *reservations) drop(held string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(s string) bool { return s == held })
}

// heldBack counts our reserved cards of a class whose server is gone: as long as it is
// there it counts itself.
func (d *Driver) heldBack(class string) (n int) {
	d.held.mu.Lock()
	defer d.held.mu.Unlock()
	for _, held := range d.held.all {
		r := parseReservation(held)
		if _, there := d.watch.get(r.server); there {
			continue
		}
		for _, c := range r.cards {
			if c.class == class {
				n++
			}
		}
	}
	return n
}

// Reserve implements cloud.Reserver. It may be repeated as long as the server is there.
func (d *Driver) Reserve(ctx context.Context, name string) (string, error) {
	if d.admin == nil {
		return "", gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s: cards cannot be reserved in Placement without an administrator's credentials (openstack.placement)", d.cfg.Name)
	}
	ctx, cancel := d.bind(ctx)
	defer cancel()
	end, ours, err := d.own(ctx, name)
	if err != nil {
		return "", err
	}
	defer end()
	if len(ours) == 0 {
		return "", gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no VM %q whose cards could be reserved", d.cfg.Name, name)
	}
	r := reservation{server: ours[0].ID}
	if r.cards, err = d.cardsInPlacement(ctx, name, r.server); err != nil {
		return "", err
	}
	for i, c := range r.cards {
		if err := d.reserve(ctx, c, true); err != nil {
			for _, before := range r.cards[:i] { // all or none: a server that is kept holds them itself
				if e := d.reserve(ctx, before, false); e != nil {
					d.log.Error("a card stays reserved in Placement; an administrator has to let it go", "provider", before.provider, "class", before.class, "err", e)
				}
			}
			return "", err
		}
	}
	d.held.add(r.String())
	return r.String(), nil
}

// Remember implements cloud.Reserver.
func (d *Driver) Remember(held string) { d.held.add(held) }

// Release implements cloud.Reserver. A provider that is gone, as after its host was
// taken away, is success.
func (d *Driver) Release(ctx context.Context, held string) error {
	if d.admin == nil {
		return gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s: cards stay reserved in Placement without an administrator's credentials (openstack.placement): %s", d.cfg.Name, held)
	}
	ctx, cancel := d.bind(ctx)
	defer cancel()
	for _, c := range parseReservation(held).cards {
		if err := d.reserve(ctx, c, false); err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
			return err
		}
	}
	d.held.drop(held)
	return nil
}

// cardsInPlacement gives the cards that a server has by Placement. KindInvalid: it
// knows of none.
// Source: docs.openstack.org/api-ref/placement, "List allocations for consumer".
func (d *Driver) cardsInPlacement(ctx context.Context, name, server string) (cards []reservedCard, err error) {
	var answer struct {
		Allocations map[string]struct {
			Resources map[string]int `json:"resources"`
		} `json:"allocations"`
	}
	if err := d.placement(ctx, "read the allocations of "+name, http.MethodGet, "allocations/"+server, nil, &answer); err != nil {
		return nil, err
	}
	for provider, a := range answer.Allocations {
		for class := range a.Resources {
			if slices.ContainsFunc(d.cfg.GPUs, func(g GPUs) bool { return g.Class == class }) {
				cards = append(cards, reservedCard{class, provider})
			}
		}
	}
	if len(cards) == 0 {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s: Placement knows no card of VM %s; Nova reports them with [pci] report_in_placement, and resource_class in gpus names their class", d.cfg.Name, name)
	}
	slices.SortFunc(cards, func(a, b reservedCard) int { return strings.Compare(a.provider, b.provider) })
	return cards, nil
}

// maxConflicts is how often a change is repeated that another one came before.
const maxConflicts = 5

// reserve holds a card back, or lets it go. Placement refuses a change that was made of
// old news (409): then it is made anew.
// Source: docs.openstack.org/api-ref/placement, "Update resource provider inventory";
// reserved may be as much as total from 1.26 on.
func (d *Driver) reserve(ctx context.Context, c reservedCard, yes bool) error {
	path := fmt.Sprintf("resource_providers/%s/inventories/%s", c.provider, c.class)
	for try := 0; ; try++ {
		var inventory struct {
			Generation int     `json:"resource_provider_generation"`
			Total      int     `json:"total"`
			Reserved   int     `json:"reserved"`
			MinUnit    int     `json:"min_unit"`
			MaxUnit    int     `json:"max_unit"`
			StepSize   int     `json:"step_size"`
			Ratio      float64 `json:"allocation_ratio"`
		}
		if err := d.placement(ctx, "read a card's inventory", http.MethodGet, path, nil, &inventory); err != nil {
			return err
		}
		if inventory.Total != 1 {
			return gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s: provider %s has %d of %s, and not one card", d.cfg.Name, c.provider, inventory.Total, c.class)
		}
		want := 0
		if yes {
			want = 1
		}
		if inventory.Reserved == want {
			return nil
		}
		inventory.Reserved = want
		err := d.placement(ctx, "reserve a card", http.MethodPut, path, inventory, nil)
		if gpuserver.KindOf(err) != gpuserver.KindConflict || try == maxConflicts {
			return err
		}
	}
}

// placement makes one call to Placement with the administrator's credentials.
func (d *Driver) placement(ctx context.Context, what, method, path string, in, out any) error {
	return d.admin.ask(ctx, what, func(ctx context.Context, s *session) error {
		if s.placement == nil {
			return gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no Placement in its catalogue", d.cfg.Name)
		}
		client := *s.placement // the microversion is this call's
		client.Microversion = placementVersion
		_, err := client.Request(ctx, method, client.ServiceURL(path), &gophercloud.RequestOpts{JSONBody: in, JSONResponse: out, OkCodes: []int{http.StatusOK}})
		return err
	})
}

// placementVersion is the microversion of Placement that is spoken.
const placementVersion = "1.29"
