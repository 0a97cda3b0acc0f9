package pcitest

import "fmt"

// Sizes of BARs.
const (
	mib = 1 << 20
	gib = 1 << 30
)

// v100 is a Tesla V100 PCIe 16GB at rest.
func v100(address, under string, group, node int, driver string) Device {
	return Device{
		Address: address, Under: under, ID: "10de:1db4", Class: "030200", Rev: "a1", Group: group, NUMA: node, Driver: driver,
		Link: "2.5 x16 8.0 x16", BARs: []uint64{16 * mib, 16 * gib, 0, 32 * mib}, Reset: "flr bus",
	}
}

func bridge(address, under, id string, group, node int) Device {
	return Device{Address: address, Under: under, ID: id, Class: "060400", Group: group, NUMA: node, Driver: "pcieport", Bridge: true}
}

// Seed is the server that this project began with: two EPYC 7352 and six V100 in
// four groups, two of which hold a pair below one switch. driver is what holds
// the cards: "vfio-pci" once prepared, "nouveau" on a fresh system, "" for none.
func Seed(driver string) Machine {
	hostBridge := func(address string, group, node int) Device {
		return Device{Address: address, ID: "1022:1480", Class: "060000", Group: group, NUMA: node}
	}
	return Machine{
		Units:   []string{"ivhd0", "ivhd1", "ivhd2", "ivhd3"},
		Drivers: []string{"vfio-pci"},
		Devices: []Device{
			hostBridge("0000:20:00.0", 15, 0),
			bridge("0000:20:03.1", "", "1022:1483", 18, 0),
			bridge("0000:25:00.0", "0000:20:03.1", "10b5:8747", 19, 0),
			bridge("0000:26:00.0", "0000:25:00.0", "10b5:8747", 19, 0),
			bridge("0000:26:10.0", "0000:25:00.0", "10b5:8747", 19, 0),
			v100("0000:27:00.0", "0000:26:00.0", 19, 0, driver),
			v100("0000:28:00.0", "0000:26:10.0", 19, 0, driver),
			hostBridge("0000:40:00.0", 30, 0),
			bridge("0000:40:01.1", "", "1022:1483", 31, 0),
			v100("0000:44:00.0", "0000:40:01.1", 32, 0, driver),
			bridge("0000:40:03.1", "", "1022:1483", 34, 0),
			{Address: "0000:45:00.0", Under: "0000:40:03.1", ID: "8086:1563", Class: "020000", Group: 35, Driver: "ixgbe", Link: "8.0 x4 8.0 x4", Reset: "flr"},
			{Address: "0000:45:00.1", Under: "0000:40:03.1", ID: "8086:1563", Class: "020000", Group: 36, Driver: "ixgbe", Link: "8.0 x4 8.0 x4", Reset: "flr"},
			hostBridge("0000:a0:00.0", 70, 1),
			bridge("0000:a0:01.1", "", "1022:1483", 74, 1),
			v100("0000:a3:00.0", "0000:a0:01.1", 75, 1, driver),
			bridge("0000:a0:03.1", "", "1022:1483", 76, 1),
			{Address: "0000:a4:00.0", Under: "0000:a0:03.1", ID: "1a03:2000", Class: "030000", Group: 77, NUMA: 1, Driver: "ast", BootVGA: true},
			hostBridge("0000:c0:00.0", 84, 1),
			bridge("0000:c0:03.1", "", "1022:1483", 86, 1),
			bridge("0000:c1:00.0", "0000:c0:03.1", "10b5:8747", 87, 1),
			bridge("0000:c2:00.0", "0000:c1:00.0", "10b5:8747", 87, 1),
			bridge("0000:c2:10.0", "0000:c1:00.0", "10b5:8747", 87, 1),
			v100("0000:c3:00.0", "0000:c2:00.0", 87, 1, driver),
			v100("0000:c4:00.0", "0000:c2:10.0", 87, 1, driver),
		},
	}
}

// Desktop is a PC with a graphics card of four functions, each with the driver
// that a distribution gives it, and a processor with graphics of its own.
func Desktop() Machine {
	return Machine{
		Units:   []string{"dmar0", "dmar1"},
		Drivers: []string{"vfio-pci"},
		Devices: append([]Device{
			{Address: "0000:00:00.0", ID: "8086:3ec2", Class: "060000", Group: 0, NUMA: -1, Driver: "skl_uncore"},
			bridge("0000:00:01.0", "", "8086:1901", 1, -1),
			{Address: "0000:00:02.0", ID: "8086:3e92", Class: "030000", Group: 2, NUMA: -1, Driver: "i915", BootVGA: true, BARs: []uint64{16 * mib, 0, 256 * mib}, Reset: "pm"},
		}, desktopCard(1, 1)...),
	}
}

// desktopCard is a graphics card with sound, USB and a serial port; its first
// function is in group, the others in group + step×function.
func desktopCard(group, others int) []Device {
	card := func(function int, id, class, driver string, bars []uint64) Device {
		g := group
		if function > 0 {
			g = others
		}
		return Device{
			Address: fmt.Sprintf("0000:01:00.%d", function), Under: "0000:00:01.0", ID: id, Class: class, Rev: "a1", Group: g, NUMA: -1,
			Driver: driver, Link: "2.5 x16 8.0 x16", BARs: bars, Reset: "bus",
		}
	}
	return []Device{
		card(0, "10de:1e07", "030000", "nouveau", []uint64{16 * mib, 256 * mib, 0, 32 * mib}),
		card(1, "10de:10f7", "040300", "snd_hda_intel", []uint64{1 << 14}),
		card(2, "10de:1ad6", "0c0330", "xhci_hcd", []uint64{256 << 10}),
		card(3, "10de:1ad7", "0c8000", "nvidia-gpu", []uint64{4 << 10}),
	}
}

// ACSOverride is the desktop with a kernel that pretends that each function can
// be kept apart (the pcie_acs_override patch): sound, USB and serial port are in
// another group than their card.
func ACSOverride() Machine {
	m := Desktop()
	m.Devices = append(m.Devices[:3:3], desktopCard(14, 15)...)
	return m
}

// Board is a server with eight A100 on a board with six NVSwitches, which are
// endpoints of class 0680 and, on this one, share a group with nothing else.
func Board() Machine {
	m := Machine{Units: []string{"dmar0", "dmar1"}, Drivers: []string{"vfio-pci"}}
	for i, bus := range []string{"07", "0f", "47", "4e", "87", "90", "b7", "bd"} {
		root := fmt.Sprintf("00%02x:00:01.0", i)
		m.Devices = append(m.Devices, bridge(root, "", "8086:347a", 40+i, i/4), Device{
			Address: "0000:" + bus + ":00.0", Under: root, ID: "10de:20b2", Class: "030200", Rev: "a1", Group: 60 + i, NUMA: i / 4,
			Driver: "nvidia", Link: "16.0 x16 16.0 x16", BARs: []uint64{16 * mib, 128 * gib, 0, 32 * mib}, Reset: "flr bus", VFs: 16,
		})
	}
	m.Devices = append(m.Devices, bridge("0008:00:01.0", "", "8086:347a", 48, 0))
	for i := range 6 {
		m.Devices = append(m.Devices, Device{
			Address: fmt.Sprintf("0000:%02x:00.0", 0xc4+i), Under: "0008:00:01.0", ID: "10de:1af1", Class: "068000", Rev: "a1", Group: 70 + i, NUMA: 0,
			Driver: "nvidia-nvswitch", Link: "16.0 x2 16.0 x2", Reset: "flr",
		})
	}
	return m
}

// Off is the seed's machine with the IOMMU switched off in the firmware.
func Off() Machine {
	m := Seed("nouveau")
	m.Units, m.Drivers = nil, nil
	for i := range m.Devices {
		m.Devices[i].Group = NoGroup
	}
	return m
}

// NoIOMMUMode is the same with VFIO's no-IOMMU mode: a group for each card, which
// keeps nothing apart.
func NoIOMMUMode() Machine {
	m := Off()
	m.NoIOMMU = true
	group := 0
	for i := range m.Devices {
		if m.Devices[i].ID == "10de:1db4" {
			m.Devices[i].Group, m.Devices[i].Driver = group, "vfio-pci"
			group++
		}
	}
	return m
}
