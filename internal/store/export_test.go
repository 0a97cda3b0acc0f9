package store

import "time"

// WithOthers is withOthers.
const WithOthers = withOthers

// WaitQueued returns once so many updates wait for the writer.
func WaitQueued(db *DB, now, later int) {
	for len(db.queue) < now || len(db.later) < later {
		time.Sleep(time.Millisecond)
	}
}
