package libvirt

import (
	"context"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver"
	"gpuserver/internal/pci"
)

// maxLooks bounds how many readings of cards may hang at once: each holds a
// thread until the kernel lets it go, which no context can make it do.
const maxLooks = 8

// Cards implements cloud.Driver: sysfs and the kernel's log of this machine. What
// hangs is left behind.
func (d *Driver) Cards(ctx context.Context, _ string, addresses []string) ([]pci.Reading, error) {
	hangs := func(err error) error {
		return &gpuserver.Error{
			Kind: gpuserver.KindUnavailable, Op: "libvirt: look at the GPUs", Err: err,
			Public: "the GPUs at " + strings.Join(addresses, ", ") + " could not be read in time; one that hangs holds up all",
		}
	}
	select {
	case d.looks <- struct{}{}:
	case <-ctx.Done():
		return nil, hangs(ctx.Err())
	}
	type answer struct {
		readings []pci.Reading
		err      error
	}
	answers := make(chan answer, 1)
	go func() {
		defer func() { <-d.looks }()
		readings, err := d.readCards(addresses)
		answers <- answer{readings, err}
	}()
	select {
	case a := <-answers:
		if ctx.Err() != nil {
			return nil, hangs(ctx.Err())
		}
		return a.readings, a.err
	case <-ctx.Done():
		return nil, hangs(ctx.Err())
	}
}

func (d *Driver) readCards(addresses []string) ([]pci.Reading, error) {
	root, err := os.OpenRoot(d.cfg.Sysfs)
	if err != nil {
		return nil, unavailable("look at the GPUs", err)
	}
	defer root.Close()
	log := d.openKmsg()
	if log != nil {
		defer log.File.Close()
	}
	return pci.ReadCards(root.FS(), log, addresses)
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
