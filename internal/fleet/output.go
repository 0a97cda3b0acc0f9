package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gpuserver"
)

// maxOutput bounds what is kept of each stream of a local job, in bytes. What
// comes after it is dropped, because a guest must not fill the host's disk.
const maxOutput = 256 << 20

// outputs keeps what the commands of local jobs write, in one file for each
// stream, and wakes those who follow them.
type outputs struct {
	dir  string
	mu   sync.Mutex
	more map[string]chan struct{} // closed when the stream grows or ends
}

func newOutputs(dir string) *outputs { return &outputs{dir: dir, more: map[string]chan struct{}{}} }

func (o *outputs) path(job gpuserver.JobID, stream string) string {
	return filepath.Join(o.dir, fmt.Sprintf("%d.%s", job, stream))
}

// write appends data at offset. What was written before is skipped; a gap is
// KindConflict.
func (o *outputs) write(job gpuserver.JobID, stream string, offset int64, data []byte) error {
	if stream != "stdout" && stream != "stderr" {
		return gpuserver.Errorf(gpuserver.KindInvalid, "there is no stream %q", stream)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	path := o.path(job, stream)
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "output", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "output", err)
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "output", err)
	}
	end := offset + int64(len(data))
	switch {
	case size >= maxOutput, end <= size:
		return nil
	case offset > size:
		return gpuserver.Errorf(gpuserver.KindConflict, "output from %d would leave a gap after %d", offset, size)
	}
	data = data[size-offset:]
	data = data[:min(int64(len(data)), maxOutput-size)]
	if _, err := file.Write(data); err != nil {
		return gpuserver.Wrap(gpuserver.KindUnavailable, "output", err)
	}
	o.wakeLocked(path)
	return nil
}

func (o *outputs) wakeLocked(path string) {
	if c := o.more[path]; c != nil {
		close(c)
		delete(o.more, path)
	}
}

// wake tells those who follow a job's streams to look again.
func (o *outputs) wake(job gpuserver.JobID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range []string{"stdout", "stderr"} {
		o.wakeLocked(o.path(job, s))
	}
}

// signal gives a channel that is closed when the stream grows or ends.
func (o *outputs) signal(job gpuserver.JobID, stream string) <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	path := o.path(job, stream)
	if o.more[path] == nil {
		o.more[path] = make(chan struct{})
	}
	return o.more[path]
}

// read gives at most 256 KiB from offset.
func (o *outputs) read(job gpuserver.JobID, stream string, from int64) ([]byte, error) {
	file, err := os.Open(o.path(job, stream))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, gpuserver.Wrap(gpuserver.KindUnavailable, "output", err)
	}
	defer file.Close()
	buf := make([]byte, 256<<10)
	n, err := file.ReadAt(buf, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, gpuserver.Wrap(gpuserver.KindUnavailable, "output", err)
	}
	return buf[:n], nil
}

// prune deletes the output of jobs that ended long ago.
func (o *outputs) prune(keep time.Duration) {
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > keep {
			_ = os.Remove(filepath.Join(o.dir, e.Name()))
		}
	}
}

// await reads a stream, waiting at most wait for something to come. ended says
// whether the job is over.
func (o *outputs) await(ctx context.Context, job gpuserver.JobID, stream string, from int64, wait time.Duration, ended func() (bool, error)) (data []byte, done bool, err error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		more := o.signal(job, stream)
		over, err := ended() // before the read, so that nothing is written after it
		if err != nil {
			return nil, false, err
		}
		if data, err = o.read(job, stream, from); err != nil || len(data) > 0 {
			return data, false, err
		}
		if over {
			return nil, true, nil
		}
		select {
		case <-more:
		case <-timer.C:
			return nil, false, nil
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}
