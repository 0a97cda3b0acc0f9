package pci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuserver/internal/pci/pcitest"
)

// kmsg gives a log with these records.
func kmsg(t *testing.T, zero time.Time, records ...string) *Kmsg {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kmsg")
	if err := os.WriteFile(name, []byte(strings.Join(records, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &Kmsg{File: f, Zero: zero}
}

func readOne(t *testing.T, root string, log *Kmsg, address string) Reading {
	t.Helper()
	rs, err := ReadCards(open(t, root), log, []string{address})
	if err != nil || len(rs) != 1 {
		t.Fatalf("%v: %+v", err, rs)
	}
	return rs[0]
}

// deviceFile is a file of a device in a tree.
func deviceFile(root, address, name string) string {
	return filepath.Join(root, devicesDir, address, name)
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadingOfAHealthyCard(t *testing.T) {
	root := pcitest.Write(t, pcitest.Seed("vfio-pci"))
	got := readOne(t, root, nil, "0000:27:00.0")
	want := Reading{
		Address: "0000:27:00.0", Present: true, VendorID: "10de", DeviceID: "1db4", Driver: "vfio-pci", Group: 19, Link: got.Link,
	}
	if d := cmp.Diff(want, got); d != "" || got.Link.Width != 16 {
		t.Errorf("link %+v (-want +got):\n%s", got.Link, d)
	}
	if d := cmp.Diff(Reading{Address: "0000:99:00.0", Group: -1}, readOne(t, root, nil, "0000:99:00.0")); d != "" {
		t.Errorf("a card that is not there (-want +got):\n%s", d)
	}
}

func TestReadingOfADeadCard(t *testing.T) {
	root := pcitest.Write(t, pcitest.Seed("vfio-pci"))
	put(t, deviceFile(root, "0000:27:00.0", "config"), strings.Repeat("\xff", 64))
	if r := readOne(t, root, nil, "0000:27:00.0"); !r.Dead || !r.Present {
		t.Errorf("all ones in its configuration space: %+v", r)
	}
	if r := readOne(t, root, nil, "0000:28:00.0"); r.Dead {
		t.Errorf("its neighbour: %+v", r)
	}
}

func TestReadingOfErrorTotals(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(root string)
		want  *AER
	}{
		"all there": {func(string) {}, &AER{Correctable: 7, NonFatal: 2, Fatal: 1}},
		"one file is absent": {func(root string) {
			if err := os.Remove(deviceFile(root, "0000:44:00.0", "aer_dev_fatal")); err != nil {
				t.Fatal(err)
			}
		}, nil},
		"a total makes no sense": {func(root string) {
			put(t, deviceFile(root, "0000:44:00.0", "aer_dev_fatal"), "TOTAL_ERR_FATAL many\n")
		}, nil},
		"half written": {func(root string) {
			put(t, deviceFile(root, "0000:44:00.0", "aer_dev_nonfatal"), "Undefined 0\nDLP 0\n")
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			root := pcitest.Write(t, pcitest.Seed("vfio-pci"))
			put(t, deviceFile(root, "0000:44:00.0", "aer_dev_correctable"), "RxErr 3\nBadTLP 4\nTOTAL_ERR_COR 7\n")
			put(t, deviceFile(root, "0000:44:00.0", "aer_dev_nonfatal"), "Undefined 0\nTOTAL_ERR_NONFATAL 2\n")
			put(t, deviceFile(root, "0000:44:00.0", "aer_dev_fatal"), "TOTAL_ERR_FATAL 1\n")
			tt.spoil(root)
			if d := cmp.Diff(tt.want, readOne(t, root, nil, "0000:44:00.0").AER); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// What the kernel says in its own words is found, with the card that it means.
func TestLogLines(t *testing.T) {
	zero := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := pcitest.Seed("vfio-pci")
	port := "" // of the card at 27:00.0
	for _, d := range m.Devices {
		if d.Address == "0000:27:00.0" {
			port = d.Under
		}
	}
	root := pcitest.Write(t, m)
	for text, want := range map[string]Trouble{
		"vfio-pci 0000:27:00.0: Unable to change power state from D3cold to D0, device inaccessible":                 TroubleInaccessible,
		"vfio-pci 0000:27:00.0: can't change power state from D3cold to D0 (config space inaccessible)":              TroubleInaccessible,
		"vfio-pci 0000:27:00.0: not ready 65535ms after bus reset; giving up":                                        TroubleReset,
		"vfio-pci 0000:27:00.0: not ready 65535ms after FLR; giving up":                                              TroubleReset,
		"vfio-pci 0000:27:00.0: not ready 1023ms after pm reset; waiting":                                            TroubleSlowReset,
		"vfio-pci 0000:27:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Receiver ID)": TroubleFatal,
		"pcieport " + port + ": AER: Uncorrectable (Fatal) error message received from 0000:27:00.0":                 TroubleFatal,
		"pcieport " + port + ": pciehp: Slot(6): Link Down":                                                          TroubleLink,
		"vfio-pci 0000:27:00.0: enabling device (0000 -> 0002)":                                                      "",
		"vfio-pci 0000:28:00.0: not ready 65535ms after FLR; giving up":                                              "",
		"vfio-pci 10000:27:00.0: not ready 65535ms after FLR; giving up":                                             "",
		"pcieport " + port + ": AER: Uncorrectable (Fatal) error message received from 0000:28:00.0":                 "",
		"pcieport 0000:99:01.0: pciehp: Slot(6): Link Down":                                                          "",
	} {
		log := kmsg(t, zero, "6,1,1000000,-;Linux version 6.1", "3,2,90000000,-;"+text, " SUBSYSTEM=pci", " DEVICE=+pci:0000:27:00.0")
		got := readOne(t, root, log, "0000:27:00.0").Log
		var lines []LogLine
		if want != "" {
			lines = []LogLine{{At: zero.Add(90 * time.Second), Trouble: want, Text: text}}
		}
		// The address in a longer domain ends like ours, but is another one.
		if d := cmp.Diff(lines, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
}

// A line that a program wrote is none of the kernel's, and one that is no record
// is none at all.
func TestLogLinesOfOthers(t *testing.T) {
	const text = "vfio-pci 0000:27:00.0: not ready 65535ms after FLR; giving up"
	root := pcitest.Write(t, pcitest.Seed("vfio-pci"))
	log := kmsg(t, time.Time{}, "30,2,90000000,-;"+text, text, "3,2,x,-;"+text, "3,2;"+text, "x,2,1,-;"+text, " 3,2,1,-;"+text, "")
	if got := readOne(t, root, log, "0000:27:00.0").Log; got != nil {
		t.Errorf("got %+v", got)
	}
}

func TestLogIsBounded(t *testing.T) {
	var records []string
	for i := range 3 * maxLines {
		records = append(records, fmt.Sprintf("3,%d,%d,-;vfio-pci 0000:27:00.0: not ready 65535ms after FLR; giving up%s", i, i*1e6, strings.Repeat(".", 1000)))
	}
	got := readOne(t, pcitest.Write(t, pcitest.Seed("vfio-pci")), kmsg(t, time.Unix(0, 0), records...), "0000:27:00.0").Log
	if len(got) != maxLines || got[0].At.Unix() != 2*maxLines || len(got[0].Text) != maxText {
		t.Errorf("%d lines from %v on, of %d bytes", len(got), got[0].At, len(got[0].Text))
	}
}

func FuzzKmsg(f *testing.F) {
	f.Add("3,2,90000000,-;vfio-pci 0000:27:00.0: not ready 65535ms after FLR; giving up\n")
	f.Add("6,339,5140900,-,caller=T1;NET: Registered\n SUBSYSTEM=net\n")
	f.Fuzz(func(t *testing.T, text string) {
		k := kmsg(t, time.Time{}, text)
		for _, l := range k.lines(map[string][]int{"0000:27:00.0": {0}}) {
			if l.Trouble == "" || len(l.Text) > maxText || len(l.cards) == 0 {
				t.Errorf("%+v", l)
			}
		}
	})
}
