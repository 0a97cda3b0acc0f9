package store

import (
	"time"

	"gpuserver"
)

// RerunState is how far we are with running a job again.
type RerunState string

// The states of a Rerun. It begins as waiting and is over in any other.
const (
	RerunWaiting RerunState = "waiting"  // the forge is to be asked
	RerunDone    RerunState = "done"     // the run has a later attempt with it
	RerunGivenUp RerunState = "given_up" // it will not be run again by us
)

// Rerun is a job that ended and is to be run again on its forge.
type Rerun struct {
	Job   gpuserver.JobID
	State RerunState
	// Asked is the run's attempt that was the latest when the forge was asked
	// last; 0: it was not asked, or said no. It is committed before the call, so
	// that a later attempt tells that a call of unknown outcome was carried out.
	Asked  int
	Tries  int       // how often it was looked at in vain
	Since  time.Time // when it was decided
	NextAt time.Time // not looked at before
}

// AddRerun notes that a job is to be run again, once: for a job that was noted
// before it gives false and changes nothing.
func (tx *Tx) AddRerun(job gpuserver.JobID) (added bool, err error) {
	n, err := tx.execN(`INSERT INTO reruns (job, state, asked, tries, since, next_at) VALUES (?,?,0,0,?,0) ON CONFLICT DO NOTHING`, job, RerunWaiting, nanos(tx.Now))
	if n == 0 || err != nil {
		return false, err
	}
	tx.changes = append(tx.changes, Change{Rerun: job})
	return true, nil
}

// Rerun gives a job's re-run, KindNotFound if there is none.
func (tx *Tx) Rerun(job gpuserver.JobID) (r Rerun, err error) {
	err = tx.one("such re-run", `SELECT job, state, asked, tries, since, next_at FROM reruns WHERE job = ?`, []any{job}, func(s scanner) error {
		var since, next int64
		err := s.Scan(&r.Job, &r.State, &r.Asked, &r.Tries, &since, &next)
		r.Since, r.NextAt = fromNanos(since), fromNanos(next)
		return err
	})
	return r, err
}

// SaveRerun writes a re-run that is waiting, also to end it. KindConflict: it is
// over already.
func (tx *Tx) SaveRerun(r Rerun) error {
	n, err := tx.execN(`UPDATE reruns SET (state, asked, tries, next_at) = (?,?,?,?) WHERE job = ? AND state = ?`,
		r.State, r.Asked, r.Tries, nanos(r.NextAt), r.Job, RerunWaiting)
	if err == nil && n == 0 {
		return gpuserver.Errorf(gpuserver.KindConflict, "job %d is not to be run again any more", r.Job)
	}
	return err
}

// WaitingReruns gives the jobs that are to be run again.
func (tx *Tx) WaitingReruns() (jobs []gpuserver.JobID, err error) {
	err = tx.each(`SELECT job FROM reruns WHERE state = 'waiting' ORDER BY job`, nil, func(s scanner) error {
		var id gpuserver.JobID
		err := s.Scan(&id)
		jobs = append(jobs, id)
		return err
	})
	return jobs, err
}
