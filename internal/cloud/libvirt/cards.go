package libvirt

import (
	"context"
	"os"

	"gpuserver/internal/pci"
)

// Cards implements cloud.Driver: sysfs and the kernel's log of this machine.
func (d *Driver) Cards(ctx context.Context, _ string, addresses []string) ([]pci.Reading, error) {
	root, err := os.OpenRoot(d.cfg.Sysfs)
	if err != nil {
		return nil, unavailable("look at the GPUs", err)
	}
	defer root.Close()
	return pci.ReadCards(ctx, root.FS(), addresses)
}
