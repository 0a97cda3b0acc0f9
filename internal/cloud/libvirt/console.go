package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver"
)

// A console is written by virtlogd: NAME.log, and once that is full NAME.log.0,
// .1 and so on, the oldest last. virtlogd does not say how much it threw away;
// NAME.offsets remembers where each file that we saw begins.

// maxRotated bounds how many rotated files are looked for.
const maxRotated = 100

// piece is one file of a console.
type piece struct {
	Inode uint64 `json:"inode"`
	Born  int64  `json:"born"` // ns; inodes are used again
	Start int64  `json:"start"`
	Size  int64  `json:"size"`
	file  *os.File
}

// Console implements cloud.Driver. The console of a deleted VM is given too, for
// as long as it is kept.
func (d *Driver) Console(ctx context.Context, name string, from, limit int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, unavailable("console of "+name, err)
	}
	path := d.cfg.console(name)
	pieces, err := openPieces(path)
	if err != nil {
		return nil, unavailable("console of "+name, err)
	}
	if len(pieces) == 0 {
		if _, err := d.Get(ctx, name); err != nil {
			return nil, err
		}
		return io.NopCloser(strings.NewReader("")), nil
	}
	place(pieces, readOffsets(path))
	// Lost if this fails: then a rotation that nobody saw shortens the count.
	if err := writeOffsets(path, pieces); err != nil {
		d.log.Warn("cannot remember a console's offsets", "vm", name, "err", err)
	}
	return readFrom(pieces, max(from, 0), max(limit, 0)), nil
}

// openPieces opens a console's files, oldest first.
func openPieces(path string) ([]piece, error) {
	for range 10 {
		pieces, err := tryOpenPieces(path)
		if err != nil || len(pieces) == 0 {
			return nil, err
		}
		// If the newest is still the newest, no rotation moved files under us.
		now, err := os.Stat(path)
		if err == nil {
			if st, e := pieces[len(pieces)-1].file.Stat(); e == nil && os.SameFile(now, st) {
				return pieces, nil
			}
		}
		closePieces(pieces)
	}
	return nil, gpuserver.Errorf(gpuserver.KindUnavailable, "the console %s is rotated faster than it can be read; repeat", path)
}

func tryOpenPieces(path string) (pieces []piece, err error) {
	for i := maxRotated; i >= -1; i-- {
		name := path
		if i >= 0 {
			name = fmt.Sprintf("%s.%d", path, i)
		}
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var st unix.Statx_t
		if err == nil {
			err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
		}
		if err != nil {
			closePieces(pieces)
			return nil, err
		}
		pieces = append(pieces, piece{Inode: st.Ino, Born: st.Btime.Sec*1e9 + int64(st.Btime.Nsec), Size: int64(st.Size), file: f})
	}
	return pieces, nil
}

func closePieces(pieces []piece) {
	for _, p := range pieces {
		p.file.Close()
	}
}

// place says where each piece starts, from what was known before. Where all that
// was known is gone, the oldest piece starts where knowledge ended: offsets never
// go back, but what nobody saw is not counted.
func place(pieces, known []piece) {
	next := int64(0)
	for _, k := range known {
		next = max(next, k.Start+k.Size)
	}
	first := -1
	for i, p := range pieces {
		for _, k := range known {
			if first < 0 && k.Inode == p.Inode && k.Born == p.Born {
				first, next = i, k.Start
			}
		}
	}
	// Pieces older than the first known one cannot be: it was the oldest then,
	// or an older one was known too.
	for i := max(first, 0); i < len(pieces); i++ {
		pieces[i].Start = next
		next += pieces[i].Size
	}
}

// readFrom gives limit bytes from offset from on.
func readFrom(pieces []piece, from, limit int64) io.ReadCloser {
	var readers []io.Reader
	for _, p := range pieces {
		skip := max(from-p.Start, 0)
		if skip >= p.Size || limit <= 0 {
			continue
		}
		n := min(p.Size-skip, limit)
		limit -= n
		readers = append(readers, io.NewSectionReader(p.file, skip, n))
	}
	return &consoleReader{io.MultiReader(readers...), pieces}
}

type consoleReader struct {
	io.Reader
	pieces []piece
}

// Close implements io.Closer.
func (r *consoleReader) Close() error {
	closePieces(r.pieces)
	return nil
}

func offsetsPath(path string) string { return strings.TrimSuffix(path, ".log") + ".offsets" }

func readOffsets(path string) (known []piece) {
	b, err := os.ReadFile(offsetsPath(path))
	if err == nil && json.Unmarshal(b, &known) != nil {
		known = nil // torn by a crash: counted anew
	}
	return known
}

func writeOffsets(path string, pieces []piece) error {
	b, err := json.Marshal(pieces)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".offsets-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), offsetsPath(path))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// removeConsole forgets the console of a VM that is gone.
func (d *Driver) removeConsole(name string) error {
	path := d.cfg.console(name)
	old, err := filepath.Glob(path + ".*") // a VM's name has no pattern characters
	if err != nil {
		return err
	}
	for _, f := range append(old, path, offsetsPath(path)) {
		if e := os.Remove(f); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// sweepConsoles forgets consoles that nobody wrote to for KeepConsoles and whose
// VM is gone.
func (d *Driver) sweepConsoles() {
	entries, err := os.ReadDir(d.cfg.consolesDir())
	if err != nil {
		d.log.Warn("cannot look for old consoles", "err", err)
		return
	}
	for _, e := range entries {
		name, isLog := strings.CutSuffix(e.Name(), ".log")
		info, err := e.Info()
		if !isLog || err != nil || time.Since(info.ModTime()) < d.cfg.KeepConsoles {
			continue
		}
		end, ok := d.names.Try(name, false)
		if !ok {
			continue
		}
		if _, there, err := d.cfg.readRecord(name); err == nil && !there {
			if err := d.removeConsole(name); err != nil {
				d.log.Warn("cannot remove an old console", "vm", name, "err", err)
			}
		}
		end()
	}
}
