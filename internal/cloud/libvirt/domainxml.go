package libvirt

import (
	"encoding/xml"
	"strconv"
	"strings"
	"time"
)

// tag is our metadata element, in a name space of its own, on domains and
// networks.
type tag struct {
	XMLName xml.Name `xml:"urn:gpuserver:libvirt:1 gpuserver"`
	Owner   string   `xml:"owner,attr"`
	Created string   `xml:"created,attr,omitempty"` // RFC 3339, of a domain
	Config  string   `xml:"config,attr,omitempty"`  // digest of a network's configuration
}

// domainXML is the part of libvirt's domain format that we write.
// Source: https://libvirt.org/formatdomain.html
type domainXML struct {
	XMLName    xml.Name    `xml:"domain"`
	Type       string      `xml:"type,attr"`
	Name       string      `xml:"name"`
	UUID       string      `xml:"uuid"`
	Tag        tag         `xml:"metadata>gpuserver"`
	Memory     sized       `xml:"memory"`
	Backing    *memoryXML  `xml:"memoryBacking"`
	VCPUs      vcpuXML     `xml:"vcpu"`
	NUMA       *numaXML    `xml:"numatune"`
	OS         osXML       `xml:"os"`
	Features   featuresXML `xml:"features"`
	CPU        cpuXML      `xml:"cpu"`
	Clock      clockXML    `xml:"clock"`
	OnPoweroff string      `xml:"on_poweroff"`
	OnReboot   string      `xml:"on_reboot"`
	OnCrash    string      `xml:"on_crash"`
	Devices    devicesXML  `xml:"devices"`
}

// memoryXML asks for memory in huge pages.
type memoryXML struct {
	HugePages struct{} `xml:"hugepages"`
}

type vcpuXML struct {
	Set   string `xml:"cpuset,attr,omitempty"` // the host's CPUs on which they run
	Count int    `xml:",chardata"`
}

// numaXML is where the memory is taken from, if there is some.
type numaXML struct {
	Memory struct {
		Mode string `xml:"mode,attr"`
		Set  string `xml:"nodeset,attr"`
	} `xml:"memory"`
}

type sized struct {
	Unit  string `xml:"unit,attr"`
	Value int64  `xml:",chardata"`
}

type osXML struct {
	Type struct {
		Arch    string `xml:"arch,attr"`
		Machine string `xml:"machine,attr"`
		Value   string `xml:",chardata"`
	} `xml:"type"`
	Kernel  string   `xml:"kernel,omitempty"`
	Initrd  string   `xml:"initrd,omitempty"`
	Cmdline string   `xml:"cmdline,omitempty"`
	Boot    *bootXML `xml:"boot"`
}

type bootXML struct {
	Dev string `xml:"dev,attr"`
}

type featuresXML struct {
	ACPI struct{} `xml:"acpi"`
	APIC struct{} `xml:"apic"`
	TCG  *tcgXML  `xml:"tcg"`
}

type tcgXML struct {
	Cache sized `xml:"tb-cache"`
}

type cpuXML struct {
	Mode  string `xml:"mode,attr"`
	Check string `xml:"check,attr"`
	// AddressBits are the host's: a guest that is told fewer cannot map the
	// memory of a large card.
	AddressBits *addressBitsXML `xml:"maxphysaddr"`
	Feature     []cpuFeature    `xml:"feature"`
}

type addressBitsXML struct {
	Mode string `xml:"mode,attr"`
}

type cpuFeature struct {
	Policy string `xml:"policy,attr"`
	Name   string `xml:"name,attr"`
}

type clockXML struct {
	Offset string `xml:"offset,attr"`
}

type devicesXML struct {
	Disks     []diskXML      `xml:"disk"`
	Interface []interfaceXML `xml:"interface"`
	Serial    serialXML      `xml:"serial"`
	Hostdevs  []hostdevXML   `xml:"hostdev"`
	Watchdog  *watchdogXML   `xml:"watchdog"`
	Balloon   modelXML       `xml:"memballoon"`
	RNG       *rngXML        `xml:"rng"`
}

type diskXML struct {
	Type   string        `xml:"type,attr"`
	Device string        `xml:"device,attr"`
	Driver diskDriverXML `xml:"driver"`
	Source fileXML       `xml:"source"`
	// Backing is the whole chain, so that libvirt neither probes the files nor
	// changes who owns the shared one.
	Backing  *backingXML `xml:"backingStore"`
	Target   targetXML   `xml:"target"`
	ReadOnly *struct{}   `xml:"readonly"`
}

type diskDriverXML struct {
	Name    string `xml:"name,attr"`
	Type    string `xml:"type,attr"`
	Cache   string `xml:"cache,attr,omitempty"`
	Errors  string `xml:"error_policy,attr,omitempty"`
	Discard string `xml:"discard,attr,omitempty"`
}

type fileXML struct {
	File     string       `xml:"file,attr"`
	SecLabel *secLabelXML `xml:"seclabel"`
}

type secLabelXML struct {
	Model   string `xml:"model,attr"`
	Relabel string `xml:"relabel,attr"`
}

type backingXML struct {
	Type   string      `xml:"type,attr,omitempty"`
	Format *formatXML  `xml:"format"`
	Source *fileXML    `xml:"source"`
	Next   *backingXML `xml:"backingStore"`
}

type formatXML struct {
	Type string `xml:"type,attr"`
}

type targetXML struct {
	Dev string `xml:"dev,attr"`
	Bus string `xml:"bus,attr,omitempty"`
}

type interfaceXML struct {
	Type   string `xml:"type,attr"`
	MAC    macXML `xml:"mac"`
	Source struct {
		Network string `xml:"network,attr"`
	} `xml:"source"`
	Target targetXML    `xml:"target"`
	Model  modelTypeXML `xml:"model"`
	MTU    *mtuXML      `xml:"mtu"`
	Port   *portXML     `xml:"port"`
	Filter *filterRef   `xml:"filterref"`
}

type macXML struct {
	Address string `xml:"address,attr"`
}

type mtuXML struct {
	Size int `xml:"size,attr"`
}

type portXML struct {
	Isolated string `xml:"isolated,attr"`
}

type modelTypeXML struct {
	Type string `xml:"type,attr"`
}

type modelXML struct {
	Model string `xml:"model,attr"`
}

type filterRef struct {
	Filter     string        `xml:"filter,attr"`
	Parameters []filterParam `xml:"parameter"`
}

type filterParam struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type serialXML struct {
	Type   string `xml:"type,attr"`
	Source struct {
		Path   string `xml:"path,attr"`
		Append string `xml:"append,attr"`
	} `xml:"source"`
	Target struct {
		Port int `xml:"port,attr"`
	} `xml:"target"`
}

type hostdevXML struct {
	Mode    string `xml:"mode,attr"`
	Type    string `xml:"type,attr"`
	Managed string `xml:"managed,attr"`
	Source  struct {
		Address pciAddress `xml:"address"`
	} `xml:"source"`
	ROM *romXML `xml:"rom"`
}

type romXML struct {
	File string `xml:"file,attr"`
}

type pciAddress struct {
	Domain   string `xml:"domain,attr"`
	Bus      string `xml:"bus,attr"`
	Slot     string `xml:"slot,attr"`
	Function string `xml:"function,attr"`
}

type watchdogXML struct {
	Model  string `xml:"model,attr"`
	Action string `xml:"action,attr"`
}

type rngXML struct {
	Model   string `xml:"model,attr"`
	Backend struct {
		Model string `xml:"model,attr"`
		Value string `xml:",chardata"`
	} `xml:"backend"`
}

// machine is all that a domain is made from.
type machine struct {
	name, uuid, owner string
	created           time.Time
	kvm               bool
	vcpus             int
	memoryMiB         int64
	image             ImageSource
	disk, drive       string // the overlay ("" without a disk) and the config drive
	console           string
	net               Network
	port              address
	devices           []string // BDF
	node              numaNode // of the devices
	hugePages         bool
	roms              map[string]string // firmware files that are shown, by BDF
}

// domain describes m to libvirt: transient, and gone once its guest powers off,
// reboots or crashes.
func (m machine) domain() domainXML {
	x := domainXML{
		Type: "qemu", Name: m.name, UUID: m.uuid,
		Tag:    tag{Owner: m.owner, Created: m.created.UTC().Format(time.RFC3339)},
		Memory: sized{"MiB", m.memoryMiB}, VCPUs: vcpuXML{Set: m.node.cpus, Count: m.vcpus}, Clock: clockXML{Offset: "utc"},
		OnPoweroff: "destroy", OnReboot: "destroy", OnCrash: "destroy",
	}
	x.OS.Type.Arch, x.OS.Type.Machine, x.OS.Type.Value = "x86_64", "q35", "hvm"
	if m.image.Kernel != "" {
		x.OS.Kernel, x.OS.Initrd, x.OS.Cmdline = m.image.Kernel, m.image.Initrd, m.image.Cmdline
	} else {
		x.OS.Boot = &bootXML{"hd"}
	}
	if m.kvm {
		x.Type, x.CPU = "kvm", cpuXML{Mode: "host-passthrough", Check: "none"}
	} else {
		// Five-level paging costs emulation time and gives a small guest nothing.
		x.CPU = cpuXML{Mode: "maximum", Check: "none", Feature: []cpuFeature{{"disable", "la57"}}}
		x.Features.TCG = &tcgXML{sized{"MiB", 256}}
	}
	if m.hugePages {
		x.Backing = &memoryXML{}
	}
	if m.node.cpus != "" {
		x.NUMA = &numaXML{}
		x.NUMA.Memory.Mode, x.NUMA.Memory.Set = "preferred", strconv.Itoa(m.node.number)
	}
	if m.kvm && len(m.devices) > 0 {
		x.CPU.AddressBits = &addressBitsXML{"passthrough"}
	}
	x.Devices = m.deviceXML()
	return x
}

func (m machine) deviceXML() devicesXML {
	d := devicesXML{Balloon: modelXML{"none"}, Watchdog: &watchdogXML{"i6300esb", "poweroff"}, RNG: &rngXML{Model: "virtio"}}
	d.RNG.Backend.Model, d.RNG.Backend.Value = "random", "/dev/urandom"
	if m.disk != "" {
		d.Disks = append(d.Disks, m.rootDisk())
	}
	if m.drive != "" {
		d.Disks = append(d.Disks, diskXML{
			Type: "file", Device: "disk", Driver: diskDriverXML{Name: "qemu", Type: "raw"},
			Source: fileXML{File: m.drive}, Target: targetXML{"vdz", "virtio"}, ReadOnly: &struct{}{},
		})
	}
	if m.port.ip.IsValid() {
		d.Interface = append(d.Interface, m.card())
	}
	d.Serial.Type, d.Serial.Source.Path, d.Serial.Source.Append = "file", m.console, "on"
	for _, bdf := range m.devices {
		h := hostdev(bdf)
		if file := m.roms[bdf]; file != "" {
			h.ROM = &romXML{file}
		}
		d.Hostdevs = append(d.Hostdevs, h)
	}
	return d
}

func (m machine) rootDisk() diskXML {
	format := m.image.Format
	if format == "" {
		format = "qcow2"
	}
	return diskXML{
		Type: "file", Device: "disk",
		// The disk dies with its VM, so nothing has to survive a power cut. A
		// full host is the guest's error, not a VM that is paused for ever.
		Driver: diskDriverXML{Name: "qemu", Type: "qcow2", Cache: "unsafe", Errors: "report", Discard: "unmap"},
		Source: fileXML{File: m.disk}, Target: targetXML{"vda", "virtio"},
		Backing: &backingXML{
			Type: "file", Format: &formatXML{format},
			Source: &fileXML{File: m.image.Disk, SecLabel: &secLabelXML{"dac", "no"}},
			Next:   &backingXML{},
		},
	}
}

func (m machine) card() interfaceXML {
	c := interfaceXML{
		Type: "network", MAC: macXML{m.port.mac.String()}, Target: targetXML{Dev: m.port.tap},
		Model: modelTypeXML{"virtio"}, MTU: &mtuXML{m.net.MTU}, Port: &portXML{"yes"},
		Filter: &filterRef{filterName(m.net), []filterParam{{"IP", m.port.ip.String()}}},
	}
	c.Source.Network = m.net.Name
	return c
}

// hostdev passes the PCI function at a valid BDF address through.
func hostdev(bdf string) hostdevXML {
	h := hostdevXML{Mode: "subsystem", Type: "pci", Managed: "yes"}
	domain, rest, _ := strings.Cut(bdf, ":")
	bus, rest, _ := strings.Cut(rest, ":")
	slot, function, _ := strings.Cut(rest, ".")
	h.Source.Address = pciAddress{"0x" + domain, "0x" + bus, "0x" + slot, "0x" + function}
	return h
}

// validBDF reports whether s is a full PCI address such as 0000:3b:00.0.
func validBDF(s string) bool {
	if len(s) != 12 || s[4] != ':' || s[7] != ':' || s[10] != '.' {
		return false
	}
	for _, part := range []string{s[:4], s[5:7], s[8:10]} {
		if _, err := strconv.ParseUint(part, 16, 32); err != nil {
			return false
		}
	}
	return s[11] >= '0' && s[11] <= '7'
}

// text gives a description as libvirt reads it.
func text(x any) string {
	b, err := xml.MarshalIndent(x, "", "  ")
	if err != nil {
		panic(err) // a type of ours that encoding/xml cannot write
	}
	return string(b) + "\n"
}

// readTag finds our tag in the description of a domain or network; the zero tag
// if there is none.
func readTag(description string) tag {
	var x struct {
		Metadata struct {
			Tags []tag `xml:"urn:gpuserver:libvirt:1 gpuserver"`
		} `xml:"metadata"`
	}
	if xml.Unmarshal([]byte(description), &x) != nil || len(x.Metadata.Tags) == 0 {
		return tag{}
	}
	return x.Metadata.Tags[0]
}

// hasCard says whether a domain has a card on a network.
func hasCard(description, network string) bool {
	var x struct {
		Cards []struct {
			Network string `xml:"network,attr"`
		} `xml:"devices>interface>source"`
	}
	if xml.Unmarshal([]byte(description), &x) != nil {
		return false
	}
	for _, c := range x.Cards {
		if c.Network == network {
			return true
		}
	}
	return false
}
