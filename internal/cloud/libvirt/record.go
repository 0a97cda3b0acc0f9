package libvirt

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// record is what a VM's folder says of it. libvirt forgets a transient domain
// once it stopped; this tells a VM that stopped from one never finished.
type record struct {
	Owner     string    `json:"owner"`
	UUID      string    `json:"uuid"`
	CreatedAt time.Time `json:"created_at"`
	DiskBytes int64     `json:"disk_bytes"` // the disk's size as the guest sees it: what is leased
	VCPUs     int       `json:"vcpus"`
	MemoryMiB int64     `json:"memory_mib"`
	Started   bool      `json:"started"`           // libvirt accepted it
	Devices   []string  `json:"devices,omitempty"` // the cards that it has, also while it is kept
	Kept      bool      `json:"kept,omitempty"`    // Keep was called for it
}

// The files in a VM's folder.
const (
	recordFile = "record.json"
	diskFile   = "disk.qcow2"
	driveFile  = "config.iso"
)

// readRecord gives a VM's record. found says whether there is a folder; a folder
// without a record is what a crash between the two leaves, and is ours.
func (c Config) readRecord(vm string) (r record, found bool, err error) {
	b, err := os.ReadFile(filepath.Join(c.vmDir(vm), recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Lstat(c.vmDir(vm))
		if errors.Is(err, fs.ErrNotExist) {
			return record{}, false, nil
		}
		return record{Owner: c.Owner}, err == nil, err
	}
	if err != nil {
		return record{}, true, err
	}
	if json.Unmarshal(b, &r) != nil { // half written when the machine went down
		return record{Owner: c.Owner}, true, nil
	}
	return r, true, nil
}

// writeRecord replaces a VM's record in one step.
func (c Config) writeRecord(vm string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(c.vmDir(vm), recordFile), b)
}

// replaceFile writes a file that is never seen half written.
func replaceFile(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
