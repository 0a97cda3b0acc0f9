package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver"
)

// driveLabel is the label of an OpenStack config drive.
// Source: OpenStack Compute documentation, "Store metadata on a configuration drive".
const driveLabel = "config-2"

// drive is what a config drive held.
type drive struct {
	payload  Payload
	hostname string
	network  *networkData // nil: the drive says nothing, use DHCP
}

// readDrive reads the config drive, sets up what has to be there before the
// network, and takes the drive away, so that no job can read it.
func (a *agent) readDrive(ctx context.Context) (drive, error) {
	folder := a.ConfigDrive
	if folder == "" {
		mounted, err := a.mountDrive(ctx)
		if err != nil {
			return drive{}, err
		}
		defer mounted.release(a)
		folder = mounted.folder
	}
	d, err := parseDrive(folder)
	if err != nil {
		return drive{}, err
	}
	return d, a.setUpEarly(d)
}

// parseDrive reads what the agent needs from a mounted config drive.
func parseDrive(folder string) (drive, error) {
	latest := filepath.Join(folder, "openstack", "latest")
	userData, err := readBounded(filepath.Join(latest, "user_data"), MaxUserData+1)
	if err != nil {
		return drive{}, guestError("read the config drive's user_data", err)
	}
	p, err := ParseUserData(userData)
	if err != nil {
		return drive{}, err
	}
	d := drive{payload: p, hostname: p.VM}
	var meta struct {
		Hostname string `json:"hostname"`
	}
	if b, err := readBounded(filepath.Join(latest, "meta_data.json"), 1<<20); err == nil && json.Unmarshal(b, &meta) == nil {
		if name, _, _ := strings.Cut(meta.Hostname, "."); name != "" && len(name) <= 63 && strings.Trim(name, hostnameChars) == "" {
			d.hostname = name
		}
	}
	if b, err := readBounded(filepath.Join(latest, "network_data.json"), 1<<20); err == nil {
		var n networkData
		if err := json.Unmarshal(b, &n); err != nil {
			return drive{}, guestError("read the config drive's network_data.json", err)
		}
		d.network = &n
	}
	return d, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// mountedDrive is a config drive that the agent mounted.
type mountedDrive struct {
	device string // its name in /sys/class/block
	folder string
}

// mountDrive waits for a block device with the label, and mounts it where only
// root looks.
func (a *agent) mountDrive(ctx context.Context) (mountedDrive, error) {
	ctx, cancel := context.WithTimeout(ctx, driveWait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond) // devices come without a word to us: early, udev may not run
	defer tick.Stop()
	for {
		if name, kind := a.findDrive(); name != "" {
			return a.mount(name, kind)
		}
		select {
		case <-ctx.Done():
			return mountedDrive{}, gpuserver.Errorf(gpuserver.KindGuest,
				"no block device of this VM has the label %s: it was made without a config drive", driveLabel)
		case <-tick.C:
		}
	}
}

func (a *agent) mount(name, kind string) (mountedDrive, error) {
	m := mountedDrive{device: name, folder: filepath.Join(a.runDir(), "drive")}
	if err := os.MkdirAll(m.folder, 0o700); err != nil {
		return m, guestError("make "+m.folder, err)
	}
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount(a.path("dev", name), m.folder, kind, flags, ""); err != nil {
		return m, guestError("mount the config drive "+name, err)
	}
	return m, nil
}

// release unmounts the drive and removes its device from the kernel, so that a
// job does not find it. One that becomes root can have the kernel look for it
// again; what is on it is good for this VM only.
func (m mountedDrive) release(a *agent) {
	if err := unix.Unmount(m.folder, 0); err != nil {
		a.log.Warn("cannot unmount the config drive", "err", err)
		return
	}
	_ = os.Remove(m.folder) // an empty folder does no harm
	device := a.path("sys/class/block", m.device, "device")
	err := os.WriteFile(filepath.Join(device, "delete"), []byte("1"), 0) // SCSI and SATA
	if err != nil {
		var bus string // virtio
		if bus, err = os.Readlink(device); err == nil {
			err = os.WriteFile(filepath.Join(device, "driver", "unbind"), []byte(filepath.Base(bus)), 0)
		}
	}
	if err != nil {
		a.log.Warn("cannot take the config drive away", "device", m.device, "err", err)
	}
}

// findDrive gives the first block device with the label and its file system's
// name, "" if there is none yet.
func (a *agent) findDrive() (name, kind string) {
	entries, _ := os.ReadDir(a.path("sys/class/block")) // not there yet: looked at again
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "loop") || strings.HasPrefix(e.Name(), "ram") {
			continue
		}
		if kind := labelled(a.path("dev", e.Name()), driveLabel); kind != "" {
			return e.Name(), kind
		}
	}
	return "", ""
}

// labelled tells the file system of a device that carries the label: iso9660 or
// vfat, the two that OpenStack writes; "" for any other.
// Source: ECMA-119 section 8.4 (volume identifier); FAT specification, BS_VolLab.
func labelled(device, label string) string {
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close()
	same := func(b []byte) bool {
		return strings.EqualFold(string(bytes.TrimRight(b, " \x00")), label)
	}
	volume := make([]byte, 80)
	if _, err := f.ReadAt(volume, 16*2048); err == nil && string(volume[1:6]) == "CD001" && same(volume[40:72]) {
		return "iso9660"
	}
	boot := make([]byte, 512)
	if _, err := f.ReadAt(boot, 0); err == nil && boot[510] == 0x55 && boot[511] == 0xAA && (same(boot[43:54]) || same(boot[71:82])) {
		return "vfat"
	}
	return ""
}
