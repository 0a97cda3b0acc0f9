package libvirt

import (
	"context"
	"math"
	"os"
	"path/filepath"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver"
)

// usage sums what VMs use of the host.
type usage struct {
	vms       int
	vcpus     int
	memoryMiB int64
	leased    int64 // bytes of disk that guests may fill
	written   int64 // bytes of them that are on the disk already
}

// used sums the VMs that have a folder, all owners', except one by name.
func (d *Driver) used(except string) (usage, error) {
	entries, err := os.ReadDir(d.cfg.vmsDir())
	if err != nil {
		return usage{}, err
	}
	var u usage
	for _, e := range entries {
		if e.Name() == except {
			continue
		}
		rec, found, err := d.cfg.readRecord(e.Name())
		if err != nil {
			return usage{}, err
		}
		if !found {
			continue
		}
		u.vms, u.vcpus, u.memoryMiB = u.vms+1, u.vcpus+rec.VCPUs, u.memoryMiB+rec.MemoryMiB
		u.leased += rec.DiskBytes
		u.written += allocated(filepath.Join(d.cfg.vmDir(e.Name()), diskFile))
	}
	return u, nil
}

// Capacity implements cloud.Driver: one host. The disk is what is free now plus
// what our VMs' disks take, so that leases, which count whole disks, leave room
// for what guests did not write yet.
// Without its network no VM can be made, so its error is this one's.
func (d *Driver) Capacity(ctx context.Context) ([]gpuserver.Host, error) {
	if err := d.ensureNetwork(ctx); err != nil {
		return nil, err
	}
	type node struct {
		cpus   int32
		memory uint64 // KiB
	}
	n, err := ask(ctx, d, "look at the host", func(l *lv.Libvirt) (node, error) {
		_, memory, cpus, _, _, _, _, _, err := l.NodeGetInfo()
		return node{cpus, memory}, err
	})
	if err != nil {
		return nil, err
	}
	u, err := d.used("")
	if err != nil {
		return nil, unavailable("capacity", err)
	}
	free, err := freeDisk(d.cfg.Dir)
	if err != nil {
		return nil, unavailable("capacity", err)
	}
	slots, err := d.slots()
	if err != nil {
		return nil, err
	}
	disk := (free+u.written)/gib - d.cfg.DiskReserveGiB
	return []gpuserver.Host{{
		Cloud: d.cfg.Name, Name: d.hostName(),
		VCPUs:     max(int(math.Floor(float64(n.cpus)*d.cfg.Overcommit)), u.vcpus),
		MemoryMiB: max(int64(n.memory>>10)-d.cfg.MemoryReserveMiB, u.memoryMiB),
		DiskGiB:   max(disk, (u.leased+gib-1)/gib, 0),
		MaxVMs:    d.maxVMs(),
		Slots:     slots,
	}}, nil
}

// maxVMs is the configured number, or what the network has addresses for.
func (d *Driver) maxVMs() int {
	if d.cfg.MaxVMs > 0 {
		return min(d.cfg.MaxVMs, d.pool.size)
	}
	return d.pool.size
}

// checkRoom refuses a VM whose disk could overfill the host once every guest
// fills its own. The ledger counts too; this is what is left if something else
// wrote to the disk since.
func (d *Driver) checkRoom(name string, rec record) error {
	u, err := d.used(name)
	if err != nil {
		return unavailable("look at the room", err)
	}
	if u.vms >= d.maxVMs() {
		return gpuserver.Errorf(gpuserver.KindCapacity, "cloud %s has %d VMs, and no more are allowed", d.cfg.Name, u.vms)
	}
	if rec.DiskBytes == 0 {
		return nil
	}
	free, err := freeDisk(d.cfg.Dir)
	if err != nil {
		return unavailable("look at the room", err)
	}
	promised := max(u.leased-u.written, 0) + d.cfg.DiskReserveGiB*gib
	if rec.DiskBytes > free-promised {
		return gpuserver.Errorf(gpuserver.KindCapacity, "VM %q needs %d GiB of disk, but %s has %d GiB free, of which %d are promised",
			name, (rec.DiskBytes+gib-1)/gib, d.cfg.Dir, free/gib, (promised+gib-1)/gib)
	}
	return nil
}

// hostName names the machine.
func (d *Driver) hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}
