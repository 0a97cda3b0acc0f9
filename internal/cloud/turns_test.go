package cloud_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"gpuserver/internal/cloud"
)

// TestTurns: one operation at a time on a VM; who ends it waits, others do not.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns cloud.Turns
		made, ok := turns.Try("a", true)
		if !ok || !turns.Making("a") || turns.Ending("a") {
			t.Errorf("making a: %v %v %v", ok, turns.Making("a"), turns.Ending("a"))
		}
		if _, ok := turns.Try("a", false); ok {
			t.Error("a second operation began")
		}
		if other, ok := turns.Try("b", false); !ok || !turns.Ending("b") {
			t.Error("another VM had to wait")
		} else {
			other()
		}
		time.AfterFunc(time.Minute, made)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := turns.Wait(short, "a"); err != context.DeadlineExceeded {
			t.Errorf("waiting a second gives %v", err)
		}
		start := time.Now()
		ended, err := turns.Wait(t.Context(), "a")
		if err != nil || time.Since(start) != 59*time.Second || !turns.Ending("a") || turns.Making("a") {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ended()
		if turns.Ending("a") {
			t.Error("it is not over")
		}
		if _, err := turns.Wait(short, "a"); err != context.DeadlineExceeded {
			t.Errorf("an operation begins for a caller that is gone: %v", err)
		}
	})
}
