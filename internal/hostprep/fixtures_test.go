package hostprep

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/pci/pcitest"
)

// What scripts may rely on of host inspect's JSON, in this order. More may come;
// none goes.
var (
	promisedIOMMU = []string{"enabled", "kind"}
	promisedGPU   = []string{"address", "vendor_id", "device_id", "model", "iommu_group", "numa_node", "driver", "usable", "ready", "why"}
	promisedSlot  = []string{"group", "gpus", "others", "usable", "ready", "why"}
)

// Each machine that we have a fixture of, as inspect and render nova tell it.
func TestFixtures(t *testing.T) {
	for name, m := range map[string]pcitest.Machine{
		"seed": pcitest.Seed("vfio-pci"), "seed-fresh": pcitest.Seed("nouveau"), "desktop": pcitest.Desktop(), "board": pcitest.Board(),
		"off": pcitest.Off(), "noiommu": pcitest.NoIOMMUMode(), "acs-override": pcitest.ACSOverride(),
	} {
		t.Run(name, func(t *testing.T) {
			h, err := Inspect(os.DirFS(pcitest.Write(t, m)), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "host-"+name+".txt", promised(t, h)+"\n"+rendered(t, m))
		})
	}
}

// promised gives what of a host's JSON scripts rely on, a line for each thing.
func promised(t *testing.T, h *Host) string {
	t.Helper()
	data, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		IOMMU map[string]json.RawMessage
		GPUs  []map[string]json.RawMessage
		Slots []map[string]json.RawMessage
	}
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	text := "iommu" + only(t, all.IOMMU, promisedIOMMU)
	for _, g := range all.GPUs {
		text += "gpu" + only(t, g, promisedGPU)
	}
	for _, s := range all.Slots {
		text += "slot" + only(t, s, promisedSlot)
	}
	return text
}

// only gives these keys of an object on a line.
func only(t *testing.T, all map[string]json.RawMessage, keys []string) string {
	t.Helper()
	var text strings.Builder
	for _, k := range keys {
		if _, ok := all[k]; !ok {
			t.Errorf("the key %s is missing", k)
		}
		text.WriteString(" " + k + "=" + string(all[k]))
	}
	return text.String() + "\n"
}

// rendered gives what Nova is told of a machine, or why it cannot be told.
func rendered(t *testing.T, m pcitest.Machine) string {
	t.Helper()
	r, err := Nova{}.Render(inventory(t, m))
	if err != nil {
		return "refused: " + gpuserver.PublicText(err) + "\n"
	}
	return r.File()
}
