package gate

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// configHeader is how much of a configuration space is looked at, in bytes.
const configHeader = 64

// model is what a card is by its PCI ids.
type model struct{ vendor, device string }

func (m model) String() string { return m.vendor + ":" + m.device }

// Present gives what a check of the VM as it is would have to expect: all its
// GPUs. It is for people who look by hand.
func Present(root string) []ExpectedCard {
	var all []ExpectedCard
	cards, _ := readBus(root) // no bus: none
	for _, c := range cards {
		if c.VendorID == vendorNVIDIA || c.VendorID == vendorAMD {
			all = append(all, ExpectedCard{VendorID: c.VendorID, DeviceID: c.DeviceID})
		}
	}
	return all
}

// busCard is a card as the PCI bus shows it.
type busCard struct {
	Card
	dead bool
}

// lookAtBus counts the cards of each model and says which are missing or dead.
// This works without any driver.
func (c *check) lookAtBus() {
	cards, err := readBus(c.Root)
	expected, order := byModel(c.expect.Cards)
	present := map[model][]*busCard{}
	for i := range cards {
		m := model{cards[i].VendorID, cards[i].DeviceID}
		if len(expected[m]) > 0 {
			present[m] = append(present[m], &cards[i])
		}
	}
	for _, m := range order {
		want, got := expected[m], present[m]
		switch {
		case len(got) == len(want):
			for i := range got {
				got[i].Host = want[i].Host
			}
		case len(got) == 0:
			for _, e := range want {
				c.found(e.Host, KindMissing, "the card %s is not on the VM's PCI bus%s", m, because(err))
			}
		case len(got) < len(want):
			c.found("", KindMissing, "%d of %d cards %s are on the VM's PCI bus", len(got), len(want), m)
		}
		// More than expected is for the server to judge.
	}
	for _, card := range cards {
		if len(expected[model{card.VendorID, card.DeviceID}]) == 0 {
			continue
		}
		c.report.Cards = append(c.report.Cards, card.Card)
		if card.dead {
			c.found(card.Host, KindDead, "the configuration space of the card at %s reads all ones", card.Address)
		}
	}
}

// byModel groups cards in their order, and gives the order of the models.
func byModel(cards []ExpectedCard) (map[model][]ExpectedCard, []model) {
	groups := map[model][]ExpectedCard{}
	var order []model
	for _, e := range cards {
		m := model{strings.ToLower(e.VendorID), strings.ToLower(e.DeviceID)}
		if groups[m] == nil {
			order = append(order, m)
		}
		groups[m] = append(groups[m], e)
	}
	return groups, order
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// readBus gives the display controllers and accelerators (AMD's later Instinct)
// by address, which is the order in which they were attached.
// Source: Linux Documentation/ABI/testing/sysfs-bus-pci; PCI Code and ID
// Assignment Specification, base classes 03 and 12.
func readBus(root string) ([]busCard, error) {
	dir := filepath.Join("/", root, "sys/bus/pci/devices")
	entries, err := os.ReadDir(dir) // sorted by name: by address
	if err != nil {
		return nil, err
	}
	var cards []busCard
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		class := attribute(path, "class")
		if !strings.HasPrefix(class, "03") && !strings.HasPrefix(class, "12") {
			continue
		}
		width, err := strconv.Atoi(attribute(path, "current_link_width"))
		if err != nil || width > 32 { // 63 and 255: the kernel knows of no link
			width = 0
		}
		cards = append(cards, busCard{
			Card: Card{Address: e.Name(), VendorID: attribute(path, "vendor"), DeviceID: attribute(path, "device"), LinkWidth: width},
			dead: dead(filepath.Join(path, "config")),
		})
	}
	return cards, nil
}

// attribute reads a short file without its 0x and line end, "" if it is absent.
func attribute(dir, name string) string {
	b, _ := readSome(filepath.Join(dir, name), 4096) // absent is unknown
	return strings.ToLower(strings.TrimPrefix(strings.TrimSpace(string(b)), "0x"))
}

// dead reports whether a configuration space reads all ones, as that of a card
// does which has fallen off the bus. A VM sees that only in what its host does not
// make up: vendor, device, command and base addresses of a card that is passed
// through stay as they were, revision and class (0x08 to 0x0b) are the card's own
// word. Source: Linux, drivers/vfio/pci/vfio_pci_config.c.
func dead(path string) bool {
	b, err := readSome(path, configHeader)
	return err == nil && len(b) >= 12 && bytes.Equal(b[8:12], []byte{0xff, 0xff, 0xff, 0xff})
}

func readSome(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, err
}
