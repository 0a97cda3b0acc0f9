package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"gpuserver"
)

// patience is how long anything is waited for: only a broken run waits so long.
const patience = 5 * time.Minute

// process is a child that dies with us.
type process struct {
	cmd  *exec.Cmd
	out  *bufio.Reader // its standard output, if it was asked for
	log  *os.File
	done chan struct{}
}

// start starts a program whose standard error goes to a file. Its standard
// output does, too, unless piped.
func start(log string, env []string, stdin io.Reader, piped bool, name string, args ...string) (*process, error) {
	fail := func(err error) (*process, error) {
		return nil, gpuserver.Wrap(gpuserver.KindUnavailable, "bench: start "+name, err)
	}
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fail(err)
	}
	p := &process{cmd: exec.Command(name, args...), log: f, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdin, p.cmd.Stderr, p.cmd.Stdout = stdin, f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if piped {
		p.cmd.Stdout = nil
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			f.Close()
			return fail(err)
		}
		p.out = bufio.NewReader(out)
	}
	if err := p.cmd.Start(); err != nil {
		f.Close()
		return fail(err)
	}
	if !piped {
		go p.reap()
	}
	return p, nil
}

// reap waits for the end. With a pipe the reader of the pipe calls it.
func (p *process) reap() {
	_ = p.cmd.Wait()
	p.log.Close()
	close(p.done)
}

// ended says why the process is no longer there, nil while it is.
func (p *process) ended() error {
	select {
	case <-p.done:
		return gpuserver.Errorf(gpuserver.KindUnavailable, "bench: %s ended: %v; the end of its log:\n%s", p.cmd.Path, p.cmd.ProcessState, tail(p.log.Name()))
	default:
		return nil
	}
}

func tail(path string) string {
	text, _ := os.ReadFile(path)
	if len(text) > 4000 {
		text = text[len(text)-4000:]
	}
	return string(text)
}

// stop ends the process with a signal and waits for its end; it is killed if it
// takes long.
func (p *process) stop(s syscall.Signal) {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// startRole starts this program in a role and gives the address that it says.
func (b *bench) startRole(log, role string, args string) (*process, string, error) {
	p, err := start(log, []string{RoleVariable + "=" + role, argsVariable + "=" + args}, nil, true, b.Self)
	if err != nil {
		return nil, "", err
	}
	line, err := p.out.ReadString('\n')
	go p.reap()
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		p.stop(syscall.SIGKILL)
		return nil, "", gpuserver.Errorf(gpuserver.KindUnavailable, "bench: the %s did not start: %v %q\n%s", role, err, line, tail(log))
	}
	return p, addr, nil
}

// until waits for a condition that gives "" once it holds, else what is still
// missing. It asks every pause.
func until(ctx context.Context, pause time.Duration, what string, cond func() (string, error)) error {
	return untilWithin(ctx, patience, pause, what, cond)
}

// untilWithin is until with a limit of its own.
func untilWithin(ctx context.Context, limit, pause time.Duration, what string, cond func() (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		missing, err := cond()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %s: %w", what, missing, ctx.Err())
		case <-time.After(pause):
		}
	}
}
