package gate

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// amdSMI makes a tool that answers list, static and metric.
func amdSMI(t *testing.T, root, list, static, metric string) {
	t.Helper()
	write(t, root, "said/list", list)
	write(t, root, "said/static", static)
	write(t, root, "said/metric", metric)
	write(t, root, "usr/bin/amd-smi", "#!/bin/sh\nfor last; do :; done\n[ $last = --json ] && cat '"+root+"'/said/$1\n")
}

const (
	amdList   = `[{"gpu":0,"bdf":"0000:03:00.0","uuid":"11ff-740f"},{"gpu":1,"bdf":"0000:04:00.0","uuid":"22ff-740f"}]`
	amdStatic = `{"gpu_data":[{"gpu":0,"asic":{"market_name":"AMD Instinct MI210","asic_serial":"0xA1"},"limit":{"ppt0":{"x":1},"slowdown_hotspot_temperature":{"value":100,"unit":"C"}}},{"gpu":1,"limit":"N/A"}]}`
	amdMetric = `[{"gpu":0,"temperature":{"edge":{"value":40,"unit":"C"},"hotspot":{"value":%d,"unit":"C"}},"ecc":{"total_uncorrectable_count":%d},"pcie":{"width":16},"throttle":{"prochot_violation_status":"%s","ppt_violation_status":"ACTIVE"}},` +
		`{"gpu":1,"temperature":{"hotspot":"N/A"},"ecc":{"total_uncorrectable_count":"N/A"},"throttle":"N/A"}]`
)

func TestAMDSMI(t *testing.T) {
	for name, c := range map[string]struct {
		list, metric string
		want         []string
	}{
		"well":      {amdList, fmt.Sprintf(amdMetric, 45, 0, "NOT ACTIVE"), nil},
		"hot":       {amdList, fmt.Sprintf(amdMetric, 100, 0, "NOT ACTIVE"), []string{"temperature " + host(0)}},
		"errors":    {amdList, fmt.Sprintf(amdMetric, 45, 2, "NOT ACTIVE"), []string{"ecc " + host(0)}},
		"slowed":    {amdList, fmt.Sprintf(amdMetric, 45, 0, "ACTIVE"), []string{"throttle " + host(0)}},
		"one short": {`[{"gpu":0,"bdf":"0000:03:00.0"}]`, fmt.Sprintf(amdMetric, 45, 0, "N/A"), []string{"driver " + host(1)}},
		"no JSON":   {"ERROR: no driver", "", []string{"tool"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			on(t, root, "0000:03:00.0", mi210, "038000")
			on(t, root, "0000:04:00.0", mi210, "120000")
			amdSMI(t, root, c.list, amdStatic, c.metric)
			r := Check(t.Context(), Options{Root: root}, expect(mi210, mi210), Before)
			same(t, r, c.want...)
			if name == "well" {
				want := Card{Address: "0000:03:00.0", VendorID: "1002", DeviceID: "740f", Host: host(0), UUID: "11ff-740f", Serial: "0xA1", Product: "AMD Instinct MI210", Temperature: 45, LinkWidth: 16}
				if diff := cmp.Diff(want, r.Cards[0]); diff != "" || r.Tool != "amd-smi" {
					t.Errorf("tool %q (-want +got):\n%s", r.Tool, diff)
				}
			}
		})
	}
}

func TestROCmSMI(t *testing.T) {
	const said = `WARNING: AMD GPU device(s) is/are in a low-power state.
{"card0":{"Temperature (Sensor edge) (C)":"35.0","Temperature (Sensor junction) (C)":"41.0","Unique ID":"0x77","Serial Number":"N/A","PCI Bus":"0000:03:00.0"}}`
	for name, c := range map[string]struct {
		said, ras, status string
		want              []string
	}{
		"well":       {said, "ue: 0\nce: 9\n", "0", nil},
		"errors":     {said, "ue: 1\nce: 0\n", "0", []string{"ecc " + host(0)}},
		"not listed": {`{"card0":{"PCI Bus":"0000:09:00.0"}}`, "", "0", []string{"driver " + host(0)}},
		"no JSON":    {"no device", "", "0", []string{"tool"}},
		"failed":     {said, "", "1", []string{"tool"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			on(t, root, "0000:03:00.0", mi210, "038000")
			write(t, root, "sys/bus/pci/devices/0000:03:00.0/ras/umc_err_count", c.ras)
			prints(t, root, "rocm-smi", c.said, c.status)
			r := Check(t.Context(), Options{Root: root}, expect(mi210), Before)
			same(t, r, c.want...)
			if name == "well" && (r.Cards[0].Temperature != 41 || r.Cards[0].UUID != "0x77" || r.Tool != "rocm-smi") {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestAMDWithoutTool counts only.
func TestAMDWithoutTool(t *testing.T) {
	root := t.TempDir()
	on(t, root, "0000:03:00.0", mi210, "120000")
	r := Check(t.Context(), Options{Root: root}, expect(mi210), Before)
	if same(t, r); r.Tool != "" {
		t.Errorf("tool %q", r.Tool)
	}
}

func FuzzAMD(f *testing.F) {
	for _, s := range []string{amdList, amdStatic, fmt.Sprintf(amdMetric, 1, 2, "ACTIVE"), `{"gpu_data":[{"gpu":0,"limit":{"slowdown_hotspot_temperature":"9"}}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		gpus, _ := parseAMD(b)
		c := &check{report: Report{Cards: []Card{{Address: "0000:01:00.0"}}}}
		for _, g := range gpus {
			c.judgeAMD(&c.report.Cards[0], g, 90)
		}
		_, _ = parseROCm(b)
		if c.report.Bound(); len(c.report.json()) > MaxReport {
			t.Errorf("%d bytes", len(c.report.json()))
		}
	})
}
