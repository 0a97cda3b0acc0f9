package hostprep

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver"
)

// Apply carries a plan out. When it fails, what was done is put back, so that the
// system is as before; if that fails too, the error says what is left, and
// a later run of Plan and Apply or of Undo goes on from there. KindConflict:
// another run is at work, or a file changed since the plan was made.
func (p *Preparer) Apply(ctx context.Context, plan *Plan) error {
	if plan.Empty() {
		return nil
	}
	unlock, err := p.lock()
	if err != nil {
		return err
	}
	defer unlock()
	old, err := p.readManifest()
	if err != nil {
		return err
	}
	for _, f := range plan.Files {
		now, err := p.read(strings.TrimPrefix(f.Path, "/"))
		if err != nil {
			return err
		}
		if !now.same(f.before) {
			return gpuserver.Errorf(gpuserver.KindConflict, "%s changed while this was at work; nothing was written, run it again", f.Path)
		}
	}
	r := &running{Preparer: p, plan: plan, old: old}
	err = r.begin()
	if err == nil {
		err = r.writeFiles()
	}
	for _, s := range plan.steps {
		if err == nil {
			err = r.step(ctx, s)
		}
	}
	if err == nil {
		err = r.finish()
	}
	if err != nil {
		return r.putBack(err)
	}
	return nil
}

// running is a plan that is being carried out.
type running struct {
	*Preparer
	plan  *Plan
	old   *manifest
	dirs  []string   // that are made
	begun bool       // the manifest says so
	back  [][]string // the commands that put things back
}

// lock keeps a second run out.
func (p *Preparer) lock() (unlock func(), err error) {
	dir := filepath.Dir(p.state(""))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, writing(dir, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, writing(dir, err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = d.Close() // it was only locked
		return nil, gpuserver.Errorf(gpuserver.KindConflict, "another host prepare is at work; wait for its end")
	}
	return func() { _ = d.Close() }, nil
}

func writing(what string, err error) error {
	return &gpuserver.Error{Kind: gpuserver.KindUnavailable, Public: what + " cannot be written", Err: err}
}

// begin keeps what will be replaced, and notes what will be done. Until the end,
// what was done before is noted, too, so that undo finds all of it in any case.
func (r *running) begin() error {
	m := r.plan.next.clone()
	m.Pending = true
	for _, f := range r.plan.Files {
		name := strings.TrimPrefix(f.Path, "/")
		if err := r.keep(f.before); err != nil {
			return writing(r.state("files"), err)
		}
		if !r.plan.undo {
			m.written(name, f.before, f.after)
		}
		if f.after != nil {
			r.dirs = append(r.dirs, r.absentDirs(name)...)
		}
	}
	m.Dirs = append(m.Dirs, r.dirs...)
	for _, name := range r.plan.edited {
		now, err := r.read(name)
		if err == nil {
			err = os.MkdirAll(r.state("edited"), 0o700)
		}
		if err == nil {
			err = r.replace(r.edited(name), now)
		}
		if err != nil {
			return writing(r.edited(name), err)
		}
	}
	if r.plan.undo {
		r.plan.next = &manifest{}
	} else {
		r.plan.next = m.clone()
		r.plan.next.Pending = false
	}
	m.Added = append(without(m.Added, r.old.Added), r.old.Added...)
	m.Replaced = append(without(m.Replaced, r.old.Replaced), r.old.Replaced...)
	if err := r.writeManifest(m); err != nil {
		return writing(r.state("manifest.json"), err)
	}
	r.begun = true
	return nil
}

func (m *manifest) has(name string) bool {
	for _, k := range m.Files {
		if k.Path == name {
			return true
		}
	}
	return false
}

// absentDirs are the folders that have to be made for a file, the innermost
// first.
func (p *Preparer) absentDirs(name string) (dirs []string) {
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(p.Dir, dir)); !os.IsNotExist(err) {
			return dirs
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

func (r *running) writeFiles() error {
	for _, f := range r.plan.Files {
		full := filepath.Join(r.Dir, f.Path)
		err := error(nil)
		if f.after != nil {
			err = os.MkdirAll(filepath.Dir(full), 0o755)
		}
		if err == nil {
			err = r.replace(full, f.after)
		}
		if err != nil {
			return writing(f.Path, err)
		}
	}
	return nil
}

// step runs a step's command and verifies what came of it.
func (r *running) step(ctx context.Context, s step) error {
	line := strings.Join(s.run, " ")
	before, _ := r.made(s)
	out, failed := r.Run(ctx, s.run[0], s.run[1:]...)
	after, known := r.made(s)
	switch {
	case known && bytes.Equal(before, after): // it made nothing new
	case s.undo == nil:
		r.back = append(r.back, s.run)
	case len(s.undo) > 0:
		r.back = append(r.back, s.undo)
	}
	if failed != nil {
		return gpuserver.Errorf(gpuserver.KindUnavailable, "“%s” failed: %v", line, withOutput(failed, out))
	}
	if s.verify != nil {
		if wrong := s.verify(out); wrong != "" {
			return gpuserver.Errorf(gpuserver.KindUnavailable, "“%s” did not do what was asked: %s", line, wrong)
		}
	}
	return nil
}

// made gives what a step makes, if it is one file that can be read.
func (r *running) made(s step) (text []byte, ok bool) {
	if s.makes == "" {
		return nil, false
	}
	text, err := os.ReadFile(filepath.Join(r.Dir, s.makes))
	return text, err == nil
}

// withOutput adds the last lines that a command printed to its error.
func withOutput(err error, out string) error {
	last := strings.Split(strings.TrimSpace(out), "\n")
	if last = last[max(0, len(last)-5):]; last[0] == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(last, " / "))
}

// finish notes that all is done.
func (r *running) finish() error {
	if r.plan.undo {
		r.removeDirs(r.old.Dirs)
	}
	if err := r.writeManifest(r.plan.next); err != nil {
		return writing(r.state("manifest.json"), err)
	}
	return nil
}

// removeDirs removes folders that we made, unless somebody else uses them.
func (p *Preparer) removeDirs(dirs []string) {
	for _, dir := range dirs {
		_ = os.Remove(filepath.Join(p.Dir, dir)) // not empty: it stays
	}
}

// backLimit bounds how long it takes to put things back, after an interrupt too.
const backLimit = 10 * time.Minute

// putBack makes the system as it was before a plan that failed because of cause.
func (r *running) putBack(cause error) error {
	// Also if the cause is that we were interrupted.
	ctx, cancel := context.WithTimeout(context.Background(), backLimit)
	defer cancel()
	var left []string
	for _, f := range r.plan.Files {
		now, err := r.read(strings.TrimPrefix(f.Path, "/"))
		if err == nil && !now.same(f.before) {
			err = r.replace(filepath.Join(r.Dir, f.Path), f.before)
		}
		if err != nil {
			left = append(left, fmt.Sprintf("%s (%v)", f.Path, err))
		}
	}
	for _, line := range r.back {
		if _, err := r.Run(ctx, line[0], line[1:]...); err != nil {
			left = append(left, fmt.Sprintf("“%s” (%v)", strings.Join(line, " "), err))
		}
	}
	r.removeDirs(without(r.dirs, r.old.Dirs))
	if len(left) == 0 && r.begun {
		if err := r.writeManifest(r.old); err != nil {
			left = append(left, r.state("manifest.json"))
		}
	}
	if len(left) == 0 {
		return gpuserver.Errorf(gpuserver.KindOf(cause), "%v. Everything is as it was before", cause)
	}
	return gpuserver.Errorf(gpuserver.KindOf(cause),
		"%v. Not all of it could be put back: %s. What the files said is kept in %s; once the cause is mended, gpuserver host prepare --undo puts it back, and gpuserver host prepare goes on",
		cause, strings.Join(left, ", "), r.state("files"))
}
