package machine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long an event is waited for: generous, because VMs may be
// emulated on a busy machine. A test that passes never waits so long.
var patience = patienceOf()

// patienceOf gives five minutes, or what GPUSERVER_E2E_PATIENCE says: somebody
// who looks for a mistake does not want to wait.
func patienceOf() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("GPUSERVER_E2E_PATIENCE")); err == nil {
		return d
	}
	return 5 * time.Minute
}

// text is what a process printed so far.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (s *text) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *text) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// process is a child process that ends with the test.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr text
	done           chan struct{}
}

// start starts a program. At the test's end it is asked to end, and killed if
// it does not.
func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.WaitDelay = time.Second // what it started may hold its output open
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			p.signal(syscall.SIGKILL)
			<-p.done
		}
		if t.Failed() {
			t.Logf("%s printed:\n%s\nand on standard error:\n%s", strings.Join(p.cmd.Args[1:], " "), tail(p.stdout.String()), tail(p.stderr.String()))
		}
	})
	return p
}

// program starts the program.
func program(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	return start(t, env, binary, args...)
}

func tail(s string) string {
	if len(s) > 16000 {
		return "…" + s[len(s)-16000:]
	}
	return s
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// ended waits for the end of the process and gives its exit status, -1 if a
// signal ended it.
func (p *process) ended(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("%s did not end within %v", strings.Join(p.cmd.Args[1:], " "), patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

// says waits until the process has printed something.
func (p *process) says(t *testing.T, where *text, what string) {
	t.Helper()
	eventually(t, fmt.Sprintf("it prints %q", what), func() string {
		select {
		case <-p.done:
			if !strings.Contains(where.String(), what) {
				t.Fatalf("%s ended (%v) and never printed %q", strings.Join(p.cmd.Args[1:], " "), p.cmd.ProcessState, what)
			}
		default:
		}
		if !strings.Contains(where.String(), what) {
			return "not yet"
		}
		return ""
	})
}

// eventually waits for a condition; it gives "" or what is still wrong.
func eventually(t *testing.T, what string, cond func() string) {
	t.Helper()
	last := ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if last = cond(); last == "" {
			return
		}
	}
	t.Fatalf("%s: %s", what, last)
}

// host runs a shell command on the host.
func host(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command("bash", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// onHost gives everything under a name that the host has: domains, networks,
// links, namespaces, firewall tables, processes and files.
func onHost(t *testing.T, name string) string {
	t.Helper()
	return host(t, fmt.Sprintf(`name=%s
virsh -q list --all --name | grep "^$name" | sed 's/^/domain /'
virsh -q net-list --all --name | grep "^$name" | sed 's/^/network /'
virsh -q nwfilter-list | grep "[ -]$name" | sed 's/^/filter /'
ip -o link | cut -d' ' -f2 | grep "^$name" | sed 's/^/link /'
ip netns | grep "^$name" | sed 's/^/namespace /'
nft list tables | grep "[ _-]$name" | sed 's/^/rules /'
ls -d /var/tmp/$name* 2>/dev/null | sed 's/^/folder /'
grep -lsaE "(qemu-system|dnsmasq|gpuserver).*[${name:0:1}]${name:1}" /proc/[0-9]*/cmdline | sed 's/^/process /'
true`, name))
}
