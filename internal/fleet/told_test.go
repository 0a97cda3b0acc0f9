package fleet

import (
	"testing"

	"gpuserver/internal/cloud"
)

// An image is to blame for a VM that stopped, not for one that its cloud lost.
func TestWhatACloudTells(t *testing.T) {
	for state, want := range map[cloud.State]struct {
		why   string
		image bool
	}{
		cloud.StateStopped: {"the VM stopped: x", true},
		cloud.StateError:   {"the VM failed: x", false},
		cloud.StateRemains: {"the VM was lost: x", false},
	} {
		if got := told(cloud.Event{VM: "vm", State: state, Reason: "x"}); got.why != want.why || got.image != want.image || !got.counts {
			t.Errorf("%s: %+v, want %+v", state, got, want)
		}
	}
}
