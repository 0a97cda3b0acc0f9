package store

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuserver"
)

const vmColumns = `id, name, cloud, host, flavor, image, state, reason, made_for, assigned, cloud_id, resource, entry, forge,
 runner_name, runner_id, runner_attempt, runner_state, runner_scope, runner_labels, token_hash, guest, tries,
 created_at, state_at, boot_deadline, job_deadline, heartbeat_at, next_try_at, interrupted_at, reserved`

// vmSelect reads a VM with the claims of its lease.
const vmSelect = `SELECT ` + vmColumns + `,
 coalesce((SELECT json_group_array(json_object('group', slot, 'cards', json(cards)) ORDER BY slot) FROM claims WHERE claims.vm = vms.id), '[]') FROM vms WHERE `

func scanVM(r scanner) (gpuserver.VM, error) {
	var v gpuserver.VM
	var entry, scope, labels, guest, claims string
	var created, stateAt, boot, job, beat, next, interrupted int64
	err := r.Scan(&v.ID, &v.Name, &v.Cloud, &v.Host, &v.Flavor, &v.Image, &v.State, &v.Reason, &v.MadeFor, &v.Assigned, &v.CloudID, &v.Resource, &entry, &v.Forge,
		&v.Runner.Name, &v.Runner.ID, &v.Runner.Attempt, &v.Runner.State, &scope, &labels, &v.TokenHash, &guest, &v.Tries,
		&created, &stateAt, &boot, &job, &beat, &next, &interrupted, &v.Reserved, &claims)
	if err != nil {
		return v, err
	}
	for _, f := range []struct {
		s string
		v any
	}{{entry, &v.Entry}, {scope, &v.Runner.Scope}, {labels, &v.Runner.Labels}, {guest, &v.Guest}, {claims, &v.Claims}} {
		if err := json.Unmarshal([]byte(f.s), f.v); err != nil {
			return v, err
		}
	}
	if len(v.Claims) == 0 {
		v.Claims = nil
	}
	v.CreatedAt, v.StateAt, v.BootDeadline, v.JobDeadline = fromNanos(created), fromNanos(stateAt), fromNanos(boot), fromNanos(job)
	v.HeartbeatAt, v.NextTryAt, v.InterruptedAt = fromNanos(beat), fromNanos(next), fromNanos(interrupted)
	return v, nil
}

func vmArgs(v *gpuserver.VM) []any {
	return []any{
		v.Name, v.Cloud, v.Host, v.Flavor, v.Image, v.State, v.Reason, v.MadeFor, v.Assigned, v.CloudID, v.Resource, text(v.Entry), v.Forge,
		v.Runner.Name, v.Runner.ID, v.Runner.Attempt, v.Runner.State, text(v.Runner.Scope), text(v.Runner.Labels), v.TokenHash, text(v.Guest), v.Tries,
		nanos(v.CreatedAt), nanos(v.StateAt), nanos(v.BootDeadline), nanos(v.JobDeadline), nanos(v.HeartbeatAt), nanos(v.NextTryAt), nanos(v.InterruptedAt), v.Reserved,
	}
}

// InsertVM stores a new VM in state leased together with its lease, and sets
// its ID and, by name(id), its name: both are committed before any call.
func (tx *Tx) InsertVM(v *gpuserver.VM, name func(gpuserver.VMID) string, l gpuserver.Lease) error {
	v.State, v.CreatedAt, v.StateAt = gpuserver.VMLeased, tx.Now, tx.Now
	// The name holds the id, which the insert gives; until then it is unique by the next one.
	var next int64
	if err := tx.one("sequence", `SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'vms'), 0) + 1`, nil, func(r scanner) error { return r.Scan(&next) }); err != nil {
		return err
	}
	v.ID = gpuserver.VMID(next)
	v.Name = name(v.ID)
	_, err := tx.insert(`INSERT INTO vms (`+vmColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, append([]any{v.ID}, vmArgs(v)...)...)
	if err != nil {
		return err
	}
	err = tx.exec(`INSERT INTO leases (vm, cloud, host, vcpus, memory_mib, disk_gib, taken_at, released_at) VALUES (?,?,?,?,?,?,?,0)`,
		v.ID, l.Cloud, l.Host, l.VCPUs, l.MemoryMiB, l.DiskGiB, nanos(tx.Now))
	if err != nil {
		return err
	}
	if err := tx.claim(v, l); err != nil {
		return err
	}
	tx.changes = append(tx.changes, Change{VM: v.ID, VMState: v.State})
	return tx.AddEvent(gpuserver.Event{Job: v.MadeFor, VM: v.ID, Kind: "vm.leased", Text: v.Name + " on " + v.Cloud + "/" + v.Host + cardWords(v.Claims)})
}

// claim takes the slots of a lease, whole. One that another lease holds is
// KindConflict, and nothing is stored.
func (tx *Tx) claim(v *gpuserver.VM, l gpuserver.Lease) error {
	for _, c := range l.Claims {
		n, err := tx.execN(`INSERT INTO claims (vm, cloud, host, slot, cards, released_at) SELECT ?,?,?,?,?,0
 WHERE NOT EXISTS (SELECT 1 FROM claims WHERE cloud = ? AND host = ? AND slot = ? AND released_at = 0)`,
			v.ID, l.Cloud, l.Host, c.Group, text(c.Cards), l.Cloud, l.Host, c.Group)
		if err != nil {
			return err
		}
		if n == 0 {
			return gpuserver.Errorf(gpuserver.KindConflict, "group %d of %s/%s is held by another VM", c.Group, l.Cloud, l.Host)
		}
	}
	v.Claims = l.Claims
	return nil
}

// cardWords says which cards a VM has, for its history.
func cardWords(claims []gpuserver.Claim) string {
	if len(claims) == 0 {
		return ""
	}
	var cards []string
	hidden := 0 // which the cloud chooses, and does not name
	for _, c := range claims {
		if strings.Join(c.Cards, "") == "" {
			hidden += len(c.Cards)
			continue
		}
		cards = append(cards, fmt.Sprintf("%s of group %d", strings.Join(c.Cards, " and "), c.Group))
	}
	switch {
	case len(cards) > 0:
		return " with GPU " + strings.Join(cards, ", ")
	case hidden == 1:
		return " with a GPU of the cloud's choice"
	}
	return fmt.Sprintf(" with %d GPUs of the cloud's choice", hidden)
}

// SaveVM writes v's fields without moving its state. KindConflict: the VM is in
// another state by now.
func (tx *Tx) SaveVM(v *gpuserver.VM) error { return tx.saveVM(v, v.State) }

// MoveVM moves v to state to, with the event that explains it. A move that the
// table does not allow, or from a state that the VM has left, is KindConflict
// and changes nothing. The move to gone releases the lease.
func (tx *Tx) MoveVM(v *gpuserver.VM, to gpuserver.VMState, why string) error {
	from := v.State
	if !slices.Contains(gpuserver.VMMoves[from], to) {
		return gpuserver.Errorf(gpuserver.KindConflict, "VM %s cannot go from %s to %s", v.Name, from, to)
	}
	old := *v
	v.State, v.StateAt, v.Tries, v.NextTryAt = to, tx.Now, 0, time.Time{}
	if to == gpuserver.VMGone {
		v.TokenHash = ""
		for _, table := range []string{"leases", "claims"} {
			if err := tx.exec(`UPDATE `+table+` SET released_at = ? WHERE vm = ? AND released_at = 0`, nanos(tx.Now), v.ID); err != nil {
				return err
			}
		}
	}
	if err := tx.saveVM(v, from); err != nil {
		*v = old
		return err
	}
	job := v.Assigned
	if job == 0 {
		job = v.MadeFor
	}
	return tx.AddEvent(gpuserver.Event{Job: job, VM: v.ID, Kind: "vm." + string(to), Text: why})
}

func (tx *Tx) saveVM(v *gpuserver.VM, from gpuserver.VMState) error {
	n, err := tx.execN(`UPDATE vms SET (`+strings.TrimPrefix(vmColumns, "id, ")+`) = (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) WHERE id = ? AND state = ?`,
		append(vmArgs(v), v.ID, from)...)
	if err != nil {
		return err
	}
	if n == 0 {
		return gpuserver.Errorf(gpuserver.KindConflict, "VM %s is no longer %s", v.Name, from)
	}
	tx.changes = append(tx.changes, Change{VM: v.ID, VMState: v.State})
	return nil
}

func (tx *Tx) oneVM(where string, args ...any) (v gpuserver.VM, err error) {
	err = tx.one("such VM", vmSelect+where, args, func(r scanner) (err error) {
		v, err = scanVM(r)
		return err
	})
	return v, err
}

func (tx *Tx) vms(where string, args ...any) (vs []gpuserver.VM, err error) {
	err = tx.each(vmSelect+where, args, func(r scanner) error {
		v, err := scanVM(r)
		vs = append(vs, v)
		return err
	})
	return vs, err
}

// VM gives one VM, KindNotFound if there is none.
func (tx *Tx) VM(id gpuserver.VMID) (gpuserver.VM, error) { return tx.oneVM(`id = ?`, id) }

// VMByName finds a VM by its name.
func (tx *Tx) VMByName(name string) (gpuserver.VM, error) { return tx.oneVM(`name = ?`, name) }

// VMByRunner finds the VM whose present registration has this name.
func (tx *Tx) VMByRunner(forge, name string) (gpuserver.VM, error) {
	return tx.oneVM(`runner_name = ? AND runner_name <> '' AND forge = ?`, name, forge)
}

// VMByToken finds the VM that an agent token (by its SHA-256, hex) speaks for.
func (tx *Tx) VMByToken(hash string) (gpuserver.VM, error) {
	return tx.oneVM(`token_hash = ? AND token_hash <> ''`, hash)
}

// VMsFor gives the VMs alive that were made for a job.
func (tx *Tx) VMsFor(j gpuserver.JobID) ([]gpuserver.VM, error) {
	return tx.vms(`made_for = ? AND state <> 'gone' ORDER BY id`, j)
}

// AliveVMs gives all VMs that are not gone.
func (tx *Tx) AliveVMs() ([]gpuserver.VM, error) { return tx.vms(`state <> 'gone' ORDER BY id`) }

// ListVMs gives VMs, newest first; the gone ones too if all is set.
func (tx *Tx) ListVMs(all bool, limit int) ([]gpuserver.VM, error) {
	if all {
		return tx.vms(`1 ORDER BY id DESC LIMIT ?`, limit)
	}
	return tx.vms(`state <> 'gone' ORDER BY id DESC LIMIT ?`, limit)
}

// VMCounts gives the number of VMs alive by cloud and state.
func (tx *Tx) VMCounts() (map[string]map[gpuserver.VMState]int, error) {
	m := map[string]map[gpuserver.VMState]int{}
	err := tx.each(`SELECT cloud, state, count(*) FROM vms WHERE state <> 'gone' GROUP BY cloud, state`, nil, func(r scanner) error {
		var c string
		var s gpuserver.VMState
		var n int
		err := r.Scan(&c, &s, &n)
		if m[c] == nil {
			m[c] = map[gpuserver.VMState]int{}
		}
		m[c][s] = n
		return err
	})
	return m, err
}

// Usage is what the held leases take of one host.
type Usage struct {
	Cloud, Host string
	VMs         int
	VCPUs       int
	MemoryMiB   int64
	DiskGiB     int64
	Slots       []HeldSlot
}

// HeldSlot is a slot that a lease holds, and by whom.
type HeldSlot struct {
	Group  int
	VM     string    // its name
	Until  time.Time // when its job ends at the latest; zero: not known
	VCPUs  int       // of the VM
	Flavor string    // of the VM
}

// Usages sums the held leases by host.
func (tx *Tx) Usages() (us []Usage, err error) {
	err = tx.each(`SELECT cloud, host, count(*), sum(vcpus), sum(memory_mib), sum(disk_gib) FROM leases WHERE released_at = 0 GROUP BY cloud, host`, nil, func(r scanner) error {
		var u Usage
		err := r.Scan(&u.Cloud, &u.Host, &u.VMs, &u.VCPUs, &u.MemoryMiB, &u.DiskGiB)
		us = append(us, u)
		return err
	})
	if err != nil {
		return us, err
	}
	return us, tx.each(`SELECT c.cloud, c.host, c.slot, v.name, v.job_deadline, l.vcpus, v.flavor FROM claims c JOIN vms v ON v.id = c.vm JOIN leases l ON l.vm = c.vm
 WHERE c.released_at = 0 ORDER BY c.cloud, c.host, c.slot`, nil, func(r scanner) error {
		var cloud, host string
		var s HeldSlot
		var until int64
		err := r.Scan(&cloud, &host, &s.Group, &s.VM, &until, &s.VCPUs, &s.Flavor)
		s.Until = fromNanos(until)
		if i := slices.IndexFunc(us, func(u Usage) bool { return u.Cloud == cloud && u.Host == host }); i >= 0 {
			us[i].Slots = append(us[i].Slots, s)
		}
		return err
	})
}

// Lease gives the lease of a VM, released or not.
func (tx *Tx) Lease(vm gpuserver.VMID) (l gpuserver.Lease, err error) {
	err = tx.one("such lease", `SELECT vm, cloud, host, vcpus, memory_mib, disk_gib, taken_at, released_at FROM leases WHERE vm = ?`, []any{vm}, func(r scanner) error {
		var taken, released int64
		err := r.Scan(&l.VM, &l.Cloud, &l.Host, &l.VCPUs, &l.MemoryMiB, &l.DiskGiB, &taken, &released)
		l.TakenAt, l.ReleasedAt = fromNanos(taken), fromNanos(released)
		return err
	})
	if err != nil {
		return l, err
	}
	v, err := tx.VM(vm)
	l.Claims = v.Claims
	return l, err
}
