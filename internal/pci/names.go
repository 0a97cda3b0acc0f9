package pci

import (
	"strings"
	"sync"

	"github.com/jaypipes/pcidb"
	"github.com/jaypipes/pcidb/types"
)

// Names gives the name of a device by the numbers of vendor and device, four
// hexadecimal digits each; "" if it knows none.
type Names func(vendor, device string) string

// MachineNames gives the names of this machine's PCI ID list (Debian's package
// pci.ids), which is read at most once. It is never fetched from anywhere.
func MachineNames() Names {
	database := sync.OnceValue(func() *pcidb.PCIDB {
		no := false // its default obeys the environment
		db, err := pcidb.New(&types.WithOption{EnableNetworkFetch: &no})
		if err != nil {
			return nil // there is none
		}
		return db
	})
	return func(vendor, device string) string {
		if db := database(); db != nil && db.Products[vendor+device] != nil {
			return db.Products[vendor+device].Name
		}
		return ""
	}
}

// modelName gives a device's name: from the given list, else from ours, else its
// numbers.
func modelName(list Names, vendor, device string) string {
	if list != nil {
		if name := list(vendor, device); name != "" {
			return name
		}
	}
	if name := cards[vendor+device]; name != "" {
		return name
	}
	return strings.Trim(vendor+":"+device, ":")
}

// cards are names for where the machine's list is missing or older than the card.
// Source: the PCI ID list, pci-ids.ucw.cz, whose words they are.
var cards = map[string]string{
	"10de102d": "GK210GL [Tesla K80]",
	"10de13f2": "GM204GL [Tesla M60]",
	"10de15f7": "GP100GL [Tesla P100 PCIe 12GB]",
	"10de15f8": "GP100GL [Tesla P100 PCIe 16GB]",
	"10de15f9": "GP100GL [Tesla P100 SXM2 16GB]",
	"10de1b38": "GP102GL [Tesla P40]",
	"10de1bb3": "GP104GL [Tesla P4]",
	"10de1d81": "GV100 [TITAN V]",
	"10de1db1": "GV100GL [Tesla V100 SXM2 16GB]",
	"10de1db4": "GV100GL [Tesla V100 PCIe 16GB]",
	"10de1db5": "GV100GL [Tesla V100 SXM2 32GB]",
	"10de1db6": "GV100GL [Tesla V100 PCIe 32GB]",
	"10de1e02": "TU102 [TITAN RTX]",
	"10de1e04": "TU102 [GeForce RTX 2080 Ti]",
	"10de1e07": "TU102 [GeForce RTX 2080 Ti Rev. A]",
	"10de1eb8": "TU104GL [Tesla T4]",
	"10de20b0": "GA100 [A100 SXM4 40GB]",
	"10de20b2": "GA100 [A100 SXM4 80GB]",
	"10de20b5": "GA100 [A100 PCIe 80GB]",
	"10de20b7": "GA100GL [A30 PCIe]",
	"10de20f1": "GA100 [A100 PCIe 40GB]",
	"10de2204": "GA102 [GeForce RTX 3090]",
	"10de2230": "GA102GL [RTX A6000]",
	"10de2231": "GA102GL [RTX A5000]",
	"10de2235": "GA102GL [A40]",
	"10de2236": "GA102GL [A10]",
	"10de25b6": "GA107GL [A2 / A16]",
	"10de2330": "GH100 [H100 SXM5 80GB]",
	"10de2331": "GH100 [H100 PCIe]",
	"10de2335": "GH100 [H200 SXM 141GB]",
	"10de2684": "AD102 [GeForce RTX 4090]",
	"10de26b5": "AD102GL [L40]",
	"10de26b9": "AD102GL [L40S]",
	"10de27b8": "AD104GL [L4]",
	"10de22a3": "GH100 [H100 NVSwitch]",
	"10de1af1": "GA100 [A100 NVSwitch]",
	"100266a1": "Vega 20 [Radeon Pro VII/Radeon Instinct MI50 32GB]",
	"1002738c": "Arcturus GL-XL [Instinct MI100]",
	"1002740c": "Aldebaran/MI200 [Instinct MI250X/MI250]",
	"1002740f": "Aldebaran/MI200 [Instinct MI210]",
	"100274a1": "Aqua Vanjaram [Instinct MI300X]",
	"100273bf": "Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]",
	"1002744c": "Navi 31 [Radeon RX 7900 XT/7900 XTX]",
	"808656c0": "ATS-M [Data Center GPU Flex 170]",
	"808656c1": "ATS-M [Data Center GPU Flex 140]",
	"808656a0": "DG2 [Arc A770]",
	"80860bd5": "Ponte Vecchio [Data Center GPU Max 1550]",
	"80860bda": "Ponte Vecchio [Data Center GPU Max 1100]",
}
