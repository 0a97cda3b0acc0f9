package intake

import (
	"log/slog"
	"sync"
	"syscall"
	"time"

	"gpuserver"
)

// errDiskFull is given instead of storing something new.
var errDiskFull = gpuserver.Errorf(gpuserver.KindUnavailable, "the disk of the database is nearly full")

// DiskGuard says whether there is room for the database to grow, so that
// deliveries are refused before SQLite meets a full disk. It asks the file
// system at most once a second. The zero value always says yes.
type DiskGuard struct {
	Dir     string       // a folder on the database's file system
	MinFree uint64       // bytes
	Log     *slog.Logger // told when the room ends and when there is some again; nil: nobody is

	mu   sync.Mutex
	next time.Time // when to ask again
	full bool
}

// Room reports whether MinFree bytes are free.
func (g *DiskGuard) Room() bool {
	if g == nil || g.Dir == "" {
		return true
	}
	g.mu.Lock() // who comes while the file system is asked waits for its answer
	defer g.mu.Unlock()
	if now := time.Now(); !now.Before(g.next) {
		g.next = now.Add(time.Second)
		var st syscall.Statfs_t
		if err := syscall.Statfs(g.Dir, &st); err == nil {
			free := st.Bavail * uint64(st.Bsize)
			if full := free < g.MinFree; g.full != full {
				g.full = full
				g.tell(full, free)
			}
		}
	}
	return !g.full
}

func (g *DiskGuard) tell(full bool, free uint64) {
	switch {
	case g.Log == nil:
	case full:
		g.Log.Error("disk nearly full: deliveries are refused until there is room again", "dir", g.Dir, "free", free, "needed", g.MinFree)
	default:
		g.Log.Info("disk has room again: deliveries are accepted", "dir", g.Dir, "free", free)
	}
}
