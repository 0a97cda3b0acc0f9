package store

import (
	"context"
	"time"

	"gpuserver"
)

// Delivery is one event as the forge sent it.
type Delivery struct {
	Forge      string
	GUID       string // the forge's id of the delivery; a replay carries the same
	Name       string // "workflow_job.queued"
	Outcome    string // what became of it: job, recheck, other, foreign, bad
	Job        gpuserver.JobID
	ReceivedAt time.Time
	Body       []byte // nil where it is nothing to us
}

// SeenDelivery reports whether a delivery was stored before.
func (tx *Tx) SeenDelivery(forge, guid string) (seen bool, err error) {
	err = tx.each(`SELECT 1 FROM deliveries WHERE forge = ? AND guid = ?`, []any{forge, guid}, func(scanner) error {
		seen = true
		return nil
	})
	return seen, err
}

// AddDelivery stores a delivery; one that was stored before changes nothing.
func (tx *Tx) AddDelivery(d Delivery) error {
	return tx.exec(`INSERT INTO deliveries (forge, guid, name, outcome, job, received_at, body) VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`,
		d.Forge, d.GUID, d.Name, d.Outcome, d.Job, nanos(d.ReceivedAt), d.Body)
}

// AddEvent adds a line to a job's or VM's history; At defaults to Now.
func (tx *Tx) AddEvent(e gpuserver.Event) error {
	if e.At.IsZero() {
		e.At = tx.Now
	}
	return tx.exec(`INSERT INTO events (at, job, vm, kind, text) VALUES (?,?,?,?,?)`, nanos(e.At), e.Job, e.VM, e.Kind, e.Text)
}

// AddPhase records that job passed a phase at a time, once: later reports of
// the same phase for the same VM change nothing.
func (tx *Tx) AddPhase(job gpuserver.JobID, vm gpuserver.VMID, phase string, at time.Time) error {
	return tx.exec(`INSERT INTO events (at, job, vm, kind, text) SELECT ?,?,?,?,'' WHERE NOT EXISTS (SELECT 1 FROM events WHERE job = ? AND job <> 0 AND vm = ? AND kind = ?)`,
		nanos(at), job, vm, phase, job, vm, phase)
}

func (tx *Tx) events(where string, args ...any) (es []gpuserver.Event, err error) {
	err = tx.each(`SELECT id, at, job, vm, kind, text FROM events WHERE `+where, args, func(r scanner) error {
		var e gpuserver.Event
		var at int64
		err := r.Scan(&e.ID, &at, &e.Job, &e.VM, &e.Kind, &e.Text)
		e.At = fromNanos(at)
		es = append(es, e)
		return err
	})
	return es, err
}

// JobEvents gives a job's history, oldest first.
func (tx *Tx) JobEvents(j gpuserver.JobID) ([]gpuserver.Event, error) {
	return tx.events(`job = ? AND job <> 0 ORDER BY id`, j)
}

// VMEvents gives a VM's history, oldest first.
func (tx *Tx) VMEvents(v gpuserver.VMID) ([]gpuserver.Event, error) {
	return tx.events(`vm = ? AND vm <> 0 ORDER BY id`, v)
}

// Setting gives a value of this installation, "" if it was never set.
func (tx *Tx) Setting(key string) (value string, err error) {
	err = tx.each(`SELECT value FROM settings WHERE key = ?`, []any{key}, func(r scanner) error { return r.Scan(&value) })
	return value, err
}

// SetSetting stores a value of this installation.
func (tx *Tx) SetSetting(key, value string) error {
	return tx.exec(`INSERT INTO settings (key, value) VALUES (?,?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
}

// Check is what we wrote on the forge about a job.
type Check struct {
	Job       gpuserver.JobID
	CheckID   int64 // 0: none made yet
	Class     gpuserver.ReasonClass
	Text      string
	Concluded bool
	WrittenAt time.Time
}

// Check gives the check run of a job; the zero Check if there is none.
func (tx *Tx) Check(j gpuserver.JobID) (c Check, err error) {
	err = tx.each(`SELECT job, check_id, class, text, concluded, written_at FROM checks WHERE job = ?`, []any{j}, func(r scanner) error {
		var at int64
		err := r.Scan(&c.Job, &c.CheckID, &c.Class, &c.Text, &c.Concluded, &at)
		c.WrittenAt = fromNanos(at)
		return err
	})
	return c, err
}

// SaveCheck stores what was written.
func (tx *Tx) SaveCheck(c Check) error {
	return tx.exec(`INSERT INTO checks (job, check_id, class, text, concluded, written_at) VALUES (?,?,?,?,?,?)
 ON CONFLICT (job) DO UPDATE SET check_id = excluded.check_id, class = excluded.class, text = excluded.text, concluded = excluded.concluded, written_at = excluded.written_at`,
		c.Job, c.CheckID, c.Class, c.Text, c.Concluded, nanos(c.WrittenAt))
}

// OpenChecks gives the jobs whose check run was made and not concluded.
func (tx *Tx) OpenChecks() (cs []Check, err error) {
	err = tx.each(`SELECT job, check_id, class, text, concluded, written_at FROM checks WHERE concluded = 0`, nil, func(r scanner) error {
		var c Check
		var at int64
		err := r.Scan(&c.Job, &c.CheckID, &c.Class, &c.Text, &c.Concluded, &at)
		c.WrittenAt = fromNanos(at)
		cs = append(cs, c)
		return err
	})
	return cs, err
}

// HeldImage is an image that is not used because its runners kept ending
// without a job.
type HeldImage struct {
	Name     string
	Failures int
	HeldAt   time.Time // zero: not held
	Reason   string
}

// Images gives all images with failures in a row, held or not.
func (tx *Tx) Images() (hs []HeldImage, err error) {
	err = tx.each(`SELECT name, failures, held_at, reason FROM images WHERE failures > 0 OR held_at > 0 ORDER BY name`, nil, func(r scanner) error {
		var h HeldImage
		var at int64
		err := r.Scan(&h.Name, &h.Failures, &at, &h.Reason)
		h.HeldAt = fromNanos(at)
		hs = append(hs, h)
		return err
	})
	return hs, err
}

// CountImageFailure adds a failure in a row of an image and holds it at the
// bound, with the reason; it gives the image as it is now.
func (tx *Tx) CountImageFailure(name string, bound int, reason string) (h HeldImage, err error) {
	err = tx.exec(`INSERT INTO images (name, failures, held_at, reason) VALUES (?, 1, 0, '') ON CONFLICT (name) DO UPDATE SET failures = failures + 1`, name)
	if err == nil {
		err = tx.exec(`UPDATE images SET held_at = ?, reason = ? WHERE name = ? AND failures >= ? AND held_at = 0`, nanos(tx.Now), reason, name, bound)
	}
	if err != nil {
		return h, err
	}
	err = tx.one("such image", `SELECT name, failures, held_at, reason FROM images WHERE name = ?`, []any{name}, func(r scanner) error {
		var at int64
		err := r.Scan(&h.Name, &h.Failures, &at, &h.Reason)
		h.HeldAt = fromNanos(at)
		return err
	})
	return h, err
}

// ImageWorked ends an image's failures in a row. One that is held stays so:
// somebody was told and has to look.
func (tx *Tx) ImageWorked(name string) error {
	return tx.exec(`DELETE FROM images WHERE name = ? AND held_at = 0`, name)
}

// ClearImage forgets an image's failures and releases it.
func (tx *Tx) ClearImage(name string) error {
	return tx.exec(`DELETE FROM images WHERE name = ?`, name)
}

// Copy is the last good copy of something read from elsewhere.
type Copy struct {
	Key       string
	ETag      string
	Body      []byte
	FetchedAt time.Time
}

// Copy gives a stored copy, KindNotFound if there is none.
func (tx *Tx) Copy(key string) (c Copy, err error) {
	err = tx.one("such copy", `SELECT key, etag, body, fetched_at FROM copies WHERE key = ?`, []any{key}, func(r scanner) error {
		var at int64
		err := r.Scan(&c.Key, &c.ETag, &c.Body, &at)
		c.FetchedAt = fromNanos(at)
		return err
	})
	return c, err
}

// SaveCopy stores a copy.
func (tx *Tx) SaveCopy(c Copy) error {
	return tx.exec(`INSERT INTO copies (key, etag, body, fetched_at) VALUES (?,?,?,?)
 ON CONFLICT (key) DO UPDATE SET etag = excluded.etag, body = excluded.body, fetched_at = excluded.fetched_at`, c.Key, c.ETag, c.Body, nanos(c.FetchedAt))
}

// SeenRepo is a repository that sent a job of ours.
type SeenRepo struct {
	Forge          string
	Name           string
	RepoID         int64
	InstallationID int64
	SeenAt         time.Time
}

// SeeRepo notes that a repository sent a job of ours; it writes at most once a
// minute per repository.
func (tx *Tx) SeeRepo(r SeenRepo) error {
	return tx.exec(`INSERT INTO repos (forge, name, repo_id, installation_id, seen_at) VALUES (?,?,?,?,?)
 ON CONFLICT (forge, name) DO UPDATE SET seen_at = excluded.seen_at, repo_id = excluded.repo_id, installation_id = excluded.installation_id WHERE excluded.seen_at > seen_at + 60000000000`,
		r.Forge, r.Name, r.RepoID, r.InstallationID, nanos(tx.Now))
}

// ForgetRepo drops a repository that the forge no longer lets us see.
func (tx *Tx) ForgetRepo(forge, name string) error {
	return tx.exec(`DELETE FROM repos WHERE forge = ? AND name = ?`, forge, name)
}

// ForgetInstallation drops the repositories that were reached through an
// installation of ours that is gone.
func (tx *Tx) ForgetInstallation(forge string, id int64) error {
	return tx.exec(`DELETE FROM repos WHERE forge = ? AND installation_id = ?`, forge, id)
}

// SeenRepos gives the repositories of a forge seen since a time, latest first.
func (tx *Tx) SeenRepos(forge string, since time.Time) (rs []SeenRepo, err error) {
	err = tx.each(`SELECT forge, name, repo_id, installation_id, seen_at FROM repos WHERE forge = ? AND seen_at >= ? ORDER BY seen_at DESC`, []any{forge, nanos(since)}, func(r scanner) error {
		var s SeenRepo
		var at int64
		err := r.Scan(&s.Forge, &s.Name, &s.RepoID, &s.InstallationID, &at)
		s.SeenAt = fromNanos(at)
		rs = append(rs, s)
		return err
	})
	return rs, err
}

// Limits bound what the store keeps.
type Limits struct {
	Deliveries    time.Duration // ids and bodies of deliveries
	Jobs          time.Duration // jobs that are over, their VMs and events, what happened to cards, and cards that are nowhere
	MaxDeliveries int           // rows at most, whatever their age
	MaxBodies     int           // rows with a body at most
}

// Prune deletes what is older or more than the limits allow, a bounded number
// of rows at a time, and gives freed pages back to the file system. It returns
// how many rows it deleted; call it until that is 0.
func (db *DB) Prune(ctx context.Context, l Limits) (deleted int64, err error) {
	const batch = 250 // some 50 ms of the writer, for which deliveries wait
	err = db.UpdateLater(ctx, func(tx *Tx) error {
		deleted = 0
		old := func(d time.Duration) int64 { return nanos(tx.Now.Add(-d)) }
		for _, q := range []struct {
			sql  string
			args []any
		}{
			{`DELETE FROM deliveries WHERE id IN (SELECT id FROM (SELECT id, received_at FROM deliveries ORDER BY id LIMIT ?) WHERE received_at < ?)`, []any{batch, old(l.Deliveries)}},
			{`DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE id <= (SELECT max(id) FROM deliveries) - ? ORDER BY id LIMIT ?)`, []any{l.MaxDeliveries, batch}},
			{`UPDATE deliveries SET body = NULL WHERE id IN (SELECT id FROM deliveries WHERE body IS NOT NULL AND id <= (SELECT max(id) FROM deliveries) - ? ORDER BY id LIMIT ?)`, []any{l.MaxBodies, batch}},
			{`DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ? ORDER BY at LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM checks WHERE job IN (SELECT id FROM jobs WHERE ended_at <> 0 AND ended_at <= ? ORDER BY ended_at LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM reruns WHERE job IN (SELECT id FROM jobs WHERE ended_at <> 0 AND ended_at <= ? ORDER BY ended_at LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM claims WHERE vm IN (SELECT id FROM vms WHERE state = 'gone' AND state_at < ? ORDER BY id LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM leases WHERE vm IN (SELECT id FROM vms WHERE state = 'gone' AND state_at < ? ORDER BY id LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM vm_gpus WHERE vm IN (SELECT id FROM vms WHERE state = 'gone' AND state_at < ? ORDER BY id LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM gpu_events WHERE id IN (SELECT id FROM gpu_events WHERE at < ? ORDER BY at LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM gpus WHERE id IN (SELECT id FROM gpus WHERE address = '' AND last_seen < ? AND (uuid = '' OR state = 'in_service')
 AND NOT EXISTS (SELECT 1 FROM vm_gpus WHERE gpu = gpus.id) ORDER BY id LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM vms WHERE id IN (SELECT id FROM vms WHERE state = 'gone' AND state_at < ? ORDER BY id LIMIT ?)`, []any{old(l.Jobs), batch}},
			{`DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE ended_at <> 0 AND ended_at <= ? AND state IN ('done', 'failed', 'refused') ORDER BY ended_at LIMIT ?)`, []any{old(l.Jobs), batch}},
		} {
			n, err := tx.execN(q.sql, q.args...)
			if err != nil {
				return err
			}
			deleted += n
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	// With nothing left to delete the rest goes back, in steps as small.
	for free := int64(1); free > 0 && err == nil; {
		err = db.Update(ctx, func(tx *Tx) error {
			if err := tx.exec(`PRAGMA incremental_vacuum(1024)`); err != nil || deleted > 0 {
				free = 0
				return err
			}
			return tx.one("list of free pages", `PRAGMA freelist_count`, nil, func(r scanner) error { return r.Scan(&free) })
		})
	}
	return deleted, err
}
