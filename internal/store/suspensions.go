package store

import (
	"time"

	"gpuserver"
)

// Suspension is a flavor of which a cloud found no host for VMs in a row, though the
// ledger had room.
type Suspension struct {
	Cloud, Flavor string
	Failures      int       // in a row
	FirstAt       time.Time // of these failures
	LastAt        time.Time
	Reason        string         // why no VM of it is made there; the last failure while it is only counted
	SuspendedAt   time.Time      // zero: it is counted only, and VMs are made
	Until         time.Time      // from then on one VM is made to try
	Probe         gpuserver.VMID // that VM; 0: none was made since
}

// Suspended reports whether VMs are held back, and not only failures counted.
func (s Suspension) Suspended() bool { return !s.SuspendedAt.IsZero() }

const suspensionColumns = `cloud, flavor, failures, first_at, last_at, reason, suspended_at, until, probe`

func (tx *Tx) suspensions(rest string, args ...any) (ss []Suspension, err error) {
	err = tx.each(`SELECT `+suspensionColumns+` FROM suspensions `+rest, args, func(r scanner) error {
		var s Suspension
		var first, last, at, until int64
		err := r.Scan(&s.Cloud, &s.Flavor, &s.Failures, &first, &last, &s.Reason, &at, &until, &s.Probe)
		s.FirstAt, s.LastAt, s.SuspendedAt, s.Until = fromNanos(first), fromNanos(last), fromNanos(at), fromNanos(until)
		ss = append(ss, s)
		return err
	})
	return ss, err
}

// Suspensions gives all flavors that failed on a cloud, suspended or not, by cloud
// and flavor.
func (tx *Tx) Suspensions() ([]Suspension, error) { return tx.suspensions(`ORDER BY cloud, flavor`) }

// Suspension gives how a flavor stands on a cloud; without failures only the names
// are set.
func (tx *Tx) Suspension(cloud, flavor string) (Suspension, error) {
	ss, err := tx.suspensions(`WHERE cloud = ? AND flavor = ?`, cloud, flavor)
	if err != nil || len(ss) == 0 {
		return Suspension{Cloud: cloud, Flavor: flavor}, err
	}
	return ss[0], nil
}

// SaveSuspension stores how a flavor stands on a cloud.
func (tx *Tx) SaveSuspension(s Suspension) error {
	return tx.exec(`INSERT OR REPLACE INTO suspensions (`+suspensionColumns+`) VALUES (?,?,?,?,?,?,?,?,?)`,
		s.Cloud, s.Flavor, s.Failures, nanos(s.FirstAt), nanos(s.LastAt), s.Reason, nanos(s.SuspendedAt), nanos(s.Until), s.Probe)
}

// ClearSuspension forgets a flavor's failures on a cloud, and lets VMs be made.
func (tx *Tx) ClearSuspension(cloud, flavor string) error {
	return tx.exec(`DELETE FROM suspensions WHERE cloud = ? AND flavor = ?`, cloud, flavor)
}
