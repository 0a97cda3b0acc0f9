package hostprep

import (
	"slices"
	"strings"

	"gpuserver"
)

// PlanUndo works out how to make all files, and the kernel's command line, as
// they were before the first run of Apply. A file that somebody changed since is
// KindConflict, unless force: then the change is kept in the state folder, and
// a remark says where. A plan that is empty says that there is nothing to undo.
func (p *Preparer) PlanUndo(force bool) (*Plan, error) {
	m, err := p.readManifest()
	if err != nil {
		return nil, err
	}
	plan := &Plan{Files: []FileChange{}, Commands: []string{}, Remarks: []string{}, undo: true, next: m.clone()}
	var foreign []string
	for _, k := range m.Files {
		original, err := p.original(k)
		if err != nil {
			return nil, err
		}
		now, err := p.read(k.Path)
		if err != nil {
			return nil, err
		}
		if now.same(original) {
			continue
		}
		if now != nil && hash(now) != k.Original && !slices.Contains(k.Written, hash(now)) {
			foreign = append(foreign, "/"+k.Path)
			plan.edited = append(plan.edited, k.Path)
			plan.Remarks = append(plan.Remarks, "what /"+k.Path+" says now is kept as "+p.edited(k.Path))
		}
		plan.Files = append(plan.Files, FileChange{"/" + k.Path, diff(k.Path, now.bytes(), original.bytes()), now, original})
	}
	if len(foreign) > 0 && !force {
		return nil, gpuserver.Errorf(gpuserver.KindConflict, "changed since host prepare wrote it: %s. Nothing was undone. Move your change to a file of your own, or give --force: then it is kept below %s", strings.Join(foreign, ", "), p.state("edited"))
	}
	slices.SortFunc(plan.Files, func(a, b FileChange) int { return strings.Compare(a.Path, b.Path) })
	p.addUndoSteps(plan, m)
	return plan, nil
}

// edited is where a foreign change of a file is kept.
func (p *Preparer) edited(name string) string {
	return p.state("edited/" + strings.ReplaceAll(name, "/", "_"))
}

// addUndoSteps adds the commands that make the old files count.
func (p *Preparer) addUndoSteps(plan *Plan, m *manifest) {
	if m.empty() {
		return
	}
	if maker := p.initramfs(); maker.run != nil {
		plan.steps = append(plan.steps, step{run: maker.run})
	}
	if m.has(grubOurs) && p.command("update-grub") {
		plan.steps = append(plan.steps, step{run: []string{"update-grub"}, makes: grubConfig})
	}
	if len(m.Added) > 0 {
		plan.steps = append(plan.steps, grubbyStep(m.Replaced, m.Added))
		plan.Removed, plan.Parameters = m.Added, m.Replaced
	}
	for _, s := range plan.steps {
		plan.Commands = append(plan.Commands, strings.Join(s.run, " "))
	}
}
