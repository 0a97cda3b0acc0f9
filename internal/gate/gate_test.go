package gate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// write makes a file below root.
func write(t *testing.T, root, name, content string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// on puts a device on root's bus; id is as 10de:1db4.
func on(t *testing.T, root, address, id, class string) {
	t.Helper()
	dir := "sys/bus/pci/devices/" + address + "/"
	vendor, device, _ := strings.Cut(id, ":")
	write(t, root, dir+"vendor", "0x"+vendor+"\n")
	write(t, root, dir+"device", "0x"+device+"\n")
	write(t, root, dir+"class", "0x"+class+"\n")
	write(t, root, dir+"config", "\xde\x10\xb4\x1d"+strings.Repeat("\x00", 60))
}

// expect makes an expectation; its cards are at 0000:a0:00.0, 0000:a1:00.0, … on
// the host.
func expect(ids ...string) Expectation {
	var e Expectation
	for i, id := range ids {
		vendor, device, _ := strings.Cut(id, ":")
		e.Cards = append(e.Cards, ExpectedCard{VendorID: vendor, DeviceID: device, Host: host(i)})
	}
	return e
}

func host(i int) string { return fmt.Sprintf("0000:a%d:00.0", i) }

const (
	v100  = "10de:1db4"
	h100  = "10de:2331"
	mi210 = "1002:740f"
)

// short gives findings as "kind host", in their order.
func short(r Report) []string {
	all := []string{}
	for _, f := range r.Findings {
		all = append(all, strings.TrimSpace(string(f.Kind)+" "+f.Host))
	}
	return all
}

// same checks a report's findings and that it has passed without any, only.
func same(t *testing.T, r Report, want ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{}, want...), short(r)); diff != "" || r.Passed != (len(want) == 0) {
		t.Errorf("passed %v, findings %+v (-want +got):\n%s", r.Passed, r.Findings, diff)
	}
	for _, f := range r.Findings {
		if len(f.Text) < 15 {
			t.Errorf("a text that tells nothing: %q", f.Text)
		}
	}
}

func TestBus(t *testing.T) {
	for name, c := range map[string]struct {
		bus    map[string]string // address: id
		expect []string
		want   []string
		hosts  []string // of the cards found
	}{
		"one":           {map[string]string{"0000:01:00.0": v100}, []string{v100}, nil, []string{host(0)}},
		"by address":    {map[string]string{"0000:0a:00.0": v100, "0000:09:00.0": v100}, []string{v100, v100}, nil, []string{host(0), host(1)}},
		"two models":    {map[string]string{"0000:01:00.0": h100, "0000:02:00.0": v100}, []string{v100, h100}, nil, []string{host(1), host(0)}},
		"of others too": {map[string]string{"0000:00:01.0": "1234:1111", "0000:02:00.0": v100}, []string{v100}, nil, []string{host(0)}},
		"none":          {nil, []string{v100, v100}, []string{"missing " + host(0), "missing " + host(1)}, nil},
		"which of two?": {map[string]string{"0000:01:00.0": v100}, []string{v100, v100}, []string{"missing"}, []string{""}},
		"known by model": {
			map[string]string{"0000:01:00.0": v100},
			[]string{v100, h100},
			[]string{"missing " + host(1)},
			[]string{host(0)},
		},
		"one more": {map[string]string{"0000:01:00.0": v100, "0000:02:00.0": v100}, []string{v100}, nil, []string{"", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			on(t, root, "0000:00:1f.0", v100, "060100") // no display
			for address, id := range c.bus {
				on(t, root, address, id, "030200")
			}
			r := Check(t.Context(), Options{Root: root}, expect(c.expect...), Before)
			same(t, r, c.want...)
			var hosts []string
			for _, card := range r.Cards {
				hosts = append(hosts, card.Host)
			}
			if diff := cmp.Diff(c.hosts, hosts); diff != "" {
				t.Errorf("hosts (-want +got):\n%s", diff)
			}
			if r.Tool != "" || r.When != Before {
				t.Errorf("tool %q, moment %q", r.Tool, r.When)
			}
		})
	}
}

// TestBusOnly: nothing but /sys is there, as in a small initramfs; and not even
// that.
func TestBusOnly(t *testing.T) {
	root := t.TempDir()
	same(t, Check(t.Context(), Options{Root: root}, expect(v100), Before), "missing "+host(0))
	on(t, root, "0000:01:00.0", v100, "030200")
	on(t, root, "0000:02:00.0", v100, "120000")
	write(t, root, "sys/bus/pci/devices/0000:02:00.0/config", strings.Repeat("\xff", 64))
	write(t, root, "sys/bus/pci/devices/0000:01:00.0/config", "\xde\x10\xb4\x1d\xff\xff\xff\xff\xa1\x00\x02\x03"+strings.Repeat("\xff", 52)) // alive
	write(t, root, "sys/bus/pci/devices/0000:01:00.0/current_link_width", "8\n")
	write(t, root, "sys/bus/pci/devices/0000:02:00.0/current_link_width", "63\n")
	r := Check(t.Context(), Options{Root: root}, expect(v100, v100), After)
	same(t, r, "dead "+host(1))
	// What a VM sees of a dead card: its host makes the numbers and addresses up.
	write(t, root, "sys/bus/pci/devices/0000:02:00.0/config", "\xde\x10\xb4\x1d\x06\x00\x10\x00\xff\xff\xff\xff\x00\x00\x00\x00"+strings.Repeat("\x00", 48))
	same(t, Check(t.Context(), Options{Root: root}, expect(v100, v100), After), "dead "+host(1))
	if r.Cards[0].LinkWidth != 8 || r.Cards[1].LinkWidth != 0 {
		t.Errorf("cards %+v", r.Cards)
	}
	if got := Present(root); len(got) != 2 || got[0].DeviceID != "1db4" {
		t.Errorf("present %+v", got)
	}
}

// TestReturnsInTime: what the kernel does not give back is left behind.
func TestReturnsInTime(t *testing.T) {
	root := t.TempDir()
	on(t, root, "0000:01:00.0", v100, "030200")
	write(t, root, "usr/bin/nvidia-smi", "")
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	o := Options{Root: root, run: func(context.Context, string, ...string) (output, error) {
		<-held
		return output{}, nil
	}}
	e := expect(v100)
	e.Timeout = 200 * time.Millisecond
	r := Check(t.Context(), o, e, Before)
	if r.Passed || !slices.Contains(short(r), "timeout") {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e.Timeout = 0
	if r := Check(ctx, o, e, Before); r.Passed || !slices.ContainsFunc(r.Findings, func(f Finding) bool { return strings.Contains(f.Text, "stopped") }) {
		t.Errorf("a check that was stopped: %+v", r)
	}
}

// TestReturnsWithoutTheBus: reading a file hangs, too.
func TestReturnsWithoutTheBus(t *testing.T) {
	root := t.TempDir()
	on(t, root, "0000:01:00.0", v100, "030200")
	config := filepath.Join(root, "sys/bus/pci/devices/0000:01:00.0/config")
	if err := errors.Join(os.Remove(config), mkfifo(config)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f, err := os.OpenFile(config, os.O_RDWR, 0) // lets the reader go
		if err != nil {
			t.Error(err)
			return
		}
		f.Close()
	})
	e := expect(v100)
	e.Timeout = 200 * time.Millisecond
	same(t, Check(t.Context(), Options{Root: root}, e, Before), "timeout")
}

// TestHungProgram is killed with all that it started.
func TestHungProgram(t *testing.T) {
	root := t.TempDir()
	write(t, root, "hang", "#!/bin/sh\nsleep 100000 &\necho $$ >\"$0.tmp\"\nmv \"$0.tmp\" \"$0.pid\"\nwait\n")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := runProgram(ctx, filepath.Join(root, "hang"))
		done <- err
	}()
	var group int
	eventually(t, "the program started", func() bool {
		b, _ := os.ReadFile(filepath.Join(root, "hang.pid")) // not yet
		group, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return group > 1
	})
	t.Cleanup(func() { _ = unix.Kill(-group, unix.SIGKILL) }) // nobody, if all is well
	cancel()
	if err := within(t, done); err == nil {
		t.Error("no error of a program that was killed")
	}
	eventually(t, "its children ended", func() bool { return unix.Kill(-group, 0) == unix.ESRCH })
}

// TestUnkillableProgram is left behind.
func TestUnkillableProgram(t *testing.T) {
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	c := &check{Options: Options{run: func(context.Context, string, ...string) (output, error) {
		<-held
		return output{}, nil
	}}}
	done := make(chan error, 1)
	go func() {
		_, err := c.call(t.Context(), time.Millisecond, "")
		done <- err
	}()
	if err := within(t, done); !errors.Is(err, errHung) {
		t.Errorf("%v, expected that it hung", err)
	}
}

// within waits for a result.
func within(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		t.Fatal("it did not return")
		return nil
	}
}

// eventually waits until is gives true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not so within a minute: %s", what)
		}
	}
}

func TestBound(t *testing.T) {
	r := Report{When: "before and after", Passed: true, Tool: strings.Repeat("t", 100), Seconds: -1}
	for range 100 {
		r.Cards = append(r.Cards, Card{
			Address: strings.Repeat("\"", 99), VendorID: "10deXX", UUID: strings.Repeat("\"", 99), Serial: strings.Repeat("<", 99),
			Product: strings.Repeat("é\x00", 99), Temperature: 1 << 40, LinkWidth: -1,
		})
	}
	r.Bound()
	if len(r.json()) > MaxReport || len(r.Cards) == 0 || len(r.Cards) > MaxCards || r.Seconds != 0 || r.Cards[0].Temperature != 1000 {
		t.Errorf("%d bytes: %+v", len(r.json()), r)
	}
	r = Report{}
	for i := range 100 {
		r.Findings = append(r.Findings, Finding{Kind: KindXid, Text: fmt.Sprint(i, strings.Repeat("\n<é", 300))})
	}
	r.Bound()
	if n := len(r.json()); n > MaxReport || n < MaxReport/2 || r.Findings[0].Text[0] != '0' || strings.Contains(r.Line(), "\n") {
		t.Errorf("%d bytes, %d findings", n, len(r.Findings))
	}
	again := r
	again.Bound()
	if diff := cmp.Diff(r, again); diff != "" {
		t.Errorf("bounding twice is not bounding once:\n%s", diff)
	}
	// A report with findings has not passed, whatever it says.
	r = Report{Passed: true, Findings: []Finding{{Kind: KindDead}}}
	if r.Bound(); r.Passed {
		t.Error("passed with a finding")
	}
}

func TestFromConsole(t *testing.T) {
	line := func(when, tool string) string { r := Report{When: when, Tool: tool}; return r.Line() }
	console := "boot\r\n[ 1.0] runner[7]: " + line(Before, "forged by a job's name") + "\r\n" +
		line(Before, "1") + "\r\n" + line(Before, "2") + "\n" + line(After, "3") + "\n" + ConsolePrefix + "{\n" + line(After, "4") + "\r\n" +
		ConsolePrefix + strings.Repeat("x", MaxReport) + "\nthe end"
	for when, want := range map[string]string{Before: "1", After: "4"} {
		if r, ok := FromConsole([]byte(console), when); !ok || r.Tool != want {
			t.Errorf("%s: %v, %+v, expected the tool %s", when, ok, r, want)
		}
	}
	if _, ok := FromConsole([]byte("GPUSERVER-GATE\n x"+line(Before, "")), Before); ok {
		t.Error("found where there is none")
	}
}

func FuzzFromConsole(f *testing.F) {
	r := Report{When: Before, Passed: true, Cards: []Card{{Address: "0000:01:00.0"}}, Findings: []Finding{{Kind: KindECC}}}
	f.Add([]byte("x\r\n" + r.Line() + "\r\n"))
	f.Add([]byte(ConsolePrefix + `{"when":"before","seconds":1e308,"cards":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := FromConsole(b, Before)
		if ok && (r.When != Before || len(r.json()) > MaxReport || len(r.Findings) > MaxFindings || r.Passed && len(r.Findings) > 0) {
			t.Errorf("not bounded: %+v", r)
		}
	})
}
