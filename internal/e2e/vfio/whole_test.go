//go:build vfio

package vfio

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gpuserver"
)

// configuration is a service whose only cloud is the machine's libvirt. What it
// makes lies in memory: the machine's disk is small.
const configuration = `
server:
  name: lab
  data_dir: /var/lib/lab
  listen: {webhooks: "", agent: "192.168.77.1:8441", api: "127.0.0.1:8442", socket: /run/lab.sock}
  log: {format: text}
gpu_models:
  - {name: tesla-v100, ids: ["10de:1db4"]}
clouds:
  - name: local
    type: libvirt
    libvirt: {accel: tcg, overcommit: 8, memory_reserve: 128MiB, disk_reserve: 1MiB, dir: /run/lab}
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
jobs: {boot_timeout: 3m, emulation_factor: 2}
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
			return string(out)
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

// run runs a script in a VM with cards, and gives its output.
func (s *service) run(flavor, script string) (string, error) {
	out, err := s.client("run", "--quiet", "--flavor", flavor, "--", "sh", "-c", script).CombinedOutput()
	return string(out), err
}

// cards gives what the service knows of the machine's cards.
func (s *service) cards() (all []gpuserver.GPU) {
	s.t.Helper()
	out, err := s.client("gpu", "list", "--output", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &all)
	}
	if err != nil {
		s.t.Fatalf("gpu list: %v\n%s", err, out)
	}
	return all
}

// card gives what the service knows of one.
func (s *service) card(address string) gpuserver.GPU {
	s.t.Helper()
	for _, g := range s.cards() {
		if g.Address == address {
			return g
		}
	}
	s.t.Fatalf("it knows no card at %s", address)
	return gpuserver.GPU{}
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
// found and taken out. It comes after TestDeadCard: 0000:c4:00.0 is dead.
func TestService(t *testing.T) {
	s := serve(t)
	t.Run("cards are known", func(t *testing.T) {
		s.t = t
		eventually(t, "six cards, one dead", func() string {
			all := s.cards()
			out := 0
			for _, g := range all {
				if g.State == gpuserver.GPUQuarantined {
					out++
				}
			}
			if len(all) != 6 || out != 1 {
				return fmt.Sprintf("%+v", all)
			}
			return ""
		})
		if g := s.card("0000:c4:00.0"); g.State != gpuserver.GPUQuarantined || g.Model != "tesla-v100" {
			t.Errorf("the dead card is %+v", g)
		}
	})
	t.Run("a job with one card", func(t *testing.T) {
		s.t = t
		if out, err := s.run("gpu1", count); err != nil || !strings.Contains(out, "CARDS 1") {
			t.Errorf("%v:\n%s", err, out)
		}
		if out, err := s.client("gpu", "history", "0000:44:00.0").Output(); err != nil || !strings.Contains(string(out), "gate_passed") {
			t.Errorf("its history does not say that it passed: %v\n%s", err, out)
		}
	})
	t.Run("a job with a pair", func(t *testing.T) {
		s.t = t
		if out, err := s.run("gpu2", count); err != nil || !strings.Contains(out, "CARDS 2") {
			t.Errorf("%v:\n%s", err, out)
		}
	})
	t.Run("a card that died before the job", func(t *testing.T) {
		s.t = t
		fmt.Println("LAB: dead gpu44")
		awaitDead(t, "0000:44:00.0")
		if out, err := s.run("gpu1", count); err != nil || !strings.Contains(out, "CARDS 1") {
			t.Errorf("%v:\n%s", err, out)
		}
		if g := s.card("0000:44:00.0"); g.State != gpuserver.GPUQuarantined || !strings.Contains(g.Reason, "all ones") {
			t.Errorf("the dead card is %s: %s", g.State, g.Reason)
		}
	})
	t.Run("a card that dies during the job", func(t *testing.T) {
		s.t = t
		ended := make(chan error, 1)
		var out safeBuffer
		cmd := s.client("run", "--quiet", "--flavor", "gpu1", "--", "sh", "-c", count+`; while sleep 1; do
			for d in /sys/bus/pci/devices/*; do [ "$(cat $d/vendor)" = 0x10de ] && [ "$(hexdump -n 4 -e '4/1 "%02x"' $d/config)" = ffffffff ] && exit 7; done; done`)
		cmd.Stdout, cmd.Stderr = &out, &out
		go func() { ended <- cmd.Run() }()
		eventually(t, "the job runs", func() string {
			if text := out.String(); !strings.Contains(text, "CARDS 1") {
				return text
			}
			return ""
		})
		fmt.Println("LAB: dead gpua3")
		awaitDead(t, "0000:a3:00.0")
		select {
		case err := <-ended:
			if code := cmd.ProcessState.ExitCode(); code != 7 {
				t.Errorf("the job ended with %v:\n%s", err, out.String())
			}
		case <-time.After(limit):
			t.Fatalf("the job goes on:\n%s", out.String())
		}
		eventually(t, "the card is quarantined", func() string {
			if g := s.card("0000:a3:00.0"); g.State != gpuserver.GPUQuarantined {
				return fmt.Sprintf("%+v", g)
			}
			return ""
		})
	})
	t.Run("the others go on", func(t *testing.T) {
		s.t = t
		if out, err := s.run("gpu1", count); err != nil || !strings.Contains(out, "CARDS 1") {
			t.Errorf("%v:\n%s", err, out)
		}
		eventually(t, "nothing is left", func() string {
			text := command(t, "sh", "-c", "virsh -q list --all; ls /run/lab/vms; pgrep -af '[q]emu-system' || true")
			return strings.TrimSpace(text)
		})
	})
}

// awaitDead waits until the host sees that a card answers all ones.
func awaitDead(t *testing.T, address string) {
	t.Helper()
	eventually(t, "the host sees that "+address+" is dead", func() string {
		b, err := os.ReadFile("/sys/bus/pci/devices/" + address + "/config")
		if err != nil || !bytes.HasPrefix(b, []byte{0xff, 0xff, 0xff, 0xff}) {
			return fmt.Sprintf("%x, %v", b[:min(len(b), 4)], err)
		}
		return ""
	})
}
