package gate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// smiCodes are the exit statuses of nvidia-smi that say something.
// Source: nvidia-smi(1), "RETURN VALUE"; NVML API Reference, nvmlReturn_t.
var smiCodes = map[int]string{
	smiNoCard: "it found no card",

	8:  "a card's power cables are not attached",
	9:  "the driver is not loaded",
	10: "the kernel has an interrupt issue with a card",
	12: "its library cannot be loaded",
	14: "a card's infoROM is corrupted",
	15: "a card has fallen off the bus",
	16: "a card needs a reset",
}

const smiNoCard = 6

// smiLog is the part of `nvidia-smi -q -x` that is looked at. Everything is text,
// and everything may be absent: what there is differs by driver and card, and
// "N/A" stands for what a card does not have.
// Source: nvidia-smi(1), "GPU ATTRIBUTES".
type smiLog struct {
	Driver string   `xml:"driver_version"`
	GPUs   []smiGPU `xml:"gpu"`
}

type smiGPU struct {
	ID      string `xml:"id,attr"` // 00000000:01:00.0
	Bus     string `xml:"pci>pci_bus_id"`
	Product string `xml:"product_name"`
	UUID    string `xml:"uuid"`
	Serial  string `xml:"serial"`

	LinkWidth    string `xml:"pci>pci_gpu_link_info>link_widths>current_link_width"` // 16x
	MaxLinkWidth string `xml:"pci>pci_gpu_link_info>link_widths>max_link_width"`

	// Recovery is what the driver (since 555) says has to be done before the card
	// can be used: "None", "Reset", "Reboot", "Drain P2P", "Drain and Reset", …
	// Source: NVIDIA, "GPU Memory Error Management", recovery action flag.
	Recovery string `xml:"gpu_recovery_action"`

	ECC smiECC `xml:"ecc_errors"`
	// Cards since Ampere remap rows of memory, older ones retire pages.
	RemapPending     string `xml:"remapped_rows>remapped_row_pending"`
	RemapFailure     string `xml:"remapped_rows>remapped_row_failure"`
	RetirePending    string `xml:"retired_pages>pending_retirement"`
	RetirePendingOld string `xml:"retired_pages>pending_blacklist"`

	Temperature   string `xml:"temperature>gpu_temp"` // 35 C
	SlowThreshold string `xml:"temperature>gpu_temp_slow_threshold"`
	// Newer drivers tell how far it is to the limit instead, and from which
	// distance on the card slows down.
	Limit     string `xml:"temperature>gpu_temp_tlimit"`
	SlowLimit string `xml:"temperature>gpu_temp_slow_tlimit_threshold"`

	Events    smiReasons `xml:"clocks_event_reasons"`
	Throttles smiReasons `xml:"clocks_throttle_reasons"` // drivers before 535
}

// smiVolatile are the errors since the driver was loaded, by the age of the
// driver's words.
type smiVolatile struct {
	Old        string `xml:"double_bit>total"`
	DRAM       string `xml:"dram_uncorrectable"`
	SRAM       string `xml:"sram_uncorrectable"`
	SRAMParity string `xml:"sram_uncorrectable_parity"`
	SRAMSecDed string `xml:"sram_uncorrectable_secded"`
}

type smiECC struct {
	Volatile      smiVolatile `xml:"volatile"`
	SRAMThreshold string      `xml:"aggregate>sram_threshold_exceeded"`
	ChannelRepair string      `xml:"channel_repair_pending"`
	TPCRepair     string      `xml:"tpc_repair_pending"`
	Unrepairable  string      `xml:"unrepairable_memory"`
}

// smiReasons are why clocks are low: "Active" or "Not Active". Each has two names.
type smiReasons struct {
	Idle          string `xml:"clocks_event_reason_gpu_idle"`
	Slowdown      string `xml:"clocks_event_reason_hw_slowdown"`
	Thermal       string `xml:"clocks_event_reason_hw_thermal_slowdown"`
	PowerBrake    string `xml:"clocks_event_reason_hw_power_brake_slowdown"`
	OldIdle       string `xml:"clocks_throttle_reason_gpu_idle"`
	OldSlowdown   string `xml:"clocks_throttle_reason_hw_slowdown"`
	OldThermal    string `xml:"clocks_throttle_reason_hw_thermal_slowdown"`
	OldPowerBrake string `xml:"clocks_throttle_reason_hw_power_brake_slowdown"`
}

// processes is what is cut out before parsing: the names of a job's programs
// need be no XML.
var processes = regexp.MustCompile(`(?s)<processes>.*?</processes>`)

// parseSMI reads what `nvidia-smi -q -x` printed. XML that ends early is an error.
func parseSMI(b []byte) (smiLog, error) {
	var l smiLog
	clean := processes.ReplaceAllLiteral(bytes.ToValidUTF8(b, nil), nil)
	d := xml.NewDecoder(bytes.NewReader(clean))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	if err := d.Decode(&l); err != nil {
		return smiLog{}, fmt.Errorf("no whole XML: %w", err)
	}
	return l, nil
}

// askNVIDIA asks NVIDIA's tool, if the image has it, about each card on the bus.
func (c *check) askNVIDIA(ctx context.Context) {
	path := c.tool("nvidia-smi")
	if path == "" {
		return
	}
	c.alsoAsked("nvidia-smi")
	out, err := c.call(ctx, toolTimeout, path, "-q", "-x")
	l, parseErr := parseSMI(out.stdout)
	if parseErr == nil && l.Driver != "" {
		c.report.Tool += " " + l.Driver
	}
	switch {
	case err == nil && parseErr != nil:
		c.found("", KindTool, "nvidia-smi printed %s", parseErr)
		return
	case exitCode(err) == smiNoCard && parseErr != nil: // so it lists none of those on the bus
	case err != nil:
		host, about := c.named(out)
		c.found(host, KindTool, "nvidia-smi%s failed: %s", about, reason(out, err, smiCodes))
		if parseErr != nil {
			return
		}
	}
	listed := map[*Card]bool{}
	for _, g := range l.GPUs {
		if card := c.card(g.address()); card != nil {
			listed[card] = true
			c.judge(card, g)
		}
	}
	for _, card := range c.of(vendorNVIDIA) {
		if !listed[card] {
			c.found(card.Host, KindDriver, "nvidia-smi does not list the card at %s, which is on the PCI bus", card.Address)
		}
	}
}

// bdf finds a PCI address in a tool's message.
var bdf = regexp.MustCompile(`\b[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]\b`)

// named finds the card that a tool's message names.
func (c *check) named(out output) (host, about string) {
	for _, m := range bdf.FindAll(append(bytes.Clone(out.stderr), out.stdout...), -1) {
		if card := c.card(guestAddress(string(m))); card != nil {
			return card.Host, ", about the card at " + card.Address + ","
		}
	}
	return "", ""
}

// judge takes over what a card is, and finds what is wrong with it.
func (c *check) judge(card *Card, g smiGPU) {
	card.UUID, card.Serial, card.Product = known(g.UUID), known(g.Serial), known(g.Product)
	card.Temperature, _ = number(g.Temperature)
	if text := failed(g.UUID, g.Serial, g.Product, g.Temperature, g.LinkWidth); text != "" {
		c.found(card.Host, KindTool, "nvidia-smi says %q of the card at %s", text, card.Address)
	}
	if width, ok := number(g.LinkWidth); ok {
		card.LinkWidth = width
	}
	found := func(kind Kind, format string, args ...any) {
		c.found(card.Host, kind, "%s at %s: %s", cmp.Or(card.Product, "the card"), card.Address, fmt.Sprintf(format, args...))
	}
	if n := g.ECC.Volatile.uncorrectable(); n > 0 {
		found(KindECC, "%d uncorrectable memory errors", n)
	}
	if yes(g.ECC.SRAMThreshold) {
		found(KindECC, "more uncorrectable SRAM errors in its life than its maker allows")
	}
	switch {
	case yes(g.RemapFailure):
		found(KindRemap, "a row of its memory could not be remapped")
	case yes(g.ECC.Unrepairable):
		found(KindRemap, "a part of its memory cannot be repaired")
	case yes(g.RemapPending):
		found(KindRemap, "a row of its memory waits to be remapped")
	case yes(g.RetirePending) || yes(g.RetirePendingOld):
		found(KindRemap, "pages of its memory wait to be retired")
	case yes(g.ECC.ChannelRepair) || yes(g.ECC.TPCRepair):
		found(KindRemap, "a part of it waits to be repaired")
	}
	if action := known(g.Recovery); action != "" && !strings.EqualFold(action, "None") {
		found(KindRecovery, "its driver asks for: %s", Clip(action, 60))
	}
	if limit, ok := number(g.SlowThreshold); ok && card.Temperature >= limit {
		found(KindTemperature, "%d °C; it slows down at %d °C", card.Temperature, limit)
	} else if distance, ok := number(g.Limit); ok {
		if slow, ok := number(g.SlowLimit); ok && distance <= slow {
			found(KindTemperature, "%d °C, %d °C from its limit; it slows down at %d °C from it", card.Temperature, distance, slow)
		}
	}
	if why := g.slowed(); why != "" {
		found(KindThrottle, "slowed down by its hardware: %s", why)
	}
	// A card at rest may drop lanes.
	if most, ok := number(g.MaxLinkWidth); ok && g.busy() && card.LinkWidth > 0 && card.LinkWidth < most {
		found(KindLink, "%d lanes of %d under load", card.LinkWidth, most)
	}
}

// uncorrectable sums up; the newer drivers' parts of SRAM replace its sum.
func (v smiVolatile) uncorrectable() int {
	sum := 0
	for _, s := range []string{v.Old, v.DRAM, v.SRAM, v.SRAMParity, v.SRAMSecDed} {
		n, _ := number(s) // absent and N/A: none known
		sum += max(n, 0)
	}
	return sum
}

// slowed says why the hardware slows the card down, "" if it does not.
func (g smiGPU) slowed() string {
	for _, r := range []smiReasons{g.Events, g.Throttles} {
		switch {
		case active(r.PowerBrake, r.OldPowerBrake):
			return "power brake"
		case active(r.Thermal, r.OldThermal):
			return "too hot"
		case active(r.Slowdown, r.OldSlowdown):
			return "too hot, power brake, or too much power drawn"
		}
	}
	return ""
}

// busy reports whether the card says that it is not at rest.
func (g smiGPU) busy() bool {
	const not = "Not Active"
	return g.Events.Idle == not || g.Events.OldIdle == not || g.Throttles.Idle == not || g.Throttles.OldIdle == not
}

// address gives the card's address as the kernel writes it.
func (g smiGPU) address() string { return guestAddress(cmp.Or(g.ID, g.Bus)) }

// guestAddress turns NVIDIA's writing of an address, with a domain of eight
// digits and capital letters, into the kernel's.
func guestAddress(s string) string {
	domain, rest, ok := strings.Cut(strings.ToLower(strings.TrimSpace(s)), ":")
	n, err := strconv.ParseUint(domain, 16, 32)
	if !ok || err != nil {
		return s
	}
	return fmt.Sprintf("%04x:%s", n, rest)
}

// number reads the number that a value begins with: "35 C", "16x", "-2 C".
func number(s string) (int, bool) {
	s = strings.TrimSpace(s)
	digits := strings.TrimLeft(s, "-")
	end := len(digits) - len(strings.TrimLeft(digits, "0123456789"))
	n, err := strconv.Atoi(s[:len(s)-len(digits)+end])
	return n, err == nil
}

func yes(s string) bool { return strings.EqualFold(strings.TrimSpace(s), "yes") }

func active(names ...string) bool {
	for _, s := range names {
		if strings.TrimSpace(s) == "Active" {
			return true
		}
	}
	return false
}

// failure is what stands for a value that a card should have and could not give.
var failure = regexp.MustCompile(`(?i)ERR!|unknown error|gpu is lost|requires? reset`)

// failed gives the first value that the tool could not get.
func failed(values ...string) string {
	for _, s := range values {
		if failure.MatchString(s) {
			return strings.TrimSpace(s)
		}
	}
	return ""
}

// known gives a value, "" for the words that stand for none.
func known(s string) string {
	s = strings.TrimSpace(s)
	if strings.Trim(s, "[]") == "N/A" || failure.MatchString(s) {
		return ""
	}
	return s
}
