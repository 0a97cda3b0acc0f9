package gate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// askAMD asks AMD's tool, the newer one first.
// Source: ROCm documentation, command line tools of AMD SMI and ROCm SMI.
func (c *check) askAMD(ctx context.Context) {
	var name string
	var listed map[*Card]bool
	var err error
	if path := c.tool("amd-smi"); path != "" {
		name = "amd-smi"
		listed, err = c.askAMDSMI(ctx, path)
	} else if path := c.tool("rocm-smi"); path != "" {
		name = "rocm-smi"
		listed, err = c.askROCmSMI(ctx, path)
	}
	if name == "" {
		return
	}
	c.alsoAsked(name)
	if err != nil {
		c.found("", KindTool, "%s failed: %s", name, err)
		return
	}
	for _, card := range c.of(vendorAMD) {
		if !listed[card] {
			c.found(card.Host, KindDriver, "%s does not list the card at %s, which is on the PCI bus", name, card.Address)
		}
	}
}

// amdGPU is one card's entry in amd-smi's JSON. Its form differs by version: a
// value is a number, a text, or an object with value and unit.
type amdGPU struct {
	GPU         int                        `json:"gpu"`
	BDF         string                     `json:"bdf"`
	UUID        string                     `json:"uuid"`
	Asic        map[string]json.RawMessage `json:"asic"`
	Limit       json.RawMessage            `json:"limit"` // newer versions nest it
	Temperature map[string]json.RawMessage `json:"temperature"`
	ECC         map[string]json.RawMessage `json:"ecc"`
	PCIe        map[string]json.RawMessage `json:"pcie"`
	Throttle    json.RawMessage            `json:"throttle"` // "N/A" where the card does not tell
}

// parseAMD reads a list of cards, which newer versions wrap.
func parseAMD(b []byte) ([]amdGPU, error) {
	var wrapped struct {
		GPUs []amdGPU `json:"gpu_data"`
	}
	if json.Unmarshal(b, &wrapped) == nil && wrapped.GPUs != nil {
		return wrapped.GPUs, nil
	}
	var all []amdGPU
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("it printed no list of cards: %w", err)
	}
	return all, nil
}

// askAMDSMI gives the cards that amd-smi lists.
func (c *check) askAMDSMI(ctx context.Context, path string) (map[*Card]bool, error) {
	cards := map[int]*Card{} // by the tool's number
	limits := map[*Card]int{}
	listed := map[*Card]bool{}
	for _, args := range [][]string{{"list"}, {"static", "--asic", "--limit"}, {"metric"}} {
		out, err := c.call(ctx, toolTimeout, path, append(args, "--json")...)
		if err != nil {
			return nil, fmt.Errorf("%s: %s", args[0], reason(out, err, nil))
		}
		gpus, err := parseAMD(out.stdout)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", args[0], err)
		}
		for _, g := range gpus {
			if g.BDF != "" {
				cards[g.GPU] = c.card(guestAddress(g.BDF))
			}
			card := cards[g.GPU]
			if card == nil {
				continue
			}
			listed[card] = true
			card.UUID = cmp.Or(card.UUID, known(g.UUID))
			card.Product = cmp.Or(card.Product, amdText(g.Asic["market_name"]))
			card.Serial = cmp.Or(card.Serial, amdText(g.Asic["asic_serial"]))
			if m := slowHotspot.FindSubmatch(g.Limit); m != nil {
				limits[card], _ = number(string(m[1]))
			}
			c.judgeAMD(card, g, limits[card])
		}
	}
	return listed, nil
}

// slowHotspot finds the temperature of the chip at which the card slows down.
var slowHotspot = regexp.MustCompile(`"slowdown_hotspot_temperature"\s*:\s*(?:\{\s*"value"\s*:\s*)?"?([0-9]+)`)

// judgeAMD finds what is wrong with a card; limit 0 is unknown.
func (c *check) judgeAMD(card *Card, g amdGPU, limit int) {
	if width, ok := number(amdText(g.PCIe["width"])); ok {
		card.LinkWidth = width
	}
	for _, sensor := range []string{"edge", "hotspot"} { // the latter is the hotter, and limited
		if t, ok := number(amdText(g.Temperature[sensor])); ok {
			card.Temperature = t
		}
	}
	if limit > 0 && card.Temperature >= limit {
		c.found(card.Host, KindTemperature, "the card at %s: %d °C; it slows down at %d °C", card.Address, card.Temperature, limit)
	}
	if n, _ := number(amdText(g.ECC["total_uncorrectable_count"])); n > 0 {
		c.found(card.Host, KindECC, "the card at %s: %d uncorrectable memory errors", card.Address, n)
	}
	var throttle map[string]json.RawMessage
	_ = json.Unmarshal(g.Throttle, &throttle) // no object: the card does not tell
	for _, name := range slices.Sorted(maps.Keys(throttle)) {
		why, ok := strings.CutSuffix(name, "_violation_status")
		if ok && why != "ppt" && amdText(throttle[name]) == "ACTIVE" { // ppt: its usual power limit
			c.found(card.Host, KindThrottle, "the card at %s is slowed down by its hardware: %s", card.Address, why)
		}
	}
}

// amdText gives a value as text, "" if there is none.
func amdText(raw json.RawMessage) string {
	var object struct {
		Value json.RawMessage `json:"value"`
	}
	if json.Unmarshal(raw, &object) == nil && object.Value != nil {
		raw = object.Value
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw)
	}
	return known(text)
}

// askROCmSMI gives the cards that rocm-smi, AMD's older tool, lists. It has no
// limits; errors are what the driver counted.
func (c *check) askROCmSMI(ctx context.Context, path string) (map[*Card]bool, error) {
	out, err := c.call(ctx, toolTimeout, path, "--showbus", "--showtemp", "--showuniqueid", "--showserial", "--json")
	if err != nil {
		return nil, fmt.Errorf("%s", reason(out, err, nil))
	}
	cards, err := parseROCm(out.stdout)
	if err != nil {
		return nil, err
	}
	listed := map[*Card]bool{}
	for _, name := range slices.Sorted(maps.Keys(cards)) {
		values := cards[name]
		card := c.card(guestAddress(values["PCI Bus"]))
		if card == nil {
			continue
		}
		listed[card] = true
		card.UUID, card.Serial = known(values["Unique ID"]), known(values["Serial Number"])
		for _, sensor := range []string{"edge", "junction"} {
			if t, ok := number(values["Temperature (Sensor "+sensor+") (C)"]); ok {
				card.Temperature = t
			}
		}
		if n := c.rasErrors(card.Address); n > 0 {
			c.found(card.Host, KindECC, "the card at %s: %d uncorrectable errors", card.Address, n)
		}
	}
	return listed, nil
}

// parseROCm reads rocm-smi's JSON: texts by card, after warnings.
func parseROCm(b []byte) (map[string]map[string]string, error) {
	var cards map[string]map[string]string
	if err := json.Unmarshal(b[max(bytes.IndexByte(b, '{'), 0):], &cards); err != nil {
		return nil, fmt.Errorf("it printed no list of cards: %w", err)
	}
	return cards, nil
}

// rasErrors sums up the uncorrectable errors that the driver amdgpu counts by
// block, in files with the lines "ue: N" and "ce: N".
// Source: Linux Documentation/gpu/amdgpu/ras.rst.
func (c *check) rasErrors(address string) (sum int) {
	files, _ := filepath.Glob(filepath.Join("/", c.Root, "sys/bus/pci/devices", address, "ras", "*_err_count"))
	for _, file := range files {
		b, _ := readSome(file, 4096) // of a block that the card does not have
		for line := range strings.Lines(string(b)) {
			if text, ok := strings.CutPrefix(line, "ue:"); ok {
				n, _ := number(text)
				sum += max(n, 0)
			}
		}
	}
	return sum
}
