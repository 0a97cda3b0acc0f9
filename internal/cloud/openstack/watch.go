package openstack

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// watch is what is known of the project's servers, all owners', from lists that
// all callers share.
type watch struct {
	turns
	kick chan struct{} // wakes the loop that lists

	mu      sync.Mutex
	servers map[string]*known    // by id
	gone    map[string]time.Time // ids of servers that are gone: an older list may still have them
	unnamed map[string]bool      // ids that are in a cell which is down and were never seen before
	made    map[string]string    // ids of the servers that this process made, by name
	since   time.Time            // the cloud's own time up to which the lists are complete; zero: list all
	newest  time.Time            // the newest time that Nova noted of a server, by its own clock
	ahead   time.Duration        // no less than what the cloud's own time is ahead of that clock
	fullAt  time.Time            // when all were listed last
	goodAt  time.Time            // when the last list began that was answered
	waiting int                  // operations that wait for something to change
	changed chan struct{}        // closed after each list and each change
}

// known is a server with the time at which Nova was asked.
type known struct {
	server
	asked time.Time
}

func newWatch() *watch {
	return &watch{
		turns: newTurns(), kick: make(chan struct{}, 1), servers: map[string]*known{}, gone: map[string]time.Time{},
		unnamed: map[string]bool{}, ahead: math.MaxInt64, made: map[string]string{}, changed: make(chan struct{}),
	}
}

// named gives the servers of a name, the one that we made and ours first, then the
// oldest.
func (w *watch) named(name, owner string) []server {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []server
	for _, k := range w.servers {
		if k.Name == name {
			found = append(found, k.server)
		}
	}
	rank := func(s server) int {
		switch {
		case s.ID == w.made[name]:
			return 0
		case s.owner() == owner:
			return 1
		}
		return 2
	}
	slices.SortFunc(found, func(a, b server) int {
		if r := rank(a) - rank(b); r != 0 {
			return r
		}
		return a.Created.Compare(b.Created)
	})
	return found
}

// all gives all servers of the project.
func (w *watch) all() []server {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]server, 0, len(w.servers))
	for _, k := range w.servers {
		out = append(out, k.server)
	}
	return out
}

// get gives a server; ok is false if it is gone or was never seen.
func (w *watch) get(id string) (s server, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k, ok := w.servers[id]
	if !ok {
		return server{}, false
	}
	return k.server, true
}

// recent reports whether a list is no older than d.
func (w *watch) recent(d time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.goodAt.IsZero() && time.Since(w.goodAt) <= d
}

// blind reports whether there are servers of which not even the name is known,
// since their cell is down.
func (w *watch) blind() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.unnamed) > 0
}

// put notes what Nova said of a server that it was asked for at a time; news that
// is older than what is known is dropped. It gives what was known before.
func (w *watch) put(s server, asked time.Time) (before server, had, took bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.putLocked(s, asked)
}

func (w *watch) putLocked(s server, asked time.Time) (before server, had, took bool) {
	if _, dead := w.gone[s.ID]; dead {
		return server{}, false, false
	}
	k, had := w.servers[s.ID]
	if had {
		before = k.server
	}
	switch {
	case s.unknown():
		if !had {
			w.unnamed[s.ID] = true
		}
		return before, had, false
	case had && k.asked.After(asked):
		return before, had, false
	}
	delete(w.unnamed, s.ID)
	w.servers[s.ID] = &known{s, asked}
	return before, had, true
}

// noted keeps the newest time that Nova gave.
func (w *watch) noted(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.After(w.newest) {
		w.newest = at
	}
}

// bury notes that a server is gone for good; it gives what was known of it.
func (w *watch) bury(id string) (before server, had bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buryLocked(id)
}

func (w *watch) buryLocked(id string) (before server, had bool) {
	if k, ok := w.servers[id]; ok {
		before, had = k.server, true
		if w.made[before.Name] == id {
			delete(w.made, before.Name)
		}
	}
	delete(w.servers, id)
	delete(w.unnamed, id)
	w.gone[id] = time.Now()
	return before, had
}

// wake tells those who wait that they should look again.
func (w *watch) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
}

// await looks, after each list and each change, until done says so or ctx ends.
// While somebody waits the lists come quickly.
func (w *watch) await(ctx context.Context, done func() bool) error {
	w.mu.Lock()
	w.waiting++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.waiting--
		w.mu.Unlock()
	}()
	select {
	case w.kick <- struct{}{}:
	default:
	}
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// poll lists again and again: quickly while something changes, slowly else, and
// ever more slowly while the cloud is away.
func (d *Driver) poll() {
	t := d.cfg.times
	failures := 0
	next := time.Now()
	for {
		timer := time.NewTimer(time.Until(next))
		select {
		case <-d.running.Done():
			timer.Stop()
			return
		case <-d.watch.kick:
			timer.Stop()
			// Nothing has happened yet to what somebody began to wait for just now.
			if soon := time.Now().Add(t.busy); failures == 0 && soon.Before(next) {
				next = soon
			}
			continue
		case <-timer.C:
		}
		began := time.Now()
		err := d.refresh(d.running)
		switch {
		case d.running.Err() != nil:
			return
		case err != nil:
			failures++
			next = time.Now().Add(min(t.busy<<min(failures, 10), t.maxInterval))
			if failures == 1 {
				d.log.Warn("servers cannot be listed; it is tried again", "err", err)
			}
			continue
		case failures > 0:
			d.log.Info("servers can be listed again")
		}
		failures, next = 0, began.Add(t.idle)
		if d.watch.busy(d.cfg.Owner) {
			next = began.Add(t.busy)
		}
		// Lists that take long are what the cloud is busy with: at most half of the time.
		if least := time.Now().Add(max(t.busy/2, time.Since(began))); next.Before(least) {
			next = least
		}
		d.dropDoubles()
	}
}

// busy reports whether something is about to change.
func (w *watch) busy(owner string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting > 0 {
		return true
	}
	for _, k := range w.servers {
		if k.owner() == owner && !k.settled() {
			return true
		}
	}
	return false
}

// refresh returns once what is known is as of now or later.
func (d *Driver) refresh(ctx context.Context) error {
	ctx, cancel := d.bind(ctx)
	defer cancel()
	err := d.watch.do(ctx, d.list)
	d.watch.wake()
	if err != nil {
		return d.failed("list servers", err)
	}
	return nil
}

// overlap is by how much two lists of changes overlap, beyond what the list itself
// took: the times in Nova's database are those of several machines. What a worse
// clock hides is found by the next whole list.
const overlap = 20 * time.Second

// list reads the servers that changed since the last list, or all of them: at
// first, every few minutes, and where the cloud does not tell its time.
func (d *Driver) list(ctx context.Context) error {
	w := d.watch
	asked := time.Now()
	w.mu.Lock()
	query := url.Values{}
	full := w.since.IsZero() || asked.Sub(w.fullAt) > d.cfg.times.full
	if !full {
		query.Set("changes-since", w.since.UTC().Format(time.RFC3339))
	}
	w.mu.Unlock()
	found, date, err := d.read(ctx, query)
	if err != nil {
		return err
	}
	missing := d.merge(found, asked, full)
	for _, id := range missing { // absence from one list proves nothing
		if err := d.look(ctx, id); err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.goodAt = asked
	// A gateway before Nova may tell another time than Nova notes. What was noted
	// last was noted by now: that bounds the difference.
	w.since = time.Time{}
	if !date.IsZero() && !w.newest.IsZero() {
		w.ahead = min(w.ahead, max(date.Sub(w.newest), 0))
		w.since = date.Add(-w.ahead - overlap)
	}
	if full {
		w.fullAt = asked
		for id, at := range w.gone {
			if asked.Sub(at) > 2*d.cfg.times.full {
				delete(w.gone, id)
			}
		}
	}
	return nil
}

// merge notes what a list told, and gives the ids of servers that a whole list
// should have had.
func (d *Driver) merge(found []server, asked time.Time, full bool) (missing []string) {
	there := map[string]bool{}
	for _, s := range found {
		there[s.ID] = true
		d.watch.noted(s.Updated)
		if s.Status == "DELETED" {
			d.lost(s.ID)
			continue
		}
		before, had, took := d.watch.put(s, asked)
		if took && had {
			d.compare(before, s)
		}
	}
	if !full {
		return nil
	}
	d.watch.mu.Lock()
	defer d.watch.mu.Unlock()
	for id, k := range d.watch.servers {
		if !there[id] && !k.asked.After(asked) {
			missing = append(missing, id)
		}
	}
	for id := range d.watch.unnamed {
		if !there[id] {
			delete(d.watch.unnamed, id)
		}
	}
	return missing
}

// compare tells of a server of ours that stopped or failed by itself.
func (d *Driver) compare(before, now server) {
	was, is := before.state(), now.state()
	if was == cloud.StateBuilding && is == cloud.StateRunning && d.cfg.BootFromVolume && !d.names.Making(now.Name) && !d.names.Ending(now.Name) { // its create was left
		d.start(func() { d.nameVolumes(d.running, now) })
	}
	if now.owner() != d.cfg.Owner || now.kept() || d.names.Ending(now.Name) || was == is || was != cloud.StateRunning && was != cloud.StateBuilding {
		return
	}
	switch is {
	case cloud.StateStopped:
		d.tell(cloud.Event{VM: now.Name, State: is, Reason: "its server is " + now.Status})
	case cloud.StateError:
		d.start(func() { // off the list's way, as it may take some calls
			d.tell(cloud.Event{VM: now.Name, State: is, Reason: d.faultOf(d.running, now)})
		})
	}
}

// lost notes that a server is gone, and tells so if it was ours and we did not ask
// for it.
func (d *Driver) lost(id string) {
	before, had := d.watch.bury(id)
	if had && before.owner() == d.cfg.Owner && !d.names.Ending(before.Name) {
		d.tell(cloud.Event{VM: before.Name, State: cloud.StateRemains, Reason: "its server was deleted, not by us"})
	}
	if had {
		d.spools.forget(id)
		d.volumesNamed.Delete(id)
	}
}

// look asks Nova for one server and notes the answer; KindNotFound: it is gone.
func (d *Driver) look(ctx context.Context, id string) error {
	asked := time.Now()
	var answer struct {
		Server server `json:"server"`
	}
	err := d.ask(ctx, "read a server", func(ctx context.Context, s *session) error {
		_, err := s.compute.Get(ctx, s.compute.ServiceURL("servers", id), &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
		if err == nil && answer.Server.ID != id {
			err = errNotNova
		}
		return err
	})
	if gpuserver.KindOf(err) == gpuserver.KindNotFound || err == nil && answer.Server.Status == "DELETED" {
		d.lost(id)
		d.watch.wake()
		return gpuserver.Errorf(gpuserver.KindNotFound, "cloud %s has no server %s any more", d.cfg.Name, id)
	}
	if err != nil {
		return err
	}
	before, had, took := d.watch.put(answer.Server, asked)
	if took && had {
		d.compare(before, answer.Server)
	}
	d.watch.wake()
	return nil
}

// errNotNova is an answer that is JSON, but not what Nova says.
var errNotNova = errors.New("its answer lacks what was asked for; something else than OpenStack may answer at this address")

// pageSize is how many servers are asked for at once; the cloud may give fewer.
const pageSize = 1000

// read lists servers, page by page, and gives the cloud's time before it began.
// The next page is asked for by the last server's id: the link that Nova gives may
// lead past a gateway.
func (d *Driver) read(ctx context.Context, query url.Values) (found []server, date time.Time, err error) {
	query.Set("limit", strconv.Itoa(pageSize))
	for {
		var page struct {
			Servers []server `json:"servers"`
			Links   []struct {
				Rel string `json:"rel"`
			} `json:"servers_links"`
		}
		began := time.Now()
		var header http.Header
		err := d.ask(ctx, "list servers", func(ctx context.Context, s *session) error {
			resp, err := s.compute.Get(ctx, s.compute.ServiceURL("servers", "detail")+"?"+query.Encode(), &page, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
			if err == nil && page.Servers == nil { // no list is not an empty one
				err = errNotNova
			}
			if err == nil {
				header = resp.Header
			}
			return err
		})
		if err != nil {
			return nil, time.Time{}, err
		}
		if date.IsZero() {
			if date, err = http.ParseTime(header.Get("Date")); err == nil {
				date = date.Add(-time.Since(began))
			}
		}
		found = append(found, page.Servers...)
		more := slices.ContainsFunc(page.Links, func(l struct {
			Rel string `json:"rel"`
		},
		) bool {
			return l.Rel == "next"
		})
		if !more || len(page.Servers) == 0 {
			return found, date, nil
		}
		query.Set("marker", page.Servers[len(page.Servers)-1].ID)
	}
}

// dropDoubles deletes servers that a create of ours made although its answer was
// lost and it was repeated: Nova may act on a request long after its connection
// broke.
func (d *Driver) dropDoubles() {
	w := d.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, k := range w.servers {
		first, ours := w.made[k.Name]
		if !ours || first == id || k.owner() != d.cfg.Owner || k.Task == "deleting" || w.servers[first] == nil {
			continue
		}
		d.log.Warn("a create whose answer was lost made a second server; it is deleted", "vm", k.Name, "server", id, "kept", first)
		d.start(func() {
			if err := d.sendDelete(d.running, id); err != nil {
				d.log.Warn("a second server cannot be deleted; it is tried again", "server", id, "err", err)
			}
		})
	}
}
