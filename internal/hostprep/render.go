package hostprep

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"gpuserver"
	"gpuserver/internal/pci"
)

// Nova says how the fragments for OpenStack Nova are to be.
type Nova struct {
	// Names are what flavors call a model, by "vendor:device" in hexadecimal. A
	// model without one is named after its PCI name.
	Names map[string]string
	// Filters are the scheduler's filters to which PciPassthroughFilter is added;
	// nil takes Nova's own defaults.
	Filters []string
	// Pairs makes each group with two cards a thing of its own, with its own
	// resource class, alias and flavor: whole, never split. It needs Nova 2023.1
	// or newer.
	Pairs bool
}

// defaultFilters are Nova's (2023.1, [filter_scheduler] enabled_filters).
// PciPassthroughFilter is not among them, and without it Nova places a server
// with a card on any host.
var defaultFilters = []string{
	"ComputeFilter", "ComputeCapabilitiesFilter", "ImagePropertiesFilter",
	"ServerGroupAntiAffinityFilter", "ServerGroupAffinityFilter",
}

const pciFilter = "PciPassthroughFilter"

// deviceSpec is one entry of [pci] device_spec.
// Source: Nova's configuration reference, [pci] device_spec.
type deviceSpec struct {
	Address       string `json:"address"`
	ResourceClass string `json:"resource_class,omitempty"`
}

// alias is one line of [pci] alias.
// Source: Nova's configuration reference, [pci] alias.
type alias struct {
	VendorID      string `json:"vendor_id,omitempty"`
	ProductID     string `json:"product_id,omitempty"`
	DeviceType    string `json:"device_type,omitempty"`
	ResourceClass string `json:"resource_class,omitempty"`
	Name          string `json:"name"`
	NUMAPolicy    string `json:"numa_policy"`
}

// Rendered is what Nova has to be told of one host.
type Rendered struct {
	specs   []deviceSpec
	aliases []alias
	filters []string
	pairs   []pair
	left    []string // why cards are left out
}

// pair is a group of two cards that is given away whole.
type pair struct{ class, alias string }

// Render says what Nova has to be told of a host: the lowest usable card of each
// usable group, because Nova knows no groups and would give the cards of one to
// two servers. With Pairs, groups of two are told whole. KindInvalid: the host
// has no usable card, or two models were given one name.
func (n Nova) Render(inv *pci.Inventory) (*Rendered, error) {
	r := &Rendered{filters: n.filters()}
	usable := map[string]pci.GPU{}
	for _, g := range inv.GPUs {
		if g.Usable {
			usable[g.Address] = g
		} else {
			r.left = append(r.left, g.Address+": "+g.Why)
		}
	}
	models := map[string]alias{} // by vendor:device
	for _, s := range inv.Slots {
		if !s.Usable {
			continue
		}
		cards := slices.DeleteFunc(slices.Sorted(slices.Values(s.GPUs)), func(a string) bool { _, ok := usable[a]; return !ok })
		if len(cards) == 0 {
			continue
		}
		if n.Pairs && len(cards) == 2 {
			r.pair(s.Group, cards, n.name(usable[cards[0]]), deviceType(usable[cards[0]]))
			continue
		}
		first := usable[cards[0]]
		r.specs = append(r.specs, deviceSpec{Address: first.Address})
		for _, other := range cards[1:] {
			r.left = append(r.left, fmt.Sprintf("%s: shares group %d with %s, which stands for it: Nova would give them to two servers", other, s.Group, first.Address))
		}
		models[first.VendorID+":"+first.DeviceID] = alias{
			VendorID: first.VendorID, ProductID: first.DeviceID, DeviceType: deviceType(first), Name: n.name(first), NUMAPolicy: "preferred",
		}
	}
	for _, id := range slices.Sorted(maps.Keys(models)) {
		r.aliases = append(r.aliases, models[id])
	}
	slices.SortFunc(r.specs, func(a, b deviceSpec) int { return cmp.Compare(a.Address, b.Address) })
	slices.SortStableFunc(r.aliases, func(a, b alias) int { return cmp.Compare(a.Name, b.Name) })
	return r, r.check()
}

func (r *Rendered) check() error {
	if len(r.specs) == 0 {
		return gpuserver.Errorf(gpuserver.KindInvalid, "no card of this host can be given to a server; gpuserver host inspect says why of each")
	}
	for i := 1; i < len(r.aliases); i++ {
		if r.aliases[i].Name == r.aliases[i-1].Name {
			return gpuserver.Errorf(gpuserver.KindInvalid, "two models are both named %q; give each a name of its own with --alias", r.aliases[i].Name)
		}
	}
	return nil
}

// pair tells a group of two cards as a thing of its own.
func (r *Rendered) pair(group int, cards []string, model, kind string) {
	p := pair{class: fmt.Sprintf("CUSTOM_GPU_PAIR_%d", group), alias: fmt.Sprintf("%s-pair-%d", model, group)}
	for _, address := range cards {
		r.specs = append(r.specs, deviceSpec{Address: address, ResourceClass: p.class})
	}
	r.aliases = append(r.aliases, alias{DeviceType: kind, ResourceClass: p.class, Name: p.alias, NUMAPolicy: "preferred"})
	r.pairs = append(r.pairs, p)
}

// deviceType is Nova's word for a card: one that could have virtual functions is
// a physical function to it, which no alias of type-PCI finds.
func deviceType(g pci.GPU) string {
	if g.TotalVFs > 0 {
		return "type-PF"
	}
	return "type-PCI"
}

func (n Nova) filters() []string {
	filters := slices.Clone(n.Filters)
	if n.Filters == nil {
		filters = slices.Clone(defaultFilters)
	}
	if !slices.Contains(filters, pciFilter) {
		filters = append(filters, pciFilter)
	}
	return filters
}

// bracketed is the marketing name in a PCI name: GV100GL [Tesla V100 PCIe 16GB].
var bracketed = regexp.MustCompile(`\[([^\]]+)\]`)

// notInName are the characters that an alias's name does not get.
var notInName = regexp.MustCompile(`[^a-z0-9.]+`)

// name is what flavors call a card's model.
func (n Nova) name(g pci.GPU) string {
	if name := n.Names[g.VendorID+":"+g.DeviceID]; name != "" {
		return name
	}
	text := g.Model
	if m := bracketed.FindStringSubmatch(text); m != nil {
		text = m[1]
	}
	return strings.Trim(notInName.ReplaceAllString(strings.ToLower(text), "-"), "-")
}

// API is the fragment for nova-api, which reads aliases.
func (r *Rendered) API() string {
	text := "[pci]\n" + r.aliasLines()
	if len(r.pairs) > 0 { // else it refuses an alias without vendor and product
		text += "\n[filter_scheduler]\npci_in_placement = True\n"
	}
	return text
}

// Compute is the fragment for a host's nova-compute.
func (r *Rendered) Compute() string {
	text := "[pci]\n" + "device_spec = " + compact(r.specs) + "\n" + r.aliasLines()
	if len(r.pairs) > 0 {
		text += "report_in_placement = True\n"
	}
	return text
}

// Scheduler is the fragment for nova-scheduler.
func (r *Rendered) Scheduler() string {
	text := "[filter_scheduler]\nenabled_filters = " + strings.Join(r.filters, ",") + "\n"
	if len(r.pairs) > 0 {
		text += "pci_in_placement = True\n"
	}
	return text
}

// File is one fragment for all of Nova's services, with remarks as comments.
func (r *Rendered) File() string {
	var b strings.Builder
	b.WriteString("# device_spec is for nova-compute on this host; alias for nova-compute and nova-api;\n# filter_scheduler for nova-scheduler.\n")
	for _, why := range r.left {
		b.WriteString("# Left out: " + why + "\n")
	}
	b.WriteString(r.Compute() + "\n" + r.Scheduler())
	if len(r.pairs) > 0 {
		b.WriteString("\n# One flavor for each pair, which has exactly this pair:\n")
		for _, p := range r.pairs {
			fmt.Fprintf(&b, "#   openstack flavor set FLAVOR --property pci_passthrough:alias=%s:2\n", p.alias)
		}
	}
	return b.String()
}

// Warnings says what cannot be taken back.
func (r *Rendered) Warnings() []string {
	if len(r.pairs) == 0 {
		return nil
	}
	return []string{"pairs need Nova 2023.1 or newer, and report_in_placement cannot be switched off again once a compute host has reported: Nova refuses to start without it"}
}

func (r *Rendered) aliasLines() string {
	var b strings.Builder
	for _, a := range r.aliases {
		b.WriteString("alias = " + compact(a) + "\n")
	}
	return b.String()
}

// compact gives v as JSON on one line.
func compact(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts and numbers only
	}
	return string(text)
}

// Kolla gives the files for Kolla Ansible by their names below its folder of
// overrides (node_custom_config, /etc/kolla/config): aliases and filters are the
// same for all hosts, device_spec is host's own.
func (r *Rendered) Kolla(host string) map[string]string {
	return map[string]string{
		"nova/nova-api.conf":          r.API(),
		"nova/nova-scheduler.conf":    r.Scheduler(),
		"nova/" + host + "/nova.conf": r.Compute(),
	}
}
