//go:build vfio

package vfio

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gpuserver"
)

// configuration is a service whose only cloud is the machine's libvirt. What it
// makes lies in memory: the machine's disk is small. It need not try KVM first, which
// takes as long as a guest of this machine needs.
const configuration = `
server:
  name: lab
  data_dir: /var/lib/lab
  listen: {webhooks: "", agent: "192.168.78.1:8441", api: "127.0.0.1:8442", socket: /run/lab.sock}
  log: {format: text}
gpu_models:
  - {name: tesla-v100, ids: ["10de:1db4"]}
clouds:
  - name: local
    type: libvirt
    libvirt:
      {accel: kvm, overcommit: 8, memory_reserve: 128MiB, disk_reserve: 1MiB, dir: /run/lab,
       network: {name: lab, bridge: lab0, cidr: 192.168.78.0/24}} # the driver's tests have a network of their own
flavors:
  - {name: gpu1, vcpus: 1, memory: 256MiB, disk: 1GiB, gpus: {model: tesla-v100, count: 1}}
  - {name: gpu2, vcpus: 1, memory: 256MiB, disk: 1GiB, gpus: {model: tesla-v100, count: 2}}
images:
  - name: guest
    libvirt:
      disk: %[2]s
      kernel: %[1]s/guest/vmlinux
      initrd: %[1]s/guest/initrd.img
      cmdline: console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check tsc=reliable mitigations=off net.ifnames=0
jobs: {boot_timeout: 6m}
reconcile: {clouds: 5s}
`

// service is a running "gpuserver serve".
type service struct {
	t   *testing.T
	cmd *exec.Cmd
}

func serve(t *testing.T) *service {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.qcow2")
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
	file := filepath.Join(dir, "gpuserver.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, configuration, shared, disk), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, shared+"/gpuserver", "config", "check", file)
	s := &service{t: t, cmd: exec.Command(shared+"/gpuserver", "serve", "--config", file)}
	var log safeBuffer
	s.cmd.Stdout, s.cmd.Stderr = &log, &log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_ = s.cmd.Wait()
		if t.Failed() {
			t.Logf("the service said:\n%s", log.String())
		}
	})
	eventually(t, "the service is ready", func() string {
		out, err := s.client("status").CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%v: %s", err, out)
		}
		return ""
	})
	return s
}

// client is a command of the program that talks to the service.
func (s *service) client(args ...string) *exec.Cmd {
	cmd := exec.Command(shared+"/gpuserver", args...)
	cmd.Env = append(os.Environ(), "GPUSERVER_SERVER=/run/lab.sock")
	return cmd
}

// card is a card as the service shows it.
type card struct {
	gpuserver.GPU
	HeldBy *struct {
		Job gpuserver.JobID `json:"job"`
	} `json:"held_by"`
}

// cards gives what the service knows of the machine's cards.
func (s *service) cards() []card {
	s.t.Helper()
	var all struct {
		GPUs []card `json:"gpus"`
	}
	s.json(&all, "gpu", "list")
	return all.GPUs
}

func (s *service) json(v any, args ...string) {
	s.t.Helper()
	out, err := s.client(append(args, "--output", "json")...).Output()
	if err == nil {
		err = json.Unmarshal(out, v)
	}
	if err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// card gives what the service knows of one.
func (s *service) card(address string) card {
	s.t.Helper()
	for _, g := range s.cards() {
		if g.Address == address {
			return g
		}
	}
	s.t.Fatalf("it knows no card at %s", address)
	return card{}
}

// passed gives the cards that passed a gate, by address: how often.
func (s *service) passed() map[string]int {
	s.t.Helper()
	n := map[string]int{}
	for _, g := range s.cards() {
		var h struct {
			Events []gpuserver.GPUEvent `json:"events"`
		}
		s.json(&h, "gpu", "history", g.Address)
		for _, e := range h.Events {
			if e.Kind == "gate_passed" {
				n[g.Address]++
			}
		}
	}
	return n
}

// dies has a card fall off the bus, and waits until the host sees it.
func dies(t *testing.T, address string) {
	t.Helper()
	fmt.Println("LAB: dead gpu" + address[5:7])
	eventually(t, "the host sees that "+address+" is dead", func() string {
		b, err := os.ReadFile("/sys/bus/pci/devices/" + address + "/config")
		if err != nil || !bytes.HasPrefix(b, []byte{0xff, 0xff, 0xff, 0xff}) {
			return fmt.Sprintf("%x, %v", b[:min(len(b), 4)], err)
		}
		return ""
	})
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// count says how many cards a VM has.
const count = `cat /sys/bus/pci/devices/*/vendor | grep -c 0x10de | sed 's/^/CARDS /'`

// TestService runs jobs with cards through the whole service: the agent in the VM
// finds its cards well before anything of the job runs, and cards that die are
// found and taken out. It is the last test: a dead card stays dead. 0000:c4:00.0
// is before the service starts, which finds that by itself.
func TestService(t *testing.T) {
	dies(t, "0000:c4:00.0")
	s := serve(t)
	var first string // the card of the first job
	t.Run("cards are known", func(t *testing.T) {
		s.t = t
		eventually(t, "six cards, one out", func() string {
			all := s.cards()
			if len(all) != 6 || s.card("0000:c4:00.0").State != gpuserver.GPUQuarantined {
				return fmt.Sprintf("%+v", all)
			}
			return ""
		})
	})
	t.Run("a job with one card", func(t *testing.T) {
		s.t = t
		s.runs("gpu1", 1)
		passed := s.passed()
		for address := range passed {
			first = address
		}
		if len(passed) != 1 || first != "0000:44:00.0" && first != "0000:a3:00.0" {
			t.Errorf("%v passed the gate, want one of the groups with one card", passed)
		}
	})
	t.Run("a job with a pair", func(t *testing.T) {
		s.t = t
		s.runs("gpu2", 2)
		if passed := s.passed(); passed["0000:27:00.0"] != 1 || passed["0000:28:00.0"] != 1 {
			t.Errorf("%v passed the gate, want the pair", passed)
		}
	})
	t.Run("a card that died before the job", func(t *testing.T) {
		s.t = t
		dies(t, first)
		s.runs("gpu1", 1)
		if g := s.card(first); g.State != gpuserver.GPUQuarantined || !strings.Contains(g.Reason, "all ones") || s.passed()[first] != 1 {
			t.Errorf("the dead card is %s (%s), and %v passed the gate", g.State, g.Reason, s.passed())
		}
	})
	t.Run("a card that dies during the job", func(t *testing.T) {
		s.t = t
		diesInAJob(t, s)
	})
	t.Run("the others go on", func(t *testing.T) {
		s.t = t
		s.runs("gpu1", 1)
		eventually(t, "nothing is left", func() string {
			return strings.TrimSpace(command(t, "sh", "-c", "virsh -q list --all; ls /run/lab/vms; pgrep -af '[q]emu-system' || true"))
		})
	})
}

// runs runs a job that has to find so many cards.
func (s *service) runs(flavor string, n int) {
	s.t.Helper()
	cmd := s.client("run", "--flavor", flavor, "--", "sh", "-c", count)
	end := time.AfterFunc(limit, func() { _ = cmd.Process.Signal(os.Interrupt) })
	defer end.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("CARDS %d\n", n)) {
		s.t.Fatalf("a job of flavor %s: %v:\n%s", flavor, err, out)
	}
}

// diesInAJob has a job see its card die; it is named and taken out. A VM sees that
// in the revision and class, which no host makes up.
func diesInAJob(t *testing.T, s *service) {
	var out safeBuffer
	cmd := s.client("run", "--quiet", "--flavor", "gpu1", "--", "sh", "-c", count+`
while sleep 1; do
	for d in /sys/bus/pci/devices/*; do
		[ "$(cat $d/vendor)" = 0x10de ] && [ "$(hexdump -s 8 -n 4 -e '4/1 "%02x"' $d/config)" = ffffffff ] && exit 7
	done
done`)
	cmd.Stdout, cmd.Stderr = &out, &out
	ended := make(chan error, 1)
	go func() { ended <- cmd.Run() }()
	eventually(t, "the job runs", func() string {
		if text := out.String(); !strings.Contains(text, "CARDS 1") {
			return "it said " + strconv.Quote(text)
		}
		return ""
	})
	all := s.cards()
	i := slices.IndexFunc(all, func(g card) bool { return g.HeldBy != nil })
	if i < 0 {
		t.Fatalf("no card is held: %+v", all)
	}
	dies(t, all[i].Address)
	select {
	case err := <-ended:
		if code := cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("the job ended with %v:\n%s", err, out.String())
		}
	case <-time.After(limit):
		t.Fatalf("the job goes on:\n%s", out.String())
	}
	eventually(t, "the card is quarantined", func() string {
		if g := s.card(all[i].Address); g.State != gpuserver.GPUQuarantined {
			return fmt.Sprintf("%+v", g)
		}
		return ""
	})
	if all[i].HeldBy.Job == 0 {
		t.Error("it was not told which job had it")
	}
}
