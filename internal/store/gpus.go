package store

import (
	"gpuserver"
)

const gpuColumns = `gpus.id, gpus.cloud, gpus.host, gpus.address, gpus.model, gpus.vendor_id, gpus.device_id, gpus.uuid, gpus.serial,
 gpus.state, gpus.reason, gpus.strikes, gpus.struck_at, gpus.rest_until, gpus.link_width, gpus.first_seen, gpus.last_seen, gpus.state_at`

func scanGPU(r scanner) (g gpuserver.GPU, err error) {
	var struck, rest, first, last, state int64
	err = r.Scan(&g.ID, &g.Cloud, &g.Host, &g.Address, &g.Model, &g.VendorID, &g.DeviceID, &g.UUID, &g.Serial,
		&g.State, &g.Reason, &g.Strikes, &struck, &rest, &g.LinkWidth, &first, &last, &state)
	g.StruckAt, g.RestUntil = fromNanos(struck), fromNanos(rest)
	g.FirstSeen, g.LastSeen, g.StateAt = fromNanos(first), fromNanos(last), fromNanos(state)
	return g, err
}

func gpuArgs(g *gpuserver.GPU) []any {
	return []any{
		g.Cloud, g.Host, g.Address, g.Model, g.VendorID, g.DeviceID, g.UUID, g.Serial, g.State, g.Reason, g.Strikes,
		nanos(g.StruckAt), nanos(g.RestUntil), g.LinkWidth, nanos(g.FirstSeen), nanos(g.LastSeen), nanos(g.StateAt),
	}
}

func (tx *Tx) gpus(rest string, args ...any) (gs []gpuserver.GPU, err error) {
	err = tx.each(`SELECT `+gpuColumns+` FROM gpus `+rest, args, func(r scanner) error {
		g, err := scanGPU(r)
		gs = append(gs, g)
		return err
	})
	return gs, err
}

func (tx *Tx) oneGPU(where string, args ...any) (g gpuserver.GPU, err error) {
	err = tx.one("such GPU", `SELECT `+gpuColumns+` FROM gpus WHERE `+where, args, func(r scanner) (err error) {
		g, err = scanGPU(r)
		return err
	})
	return g, err
}

// GPUs gives all cards that we ever met, by place.
func (tx *Tx) GPUs() ([]gpuserver.GPU, error) { return tx.gpus(`ORDER BY cloud, host, address, id`) }

// GPU gives one card, KindNotFound if there is none.
func (tx *Tx) GPU(id gpuserver.GPUID) (gpuserver.GPU, error) { return tx.oneGPU(`id = ?`, id) }

// GPUAt finds the card at a place: a BDF address of a host of a cloud.
func (tx *Tx) GPUAt(cloud, host, address string) (gpuserver.GPU, error) {
	return tx.oneGPU(`cloud = ? AND host = ? AND address = ? AND address <> ''`, cloud, host, address)
}

// GPUByUUID finds a card by the UUID that its driver tells.
func (tx *Tx) GPUByUUID(uuid string) (gpuserver.GPU, error) {
	return tx.oneGPU(`uuid = ? AND uuid <> ''`, uuid)
}

// SaveGPU writes a card; a new one (ID 0) gets its ID, the state in service
// unless it has one, and its times. Two cards at one place, or with one UUID,
// are an error. The row is not compared with what it was: read it in the same
// transaction.
func (tx *Tx) SaveGPU(g *gpuserver.GPU) error {
	if g.ID == 0 {
		return tx.insertGPU(g)
	}
	n, err := tx.execN(`UPDATE gpus SET (cloud, host, address, model, vendor_id, device_id, uuid, serial, state, reason, strikes,
 struck_at, rest_until, link_width, first_seen, last_seen, state_at) = (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) WHERE id = ?`, append(gpuArgs(g), g.ID)...)
	if err == nil && n == 0 {
		return gpuserver.Errorf(gpuserver.KindNotFound, "there is no such GPU")
	}
	tx.changes = append(tx.changes, Change{GPU: g.ID})
	return err
}

func (tx *Tx) insertGPU(g *gpuserver.GPU) error {
	if g.State == "" {
		g.State = gpuserver.GPUInService
	}
	if g.FirstSeen.IsZero() {
		g.FirstSeen = tx.Now
	}
	if g.LastSeen.IsZero() {
		g.LastSeen = tx.Now
	}
	if g.StateAt.IsZero() {
		g.StateAt = tx.Now
	}
	id, err := tx.insert(`INSERT INTO gpus (cloud, host, address, model, vendor_id, device_id, uuid, serial, state, reason, strikes,
 struck_at, rest_until, link_width, first_seen, last_seen, state_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, gpuArgs(g)...)
	if err != nil {
		return err
	}
	g.ID = gpuserver.GPUID(id)
	tx.changes = append(tx.changes, Change{GPU: g.ID})
	return nil
}

// MergeGPU makes one card of two rows that turned out to be the same: what
// happened to from happened to into, and from is gone.
func (tx *Tx) MergeGPU(from, into gpuserver.GPUID) error {
	for _, q := range []string{
		`UPDATE gpu_events SET gpu = ?2 WHERE gpu = ?1`,
		`INSERT OR IGNORE INTO vm_gpus (vm, gpu) SELECT vm, ?2 FROM vm_gpus WHERE gpu = ?1`,
	} {
		if err := tx.exec(q, from, into); err != nil {
			return err
		}
	}
	for _, q := range []string{`DELETE FROM vm_gpus WHERE gpu = ?`, `DELETE FROM gpus WHERE id = ?`} {
		if err := tx.exec(q, from); err != nil {
			return err
		}
	}
	tx.changes = append(tx.changes, Change{GPU: from}, Change{GPU: into})
	return nil
}

// AddGPUEvent adds a line to a card's history; At defaults to Now.
func (tx *Tx) AddGPUEvent(e gpuserver.GPUEvent) error {
	if e.At.IsZero() {
		e.At = tx.Now
	}
	err := tx.exec(`INSERT INTO gpu_events (at, gpu, vm, job, kind, text, points) VALUES (?,?,?,?,?,?,?)`,
		nanos(e.At), e.GPU, e.VM, e.Job, e.Kind, e.Text, e.Points)
	tx.changes = append(tx.changes, Change{GPU: e.GPU})
	return err
}

// GPUEvents gives a card's history, newest first; at most limit lines.
func (tx *Tx) GPUEvents(id gpuserver.GPUID, limit int) (es []gpuserver.GPUEvent, err error) {
	err = tx.each(`SELECT id, at, gpu, vm, job, kind, text, points FROM gpu_events WHERE gpu = ? ORDER BY id DESC LIMIT ?`, []any{id, limit}, func(r scanner) error {
		var e gpuserver.GPUEvent
		var at int64
		err := r.Scan(&e.ID, &at, &e.GPU, &e.VM, &e.Job, &e.Kind, &e.Text, &e.Points)
		e.At = fromNanos(at)
		es = append(es, e)
		return err
	})
	return es, err
}

// AddVMGPU records that a VM has a card; one that is recorded changes nothing.
func (tx *Tx) AddVMGPU(vm gpuserver.VMID, gpu gpuserver.GPUID) error {
	return tx.exec(`INSERT OR IGNORE INTO vm_gpus (vm, gpu) VALUES (?,?)`, vm, gpu)
}

// DropVMGPU takes back that a VM has a card: it turned out to be another.
func (tx *Tx) DropVMGPU(vm gpuserver.VMID, gpu gpuserver.GPUID) error {
	return tx.exec(`DELETE FROM vm_gpus WHERE vm = ? AND gpu = ?`, vm, gpu)
}

// GPUsOfVM gives the cards that a VM has or had, by place.
func (tx *Tx) GPUsOfVM(v gpuserver.VMID) ([]gpuserver.GPU, error) {
	return tx.gpus(`JOIN vm_gpus ON gpu = gpus.id WHERE vm = ? ORDER BY cloud, host, address, gpus.id`, v)
}

// GPUsOfJob gives the cards of all VMs that were made for a job or that ran it,
// by place.
func (tx *Tx) GPUsOfJob(j gpuserver.JobID) ([]gpuserver.GPU, error) {
	return tx.gpus(`WHERE gpus.id IN (SELECT gpu FROM vm_gpus JOIN vms ON vms.id = vm_gpus.vm WHERE vms.made_for = ?1 AND ?1 <> 0
 UNION SELECT gpu FROM vm_gpus JOIN vms ON vms.id = vm_gpus.vm WHERE vms.assigned = ?1 AND vms.assigned <> 0) ORDER BY cloud, host, address, gpus.id`, j)
}

// VMsOfGPU gives the VMs that have or had a card, newest first; at most limit.
func (tx *Tx) VMsOfGPU(id gpuserver.GPUID, limit int) ([]gpuserver.VM, error) {
	return tx.vms(`id IN (SELECT vm FROM vm_gpus WHERE gpu = ?) ORDER BY id DESC LIMIT ?`, id, limit)
}
