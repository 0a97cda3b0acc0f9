package libvirt

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver/internal/pci"
)

// Cards implements cloud.Driver: sysfs and the kernel's log of this machine.
func (d *Driver) Cards(ctx context.Context, _ string, addresses []string) ([]pci.Reading, error) {
	root, err := os.OpenRoot(d.cfg.Sysfs)
	if err != nil {
		return nil, unavailable("look at the GPUs", err)
	}
	defer root.Close()
	log := d.openKmsg()
	if log != nil {
		defer log.File.Close()
	}
	return pci.ReadCards(ctx, root.FS(), log, addresses)
}

// openKmsg opens the kernel's log; nil where we may not read it, as in many
// containers: then nothing is known of it.
func (d *Driver) openKmsg() *pci.Kmsg {
	f, err := os.OpenFile(d.cfg.Kmsg, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		d.log.Debug("the kernel's log cannot be read", "file", d.cfg.Kmsg, "err", err)
		return nil
	}
	var since unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &since); err != nil { // the clock of the log's lines
		f.Close()
		return nil
	}
	return &pci.Kmsg{File: f, Zero: time.Now().Add(-time.Duration(since.Nano())).UTC()}
}
