package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/api/apitest"
	"gpuserver/internal/store"
)

// playTest plays the job of a card's test: it prints, the gate writes its
// events to the history of card 4, and the job ends.
func (s *operated) playTest(t *testing.T, status int, events ...gpuserver.GPUEvent) {
	s.fleet.OnRun = func(ctx context.Context, id gpuserver.JobID, _ api.RunRequest) {
		v, err := s.fleet.StartVM(ctx, id)
		if err != nil {
			t.Error(err)
			return
		}
		s.fleet.Write(id, "stdout", "Tesla V100, 16 GiB\n")
		err = s.fleet.DB.Update(ctx, func(tx *store.Tx) error {
			for _, e := range events {
				e.GPU, e.Job, e.VM = 4, id, v.ID
				if err := tx.AddGPUEvent(e); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = s.fleet.Exit(ctx, id, v, status)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func TestGPUTestSaysWhetherACardIsWell(t *testing.T) {
	passed := gpuserver.GPUEvent{Kind: "gate_passed", Text: "all is well"}
	strike := gpuserver.GPUEvent{Kind: "strike", Text: "xid: 79", Points: 3}
	for name, tc := range map[string]struct {
		exit   int
		events []gpuserver.GPUEvent
		status int
		say    string
	}{
		"well":          {0, []gpuserver.GPUEvent{passed}, 0, "GPU 4 passed the test (job 7). GPU 4 (local/node1 0000:a3:00.0, tesla-v100) is quarantined. gpuserver gpu history 4"},
		"the job fails": {1, nil, exitFailed, "GPU 4 did not pass the test (job 7): It ended: failure."},
		"a strike":      {0, []gpuserver.GPUEvent{passed, strike}, exitFailed, "GPU 4 did not pass the test (job 7): It ended: success."},
	} {
		t.Run(name, func(t *testing.T) {
			s := operate(t, api.Options{})
			apitest.SeedGPUs(t, s.fleet, s.world)
			s.playTest(t, tc.exit, tc.events...)
			var stdout, stderr bytes.Buffer
			got := program(t.Context(), &stdout, &stderr, "gpu", "test", "a3:00.0")
			if got != tc.status || stderr.Len() > 0 || !strings.HasPrefix(stdout.String(), "Tesla V100, 16 GiB\n") || !strings.Contains(stdout.String(), tc.say) {
				t.Errorf("status %d, stdout %q, stderr %q", got, stdout.String(), stderr.String())
			}
			for _, e := range tc.events {
				if !strings.Contains(stdout.String(), e.Text) {
					t.Errorf("%s is not told: %s", e.Kind, stdout.String())
				}
			}
			if strings.Contains(stdout.String(), "first seen") {
				t.Errorf("what is not of this test is told: %s", stdout.String())
			}
		})
	}
}

func TestGPUTestAsJSON(t *testing.T) {
	s := operate(t, api.Options{})
	apitest.SeedGPUs(t, s.fleet, s.world)
	s.playTest(t, 0, gpuserver.GPUEvent{Kind: "strike", Text: "xid: 79", Points: 3})
	var stdout, stderr bytes.Buffer
	got := program(t.Context(), &stdout, &stderr, "gpu", "test", "4", "--output", "json")
	var v gpuVerdict
	if err := json.Unmarshal(stdout.Bytes(), &v); err != nil {
		t.Fatalf("%v in %s", err, stdout.String())
	}
	if got != exitFailed || v.Passed || v.Job != 7 || v.GPU.ID != 4 || len(v.Events) != 1 || stderr.String() != "Tesla V100, 16 GiB\n" {
		t.Errorf("status %d, %+v, stderr %q", got, v, stderr.String())
	}
}

func TestGPUTestThatCannotBegin(t *testing.T) {
	s := operate(t, api.Options{})
	apitest.SeedGPUs(t, s.fleet, s.world)
	s.fleet.Fail = gpuserver.Errorf(gpuserver.KindConflict, "VM gs-3 has it.")
	var stdout, stderr bytes.Buffer
	if got := program(t.Context(), &stdout, &stderr, "gpu", "test", "1"); got != exitFailed || stderr.String() != "gpuserver: VM gs-3 has it.\n" {
		t.Errorf("status %d, stderr %q", got, stderr.String())
	}
}

func TestInterruptCancelsTheTestOfAGPU(t *testing.T) {
	s := operate(t, api.Options{})
	apitest.SeedGPUs(t, s.fleet, s.world)
	s.fleet.OnRun = func(_ context.Context, id gpuserver.JobID, _ api.RunRequest) {
		s.fleet.Write(id, "stdout", "started\n")
	}
	ctx, interrupt := context.WithCancel(t.Context())
	stdout, stderr := awaitText("started"), &bytes.Buffer{}
	status := make(chan int)
	go func() { status <- program(ctx, stdout, stderr, "gpu", "test", "4") }()
	select {
	case <-stdout.seen:
	case got := <-status:
		t.Fatalf("ended with %d before: %s", got, stderr)
	}
	interrupt()
	if got := <-status; got != exitInterrupted {
		t.Errorf("status %d: %s", got, stderr)
	}
	if calls := s.fleet.Calls(); len(calls) != 2 || calls[1] != "cancel 7 by socket" {
		t.Errorf("calls: %q", calls)
	}
}

func TestGPUCompletion(t *testing.T) {
	s := operate(t, api.Options{})
	apitest.SeedGPUs(t, s.fleet, s.world)
	for _, verb := range []string{"show", "history", "cordon", "uncordon", "test"} {
		if got := gpuserverOK(t, "__complete", "gpu", verb, ""); !strings.Contains(got, "node1/0000:a3:00.0\ttesla-v100, quarantined\n") || !strings.Contains(got, "node1/0000:c3:00.0\ttesla-v100, resting\n") {
			t.Errorf("%s: %q", verb, got)
		}
	}
	if got := gpuserverOK(t, "__complete", "gpu", "list", "--state", "c"); !strings.Contains(got, "cordoned\n") {
		t.Errorf("states: %q", got)
	}
}
