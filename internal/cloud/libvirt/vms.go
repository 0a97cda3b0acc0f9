package libvirt

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/pci"
)

// Create implements cloud.Driver. Once begun it is finished or undone even if
// ctx ends meanwhile: the caller then finds it by its name.
func (d *Driver) Create(ctx context.Context, spec cloud.Spec) (cloud.VM, error) {
	op := "create " + spec.Name
	if err := d.check(spec); err != nil {
		return cloud.VM{}, err
	}
	if err := ctx.Err(); err != nil {
		return cloud.VM{}, unavailable(op, err)
	}
	end, ok := d.names.Try(spec.Name, true)
	if !ok {
		return cloud.VM{}, exists(spec.Name, "it is being made or deleted")
	}
	type answer struct {
		vm  cloud.VM
		err error
	}
	answers := make(chan answer, 1)
	started := d.start(func() {
		defer end()
		vm, err := d.create(d.running, spec)
		answers <- answer{vm, err}
	})
	if !started {
		end()
		return cloud.VM{}, unavailable(op, errClosed)
	}
	select {
	case a := <-answers:
		return a.vm, a.err
	case <-ctx.Done():
		return cloud.VM{}, unavailable(op, ctx.Err())
	}
}

func (d *Driver) check(spec cloud.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if spec.Owner != d.cfg.Owner {
		return gpuserver.Errorf(gpuserver.KindInvalid, "VM %q has the owner %q, but cloud %s was opened for %q", spec.Name, spec.Owner, d.cfg.Name, d.cfg.Owner)
	}
	if _, ok := d.cfg.Images[spec.Image]; !ok {
		return gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s has no image %q; add it to images", d.cfg.Name, spec.Image)
	}
	for _, bdf := range spec.Devices {
		if !validBDF(bdf) {
			return gpuserver.Errorf(gpuserver.KindInvalid, "VM %q: %q is no PCI address such as 0000:3b:00.0", spec.Name, bdf)
		}
	}
	return nil
}

func exists(vm, why string) error {
	return gpuserver.Errorf(gpuserver.KindConflict, "a VM %q cannot be made: %s", vm, why)
}

// create makes the parts in order. What it made is taken away again if a later
// part fails, but not if libvirtd left in the middle of the start: then the VM
// may be there.
func (d *Driver) create(ctx context.Context, spec cloud.Spec) (_ cloud.VM, err error) {
	name := spec.Name
	if err := d.settle(ctx); err != nil {
		return cloud.VM{}, err
	}
	if _, err := d.lookup(ctx, name); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		if err == nil {
			err = exists(name, "libvirt has a domain of that name")
		}
		return cloud.VM{}, err
	}
	image := d.cfg.Images[spec.Image]
	size, err := leasedSize(image, spec.Flavor)
	if err != nil {
		return cloud.VM{}, err
	}
	rec := record{
		Owner: spec.Owner, UUID: newUUID(), CreatedAt: time.Now().UTC(), DiskBytes: size,
		VCPUs: spec.Flavor.VCPUs, MemoryMiB: spec.Flavor.MemoryMiB, Devices: slices.Clone(spec.Devices),
	}
	if err := d.claim(name, rec); err != nil {
		return cloud.VM{}, err
	}
	unknown := false
	defer func() {
		if err != nil && !unknown {
			err = errors.Join(err, d.remove(name))
		}
	}()
	var node numaNode
	var inv *pci.Inventory
	cards := spec.Devices
	if len(cards) > 0 {
		inv, err = readPCI(d.cfg.Sysfs)
		if err == nil {
			node = nodeOf(d.cfg.Sysfs, inv, spec.Devices)
			spec.Devices, err = passedThrough(inv, spec.Devices)
		}
		if err != nil {
			return cloud.VM{}, err
		}
	}
	m, err := d.makeParts(ctx, spec, rec, image)
	if err != nil {
		return cloud.VM{}, err
	}
	m.node, m.hugePages, m.roms = node, d.cfg.HugePages, romsOf(inv, cards, d.cfg.ROMs)
	_, err = ask(ctx, d, "start "+name, func(l *lv.Libvirt) (lv.Domain, error) {
		return l.DomainCreateXML(text(m.domain()), lv.DomainNone)
	})
	if err != nil {
		unknown = d.mayRun(ctx, name, err)
		if inv != nil {
			err = cmp.Or(d.occupied(err, inv, cards), err)
		}
		return cloud.VM{}, err
	}
	rec.Started = true
	if err := d.cfg.writeRecord(name, rec); err != nil {
		d.log.Warn("cannot note that a VM started", "vm", name, "err", err) // known by its domain
	}
	return d.describe(name, rec, cloud.StateRunning), nil
}

// mayRun reports whether a domain could be there although its start failed: if
// libvirtd answered, looking is enough.
func (d *Driver) mayRun(ctx context.Context, name string, err error) bool {
	if code(err) == 0 {
		return true
	}
	_, err = d.lookup(ctx, name)
	return gpuserver.KindOf(err) != gpuserver.KindNotFound
}

// claim takes the name and the room of a VM by making its folder.
func (d *Driver) claim(name string, rec record) error {
	d.room.Lock()
	defer d.room.Unlock()
	// The name first: a conflict is one also where there is no room.
	if err := os.Mkdir(d.cfg.vmDir(name), 0o711); errors.Is(err, fs.ErrExist) {
		return exists(name, "parts of one are in "+d.cfg.vmDir(name))
	} else if err != nil {
		return unavailable("make a VM's folder", err)
	}
	err := d.checkRoom(name, rec)
	if err == nil {
		err = d.checkDevices(name, rec.Devices)
	}
	if err == nil {
		if e := d.cfg.writeRecord(name, rec); e != nil {
			err = unavailable("write a VM's record", e)
		}
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(d.cfg.vmDir(name)))
	}
	return err
}

// checkDevices refuses cards that another VM has, also one that is off: a VM is
// kept so that nobody gets its cards, and libvirt knows of it no more.
func (d *Driver) checkDevices(name string, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	entries, err := os.ReadDir(d.cfg.vmsDir())
	if err != nil {
		return unavailable("look at the GPUs of other VMs", err)
	}
	for _, e := range entries {
		rec, _, err := d.cfg.readRecord(e.Name())
		if err != nil {
			return unavailable("look at the GPUs of other VMs", err)
		}
		i := slices.IndexFunc(devices, func(a string) bool { return slices.Contains(rec.Devices, a) })
		if i < 0 || e.Name() == name {
			continue
		}
		how := "has it"
		if rec.Kept {
			how = "is kept because of it"
		}
		return gpuserver.Errorf(gpuserver.KindCapacity, "the GPU at %s cannot be given to VM %s: VM %s %s", devices[i], name, e.Name(), how)
	}
	return nil
}

// makeParts makes the files of a VM.
func (d *Driver) makeParts(ctx context.Context, spec cloud.Spec, rec record, image ImageSource) (machine, error) {
	dir := d.cfg.vmDir(spec.Name)
	port, err := d.pool.claim(spec.Name)
	if err != nil {
		return machine{}, err
	}
	m := machine{
		name: spec.Name, uuid: rec.UUID, owner: rec.Owner, created: rec.CreatedAt, kvm: d.accel.get().kvm,
		vcpus: rec.VCPUs, memoryMiB: rec.MemoryMiB, image: image, drive: filepath.Join(dir, driveFile),
		console: d.cfg.console(spec.Name), net: d.cfg.Network, port: port, devices: spec.Devices,
	}
	if image.Disk != "" {
		m.disk = filepath.Join(dir, diskFile)
		if err := makeOverlay(ctx, m.disk, image, rec.DiskBytes); err != nil {
			return machine{}, unavailable("make the disk of "+spec.Name, err)
		}
	}
	files, err := driveFiles(spec, rec.UUID, d.cfg.Network, port)
	if err == nil {
		err = writeDrive(m.drive, files)
	}
	if err == nil {
		err = d.removeConsole(spec.Name) // of an earlier VM of that name
	}
	if err != nil {
		return machine{}, unavailable("make the config drive of "+spec.Name, err)
	}
	return m, nil
}

// Get implements cloud.Driver.
func (d *Driver) Get(ctx context.Context, name string) (cloud.VM, error) {
	found, err := d.lookup(ctx, name)
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
		return cloud.VM{}, err
	}
	rec, folder, recErr := d.cfg.readRecord(name)
	if recErr != nil {
		return cloud.VM{}, unavailable("get "+name, recErr)
	}
	if err == nil {
		vm, err := d.describeDomain(ctx, found, rec, folder)
		if gpuserver.KindOf(err) != gpuserver.KindNotFound {
			return vm, err
		} // it stopped since: the rest of it is there
	}
	if !folder {
		return cloud.VM{}, gpuserver.Errorf(gpuserver.KindNotFound, "there is no VM %q on cloud %s", name, d.cfg.Name)
	}
	return d.describe(name, rec, d.stateWithout(name, rec)), nil
}

// List implements cloud.Driver.
func (d *Driver) List(ctx context.Context) ([]cloud.VM, error) {
	domains, err := d.domains(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.cfg.vmsDir())
	if err != nil {
		return nil, unavailable("list", err)
	}
	var list []cloud.VM
	for _, e := range entries {
		rec, folder, err := d.cfg.readRecord(e.Name())
		if err != nil {
			return nil, unavailable("list", err)
		}
		if _, running := domains[e.Name()]; running || !folder || rec.Owner != d.cfg.Owner {
			continue // running: below; no folder: deleted since
		}
		list = append(list, d.describe(e.Name(), rec, d.stateWithout(e.Name(), rec)))
	}
	for name, dom := range domains {
		rec, folder, err := d.cfg.readRecord(name)
		if err != nil {
			return nil, unavailable("list", err)
		}
		vm, err := d.describeDomain(ctx, dom, rec, folder)
		if gpuserver.KindOf(err) == gpuserver.KindNotFound {
			vm, err = d.Get(ctx, name) // stopped since
			if gpuserver.KindOf(err) == gpuserver.KindNotFound {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		if vm.Owner == d.cfg.Owner {
			list = append(list, vm)
		}
	}
	return list, nil
}

// stateWithout is the state of a VM that has a folder and no domain.
func (d *Driver) stateWithout(name string, rec record) cloud.State {
	switch {
	case d.names.Making(name):
		return cloud.StateBuilding
	case rec.Started:
		return cloud.StateStopped
	}
	return cloud.StateRemains
}

func (d *Driver) describe(name string, rec record, state cloud.State) cloud.VM {
	id := rec.UUID
	if id == "" {
		id = name
	}
	return cloud.VM{Name: name, ID: id, Owner: rec.Owner, Host: d.hostName(), State: state, Kept: rec.Kept, CreatedAt: rec.CreatedAt}
}

// describeDomain describes a VM that has a domain. Ours is one with our record's
// UUID or our tag.
func (d *Driver) describeDomain(ctx context.Context, dom lv.Domain, rec record, folder bool) (cloud.VM, error) {
	uuid := uuidText(dom.UUID)
	if !folder || rec.UUID != uuid {
		t, err := d.tagOf(ctx, dom)
		if err != nil {
			return cloud.VM{}, err
		}
		created, _ := time.Parse(time.RFC3339, t.Created) // a foreign domain has none
		rec = record{Owner: t.Owner, UUID: uuid, CreatedAt: created}
	}
	state, err := ask(ctx, d, "state of "+dom.Name, func(l *lv.Libvirt) (int32, error) {
		s, _, err := l.DomainGetState(dom, 0)
		return s, err
	})
	if err != nil {
		return cloud.VM{}, err
	}
	vm := d.describe(dom.Name, rec, cloud.StateRunning)
	switch lv.DomainState(state) {
	case lv.DomainShutdown, lv.DomainShutoff, lv.DomainCrashed:
		vm.State = cloud.StateStopped
	}
	return vm, nil
}

// Delete implements cloud.Driver.
func (d *Driver) Delete(ctx context.Context, name string) error {
	end, err := d.own(ctx, name)
	if err != nil {
		return unless(err, gpuserver.KindNotFound)
	}
	defer end()
	if err := d.destroy(ctx, name); err != nil {
		return err
	}
	if err := d.remove(name); err != nil {
		return unavailable("delete "+name, err)
	}
	return nil
}

// Keep implements cloud.Driver: the domain ends, disk and record stay. The record
// says first that it is kept: it is what holds the cards.
func (d *Driver) Keep(ctx context.Context, name string) error {
	end, err := d.own(ctx, name)
	if err != nil {
		return err
	}
	defer end()
	rec, found, err := d.cfg.readRecord(name)
	if err == nil && found && !rec.Kept {
		rec.Kept = true
		err = d.cfg.writeRecord(name, rec)
	}
	if err != nil {
		return unavailable("note that "+name+" is kept", err)
	}
	return d.destroy(ctx, name)
}

// own begins a change of a VM of ours; KindNotFound if nothing is there and
// KindRefused if it is somebody else's.
func (d *Driver) own(ctx context.Context, name string) (end func(), err error) {
	end, err = d.names.Wait(ctx, name)
	if err != nil {
		return nil, unavailable("wait for "+name, err)
	}
	vm, err := d.Get(ctx, name)
	if err == nil && vm.Owner != d.cfg.Owner {
		err = gpuserver.Errorf(gpuserver.KindRefused, "VM %q on cloud %s is not ours: it carries the tag %q, not %q", name, d.cfg.Name, vm.Owner, d.cfg.Owner)
	}
	if err != nil {
		end()
		return nil, err
	}
	return end, nil
}

func unless(err error, kind gpuserver.Kind) error {
	if gpuserver.KindOf(err) == kind {
		return nil
	}
	return err
}

// destroy ends a domain of ours and returns once libvirt no longer has it, which
// is once its QEMU has ended.
func (d *Driver) destroy(ctx context.Context, name string) error {
	dom, err := d.lookup(ctx, name)
	if err != nil {
		return unless(err, gpuserver.KindNotFound)
	}
	err = do(ctx, d, "stop "+name, func(l *lv.Libvirt) error { return l.DomainDestroyFlags(dom, lv.DomainDestroyDefault) })
	if err != nil && code(err) != lv.ErrNoDomain && code(err) != lv.ErrOperationInvalid {
		return err // OperationInvalid: it is not running
	}
	// One that somebody made permanent stays defined after its end.
	err = do(ctx, d, "undefine "+name, func(l *lv.Libvirt) error { return l.DomainUndefine(dom) })
	if err != nil && code(err) != lv.ErrNoDomain && code(err) != lv.ErrOperationInvalid {
		return err
	}
	if _, err := d.lookup(ctx, name); gpuserver.KindOf(err) != gpuserver.KindNotFound {
		if err == nil {
			err = gpuserver.Errorf(gpuserver.KindUnavailable, "VM %q was told to stop, and libvirt still has it; repeat", name)
		}
		return err
	}
	return nil
}

// remove takes a VM's parts away, its folder last, and leaves its console.
func (d *Driver) remove(name string) error {
	if err := d.pool.release(name); err != nil {
		return err
	}
	return os.RemoveAll(d.cfg.vmDir(name))
}

// lookup finds a domain by its name.
func (d *Driver) lookup(ctx context.Context, name string) (lv.Domain, error) {
	return ask(ctx, d, "find "+name, func(l *lv.Libvirt) (lv.Domain, error) { return l.DomainLookupByName(name) })
}

// domains gives all domains of libvirt by name.
func (d *Driver) domains(ctx context.Context) (map[string]lv.Domain, error) {
	list, err := ask(ctx, d, "list", func(l *lv.Libvirt) ([]lv.Domain, error) {
		list, _, err := l.ConnectListAllDomains(1, lv.ConnectListDomainsActive|lv.ConnectListDomainsInactive)
		return list, err
	})
	if err != nil {
		return nil, err
	}
	byName := make(map[string]lv.Domain, len(list))
	for _, dom := range list {
		byName[dom.Name] = dom
	}
	return byName, nil
}

// tagOf reads our tag of a domain.
func (d *Driver) tagOf(ctx context.Context, dom lv.Domain) (tag, error) {
	description, err := ask(ctx, d, "describe "+dom.Name, func(l *lv.Libvirt) (string, error) { return l.DomainGetXMLDesc(dom, 0) })
	return readTag(description), err
}

// newUUID gives a random UUID.
// Source: RFC 9562, section 5.4.
func newUUID() string {
	var u lv.UUID
	rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return uuidText(u)
}

func uuidText(u lv.UUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
