package libvirt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"gpuserver"
)

const gib = 1 << 30

// diskSize gives the size that a guest sees of a disk image, in bytes.
// Source of the qcow2 header: QEMU, docs/interop/qcow2.txt, "Header".
func diskSize(path, format string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if format == "raw" {
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	}
	var header [32]byte
	if _, err := io.ReadFull(f, header[:]); err != nil {
		return 0, fmt.Errorf("%s is no qcow2 image: %w", path, err)
	}
	return qcow2Size(header[:])
}

// errBacked: the chain of a VM's disk ends at the image, so what an image leaves
// to another file would read as zeros.
var errBacked = errors.New("the qcow2 image has a backing file")

func qcow2Size(header []byte) (int64, error) {
	if len(header) < 32 || !bytes.Equal(header[:4], []byte("QFI\xfb")) {
		return 0, fmt.Errorf("no qcow2 image: it starts with %q", header[:min(4, len(header))])
	}
	if binary.BigEndian.Uint64(header[8:16]) != 0 {
		return 0, errBacked
	}
	size := int64(binary.BigEndian.Uint64(header[24:32]))
	if size < 0 {
		return 0, fmt.Errorf("no qcow2 image: a disk of %d bytes", size)
	}
	return size, nil
}

// leasedSize gives the size of a flavor's disk on an image, in bytes: the
// image's own where the flavor says nothing.
func leasedSize(image ImageSource, f gpuserver.Flavor) (int64, error) {
	if image.Disk == "" {
		return 0, nil
	}
	base, err := diskSize(image.Disk, image.Format)
	if errors.Is(err, errBacked) {
		return 0, gpuserver.Errorf(gpuserver.KindInvalid, "the image's disk %s has a backing file; make one that stands alone: qemu-img convert -O qcow2 %[1]s NEW", image.Disk)
	}
	if err != nil {
		return 0, &gpuserver.Error{
			Kind: gpuserver.KindUnavailable, Op: "libvirt: look at the image", Err: err,
			Public: "the image's disk " + image.Disk + " cannot be read; build the image, or correct its path",
		}
	}
	size := f.DiskGiB * gib
	switch {
	case size == 0:
		return base, nil
	case size < base:
		return 0, gpuserver.Errorf(gpuserver.KindInvalid,
			"flavor %q has a disk of %d GiB, but the image needs %d", f.Name, f.DiskGiB, (base+gib-1)/gib)
	}
	return size, nil
}

// makeOverlay makes a disk that holds only what differs from the image's.
func makeOverlay(ctx context.Context, path string, image ImageSource, size int64) error {
	format := image.Format
	if format == "" {
		format = "qcow2"
	}
	_, err := command(ctx, nil, "qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", image.Disk, path, strconv.FormatInt(size, 10))
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

// command runs a program of the host and gives its standard output; an error
// has its standard error.
func command(ctx context.Context, input []byte, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(input), &out, &errs
	c.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path := lookSbin(name); path != "" {
		c.Path, c.Err = path, nil
	}
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.Bytes(), fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(errs.Bytes()[:min(errs.Len(), 2048)]))
	}
	return out.Bytes(), nil
}

// lookSbin finds administrators' programs, which are not on everybody's PATH.
func lookSbin(name string) string {
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + name); err == nil {
			return dir + name
		}
	}
	return ""
}

// freeDisk gives the bytes that may be written under dir.
func freeDisk(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// allocated gives the bytes that a file takes on its disk, 0 if there is none.
func allocated(path string) int64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}
