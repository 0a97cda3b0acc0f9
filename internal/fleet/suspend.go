package fleet

import (
	"context"
	"fmt"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud"
	"gpuserver/internal/sched"
	"gpuserver/internal/store"
)

// A cloud that chooses the hosts itself may find none although our ledger has room:
// a filter of its scheduler is off, an alias is wrong, no host is large enough. If
// that is so for one VM after another, each try only costs the jobs time. The flavor
// is then suspended on that cloud, which is an alarm; jobs go to the next of their
// entries. After a while one VM is made to see whether it works again.

// forgetNoHost is how long after its last failure a flavor's count begins anew.
const forgetNoHost = 24 * time.Hour

// countNoHost counts that v's cloud found no host for it, and suspends its flavor
// there at the bound. The failure of one that is suspended prolongs that.
func (f *Fleet) countNoHost(tx *store.Tx, v gpuserver.VM, why string) error {
	l := f.Limits
	if l.SuspendAfter == 0 {
		return nil
	}
	s, err := tx.Suspension(v.Cloud, v.Flavor)
	if err != nil {
		return err
	}
	if !s.Suspended() && tx.Now.Sub(s.LastAt) > forgetNoHost {
		s.Failures = 0
	}
	if s.Failures == 0 {
		s.FirstAt = tx.Now
	}
	s.Failures, s.LastAt = s.Failures+1, tx.Now
	switch {
	case s.Suspended():
		s.Until, s.Probe = tx.Now.Add(l.SuspendFor), 0
	case s.Failures >= l.SuspendAfter && tx.Now.Sub(s.FirstAt) >= l.SuspendOver:
		s.SuspendedAt, s.Until = tx.Now, tx.Now.Add(l.SuspendFor)
		f.Log.Error("flavor suspended: ledger and cloud disagree", "cloud", v.Cloud, "flavor", v.Flavor, "failures", s.Failures, "until", s.Until, "why", why)
		text := fmt.Sprintf("flavor %s is suspended on cloud %s for %s: %s", v.Flavor, v.Cloud, l.SuspendFor, disagree(s, why))
		if err := tx.AddEvent(gpuserver.Event{Job: v.MadeFor, VM: v.ID, Kind: "flavor_suspended", Text: text}); err != nil {
			return err
		}
	}
	s.Reason = why
	if s.Suspended() {
		s.Reason = disagree(s, why)
	}
	return tx.SaveSuspension(s)
}

// disagree says in words what suspends a flavor.
func disagree(s store.Suspension, why string) string {
	return fmt.Sprintf("ledger and cloud disagree: by the ledger there is room, and yet for %d VMs in a row since %s no host was found; the last: %s",
		s.Failures, s.FirstAt.UTC().Format("2006-01-02 15:04 MST"), why)
}

// foundHost ends the failures of a flavor of which a VM was made, and reports
// whether it was suspended: then the planner has to be woken after the commit.
func (f *Fleet) foundHost(tx *store.Tx, v gpuserver.VM, made cloud.VM) (resumed bool, err error) {
	if made.State == cloud.StateBuilding { // it may still fail
		return false, nil
	}
	s, err := tx.Suspension(v.Cloud, v.Flavor)
	if err != nil || s.Failures == 0 {
		return false, err
	}
	if s.Suspended() {
		f.Log.Info("flavor is no more suspended: a VM of it was made", "cloud", v.Cloud, "flavor", v.Flavor, "vm", v.Name)
		if err := tx.AddEvent(gpuserver.Event{Job: v.MadeFor, VM: v.ID, Kind: "flavor_resumed", Text: fmt.Sprintf("flavor %s is no more suspended on cloud %s: %s was made", v.Flavor, v.Cloud, v.Name)}); err != nil {
			return false, err
		}
	}
	return s.Suspended(), tx.ClearSuspension(v.Cloud, v.Flavor)
}

// suspensions puts the suspended flavors into a snapshot, and gives when the first
// of them is tried again; zero: none waits for its time.
func suspensions(tx *store.Tx, s *sched.Snapshot) (first time.Time, err error) {
	all, err := tx.Suspensions()
	for _, one := range all {
		if !one.Suspended() {
			continue
		}
		probe, err := probing(tx, one)
		if err != nil {
			return first, err
		}
		s.Suspended[sched.FlavorOn{Cloud: one.Cloud, Flavor: one.Flavor}] = sched.Suspension{
			Reason: suspendedReason(one, probe), Probe: probe == "" && !one.Until.After(tx.Now),
		}
		if one.Until.After(tx.Now) {
			first = earliest(first, one.Until)
		}
	}
	return first, err
}

// suspendedReason is why a job waits for a suspended flavor; probe names the VM that
// is made to try it, if one is.
func suspendedReason(s store.Suspension, probe string) gpuserver.Reason {
	next := "one VM is made to try it after " + s.Until.UTC().Format("2006-01-02 15:04 MST")
	if probe != "" {
		next = "VM " + probe + " is being made to try it"
	}
	return gpuserver.Reason{
		Class: gpuserver.ReasonSuspended,
		Text:  fmt.Sprintf("waits on cloud %s: flavor %s is suspended there, and %s; %s", s.Cloud, s.Flavor, next, s.Reason),
		Help:  fmt.Sprintf("Nothing needs to be done to wait. The operator sees the usual causes with gpuserver cloud check %s, and ends it with gpuserver cloud resume %s %s.", s.Cloud, s.Cloud, s.Flavor),
	}
}

// probing gives the name of the VM that is being made to try a suspended flavor, ""
// if none is: one that was taken down for another reason has told nothing.
func probing(tx *store.Tx, s store.Suspension) (name string, err error) {
	if s.Probe == 0 {
		return "", nil
	}
	v, err := tx.VM(s.Probe)
	switch {
	case gpuserver.KindOf(err) == gpuserver.KindNotFound:
		return "", nil
	case err != nil || v.State != gpuserver.VMLeased && v.State != gpuserver.VMCreating:
		return "", err
	}
	return v.Name, nil
}

// heldBack reports whether no VM like v is made now: its flavor may have been
// suspended since the plan was made.
func (f *Fleet) heldBack(tx *store.Tx, v gpuserver.VM) (bool, error) {
	s, err := tx.Suspension(v.Cloud, v.Flavor)
	if err != nil || !s.Suspended() {
		return false, err
	}
	probe, err := probing(tx, s)
	return probe != "" || s.Until.After(tx.Now), err
}

// noteProbe notes that v tries its flavor, if that is suspended.
func noteProbe(tx *store.Tx, v gpuserver.VM) error {
	s, err := tx.Suspension(v.Cloud, v.Flavor)
	if err != nil || !s.Suspended() {
		return err
	}
	s.Probe = v.ID
	return tx.SaveSuspension(s)
}

// ResumeFlavor ends the suspension of a flavor on a cloud and forgets its failures.
// KindNotFound: it is not suspended.
func (f *Fleet) ResumeFlavor(ctx context.Context, cloudName, flavor, by string) error {
	err := f.DB.Update(ctx, func(tx *store.Tx) error {
		s, err := tx.Suspension(cloudName, flavor)
		if err != nil {
			return err
		}
		if !s.Suspended() {
			return gpuserver.Errorf(gpuserver.KindNotFound, "flavor %s is not suspended on cloud %s", flavor, cloudName)
		}
		if err := tx.ClearSuspension(cloudName, flavor); err != nil {
			return err
		}
		return tx.AddEvent(gpuserver.Event{Kind: "flavor_resumed", Text: fmt.Sprintf("flavor %s on cloud %s resumed by %s", flavor, cloudName, by)})
	})
	if err == nil {
		f.Log.Info("flavor is no more suspended", "cloud", cloudName, "flavor", flavor, "by", by)
		f.wakePlanner()
	}
	return err
}

// earliest gives the earlier of two times; the zero time is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
