package gate

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }

// fixture reads a file of testdata and replaces what stands in it: pairs of old
// and new, the first place of each.
func fixture(t testing.TB, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	s := string(b)
	for i := 0; i+1 < len(replace); i += 2 {
		if !strings.Contains(s, replace[i]) {
			t.Fatalf("%s has no %q", name, replace[i])
		}
		s = strings.Replace(s, replace[i], replace[i+1], 1)
	}
	return s
}

// prints makes a tool that prints text and ends with a status.
func prints(t *testing.T, root, tool, text, status string) {
	t.Helper()
	write(t, root, "said/"+tool, text)
	write(t, root, "usr/bin/"+tool, "#!/bin/sh\ncat '"+root+"/said/"+tool+"'\nexit "+status+"\n")
}

// pair is a VM with two V100 whose tool says text.
func pair(t *testing.T, text, status string) Report {
	t.Helper()
	root := t.TempDir()
	on(t, root, "0000:01:00.0", v100, "030200")
	on(t, root, "0000:02:00.0", v100, "030200")
	prints(t, root, "nvidia-smi", text, status)
	return Check(t.Context(), Options{Root: root}, expect(v100, v100), Before)
}

func TestHealthyV100(t *testing.T) {
	r := pair(t, fixture(t, "v100.xml"), "0")
	same(t, r)
	want := []Card{
		{Address: "0000:01:00.0", VendorID: "10de", DeviceID: "1db4", Host: host(0), UUID: "GPU-00000000-0000-4000-8000-000000000001", Serial: "032401800001", Product: "Tesla V100-PCIE-16GB", Temperature: 31, LinkWidth: 16},
		{Address: "0000:02:00.0", VendorID: "10de", DeviceID: "1db4", Host: host(1), UUID: "GPU-00000000-0000-4000-8000-000000000002", Serial: "032401800002", Product: "Tesla V100-PCIE-16GB", Temperature: 32, LinkWidth: 16},
	}
	if diff := cmp.Diff(want, r.Cards); diff != "" || r.Tool != "nvidia-smi 470.256.02" {
		t.Errorf("tool %q, cards (-want +got):\n%s", r.Tool, diff)
	}
}

func TestV100(t *testing.T) {
	double := "<cbu>0</cbu>\n\t\t\t\t\t<total>"
	for name, c := range map[string]struct {
		replace []string
		want    []string
	}{
		"uncorrectable":       {[]string{double + "0", double + "4"}, []string{"ecc " + host(0)}},
		"ECC off":             {[]string{double + "0", double + "N/A"}, nil},
		"corrected":           {[]string{"<total>0</total>", "<total>99</total>"}, nil},
		"pages wait":          {[]string{"<pending_retirement>No", "<pending_retirement>Yes"}, []string{"remap " + host(0)}},
		"pages wait, older":   {[]string{"<pending_blacklist>No", "<pending_blacklist>Yes"}, []string{"remap " + host(0)}},
		"hot":                 {[]string{"<gpu_temp>32 C", "<gpu_temp>87 C"}, []string{"temperature " + host(1)}},
		"warm":                {[]string{"<gpu_temp>32 C", "<gpu_temp>86 C"}, nil},
		"slowed":              {[]string{"hw_slowdown>Not Active", "hw_slowdown>Active"}, []string{"throttle " + host(0)}},
		"power brake":         {[]string{"power_brake_slowdown>Not Active", "power_brake_slowdown>Active"}, []string{"throttle " + host(0)}},
		"thermal":             {[]string{"hw_thermal_slowdown>Not Active", "hw_thermal_slowdown>Active"}, []string{"throttle " + host(0)}},
		"fewer lanes at rest": {[]string{"current_link_width>16x", "current_link_width>8x"}, nil},
		"fewer lanes": {
			[]string{"current_link_width>16x", "current_link_width>8x", "reason_gpu_idle>Active", "reason_gpu_idle>Not Active"},
			[]string{"link " + host(0)},
		},
		"not listed": {[]string{`<gpu id="00000000:02:00.0">`, `<gpu id="00000000:07:00.0">`}, []string{"driver " + host(1)}},
		"value lost": {[]string{"<gpu_temp>32 C", "<gpu_temp>[GPU is lost]"}, []string{"tool " + host(1)}},
		"no value":   {[]string{"<uuid>GPU-00000000-0000-4000-8000-000000000001", "<uuid>ERR!"}, []string{"tool " + host(0)}},
		"no serial":  {[]string{"<serial>032401800001", "<serial>N/A"}, nil},
		"no id":      {[]string{`<gpu id="00000000:02:00.0">`, `<gpu>`}, nil}, // by pci_bus_id
	} {
		t.Run(name, func(t *testing.T) {
			same(t, pair(t, fixture(t, "v100.xml", c.replace...), "0"), c.want...)
		})
	}
}

func TestH100(t *testing.T) {
	for name, c := range map[string]struct {
		replace []string
		want    []string
	}{
		"healthy":            {nil, nil},
		"DRAM":               {[]string{"<dram_uncorrectable>0", "<dram_uncorrectable>1"}, []string{"ecc " + host(0)}},
		"SRAM parity":        {[]string{"<sram_uncorrectable_parity>0", "<sram_uncorrectable_parity>1"}, []string{"ecc " + host(0)}},
		"SRAM":               {[]string{"<sram_uncorrectable_secded>0", "<sram_uncorrectable_secded>1"}, []string{"ecc " + host(0)}},
		"SRAM over its life": {[]string{"exceeded>No", "exceeded>Yes"}, []string{"ecc " + host(0)}},
		"row waits":          {[]string{"row_pending>No", "row_pending>Yes"}, []string{"remap " + host(0)}},
		"row failed":         {[]string{"row_failure>No", "row_failure>Yes", "row_pending>No", "row_pending>Yes"}, []string{"remap " + host(0)}},
		"not repairable":     {[]string{"unrepairable_memory>No", "unrepairable_memory>Yes"}, []string{"remap " + host(0)}},
		"needs a reset":      {[]string{"recovery_action>None", "recovery_action>Reset"}, []string{"recovery " + host(0)}},
		"needs both":         {[]string{"recovery_action>None", "recovery_action>Drain and Reset"}, []string{"recovery " + host(0)}},
		"recovery not known": {[]string{"recovery_action>None", "recovery_action>N/A"}, nil},
		"at its limit":       {[]string{"<gpu_temp_tlimit>42 C", "<gpu_temp_tlimit>-2 C"}, []string{"temperature " + host(0)}},
		"near its limit":     {[]string{"<gpu_temp_tlimit>42 C", "<gpu_temp_tlimit>-1 C"}, nil},
		"brake":              {[]string{"power_brake_slowdown>Not", "power_brake_slowdown>"}, []string{"throttle " + host(0)}},
		"fewer lanes":        {[]string{"current_link_width>16x", "current_link_width>4x"}, []string{"link " + host(0)}},
		"several": {
			[]string{"<dram_uncorrectable>0", "<dram_uncorrectable>1", "row_pending>No", "row_pending>Yes"},
			[]string{"ecc " + host(0), "remap " + host(0)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			on(t, root, "0000:01:00.0", h100, "030200")
			prints(t, root, "nvidia-smi", fixture(t, "h100.xml", c.replace...), "0")
			same(t, Check(t.Context(), Options{Root: root}, expect(h100), Before), c.want...)
		})
	}
}

// TestH200: what a real H200 in a VM said under full load (driver 580, numbers of
// card and program replaced): it draws all the power that it may, which is no fault.
func TestH200(t *testing.T) {
	const h200 = "10de:2335"
	for name, c := range map[string]struct {
		replace []string
		want    []string
	}{
		"under load":     {nil, nil},
		"needs a reset":  {[]string{"recovery_action>None", "recovery_action>Reset"}, []string{"recovery " + host(0)}},
		"not repairable": {[]string{"unrepairable_memory>No", "unrepairable_memory>Yes"}, []string{"remap " + host(0)}},
		"fewer lanes":    {[]string{"current_link_width>16x", "current_link_width>8x"}, []string{"link " + host(0)}},
		"hot":            {[]string{"<gpu_temp_tlimit>23 C", "<gpu_temp_tlimit>-2 C"}, []string{"temperature " + host(0)}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			on(t, root, "0000:00:06.0", h200, "030200")
			prints(t, root, "nvidia-smi", fixture(t, "h200.xml", c.replace...), "0")
			r := Check(t.Context(), Options{Root: root}, expect(h200), Before)
			same(t, r, c.want...)
			want := Card{Address: "0000:00:06.0", VendorID: "10de", DeviceID: "2335", Host: host(0), UUID: "GPU-00000000-0000-4000-8000-000000000001", Serial: "1650000000001", Product: "NVIDIA H200", Temperature: 62, LinkWidth: 16}
			if name == "under load" && !cmp.Equal([]Card{want}, r.Cards) {
				t.Errorf("cards (-want +got):\n%s", cmp.Diff([]Card{want}, r.Cards))
			}
		})
	}
}

// TestBrokenTool: a tool that cannot tell fails the check.
func TestBrokenTool(t *testing.T) {
	whole := fixture(t, "v100.xml")
	one := whole[:strings.Index(whole, `	<gpu id="00000000:02`)] + "</nvidia_smi_log>\n"
	for name, c := range map[string]struct {
		text, status string
		want         []string
		word         string
	}{
		"truncated":      {whole[:len(whole)/2], "0", []string{"tool"}, "no whole XML"},
		"garbage":        {"\x00\xff<a></b>", "0", []string{"tool"}, "no whole XML"},
		"empty":          {"", "0", []string{"tool"}, "no whole XML"},
		"other XML":      {"<html></html>", "0", []string{"driver " + host(0), "driver " + host(1)}, "does not list"},
		"one card short": {one, "0", []string{"driver " + host(1)}, "does not list"},
		"no driver":      {"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "9", []string{"tool"}, "the driver is not loaded"},
		"lost":           {"Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system to recover this GPU", "15", []string{"tool " + host(1)}, "fallen off the bus"},
		"lost, no name":  {"GPU is lost", "15", []string{"tool"}, "fallen off the bus"},
		"no devices":     {"No devices were found", "6", []string{"driver " + host(0), "driver " + host(1)}, "does not list"},
		"infoROM":        {whole + "WARNING: infoROM is corrupted at gpu 0000:01:00.0", "14", []string{"tool " + host(0)}, "infoROM"},
		"unknown status": {"something else", "77", []string{"tool"}, "something else"},
	} {
		t.Run(name, func(t *testing.T) {
			r := pair(t, c.text, c.status)
			same(t, r, c.want...)
			if len(r.Findings) > 0 && !strings.Contains(r.Findings[0].Text, c.word) {
				t.Errorf("the text is %q, expected %q", r.Findings[0].Text, c.word)
			}
		})
	}
	t.Run("no program", func(t *testing.T) {
		root := t.TempDir()
		on(t, root, "0000:01:00.0", v100, "030200")
		write(t, root, "usr/bin/nvidia-smi", "#!/nonexistent/interpreter\n")
		same(t, Check(t.Context(), Options{Root: root}, expect(v100), Before), "tool")
	})
}

func TestXids(t *testing.T) {
	for name, c := range map[string]struct {
		log  string
		want []string
	}{
		"none":             {"6,1,0,-;Linux version 6.12\n SUBSYSTEM=x\n", nil},
		"off the bus":      {"3,9,8,-;NVRM: Xid (PCI:0000:02:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n", []string{"xid " + host(1)}},
		"older":            {"3,9,8,-;NVRM: Xid (0000:01:00): 48, An uncorrectable double bit error\n", []string{"xid " + host(0)}},
		"two of one":       {"3,9,8,-;NVRM: Xid (PCI:0000:01:00): 63, x\n3,10,8,-;NVRM: Xid (PCI:0000:01:00): 63, y\n", []string{"xid " + host(0)}},
		"two":              {"3,9,8,-;NVRM: Xid (PCI:0000:02:00): 63, x\n3,10,8,-;NVRM: Xid (PCI:0000:01:00): 48, y\n", []string{"xid " + host(0), "xid " + host(1)}},
		"a program's":      {"3,9,8,-;NVRM: Xid (PCI:0000:01:00): 31, pid=7\n3,9,8,-;NVRM: Xid (PCI:0000:01:00): 13, x\n3,9,8,-;NVRM: Xid (PCI:0000:01:00): 43, x\n3,9,8,-;NVRM: Xid (PCI:0000:01:00): 45, x\n3,9,8,-;NVRM: Xid (PCI:0000:01:00): 68, x\n", nil},
		"another card":     {"3,9,8,-;NVRM: Xid (PCI:0000:09:00): 79, x\n", []string{"xid"}},
		"forged by root":   {"11,9,8,-;NVRM: Xid (PCI:0000:02:00): 79, x\n", nil},
		"in a message":     {"3,9,8,-;usb: NVRM: Xid (PCI:0000:02:00): 79, x\n", nil},
		"in details":       {"3,9,8,-;x\n 3,1,1,-;NVRM: Xid (PCI:0000:02:00): 79, x\n", nil},
		"damaged":          {";;;\nNVRM: Xid (PCI:0000:02:00): 79\n3,9,8,-;NVRM: Xid (PCI:zz): 79\n3,9,8,-;NVRM: Xid (PCI:0000:02:00): 999999999999, x", nil},
		"without its line": {"3,9,8,-;NVRM: Xid (PCI:0000:02:00): 79", []string{"xid " + host(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			on(t, root, "0000:01:00.0", v100, "030200")
			on(t, root, "0000:02:00.0", v100, "030200")
			write(t, root, "dev/kmsg", c.log)
			same(t, Check(t.Context(), Options{Root: root}, expect(v100, v100), After), c.want...)
		})
	}
}

func TestDCGM(t *testing.T) {
	result := func(text string) string {
		return `{"DCGM Diagnostic":{"test_categories":[{"category":"Deployment","tests":[{"name":"software","results":[` + text + `]}]}]}}`
	}
	for name, c := range map[string]struct {
		text, status string
		want         []string
	}{
		"pass":              {result(`{"entity_group":"GPU","entity_id":0,"status":"Pass"}`), "0", nil},
		"skip":              {result(`{"entity_id":0,"status":"Skip"}`), "0", nil},
		"fail":              {result(`{"entity_id":1,"status":"Fail","warnings":[{"error_category":10,"error_severity":6,"warning":"pending page retirements"}]}`), "226", []string{"diagnosis " + host(1)}},
		"older":             {result(`{"gpu_id":"0","status":"Fail","warnings":"pending page retirements"}`), "226", []string{"diagnosis " + host(0)}},
		"set up":            {result(`{"entity_id":0,"status":"Fail","warnings":[{"error_category":8,"error_severity":5,"warning":"Persistence Mode: disabled"}]}`), "226", nil},
		"set up, otherwise": {result(`{"entity_id":0,"status":"Fail","warnings":[{"error_category":8,"error_severity":5,"warning":"Permissions"}]}`), "226", nil},
		"no card named":     {result(`{"status":"FAIL"}`), "226", []string{"diagnosis"}},
		"no engine":         {"Error: unable to establish a connection", "255", []string{"tool"}},
		"no JSON":           {"fine", "0", []string{"tool"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			on(t, root, "0000:01:00.0", v100, "030200")
			on(t, root, "0000:02:00.0", v100, "030200")
			prints(t, root, "dcgmi", c.text, c.status)
			e := expect(v100, v100)
			same(t, Check(t.Context(), Options{Root: root}, e, Before)) // not asked for
			e.DCGM = true
			r := Check(t.Context(), Options{Root: root}, e, Before)
			same(t, r, c.want...)
			if r.Tool != "dcgmi" {
				t.Errorf("tool %q", r.Tool)
			}
		})
	}
}

func FuzzSMI(f *testing.F) {
	f.Add([]byte(fixture(f, "v100.xml")))
	f.Add([]byte(fixture(f, "h100.xml")))
	f.Add([]byte(fixture(f, "h200.xml")))
	f.Add([]byte("<nvidia_smi_log><gpu id='1:2'><temperature><gpu_temp>-- C</gpu_temp></temperature></gpu></nvidia_smi_log>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseSMI(b)
		if err != nil {
			return
		}
		c := &check{report: Report{Cards: []Card{{Address: "0000:01:00.0"}}}}
		for _, g := range l.GPUs {
			_ = g.address()
			c.judge(&c.report.Cards[0], g)
		}
		c.report.Bound()
		if len(c.report.json()) > MaxReport {
			t.Errorf("%d bytes", len(c.report.json()))
		}
	})
}

func FuzzXids(f *testing.F) {
	f.Add([]byte("3,9,8,-;NVRM: Xid (PCI:0000:02:00): 79, x\n 3,9;x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for x, n := range parseXids(b) {
			if total += n; len(x.slot) < 10 || len(x.slot) > 14 {
				t.Errorf("%+v", x)
			}
		}
		if total > bytes.Count(b, []byte("NVRM")) {
			t.Errorf("%d messages", total)
		}
	})
}
