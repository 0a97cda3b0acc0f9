package gate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxOutput is how much of what a tool prints is kept.
const maxOutput = 4 << 20

// toolDirs are where vendors' tools lie. PATH is not asked: a job may have added
// folders of its own.
var toolDirs = []string{"usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/local/sbin", "opt/rocm/bin"}

// errHung says that a tool did not end in its time.
var errHung = errors.New("did not end in time")

// runner carries a program out and gives what it printed. It returns soon after
// ctx ended, whatever the program does.
type runner func(ctx context.Context, path string, args ...string) (output, error)

// output is what a tool printed.
type output struct{ stdout, stderr []byte }

// both gives both streams as one short text for people.
func (o output) both() string {
	text := strings.Join(strings.Fields(string(o.stdout)+" "+string(o.stderr)), " ")
	return Clip(text, 160)
}

// tool gives a tool's path, "" if the image does not have it.
func (c *check) tool(name string) string {
	for _, dir := range toolDirs {
		path := filepath.Join("/", c.Root, dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// call runs a tool, at most for limit.
func (c *check) call(ctx context.Context, limit time.Duration, path string, args ...string) (output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	run := c.run
	if run == nil {
		run = runProgram
	}
	type result struct {
		out output
		err error
	}
	done := make(chan result, 1)
	start := time.Now()
	go func() { // a program in the kernel's hands may never end, and this with it
		out, err := run(ctx, path, args...)
		done <- result{out, err}
	}()
	hung := func() error { return fmt.Errorf("%w (%s)", errHung, time.Since(start).Round(time.Millisecond)) }
	select {
	case r := <-done:
		if ctx.Err() != nil {
			return r.out, hung()
		}
		return r.out, r.err
	case <-ctx.Done():
		return output{}, hung()
	}
}

// runProgram is the runner of a real check: a process group of its own, killed
// with ctx.
func runProgram(ctx context.Context, path string, args ...string) (output, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var stdout, stderr limited
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	return output{stdout.Bytes(), stderr.Bytes()}, err
}

// limited keeps the first bytes that are written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	_, _ = l.Buffer.Write(b[:min(len(b), maxOutput-l.Len())]) // a buffer takes everything
	return len(b), nil
}

// exitCode gives a program's exit status, -1 if it has none.
func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

// reason gives in words why a tool failed; means are the words of exit statuses.
func reason(out output, err error, means map[int]string) string {
	if errors.Is(err, errHung) {
		return err.Error()
	}
	code := exitCode(err)
	if code < 0 {
		return Clip(err.Error(), 160)
	}
	return fmt.Sprintf("exit status %d (%s)", code, cmp.Or(means[code], out.both(), "no output"))
}
