package libvirt

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver"
)

// Version asks libvirtd who it is: its version and QEMU's. Nothing is made. An
// error is KindInvalid if cfg is wrong, else what libvirtd's answer was.
func Version(ctx context.Context, cfg Config) (string, error) {
	d, done, err := visitor(cfg)
	if err != nil {
		return "", err
	}
	defer done()
	return ask(ctx, d, "ask for the version", func(l *lv.Libvirt) (string, error) {
		library, err := l.ConnectGetLibVersion()
		if err != nil {
			return "", err
		}
		qemu, err := l.ConnectGetVersion()
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("libvirt %s with QEMU %s", dotted(library), dotted(qemu)), nil
	})
}

// dotted writes a version as libvirt counts: a million, a thousand, one.
func dotted(v uint64) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000)
}

// TryKVM runs the kernel of one of cfg's images under KVM for some seconds, and
// gives the reason if that did not work, "" if it did. It is tried anew each
// time. KindNotFound: no image has a kernel to try it with; KindUnavailable:
// libvirtd did not answer.
func TryKVM(ctx context.Context, cfg Config) (reason string, err error) {
	d, done, err := visitor(cfg)
	if err != nil {
		return "", err
	}
	defer done()
	if _, ok := d.probeImage(); !ok {
		return "", gpuserver.Errorf(gpuserver.KindNotFound, "no image of the configuration has a kernel that is there, with which it could be tried")
	}
	if err := os.MkdirAll(d.cfg.consolesDir(), 0o711); err != nil { // as Open does
		return "", unavailable("try KVM", err)
	}
	reason, _, err = d.tryKVM(ctx)
	return reason, err
}

// visitor gives a driver that can ask libvirtd and does nothing by itself.
func visitor(cfg Config) (d *Driver, done func(), err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, nil, err
	}
	d = &Driver{cfg: cfg, log: slog.New(slog.DiscardHandler), calls: newLink(cfg.Socket)}
	return d, func() {
		d.calls.close()
		d.work.Wait()
	}, nil
}
